"""No run is lost: whole LangGraph runs through each fault, over each kind of connection.

A dozen runs go through a graph at once. Its nodes wait at gates. Before a gate opens, the tables
are locked or the network is armed, and the fault comes when the server is at work on what the runs
write, or when the network has done its part: it never misses. Afterwards the story of each thread,
as upstream's saver reads it, is compared with what the same run leaves in memory, in calm.
"""

import asyncio
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from operator import add
from traceback import format_exception_only
from typing import Annotated, TypedDict

import psycopg
import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Interrupt, interrupt
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from lghard import open_checkpointer
from lghard.testing import FaultProxy, TemporaryPostgres, temporary_pgbouncer
from lghard.testing.fixtures import require_or_skip
from lghard.testing.pgbouncer import PgBouncerNotFoundError, TemporaryPgBouncer
from tests.postgres.checkpoints import config_of, eventually, execute, query, waiting_backends

THREADS = [f"thread {number}" for number in range(12)]
CONNECTIONS = 6
BRANCHES = ["news", "mail", "files"]
STEPS = 5


# The runs


class State(TypedDict):
    messages: Annotated[list[str], add]  # what is applied twice, is seen twice
    status: str  # a value of its own row's JSON, while lists are rows of another table


class Gate:
    """Where the nodes of a step wait until it opens."""

    def __init__(self):
        self.arrived = set()
        self._opened = asyncio.Event()

    async def wait(self, config):
        self.arrived.add(config["configurable"]["thread_id"])
        await self._opened.wait()

    def open(self):
        self._opened.set()


def build_graph(gates):
    """A plan, three searches at once, a question to a human, an answer and a last look at it."""
    builder = StateGraph(State)
    builder.add_node("plan", step("plan", gates[0]))
    for name in BRANCHES:
        builder.add_node(name, step(name, gates[1]))
    builder.add_node("approve", approval(gates[2]))
    builder.add_node("answer", step("answer", gates[3]))
    builder.add_node("check", step("check", gates[4]))
    builder.add_edge(START, "plan")
    for name in BRANCHES:
        builder.add_edge("plan", name)
    builder.add_edge(BRANCHES, "approve")
    builder.add_edge("approve", "answer")
    builder.add_edge("answer", "check")
    builder.add_edge("check", END)
    return builder


def step(name, gate):
    async def node(state: State, config: RunnableConfig):
        await gate.wait(config)
        return {"messages": [f"{name}, after {len(state['messages'])}"]}

    return node


def approval(gate):
    async def approve(state: State, config: RunnableConfig):
        await gate.wait(config)
        answer = interrupt(f"is this right: {state['messages'][0]}")
        return {"messages": [answer], "status": "approved"}

    return approve


async def one_run(graph, thread_id):
    """The state after both halves of a run: up to the question to a human, and from the answer."""
    config = config_of(thread_id)
    await graph.ainvoke({"messages": [f"question of {thread_id}"], "status": "new"}, config)
    return await graph.ainvoke(Command(resume=f"yes, {thread_id}"), config)


async def stories(saver):
    """What a saver has stored of all threads, in an order and in words that any saver shares."""
    return {thread_id: await story(saver, thread_id) for thread_id in THREADS}


async def story(saver, thread_id):
    """The checkpoints of a thread, newest first."""
    found = [each async for each in saver.alist(config_of(thread_id))]
    ids = [each.checkpoint["id"] for each in found]
    return [
        {
            "source": each.metadata["source"],
            "step": each.metadata["step"],
            "values": each.checkpoint["channel_values"],
            "versions": counted(each.checkpoint["channel_versions"]),
            "seen": counted(each.checkpoint["versions_seen"]),
            "parent": each.parent_config and ids.index(id_of(each.parent_config)),
            "writes": sorted(map(written, each.pending_writes)),
        }
        for each in found
    ]


def id_of(config):
    return config["configurable"]["checkpoint_id"]


def counted(versions):
    """A version is a number and, behind a dot, chance."""
    if isinstance(versions, str):
        return int(versions.partition(".")[0])
    return {name: counted(each) for name, each in versions.items()}


def written(write):
    """Neither tasks nor interrupts have the same ids in two runs."""
    _, channel, value = write
    if isinstance(value, list | tuple) and value and isinstance(value[0], Interrupt):
        value = [each.value for each in value]
    return channel, repr(value)


