"""Which failures pass by themselves: judged on what psycopg and its pool really raise."""

import asyncio
import random
from collections.abc import Callable

import psycopg
import pytest
from psycopg import AsyncConnection, errors
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests
from tenacity import AsyncRetrying, RetryCallState

from lghard.postgres.opening import PoolOpenError
from lghard.resilience import (
    TRANSIENT_SQLSTATES,
    RetryBudget,
    backoff,
    is_transient,
    is_transient_sqlstate,
)
from lghard.testing import TemporaryPostgres

UNREACHABLE = "host=127.0.0.1 port=1 connect_timeout=2"

PERMANENT_SQLSTATES = [
    "22P02",  # invalid_text_representation: the value is to blame
    "23505",  # unique_violation
    "25001",  # active_sql_transaction: CREATE INDEX CONCURRENTLY without autocommit
    "28P01",  # invalid_password
    "3D000",  # invalid_catalog_name
    "42P01",  # undefined_table
    "53100",  # disk_full: nobody frees it within a deadline
    "55P03",  # lock_not_available: what lock_timeout is for
    "57014",  # query_canceled: what statement_timeout is for
]


@pytest.mark.parametrize("sqlstate", [*sorted(TRANSIENT_SQLSTATES), "08000", "08003", "08006"])
def test_transient_sqlstates(sqlstate: str) -> None:
    """A failure of the server's moment is transient, by its code."""
    assert is_transient_sqlstate(sqlstate) is True


@pytest.mark.parametrize("sqlstate", PERMANENT_SQLSTATES)
def test_permanent_sqlstates(sqlstate: str) -> None:
    """A failure that the same statement meets again is not, neither by its code nor its class."""
    assert is_transient_sqlstate(sqlstate) is False
    assert is_transient(errors.lookup(sqlstate)("message")) is False


@pytest.mark.parametrize("sqlstate", sorted(TRANSIENT_SQLSTATES))
def test_each_transient_sqlstate_is_transient_as_psycopg_raises_it(sqlstate: str) -> None:
    """No code of the table is lost on the way through psycopg's class hierarchy."""
    assert is_transient(errors.lookup(sqlstate)("message")) is True


async def test_refused_connection() -> None:
    """A server that is not there yet may be there soon; psycopg says it without a SQLSTATE."""
    with pytest.raises(psycopg.OperationalError) as refused:
        await AsyncConnection.connect(UNREACHABLE)
    assert refused.value.sqlstate is None
    assert is_transient(refused.value) is True


def test_unanswered_connection_attempt() -> None:
    """A connection attempt that timed out may succeed a little later."""
    assert is_transient(errors.ConnectionTimeout("connection timeout expired")) is True


async def test_terminated_backend(lghard_postgres: TemporaryPostgres) -> None:
    """The last words of a terminated backend, and the silence after them, are both transient."""
    async with await AsyncConnection.connect(lghard_postgres.conninfo, autocommit=True) as conn:
        with pytest.raises(errors.AdminShutdown) as last_words:
            await conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        with pytest.raises(psycopg.OperationalError) as silence:
            await conn.execute("SELECT 1")
    assert (is_transient(last_words.value), is_transient(silence.value)) == (True, True)


async def test_write_to_a_read_only_server(lghard_postgres: TemporaryPostgres) -> None:
    """A server that became a standby refuses writes, until the pool reaches the new primary."""
    async with await AsyncConnection.connect(lghard_postgres.conninfo, autocommit=True) as conn:
        await conn.execute("SET default_transaction_read_only = on")
        with pytest.raises(errors.ReadOnlySqlTransaction) as refused:
            await conn.execute("CREATE TABLE written (id int)")
    assert is_transient(refused.value) is True


@pytest.mark.parametrize("statement", ["SELECT 1/0", "SELECT * FROM nowhere", "SELEKT"])
async def test_wrong_statement(lghard_postgres: TemporaryPostgres, statement: str) -> None:
    """A statement that is wrong now is wrong later."""
    async with await AsyncConnection.connect(lghard_postgres.conninfo, autocommit=True) as conn:
        with pytest.raises(psycopg.Error) as wrong:
            await conn.execute(statement.encode())
    assert is_transient(wrong.value) is False


async def test_statement_timeout(lghard_postgres: TemporaryPostgres) -> None:
    """Who set a statement_timeout wants to hear about it, not to pay it many times."""
    async with await AsyncConnection.connect(lghard_postgres.conninfo, autocommit=True) as conn:
        await conn.execute("SET statement_timeout = 1")
        with pytest.raises(errors.QueryCanceled) as cancelled:
            await conn.execute("SELECT pg_sleep(60)")
    assert is_transient(cancelled.value) is False


