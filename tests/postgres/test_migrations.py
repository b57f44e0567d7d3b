"""setup(): LangGraph's tables, made by any number of replicas, cut off or waiting."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from lghard import HardenedAsyncPostgresSaver, open_checkpointer, open_pool
from lghard.testing import temporary_pgbouncer
from tests.postgres.checkpoints import config_of, eventually, execute, put, query

REPLICAS = 8
INDEXES = {
    "checkpoints_thread_id_idx",
    "checkpoint_blobs_thread_id_idx",
    "checkpoint_writes_thread_id_idx",
}
BOTH = pytest.mark.parametrize("saver_class", [AsyncPostgresSaver, HardenedAsyncPostgresSaver])


@asynccontextmanager
async def saver_of(saver_class, conninfo):
    """A saver of that class on a pool of upstream's, so that nothing else differs."""
    kwargs = {"autocommit": True, "row_factory": dict_row, "prepare_threshold": None}
    async with AsyncConnectionPool(
        conninfo, min_size=1, max_size=1, kwargs=kwargs, open=False
    ) as pool:
        await pool.wait()
        yield saver_class(pool)


async def set_up_at_once(saver_class, conninfo):
    """What became of each replica's setup(), when all of them called it at the same moment."""
    async with AsyncExitStack() as stack:
        savers = [
            await stack.enter_async_context(saver_of(saver_class, conninfo))
            for _ in range(REPLICAS)
        ]
        return await asyncio.gather(*(saver.setup() for saver in savers), return_exceptions=True)


async def indexes(conninfo, schema="public"):
    """Whether the indexes that migrations create concurrently are valid."""
    return dict(
        await query(
            conninfo,
            "SELECT relname, indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid "
            "WHERE relname = ANY(%s) AND relnamespace = %s::regnamespace",
            list(INDEXES),
            schema,
        )
    )


@asynccontextmanager
async def busy(conninfo):
    """Somebody's transaction on the tables, for which CREATE INDEX CONCURRENTLY waits."""
    async with await AsyncConnection.connect(conninfo) as conn:
        await conn.execute("LOCK checkpoints, checkpoint_writes IN ROW EXCLUSIVE MODE")
        yield conn


async def leave_invalid(conninfo, *, recorded):
    """Cancel a CREATE INDEX CONCURRENTLY, as a deployment that runs into its time limit does."""
    await execute(conninfo, "DROP INDEX checkpoints_thread_id_idx")
    create = "CREATE INDEX CONCURRENTLY checkpoints_thread_id_idx ON checkpoints (thread_id)"
    async with busy(conninfo):
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await execute(conninfo, "SET lock_timeout = '10ms'", create)
    if not recorded:
        await execute(conninfo, "DELETE FROM checkpoint_migrations WHERE v >= 6")


async def test_upstreams_setup_fails_when_replicas_call_it_at_once(lghard_empty_database):
    """The control: of replicas that start together, most do not."""
    results = await set_up_at_once(AsyncPostgresSaver, lghard_empty_database)
    assert REPLICAS / 2 < len([result for result in results if result is not None])


async def test_any_number_of_replicas_may_set_up_at_once(lghard_postgres):
    """All of them succeed on a fresh database, and what they leave is whole."""
    for _ in range(6):
        conninfo = lghard_postgres.create_database()
        assert [None] * REPLICAS == await set_up_at_once(HardenedAsyncPostgresSaver, conninfo)
        assert dict.fromkeys(INDEXES, True) == await indexes(conninfo)
        lghard_postgres.drop_database(conninfo)


@pytest.mark.parametrize("recorded", [True, False])
@BOTH
async def test_an_invalid_index_is_rebuilt(lghard_database, saver_class, recorded):
    """Upstream takes it for granted: an index of that name is there."""
    await leave_invalid(lghard_database, recorded=recorded)
    assert {"checkpoints_thread_id_idx"} == {
        name for name, valid in (await indexes(lghard_database)).items() if not valid
    }
    async with saver_of(saver_class, lghard_database) as saver:
        await saver.setup()
    rebuilt = saver_class is HardenedAsyncPostgresSaver
    expected = dict.fromkeys(INDEXES, True) | {"checkpoints_thread_id_idx": rebuilt}
    assert expected == await indexes(lghard_database)


@pytest.fixture
async def frozen_schema(lghard_database):
    """A database with the tables, in which any further DDL is an error."""
    await execute(
        lghard_database,
        "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql "
        "AS $$ BEGIN RAISE 'no DDL here'; END $$",
        "CREATE EVENT TRIGGER no_ddl ON ddl_command_start EXECUTE FUNCTION refuse()",
    )
    return lghard_database


async def test_upstreams_setup_is_ddl_even_when_current(frozen_schema):
    """The control: whoever may not create tables may not start."""
    async with saver_of(AsyncPostgresSaver, frozen_schema) as saver:
        with pytest.raises(psycopg.errors.RaiseException, match="no DDL here"):
            await saver.setup()


