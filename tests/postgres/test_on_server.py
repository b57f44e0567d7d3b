"""open_checkpointer in a real LangGraph server, which enters it once per event loop."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient
from langgraph_sdk.errors import APIStatusError

from lghard import open_checkpointer
from lghard.testing import LangGraphServer, TemporaryPostgres, langgraph_server
from tests.postgres.checkpoints import config_of, eventually

HERE = Path(__file__).parent
GRAPHS = {"graph": "./served_graph.py:graph", "factory": "./served_graph.py:factory"}
OURS, UPSTREAM = "lghard.postgres.open_checkpointer", "./served_graph.py:upstream"
BUDGET = 4
RUNS = 30
HELLO = {"said": ["hello"], "gate": ""}
ANSWER = ["hello", "heard", "noted", "waited"]
STEPS = [3, 2, 1, 0, -1]
STARTING = {None, "starting"}


class Deployment:
    """A LangGraph server whose checkpoints are in a database of their own."""

    def __init__(self, server: LangGraphServer, postgres: TemporaryPostgres, conninfo: str) -> None:
        self.server = server
        self.postgres = postgres
        self.conninfo = conninfo

    def backends(self) -> list[tuple[str, str, str | None]]:
        """What each connection to the database is called, does, and waits for."""
        query = (
            "SELECT application_name, state, wait_event_type FROM pg_stat_activity "
            "WHERE datname = %s AND application_name <> 'test'"
        )
        with psycopg.connect(self.postgres.conninfo, autocommit=True) as conn:
            return conn.execute(query, [self.conninfo.rpartition("/")[2]]).fetchall()

    def rows(self, thread: str) -> list[int]:
        """How much there is of a thread in each table."""
        tables = "checkpoints", "checkpoint_blobs", "checkpoint_writes"
        query = "SELECT count(*) FROM {} WHERE thread_id = %s"
        with psycopg.connect(self.conninfo, application_name="test") as conn:
            return [conn.execute(query.format(t), [thread]).fetchone()[0] for t in tables]

    def stored(self, thread: str) -> list[str]:
        """What upstream's checkpointer reads in the database."""
        with PostgresSaver.from_conn_string(self.conninfo) as saver:
            return saver.get_tuple(config_of(thread)).checkpoint["channel_values"]["said"]


@contextmanager
def deployed(
    postgres: TemporaryPostgres, checkpointer: str, *, isolated: bool, jobs: int = RUNS
) -> Iterator[Deployment]:
    conninfo = postgres.create_database()
    env = {
        "LGHARD_DATABASE_URI": conninfo,
        "LGHARD_POOL_MAX_SIZE": str(BUDGET),
        "BG_JOB_ISOLATED_LOOPS": str(isolated).lower(),
    }
    with langgraph_server(
        GRAPHS, directory=HERE, env=env, checkpointer=checkpointer, jobs=jobs
    ) as server:
        yield Deployment(server, postgres, conninfo)
    postgres.drop_database(conninfo)


@pytest.fixture(scope="module", params=[False, True], ids=["one loop", "isolated loops"])
def deployment(
    request: pytest.FixtureRequest, breakable_postgres: TemporaryPostgres
) -> Iterator[Deployment]:
    """A server for each way to work on runs: all in its own loop, or each in another one."""
    with deployed(breakable_postgres, OURS, isolated=request.param) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def upstream(breakable_postgres: TemporaryPostgres) -> Iterator[Deployment]:
    """The same with isolated loops and upstream's checkpointer."""
    with deployed(breakable_postgres, UPSTREAM, isolated=True, jobs=10) as deployment:
        yield deployment


@pytest.fixture
async def client(deployment: Deployment) -> AsyncIterator[LangGraphClient]:
    async with get_client(url=deployment.server.url) as client:
        yield client


@pytest.fixture
async def thread(client: LangGraphClient) -> str:
    """A new thread."""
    return (await client.threads.create())["thread_id"]


