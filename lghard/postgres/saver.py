"""A checkpointer that outlives its connections."""

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar, Unpack

import psycopg
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    get_serializable_checkpoint_metadata,
)
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver, Conn
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from psycopg import AsyncConnection, AsyncCursor, AsyncPipeline
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool
from typing_extensions import override

from lghard.postgres.home import Here, Place, Stay
from lghard.postgres.migrations import migrate
from lghard.postgres.opening import PoolOverrides, open_pool
from lghard.postgres.retries import Connection, Operation, Outage, current_operation
from lghard.postgres.serializing import Serializing
from lghard.postgres.statements import Statement, send

T = TypeVar("T")

DEADLINE = 60.0
ATTEMPT_TIMEOUT = 30.0


class HardenedAsyncPostgresSaver(AsyncPostgresSaver):
    """LangGraph's `AsyncPostgresSaver`, on a pool, for a database that goes away now and then.

    It differs from its base class in what it survives:

    - An operation that loses its connection is repeated on another one, until `deadline`. What
      overwrites or deletes is repeated only once the server has confirmed that the lost backend is
      gone; where that cannot be known, the error says that the outcome is unknown.
    - Operations run concurrently, each on a connection of its own. The base class holds one lock
      around waiting for a connection and using it.
    - `alist` holds no connection while the caller looks at what it yields.
    - `from_conn_string` opens a pool.

    Args:
        conn: an open pool. A single connection is refused: once lost, it is lost for good.
        pipe: refused, since it belongs to a single connection.
        serde: how values are encoded; the base class' own by default.
        deadline: seconds that one operation may take in all, retries included.
        attempt_timeout: seconds that the server may take to answer one attempt.

    Raises:
        TypeError: `conn` is not a pool.
        ValueError: a `pipe` was given.
        psycopg.Error: from operations, as upstream; after retries with a note on how often and how
            long it was tried.

    Example:
        >>> async with open_pool() as pool:
        ...     graph = builder.compile(checkpointer=HardenedAsyncPostgresSaver(pool))
    """

    _place: Place

    def __init__(
        self,
        conn: Conn,
        pipe: AsyncPipeline | None = None,
        serde: SerializerProtocol | None = None,
        *,
        deadline: float = DEADLINE,
        attempt_timeout: float = ATTEMPT_TIMEOUT,
    ) -> None:
        if pipe is not None:
            raise ValueError(
                "a pipeline belongs to a single connection, and once lost it is lost for good: "
                "leave pipe out, a pool's operations are pipelined anyway"
            )
        if not isinstance(conn, AsyncConnectionPool):
            raise TypeError(
                f"{type(self).__name__} needs a pool, not {type(conn).__name__}: a single "
                "connection that dies fails every later run; use lghard.open_pool() or "
                "lghard.open_checkpointer()"
            )
        super().__init__(conn, serde=serde)
        self.deadline = deadline
        self.attempt_timeout = attempt_timeout
        self._outage = Outage()
        self._serialize = Serializing()

    @property
    def conn(self) -> AsyncConnectionPool[Connection]:
        """The pool. One that `open_checkpointer` opened moves when a second event loop comes."""
        return self._place.pool

    @conn.setter
    def conn(self, pool: AsyncConnectionPool[Connection]) -> None:
        self._place = Here(pool)

    @override
    @classmethod
    @asynccontextmanager
    async def from_conn_string(
        cls,
        conn_string: str,
        *,
        pipeline: bool = False,
        serde: SerializerProtocol | None = None,
    ) -> AsyncIterator["HardenedAsyncPostgresSaver"]:
        """A saver on a pool of its own, which is closed at the end of the block.

        Args:
            conn_string: libpq conninfo or URI.
            pipeline: accepted, without effect: every write is pipelined.
            serde: how values are encoded.

        Raises:
            PoolOpenError: the database cannot be reached.
        """
        async with open_pool(conn_string) as pool:
            yield cls(pool, serde=serde)

    @override
    async def setup(self) -> None:
        """As upstream, but any number of replicas may call it at once.

        Raises:
            psycopg.errors.ActiveSqlTransaction: the pool's connections are not in autocommit mode.
        """
        await self._run("setup", self._migrate)

    async def _migrate(self) -> None:
        async with self._connection() as conn:
            await migrate(conn, self.MIGRATIONS)

    @override
    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return await self._run("aget_tuple", partial(super().aget_tuple, config))

    @override
    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """As upstream, but without a connection while the caller looks at what it yields."""
        where, args = self._search_where(config, filter, before)
        query = self.SELECT_SQL + where + " ORDER BY checkpoint_id DESC"
        params = list(args)
        if limit is not None:
            query += " LIMIT %s"
            params.append(int(limit))
        for row in await self._run("alist", partial(self._rows, query, params)):
            yield await self._load_checkpoint_tuple(row)

    async def _rows(self, query: str, params: Sequence[Any]) -> list[DictRow]:
        async with self._cursor() as cur:
            await cur.execute(query, params, binary=True)
            rows = await cur.fetchall()
            await self._add_pending_sends(cur, rows)
        return rows

    async def _add_pending_sends(self, cur: AsyncCursor[DictRow], rows: list[DictRow]) -> None:
        """Where checkpoints before version 4 keep the Sends of their parent's writes."""
        children = defaultdict(list)
        for row in rows:
            if row["checkpoint"]["v"] < 4 and row["parent_checkpoint_id"]:  # noqa: PLR2004
                children[row["thread_id"], row["parent_checkpoint_id"]].append(row)
        for thread_id in {thread_id for thread_id, _ in children}:
            parents = [parent for thread, parent in children if thread == thread_id]
            await cur.execute(self.SELECT_PENDING_SENDS_SQL, (thread_id, parents))
            for found in await cur.fetchall():
                for row in children[thread_id, found["checkpoint_id"]]:
                    row["channel_values"] = row["channel_values"] or []
                    self._migrate_pending_sends(
                        found["sends"], row["checkpoint"], row["channel_values"]
                    )

    @override
    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        configurable = config["configurable"]
        thread_id, checkpoint_ns = configurable["thread_id"], configurable["checkpoint_ns"]
        inline, blobs = _split(checkpoint["channel_values"])
        versions = {k: version for k, version in new_versions.items() if k in blobs}
        rows = await self._serialize(
            frozenset(versions), self._dump_blobs, thread_id, checkpoint_ns, blobs, versions
        )
        row = (
            thread_id,
            checkpoint_ns,
            checkpoint["id"],
            configurable.get("checkpoint_id"),
            Jsonb({**checkpoint, "channel_values": inline}),
            Jsonb(get_serializable_checkpoint_metadata(config, metadata)),
        )
        statements = [Statement(self.UPSERT_CHECKPOINT_BLOBS_SQL, row) for row in rows]
        await self._write("aput", [*statements, Statement(self.UPSERT_CHECKPOINTS_SQL, row)])
        return {
            "configurable": {
                "thread_id": thread_id,
                "checkpoint_ns": checkpoint_ns,
                "checkpoint_id": checkpoint["id"],
            }
        }

    @override
    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        channels = frozenset(channel for channel, _ in writes)
        upsert = channels <= WRITES_IDX_MAP.keys()
        rows = await self._serialize(
            channels,
            self._dump_writes,
            config["configurable"]["thread_id"],
            config["configurable"]["checkpoint_ns"],
            config["configurable"]["checkpoint_id"],
            task_id,
            task_path,
            writes,
        )
        query = self.UPSERT_CHECKPOINT_WRITES_SQL if upsert else self.INSERT_CHECKPOINT_WRITES_SQL
        name = "aput_writes, UPSERT" if upsert else "aput_writes, DO NOTHING"
        await self._write(name, [Statement(query, row) for row in rows])

    @override
    async def adelete_thread(self, thread_id: str) -> None:
        await self._run("adelete_thread", partial(super().adelete_thread, thread_id))

    @override
    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        await self._run("aprune", partial(super().aprune, thread_ids, strategy=strategy))

    @override
    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        read = partial(super().aget_delta_channel_history, config=config, channels=channels)
        return await self._run("aget_delta_channel_history", read)

    async def _write(self, name: str, statements: Sequence[Statement]) -> None:
        """Execute `statements` all or none, repeated as the rule of operation `name` allows."""
        if statements:
            await self._run(name, partial(self._execute, statements))

    async def _execute(self, statements: Sequence[Statement]) -> None:
        async with self._connection() as conn:
            if self.supports_pipeline:
                await send(conn, statements)
                return
            async with conn.transaction(), conn.cursor() as cur:
                for statement in statements:
                    await cur.execute(*statement)

    async def _run(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        if current_operation():  # one operation calls another: the outer one repeats both
            return await call()
        operation = self._operation(name)
        work = partial(operation.run, call, self._outage)
        try:
            return await self._place.run(
                work, timeout=operation.patience, patience=operation.remaining()
            )
        except psycopg.Error as error:
            operation.say_if_unknown(error)
            raise

    def _operation(self, name: str) -> Operation:
        return Operation(name, deadline=self.deadline, attempt_timeout=self.attempt_timeout)

    def _connection(self) -> AbstractAsyncContextManager[Connection]:
        operation = current_operation() or self._operation("setup")
        return operation.connection(operation.pool or self.conn)

    @override
    @asynccontextmanager
    async def _cursor(self, *, pipeline: bool = False) -> AsyncIterator[AsyncCursor[DictRow]]:
        """What the statements of the base class go through: here without its lock."""
        async with self._connection() as conn, AsyncExitStack() as stack:
            if pipeline:
                batch = conn.pipeline() if self.supports_pipeline else conn.transaction()
                await stack.enter_async_context(batch)
            async with conn.cursor(binary=True, row_factory=dict_row) as cur:
                yield cur


def _split(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Which channel values stand in the checkpoint itself, and which in blobs of their own."""
    inline: dict[str, Any] = {}
    blobs: dict[str, Any] = {}
    for channel, value in values.items():
        if isinstance(value, _DeltaSnapshot):
            inline[channel], blobs[channel] = True, value
        elif value is None or isinstance(value, (str, int, float, bool)):
            inline[channel] = value
        else:
            blobs[channel] = value
    return inline, blobs


@asynccontextmanager
async def open_checkpointer(
    source: str | AsyncConnectionPool[AsyncConnection[DictRow]] | None = None,
    *,
    serde: SerializerProtocol | None = None,
    setup: bool = True,
    deadline: float = DEADLINE,
    attempt_timeout: float = ATTEMPT_TIMEOUT,
    **overrides: Unpack[PoolOverrides],
) -> AsyncIterator[HardenedAsyncPostgresSaver]:
    """A checkpointer that is ready to use, for the length of the block.

    Args:
        source: libpq conninfo or URI, by default from the environment (see `PoolSettings`); or an
            open pool, which stays open afterwards and belongs to the event loop that opened it.
        serde: how values are encoded; upstream's `JsonPlusSerializer` by default.
        setup: create or migrate LangGraph's tables first.
        deadline: seconds that one operation may take in all, retries included.
        attempt_timeout: seconds that the server may take to answer one attempt.
        overrides: further settings of the pool that is opened, see `open_pool`.

    Raises:
        PoolOpenError: the database cannot be reached.
        ValueError: no conninfo anywhere.
        TypeError: settings for a pool that is already open.

    Example:
        >>> async with open_checkpointer() as checkpointer:
        ...     graph = builder.compile(checkpointer=checkpointer)
        ...     await graph.ainvoke(state, {"configurable": {"thread_id": "1"}})
    """
    async with _place(source, overrides) as place:
        saver = HardenedAsyncPostgresSaver(
            place.pool, serde=serde, deadline=deadline, attempt_timeout=attempt_timeout
        )
        saver._place = place
        if setup:
            await saver.setup()
        yield saver


def _place(
    source: str | AsyncConnectionPool[AsyncConnection[DictRow]] | None, overrides: PoolOverrides
) -> AbstractAsyncContextManager[Place]:
    if not isinstance(source, AsyncConnectionPool):
        return Stay(source, overrides)
    if overrides:
        raise TypeError(
            f"{', '.join(overrides)}: these are settings of a pool that is opened, and the one "
            "that was passed in is open already; set them where it is opened"
        )
    return nullcontext(Here(source))
