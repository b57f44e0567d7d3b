"""A batch: the operations of many runs, sent as one message.

It is one transaction, and so one flush to the server's disk. If one of its operations fails nothing
has happened; then the first of each thread is sent again as a transaction of its own, and only the
one at fault fails. The next ones of the thread must not overtake it: it may have to be repeated.
"""

from collections.abc import Sequence
from copy import copy
from time import monotonic
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.rows import DictRow
from psycopg_pool import AsyncConnectionPool

from lghard.postgres.liveness import abort_after
from lghard.postgres.retries import Operation, Repeat, StillAtWork
from lghard.postgres.settling import Attempt, Connection, Unprovable
from lghard.postgres.statements import (
    Segment,
    Statement,
    StatementRefusedError,
    rows_of,
    send_segments,
)
from lghard.postgres.voiding import attempt_on, is_impossible, note_impossible

if TYPE_CHECKING:
    import asyncio

    from lghard.postgres.batching import Line

LARGE: Final = 1_000_000
"""Bytes from which on an operation is sent alone."""

# In company nobody waits for a lock for longer than this. Who has to, waits alone.
_IN_COMPANY: Final = Statement("SELECT set_config('lock_timeout', '100ms', true)", ())


class Job:
    """An operation in line.

    Attributes:
        operation: its deadline, and what its attempts have left behind.
        statements: what to execute, all or none.
        is_read: whether somebody wants the rows of the last one.
        size: about how many bytes it sends.
        alone: whether it is sent without company.
    """

    __slots__ = (
        "alone",
        "attempt",
        "done",
        "found",
        "is_read",
        "line",
        "operation",
        "size",
        "statements",
        "timer",
    )

    def __init__(
        self,
        operation: Operation,
        statements: Sequence[Statement],
        *,
        is_read: bool = False,
        size: int = 0,
    ) -> None:
        self.operation = operation
        self.statements = statements
        self.is_read = is_read
        self.size = size
        self.alone = self.size >= LARGE
        self.found = 0
        self.line: Line
        self.timer: asyncio.TimerHandle
        # While it wants to be sent, or is under way: who waits for it, and where it has been sent.
        self.done: asyncio.Future[list[DictRow]] | None = None
        self.attempt: Attempt | None = None

    def wants_to_be_sent(self) -> bool:
        """Whether it stands in line for an attempt, and nobody has sent it yet."""
        return self.attempt is None and self._is_awaited()

    def is_under_way(self) -> bool:
        """Whether somebody has taken it to send it, and somebody else waits for it."""
        return self.attempt is not None and self._is_awaited()

    def answer(self, rows: list[DictRow]) -> None:
        """It is done, and returned `rows`."""
        self.found = _weight(rows)
        if self.done and self._is_awaited():
            self.done.set_result(rows)

    def fail(self, error: Exception) -> None:
        """It has had no effect."""
        if self.done and self._is_awaited():
            self.done.set_exception(error)

    def be_sent_again(self) -> None:
        """It has had no effect."""
        self.attempt = None

    def be_alone(self) -> None:
        """It has had no effect, and wants to be sent again, without company."""
        self.attempt, self.alone = None, True

    def lose(self, loss: psycopg.Error) -> None:
        """Its connection was lost under it."""
        if self.done and self.attempt and self._is_awaited():
            own = copy_of(loss)
            self.operation.note_loss(self.attempt, own)
            self.done.set_exception(own)

    def _is_awaited(self) -> bool:
        return self.done is not None and not self.done.done()


async def execute(
    conn: Connection, jobs: Sequence[Job], pool: AsyncConnectionPool[Connection]
) -> None:
    """Execute `jobs` in one round trip, or in a few where one fails; each hears for itself.

    Args:
        conn: a connection of `pool`.
        jobs: they share one attempt.
        pool: where it comes from.

    Raises:
        psycopg.errors.ReadOnlySqlTransaction: the server has become a standby.
    """
    began = monotonic()
    patience = max(job.operation.attempt_time() for job in jobs)
    attempt = jobs[0].attempt
    assert attempt
    try:
        with abort_after(conn, patience):
            await _execute(conn, await _settled(conn, jobs), attempt, pool)
    except psycopg.errors.ReadOnlySqlTransaction:
        conn.pgconn.finish()  # the pool must replace it
        raise
    except StatementRefusedError as error:
        for job in jobs:
            job.fail(copy_of(error)) if len(jobs) == 1 else job.be_alone()
    except psycopg.Error as loss:
        for job in jobs:
            if monotonic() - began >= patience:
                job.operation.take_longer()
            job.lose(loss)
    finally:
        for job in jobs:
            job.lose(psycopg.OperationalError("what sends the operations has been cancelled"))