@pytest.fixture
async def expected():
    """The states and the stories of the same runs, in memory and in calm."""
    gates = [Gate() for _ in range(STEPS)]
    for gate in gates:
        gate.open()
    saver = InMemorySaver()
    graph = build_graph(gates).compile(checkpointer=saver)
    states = [await one_run(graph, thread_id) for thread_id in THREADS]
    return states, await stories(saver)


# The connections


@dataclass
class Scene:
    """A database, the way that the runs take to it, and who is on that way.

    The standby is there for a failover only, and the proxy for resets. With `at_work` backends at
    work, a fault has something to hit.
    """

    server: TemporaryPostgres
    database: str
    conninfo: str
    pooler: TemporaryPgBouncer | None = None
    standby: TemporaryPostgres | None = None
    proxy: FaultProxy | None = None
    at_work: int = 1
    runs: list[asyncio.Task] = field(default_factory=list)
    is_noticed: Callable[[], bool] = lambda: True

    def begin(self, saver):
        """Start all runs, and return the gates that they have to pass."""
        gates = [Gate() for _ in range(STEPS)]
        graph = build_graph(gates).compile(checkpointer=saver)
        self.runs = [asyncio.create_task(one_run(graph, thread_id)) for thread_id in THREADS]
        return gates

    @property
    def is_lost(self):
        """Whether a run has failed."""
        return any(run.done() and run.exception() for run in self.runs)

    async def until(self, condition):
        """Wait until a condition holds, or a run has failed: then it never may."""
        await eventually(lambda: self.is_lost or condition())

    @property
    def survivor(self):
        """The conninfo of the database for a judge, after everything."""
        if not self.standby:
            return self.database
        return make_conninfo(self.database, host=self.standby.host, port=self.standby.port)


@pytest.fixture
async def scene(fault, connection, request):
    """A database of its own, and the way to it that the test is about."""
    server = request.getfixturevalue(
        "tls_postgres" if connection == "tls" else "breakable_postgres"
    )
    database = await asyncio.to_thread(server.create_database)
    scene = Scene(server, database, database)
    async with AsyncExitStack() as stack:
        stack.callback(server.drop_database, database)
        if connection == "pgbouncer":
            scene.pooler = stack.enter_context(pooled(server))
            scene.conninfo = scene.pooler.conninfo(database)
        if fault == "resets":
            entrance = scene.pooler or server
            scene.proxy = await stack.enter_async_context(FaultProxy(entrance.host, entrance.port))
            scene.conninfo = scene.proxy.conninfo(database)
        if fault == "failover":
            await stack.enter_async_context(replicated(scene))
        if connection == "tls":
            scene.conninfo = make_conninfo(scene.conninfo, sslmode="require")
        yield scene


@contextmanager
def pooled(server):
    """A PgBouncer in transaction mode."""
    # It would refuse its clients for 15 s after a server that was away for a moment.
    settings = {"server_login_retry": "0.1"}
    with ExitStack() as stack:
        try:
            yield stack.enter_context(temporary_pgbouncer(server, settings=settings))
        except PgBouncerNotFoundError as error:
            require_or_skip(str(error))


@asynccontextmanager
async def replicated(scene):
    """A standby that has everything that was committed."""
    async with AsyncExitStack() as stack:
        scene.standby = stack.enter_context(scene.server.standby())
        if not scene.pooler:  # which is told where to go; a client has to find out
            hosts = f"{scene.server.host},{scene.standby.host}"
            ports = f"{scene.server.port},{scene.standby.port}"
            scene.conninfo = make_conninfo(
                scene.database, host=hosts, port=ports, target_session_attrs="read-write"
            )
        stack.push_async_callback(synchronous, scene, "RESET synchronous_standby_names")
        stack.callback(scene.server.start)
        await synchronous(scene, "SET synchronous_standby_names = '*'")
        yield


async def synchronous(scene, setting):
    """Whether a commit waits for the standby: what a crash takes with it, nobody can repeat."""
    await execute(scene.server.conninfo, f"ALTER SYSTEM {setting}", "SELECT pg_reload_conf()")


# The faults


