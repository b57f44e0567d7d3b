"""The fence of a lock: what is written by somebody who has it no longer, and what is not."""

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from psycopg import AsyncConnection

from lghard import (
    SchemaSetupError,
    ThreadLockLostError,
    open_checkpointer,
    open_pool,
    thread_lock,
)
from lghard.postgres.fencing import inside
from lghard.postgres.lease_rows import TABLE
from lghard.testing import FaultProxy, temporary_postgres
from tests.postgres.checkpoints import (
    config_of,
    eventually,
    execute,
    put,
    query,
    waiting_backend,
)
from tests.postgres.test_fence import held_up, waiting
from tests.postgres.test_leases import apart, elsewhere, is_free, lines_of, locked, steal


@pytest.fixture
async def saver(lghard_database):
    async with open_checkpointer(lghard_database) as saver:
        yield saver


async def contents(conninfo):
    """All that is stored of threads."""
    return [
        await query(conninfo, f"SELECT {table}::text FROM {table} ORDER BY 1")
        for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
    ]


# Each way to write

WRITES = {
    "aput": lambda saver: put(saver, "t", 2),
    "aput_writes": lambda saver: saver.aput_writes(config_of("t", "1"), [("messages", 1)], "task"),
    "an interrupt": lambda saver: saver.aput_writes(
        config_of("t", "1"), [("__interrupt__", 1)], "task"
    ),
    "adelete_thread": lambda saver: saver.adelete_thread("t"),
    "adelete_for_runs": lambda saver: saver.adelete_for_runs(["run"]),
    "acopy_thread": lambda saver: saver.acopy_thread("source", "t"),
    "aprune": lambda saver: saver.aprune(["t"]),
    "aprune, delete": lambda saver: saver.aprune(["u", "t"], strategy="delete"),
    "put": lambda saver: asyncio.to_thread(
        saver.put_writes, config_of("t", "1"), [("messages", 1)], "task"
    ),
    "delete_thread": lambda saver: asyncio.to_thread(saver.delete_thread, "t"),
}


@pytest.mark.usefixtures("batching")
@pytest.mark.parametrize("write", WRITES)
async def test_a_holder_writes(saver, write):
    """As without the lock."""
    await put(saver, "t")
    await put(saver, "t", 2)
    await put(saver, "source")
    await locked(saver, WRITES[write](saver))


@pytest.mark.usefixtures("batching")
@pytest.mark.parametrize("write", WRITES)
async def test_whoever_has_lost_it_writes_nothing(saver, lghard_database, write):
    """The database says so; nothing in this process knows it yet."""
    await put(saver, "t")
    await put(saver, "t", 2)
    await put(saver, "source")
    before = await contents(lghard_database)

    async def late():
        await steal(lghard_database)
        await WRITES[write](saver)

    with pytest.raises(ThreadLockLostError, match="nothing is written now") as caught:
        await locked(saver, late())
    assert isinstance(caught.value.__cause__, psycopg.errors.CheckViolation)
    assert before == await contents(lghard_database)


@pytest.mark.usefixtures("batching")
@pytest.mark.parametrize("write", ["aput", "adelete_thread", "aprune"])
async def test_behind_a_pooler(lghard_pgbouncer, lghard_database, write):
    """There, each way of talking to the server has something else in front."""
    async with open_checkpointer(lghard_pgbouncer.conninfo(lghard_database)) as saver:
        await put(saver, "t")
        await locked(saver, WRITES[write](saver))
        before = await contents(lghard_database)

        async def late():
            await steal(lghard_database)
            await WRITES[write](saver)

        with pytest.raises(ThreadLockLostError):
            await locked(saver, late())
        assert before == await contents(lghard_database)


@pytest.mark.usefixtures("batching")
async def test_whoever_knows_it_does_not_even_ask(saver, lghard_database):
    """Its lease has expired by its own clock."""

    async def late():
        (lease,) = inside.get()
        lease._ends_at = 0.0
        await put(saver, "t")

    with pytest.raises(ThreadLockLostError, match="was not renewed for 30 s") as caught:
        await locked(saver, late())
    assert caught.value.__cause__ is None
    assert [[], [], []] == await contents(lghard_database)


async def test_a_task_that_outlives_the_block(saver, lghard_database):
    """It goes on as if it had the lock; it is told that it has not."""
    go = asyncio.Event()

    async def write_later():
        await go.wait()
        await put(saver, "t")

    async with thread_lock(saver, "t"):
        late = asyncio.create_task(write_later())
    go.set()
    with pytest.raises(ThreadLockLostError, match="its block has ended"):
        await late
    assert [[], [], []] == await contents(lghard_database)