@pytest.fixture(scope="module")
def prepared(deployment: Deployment) -> list[str]:
    """Threads with a finished run, made all at once: a server looks for runs twice a second."""

    async def prepare() -> list[str]:
        async with get_client(url=deployment.server.url) as client:
            threads = [(await client.threads.create())["thread_id"] for _ in range(10)]
            await asyncio.gather(*(client.runs.wait(t, "graph", input=HELLO) for t in threads))
        return threads

    return asyncio.run(prepare())


@pytest.fixture
def used(prepared: list[str]) -> str:
    """A thread with a finished run."""
    return prepared.pop()


class Gate:
    """Where runs wait until it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.input = {**HELLO, "gate": str(path)}

    async def reached(self) -> None:
        await eventually(self.path.with_suffix(".reached").exists)

    def open(self) -> None:
        self.path.touch()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


async def history(client: LangGraphClient, thread: str) -> list[Any]:
    """All states of a thread, the newest first."""
    return await client.threads.get_history(thread, limit=100)


async def steps(client: LangGraphClient, thread: str) -> list[int]:
    """The numbers of all states of a thread, the newest first."""
    return [state["metadata"]["step"] for state in await history(client, thread)]


async def said(client: LangGraphClient, thread: str) -> list[str]:
    return (await client.threads.get_state(thread))["values"]["said"]


async def at_rest(client: LangGraphClient, thread: str) -> str:
    """What became of a thread once nothing runs on it any more."""

    async def status() -> str:
        status = (await client.threads.get(thread))["status"]
        return "" if status == "busy" else status

    return await eventually(status)


# What a server does with a thread


def test_a_run_is_kept_in_the_database(deployment: Deployment, used: str) -> None:
    """Upstream's checkpointer reads there what the server has written."""
    assert ANSWER == deployment.stored(used)


async def test_a_checkpointer_of_the_graph_is_ignored(
    deployment: Deployment, client: LangGraphClient, thread: str
) -> None:
    """A factory's graph brings its own, and the server replaces it."""
    await client.runs.wait(thread, "factory", input=HELLO)
    assert ANSWER == deployment.stored(thread)


async def test_an_interrupted_run_resumes(client: LangGraphClient, thread: str) -> None:
    """It stops at the question, and goes on with the answer."""
    stopped = await client.runs.wait(thread, "graph", input={**HELLO, "question": "why?"})
    assert "why?" == stopped["__interrupt__"][0]["value"]
    resumed = await client.runs.wait(thread, "graph", command={"resume": "because"})
    assert [*ANSWER, "because"] == resumed["said"]


async def test_history_is_whole(client: LangGraphClient, used: str) -> None:
    """Every step is there, each with its parent."""
    found = await history(client, used)
    assert STEPS == [state["metadata"]["step"] for state in found]
    parents = [state["parent_checkpoint_id"] for state in found]
    assert [*(state["checkpoint_id"] for state in found[1:]), None] == parents


async def test_a_run_starts_from_an_earlier_state(client: LangGraphClient, used: str) -> None:
    """What came after that state is done again."""
    early = (await history(client, used))[2]["checkpoint"]
    assert ANSWER == (await client.runs.wait(used, "graph", checkpoint=early))["said"]
    assert [4, 3, 2, *STEPS] == await steps(client, used)


async def test_state_is_updated(client: LangGraphClient, used: str) -> None:
    """A human adds to it."""
    await client.threads.update_state(used, {"said": ["by hand"]}, as_node="ask")
    assert [*ANSWER, "by hand"] == await said(client, used)


async def test_a_thread_is_copied(client: LangGraphClient, used: str) -> None:
    """With its history."""
    copy = (await client.threads.copy(used))["thread_id"]
    assert (STEPS, ANSWER) == (await steps(client, copy), await said(client, copy))


