"""A store that outlives its connections."""

import asyncio
from collections import defaultdict
from collections.abc import (
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from copy import deepcopy
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar, Unpack, cast

import orjson
import psycopg
from langgraph.store.base import (
    GetOp,
    ListNamespacesOp,
    Op,
    PutOp,
    Result,
    SearchOp,
    TTLConfig,
    validate_op_namespace,
)
from langgraph.store.postgres import AsyncPostgresStore, PoolConfig
from langgraph.store.postgres.base import (
    PLACEHOLDER,
    PostgresIndexConfig,
    Row,
    _decode_ns_bytes,
    _row_to_item,
    _row_to_search_item,
)
from psycopg import AsyncConnection, AsyncCursor, AsyncPipeline
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool
from typing_extensions import override

from lghard.errors import ForeignLoopError
from lghard.postgres.collecting import STOP_TIMEOUT, Call, Collector
from lghard.postgres.home import place_of
from lghard.postgres.migrations import Schema
from lghard.postgres.opening import PoolOverrides, open_pool
from lghard.postgres.operating import ATTEMPT_TIMEOUT, DEADLINE, Operating
from lghard.postgres.settling import Connection
from lghard.postgres.statements import Statement, StatementRefusedError
from lghard.resilience import is_transient

T = TypeVar("T")
Deserializer = Callable[[bytes | orjson.Fragment], dict[str, Any]]
Vectors = Mapping[str, list[float]]
Kind = TypeVar("Kind", bound=Op)

DRAIN_TIMEOUT = 10.0
"""Seconds that closing waits for operations that are under way."""

# Items in one statement, and vectors, of which an item may have any number. A statement can have
# 65,535 parameters; an item has five, a vector four.
_ROWS = 100
_VECTORS = 65_535 // 4

# A read that was lost while it waited may yet prolong an item's life, by what was the time then.
_PROLONG = "SET expires_at = NOW() + (s.ttl_minutes || ' minutes')::interval"
_NEVER_SHORTEN = (
    "SET expires_at = GREATEST(s.expires_at, NOW() + (s.ttl_minutes || ' minutes')::interval)"
)

# What is the fault of one operation alone, beside the errors that are no OperationalError at all.
_OF_ONE = (
    psycopg.errors.LockNotAvailable,
    psycopg.errors.QueryCanceled,
    StatementRefusedError,
)

# What may stand in the statement that creates an index: none of it can be a parameter.
_WORDS = {"vector_type": ("vector", "halfvec"), "index_type": ("hnsw", "ivfflat")}


class Read(NamedTuple):
    """A statement, and what becomes of its rows."""

    statement: Statement
    take: Callable[[Sequence[DictRow]], None]


class HardenedAsyncPostgresStore(Operating, AsyncPostgresStore):  # type: ignore[misc]  # conn
    """LangGraph's `AsyncPostgresStore`, on a pool, for a database that goes away now and then.

    It differs from its base class in what it survives:

    - An operation that loses its connection is repeated on another one, until `deadline`: a read at
      once, a put or delete when the server has confirmed that the lost attempt is over; where that
      cannot be known, the error says that the outcome is unknown.
    - Operations that are called at the same moment still share a round trip, but not their fate:
      the base class has one task that does one batch after the other, where one slow operation
      holds up all others, and one bad value fails them.
    - No connection is held while texts are being embedded.
    - It leaves no task behind.

    Args:
        conn: an open pool. A single connection is refused: once lost, it is lost for good.
        pipe: refused, since it belongs to a single connection.
        deserializer: as upstream.
        index: how to embed and search texts, as upstream.
        ttl: how long items live, as upstream.
        deadline: seconds that one operation may take in all, retries included; one that has to wait
            for another on the same key may take as long again.
        attempt_timeout: seconds that the server may take to answer one attempt.

    Raises:
        TypeError: `conn` is not a pool.
        ValueError: a `pipe` was given.
        ForeignLoopError: from operations, in another event loop than it was made in.
        psycopg.Error: from operations, as upstream; after retries with a note on how often and how
            long it was tried.
    """

    def __init__(
        self,
        conn: AsyncConnectionPool[Connection] | Connection,
        *,
        pipe: AsyncPipeline | None = None,
        deserializer: Deserializer | None = None,
        index: PostgresIndexConfig | None = None,
        ttl: TTLConfig | None = None,
        deadline: float = DEADLINE,
        attempt_timeout: float = ATTEMPT_TIMEOUT,
    ) -> None:
        self._task = None  # upstream's __del__ looks at it, also when we refuse
        if pipe is not None:
            raise ValueError(
                "a pipeline belongs to a single connection, and once lost it is lost for good: "
                "leave pipe out, a pool's operations are pipelined anyway"
            )
        if not isinstance(conn, AsyncConnectionPool):
            raise TypeError(
                f"{type(self).__name__} needs a pool, not {type(conn).__name__}: a single "
                "connection that dies fails every later run; use lghard.open_store()"
            )
        self.deadline = deadline
        self.attempt_timeout = attempt_timeout
        # Half of the pool: the other half is for whoever shares it, usually the checkpointer.
        limit = max(1, conn.max_size // 2)
        self._slots = asyncio.Semaphore(limit)
        self._collector = Collector(self._do, self._texts, limit)
        super().__init__(conn, deserializer=deserializer, index=index, ttl=ttl)

    @override
    @classmethod
    @asynccontextmanager
    async def from_conn_string(
        cls,
        conn_string: str,
        *,
        pipeline: bool = False,
        pool_config: PoolConfig | None = None,
        index: PostgresIndexConfig | None = None,
        ttl: TTLConfig | None = None,
    ) -> AsyncIterator["HardenedAsyncPostgresStore"]:
        """A store on a pool of its own, which is closed at the end of the block.

        Args:
            conn_string: libpq conninfo or URI.
            pipeline: accepted, without effect: what goes together is pipelined.
            pool_config: sizes and connection arguments, as upstream.
            index: as upstream.
            ttl: as upstream.

        Raises:
            PoolOpenError: the database cannot be reached.
        """
        given = {name: value for name, value in (pool_config or {}).items() if value is not None}
        async with (
            open_pool(conn_string, **cast("PoolOverrides", given)) as pool,
            cls(pool, index=index, ttl=ttl) as store,
        ):
            yield store

    @override
    async def __aenter__(self) -> Self:
        return self

    @override
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Let what is under way come to its end, and stop the sweeper."""
        try:
            await self._collector.close(DRAIN_TIMEOUT)
        finally:
            if self._ttl_sweeper_task:
                self._ttl_sweeper_task.cancel()
                await asyncio.wait({self._ttl_sweeper_task}, timeout=STOP_TIMEOUT)

    # Collecting operations

    @override
    def _ensure_task(self) -> None:
        """Called by each operation before it is queued. The base class starts its task here."""
        if asyncio.get_running_loop() is not self._loop:
            raise ForeignLoopError(
                "this store belongs to another event loop: open one in this loop as well, "
                "open_store() lets them share their connections"
            )
        self._collector.expect(self._aqueue)

    def _texts(self, op: Op) -> list[str]:
        """What has to be embedded for `op`."""
        if self.index_config and isinstance(op, SearchOp):
            _, wanted = self._prepare_batch_search_queries([(0, op)])
            return [text for _, text in wanted]
        if self.index_config and isinstance(op, PutOp):
            _, request = self._prepare_batch_PUT_queries([(0, op)])
            return [text for *_, text in request[1]] if request else []
        return []

    async def _embed(self, texts: Iterable[str]) -> Vectors:
        different = [*dict.fromkeys(texts)]
        if not different or not self.embeddings:
            return {}
        return dict(zip(different, await self.embeddings.aembed_documents(different), strict=True))

    async def _do(self, calls: Sequence[Call]) -> None:
        vectors = await self._embed(text for call in calls for text in call.texts)
        async with self._slots:
            await self._settle(calls, vectors)

    async def _settle(self, calls: Sequence[Call], vectors: Vectors) -> None:
        """Do these, and find out which of them is at fault if they fail."""
        try:
            results = await self._perform([call.op for call in calls], vectors)
        except Exception as error:  # a deserializer may raise anything; told to whoever called
            if len(calls) > 1 and _is_of_one(error):
                half = len(calls) // 2
                await self._settle(calls[:half], vectors)
                await self._settle(calls[half:], vectors)
            else:
                for call in calls:
                    call.fail(error)
        else:
            for call, result in zip(calls, results, strict=True):
                call.succeed(result)

    # Doing them

    @override
    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """As upstream: reads first, then all puts and deletes as one transaction."""
        ops = [*ops]
        for op in ops:
            validate_op_namespace(op)
        vectors = await self._embed(text for op in ops for text in self._texts(op))
        return await self._perform(ops, vectors)

    async def _perform(self, ops: Sequence[Op], vectors: Vectors) -> list[Result]:
        results: list[Result] = [None] * len(ops)
        await self._read(ops, vectors, results)
        await self._put([op for op in ops if isinstance(op, PutOp)], vectors)
        return results

    async def _read(self, ops: Sequence[Op], vectors: Vectors, results: list[Result]) -> None:
        reads = [
            *self._gets(_indexed(GetOp, ops), results),
            *self._searches(_indexed(SearchOp, ops), vectors, results),
            *self._lists(_indexed(ListNamespacesOp, ops), results),
        ]
        same = defaultdict(list)
        for read in reads:
            same[read.statement.query, repr(read.statement.params)].append(read)
        if same:
            different = [first.statement for first, *_ in same.values()]
            answers = await self._run("store read", partial(self._fetch, different))
            for alike, rows in zip(same.values(), answers, strict=True):
                _answer(alike, rows)

    def _gets(self, ops: Sequence[tuple[int, GetOp]], results: list[Result]) -> Iterator[Read]:
        for query, params, namespace, items in self._get_batch_GET_ops_queries(ops):
            take = partial(self._take_items, results, namespace, items)
            yield Read(Statement(query.replace(_PROLONG, _NEVER_SHORTEN), params), take)

    def _take_items(
        self,
        results: list[Result],
        namespace: tuple[str, ...],
        items: Sequence[tuple[int, str]],
        rows: Sequence[DictRow],
    ) -> None:
        """Who asks for the same item gets it from a row of its own, and may change its value."""
        found = defaultdict(list)
        for row in rows:
            found[row["key"]].append(row)
        for index, key in items:
            if found[key]:
                own = cast("Row", found[key].pop())
                results[index] = _row_to_item(namespace, own, loader=self._deserializer)

    def _searches(
        self, ops: Sequence[tuple[int, SearchOp]], vectors: Vectors, results: list[Result]
    ) -> Iterator[Read]:
        queries, wanted = self._prepare_batch_search_queries(ops)
        texts = dict(wanted)
        for at, (query, params) in enumerate(queries):
            filled = [vectors[texts[at]] if each is PLACEHOLDER else each for each in params]
            take = partial(self._take_found, results, ops[at][0])
            harmless = query.replace(_PROLONG, _NEVER_SHORTEN)
            yield Read(Statement(harmless, filled, prepare=False), take)

    def _take_found(self, results: list[Result], index: int, rows: Sequence[DictRow]) -> None:
        results[index] = [
            _row_to_search_item(
                _decode_ns_bytes(row["prefix"]), cast("Row", row), loader=self._deserializer
            )
            for row in rows
        ]

    def _lists(
        self, ops: Sequence[tuple[int, ListNamespacesOp]], results: list[Result]
    ) -> Iterator[Read]:
        queries = self._get_batch_list_namespaces_queries(ops)
        for (index, _), (query, params) in zip(ops, queries, strict=True):
            take = partial(_take_namespaces, results, index)
            yield Read(Statement(query, params, prepare=False), take)

    async def _put(self, ops: Sequence[PutOp], vectors: Vectors) -> None:
        """Put what counts, in an order that is the same everywhere, so that none wait in a ring."""
        last = {(op.namespace, op.key): op for op in ops}
        ordered = [last[key] for key in sorted(last, key=str)]
        parts = [ordered[at : at + _ROWS] for at in range(0, len(ordered), _ROWS)]
        statements = [each for part in parts for each in self._statements(part, vectors)]
        if statements:
            await self._run("store put", partial(self._execute, statements))

    def _statements(self, ops: Sequence[PutOp], vectors: Vectors) -> Iterator[Statement]:
        queries, request = self._prepare_batch_PUT_queries([*enumerate(ops)])
        if request and len(request[1]) > _VECTORS and len(ops) > 1:
            half = len(ops) // 2
            yield from self._statements(ops[:half], vectors)
            yield from self._statements(ops[half:], vectors)
            return
        for query, params in queries:
            yield Statement(query, params, prepare=len(ops) == 1)
        if request:
            query, rows = request
            params = [value for *place, text in rows for value in (*place, vectors[text])]
            yield Statement(query, params, prepare=False)

    @override
    async def sweep_ttl(self) -> int:
        return await self._run("store sweep", super().sweep_ttl)

    @override
    async def setup(self) -> None:
        """As upstream, but any number of replicas may call it at once.

        Behind a transaction pooler it also creates `lghard_voided_attempts`, which lets writes be
        repeated there, or warns that this role may not.

        Raises:
            SchemaSetupError: tables are missing or out of date, and this role may not change that;
                or another replica does not get done within `deadline`. It says what to do next.
            psycopg.errors.ActiveSqlTransaction: the pool's connections are not in autocommit mode.
        """
        steps = dict(enumerate(self.MIGRATIONS))
        schemas = [Schema("store_migrations", ["store"], steps, {})]
        if self.index_config:
            steps = self._vector_steps()
            schemas.append(Schema("vector_migrations", ["store_vectors"], steps, {}))
        await self._run("store setup", partial(self._set_up, schemas))

    def _vector_steps(self) -> dict[int, str]:
        """What this index needs; the base class also creates one that it has been told not to."""
        steps = {}
        for version, migration in enumerate(self.VECTOR_MIGRATIONS):
            if migration.condition is None or migration.condition(self):
                values = {name: value(self) for name, value in (migration.params or {}).items()}
                steps[version] = migration.sql % _checked(values) if values else migration.sql
        return steps

    @override
    @asynccontextmanager
    async def _cursor(self, *, pipeline: bool = False) -> AsyncIterator[AsyncCursor[DictRow]]:
        """What the base class' own sweep goes through."""
        async with (
            self._connection() as conn,
            conn.cursor(binary=True, row_factory=dict_row) as cur,
        ):
            yield cur


def _indexed(kind: type[Kind], ops: Sequence[Op]) -> list[tuple[int, Kind]]:
    return [(index, op) for index, op in enumerate(ops) if isinstance(op, kind)]


def _answer(reads: Sequence[Read], rows: Sequence[DictRow]) -> None:
    """Each gets rows of its own: whoever asked may change their values."""
    for read in reads[1:]:
        read.take(deepcopy(rows))
    reads[0].take(rows)


def _take_namespaces(results: list[Result], index: int, rows: Sequence[DictRow]) -> None:
    results[index] = [_decode_ns_bytes(row["truncated_prefix"]) for row in rows]


def _is_of_one(error: Exception) -> bool:
    """Whether one operation may be at fault, and the others may do without it."""
    if is_transient(error):
        return False
    return not isinstance(error, psycopg.OperationalError) or isinstance(error, _OF_ONE)


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    for name, words in _WORDS.items():
        if values.get(name, words[0]) not in words:
            raise ValueError(f"Invalid {name} for pgvector: {values[name]}")
    return {**values, "dims": int(values.get("dims", 0))}


@asynccontextmanager
async def open_store(
    source: str | AsyncConnectionPool[AsyncConnection[DictRow]] | None = None,
    *,
    setup: bool = True,
    index: PostgresIndexConfig | None = None,
    ttl: TTLConfig | None = None,
    deadline: float = DEADLINE,
    attempt_timeout: float = ATTEMPT_TIMEOUT,
    **overrides: Unpack[PoolOverrides],
) -> AsyncIterator[AsyncPostgresStore]:
    """LangGraph's long-term memory, ready to use for the length of the block.

    It shares its connections with an `open_checkpointer` of the same database and settings.

    Args:
        source: libpq conninfo or URI, by default from the environment (see `PoolSettings`); or an
            open pool, which stays open afterwards and belongs to the event loop that opened it.
        setup: create or migrate LangGraph's tables first.
        index: how to embed and search texts, as upstream; needs pgvector.
        ttl: how long items live, as upstream. As there, nothing is swept before
            `start_ttl_sweeper()`; the sweeper ends with the block.
        deadline: seconds that one operation may take in all, retries included.
        attempt_timeout: seconds that the server may take to answer one attempt.
        overrides: further settings of the pool that is opened, see `open_pool`.

    Raises:
        PoolOpenError: the database cannot be reached.
        SchemaSetupError: the tables are missing, and this role may not create them.
        ValueError: no conninfo anywhere.
        TypeError: settings for a pool that is already open.

    Example:
        >>> async with open_checkpointer() as checkpointer, open_store() as store:
        ...     graph = builder.compile(checkpointer=checkpointer, store=store)
    """
    async with place_of(source, overrides, patience=deadline) as place:
        store = HardenedAsyncPostgresStore(
            place.pool, index=index, ttl=ttl, deadline=deadline, attempt_timeout=attempt_timeout
        )
        store._place = place
        async with store:
            if setup:
                await store.setup()
            yield store
