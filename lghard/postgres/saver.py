"""A checkpointer that outlives its connections."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, TypeVar, Unpack, cast

import psycopg
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    get_checkpoint_id,
    get_serializable_checkpoint_metadata,
)
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver, Conn
from langgraph.checkpoint.postgres.base import (
    PRUNE_SNAPSHOT_SQL,
    _aexecute,
    _keep_latest,
    _refuse_delta_threads,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from psycopg import AsyncConnection, AsyncCursor, AsyncPipeline
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool
from typing_extensions import override

from lghard.errors import ThreadDeletedError
from lghard.postgres import lease_rows
from lghard.postgres.fence import PRIMARY_KEY, TABLES, bury, refuse_deleted
from lghard.postgres.fencing import ThreadLease, fenced, fences, leases_of
from lghard.postgres.home import place_of
from lghard.postgres.migrations import checkpoints
from lghard.postgres.opening import PoolOverrides, open_pool
from lghard.postgres.operating import ATTEMPT_TIMEOUT, DEADLINE, Operating
from lghard.postgres.retention import COPY_THREAD, DELETE_FOR_RUNS, STRATEGIES, delete_threads
from lghard.postgres.retries import LONG, current_operation
from lghard.postgres.serializing import Serializing
from lghard.postgres.statements import Statement, may_be_pooled

T = TypeVar("T")

logger = logging.getLogger("lghard.postgres")

# About how many bytes `SELECT_SQL` reads. Postgres knows the length of a blob without fetching it;
# the concatenation is for the size of a checkpoint as it is when it is not compressed.
WEIGH_SQL = """
SELECT pg_column_size(checkpoint || '{}') + coalesce((
        SELECT sum(octet_length(blob)) FROM jsonb_each_text(checkpoint -> 'channel_versions')
        JOIN checkpoint_blobs AS of ON of.thread_id = checkpoints.thread_id
            AND of.checkpoint_ns = checkpoints.checkpoint_ns AND channel = key AND version = value
    ), 0) + coalesce((
        SELECT sum(octet_length(blob)) FROM checkpoint_writes AS of
        WHERE of.thread_id = checkpoints.thread_id
            AND of.checkpoint_ns = checkpoints.checkpoint_ns
            AND of.checkpoint_id = checkpoints.checkpoint_id
    ), 0) AS bytes
