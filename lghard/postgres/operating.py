"""What a checkpointer and a store have in common: operations on a pool, repeated by their rules."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import LiteralString, TypeVar

import psycopg
from psycopg import AsyncCursor
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from lghard.postgres.advice import advise
from lghard.postgres.batch import Job
from lghard.postgres.batching import Batches
from lghard.postgres.home import Here, Place
from lghard.postgres.migrations import Schema, migrate
from lghard.postgres.retries import Operation, Outage, current_operation
from lghard.postgres.settling import Connection
from lghard.postgres.statements import Statement, fetch, send
from lghard.postgres.voiding import provide

T = TypeVar("T")

DEADLINE = 60.0
ATTEMPT_TIMEOUT = 30.0


class Operating:
    """Runs operations where the connections are, within their deadlines.

    Attributes:
        deadline: seconds that one operation may take in all, retries included.
        attempt_timeout: seconds that the server may take to answer one attempt.
        supports_pipeline: whether libpq can send several statements in one message.
    """

    deadline: float
    attempt_timeout: float
    supports_pipeline: bool
    _cursor: Callable[[], AbstractAsyncContextManager[AsyncCursor[DictRow]]]
    _place: Place

    @property
    def conn(self) -> AsyncConnectionPool[Connection]:
        """The pool. One that lghard has opened moves when a second event loop comes."""
        return self._place.pool

    @conn.setter
    def conn(self, pool: AsyncConnectionPool[Connection]) -> None:
        self._place = Here(pool)

    @property
    def _outage(self) -> Outage:
        return self._place.outage

    async def _run(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        """The result of `call`, repeated as the rule of operation `name` allows."""
        if current_operation():  # one operation calls another: the outer one repeats both
            return await call()
        operation = self._operation(name)
        return await self._there(operation, partial(operation.run, call, self._outage))

    async def _run_in_company(
        self,
        name: str,
        thread: str,
        statements: Sequence[Statement],
        *,
        is_read: bool = False,
        scale: Statement | None = None,
        size: int = 0,
    ) -> list[DictRow]:
        """The rows of the last of `statements`, which are sent together with those of others."""
        job = Job(self._operation(name), statements, is_read=is_read, scale=scale, size=size)
        return await self._there(job.operation, partial(self._line_up, job, thread))

    async def _line_up(
        self, job: Job, thread: str, pool: AsyncConnectionPool[Connection]
    ) -> list[DictRow]:
        return await Batches.of(pool).run(job, self._outage, thread)

    async def _run_in_turn(self, name: str, thread: str, call: Callable[[], Awaitable[T]]) -> T:
        """As `_run`, behind what stands in line for this thread."""
        if current_operation():
            return await call()
        operation = self._operation(name)
        return await self._there(operation, partial(self._take_turn, operation, thread, call))

    async def _take_turn(
        self,
        operation: Operation,
        thread: str,
        call: Callable[[], Awaitable[T]],
        pool: AsyncConnectionPool[Connection],
    ) -> T:
        return await Batches.of(pool).run_in_turn(operation, call, self._outage, thread)

    async def _there(
        self,
        operation: Operation,
        work: Callable[[AsyncConnectionPool[Connection]], Awaitable[T]],
    ) -> T:
        """The result of `work(pool)`, where the connections are."""
        try:
            return await self._place.run(
                work, timeout=operation.patience, patience=operation.remaining
            )
        except psycopg.Error as error:
            operation.say_if_unknown(error)
            advise(error)
            raise

    def _operation(self, name: str) -> Operation:
        return Operation(name, deadline=self.deadline, attempt_timeout=self.attempt_timeout)

    def _connection(self) -> AbstractAsyncContextManager[Connection]:
        operation = current_operation() or self._operation("setup")
        return operation.connection(operation.pool or self.conn)

    async def _set_up(self, schemas: Sequence[Schema]) -> None:
        async with self._connection() as conn:
            for schema in schemas:
                await migrate(conn, schema, patience=self.deadline)
            operation = current_operation()
            await provide(conn, (operation and operation.pool) or self.conn)

    async def _execute(self, statements: Sequence[Statement]) -> None:
        """Execute `statements` all or none."""
        async with self._connection() as conn:
            statements = [*_opening(conn), *statements]
            if self.supports_pipeline:
                await send(conn, statements)
            else:
                await _fetch_each(conn, statements)

    async def _fetch(self, statements: Sequence[Statement]) -> list[list[DictRow]]:
        """As `_execute`, and the rows of each."""
        async with self._connection() as conn:
            opening = _opening(conn)
            together = [*opening, *statements]
            rows = await fetch_all(conn, together, pipelined=self.supports_pipeline)
            return rows[len(opening) :]

    @asynccontextmanager
    async def _transaction(
        self, first: LiteralString = "", fences: Sequence[Statement] = ()
    ) -> AsyncIterator[AsyncCursor[DictRow]]:
        """A transaction, for what takes several messages.

        Not a pipeline: where that is cancelled, psycopg leaves the connection in it for good. And
        nothing may be sent before the opening has been answered, see voiding.py.

        Args:
            first: what the block begins with, if it must stand before any query; it may come twice.
            fences: what may refuse the transaction.
        """
        async with self._cursor() as cur:
            opening = [*_opening(cur.connection, stepwise=True), *fences]
            async with cur.connection.transaction():
                if opening and first:
                    await cur.execute(first)
                for statement in opening:
                    await cur.execute(statement.query, statement.params)
                yield cur


def _opening(conn: Connection, *, stepwise: bool = False) -> Sequence[Statement]:
    """What has to stand before the statements of this attempt."""
    operation = current_operation()
    return operation.begin(conn, stepwise=stepwise) if operation else ()


async def fetch_all(
    conn: Connection, statements: Sequence[Statement], *, pipelined: bool
) -> list[list[DictRow]]:
    """The rows of each of `statements`, executed all or none; in one message, if `pipelined`."""
    if pipelined:
        return await fetch(conn, statements)
    return await _fetch_each(conn, statements)


async def _fetch_each(conn: Connection, statements: Sequence[Statement]) -> list[list[DictRow]]:
    """The rows of each of `statements`, for a libpq that cannot send several in one message."""
    async with conn.transaction(), conn.cursor(binary=True, row_factory=dict_row) as cur:
        return [await _fetch_one(cur, statement) for statement in statements]


async def _fetch_one(cur: AsyncCursor[DictRow], statement: Statement) -> list[DictRow]:
    await cur.execute(statement.query, statement.params)
    return await cur.fetchall() if cur.description else []