async def test_such_a_task_may_lock_it_itself(saver):
    """Then it has a lease of its own."""
    go = asyncio.Event()

    async def write_later():
        await go.wait()
        await locked(saver, put(saver, "t"))

    async with thread_lock(saver, "t"):
        late = asyncio.create_task(write_later())
    go.set()
    await late


async def test_such_a_task_waits_for_the_end_of_the_block(saver, lghard_database):
    """While the lock is being given back it is nobody's, and so not the task's own."""

    async def lock_later():
        (lease,) = inside.get()
        await eventually(lambda: lease._over)
        entering = asyncio.create_task(locked(saver, put(saver, "t")))
        await eventually(lambda: entering.done() or lines_of(saver)._lines["t"].turns)
        await writer.rollback()
        await entering

    async with await AsyncConnection.connect(lghard_database) as writer:
        async with thread_lock(saver, "t"):
            late = asyncio.create_task(lock_later())
            await writer.execute(f"SELECT FROM {TABLE} FOR KEY SHARE")  # the release waits
        await late


async def test_such_a_task_waits_through_another_pool(saver, lghard_database):
    """Which knows nothing of the block but what is in the table."""

    async def lock_later():
        (lease,) = inside.get()
        await eventually(lambda: lease._over)
        async with open_pool(lghard_database) as pool:
            entering = asyncio.create_task(locked(apart(pool), put(saver, "t")))
            await eventually(lambda: entering.done() or has_looked(pool))
            await writer.rollback()
            await entering

    async with await AsyncConnection.connect(lghard_database) as writer:
        async with thread_lock(saver, "t"):
            late = asyncio.create_task(lock_later())
            await writer.execute(f"SELECT FROM {TABLE} FOR KEY SHARE")  # the release waits
        await late


def has_looked(pool):
    return any(line.seen for line in lines_of(pool)._lines.values())


@pytest.mark.usefixtures("batching")
async def test_blocks_that_overlap(saver, lghard_database):
    """One that was entered first may be left first: the other's fence stays, and its own goes."""
    first, second = thread_lock(saver, "t"), thread_lock(saver, "u")
    await first.__aenter__()
    await second.__aenter__()
    await first.__aexit__(None, None, None)
    await steal(lghard_database, "u")
    with pytest.raises(ThreadLockLostError, match="thread 'u'"):
        await put(saver, "u")
    with pytest.raises(ThreadLockLostError, match="thread 'u'"):
        await second.__aexit__(None, None, None)
    await put(saver, "t")
    await put(saver, "u")


@pytest.mark.usefixtures("batching")
async def test_another_thread_is_not_fenced(saver, lghard_database):
    """A lock says nothing about threads that are not its own."""

    async def write_another():
        await steal(lghard_database)
        await put(saver, "u")

    with pytest.raises(ThreadLockLostError):  # from the end of the block
        await locked(saver, write_another())
    assert await saver.aget_tuple(config_of("u"))


@pytest.mark.parametrize("stolen", ["t", "u"])
async def test_blocks_inside_each_other(saver, lghard_database, stolen):
    """Each fences its own thread."""
    other = {"t": "u", "u": "t"}[stolen]

    async def write():
        await steal(lghard_database, stolen)
        await put(saver, other)
        await put(saver, stolen)

    with pytest.raises(ThreadLockLostError) as caught:
        await locked(saver, locked(saver, write(), "u"), "t")
    assert stolen == caught.value.thread_id
    assert await saver.aget_tuple(config_of(other))


@pytest.mark.usefixtures("batching")
async def test_others_in_the_same_batch_go_on(saver, lghard_database):
    """Only who has lost its lock is refused."""
    locks = [thread_lock(saver, f"thread {number}") for number in range(10)]
    barrier = asyncio.Barrier(11)

    async def one(number):
        async with locks[number]:
            await barrier.wait()
            await barrier.wait()
            await put(saver, f"thread {number}")

    writers = [asyncio.create_task(one(number)) for number in range(10)]
    await barrier.wait()
    await steal(lghard_database, "thread 3")
    await barrier.wait()
    results = await asyncio.gather(*writers, return_exceptions=True)
    assert [3] == [number for number, result in enumerate(results) if result is not None]
    assert isinstance(results[3], ThreadLockLostError)
    assert 9 == len(await query(lghard_database, "SELECT FROM checkpoints"))


async def test_a_lock_in_another_database(saver, lghard_empty_database):
    """It cannot fence what is written here; the error says so."""
    async with open_pool(lghard_empty_database) as pool:
        with pytest.raises(ThreadLockLostError, match="uses another database"):
            await locked(pool, put(saver, "t"))


