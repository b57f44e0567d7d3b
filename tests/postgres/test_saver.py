"""The checkpointer in calm weather: upstream's contract, kept, and what it does better."""

import asyncio
import inspect

import psycopg
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base import WRITES_IDX_MAP
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.graph import END, START, MessagesState, StateGraph
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from lghard import HardenedAsyncPostgresSaver, ManagedPool, open_checkpointer, open_pool
from tests.postgres.checkpoints import (
    METADATA,
    checkpoint,
    config_of,
    eventually,
    put,
    query,
    waiting_backend,
)

pytestmark = pytest.mark.usefixtures("batching")


TABLES = {
    "checkpoints": "thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, "
    "metadata",
    "checkpoint_blobs": "thread_id, checkpoint_ns, channel, version, type, blob",
    "checkpoint_writes": "thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, "
    "channel, type, blob",
}


@pytest.fixture
async def saver(lghard_database):
    async with open_checkpointer(lghard_database, setup=False, max_size=4) as saver:
        yield saver


@pytest.fixture
async def upstream(lghard_database):
    kwargs = {"autocommit": True}
    async with AsyncConnectionPool(lghard_database, kwargs=kwargs, open=False) as pool:
        yield AsyncPostgresSaver(pool)


@pytest.fixture(params=["upstream", "lghard"])
def contestant(request, upstream, saver):
    """The one, then the other."""
    return upstream if request.param == "upstream" else saver


async def contents(conninfo):
    return {
        table: await query(conninfo, f"SELECT {columns} FROM {table} ORDER BY 1, 2, 3, 4")
        for table, columns in TABLES.items()
    }


async def test_it_is_upstreams_saver(saver):
    """Isinstance tests and constructor signatures written for upstream hold."""
    ours = inspect.signature(type(saver)).parameters
    theirs = inspect.signature(AsyncPostgresSaver).parameters
    assert isinstance(saver, AsyncPostgresSaver)
    assert list(theirs) == list(ours)[: len(theirs)]


async def test_a_single_connection_is_refused(lghard_database):
    """The error says why, and what to use instead."""
    async with await AsyncConnection.connect(lghard_database) as conn:
        with pytest.raises(TypeError, match=r"needs a pool.*lghard\.open_pool"):
            HardenedAsyncPostgresSaver(conn)


async def test_a_pipe_is_refused(lghard_database):
    """A pipeline belongs to a single connection."""
    async with (
        await AsyncConnection.connect(lghard_database, autocommit=True) as conn,
        conn.pipeline() as pipe,
    ):
        with pytest.raises(ValueError, match="leave pipe out"):
            HardenedAsyncPostgresSaver(conn, pipe)


async def test_from_conn_string_opens_and_closes_a_pool(lghard_empty_database):
    """The entry point that everybody uses gives a saver that can reconnect."""
    async with HardenedAsyncPostgresSaver.from_conn_string(
        lghard_empty_database, pipeline=True
    ) as saver:
        await saver.setup()
        await put(saver, "t")
        assert isinstance(saver, HardenedAsyncPostgresSaver)
        assert isinstance(saver.conn, ManagedPool)
    assert saver.conn.closed


async def test_open_checkpointer_sets_up_and_closes(lghard_empty_database, monkeypatch):
    """With no argument at all it finds the database, makes its tables and closes its pool."""
    monkeypatch.setenv("LGHARD_DATABASE_URI", lghard_empty_database)
    async with open_checkpointer() as saver:
        await put(saver, "t")
        assert await saver.aget_tuple(config_of("t")) is not None
    assert saver.conn.closed


async def test_a_pool_that_was_passed_in_stays_open(lghard_database):
    """Whoever opened it closes it."""
    async with open_pool(lghard_database) as pool:
        async with open_checkpointer(pool):
            pass
        assert not pool.closed


async def test_pool_settings_for_an_open_pool_are_refused(lghard_database):
    """They would have no effect, silently."""
    async with open_pool(lghard_database) as pool:
        with pytest.raises(TypeError, match=r"max_size.*open already"):
            async with open_checkpointer(pool, max_size=3):
                pass


