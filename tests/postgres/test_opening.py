"""open_pool's settings at work: timeouts of the server, opening, and closing."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from lghard import PoolOpenError, open_checkpointer, open_pool
from lghard.postgres.settings import application_name
from tests.postgres.checkpoints import config_of, eventually, put, query, waiting_backend

TIMEOUTS = {
    "lock_timeout": psycopg.errors.LockNotAvailable,
    "statement_timeout": psycopg.errors.QueryCanceled,
}


@asynccontextmanager
async def upstream_pool(conninfo, **arguments):
    """Upstream's pool, as its documentation opens it."""
    arguments = {"min_size": 1, "kwargs": {"autocommit": True}, **arguments}
    async with AsyncConnectionPool(conninfo, open=False, **arguments) as pool:
        yield pool


@pytest.mark.parametrize("setting", TIMEOUTS)
async def test_a_timeout_of_the_server_surfaces(lghard_database, setting, caplog):
    """Who has set it hears of it, and the connection is as good as before; upstream waits on."""
    timeout = {setting: 0.05}
    async with (
        open_checkpointer(lghard_database, setup=False, max_size=1, **timeout) as saver,
        upstream_pool(lghard_database) as upstream,
    ):
        async with await AsyncConnection.connect(lghard_database) as other:
            await other.execute("LOCK checkpoints")
            waiting = asyncio.create_task(put(AsyncPostgresSaver(upstream), "u"))
            await waiting_backend(lghard_database)
            with pytest.raises(TIMEOUTS[setting]):
                await put(saver, "t")
            assert not waiting.done()
        await waiting
        await put(saver, "t")
        assert {} == saver.conn.snapshot().evictions
        assert 1 == saver.conn.snapshot().idle
    assert [] == [record for record in caplog.records if record.name == "lghard.postgres"]


# Opening


async def test_upstreams_pool_has_to_be_opened(lghard_database):
    """The control: whoever forgets it hears so in the first run."""
    saver = AsyncPostgresSaver(AsyncConnectionPool(lghard_database, open=False))
    with pytest.raises(PoolClosed, match="is not open yet"):
        await saver.aget_tuple(config_of("t"))


async def test_upstreams_pool_warns_of_its_constructor(lghard_database):
    """The control: the other way to open it is deprecated."""
    with pytest.warns(RuntimeWarning, match="opening the async pool .* is deprecated"):
        pool = AsyncConnectionPool(lghard_database, open=True)
    await pool.close()


async def test_a_pool_is_open_from_the_start(lghard_database):
    """There is no other way to have one, and nothing to be warned of."""
    async with open_checkpointer(lghard_database) as saver:
        assert await saver.aget_tuple(config_of("t")) is None


UNUSABLE = {
    "Connection refused": {"port": 1},
    "role .* does not exist": {"user": "stranger"},
    "database .* does not exist": {"dbname": "missing"},
}
"""What the error says of a mistake in the conninfo."""


@pytest.mark.parametrize("words", UNUSABLE)
async def test_upstream_opens_what_cannot_work(lghard_database, words):
    """The control: opening says nothing, and the first borrower does not hear why."""
    conninfo = make_conninfo(lghard_database, **UNUSABLE[words])
    async with upstream_pool(conninfo) as pool:
        with pytest.raises(PoolTimeout) as caught:
            await pool.getconn(timeout=0.2)
    assert (None, "couldn't get a connection after 0.20 sec") == (
        caught.value.__cause__,
        str(caught.value),
    )


@pytest.mark.parametrize("words", UNUSABLE)
async def test_what_cannot_work_is_not_opened(lghard_database, words):
    """The error says why."""
    conninfo = make_conninfo(lghard_database, **UNUSABLE[words])
    with pytest.raises(PoolOpenError, match=words):
        async with open_pool(conninfo, open_timeout=0.2):
            pass


async def test_a_connection_says_whose_it_is(lghard_database):
    """So that those of a replica that is gone can be found and ended; upstream's are anybody's."""
    names = []
    for opening in (open_pool(lghard_database), upstream_pool(lghard_database)):
        async with opening as pool, pool.connection() as conn:
            names += await query(
                lghard_database,
                "SELECT application_name FROM pg_stat_activity WHERE pid = %s",
                conn.info.backend_pid,
            )
    assert [(application_name(),), ("",)] == names