FROM checkpoints """


class HardenedAsyncPostgresSaver(Operating, AsyncPostgresSaver):  # type: ignore[misc]  # conn
    """LangGraph's `AsyncPostgresSaver`, on a pool, for a database that goes away now and then.

    It differs from its base class in what it survives:

    - An operation that loses its connection is repeated on another one, until `deadline`. What
      overwrites or deletes is repeated only once the server has confirmed that the lost attempt is
      over; where that cannot be known, the error says that the outcome is unknown.
    - Operations run concurrently, each on a connection of its own. The base class holds one lock
      around waiting for a connection and using it.
    - `alist` holds no connection while the caller looks at what it yields.
    - `from_conn_string` opens a pool.

    Args:
        conn: an open pool. A single connection is refused: once lost, it is lost for good.
        pipe: refused, since it belongs to a single connection.
        serde: how values are encoded; the base class' own by default.
        deadline: seconds that one operation may take in all, retries included. While it stands in
            line, and others are served before it, it has time.
        attempt_timeout: seconds that the server may take to answer one attempt.
        fence: seconds for which nothing can be written to a thread that was deleted, so that a run
            that is still at work does not bring it back; None for no fence, as upstream. It has a
            table of its own, which `setup()` creates.
        batching: whether what concurrent runs read and write shares round trips, see
            `lghard.postgres.batching`.

    Raises:
        TypeError: `conn` is not a pool.
        ValueError: a `pipe` was given.
        psycopg.Error: from operations, as upstream; after retries with a note on how often and how
            long it was tried.
        ThreadDeletedError: from writes, within the fence.

    Example:
        >>> async with open_pool() as pool:
        ...     graph = builder.compile(checkpointer=HardenedAsyncPostgresSaver(pool))
    """

    def __init__(
        self,
        conn: Conn,
        pipe: AsyncPipeline | None = None,
        serde: SerializerProtocol | None = None,
        *,
        deadline: float = DEADLINE,
        attempt_timeout: float = ATTEMPT_TIMEOUT,
        fence: float | None = None,
        batching: bool = True,
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
        self.fence = fence
        self.batching = batching and self.supports_pipeline
        self._serialize = Serializing()
        self._deserialize = Serializing()

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

        Behind a transaction pooler it also creates `lghard_voided_attempts`, which lets writes be
        repeated there, or warns that this role may not. If it may, it creates
        `lghard_thread_leases` for `thread_lock`; if not, it says why at level INFO.

        Raises:
            SchemaSetupError: tables are missing or out of date, and this role may not change that;
                or another replica does not get done within `deadline`. It says what to do next.
            psycopg.errors.ActiveSqlTransaction: the pool's connections are not in autocommit mode.
        """
        tables = {} if self.fence is None else TABLES
        schema = checkpoints(self.MIGRATIONS, tables)
        await self._run("setup", partial(self._set_up, [schema]))
        await self._run("setup", self._provide_leases)

    async def _provide_leases(self) -> None:
        """Who locks no thread needs no table; who does hears of it again from `thread_lock`."""
        async with self._connection() as conn:
            try:
                step = await lease_rows.provide(conn)
                obstacle = str(lease_rows.not_allowed(step)) if step else ""
            except psycopg.Error as error:  # not its owner, a read-only replica, a lock
                if conn.closed:
                    raise
                obstacle = error.diag.message_primary or str(error)
        if obstacle:
            logger.info("thread_lock() has no table here: %s", obstacle)

    @override
    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        configurable = config["configurable"]
        where = "WHERE thread_id = %s AND checkpoint_ns = %s "
        params = [configurable["thread_id"], configurable.get("checkpoint_ns", "")]
        if checkpoint_id := get_checkpoint_id(config):
            where += "AND checkpoint_id = %s"
            params.append(checkpoint_id)
        else:
            where += "ORDER BY checkpoint_id DESC LIMIT 1"
        rows = await self._read(configurable["thread_id"], where, params)
        return await self._load_checkpoint_tuple(rows[0]) if rows else None

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
        read = partial(self._rows, query, params)
        thread_id = config["configurable"]["thread_id"] if config else None
        for row in await self._run_in_order("alist", thread_id, read):
            yield await self._load_checkpoint_tuple(row)

    async def _read(self, thread_id: str, where: str, params: Sequence[Any]) -> list[DictRow]:
        query = self.SELECT_SQL + where
        if self.batching and not current_operation():
            rows = await self._run_in_company(
                "aget_tuple",
                str(thread_id),
                [Statement(query, params)],
                is_read=True,
                scale=Statement(WEIGH_SQL + where, params),
            )
            if not any(_has_pending_sends(row) for row in rows):
                return rows
        return await self._run("aget_tuple", partial(self._rows, query, params))

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
            if _has_pending_sends(row):
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
    async def _load_checkpoint_tuple(self, value: DictRow) -> CheckpointTuple:
        """As upstream, which hops to a thread for the writes, and loads the values here."""
        channels = frozenset(name for name, *_ in value["channel_values"] or ())
        return await self._deserialize(channels, self._tuple_of, value)

    def _tuple_of(self, row: DictRow) -> CheckpointTuple:
        place = {name: row[name] for name in ("thread_id", "checkpoint_ns", "checkpoint_id")}
        parent = {**place, "checkpoint_id": row["parent_checkpoint_id"]}
        checkpoint = row["checkpoint"]
        inline, blobs = checkpoint.get("channel_values"), self._load_blobs(row["channel_values"])
        return CheckpointTuple(
            {"configurable": place},
            cast("Checkpoint", {**checkpoint, "channel_values": {**(inline or {}), **blobs}}),
            row["metadata"],
            {"configurable": parent} if row["parent_checkpoint_id"] else None,
            self._load_writes(row["pending_writes"]),
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
        inline = _checked(self.serde, inline)
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
        statements.append(Statement(self.UPSERT_CHECKPOINTS_SQL, row))
        texts = sum(len(value) for value in inline.values() if isinstance(value, str))
        await self._write("aput", thread_id, statements, size=texts + _size(rows))
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
        thread_id = config["configurable"]["thread_id"]
        statements = [Statement(query, row) for row in rows]
        await self._write(name, thread_id, statements, size=_size(rows))

    @override
    async def adelete_thread(self, thread_id: str) -> None:
        leases = leases_of(str(thread_id))
        delete = partial(self._delete, [str(thread_id)], leases)
        with fenced(leases):
            await self._run_in_order("adelete_thread", thread_id, delete)

    async def _delete(self, thread_ids: Sequence[str], leases: Sequence[ThreadLease]) -> None:
        async with self._transaction(fences=fences(leases)) as cur:
            if self.fence is not None:
                await bury(cur, thread_ids, fence=self.fence, patience=self.deadline)
            await delete_threads(cur, thread_ids)

    @override
    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints of these runs, their writes, and the blobs that only they need.

        A LangGraph server calls it to roll a run back. What else came to the thread stays, and so
        does what `acopy_thread` has copied: a copy is not the run's work. What the run wrote to a
        checkpoint of an earlier run stays as well, since nothing records that it did.

        Args:
            run_ids: the `run_id` in the metadata of the checkpoints.

        Raises:
            TypeError: `run_ids` is a single string.
            NotImplementedError: a later run has continued from one of these, in a thread with a
                `DeltaChannel`, which would lose what it has accumulated. Nothing is deleted.
        """
        if isinstance(run_ids, str):
            raise TypeError("run_ids must be a sequence of run ids, not a str")
        params = {"run_ids": [str(run_id) for run_id in run_ids]}
        # Planned for these very runs.
        deleting = Statement(DELETE_FOR_RUNS, params, prepare=False)
        leases = leases_of()  # which threads these are runs of, nobody knows yet
        with fenced(leases):
            *_, severed = await self._run(
                "adelete_for_runs", partial(self._fetch, [*fences(leases), deleting])
            )
        if severed:
            threads = ", ".join(row["thread_id"] for row in severed)
            raise NotImplementedError(
                "the runs were not deleted: later checkpoints of a DeltaChannel are built on "
                f"them in {threads}; delete those later runs as well, or the whole thread"
            )

    @override
    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread with its whole history, as it is at one moment.

        What the target has already stays. A copied checkpoint keeps its id, and its metadata says
        from which thread it came, as `lghard_copied_from`.

        Args:
            source_thread_id: the thread to copy; none of that name is an empty thread.
            target_thread_id: the thread to copy to, usually a new one.
        """
        source, target = str(source_thread_id), str(target_thread_id)
        params = target, target, source, target, source, target, source
        await self._write("acopy_thread", target, [Statement(COPY_THREAD, params)])

    @override
    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """`adelete_for_runs`, from a thread without the saver's event loop."""
        self._from_outside(self.adelete_for_runs(run_ids))

    @override
    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """`acopy_thread`, from a thread without the saver's event loop."""
        self._from_outside(self.acopy_thread(source_thread_id, target_thread_id))

    def _from_outside(self, call: Coroutine[Any, Any, T]) -> T:
        """As the synchronous methods of the base class, which refuse to wait for themselves."""
        if asyncio._get_running_loop() is self.loop:
            call.close()
            raise asyncio.InvalidStateError(
                "this would wait for the event loop that it runs in: call the asynchronous method "
                "here, or this one from another thread"
            )
        return asyncio.run_coroutine_threadsafe(call, self.loop).result()

    @override
    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """As upstream, and each thread is repeated by itself if somebody writes to it meanwhile.

        Args:
            thread_ids: the threads to prune.
            strategy: "keep_latest" or "delete"; "delete_all", as a LangGraph server says, is the
                same as the latter.

        Raises:
            TypeError: `thread_ids` is a single string.
            ValueError: an unknown strategy.
            NotImplementedError: "keep_latest", and a thread uses a `DeltaChannel`.
        """
        if isinstance(thread_ids, str):
            raise TypeError("thread_ids must be a sequence of thread IDs, not a str")
        if strategy not in STRATEGIES:
            valid = ", ".join(map(repr, STRATEGIES))
            raise ValueError(f"Unknown prune strategy: {strategy!r}; there are {valid}")
        thread_ids = [str(thread_id) for thread_id in thread_ids]
        if not thread_ids:
            return
        leases = leases_of(*thread_ids)
        with fenced(leases):
            await self._prune(thread_ids, STRATEGIES[strategy], leases)

    async def _prune(
        self, thread_ids: Sequence[str], strategy: str, leases: Sequence[ThreadLease]
    ) -> None:
        if strategy == "delete":
            await self._run("aprune", partial(self._delete, thread_ids, leases))
            return
        await self._run("aprune", partial(self._refuse_delta_threads, thread_ids))
        for thread_id in thread_ids:
            keep = partial(self._keep_latest, thread_id, leases)
            await self._run_in_order("aprune", thread_id, keep)

    async def _refuse_delta_threads(self, thread_ids: Sequence[str]) -> None:
        """Before any is pruned, as upstream."""
        async with self._transaction() as cur:
            await _aexecute(cur, _refuse_delta_threads(thread_ids))

    async def _keep_latest(self, thread_id: str, leases: Sequence[ThreadLease]) -> None:
        async with self._transaction(PRUNE_SNAPSHOT_SQL, fences(leases)) as cur:
            await _aexecute(cur, _keep_latest(thread_id))

    @override
    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        read = partial(super().aget_delta_channel_history, config=config, channels=channels)
        thread_id = config["configurable"]["thread_id"]
        return await self._run_in_order("aget_delta_channel_history", thread_id, read)

    async def _run_in_order(
        self, name: str, thread_id: str | None, call: Callable[[], Awaitable[T]]
    ) -> T:
        """`call`, after what this saver does with the thread already: with batches, that waits."""
        if self.batching and thread_id is not None:
            return await self._run_in_turn(name, str(thread_id), call)
        return await self._run(name, call)

    async def _write(
        self, name: str, thread_id: str, statements: Sequence[Statement], *, size: int = 0
    ) -> None:
        """Execute `statements` all or none, repeated as the rule of operation `name` allows."""
        if not statements:
            return
        if self.fence is not None:
            statements = [*refuse_deleted(thread_id), *statements]
        leases = leases_of(str(thread_id))
        statements = [*fences(leases), *statements]
        try:
            with fenced(leases):
                if self.batching and name not in LONG:
                    await self._run_in_company(name, str(thread_id), statements, size=size)
                else:
                    await self._run_in_order(name, thread_id, partial(self._execute, statements))
        except psycopg.errors.UniqueViolation as error:
            if error.diag.constraint_name != PRIMARY_KEY:
                raise
            raise ThreadDeletedError(
                f"thread {thread_id!r} has been deleted, and what comes late is refused: end the "
                f"run, or use a new thread id; this one is free {self.fence:g} s after its deletion"
            ) from error

    @override
    @asynccontextmanager
    async def _cursor(self, *, pipeline: bool = False) -> AsyncIterator[AsyncCursor[DictRow]]:
        """What the statements of the base class go through: here without its lock."""
        async with self._connection() as conn, AsyncExitStack() as stack:
            if pipeline:
                pipelined = self.supports_pipeline and not may_be_pooled(conn)
                await stack.enter_async_context(
                    conn.pipeline() if pipelined else conn.transaction()
                )
            async with conn.cursor(binary=True, row_factory=dict_row) as cur:
                yield cur


def _size(rows: Sequence[Sequence[Any]]) -> int:
    """How many bytes their values have, which stand at the end."""
    return sum(len(row[-1] or b"") for row in rows)


def _has_pending_sends(row: DictRow) -> bool:
    """Whether it may have, among the writes of its parent: checkpoints before version 4 do."""
    return bool(row["checkpoint"]["v"] < 4 and row["parent_checkpoint_id"])  # noqa: PLR2004


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


def _checked(serde: object, inline: dict[str, Any]) -> dict[str, Any]:
    """What stands in the checkpoint itself, where a serializer has no say unless it is asked."""
    check = getattr(getattr(serde, "serde", serde), "check_inline", None)
    return check(inline) if check else inline


@asynccontextmanager
async def open_checkpointer(
    source: str | AsyncConnectionPool[AsyncConnection[DictRow]] | None = None,
    *,
    serde: SerializerProtocol | None = None,
    setup: bool = True,
    deadline: float = DEADLINE,
    attempt_timeout: float = ATTEMPT_TIMEOUT,
    fence: float | None = None,
    batching: bool = True,
    **overrides: Unpack[PoolOverrides],
) -> AsyncIterator[HardenedAsyncPostgresSaver]:
    """A checkpointer that is ready to use, for the length of the block.

    Enter it in as many event loops as you like: equal calls share one pool, and so one `max_size`.
    The only loop there is has the connections to itself; when a second one comes they move to a
    thread of their own, where the callbacks among `overrides` are called, too. Calls with other
    arguments, also with other callback objects, have pools of their own.

    Args:
        source: libpq conninfo or URI, by default from the environment (see `PoolSettings`); or an
            open pool, which stays open afterwards and belongs to the event loop that opened it.
        serde: how values are encoded; upstream's `JsonPlusSerializer` by default.
        setup: create or migrate LangGraph's tables first.
        deadline: seconds that one operation may take in all, retries included. While it stands in
            line, and others are served before it, it has time.
        attempt_timeout: seconds that the server may take to answer one attempt.
        fence: seconds for which nothing can be written to a thread that was deleted; None for no
            fence, as upstream.
        batching: whether what concurrent runs read and write shares round trips.
        overrides: further settings of the pool that is opened, see `open_pool`.

    Raises:
        PoolOpenError: the database cannot be reached.
        SchemaSetupError: the tables are missing, and this role may not create them.
        ValueError: no conninfo anywhere.
        TypeError: settings for a pool that is already open.

    Example:
        >>> async with open_checkpointer() as checkpointer:
        ...     graph = builder.compile(checkpointer=checkpointer)
        ...     await graph.ainvoke(state, {"configurable": {"thread_id": "1"}})
    """
    async with place_of(source, overrides, patience=deadline) as place:
        saver = HardenedAsyncPostgresSaver(
            place.pool,
            serde=serde,
            deadline=deadline,
            attempt_timeout=attempt_timeout,
            fence=fence,
            batching=batching,
        )
        saver._place = place
        if setup:
            await saver.setup()
        yield saver
