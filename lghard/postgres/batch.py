"""A batch: the operations of many runs, sent as one message.

It is one transaction, and so one flush to the server's disk. If one of its operations fails nothing
has happened; then each is sent again as a transaction of its own, the first one of each thread
before the next, and only the one at fault fails.
"""

from collections.abc import Sequence
from contextlib import suppress
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
from lghard.resilience import is_transient

if TYPE_CHECKING:
    import asyncio

    from lghard.postgres.batching import Line

LARGE: Final = 1_000_000
"""Bytes from which on an operation is sent alone."""

# In company nobody waits for a lock for long. Who has to, does it alone.
_TOGETHER: Final = Statement("SELECT set_config('lock_timeout', '100ms', true)", ())
_ONE_BY_ONE: Final = Statement("SELECT set_config('lock_timeout', '10ms', true)", ())


class Job:
    """An operation in line.

    Attributes:
        operation: its deadline, and what its attempts have left behind.
        statements: what to execute, all or none.
        is_read: whether somebody wants the rows of the last one.
        scale: tells about how many `bytes` they will have, if there are any.
        size: about how many bytes it sends.
        alone: whether it is sent without company.
        is_served: whether it has been done, or refused for good: those behind it are nearer.
        waits_since: since when it waits for its turn, to be sent, or for an answer; later, if some
            of that time does not count.
        expires_at: when to look whether its time is over.
    """

    __slots__ = (
        "alone",
        "attempt",
        "done",
        "expires_at",
        "found",
        "is_read",
        "is_served",
        "is_told",
        "line",
        "operation",
        "scale",
        "size",
        "statements",
        "turn",
        "waits_since",
    )

    def __init__(
        self,
        operation: Operation,
        statements: Sequence[Statement],
        *,
        is_read: bool = False,
        scale: Statement | None = None,
        size: int = 0,
    ) -> None:
        self.operation = operation
        self.statements = statements
        self.is_read = is_read
        self.scale = scale
        self.size = size
        self.alone = self.size >= LARGE
        self.found = 0
        self.is_told = False
        self.is_served = False
        self.line: Line | None = None
        self.waits_since = monotonic()
        self.expires_at = 0.0
        # If somebody else executes it: told when it is the first in line.
        self.turn: asyncio.Future[None] | None = None
        # While it wants to be sent, or is under way: who waits for it, and where it has been sent.
        self.done: asyncio.Future[list[DictRow]] | None = None
        self.attempt: Attempt | None = None

    def begin(self, done: "asyncio.Future[list[DictRow]]") -> None:
        """It wants to be sent, once more; `done` hears of it."""
        self.attempt, self.done, self.is_told = None, done, False

    def wants_to_be_sent(self) -> bool:
        """Whether it stands in line for an attempt, and nobody has sent it yet."""
        return self.attempt is None and self.is_awaited()

    def is_under_way(self) -> bool:
        """Whether somebody has taken it to send it, and somebody else waits for it."""
        return self.attempt is not None and self.is_awaited()

    def has_lost(self) -> bool:
        """Whether an earlier attempt, of it or of what stood before it, may still be at work."""
        return self.operation.has_lost() or bool(self.line and self.line.left)

    def excuse(self, since: float, until: float) -> None:
        """Do not count what it has waited of this time."""
        seconds = until - max(since, self.waits_since)
        if seconds > 0.0:
            self.waits_since += self.operation.excuse(seconds)

    def serve(self) -> None:
        """It will not be tried again."""
        self.is_served = True
        if self.line:
            self.line.served_at = monotonic()

    def answer(self, rows: list[DictRow]) -> None:
        """It is done, and returned `rows`."""
        self.serve()
        self.is_told = True
        self.found = _weight(rows)
        if self.done and self.is_awaited():
            self.done.set_result(rows)

    def refuse(self, error: Exception) -> None:
        """It was refused, and has had no effect."""
        if not self.operation.may_repeat(error):
            self.serve()
        self.fail(error)

    def fail(self, error: Exception) -> None:
        """It has had no effect."""
        self.is_told = True
        if self.done and self.is_awaited():
            self.done.set_exception(error)

    def put_off(self) -> None:
        """It has had no effect, and wants to be sent again."""
        self.attempt = None

    def give_up(self, error: psycopg.Error) -> None:
        """Its caller waits no longer, and what is under way may yet be done."""
        if self.done and self.attempt and self.is_awaited():
            self.operation.note_loss(self.attempt, error)
            self.done.set_exception(error)

    def miss(self, loss: psycopg.Error) -> None:
        """The connection was lost before it was sent."""
        if self.is_awaited():
            own = copy_of(loss)
            self.operation.note_loss(None, own)
            self.fail(own)

    def lose(self, loss: psycopg.Error) -> None:
        """Its connection was lost under it, unless it has been told something else."""
        if self.is_told or not self.attempt:
            return
        self.is_told = True
        if self.is_awaited():
            self.give_up(copy_of(loss))
        elif self.line and self.operation.rule is Repeat.ONCE_GONE:
            self.line.leave(self.attempt)

    def is_awaited(self) -> bool:
        """Whether an attempt of it has neither ended nor been given up."""
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
        for job in jobs:
            job.put_off()  # who has not been told has not been sent
        raise
    except StatementRefusedError as error:
        for job in jobs:
            if job.alone:
                job.fail(error)
            job.alone = True
            job.put_off()
    except psycopg.Error as loss:
        for job in jobs:
            if monotonic() - began >= patience:
                job.operation.take_longer()
            job.lose(loss)
    finally:
        for job in jobs:
            job.lose(psycopg.OperationalError("what sends the operations has been cancelled"))