async def write_everything(saver):
    """One of each kind of write, with every kind of value that upstream treats differently."""
    for number in (1, 2):
        made = checkpoint(
            number,
            messages=[HumanMessage("hello", id="1")],
            text="inline",
            whole=7,
            real=0.5,
            flag=True,
            nothing=None,
            unchanged={"in": "an older version"},
            delta=_DeltaSnapshot([1, 2]),
        )
        changed = {k: v for k, v in made["channel_versions"].items() if k != "unchanged"}
        config = config_of("t", None if number == 1 else checkpoint(1)["id"])
        config["configurable"]["run_id"] = "metadata too"
        config = await saver.aput(config, made, {**METADATA, "step": number}, changed)
        await saver.aput_writes(config, [("messages", [1]), ("text", "x")], "task", "~path")
        await saver.aput_writes(config, [("__interrupt__", [2])], "task")
        await saver.aput_writes(config, [("__interrupt__", [3]), ("__error__", "e")], "task")
        await saver.aput_writes(config, [("messages", ["ignored: it is there already"])], "task")
        await saver.aput_writes(config, [], "no writes at all")


def without_time(rows):
    """A checkpoint tells when it was made."""
    for row in rows["checkpoints"]:
        row[4].pop("ts")
    return rows


async def test_it_writes_what_upstream_writes(
    lghard_postgres,
    _lghard_template,  # noqa: PT019 - used: two databases are made of it
):
    """Row for row and byte for byte, so that either can go on where the other stopped."""
    written = []
    for make in (HardenedAsyncPostgresSaver, AsyncPostgresSaver):
        conninfo = lghard_postgres.create_database(template=_lghard_template)
        async with open_pool(conninfo) as pool:
            await write_everything(make(pool))
        written.append(without_time(await contents(conninfo)))
    ours, theirs = written
    assert theirs == ours
    assert [len(theirs[table]) for table in ("checkpoint_writes", "checkpoint_blobs")] == [8, 4]


async def test_it_writes_the_same_without_pipelines(saver, upstream, lghard_database):
    """An old libpq has no pipeline mode: then it is a transaction."""
    saver.supports_pipeline = False
    await write_everything(saver)
    ours = without_time(await contents(lghard_database))
    await query_delete(lghard_database)
    await write_everything(upstream)
    assert without_time(await contents(lghard_database)) == ours


async def query_delete(conninfo):
    async with await AsyncConnection.connect(conninfo, autocommit=True) as conn:
        for table in TABLES:
            await conn.execute(f"DELETE FROM {table}")


async def test_it_reads_what_upstream_reads(saver, upstream):
    """Tuples and lists are equal, whoever has written them."""
    await write_everything(upstream)
    for config in (config_of("t"), config_of("t", checkpoint(1)["id"]), config_of("none")):
        assert await upstream.aget_tuple(config) == await saver.aget_tuple(config)
    for arguments in (
        {"config": config_of("t")},
        {"config": None, "filter": {"step": 1}},
        {"config": config_of("t"), "limit": 1},
        {"config": config_of("t"), "before": config_of("t", checkpoint(2)["id"])},
    ):
        theirs = [found async for found in upstream.alist(**arguments)]
        assert [found async for found in saver.alist(**arguments)] == theirs
        assert theirs


async def test_sends_of_old_checkpoints_are_migrated(saver, upstream, lghard_database):
    """A checkpoint of LangGraph before version 4 keeps its Sends with its parent's writes."""
    for thread in ("a", "b"):
        for number in (1, 2):
            made = checkpoint(number)
            made["v"] = 3
            config = config_of(thread, None if number == 1 else checkpoint(1)["id"])
            config = await upstream.aput(config, made, METADATA, made["channel_versions"])
            await upstream.aput_writes(config, [("__pregel_tasks", [f"send of {thread}"])], "task")
    newest = await saver.aget_tuple(config_of("a"))
    assert await upstream.aget_tuple(config_of("a")) == newest
    assert [["send of a"]] == newest.checkpoint["channel_values"]["__pregel_tasks"]
    listed = [found async for found in saver.alist(None)]
    sends = {
        found.config["configurable"]["thread_id"]: found.checkpoint["channel_values"]
        for found in listed
        if found.parent_config
    }
    # Upstream migrates those of the first thread only, when it lists several.
    assert {thread: values["__pregel_tasks"] for thread, values in sends.items()} == {
        "a": [["send of a"]],
        "b": [["send of b"]],
    }


