"""When an operation of the checkpointer may be repeated, and how.

A connection that dies under an operation leaves the outcome unknown: the statement may have been
committed just before, or, where the server's backend was only frozen or cut off, may yet be.
Repeating is safe when that makes no difference, or once the lost attempt is provably over.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from enum import Enum
from time import monotonic
from typing import Any, TypeVar

import psycopg
from psycopg_pool import AsyncConnectionPool
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from lghard.postgres.liveness import abort_after
from lghard.postgres.settling import Attempt, Backend, Connection, Unprovable
from lghard.postgres.statements import Statement, StatementRefusedError
from lghard.postgres.voiding import advice, attempt_on, is_impossible, note_impossible
from lghard.resilience import RetryBudget, backoff, is_conflict, is_transient

logger = logging.getLogger("lghard.postgres")

T = TypeVar("T")


class Repeat(Enum):
    """What a retry may do while the outcome of the attempt before it is unknown."""

    FREELY = "it reads, or inserts what is already decided (ON CONFLICT DO NOTHING)"
    ONCE_GONE = "a late first attempt could undo somebody's newer work"


RULES = {
    "aget_tuple": Repeat.FREELY,
    "alist": Repeat.FREELY,
    "aget_delta_channel_history": Repeat.FREELY,
    "aput_writes, DO NOTHING": Repeat.FREELY,
    "aput_writes, UPSERT": Repeat.ONCE_GONE,
    "aput": Repeat.ONCE_GONE,
    "adelete_thread": Repeat.ONCE_GONE,
    "adelete_for_runs": Repeat.ONCE_GONE,
    "aprune": Repeat.ONCE_GONE,
    # It overwrites nothing, but a late copy would bring back what was deleted in the meantime.
    "acopy_thread": Repeat.ONCE_GONE,
    "setup": Repeat.ONCE_GONE,
    # Of a store. A read may prolong an item's life (refresh_ttl), and store.py sees to it that a
    # late one does not shorten it.
    "store read": Repeat.FREELY,
    # It overwrites or deletes what other runs may have written since. Who puts at the same time as
    # others must expect either value to stand, and "the same time" lasts until the put returns; but
    # no first attempt comes after that.
    "store put": Repeat.ONCE_GONE,
    # It deletes only what has expired, whenever it comes.
    "store sweep": Repeat.FREELY,
    "store setup": Repeat.ONCE_GONE,
}


# How long these take depends on how much there is. Their deadline counts from the first failure,
# and bounds what comes after it.
LONG = frozenset(
    {"setup", "aprune", "adelete_thread", "adelete_for_runs", "acopy_thread"}
    | {"store setup", "store sweep"}
)
_LONG_ATTEMPT = 3600.0  # seconds

# Deadlines for which an operation stands in a line that moves.
_LONGEST_LINE = 10


_current: ContextVar["Operation | None"] = ContextVar("lghard_operation", default=None)


class Operation:
    """One call of the checkpointer: its deadline, its attempts, what they left behind.

    Args:
        name: key of `RULES`.
        deadline: seconds that all attempts and the waits between them may take.
        attempt_timeout: seconds after which the statements of one attempt are given up.

    Attributes:
        deadline: as given, also where the operation may take longer.
    """

    def __init__(self, name: str, *, deadline: float, attempt_timeout: float) -> None:
        self.name = name
        self.rule = RULES[name]
        self.attempts = 0
        self.pool: AsyncConnectionPool[Connection] | None = None
        self.task: asyncio.Task[Any] | None = None
        self.deadline = deadline
        self._started_at = monotonic()
        self._attempt_timeout = _LONG_ATTEMPT if name in LONG else attempt_timeout
        self._ends_at = self._started_at + (_LONG_ATTEMPT if name in LONG else deadline)
        self._excused = 0.0
        self._under_way: Attempt | None = None
        self._lost: list[Attempt] = []
        self._loss: psycopg.Error | None = None
        self._error: psycopg.Error | None = None

    def remaining(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self._ends_at - monotonic())

    def excuse(self, seconds: float) -> float:
        """Have the deadline come so much later: others were served before it.

        Returns:
            by how much; less than `seconds`, where it would be more than ten deadlines in all.
        """
        seconds = min(seconds, _LONGEST_LINE * self.deadline - self._excused)
        self._excused += seconds
        self._ends_at += seconds
        return seconds

    def patience(self) -> float:
        """Seconds to wait for a pool that is not there: a long one waits no longer than others."""
        return min(self.deadline, self.remaining())

    async def run(
        self,
        call: Callable[[], Awaitable[T]],
        outage: "Outage",
        pool: AsyncConnectionPool[Connection],
    ) -> T:
        """The result of `call`, repeated as often as the rule and the deadline allow.

        It may be run again with another pool: what earlier attempts left behind is remembered.
        """
        self.pool = pool
        self.task = asyncio.current_task()
        token = _current.set(self)
        outage.budget.begin()
        try:
            return await self._attempt(call, outage.budget)
        except psycopg.Error as error:
            if not self.may_repeat(error):
                raise self._verdict(error) if self._lost else error from error.__cause__
            if self.name in LONG:
                self._ends_at = monotonic() + self.deadline
            with outage.noticed(self.name, error) as over:
                result = await self._repeat(call, outage.budget)
                over()
                return result
        finally:
            _current.reset(token)

    async def _repeat(self, call: Callable[[], Awaitable[T]], budget: RetryBudget) -> T:
        retrying = AsyncRetrying(
            stop=self._is_too_late,
            wait=backoff(first=0.02, longest=1.0),
            retry=retry_if_exception(self.may_repeat),
            reraise=True,
        )
        try:
            result: T = await retrying(self._attempt_in_turn, call, budget)
        except psycopg.Error as error:
            raise self._verdict(error) from error.__cause__
        return result

    def _is_too_late(self, state: RetryCallState) -> bool:
        """Whether the deadline comes before the next attempt; it may have been moved meanwhile."""
        return state.upcoming_sleep >= self.remaining()

    async def _attempt(self, call: Callable[[], Awaitable[T]], budget: RetryBudget) -> T:
        self.attempts += 1
        try:
            result = await self._call(call)
        except psycopg.Error as error:
            self._error = error
            raise
        budget.succeed()
        return result

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T:
        """The result of `call`; where an attempt cannot be voided, of one that is not voidable."""
        try:
            return await call()
        except psycopg.Error as error:
            if not is_impossible(error):
                raise
            note_impossible(self.pool)
        return await call()

    async def _attempt_in_turn(self, call: Callable[[], Awaitable[T]], budget: RetryBudget) -> T:
        """Another attempt, as soon as the budget allows one."""
        error = self._error
        if error and not is_conflict(error):
            admitted = await budget.admit(self.remaining())
            if not admitted:
                raise error
        return await self._attempt(call, budget)

    def may_repeat(self, error: BaseException) -> bool:
        """Whether another attempt may succeed."""
        return error is self._loss or is_transient(error)

    def _verdict(self, error: psycopg.Error) -> psycopg.Error:
        """What the caller hears in the end, with notes on what was tried."""
        elapsed = monotonic() - self._started_at
        tried = f"lghard: {self.name} was tried {self.attempts} times in {elapsed:.1f} s"
        if isinstance(error, StillAtWork | Unprovable) and self._loss:
            error = self._loss
        elif self.may_repeat(error):
            tried += "; for a longer outage raise the deadline"
        error.add_note(tried)
        return error

    def say_if_unknown(self, error: psycopg.Error) -> None:
        """Note on the error it ends with that it may have succeeded all the same."""
        if self._lost and self.rule is Repeat.ONCE_GONE:
            lost = " and ".join(map(str, self._lost))
            error.add_note(
                f"lghard: the outcome of {self.name} is unknown: a connection was lost under it, "
                f"and {lost} may have committed, or may yet. It is not repeated any more: "
                f"{self.rule.value}. Read what is stored before you try again."
            )
            if step := advice(self.pool):
                error.add_note(step)

    @asynccontextmanager
    async def connection(self, pool: AsyncConnectionPool[Connection]) -> AsyncIterator[Connection]:
        """A connection for one attempt, on which nothing waits longer than the attempt may take."""
        async with pool.connection(timeout=min(pool.timeout, self.remaining())) as conn:
            patience = self.attempt_time()
            began = monotonic()
            self._under_way = None
            try:
                with abort_after(conn, patience):
                    await self.settle(conn)
                    self._under_way = Backend.of(conn)
                    yield conn
                    if not conn.autocommit:  # here, where it is bounded and a loss is noted
                        await conn.commit()
            except psycopg.Error as error:
                if monotonic() - began >= patience:
                    self.take_longer()
                self._judge(error, conn)
                raise

    def _judge(self, error: psycopg.Error, conn: Connection) -> None:
        """What `error` means for `conn`, and for the attempt on it."""
        if isinstance(error, StatementRefusedError):
            return  # we have closed it ourselves, before there was anything to commit
        if conn.closed:
            self.note_loss(self._under_way, error)
        elif error.sqlstate == psycopg.errors.ReadOnlySqlTransaction.sqlstate:
            conn.pgconn.finish()  # its server has become a standby: the pool replaces it

    def attempt_time(self) -> float:
        """Seconds that the server may take to answer the next attempt."""
        if self.name in LONG and not self._loss:
            return self._attempt_timeout
        return min(self._attempt_timeout, self.remaining())

    def take_longer(self) -> None:
        """An attempt was given up: perhaps it is not the server, but a large task."""
        self._attempt_timeout *= 2

    def begin(self, conn: Connection, *, stepwise: bool = False) -> Sequence[Statement]:
        """What has to stand before the statements of this attempt, in the same transaction.

        Args:
            conn: the connection.
            stepwise: each statement is sent when the one before has been answered.
        """
        if self.rule is Repeat.ONCE_GONE:
            self._under_way = attempt_on(conn, self.pool, stepwise=stepwise)
            return self._under_way.opening
        return ()

    async def settle(self, conn: Connection, known: dict[Attempt, bool] | None = None) -> None:
        """Make sure that no lost attempt is still at work, or raise.

        Each new connection is asked about all of them: the answer holds for its server alone, and
        there may be several.

        Args:
            conn: the connection.
            known: which attempts it says are over, if it has been asked just now.

        Raises:
            StillAtWork: one of them is.
            Unprovable: one of them may be, for ever.
        """
        known = {} if known is None else known
        if self.rule is Repeat.ONCE_GONE:
            for attempt in self._lost:
                if attempt not in known:
                    known[attempt] = await attempt.is_over(conn)
                if not known[attempt]:
                    raise StillAtWork

    def has_lost(self) -> bool:
        """Whether a connection was lost under an attempt."""
        return bool(self._lost)

    def note_loss(self, attempt: Attempt | None, error: psycopg.Error) -> None:
        """A connection was lost, with this `error`, and `attempt` with it, if one had begun."""
        self._loss = error
        if attempt:
            self._lost.append(attempt)


class StillAtWork(psycopg.OperationalError):
    """An earlier attempt may still be at work; raised between attempts.

    A caller sees it only where the attempt is not its own, see batch.py.
    """


def current_operation() -> Operation | None:
    """The operation that this task is in, if any; a task that it has started is not in it."""
    operation = _current.get()
    return operation if operation and operation.task is asyncio.current_task() else None


class Outage:
    """Says once when the database goes away under somebody, and once when it is back.

    Attributes:
        budget: how often the operations that are in it together may try again.
    """

    def __init__(self) -> None:
        self.budget = RetryBudget()
        self._since: float | None = None
        self._repeating = 0
        self._repeated = 0

    @contextmanager
    def noticed(self, name: str, error: psycopg.Error) -> Iterator[Callable[[], None]]:
        """Operation `name` failed with `error`, and is repeated in this block.

        Yields:
            what to call once it has succeeded.
        """
        if not is_conflict(error):
            self._begin(name, error)
        self._repeating += 1
        try:
            yield self._end
        finally:
            self._repeating -= 1
            if not self._repeating:
                self._since = None  # whoever was still waiting has given up

    def _begin(self, name: str, error: psycopg.Error) -> None:
        if self._since is None:
            self._since, self._repeated = monotonic(), 0
            words = error.diag.message_primary or str(error).partition("\n")[0]
            logger.warning("%s lost the database and is trying again: %s", name, words)
        self._repeated += 1

    def _end(self) -> None:
        if self._since is not None:
            elapsed = monotonic() - self._since
            logger.info("the database is back: %d operations, %.1f s", self._repeated, elapsed)
            self._since = None
