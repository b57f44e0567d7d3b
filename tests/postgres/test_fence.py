"""The fence: what is written to a deleted thread, late or at the same moment, and what is not."""

import asyncio
from contextlib import asynccontextmanager

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo

from lghard import SchemaSetupError, ThreadDeletedError, open_checkpointer, open_pool
from tests.postgres.checkpoints import config_of, eventually, execute, put, query

TRAP = (
    "CREATE FUNCTION wait_in_the_middle() RETURNS trigger LANGUAGE plpgsql "
    "AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN new; END $$",
    "CREATE TRIGGER wait_in_the_middle BEFORE INSERT ON checkpoints "
    "FOR EACH ROW EXECUTE FUNCTION wait_in_the_middle()",
)


@pytest.fixture
async def saver(conninfo):
    async with open_checkpointer(conninfo, fence=3600.0) as saver:
        yield saver


@pytest.fixture
async def replica(conninfo):
    """Another one, with connections of its own."""
    async with open_checkpointer(conninfo, fence=3600.0, max_size=2) as saver:
        yield saver


@pytest.fixture
async def upstream(lghard_database):
    async with open_pool(lghard_database) as pool:
        yield AsyncPostgresSaver(pool)


async def stored(conninfo):
    """How many rows there are of all threads."""
    found = await query(
        conninfo,
        "SELECT (SELECT count(*) FROM checkpoints) + (SELECT count(*) FROM checkpoint_blobs)"
        " + (SELECT count(*) FROM checkpoint_writes)",
    )
    return found[0][0]


LATE = {
    "aput": lambda saver: put(saver, "t", 2),
    "aput_writes": lambda saver: saver.aput_writes(config_of("t", "1"), [("messages", 1)], "task"),
    "an interrupt": lambda saver: saver.aput_writes(
        config_of("t", "1"), [("__interrupt__", 1)], "task"
    ),
}
DELETES = {
    "adelete_thread": lambda saver: saver.adelete_thread("t"),
    "aprune": lambda saver: saver.aprune(["t", "u", "t"], strategy="delete"),
}


@pytest.mark.parametrize("late", LATE)
async def test_upstreams_late_write_brings_a_thread_back(upstream, lghard_database, late):
    """The control: a part of it, which nobody will ever delete."""
    await put(upstream, "t")
    await upstream.adelete_thread("t")
    await LATE[late](upstream)
    assert await stored(lghard_database)


@pytest.mark.usefixtures("batching")
@pytest.mark.parametrize("delete", DELETES)
@pytest.mark.parametrize("late", LATE)
async def test_a_late_write_is_refused(saver, lghard_database, late, delete):
    """The writer hears of it, and nothing is left."""
    await put(saver, "t")
    await DELETES[delete](saver)
    with pytest.raises(ThreadDeletedError, match="thread 't' has been deleted"):
        await LATE[late](saver)
    assert 0 == await stored(lghard_database)


async def test_a_late_copy_is_refused(saver, lghard_database):
    """A copy writes to its target."""
    await put(saver, "source")
    await saver.adelete_thread("t")
    with pytest.raises(ThreadDeletedError):
        await saver.acopy_thread("source", "t")
    assert await saver.aget_tuple(config_of("t")) is None
    await saver.acopy_thread("source", "another")
    assert await saver.aget_tuple(config_of("another"))


@pytest.mark.usefixtures("batching")
async def test_other_threads_go_on(saver):
    """The fence stands around the one that was deleted."""
    await saver.adelete_thread("t")
    await put(saver, "u")
    assert await saver.aget_tuple(config_of("u"))


async def test_a_run_on_a_deleted_thread_ends(saver, lghard_database):
    """Its node has seen the thread go; its next checkpoint is refused."""

    async def delete(state):
        await saver.adelete_thread("t")
        return {"messages": ["too late"]}

    builder = StateGraph(MessagesState).add_node("delete", delete)
    graph = builder.add_edge(START, "delete").add_edge("delete", END).compile(checkpointer=saver)
    with pytest.raises(ThreadDeletedError):
        await graph.ainvoke({"messages": ["hello"]}, config_of("t"))
    assert 0 == await stored(lghard_database)


@asynccontextmanager
async def held_up(conninfo):
    """Every checkpoint that is inserted waits in the middle, until the end of the block."""
    await execute(conninfo, *TRAP)
    async with await AsyncConnection.connect(conninfo, autocommit=True) as conn:
        await conn.execute("SELECT pg_advisory_lock(42)")
        yield


async def waiting(conninfo, number):
    """Until that many backends wait for an advisory lock."""
    ask = (
        "SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = database "
        "WHERE NOT granted AND locktype = 'advisory' AND datname = current_database()"
    )

    async def enough():
        return len(await query(conninfo, ask)) == number

    await eventually(enough)


async def test_upstreams_write_in_flight_outlives_the_deletion(upstream, lghard_database):
    """The control: the deletion cannot see what is not committed yet."""
    async with held_up(lghard_database):
        writing = asyncio.create_task(put(upstream, "t"))
        await waiting(lghard_database, 1)
        async with open_pool(lghard_database) as pool:
            await AsyncPostgresSaver(pool).adelete_thread("t")
    await writing
    assert await stored(lghard_database)


