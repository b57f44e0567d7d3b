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

from lghard import HardenedAsyncPostgresSaver, SchemaSetupError, open_checkpointer, open_pool
from lghard.postgres.migrations import _LOCK
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


async def test_upstreams_setup_fails_behind_a_pooler(lghard_postgres, lghard_pgbouncer):
    """The control: it is no better there."""
    conninfo = lghard_postgres.create_database()
    results = await set_up_at_once(AsyncPostgresSaver, lghard_pgbouncer.conninfo(conninfo))
    assert any(results)


async def test_any_number_of_replicas_may_set_up_behind_a_pooler(lghard_postgres, lghard_pgbouncer):
    """The lock is held by a transaction, since no session is theirs."""
    for _ in range(4):
        conninfo = lghard_postgres.create_database()
        pooled = lghard_pgbouncer.conninfo(conninfo)
        assert [None] * REPLICAS == await set_up_at_once(HardenedAsyncPostgresSaver, pooled)
        assert dict.fromkeys(INDEXES, True) == await indexes(conninfo)


@pytest.mark.parametrize("recorded", [True, False])
async def test_one_of_many_mends_an_index_behind_a_pooler(
    lghard_database, lghard_pgbouncer, recorded
):
    """An index that is built concurrently does not wait for the transaction with the lock."""
    await leave_invalid(lghard_database, recorded=recorded)
    pooled = lghard_pgbouncer.conninfo(lghard_database)
    assert [None] * REPLICAS == await set_up_at_once(HardenedAsyncPostgresSaver, pooled)
    assert dict.fromkeys(INDEXES, True) == await indexes(lghard_database)


async def test_the_lock_has_no_snapshot_whatever_the_default(lghard_database, lghard_pgbouncer):
    """A REPEATABLE READ transaction would keep its own index from being built, for ever."""
    with psycopg.connect(lghard_database) as conn:
        database = conn.info.dbname
    await execute(
        lghard_database,
        "DROP INDEX checkpoints_thread_id_idx",
        "DELETE FROM checkpoint_migrations WHERE v >= 6",
        f"ALTER DATABASE {database} SET default_transaction_isolation = 'repeatable read'",
    )
    async with saver_of(
        HardenedAsyncPostgresSaver, lghard_pgbouncer.conninfo(lghard_database)
    ) as saver:
        await asyncio.wait_for(saver.setup(), 30)
    assert dict.fromkeys(INDEXES, True) == await indexes(lghard_database)


async def test_a_pooler_with_one_connection_cannot_do_it(lghard_postgres, lghard_empty_database):
    """It takes two; with one, the error says so in time. Tables that are current need none."""
    with temporary_pgbouncer(lghard_postgres, settings={"default_pool_size": "1"}) as pooler:
        conninfo = pooler.conninfo(lghard_empty_database)
        async with saver_of(HardenedAsyncPostgresSaver, conninfo) as saver:
            saver.deadline = 0.2
            with pytest.raises(SchemaSetupError, match="default_pool_size to 2"):
                await saver.setup()
            async with open_checkpointer(lghard_empty_database):
                pass
            await saver.setup()


@pytest.fixture
async def occupied(lghard_empty_database):
    """The database of a replica that hangs in the middle of its setup(), and its process id."""
    async with await AsyncConnection.connect(
        lghard_empty_database, application_name="replica 7", autocommit=True
    ) as conn:
        await conn.execute(f"SELECT pg_advisory_lock({_LOCK})")
        yield lghard_empty_database, conn.pgconn.backend_pid


@pytest.mark.parametrize("way", ["direct", "pooled"])
async def test_who_hangs_in_setup_is_named(occupied, lghard_pgbouncer, way):
    """The others wait for as long as their deadline says, and then tell whom to look for."""
    conninfo, pid = occupied
    way_there = conninfo if way == "direct" else lghard_pgbouncer.conninfo(conninfo)
    async with saver_of(HardenedAsyncPostgresSaver, way_there) as saver:
        saver.deadline = 0.3
        with pytest.raises(SchemaSetupError) as caught:
            await saver.setup()
        assert f"pid {pid}, application_name 'replica 7', idle since" in str(caught.value)
        await execute(conninfo, f"SELECT pg_terminate_backend({pid})")
        saver.deadline = 60.0
        await saver.setup()