async def test_exhausted_pool(lghard_postgres: TemporaryPostgres) -> None:
    """A pool that is too small stays too small: its timeout has no cause to wait for."""
    async with (
        AsyncConnectionPool(lghard_postgres.conninfo, min_size=1, max_size=1) as pool,
        pool.connection(),
    ):
        with pytest.raises(PoolTimeout) as exhausted:
            await pool.getconn(timeout=0.05)
    assert is_transient(exhausted.value) is False


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (psycopg.OperationalError("connection refused"), True),
        (errors.CannotConnectNow("the database system is starting up"), True),
        (errors.InvalidPassword("password authentication failed"), False),
        (ValueError("the configure callback failed"), False),
    ],
    ids=["refused", "starting", "password", "callback"],
)
def test_pool_timeout_is_judged_by_its_cause(cause: Exception, expected: bool) -> None:
    """A pool that timed out because it could not connect is as transient as what stopped it."""
    timeout = PoolTimeout("couldn't get a connection")
    timeout.__cause__ = cause
    assert is_transient(timeout) is expected


async def test_closed_pool() -> None:
    """Nobody reopens a closed pool."""
    pool: AsyncConnectionPool = AsyncConnectionPool(UNREACHABLE, open=False)
    with pytest.raises(PoolClosed) as closed:
        await pool.getconn()
    assert is_transient(closed.value) is False


def test_full_waiting_queue() -> None:
    """max_waiting is there to refuse callers, not to make them come again at once."""
    assert is_transient(TooManyRequests("the pool has already 9 requests waiting")) is False


def test_pool_that_could_not_be_opened() -> None:
    """PoolOpenError has waited already, and what a wrong password needs is a correction."""
    assert is_transient(PoolOpenError("password authentication failed")) is False


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a node failed"),
        KeyError("messages"),
        RuntimeError("Event loop is closed"),
        ConnectionResetError("somebody else's socket"),
        TimeoutError("somebody else's deadline"),
        asyncio.CancelledError(),
        KeyboardInterrupt(),
        psycopg.InterfaceError("cursor already closed"),
        psycopg.ProgrammingError("the last operation didn't produce records"),
        errors.PipelineAborted("pipeline aborted"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_user_code(error: BaseException) -> None:
    """What is not a failure of the database is none of a retry's business."""
    assert is_transient(error) is False


def waits(draw: Callable[[float, float], float], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The first six waits, when `draw` is what chance draws from an interval."""
    monkeypatch.setattr(random, "uniform", draw)
    wait = backoff(first=0.02, longest=0.1)
    state = RetryCallState(AsyncRetrying(), None, (), {})
    drawn = []
    for state.attempt_number in range(1, 7):
        drawn.append(wait(state))
    return drawn


def test_backoff_doubles_up_to_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most, the n-th wait is first·2ⁿ⁻¹, and never more than the longest."""
    drawn = waits(lambda low, high: high, monkeypatch)
    assert drawn == [0.02, 0.04, 0.08, 0.1, 0.1, 0.1]


def test_backoff_has_full_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least, each wait is nothing at all, so that clients spread over the whole interval."""
    assert waits(lambda low, high: low, monkeypatch) == [0.0] * 6


@pytest.fixture
def budget() -> RetryBudget:
    """One that earns nothing by waiting, and whose only token is spent."""
    budget = RetryBudget(per_second=1e-9)
    assert budget._take() == 0.0
    return budget


async def test_the_first_retry_has_no_wait() -> None:
    """A single lost connection costs nobody any time."""
    assert await RetryBudget(per_second=1e-9).admit(0.0) is True


async def test_a_retry_without_a_token_waits(budget: RetryBudget) -> None:
    """Until its time is over, and it is told so."""
    assert await budget.admit(0.01) is False


async def test_a_success_lets_everybody_go(budget: RetryBudget) -> None:
    """What was away is back."""
    retries = [asyncio.create_task(budget.admit(60.0)) for _ in range(10)]
    await asyncio.sleep(0)
    budget.succeed()
    assert await asyncio.gather(*retries) == [True] * 10


async def test_a_success_in_another_loop_counts(budget: RetryBudget) -> None:
    """The operations of one checkpointer may be at work in several, each in a thread."""
    retry = asyncio.create_task(budget.admit(60.0))
    await asyncio.sleep(0)
    await asyncio.to_thread(budget.succeed)
    assert await retry is True


async def test_ten_operations_earn_one_retry(budget: RetryBudget) -> None:
    """Retries are a tenth of what is asked for at all."""
    for _ in range(10):
        budget.begin()
    results = [await budget.admit(0.0) for _ in range(2)]
    assert results == [True, False]


async def test_no_more_than_one_token_is_kept(budget: RetryBudget) -> None:
    """A long calm is no licence for a storm."""
    for _ in range(1000):
        budget.begin()
    results = [await budget.admit(0.0) for _ in range(2)]
    assert results == [True, False]


async def test_time_earns_retries_as_well() -> None:
    """Or nobody would find out that the outage is over."""
    budget = RetryBudget(per_second=100.0)
    assert [await budget.admit(60.0) for _ in range(3)] == [True] * 3


async def test_who_is_cancelled_does_not_wait_any_more(budget: RetryBudget) -> None:
    """And the others still do."""
    gone, staying = (asyncio.create_task(budget.admit(60.0)) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert len(budget._waiting) == 1
    budget.succeed()
    assert await staying is True
    assert not budget._waiting
