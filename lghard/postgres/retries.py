"""When an operation of the checkpointer may be repeated, and how.

A connection that dies under an operation leaves the outcome unknown: the statement may have been
committed just before, or, where the server's backend was only frozen or cut off, may yet be.
Repeating is safe when that makes no difference, or once the old backend is provably gone.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from enum import Enum
from time import monotonic
from typing import Any, NamedTuple, TypeVar

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool
from tenacity import AsyncRetrying, retry_if_exception, stop_before_delay

from lghard.postgres.liveness import abort_after
from lghard.resilience import backoff, is_transient

logger = logging.getLogger("lghard.postgres")

T = TypeVar("T")
Connection = psycopg.AsyncConnection[DictRow]


class Repeat(Enum):
    """What a retry may do while the outcome of the attempt before it is unknown."""

    FREELY = "it reads, or inserts what is already decided (ON CONFLICT DO NOTHING)"
    ONCE_GONE = "it overwrites or deletes: a late first attempt could undo somebody's newer work"


RULES = {
    "aget_tuple": Repeat.FREELY,
    "alist": Repeat.FREELY,
    "aget_delta_channel_history": Repeat.FREELY,
    "aput_writes, DO NOTHING": Repeat.FREELY,
    "aput_writes, UPSERT": Repeat.ONCE_GONE,
    "aput": Repeat.ONCE_GONE,
    "adelete_thread": Repeat.ONCE_GONE,
    "aprune": Repeat.ONCE_GONE,
    "setup": Repeat.ONCE_GONE,
}


class Backend(NamedTuple):
    """A server process that was at work for us when its connection was lost."""

    pid: int
    connected_at: float


# Seconds by which the age of a backend, told by the server's clock, may fall short of the age of
# our connection to it, told by ours.
_CLOCK_TOLERANCE = 1.0

# A backend cannot be younger than the connection it served, so a younger one with the same process
# id is a stranger; and a server that was started since then has none of its old backends.
_TERMINATE = """
WITH suspect AS (
    SELECT pid, usename = session_user AND datname = current_database() AS ours
    FROM pg_stat_activity
    WHERE pid = %(pid)s
    AND clock_timestamp() - pg_postmaster_start_time() >= make_interval(secs => %(age)s)
    AND coalesce(
        clock_timestamp() - backend_start >= make_interval(secs => %(age)s - %(tolerance)s), true
    )
)
SELECT
    pg_backend_pid() AS own_pid,
    EXISTS (SELECT FROM suspect) AS present,
    (SELECT pg_terminate_backend(pid) FROM suspect WHERE ours) AS terminated
