"""What type checkers see of the pool, the checkpointer and the store: upstream's own types."""

from typing import Any, assert_type

from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.store.base import BaseStore, Item, SearchItem
from langgraph.store.postgres import AsyncPostgresStore
from psycopg import AsyncConnection
from psycopg.rows import DictRow
from psycopg_pool import AsyncConnectionPool

from lghard import (
    HardenedAsyncPostgresSaver,
    ManagedPool,
    PoolPlan,
    PoolSettings,
    ThreadBusyError,
    ThreadLease,
    close_shared_pools,
    open_checkpointer,
    open_pool,
    open_store,
    plan_pool,
    shared_pool,
    thread_lock,
)

Connection = AsyncConnection[DictRow]


class MyConnection(AsyncConnection[DictRow]):
    """A connection class of the application's own."""


async def pools() -> None:
    """A pool is generic over its connection class, as upstream's."""
    async with open_pool(max_size=3, settings=PoolSettings(max_size=2)) as pool:
        assert_type(pool, ManagedPool[Connection])
        upstream: AsyncConnectionPool[Connection] = pool
        async with upstream.connection() as conn:
            assert_type(conn, Connection)
    mine = ManagedPool("", connection_class=MyConnection, min_size=1, open=False)
    assert_type(mine, ManagedPool[MyConnection])
    assert_type(await mine.getconn(), MyConnection)
    ManagedPool("", min_size="one")  # pyright: ignore[reportArgumentType, reportCallIssue]
    async with open_pool(max_sise=3):  # pyright: ignore[reportCallIssue]
        pass


async def shared() -> None:
    """A shared pool is one as well, and takes what open_pool takes."""
    pool = await shared_pool("", settings=PoolSettings(), max_size=3, loops=2)
    assert_type(pool, ManagedPool[Connection])
    assert_type(HardenedAsyncPostgresSaver(pool).conn, AsyncConnectionPool[Connection])
    assert_type(await close_shared_pools(), None)
    await shared_pool(max_sise=3)  # pyright: ignore[reportCallIssue]


def plans() -> None:
    """A plan is a read-only value."""
    plan = plan_pool(max_connections=100, replicas=2)
    assert_type(plan, PoolPlan)
    assert_type((plan.max_size, plan.process_max_size), tuple[int, int])
    assert_type(plan.explain(), str)
    plan.replicas = 3  # pyright: ignore[reportAttributeAccessIssue]
    plan_pool(100)  # pyright: ignore[reportCallIssue]


async def savers(pool: ManagedPool[Connection]) -> None:
    """A checkpointer is upstream's, for every use of one."""
    async with open_checkpointer(pool, deadline=10, fence=60) as checkpointer:
        assert_type(checkpointer, HardenedAsyncPostgresSaver)
        upstream: AsyncPostgresSaver = checkpointer
        assert_type(await upstream.aget_tuple({}), CheckpointTuple | None)
        async for found in checkpointer.alist(None, limit=1):
            assert_type(found, CheckpointTuple)
        assert_type(await checkpointer.adelete_for_runs(["run"]), None)
        assert_type(await checkpointer.acopy_thread("from", "to"), None)
        assert_type(checkpointer.delete_for_runs(["run"]), None)
        assert_type(checkpointer.copy_thread("from", "to"), None)
        any_checkpointer: BaseCheckpointSaver[str] = checkpointer  # what compile() takes
        assert_type(any_checkpointer.serde.dumps_typed(1), tuple[str, bytes])
    async with HardenedAsyncPostgresSaver.from_conn_string("", pipeline=True) as saver:
        assert_type(saver, HardenedAsyncPostgresSaver)
    HardenedAsyncPostgresSaver(pool, None, None, fence=None)
    HardenedAsyncPostgresSaver(1)  # pyright: ignore[reportArgumentType]


async def stores(pool: ManagedPool[Connection]) -> None:
    """A store is upstream's, for every use of one."""
    async with open_store(pool, deadline=10, ttl={"default_ttl": 5}, setup=False) as store:
        assert_type(store, AsyncPostgresStore)
        assert_type(await store.aget(("users",), "likes"), Item | None)
        assert_type(await store.asearch(("users",), limit=1), list[SearchItem])
        any_store: BaseStore = store  # what compile() takes
        assert_type(await any_store.aput(("users",), "likes", {}), None)
    async with open_store("", max_size=3, index={"dims": 3, "embed": "openai:x"}):
        pass
    async with open_store("", max_sise=3):  # pyright: ignore[reportCallIssue]
        pass


def settings(values: dict[str, Any]) -> None:
    """Fields are typed, and read-only."""
    assert_type(PoolSettings().max_size, int)
    PoolSettings().max_size = 3  # pyright: ignore[reportAttributeAccessIssue]


async def locks(upstream: AsyncConnectionPool[Connection]) -> None:
    """Any pool will do, or a checkpointer; the block gets a lease."""
    async with open_checkpointer() as checkpointer, open_pool() as pool:
        async with thread_lock(checkpointer, "t", timeout=5, ttl=30.0) as lease:
            assert_type(lease, ThreadLease)
            assert_type((lease.thread_id, lease.epoch), tuple[str, int])
        async with thread_lock(pool, "t"), thread_lock(upstream, "u"):
            pass
    thread_lock("postgresql://", "t")  # pyright: ignore[reportArgumentType]
    thread_lock(upstream, 7)  # pyright: ignore[reportArgumentType]


def busy(error: ThreadBusyError) -> None:
    """It is a timeout, with who has the lock."""
    timeout: TimeoutError = error
    assert_type(error.holder, str | None)
    del timeout