@asynccontextmanager
async def in_flight(scene, gate, *, at_least):
    """Open a gate; in this block, the server is at work on what the runs write behind it."""
    locker = await AsyncConnection.connect(scene.database)
    try:
        # In the order of a write: a run that is at it still gets done first.
        await locker.execute("LOCK checkpoint_blobs, checkpoints, checkpoint_writes")
        gate.open()
        yield await waiting_backends(scene.database, at_least)
    finally:
        await locker.close()  # it may have died with the others


async def kill(scene):
    """Terminate every backend, and whatever comes back, ten times a second."""
    await terminate(scene)
    for _ in range(2):
        await asyncio.sleep(0.1)
        await terminate(scene)


async def terminate(scene):
    await asyncio.to_thread(scene.server.terminate_backends, database=scene.database)


async def restart(scene):
    await asyncio.to_thread(scene.server.restart, "fast")


async def crash(scene):
    await asyncio.to_thread(scene.server.restart, "immediate")


async def freeze(scene):
    """Suspend the whole server until the runs have given up waiting for it."""
    await asyncio.to_thread(scene.server.freeze)
    try:
        await scene.until(scene.is_noticed)
    finally:
        await asyncio.to_thread(scene.server.thaw)


async def reset(scene):
    """The connections end, and the server is still at work."""
    scene.proxy.reset()


async def fail_over(scene):
    """The primary crashes, and the standby takes over."""
    await asyncio.to_thread(scene.server.stop, "immediate")
    await asyncio.to_thread(scene.standby.promote)
    if scene.pooler:
        lead(scene.pooler, scene.server, scene.standby)


def lead(pooler, old, new):
    """Have PgBouncer connect to another server, as those who fail over do.

    Two of them as two hosts would not do: until it is restarted, each tells its clients whether it
    was a standby that it has connected to first.
    """
    path = pooler._directory.path / "pgbouncer.ini"
    path.write_text(path.read_text().replace(f"port={old.port}\n", f"port={new.port}\n"))
    pooler._process.send_signal(signal.SIGHUP)


def strike(fault):
    """A fault that comes while the server is at work."""

    async def round_(scene, gate):
        async with in_flight(scene, gate, at_least=scene.at_work):
            await fault(scene)

    return round_


async def lose_responses(scene, gate):
    """The server has done it, and nobody hears of it."""
    lost = scene.proxy.lost
    scene.proxy.lose_responses(3)
    gate.open()
    await scene.until(lambda: scene.proxy.lost == lost + 3)
    scene.proxy.lose_responses(0)


def cut(direction):
    """The connection is reset in the middle of a write, or of its answer."""

    async def round_(scene, gate):
        scene.proxy.cut_after(20, direction, n=3)
        gate.open()
        await scene.until(lambda: not scene.proxy._cut._left)
        scene.proxy.cut_after(0, direction, n=0)

    return round_


async def calm(scene, gate):
    gate.open()


FAULTS = {
    "kill-storm": [strike(kill)] * STEPS,
    "restart": [calm, strike(restart), strike(restart), calm, calm],
    "crash": [calm, strike(crash), strike(crash), calm, calm],
    "freeze": [calm, strike(freeze), strike(freeze), calm, strike(freeze)],
    "resets": [strike(reset), cut("up"), lose_responses, cut("down"), strike(reset)],
    "failover": [calm, calm, strike(fail_over), calm, calm],
}
"""What happens at each gate. Behind the second, a run writes for three nodes at once, which is an
insert (DO NOTHING); behind the third, it asks its human, which is an UPSERT."""

ATTEMPT_TIMEOUT = {"freeze": 0.5}
"""Seconds; the default of half a minute is for servers that are only slow."""


def told(error):
    """What is said of an error, with its notes."""
    return "".join(format_exception_only(error))


async def are_stored(scene, checkpoints):
    """Whether so many are: the last one is written while the next node is at work.

    In a round, what comes behind the gate is to be hit, so that each kind of write has its round.
    """
    return [(checkpoints,)] == await query(scene.database, "SELECT count(*) FROM checkpoints")


async def storm(fault, scene, gates):
    """Each round begins when all runs have arrived, and ends when its fault has struck."""
    try:
        for number, (gate, round_) in enumerate(zip(gates, FAULTS[fault], strict=True)):
            await scene.until(lambda gate=gate: len(gate.arrived) == len(THREADS))
            if round_ is not calm:
                await scene.until(partial(are_stored, scene, (number + 2) * len(THREADS)))
            if not scene.is_lost:
                await round_(scene, gate)
    finally:
        for gate in gates:  # who is lost hears of it only when the next node is done
            gate.open()