async def test_a_thread_can_be_deleted_and_pruned(saver, lghard_database):
    """The operations that go through the base class work on a pool too."""
    for number in (1, 2, 3):
        await put(saver, "t", number)
    await saver.aprune(["t"])
    assert 1 == len([found async for found in saver.alist(config_of("t"))])
    await saver.adelete_thread("t")
    assert {table: [] for table in TABLES} == await contents(lghard_database)


async def test_the_synchronous_interface_works_from_another_thread(saver):
    """LangGraph's sync methods reach the saver through its event loop."""
    await put(saver, "t")
    found = await asyncio.to_thread(saver.get_tuple, config_of("t"))
    assert await saver.aget_tuple(config_of("t")) == found
    assert [found] == await asyncio.to_thread(lambda: list(saver.list(config_of("t"))))


async def test_reading_while_listing(contestant, upstream):
    """Upstream holds its lock while the caller looks at a tuple, and deadlocks."""
    for number in (1, 2, 3):
        await put(contestant, "t", number)

    async def read_all():
        listed = contestant.alist(config_of("t"))
        return [await contestant.aget_tuple(found.config) async for found in listed]

    if contestant is upstream:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read_all(), 1)
    else:
        assert 3 == len(await asyncio.wait_for(read_all(), 30))


async def test_an_abandoned_list_holds_no_connection(lghard_database):
    """Not even when the caller keeps the iterator."""
    async with open_checkpointer(lghard_database, max_size=1) as saver:
        await put(saver, "t")
        await put(saver, "t", 2)
        listed = saver.alist(config_of("t"))
        await anext(listed)
        assert 1 == saver.conn.get_stats()["pool_available"]
        await listed.aclose()


async def test_one_slow_operation_does_not_hold_up_the_others(
    contestant, upstream, lghard_database
):
    """Upstream's lock is around waiting for a connection and using it."""
    await put(contestant, "slow")
    async with await AsyncConnection.connect(lghard_database) as conn:
        await conn.execute("SELECT FROM checkpoints WHERE thread_id = 'slow' FOR UPDATE")
        slow = asyncio.create_task(put(contestant, "slow"))
        await waiting_backend(lghard_database)
        if contestant is upstream:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(put(contestant, "quick"), 1)
        else:
            await asyncio.wait_for(put(contestant, "quick"), 30)
            assert not slow.done()
    await slow


@pytest.mark.alone("it counts requests to the pool: those that travel together make one")
@pytest.mark.parametrize(
    ("kind", "asked"), [(AsyncPostgresSaver, [1, 2, 3]), (HardenedAsyncPostgresSaver, [3, 3, 3])]
)
async def test_pool_timeouts_do_not_queue_behind_one_another(lghard_database, kind, asked):
    """How many have asked the pool when each hears that it is exhausted: upstream's, one by one."""
    async with AsyncConnectionPool(lghard_database, min_size=1, max_size=1, open=False) as pool:
        await pool.wait()
        saver = kind(pool)
        async with pool.connection():
            pool.timeout = 0.2
            pool.pop_stats()

            async def refused():
                with pytest.raises(PoolTimeout):
                    await saver.aget_tuple(config_of("t"))
                return pool.get_stats()["requests_num"]

            assert asked == sorted(await asyncio.gather(*(refused() for _ in range(3))))