@pytest.mark.usefixtures("batching")
async def test_a_lock_whose_table_is_not_here(saver, lghard_database, lghard_empty_database):
    """The same, where nobody has ever locked anything; the error says what to do."""
    await execute(lghard_database, f"DROP TABLE {TABLE}")
    async with open_pool(lghard_empty_database) as pool:
        with pytest.raises(SchemaSetupError, match=r"give thread_lock\(\) the"):
            await locked(pool, put(saver, "t"))


@pytest.mark.usefixtures("batching")
async def test_nothing_is_checked_without_a_lock(saver, lghard_database):
    """Who uses none needs no table."""
    await execute(lghard_database, f"DROP TABLE {TABLE}")
    await put(saver, "t")


# At the same moment


@pytest.mark.usefixtures("batching")
async def test_a_takeover_waits_for_the_write_under_way(saver, lghard_database):
    """It was checked in time: so the next one comes after its commit."""

    async def write():
        async with held_up(lghard_database):
            writing = asyncio.create_task(put(saver, "t"))
            await waiting_for_long(lghard_database)
            await execute(lghard_database, f"UPDATE {TABLE} SET expires_at = now()")
            taking = elsewhere(taken_over(lghard_database))
            await waiting_backend_for(lghard_database, "transactionid")
            assert not taking.done()
        await asyncio.wait({writing})
        found.append(await taking)

    found = []
    with pytest.raises(ThreadLockLostError):
        await locked(saver, write())
    assert [1] == found


async def taken_over(conninfo):
    """What somebody who takes the lock over finds stored."""
    async with open_pool(conninfo) as pool, thread_lock(apart(pool), "t"):
        return len(await query(conninfo, "SELECT FROM checkpoints"))


async def waiting_for_long(conninfo):
    """Until the write waits, and is not in company, where it gives up soon to be sent alone."""
    ask = (
        "SELECT FROM pg_locks WHERE NOT granted AND locktype = 'advisory' "
        "AND waitstart < clock_timestamp() - interval '0.3 s'"
    )
    await eventually(lambda: query(conninfo, ask))


async def waiting_backend_for(conninfo, kind):
    ask = f"SELECT FROM pg_locks WHERE NOT granted AND locktype = '{kind}'"
    await eventually(lambda: query(conninfo, ask))


@pytest.mark.usefixtures("batching")
async def test_a_write_waits_for_the_takeover_under_way(saver, lghard_database):
    """It looks in the middle of it: it is refused as soon as that is committed."""

    async def write():
        async with await AsyncConnection.connect(lghard_database) as thief:
            await thief.execute(f"UPDATE {TABLE} SET epoch = DEFAULT, owner = gen_random_uuid()")
            writing = asyncio.create_task(put(saver, "t"))
            await waiting_backend(lghard_database)
            await thief.commit()
        await writing

    with pytest.raises(ThreadLockLostError):
        await locked(saver, write())
    assert [[], [], []] == await contents(lghard_database)


@pytest.mark.usefixtures("batching")
async def test_a_takeover_that_is_rolled_back_costs_nothing(saver, lghard_database):
    """The write waits, and goes on."""

    async def write():
        async with await AsyncConnection.connect(lghard_database) as thief:
            await thief.execute(f"UPDATE {TABLE} SET epoch = DEFAULT, owner = gen_random_uuid()")
            writing = asyncio.create_task(put(saver, "t"))
            await waiting_backend(lghard_database)
            await thief.rollback()
        await writing

    await locked(saver, write())
    assert await saver.aget_tuple(config_of("t"))


@pytest.mark.usefixtures("batching")
async def test_the_next_one_comes_after_the_last_write(saver, lghard_database):
    """A block that is cancelled may leave a write under way, which others wait for."""
    async with held_up(lghard_database):
        writing = asyncio.create_task(locked(saver, put(saver, "t")))
        await waiting(lghard_database, 1)
        writing.cancel()
        next_one = elsewhere(taken_over(lghard_database))
    await asyncio.wait({writing})
    found = await next_one
    assert len(await query(lghard_database, "SELECT FROM checkpoints")) == found