async def _settled(conn: Connection, jobs: Sequence[Job]) -> list[Job]:
    """Those of which, and of what stands before them, no earlier attempt can still be at work."""
    try:
        return await _settle_all(conn, jobs)
    except psycopg.Error as error:
        for job in jobs:
            job.miss(error)
        raise


async def _settle_all(conn: Connection, jobs: Sequence[Job]) -> list[Job]:
    if not any(job.has_lost() for job in jobs):  # as nearly always
        return [job for job in jobs if job.is_under_way()]
    settled = []
    known: dict[Attempt, bool] = {}
    held: set[Line | None] = set()
    for job in jobs:
        if job.line in held:
            job.put_off()
            continue
        try:
            await job.operation.settle(conn, known)
            await _settle_left(conn, job)
        except psycopg.Error as error:
            if conn.closed or isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
                raise
            await conn.rollback()
            job.fail(error)
            held.add(job.line)
        else:
            settled.append(job)
    if not conn.autocommit:  # the questions have begun a transaction
        await conn.commit()
    return [job for job in settled if job.is_under_way()]


async def _settle_left(conn: Connection, job: Job) -> None:
    """Make sure that nothing comes late of which the callers have gone, where that can be told."""
    if job.line and job.operation.rule is Repeat.ONCE_GONE:
        for attempt in [*job.line.left]:
            with suppress(Unprovable):
                if not await attempt.is_over(conn):
                    raise StillAtWork("a write that was cancelled before may still be at work")
            job.line.left.remove(attempt)


async def _execute(
    conn: Connection,
    jobs: Sequence[Job],
    attempt: Attempt,
    pool: AsyncConnectionPool[Connection],
) -> None:
    if not jobs:
        return
    # What has to stand first, where a retry may have to be kept apart from a late first attempt.
    overwrites = any(job.operation.rule is Repeat.ONCE_GONE for job in jobs)
    opening = attempt.opening if overwrites else ()
    together = opening if jobs[0].alone else [_TOGETHER, *opening]
    segments = [Segment(together), *(Segment(job.statements) for job in jobs)]
    await send_segments(conn, [segments])
    first, *others = segments
    if is_impossible(first.error):
        note_impossible(pool)
        attempt = attempt_on(conn, pool)
        for job in jobs:
            job.attempt = attempt
        await _execute(conn, jobs, attempt, pool)
    elif len(jobs) == 1:
        others[0].error = others[0].error or first.error
        _tell_all(conn, jobs, others)
    elif first.is_done:
        _tell_all(conn, jobs, others)
    else:
        await _execute_each(conn, jobs, [_ONE_BY_ONE, *opening])


async def _execute_each(
    conn: Connection, jobs: Sequence[Job], opening: Sequence[Statement]
) -> None:
    """Execute each as a transaction of its own: the first one of each line, then the next.

    Where one will be tried again, those behind it in its line wait for that.
    """
    while jobs:
        first_of: dict[Line | None, Job] = {}
        for job in jobs:
            first_of.setdefault(job.line, job)
        heads = list(first_of.values())
        segments = [Segment([*opening, *job.statements]) for job in heads]
        try:
            await send_segments(conn, [[segment] for segment in segments])
        finally:
            _tell_all(conn, heads, segments)
        held = {job.line for job, segment in zip(heads, segments, strict=True) if _again(segment)}
        for job in jobs:
            if job.line in held:
                job.put_off()
        jobs = [job for job in jobs if job not in heads and job.line not in held]


def _again(segment: Segment) -> bool:
    """Whether it will be tried again."""
    error = segment.error
    return isinstance(error, psycopg.errors.LockNotAvailable) or (
        error is not None and is_transient(error)
    )


def _tell_all(conn: Connection, jobs: Sequence[Job], segments: Sequence[Segment]) -> None:
    """What has become of each; nothing, where nobody knows."""
    for job, segment in zip(jobs, segments, strict=True):
        if segment.is_done:
            _answer(conn, job, segment)
        elif isinstance(segment.error, psycopg.errors.LockNotAvailable) and not job.alone:
            job.alone = True  # where it may wait as long as it likes
            job.put_off()
        elif segment.error:
            job.refuse(segment.error)
    for segment in segments:
        if isinstance(segment.error, psycopg.errors.ReadOnlySqlTransaction):
            raise segment.error


def _answer(conn: Connection, job: Job, segment: Segment) -> None:
    if not job.is_read:
        job.answer([])
    elif not conn.closed:
        try:
            rows = rows_of(conn, segment.results[-1])
        except Exception as error:  # a loader's, of a row that is not ours
            job.refuse(error)
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
    other.__cause__ = error.__cause__
    other.__notes__ = [*getattr(error, "__notes__", [])]
    return other