async def test_a_failing_write_changes_nothing(saver, lghard_database):
    """Blobs and checkpoint are one transaction, and the error is the server's own."""
    with pytest.raises(psycopg.errors.UntranslatableCharacter):
        await put(saver, "t", text="a\x00b", blob=[1])
    assert {table: [] for table in TABLES} == await contents(lghard_database)
    await put(saver, "t")


async def test_prepared_statements_may_be_deallocated(lghard_database):
    """DISCARD ALL, as a pool's `reset` callback or a pooler says it, costs nothing but time."""
    async with open_checkpointer(lghard_database, max_size=1) as saver:
        await put(saver, "t")
        async with saver.conn.connection() as conn:
            await conn.execute("DISCARD ALL")
        await put(saver, "t", 2)
        assert 2 == len([found async for found in saver.alist(config_of("t"))])


async def test_nothing_is_prepared_where_that_is_switched_off(lghard_database):
    """Behind a transaction pooler a statement's name may mean another client's statement."""
    kwargs = {"prepare_threshold": None}
    async with open_checkpointer(lghard_database, max_size=1, kwargs=kwargs) as saver:
        await put(saver, "t")
        async with saver.conn.connection() as conn:
            names = await (await conn.execute("SELECT name FROM pg_prepared_statements")).fetchall()
    assert [] == names


async def test_a_failed_statement_is_prepared_once(lghard_database):
    """What failed after it was prepared stays prepared, and is not prepared again."""
    prepared = "SELECT name FROM pg_prepared_statements WHERE statement LIKE '%checkpoints%'"
    async with open_checkpointer(lghard_database, max_size=1) as saver:
        for _ in range(3):
            with pytest.raises(psycopg.errors.UntranslatableCharacter):
                await put(saver, "t", text="a\x00b")
        async with saver.conn.connection() as conn:
            names = await (await conn.execute(prepared)).fetchall()
    assert 1 == len(names)


async def test_a_large_checkpoint(saver):
    """Larger than every buffer on the way, so that sending and reading overlap."""
    await put(saver, "t", blob=["x" * 20_000_000])
    found = await saver.aget_tuple(config_of("t"))
    assert 20_000_000 == len(found.checkpoint["channel_values"]["blob"][0])


@pytest.mark.alone("together with others, what has been sent is done")
async def test_cancelled_in_a_write(saver, lghard_database):
    """The connection is usable again, and the rows are all there or none."""
    await put(saver, "t")
    async with await AsyncConnection.connect(lghard_database) as conn:
        await conn.execute("SELECT FROM checkpoints WHERE thread_id = 't' FOR UPDATE")
        writing = asyncio.create_task(put(saver, "t", more=[1]))
        await asyncio.wait([writing], timeout=0.2)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
    channels = await query(lghard_database, "SELECT channel FROM checkpoint_blobs")
    assert [("messages",)] == channels
    await asyncio.gather(*(put(saver, f"t{number}") for number in range(20)))
    await eventually(
        lambda: saver.conn.get_stats()["pool_size"] == saver.conn.get_stats()["pool_available"]
    )


@pytest.mark.parametrize("special", sorted(WRITES_IDX_MAP))
async def test_special_writes_replace_each_other(saver, special):
    """The newest interrupt, error, resume value or schedule of a task is the one that counts."""
    config = await put(saver, "t")
    for value in ("old", "new"):
        await saver.aput_writes(config, [(special, value)], "task")
    found = await saver.aget_tuple(config)
    assert [("task", special, "new")] == found.pending_writes


async def test_a_graph_runs_on_it(saver):
    """Messages in, messages out, and all of it in the database."""

    def answer(state: MessagesState):
        return {"messages": [AIMessage("world", id="2")]}

    builder = StateGraph(MessagesState)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    graph = builder.compile(checkpointer=saver)
    config = config_of("t")
    result = await graph.ainvoke({"messages": [HumanMessage("hello", id="1")]}, config)
    state = await graph.aget_state(config)
    assert result == state.values
    assert [message.content for message in state.values["messages"]] == ["hello", "world"]