async def test_no_ddl_when_current(frozen_schema):
    """A role that may only read and write rows can call it."""
    async with saver_of(HardenedAsyncPostgresSaver, frozen_schema) as saver:
        await saver.setup()


async def test_setup_is_not_cut_off_by_attempt_timeout(lghard_database):
    """An index takes as long as somebody's transaction; begun again, it would never be there."""
    await execute(
        lghard_database,
        "DROP INDEX checkpoints_thread_id_idx",
        "DELETE FROM checkpoint_migrations WHERE v >= 6",
    )
    async with (
        open_checkpointer(lghard_database, setup=False, attempt_timeout=0.1) as saver,
        busy(lghard_database) as other,
    ):
        setting_up = asyncio.create_task(saver.setup())
        await eventually(lambda: at_work_on_an_index(lghard_database))
        await other.rollback()
        await setting_up
    assert dict.fromkeys(INDEXES, True) == await indexes(lghard_database)


async def at_work_on_an_index(conninfo):
    """Whether one CREATE INDEX has been at work for longer than several attempt timeouts."""
    return await query(
        conninfo,
        "SELECT FROM pg_stat_activity WHERE datname = current_database() "
        "AND query LIKE '%%CREATE INDEX%%' AND pid <> pg_backend_pid() "
        "AND state = 'active' AND clock_timestamp() - query_start > '0.5 s'",
    )


@pytest.fixture
async def round_robin(lghard_postgres, lghard_empty_database):
    """The way through a pooler that uses five connections to the server, one after the other."""
    settings = {"server_round_robin": "1", "default_pool_size": "5"}
    with temporary_pgbouncer(lghard_postgres, settings=settings) as pooler:
        conninfo = pooler.conninfo(lghard_empty_database)
        async with AsyncExitStack() as stack:
            for _ in range(5):
                conn = await AsyncConnection.connect(conninfo, prepare_threshold=None)
                await stack.enter_async_context(conn)
                await conn.execute("SELECT 1")
        yield conninfo


async def test_setup_through_a_pooler(round_robin, lghard_empty_database):
    """In transaction mode each statement may have another session, so no lock is left in one."""
    async with open_checkpointer(round_robin) as saver:
        await put(saver, "t")
        assert await saver.aget_tuple(config_of("t"))
    assert dict.fromkeys(INDEXES, True) == await indexes(lghard_empty_database)
    locks = (
        "SELECT pid FROM pg_locks JOIN pg_database ON oid = database "
        "WHERE locktype = 'advisory' AND datname = current_database()"
    )
    assert [] == await query(lghard_empty_database, locks)


async def test_each_schema_has_tables_of_its_own(lghard_database):
    """What search_path says first is migrated, whatever other schemas have already."""
    await execute(lghard_database, "CREATE SCHEMA tenant")
    conninfo = make_conninfo(lghard_database, options="-csearch_path=tenant")
    async with open_checkpointer(conninfo) as saver:
        await put(saver, "t")
    assert dict.fromkeys(INDEXES, True) == await indexes(lghard_database, "tenant")
    assert [(1, 0)] == await query(
        lghard_database,
        "SELECT (SELECT count(*) FROM tenant.checkpoints), (SELECT count(*) FROM checkpoints)",
    )


async def test_an_index_of_somebody_else_is_left_alone(lghard_database):
    """An INVALID index that is not LangGraph's is its owner's to mend."""
    async with await AsyncConnection.connect(lghard_database, autocommit=True) as conn:
        for _ in range(2):
            await conn.execute(
                "INSERT INTO checkpoint_writes (thread_id, checkpoint_id, task_id, idx, channel, "
                "blob) SELECT 't', 'c', gen_random_uuid()::text, 0, 'same', ''"
            )
        with pytest.raises(psycopg.errors.UniqueViolation):
            await conn.execute(
                "CREATE UNIQUE INDEX CONCURRENTLY my_own ON checkpoint_writes (channel)"
            )
    async with open_checkpointer(lghard_database):
        pass
    found = await query(lghard_database, "SELECT to_regclass('my_own') IS NOT NULL")
    assert [(True,)] == found


async def test_setup_has_no_statement_timeout(lghard_empty_database):
    """The pool's timeouts are for statements that users wait for, and hold again afterwards."""
    async with (
        open_pool(lghard_empty_database, statement_timeout=30) as pool,
        open_checkpointer(pool),
        pool.connection() as conn,
    ):
        row = await (await conn.execute("SHOW statement_timeout")).fetchone()
    assert {"statement_timeout": "30s"} == row


async def test_tables_of_a_newer_version_are_current(lghard_database):
    """After a rollback of the application its older migrations have nothing to do."""
    async with await AsyncConnection.connect(lghard_database, autocommit=True) as conn:
        await conn.execute("INSERT INTO checkpoint_migrations (v) VALUES (1000)")
        await conn.execute("ALTER TABLE checkpoint_migrations RENAME TO kept")
        await conn.execute("CREATE VIEW checkpoint_migrations AS SELECT * FROM kept")
    async with open_checkpointer(lghard_database) as saver:
        assert await saver.aget_tuple({"configurable": {"thread_id": "t"}}) is None
