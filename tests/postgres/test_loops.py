"""Event loops: another one than the pool's, none yet, and the one that psycopg cannot use."""

import asyncio
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from lghard import ForeignLoopError, PoolOpenError, open_checkpointer, open_pool
from tests.postgres.checkpoints import config_of, eventually


@contextmanager
def another_loop():
    """A loop that runs in a thread of its own; the function starts a coroutine there."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def borrow(pool):
    """Whether a borrower gets a connection that a statement works on."""
    async with pool.connection(timeout=1) as conn:
        return bool(await (await conn.execute("SELECT 1")).fetchone())


async def wake_up():
    """Nothing, but the loop that runs it looks at what else there is to do."""


async def test_upstream_fails_in_the_wrong_loop(lghard_database):
    """The control: whoever uses it elsewhere hangs, and its owner gets the error."""
    async with AsyncConnectionPool(lghard_database, min_size=1, open=False) as pool:
        await pool.wait()
        with another_loop() as start:
            assert start(borrow(pool)).result(20)  # as long as nobody else uses it
            async with pool._lock:  # somebody else is just using it
                stranger = start(borrow(pool))
                await eventually(lambda: pool._lock._waiters)
            with pytest.raises(RuntimeError, match="is bound to a different event loop"):
                await borrow(pool)
            assert not stranger.done()  # though it is its turn: nobody can tell it
            start(wake_up())
            await eventually(stranger.done)


async def test_another_event_loop_is_told_apart(lghard_database):
    """The stranger hears at once whose pool it is, and the owner nothing."""
    async with open_pool(lghard_database) as pool:
        with another_loop() as start:
            async with pool._lock:
                with pytest.raises(ForeignLoopError, match="a pool in each event loop") as caught:
                    start(borrow(pool)).result(20)
        assert 2 == str(caught.value).count("_UnixSelectorEventLoop")
        assert "'MainThread'" in str(caught.value)
        assert await borrow(pool)


@pytest.mark.parametrize("end", ["putconn", "close", "health"])
async def test_another_event_loop_can_end_nothing(lghard_database, end):
    """Neither a borrow nor the pool; and the owner can still do it."""
    async with open_pool(lghard_database) as pool:
        conn = await pool.getconn()
        calls = {"putconn": lambda: pool.putconn(conn), "close": pool.close, "health": pool.health}
        with another_loop() as start, pytest.raises(ForeignLoopError):
            start(calls[end]()).result(20)
        assert (1, False) == (pool.snapshot().borrowed, pool.closed)
        await pool.putconn(conn)


def test_a_checkpointer_can_be_named_where_no_loop_runs(lghard_database):
    """In a module that a server imports, where upstream's cannot be made."""
    pool = AsyncConnectionPool(lghard_database, open=False)
    with pytest.raises(RuntimeError, match="no running event loop"):
        AsyncPostgresSaver(pool)
    checkpointer = open_checkpointer(lghard_database)

    async def main():
        async with checkpointer as saver:
            return await saver.aget_tuple(config_of("t"))

    assert asyncio.run(main()) is None


class ProactorEventLoop(asyncio.SelectorEventLoop):
    """What psycopg and lghard see of Windows' default loop: its name."""


@pytest.fixture
def windows(monkeypatch):
    """A function that runs a coroutine in Windows' default loop, as far as psycopg can tell."""
    monkeypatch.setattr(asyncio, "ProactorEventLoop", ProactorEventLoop, raising=False)
    monkeypatch.setattr("psycopg.connection_async.sys", SimpleNamespace(platform="win32"))
    with asyncio.Runner(loop_factory=ProactorEventLoop) as runner:
        yield runner.run


def test_upstream_only_times_out_in_windows_default_loop(lghard_database, windows):
    """The control: why, it says in a warning for each attempt."""

    async def main():
        async with AsyncConnectionPool(lghard_database, min_size=1, open=False) as pool:
            await pool.getconn(timeout=0.2)

    with pytest.raises(PoolTimeout) as caught:
        windows(main())
    assert caught.value.__cause__ is None


def test_windows_default_loop_is_refused(lghard_database, windows):
    """Psycopg cannot work in it; the error says so at once, and what to run instead."""

    async def main():
        async with open_pool(lghard_database):
            pass

    with pytest.raises(PoolOpenError, match=r"ProactorEventLoop.*loop_factory=asyncio\.Selector"):
        windows(main())