@pytest.fixture
def limited(lghard_empty_database):
    """The database, and the way to it as a role that may do nothing there."""
    with psycopg.connect(lghard_empty_database, autocommit=True) as admin:
        role = f"limited_{admin.info.dbname}"
        admin.execute(f"CREATE ROLE {role}")
        admin.execute(f"GRANT {role} TO CURRENT_USER")
        admin.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        yield lghard_empty_database, make_conninfo(lghard_empty_database, options=f"-crole={role}")
        admin.execute(f"DROP OWNED BY {role}")
        admin.execute(f"DROP ROLE {role}")


def next_step(error):
    """The statement that the message recommends."""
    return str(error.value).partition("next step: ")[2].partition(", or")[0]


async def test_upstream_only_says_what_the_server_says(limited):
    """The control: permission denied, and nothing else."""
    async with saver_of(AsyncPostgresSaver, limited[1]) as saver:
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
            await saver.setup()
    assert "GRANT" not in str(caught.value)


async def test_a_role_that_may_not_create_tables(limited):
    """It is told what is missing, and the very GRANT that helps."""
    admin, conninfo = limited
    async with saver_of(HardenedAsyncPostgresSaver, conninfo) as saver:
        with pytest.raises(SchemaSetupError, match="tables are missing in schema public") as caught:
            await saver.setup()
        await execute(admin, next_step(caught))
        await saver.setup()
        await put(saver, "t")


async def test_a_role_that_may_not_read_the_tables(limited):
    """They were made by another one, and the GRANT that helps is for use as well."""
    admin, conninfo = limited
    async with open_checkpointer(admin), saver_of(HardenedAsyncPostgresSaver, conninfo) as saver:
        with pytest.raises(SchemaSetupError, match="not to be read") as caught:
            await saver.setup()
        await execute(admin, next_step(caught))
        await saver.setup()
        await put(saver, "t")


async def test_a_role_that_may_not_bring_tables_up_to_date(limited):
    """Only their owner may."""
    admin, conninfo = limited
    async with open_checkpointer(admin), saver_of(HardenedAsyncPostgresSaver, conninfo) as saver:
        ((role,),) = await query(conninfo, "SELECT current_user")
        await execute(
            admin,
            f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}",
            "DELETE FROM checkpoint_migrations WHERE v >= 8",
        )
        with pytest.raises(SchemaSetupError, match=r"call setup\(\) once as a role that may"):
            await saver.setup()


async def test_a_search_path_without_a_schema(lghard_empty_database):
    """There is nowhere to create tables in."""
    conninfo = make_conninfo(lghard_empty_database, options="-csearch_path=nowhere")
    async with saver_of(HardenedAsyncPostgresSaver, conninfo) as saver:
        with pytest.raises(SchemaSetupError, match="CREATE SCHEMA, or correct the search_path"):
            await saver.setup()


@BOTH
async def test_tables_of_a_later_schema_do_not_count(lghard_database, saver_class):
    """A tenant's tables are made in its own schema, even where it also sees everybody's."""
    await execute(lghard_database, "CREATE SCHEMA tenant")
    conninfo = make_conninfo(lghard_database, options="-csearch_path=tenant,public")
    async with saver_of(saver_class, conninfo) as saver:
        await saver.setup()
        await put(saver, "t")
    assert [(1, 0)] == await query(
        lghard_database,
        "SELECT (SELECT count(*) FROM tenant.checkpoints),"
        " (SELECT count(*) FROM public.checkpoints)",
    )


async def test_an_invalid_index_of_another_schema_is_not_ours(lghard_database):
    """It belongs to the tables of somebody else, and is left to them."""
    await leave_invalid(lghard_database, recorded=True)
    await execute(lghard_database, "CREATE SCHEMA tenant")
    conninfo = make_conninfo(lghard_database, options="-csearch_path=tenant,public")
    async with open_checkpointer(conninfo) as saver:
        await saver.setup()
    assert dict.fromkeys(INDEXES, True) == await indexes(lghard_database, "tenant")
    assert (await indexes(lghard_database))["checkpoints_thread_id_idx"] is False


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