async def test_a_thread_is_deleted(
    deployment: Deployment, client: LangGraphClient, used: str
) -> None:
    """In all tables."""
    assert all(deployment.rows(used))
    await client.threads.delete(used)
    assert [0, 0, 0] == deployment.rows(used)


async def test_threads_are_pruned(
    deployment: Deployment, client: LangGraphClient, used: str
) -> None:
    """By default, that is to delete them."""
    assert {"pruned_count": 1} == await client.threads.prune([used])
    assert [0, 0, 0] == deployment.rows(used)


async def test_history_is_pruned_beside_the_server(
    deployment: Deployment, client: LangGraphClient, used: str
) -> None:
    """`langgraph dev` refuses to; a job with a checkpointer of its own does it, and runs go on."""
    with pytest.raises(APIStatusError, match="not supported in in-memory runtime"):
        await client.threads.prune([used], strategy="keep_latest")
    async with open_checkpointer(deployment.conninfo, setup=False) as checkpointer:
        await checkpointer.aprune([used], strategy="keep_latest")
    assert ([3], ANSWER) == (await steps(client, used), await said(client, used))


# Runs that are cancelled


async def test_a_cancelled_run_leaves_a_whole_thread(
    client: LangGraphClient, thread: str, gate: Gate
) -> None:
    """What it has done so far is there, and the next run goes on from it."""
    run = await client.runs.create(thread, "graph", input=gate.input, durability="sync")
    await gate.reached()
    await client.runs.cancel(thread, run["run_id"])
    assert "interrupted" == await at_rest(client, thread)
    assert [1, 0, -1] == await steps(client, thread)
    again = await client.runs.wait(thread, "graph", input=HELLO)
    assert ["hello", "heard", *ANSWER] == again["said"]


async def test_a_run_that_is_rolled_back_was_never_there(
    client: LangGraphClient, used: str, gate: Gate
) -> None:
    """Not in the history, and not in what the run that has overtaken it goes on from."""
    await client.runs.create(used, "graph", input=gate.input, durability="sync")
    await gate.reached()
    assert [6, 5, 4, *STEPS] == await steps(client, used)
    overtaking = await client.runs.wait(used, "graph", input=HELLO, multitask_strategy="rollback")
    assert [*ANSWER, *ANSWER] == overtaking["said"]
    assert [8, 7, 6, 5, 4, *STEPS] == await steps(client, used)


async def test_upstream_rolls_nothing_back(upstream: Deployment, gate: Gate) -> None:
    """Control: the server fails, since that checkpointer cannot."""
    async with get_client(url=upstream.server.url) as client:
        thread = (await client.threads.create())["thread_id"]
        await client.runs.create(thread, "graph", input=gate.input)
        await gate.reached()
        with pytest.raises(httpx.HTTPStatusError, match="500 Internal Server Error"):
            await client.runs.wait(thread, "graph", input=HELLO, multitask_strategy="rollback")
    await eventually(lambda: "adelete_for_runs is not implemented" in upstream.server.log())


async def test_runs_cancelled_while_they_write_leak_no_connection(
    deployment: Deployment, client: LangGraphClient, tmp_path: Path
) -> None:
    """More runs than connections, all behind a lock of somebody else: none of them is lost."""
    threads = [(await client.threads.create())["thread_id"] for _ in range(2 * BUDGET)]
    with psycopg.connect(deployment.conninfo, application_name="test") as locking:
        locking.execute("LOCK checkpoint_writes IN SHARE MODE")
        runs = [
            await client.runs.create(thread, "graph", input=Gate(tmp_path / thread).input)
            for thread in threads
        ]
        await eventually(lambda: "Lock" in [b[2] for b in deployment.backends()])
        for thread, run in zip(threads, runs, strict=True):
            await client.runs.cancel(thread, run["run_id"])
    for thread in threads:
        await at_rest(client, thread)
        numbers = await steps(client, thread)
        assert [*range(len(numbers) - 2, -2, -1)] == numbers
    states = await asyncio.gather(
        *(client.runs.wait(thread, "graph", input=HELLO) for thread in threads)
    )
    assert [ANSWER] * len(threads) == [state["said"][-4:] for state in states]
    assert {"idle"} == {state for _, state, _ in deployment.backends()}


