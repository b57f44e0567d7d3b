"""Which failures pass by themselves, and how long to wait before trying again.

Nothing here decides whether *repeating* an operation is safe: that depends on the operation, and
stands in the table of `lghard.postgres.retries`.
"""

import asyncio
from contextlib import suppress
from time import monotonic

from tenacity.wait import wait_base, wait_random_exponential

from lghard.errors import LghardError

# https://www.postgresql.org/docs/current/errcodes-appendix.html
TRANSIENT_SQLSTATES = frozenset(
    {
        "25006",  # read_only_sql_transaction: a failover made this server a standby
        "25P03",  # idle_in_transaction_session_timeout
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
        "53300",  # too_many_connections
        "57P01",  # admin_shutdown: pg_terminate_backend, or a fast shutdown
        "57P02",  # crash_shutdown
        "57P03",  # cannot_connect_now: starting up, shutting down, in recovery
        "57P05",  # idle_session_timeout
    }
)
CONNECTION_EXCEPTION = "08"  # the class of every lost or refused connection
TRANSACTION_ROLLBACK = "40"  # the class of every conflict with another transaction


def is_transient_sqlstate(sqlstate: str) -> bool:
    """Whether an error with this SQLSTATE goes away by itself, on a new connection if need be."""
    return sqlstate in TRANSIENT_SQLSTATES or sqlstate.startswith(CONNECTION_EXCEPTION)


def is_conflict(error: BaseException | None) -> bool:
    """Whether two transactions were in each other's way, which proves that the server is there."""
    return (getattr(error, "sqlstate", None) or "").startswith(TRANSACTION_ROLLBACK)


def is_transient(error: BaseException) -> bool:
    """Whether `error` is a failure of the moment: the same call may succeed a little later.

    An error with a SQLSTATE is judged by it. psycopg reports a connection that was refused, lost
    or timed out as a plain `OperationalError` without one. The pool's own errors are
    `OperationalError` too: a pool that timed out *because it could not connect* says so in its
    cause (`ManagedPool` does), while an exhausted or closed one stays as it is.
    """
    import psycopg  # noqa: PLC0415 - the SDK's side of this module must work without libpq
    import psycopg_pool  # noqa: PLC0415

    if isinstance(error, psycopg.Error) and error.sqlstate:
        return is_transient_sqlstate(error.sqlstate)
    if isinstance(error, LghardError) or not isinstance(error, psycopg.OperationalError):
        return False
    if isinstance(error, psycopg_pool.PoolTimeout):
        return error.__cause__ is not None and is_transient(error.__cause__)
    permanent = (
        psycopg_pool.PoolClosed,
        psycopg_pool.TooManyRequests,
        psycopg.errors.PipelineAborted,
    )
    return not isinstance(error, permanent)


def backoff(*, first: float, longest: float) -> wait_base:
    """Full-jitter exponential back-off between attempts, as a tenacity `wait`.

    The n-th wait is drawn from 0 to `first`·2ⁿ⁻¹ seconds, at most `longest`: of the schemes that
    M. Brooker compares in "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015) the one
    that spreads simultaneous clients best.
    """
    return wait_random_exponential(multiplier=first, max=longest)


class RetryBudget:
    """How often the operations of one client may be retried while nothing succeeds.

    A retry takes a token. An operation earns `share` of one, a second `per_second`, and one is the
    most that is kept: a full outage sees a tenth more attempts than operations, and one a second
    besides, to find its end. The scheme is that of gRPC (proposal A6, "Throttling Retry Attempts")
    and of the AWS SDKs, but a retry without a token does not fail. It waits, for a token or for the
    first operation that succeeds: then what was away is back, and everybody may go.

    Args:
        share: tokens that an operation earns.
        per_second: tokens that a second earns.
    """

    def __init__(self, *, share: float = 0.1, per_second: float = 1.0) -> None:
        self._share = share
        self._per_second = per_second
        self._tokens = 1.0
        self._counted_at = monotonic()
        self._waiting: set[asyncio.Future[None]] = set()

    def begin(self) -> None:
        """An operation makes its first attempt."""
        self._earn(self._share)

    def succeed(self) -> None:
        """An operation has succeeded: whoever waits may try, in whichever event loop."""
        if self._waiting:
            self._tokens = 1.0
            for waiter in list(self._waiting):
                with suppress(RuntimeError):  # that loop is closed
                    waiter.get_loop().call_soon_threadsafe(_release, waiter)

    async def admit(self, timeout: float) -> bool:
        """Wait until an operation may make another attempt; False after `timeout` seconds."""
        ends_at = monotonic() + timeout
        released = asyncio.get_running_loop().create_future()
        self._waiting.add(released)
        try:
            while not released.done() and (pause := self._take()):
                left = ends_at - monotonic()
                if left <= 0:
                    return False
                await asyncio.wait({released}, timeout=min(pause, left))
            return True
        finally:
            self._waiting.discard(released)

    def _take(self) -> float:
        """Take a token, or tell in how many seconds there may be one."""
        now = monotonic()
        self._earn((now - self._counted_at) * self._per_second)
        self._counted_at = now
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self._per_second

    def _earn(self, tokens: float) -> None:
        self._tokens = min(1.0, self._tokens + tokens)


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