@pytest.fixture
async def occupied_database(lghard_empty_database):
    """A database in which setup() fails: a table of that name is there, and is another one."""
    async with await AsyncConnection.connect(lghard_empty_database, autocommit=True) as conn:
        await conn.execute("CREATE TABLE checkpoints (id int)")
    return lghard_empty_database


async def backends(conninfo):
    """How many connections others have to that database."""
    found = await query(
        conninfo,
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    return found[0][0]


async def test_upstreams_pool_outlives_a_failed_setup(occupied_database):
    """The control: a factory that fails half-way leaves its pool open, once per call."""
    pools = []

    async def make_checkpointer():
        pools.append(AsyncConnectionPool(occupied_database, min_size=2, open=False))
        await pools[-1].open(wait=True)
        saver = AsyncPostgresSaver(pools[-1])
        await saver.setup()

    for _ in range(2):
        with pytest.raises(psycopg.Error):
            await make_checkpointer()
    assert 4 == await backends(occupied_database)
    for pool in pools:
        await pool.close()


async def test_a_failed_setup_leaves_nothing(occupied_database):
    """Neither a connection nor a task, however often it is tried."""
    tasks = asyncio.all_tasks()
    for _ in range(2):
        with pytest.raises(psycopg.errors.UndefinedColumn):
            async with open_checkpointer(occupied_database, min_size=2):
                pass
    assert tasks == asyncio.all_tasks()
    await eventually(lambda: none_of(backends(occupied_database)))


async def none_of(count):
    return await count == 0


# Closing


class Borrower:
    """A task that has borrowed a connection, and uses it once it is told to."""

    def __init__(self, pool):
        self._go = asyncio.Event()
        self._borrowed = asyncio.Event()
        self._task = asyncio.create_task(self._work(pool))

    async def _work(self, pool):
        async with pool.connection() as conn:
            self._borrowed.set()
            await self._go.wait()
            return await (await conn.execute("SELECT 1 AS one")).fetchone()

    async def begin(self):
        await self._borrowed.wait()

    async def finish(self):
        self._go.set()
        return await self._task


async def test_the_end_of_the_block_waits_for_borrowers(lghard_database):
    """They finish what they have begun, and nobody begins anything new."""
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(open_pool(lghard_database))
        borrower = Borrower(pool)
        await borrower.begin()
        closing = asyncio.create_task(stack.aclose())
        await eventually(lambda: pool._draining)
        with pytest.raises(PoolClosed, match="is closing"):
            await pool.getconn()
        assert not pool.closed
        assert {"one": 1} == await borrower.finish()
        await closing
        assert pool.closed


async def test_the_end_of_the_block_waits_no_longer_than_drain_timeout(lghard_database):
    """A borrower that does not come back holds up nobody, and may still finish."""
    async with open_pool(lghard_database, drain_timeout=0.05) as pool:
        borrower = Borrower(pool)
        await borrower.begin()
    assert pool.closed
    assert {"one": 1} == await borrower.finish()


def writes_to_the_end(opening, conninfo):
    """What an application has written that ends while a run is still writing."""

    async def write(pool, begun):
        async with pool.connection() as conn:
            begun.set()
            await conn.execute("SELECT pg_sleep(0.2)")
            await conn.execute("INSERT INTO checkpoint_migrations VALUES (1000)")

    async def main():
        begun = asyncio.Event()
        async with opening as pool:
            writing = asyncio.create_task(write(pool, begun))
            await begun.wait()
        return writing  # the loop ends, and cancels it

    asyncio.run(main())
    with psycopg.connect(conninfo) as conn:
        return conn.execute("SELECT count(*) FROM checkpoint_migrations WHERE v = 1000").fetchone()


def test_upstream_closes_under_a_run(lghard_database):
    """The control: close() waits for nobody, and what was being written is lost."""
    assert (0,) == writes_to_the_end(upstream_pool(lghard_database), lghard_database)


def test_a_run_ends_before_its_pool(lghard_database):
    """What was being written at shutdown is there afterwards."""
    assert (1,) == writes_to_the_end(open_pool(lghard_database), lghard_database)