async def _settled(conn: Connection, jobs: Sequence[Job]) -> list[Job]:
    """Those who still wait, and of which no earlier attempt can still be at work."""
    try:
        return await _settle_all(conn, jobs)
    except psycopg.Error as error:  # nothing has been sent
        for job in jobs:
            job.fail(copy_of(error))
        raise


async def _settle_all(conn: Connection, jobs: Sequence[Job]) -> list[Job]:
    settled = []
    known: dict[Attempt, bool] = {}
    for job in jobs:
        try:
            await job.operation.settle(conn, known)
        except (StillAtWork, Unprovable) as error:
            job.fail(error)
        else:
            settled.append(job)
    # Outside of autocommit mode the question has begun a transaction, which nobody would commit.
    await conn.commit()
    return [job for job in settled if job.is_under_way()]


async def _execute(
    conn: Connection,
    jobs: Sequence[Job],
    attempt: Attempt,
    pool: AsyncConnectionPool[Connection],
) -> None:
    if not jobs:
        return
    segments = [Segment(_opening(jobs, attempt)), *(Segment(job.statements) for job in jobs)]
    await send_segments(conn, [segments])
    first, *others = segments
    if isinstance(first.error, psycopg.Error) and is_impossible(first.error):
        note_impossible(pool)
        attempt = attempt_on(conn, pool)
        for job in jobs:
            job.attempt = attempt
        await _execute(conn, jobs, attempt, pool)
    elif len(jobs) == 1:
        others[0].error = others[0].error or first.error
        _tell_all(conn, jobs, others)
    elif any(segment.is_done for segment in others):
        _tell_all(conn, jobs, others)
    else:
        await _execute_each(conn, _first_of_lines(jobs), attempt)


def _first_of_lines(jobs: Sequence[Job]) -> list[Job]:
    """The first of each thread; the others have to wait until it is known not to be repeated."""
    firsts = {job.line: job for job in reversed(jobs)}
    for job in jobs:
        if job is not firsts[job.line]:
            job.be_sent_again()
    return [*firsts.values()]


def _opening(jobs: Sequence[Job], attempt: Attempt) -> list[Statement]:
    """What stands before the statements of `jobs`, in the same transaction."""
    overwrites = any(job.operation.rule is Repeat.ONCE_GONE for job in jobs)
    in_company = [_IN_COMPANY] if len(jobs) > 1 else []
    return [*in_company, *(attempt.opening if overwrites else ())]


async def _execute_each(conn: Connection, jobs: Sequence[Job], attempt: Attempt) -> None:
    """Execute each as a transaction of its own."""
    opening = _opening(jobs, attempt)
    segments = [Segment([*opening, *job.statements]) for job in jobs]
    try:
        await send_segments(conn, [[segment] for segment in segments])
    finally:
        _tell_all(conn, jobs, segments)


def _tell_all(conn: Connection, jobs: Sequence[Job], segments: Sequence[Segment]) -> None:
    """What has become of each; nothing, where nobody knows."""
    for job, segment in zip(jobs, segments, strict=True):
        waits_for_a_lock = isinstance(segment.error, psycopg.errors.LockNotAvailable)
        if waits_for_a_lock and len(jobs) > 1:
            job.be_alone()
        elif segment.error:
            job.fail(segment.error)
        elif segment.is_done and not job.is_read:
            job.answer([])
        elif segment.is_done and not conn.closed:
            _answer(conn, job, segment)
    for segment in segments:
        if isinstance(segment.error, psycopg.errors.ReadOnlySqlTransaction):
            raise segment.error


def _answer(conn: Connection, job: Job, segment: Segment) -> None:
    try:
        rows = rows_of(conn, segment.results[-1])
    except Exception as error:  # whatever a loader says, such as json.loads
        job.fail(error)
    else:
        job.answer(rows)


def _weight(value: object) -> int:
    """About how many bytes it has: those of the texts and bytes in it."""
    total, left = 0, [value]
    while left:
        each = left.pop()
        if isinstance(each, bytes | str):
            total += len(each)
        elif isinstance(each, dict):
            left.extend(each.values())
        elif isinstance(each, list | tuple):
            left.extend(each)
    return total


def copy_of(error: psycopg.Error) -> psycopg.Error:
    """Another one like `error`: each of those who get it adds notes of its own."""
    other = copy(error)
    other.__cause__, other.__notes__ = error.__cause__, [*getattr(error, "__notes__", [])]
    return other
