"""Which failures pass by themselves, how long to wait before trying again, and when not to try.

Nothing here decides whether *repeating* an operation is safe: that depends on the operation, and
stands in the tables of `lghard.postgres.retries` and `lghard.sdk.methods`.
"""

import asyncio
from contextlib import suppress
from threading import Lock
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


class RetryQuota:
    """How many retries the requests of one client may make; for any number of threads and loops.

    The scheme is gRPC's (proposal A6, "Throttling Retry Attempts"): a retry takes a token, a
    request earns `share` of one and a second `per_second`, and at most `most` are kept. In a full
    outage, the server sees a tenth more requests than without retries. Unlike `RetryBudget`, which
    makes retries wait, it refuses them: who asks a server over HTTP has an answer to show, and the
    circuit breaker finds out when the server is back.

    Args:
        share: tokens that a request earns.
        per_second: tokens that a second earns.
        most: tokens that are kept, and what there is at the beginning.
    """

    def __init__(self, *, share: float = 0.1, per_second: float = 1.0, most: float = 10.0) -> None:
        self._share = share
        self._per_second = per_second
        self._most = most
        self._tokens = most
        self._counted_at = monotonic()
        self._lock = Lock()

    def begin(self) -> None:
        """A request makes its first attempt."""
        with self._lock:
            self._tokens = min(self._most, self._tokens + self._share)

    def take(self) -> bool:
        """Take a token for another attempt; False if there is none."""
        with self._lock:
            now = monotonic()
            earned = (now - self._counted_at) * self._per_second
            self._tokens = min(self._most, self._tokens + earned)
            self._counted_at = now
            if self._tokens < 1.0:
                return False
            self._tokens -= 1.0
            return True


class CircuitBreaker:
    """Keeps requests from a server that does not answer, and lets one find out when it does again.

    Closed, everybody may go. `failures` failures in a row open it, for `cooldown` seconds in which
    nobody may; then one, the probe, may go: its success closes the circuit, its failure opens it
    for another `cooldown`. If nothing is heard of a probe for `cooldown` seconds, another may go,
    and the first of them to succeed closes the circuit.

    It does no I/O and knows no clock but the monotonic one, so that threads and event loops can
    share one.

    Args:
        failures: how many in a row open it.
        cooldown: seconds until a probe may go.
    """

    def __init__(self, *, failures: int = 5, cooldown: float = 10.0) -> None:
        self._failures = failures
        self._cooldown = cooldown
        self._in_a_row = 0
        self._probe_at: float | None = None
        self._age = 0
        self._opened = 0
        self._lock = Lock()

    @property
    def is_open(self) -> bool:
        """Whether requests are kept back, apart from probes."""
        return self._probe_at is not None

    @property
    def retry_in(self) -> float:
        """Seconds until a probe may go; 0 if anybody may."""
        probe_at = self._probe_at
        return 0.0 if probe_at is None else max(0.0, probe_at - monotonic())

    def enter(self) -> int | None:
        """A pass for one request, to be given back to one of the methods below; None if it may not.

        A pass is good for as long as the circuit does not change: what is heard of a request that
        went before that says nothing about now.
        """
        with self._lock:
            if self._probe_at is None:
                return self._age
            now = monotonic()
            if now < self._probe_at:
                return None
            return self._open(now)

    def succeed(self, admission: int) -> None:
        """The server has answered this request."""
        with self._lock:
            if self._probe_at is None:
                if admission == self._age:
                    self._in_a_row = 0
            elif admission > self._opened:  # a probe, however late it hears of its success
                self._probe_at = None
                self._in_a_row = 0
                self._age += 1

    def fail(self, admission: int) -> None:
        """The server did not answer this request, or said that it cannot."""
        with self._lock:
            if admission == self._age:
                self._in_a_row += 1
                if self._probe_at is not None:
                    self._open(monotonic())
                elif self._in_a_row >= self._failures:
                    self._opened = self._open(monotonic())

    def leave(self, admission: int) -> None:
        """This request was given up, or ended in a way that says nothing about the server."""
        with self._lock:
            if admission == self._age and self._probe_at is not None:
                self._age += 1
                self._probe_at = monotonic()

    def _open(self, now: float) -> int:
        """Nobody may go from now on for `cooldown` seconds; the pass for who goes all the same."""
        self._age += 1
        self._probe_at = now + self._cooldown
        return self._age
