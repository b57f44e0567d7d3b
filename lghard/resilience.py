"""Which failures pass by themselves, and how long to wait before trying again.

Nothing here decides whether *repeating* an operation is safe: that depends on the operation, and
stands in the table of `lghard.postgres.retries`.
"""

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


def is_transient_sqlstate(sqlstate: str) -> bool:
    """Whether an error with this SQLSTATE goes away by itself, on a new connection if need be."""
    return sqlstate in TRANSIENT_SQLSTATES or sqlstate.startswith(CONNECTION_EXCEPTION)


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