@pytest.mark.parametrize("together", [False, True], ids=["alone", "together"])
@pytest.mark.parametrize("connection", ["plain", "tls", "pgbouncer"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_no_run_is_lost(fault, scene, expected, together, caplog):
    """Every run finishes, with the state and the history that it has in calm."""
    timeout = ATTEMPT_TIMEOUT.get(fault, 30.0)
    scene.at_work = 1 if together else CONNECTIONS
    async with open_checkpointer(
        scene.conninfo, max_size=CONNECTIONS, attempt_timeout=timeout, batching=together
    ) as saver:
        scene.is_noticed = lambda: saver._outage._repeating >= CONNECTIONS
        stormed = storm(fault, scene, scene.begin(saver))
        failed, *states = await asyncio.gather(stormed, *scene.runs, return_exceptions=True)
    assert "" == "".join(told(error) for error in states if isinstance(error, BaseException))
    assert failed is None
    async with AsyncPostgresSaver.from_conn_string(scene.survivor) as judge:
        assert expected == (states, await stories(judge))
    assert "lost the database and is trying again" in caplog.text


# The controls


@asynccontextmanager
async def upstream(conninfo):
    """Upstream's saver, on a pool that checks its connections, and does not wait for long."""
    pool = AsyncConnectionPool(
        conninfo,
        max_size=CONNECTIONS,
        timeout=1.0,
        kwargs={"autocommit": True, "row_factory": dict_row},
        check=AsyncConnectionPool.check_connection,
        open=False,
    )
    async with pool:
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        yield saver


@pytest.mark.parametrize("connection", ["plain"])
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "freeze"])
async def test_upstream_loses_a_run(fault, scene):
    """The control: the first round of the fault is enough."""
    first = next(round_ for round_ in FAULTS[fault] if round_ is not calm)
    async with upstream(scene.conninfo) as saver:
        gate, *others = scene.begin(saver)
        await eventually(lambda: len(gate.arrived) == len(THREADS))
        await first(scene, gate)
        for each in others:
            each.open()
        ended, going_on = await asyncio.wait(scene.runs, return_when=asyncio.FIRST_EXCEPTION)
        for run in going_on:
            run.cancel()
        await asyncio.wait(scene.runs)
    errors = [error for run in ended if (error := run.exception())]
    assert errors
    assert all(isinstance(error, psycopg.OperationalError) for error in errors)


# One backend of many


@asynccontextmanager
async def one_frozen(scene, gates):
    """In this block all runs may go on, and one backend, which has been caught at work, may not."""
    await eventually(lambda: len(gates[0].arrived) == len(THREADS))
    async with in_flight(scene, gates[0], at_least=1) as (pid, *_):
        scene.server.freeze_backend(pid)
    try:
        for each in gates:
            each.open()
        yield
    finally:
        scene.server.thaw_backend(pid)


@pytest.mark.parametrize(("fault", "connection"), [("freeze", "plain")])
async def test_upstream_stands_still_behind_one_frozen_backend(scene):
    """The control: one lock is held by whoever waits for an answer, and nothing ends the wait."""
    async with upstream(scene.conninfo) as saver:
        gates = scene.begin(saver)
        async with one_frozen(scene, gates):
            await eventually(lambda: len(saver.lock._waiters or ()) >= len(THREADS) - 1)
            assert not any(run.done() for run in scene.runs)
        await asyncio.gather(*scene.runs)


@pytest.mark.parametrize(("fault", "connection"), [("freeze", "plain")])
async def test_one_frozen_backend_holds_up_one_run_at_most(scene, expected):
    """All others finish meanwhile, and that one as well, unless a late write could overwrite."""
    timeout = ATTEMPT_TIMEOUT["freeze"]
    async with open_checkpointer(
        scene.conninfo, max_size=CONNECTIONS, attempt_timeout=timeout, batching=False
    ) as saver:
        gates = scene.begin(saver)
        async with one_frozen(scene, gates):
            await eventually(lambda: sum(run.done() for run in scene.runs) >= len(THREADS) - 1)
        states = await asyncio.gather(*scene.runs)
    async with AsyncPostgresSaver.from_conn_string(scene.survivor) as judge:
        assert expected == (states, await stories(judge))