@pytest.mark.usefixtures("batching")
@pytest.mark.parametrize("table", ["checkpoints", "checkpoint_writes"])
async def test_a_message_that_arrives_late(lghard_postgres, lghard_database, table):
    """It was sent in time, and was on its way when the lock went to somebody else."""
    async with (
        FaultProxy(lghard_postgres.host, lghard_postgres.port) as network,
        open_checkpointer(network.conninfo(lghard_database)) as saver,
    ):
        write = {"checkpoints": "aput", "checkpoint_writes": "aput_writes"}[table]
        await put(saver, "t")
        before = await contents(lghard_database)

        async def late():
            network.hold_requests(1, containing=f"INSERT INTO {TABLE}".encode())
            writing = asyncio.create_task(WRITES[write](saver))
            await eventually(lambda: network.held)
            await steal(lghard_database)
            network.release()
            await writing

        with pytest.raises(ThreadLockLostError):
            await locked(saver, late())
        assert before == await contents(lghard_database)


# Through LangGraph


def graph_of(saver, steps):
    """A chain of nodes."""
    builder = StateGraph(MessagesState)
    for at, (name, node) in enumerate(steps.items()):
        builder.add_node(name, node)
        builder.add_edge([START, *steps][at], name)
    builder.add_edge(name, END)
    return builder.compile(checkpointer=saver)


def say(state):
    return {"messages": [f"message {len(state['messages'])}"]}


@pytest.mark.usefixtures("batching")
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_a_run_that_has_lost_the_lock(saver, lghard_database, durability):
    """Its next checkpoint is refused, and the error of the run says so."""

    async def lose(state):
        await steal(lghard_database)
        return say(state)

    graph = graph_of(saver, {"say": say, "lose": lose, "after": say})
    run = graph.ainvoke({"messages": ["hello"]}, config_of("t"), durability=durability)
    with pytest.raises(ThreadLockLostError, match="thread 't'"):
        await locked(saver, run)
    state = await graph.aget_state(config_of("t"))
    assert len(state.values.get("messages", [])) < 4


@pytest.mark.usefixtures("batching")
async def test_a_synchronous_run_in_a_thread(saver, lghard_database):
    """`invoke`, as from a web framework's worker thread: the lock goes with it."""

    def lose(state):
        with psycopg.connect(lghard_database, autocommit=True) as conn:
            conn.execute(f"UPDATE {TABLE} SET epoch = DEFAULT, owner = gen_random_uuid()")
        return say(state)

    graph = graph_of(saver, {"say": say, "lose": lose, "after": say})
    run = asyncio.to_thread(graph.invoke, {"messages": ["hello"]}, config_of("t"))
    with pytest.raises(ThreadLockLostError):
        await locked(saver, run)


@pytest.mark.usefixtures("batching")
async def test_an_update_of_the_state(saver, lghard_database):
    """`aupdate_state` is a write as well."""
    graph = graph_of(saver, {"say": say})
    await locked(saver, graph.ainvoke({"messages": ["hello"]}, config_of("t")))

    async def late():
        await steal(lghard_database)
        await graph.aupdate_state(config_of("t"), {"messages": ["late"]}, as_node="say")

    with pytest.raises(ThreadLockLostError):
        await locked(saver, late())


@pytest.mark.usefixtures("batching")
async def test_from_several_event_loops(conninfo, lghard_database):
    """The connections are in a thread of their own then, and the lock goes there."""

    async def elsewhere():
        async with open_checkpointer(conninfo) as saver:
            graph = graph_of(saver, {"say": say, "lose": lose})
            await locked(saver, graph.ainvoke({"messages": ["hello"]}, config_of("t")))

    async def lose(state):
        await steal(lghard_database)
        return say(state)

    async with open_checkpointer(conninfo) as saver:
        await put(saver, "u")
        with pytest.raises(ThreadLockLostError):
            await asyncio.to_thread(asyncio.run, elsewhere())


# A process that is frozen, and thaws

HOLDER = """
import asyncio, sys
from contextlib import nullcontext
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from lghard import open_checkpointer, open_pool, thread_lock
from lghard.postgres import fencing, lease_desk, lease_keeping

conninfo, kind = sys.argv[1:]

async def node(state):
    if kind == "its clock stands still, too":
        now = fencing.clock()
        fencing.clock = lease_desk.clock = lease_keeping.clock = lambda: now
    print("inside", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    return {"messages": ["late"]}

async def main():
    builder = StateGraph(MessagesState).add_node("node", node)
    builder.add_edge(START, "node").add_edge("node", END)
    config = {"configurable": {"thread_id": "t"}}
    async with open_checkpointer(conninfo, batching=kind != "alone") as saver:
        if kind == "upstream":
            saver, lock = AsyncPostgresSaver(saver.conn), nullcontext()
        else:
            lock = thread_lock(saver, "t", ttl=1.0)
        try:
            async with lock:
                graph = builder.compile(checkpointer=saver)
                await graph.ainvoke({"messages": ["early"]}, config)
        except Exception as error:
            print(type(error).__name__, error, flush=True)
        else:
            print("done", flush=True)

asyncio.run(main())
"""