"""

_current: ContextVar["Operation | None"] = ContextVar("lghard_operation", default=None)


class OutcomeUnknown(psycopg.OperationalError):
    """An earlier attempt may still be at work; raised between attempts, never to a caller."""


class Operation:
    """One call of the checkpointer: its deadline, its attempts, what they left behind.

    Args:
        name: key of `RULES`.
        deadline: seconds that all attempts and the waits between them may take.
        attempt_timeout: seconds after which the statements of one attempt are given up.
    """

    def __init__(self, name: str, *, deadline: float, attempt_timeout: float) -> None:
        self.name = name
        self.rule = RULES[name]
        self.attempts = 0
        self._attempt_timeout = attempt_timeout
        self._started_at = monotonic()
        self._ends_at = self._started_at + deadline
        self._unsettled: list[Backend] = []
        self._loss: psycopg.Error | None = None

    def remaining(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self._ends_at - monotonic())

    async def run(self, call: Callable[[], Awaitable[T]], outage: "Outage") -> T:
        """The result of `call`, repeated as often as the rule and the deadline allow."""
        token = _current.set(self)
        try:
            return await self._attempt(call)
        except psycopg.Error as error:
            if not self._may_repeat(error):
                raise
            outage.begins(self.name, error)
            return await self._repeat(call, outage)
        finally:
            _current.reset(token)

    async def _repeat(self, call: Callable[[], Awaitable[T]], outage: "Outage") -> T:
        try:
            result: T = await self._retrying()(self._attempt, call)
        except psycopg.Error as error:
            self._explain(error)
            if self._loss and self._unsettled and self.rule is Repeat.ONCE_GONE:
                raise self._outcome_unknown(self._loss) from error
            raise
        outage.ends()
        return result

    async def _attempt(self, call: Callable[[], Awaitable[T]]) -> T:
        self.attempts += 1
        return await call()

    def _retrying(self) -> AsyncRetrying:
        return AsyncRetrying(
            stop=stop_before_delay(self.remaining()),
            wait=backoff(first=0.02, longest=1.0),
            retry=retry_if_exception(self._may_repeat),
            reraise=True,
        )

    def _may_repeat(self, error: BaseException) -> bool:
        return error is self._loss or is_transient(error)

    def _explain(self, error: psycopg.Error) -> None:
        elapsed = monotonic() - self._started_at
        error.add_note(
            f"lghard: {self.name} was tried {self.attempts} times in {elapsed:.1f} s; for a longer "
            "outage raise the saver's deadline"
        )

    def _outcome_unknown(self, loss: psycopg.Error) -> psycopg.Error:
        pids = ", ".join(str(backend.pid) for backend in self._unsettled)
        loss.add_note(
            f"lghard: the outcome of {self.name} is unknown: its connection was lost, and backend "
            f"{pids} of the server may still be at work, so that it was not repeated "
            f"({self.rule.value}). Read the thread's state before you try again."
        )
        return loss

    @asynccontextmanager
    async def connection(self, pool: AsyncConnectionPool[Connection]) -> AsyncIterator[Connection]:
        """A connection for one attempt, on which nothing waits longer than the attempt may take."""
        async with pool.connection(timeout=min(pool.timeout, self.remaining())) as conn:
            backend = Backend(conn.pgconn.backend_pid, conn._created_at)
            try:
                with abort_after(conn, min(self._attempt_timeout, self.remaining())):
                    await self._settle(conn)
                    yield conn
            except psycopg.Error as error:
                self._note_loss(conn, backend, error)
                raise

    async def _settle(self, conn: Connection) -> None:
        """Make sure that no earlier attempt is still at work, or raise."""
        while self._unsettled and self.rule is Repeat.ONCE_GONE:
            if not await _is_gone(conn, self._unsettled[-1]):
                raise OutcomeUnknown
            self._unsettled.pop()

    def _note_loss(self, conn: Connection, backend: Backend, error: psycopg.Error) -> None:
        if conn.closed:
            self._loss = error
            self._unsettled.append(backend)
        elif error.sqlstate == psycopg.errors.ReadOnlySqlTransaction.sqlstate:
            conn.pgconn.finish()  # its server has become a standby: the pool must replace it


async def _is_gone(conn: Connection, backend: Backend) -> bool:
    """Whether `backend` can no longer do anything; if it can, it is told to stop.

    `pg_terminate_backend` is no proof by itself: a frozen process obeys when it thaws.

    Raises:
        PoolerInBetween: the process ids that clients see are not the server's own.
    """
    age = monotonic() - backend.connected_at
    async with conn.cursor(row_factory=dict_row) as cur:
        await cur.execute(
            _TERMINATE, {"pid": backend.pid, "age": age, "tolerance": _CLOCK_TOLERANCE}
        )
        row: dict[str, Any] = await cur.fetchone() or {}
    if row["own_pid"] != conn.pgconn.backend_pid:
        raise PoolerInBetween
    return not row["present"]


class PoolerInBetween(psycopg.InterfaceError):
    """A transaction pooler hides which backend was at work; never raised to a caller."""


def current_operation() -> Operation | None:
    """The operation that this task is in, if any."""
    return _current.get()


class Outage:
    """Says once when the database goes away under somebody, and once when it is back."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._operations = 0

    def begins(self, name: str, error: psycopg.Error) -> None:
        """Operation `name` failed with `error`, and is going to be repeated."""
        self._operations += 1
        if self._since is None:
            self._since = monotonic()
            logger.warning("%s lost the database and is trying again: %s", name, error)

    def ends(self) -> None:
        """A repeated operation has succeeded."""
        if self._since is not None:
            elapsed = monotonic() - self._since
            logger.info("the database is back: %d operations, %.1f s", self._operations, elapsed)
        self._since, self._operations = None, 0