# Connections


async def test_many_runs_stay_within_the_budget(
    deployment: Deployment, client: LangGraphClient
) -> None:
    """However many loops there are; and the connections have the name of the process."""
    threads = [(await client.threads.create())["thread_id"] for _ in range(RUNS)]
    running = asyncio.gather(*(client.runs.wait(t, "graph", input=HELLO) for t in threads))
    seen = []
    while not running.done():
        seen.append(deployment.backends())
        await asyncio.sleep(0.002)
    assert [ANSWER] * RUNS == [state["said"] for state in await running]
    assert BUDGET >= max(map(len, seen)) > 1
    # A backend that starts is seen before it is given its name.
    names = {name for backends in seen for name, state, _ in backends if state not in STARTING}
    assert [str(deployment.server.pid)] == [name.rpartition(":")[2] for name in names]


async def test_upstream_has_a_pool_for_each_loop(upstream: Deployment) -> None:
    """Control: of the same size, for the server and for each loop that had one of ten runs."""
    async with get_client(url=upstream.server.url) as client:
        threads = [(await client.threads.create())["thread_id"] for _ in range(10)]
        await asyncio.gather(*(client.runs.wait(t, "graph", input=HELLO) for t in threads))
    assert 5 * BUDGET < len(upstream.backends())


@asynccontextmanager
async def outage(deployment: Deployment) -> AsyncIterator[None]:
    """The database is away until the block has ended, and until the server's log says so."""
    log = deployment.server.log
    before = len(log())
    await asyncio.to_thread(deployment.postgres.stop)
    try:
        yield
        await eventually(lambda: "error connecting" in log()[before:])
    finally:
        await asyncio.to_thread(deployment.postgres.start)


async def through_an_outage(deployment: Deployment, gate: Gate) -> list[Any]:
    """What becomes of ten runs that work on while the database is away."""
    async with get_client(url=deployment.server.url) as client:
        threads = [(await client.threads.create())["thread_id"] for _ in range(10)]
        running = asyncio.gather(
            *(client.runs.wait(t, "graph", input=gate.input, raise_error=False) for t in threads)
        )
        await gate.reached()
        async with outage(deployment):
            gate.open()
        return await running


async def test_a_restart_of_the_database_fails_no_run(deployment: Deployment, gate: Gate) -> None:
    """All of them finish, as if nothing had been."""
    states = await through_an_outage(deployment, gate)
    assert [ANSWER] * 10 == [state.get("said") for state in states]


async def test_a_request_waits_for_the_database(
    deployment: Deployment, client: LangGraphClient, used: str
) -> None:
    """It is answered as soon as the database is back."""
    async with outage(deployment):
        asking = asyncio.create_task(said(client, used))
    assert ANSWER == await asking


async def test_upstream_loses_runs_to_a_restart(upstream: Deployment, gate: Gate) -> None:
    """Control: whoever gets a dead connection fails."""
    states = await through_an_outage(upstream, gate)
    assert any("__error__" in state for state in states)


async def test_nothing_is_left_of_a_server_that_is_shut_down(
    deployment: Deployment, client: LangGraphClient, thread: str, gate: Gate
) -> None:
    """Not even of a run that it was working on. The last test, since it ends the server."""
    await client.runs.create(thread, "graph", input=gate.input)
    await gate.reached()
    stopping = asyncio.create_task(asyncio.to_thread(deployment.server.stop))
    await eventually(lambda: "Shutting down background workers" in deployment.server.log())
    gate.open()  # a run in another loop has five seconds to finish
    await stopping
    await eventually(lambda: not deployment.backends())
    for complaint in ("was destroyed", "never awaited", "never retrieved", "BlockingError"):
        assert complaint not in deployment.server.log()