@asynccontextmanager
async def holder(conninfo, kind):
    """A process that is in the middle of a run on thread t."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "ignore", "-c", HOLDER, conninfo, kind),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert b"inside\n" == await process.stdout.readline()
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@contextmanager
def frozen(process):
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


async def goes_on(process):
    """What it says when it is told to go on."""
    process.stdin.write(b"\n")
    return (await process.stdout.readline()).decode()


async def messages(saver):
    graph = graph_of(saver, {"say": say})
    state = await graph.aget_state(config_of("t"))
    return [message.content for message in state.values["messages"]]


async def take_a_turn(saver):
    """Somebody else's turn, on whatever the frozen one has left."""
    graph = graph_of(saver, {"say": lambda state: {"messages": ["answer"]}})
    await graph.ainvoke({"messages": ["question"]}, config_of("t"))


async def test_upstreams_frozen_process_writes_when_it_thaws(lghard_database):
    """The control: its turn was over long ago, and overwrites the one that was made meanwhile."""
    async with open_pool(lghard_database) as pool, holder(lghard_database, "upstream") as process:
        saver = AsyncPostgresSaver(pool)
        with frozen(process):
            await take_a_turn(saver)
        assert "done\n" == await goes_on(process)
        assert "late" in await messages(saver)


@pytest.mark.parametrize(
    ("conninfo", "kind"),
    [
        ("direct", "alone"),
        ("direct", "together"),
        ("direct", "its clock stands still, too"),
        ("pooled", "its clock stands still, too"),
    ],
    indirect=["conninfo"],
)
async def test_a_frozen_process_writes_nothing_when_it_thaws(conninfo, lghard_database, kind):
    """Its write is refused, and the error of its run says so."""
    async with open_checkpointer(conninfo) as saver, holder(conninfo, kind) as process:
        with frozen(process):
            async with thread_lock(saver, "t", timeout=20):
                await take_a_turn(saver)
                said = await messages(saver)
        heard = await goes_on(process)
        assert heard.startswith("ThreadLockLostError the lock of thread 't' is not held any more")
        assert "answer" == said[-1]
        assert said == await messages(saver)


async def test_a_process_that_is_killed(lghard_database):
    """It can give nothing back; its lock is free when it has expired, and no sooner."""
    async with (
        open_checkpointer(lghard_database) as saver,
        holder(lghard_database, "together") as process,
    ):
        process.kill()
        await process.wait()
        assert not await is_free(saver)
        await locked(saver, take_a_turn(saver), timeout=20)


# What a lock of Postgres' own would do


async def test_a_frozen_process_keeps_an_advisory_lock(lghard_database):
    """The control: nobody can take it over, since the kernel keeps its connection up."""
    code = (
        "import sys, psycopg\n"
        "conn = psycopg.connect(sys.argv[1], autocommit=True)\n"
        "conn.execute('SELECT pg_advisory_lock(7)')\n"
        "print('inside', flush=True); sys.stdin.readline()"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, lghard_database),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert b"inside\n" == await process.stdout.readline()
    with frozen(process):
        (free,) = await query(lghard_database, "SELECT pg_try_advisory_lock(7)")
        assert (False,) == free
    await process.communicate(b"\n")


async def test_an_advisory_lock_goes_astray_behind_a_pooler(lghard_database, lghard_pgbouncer):
    """The control: it belongs to a session, which another client gets next, with the lock."""
    conninfo = lghard_pgbouncer.conninfo(lghard_database)
    connect = partial(AsyncConnection.connect, autocommit=True, prepare_threshold=None)
    async with await connect(conninfo) as one, await connect(conninfo) as other:
        for conn in (one, other):
            (got,) = await (await conn.execute("SELECT pg_try_advisory_lock(7)")).fetchone()
            assert got


async def test_advisory_locks_exhaust_the_server():
    """The control, on a small server: 10,000 of them take all there is; leases take rows."""
    small = {"max_connections": "10", "max_locks_per_transaction": "10"}
    with temporary_postgres(settings=small) as server:
        async with await AsyncConnection.connect(server.conninfo, autocommit=True) as conn:
            with pytest.raises(psycopg.errors.OutOfMemory, match="shared memory"):
                await conn.execute("SELECT pg_advisory_lock(n) FROM generate_series(1, 10000) AS n")
        async with open_pool(server.conninfo, max_size=2) as pool, AsyncExitStack() as stack:
            for number in range(1_000):
                await stack.enter_async_context(thread_lock(pool, f"thread {number}"))