async def test_a_write_in_flight_is_waited_for_and_deleted(saver, replica, lghard_database):
    """It came first: it succeeds, and goes with the thread."""
    async with held_up(lghard_database):
        writing = asyncio.create_task(put(replica, "t"))
        await waiting(lghard_database, 1)
        deleting = asyncio.create_task(saver.adelete_thread("t"))
        await waiting(lghard_database, 2)
    await writing
    await deleting
    assert 0 == await stored(lghard_database)


async def write_during_a_deletion(saver, replica, conninfo):
    """Delete a thread, and write to it when its checkpoints are gone and its writes are not."""
    await put(saver, "t")
    await saver.aput_writes(config_of("t", "1"), [("messages", 1)], "task")
    async with await AsyncConnection.connect(conninfo) as conn:
        await conn.execute("SELECT FROM checkpoint_writes FOR UPDATE")
        deleting = asyncio.create_task(saver.adelete_thread("t"))
        await eventually(lambda: blocked(conninfo, "transactionid"))
        writing = asyncio.create_task(put(replica, "t", 2))
        await eventually(lambda: writing.done() or blocked(conninfo, "advisory"))
    await deleting
    await writing


async def blocked(conninfo, kind):
    return await query(conninfo, f"SELECT FROM pg_locks WHERE NOT granted AND locktype = '{kind}'")


async def test_a_write_during_the_deletion_is_refused(saver, replica, lghard_database):
    """It came later: it waits for the end, and then sees what has happened."""
    with pytest.raises(ThreadDeletedError):
        await write_during_a_deletion(saver, replica, lghard_database)
    assert 0 == await stored(lghard_database)


async def test_a_writer_that_hangs_holds_the_deletion_up_for_a_while(saver, lghard_database):
    """No longer than the deadline, and the error says that somebody holds a lock."""
    saver.deadline = 0.2
    async with await AsyncConnection.connect(lghard_database) as conn:
        await conn.execute(
            "SELECT pg_advisory_xact_lock_shared(hashtext('lghard.threads'), hashtext('t'))"
        )
        with pytest.raises(psycopg.errors.LockNotAvailable) as caught:
            await saver.adelete_thread("t")
    assert "lock_timeout" in "".join(caught.value.__notes__)
    await saver.adelete_thread("t")


async def test_the_thread_is_free_again_after_a_while(saver, lghard_database):
    """And at the next deletion, nothing of the old tombstone is left."""
    await saver.adelete_thread("t")
    await execute(lghard_database, "UPDATE lghard_deleted_threads SET forget_at = now()")
    await put(saver, "t")
    await saver.adelete_thread("u")
    names = await query(lghard_database, "SELECT thread_id FROM lghard_deleted_threads")
    assert [("u",)] == names


async def test_deleted_twice(saver):
    """The longer fence stands."""
    await saver.adelete_thread("t")
    saver.fence = 0.0
    await saver.adelete_thread("t")
    with pytest.raises(ThreadDeletedError):
        await put(saver, "t")


async def test_there_is_no_fence_unless_asked_for(lghard_database):
    """No table, no lock: a thread id may be used again at once, as upstream."""
    async with open_checkpointer(lghard_database) as saver:
        await put(saver, "t")
        await saver.adelete_thread("t")
        await put(saver, "t")
    found = await query(lghard_database, "SELECT to_regclass('lghard_deleted_threads')")
    assert [(None,)] == found


async def test_any_number_of_replicas_may_put_up_the_fence(conninfo):
    """Its table is created as LangGraph's are."""

    async def start():
        async with open_checkpointer(conninfo, fence=60.0, min_size=1):
            pass

    assert [None] * 8 == await asyncio.gather(*(start() for _ in range(8)))


async def test_a_role_that_may_not_put_up_the_fence(lghard_database):
    """It is told which table is missing."""
    with psycopg.connect(lghard_database, autocommit=True) as admin:
        role = f"limited_{admin.info.dbname}"
        admin.execute(f"CREATE ROLE {role}")
        admin.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
        admin.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        conninfo = make_conninfo(lghard_database, options=f"-crole={role}")
        with pytest.raises(SchemaSetupError, match="lghard_deleted_threads"):
            async with open_checkpointer(conninfo, fence=60.0):
                pass
        async with open_checkpointer(conninfo):
            pass
        admin.execute(f"DROP OWNED BY {role}")
        admin.execute(f"DROP ROLE {role}")


@pytest.mark.usefixtures("batching")
async def test_from_several_event_loops(lghard_database):
    """The connections are in a thread of their own then, and errors come back from there."""

    async def elsewhere():
        async with open_checkpointer(lghard_database, fence=60.0) as other:
            await put(other, "t")
            await other.acopy_thread("t", "copy")
            await other.adelete_for_runs(["run"])
            await other.aprune(["t", "copy"])
            await other.adelete_thread("t")

    async with open_checkpointer(lghard_database, fence=60.0) as saver:
        await put(saver, "u")
        await asyncio.to_thread(asyncio.run, elsewhere())
        with pytest.raises(ThreadDeletedError):
            await put(saver, "t")
        await execute(lghard_database, "DROP TABLE lghard_deleted_threads")
        with pytest.raises(psycopg.errors.UndefinedTable) as caught:
            await put(saver, "copy")
    assert "call setup() once" in "".join(caught.value.__notes__)
