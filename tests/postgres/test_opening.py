"""open_pool's settings at work: timeouts of the server, closing, and a loop that cannot work."""

import asyncio
from contextlib import AsyncExitStack
from types import SimpleNamespace

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg_pool import PoolClosed

from lghard import PoolOpenError, open_checkpointer, open_pool
from tests.postgres.checkpoints import eventually, put

TIMEOUTS = {
    "lock_timeout": psycopg.errors.LockNotAvailable,
    "statement_timeout": psycopg.errors.QueryCanceled,
}


@pytest.mark.parametrize("setting", TIMEOUTS)
async def test_a_timeout_of_the_server_surfaces(lghard_database, setting, caplog):
    """Who has set it wants to hear of it, and the connection is as good as before."""
    timeout = {setting: 0.05}
    async with open_checkpointer(lghard_database, setup=False, max_size=1, **timeout) as saver:
        pool = saver.conn
        async with await AsyncConnection.connect(lghard_database) as other:
            await other.execute("LOCK checkpoints")
            with pytest.raises(TIMEOUTS[setting]):
                await put(saver, "t")
        await put(saver, "t")
        assert {} == pool.snapshot().evictions
        assert 1 == pool.snapshot().idle
    assert [] == [record for record in caplog.records if record.name == "lghard.postgres"]


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


async def test_windows_default_loop_is_refused(lghard_database, monkeypatch):
    """Psycopg cannot work in it; the error says so at once, and what to run instead."""
    loop = type("ProactorEventLoop", (), {})()
    stub = SimpleNamespace(get_running_loop=lambda: loop)
    monkeypatch.setattr("lghard.postgres.opening.asyncio", stub)
    with pytest.raises(PoolOpenError, match=r"ProactorEventLoop.*loop_factory=asyncio\.Selector"):
        async with open_pool(lghard_database):
            pass
