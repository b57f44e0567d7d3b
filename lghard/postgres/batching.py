"""Many operations in one round trip: what concurrent runs read and write travels together.

A connection is busy for a round trip, whatever it carries. Operations that come while it is under
way wait for the next one and share it: nothing waits when there is nothing to wait for, and the
busier the application, the larger its batches.

A batch is one transaction, and so one flush to the server's disk. If one of its operations fails
nothing has happened; then each is sent again as a transaction of its own, and only the one at fault
fails.

The operations of a thread stand in line. They are sent in order, and while one of them is under
way, or waits to be tried again, those behind it wait.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from copy import copy
from functools import partial
from time import monotonic
from typing import Final, NamedTuple, TypeVar

import psycopg
from psycopg.rows import DictRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from lghard.postgres.liveness import abort_after
from lghard.postgres.pool import ManagedPool
from lghard.postgres.retries import (
    Backend,
    Connection,
    Operation,
    Outage,
    PoolerInBetween,
    StillAtWork,
)
from lghard.postgres.statements import Segment, Statement, rows_of, send_segments
from lghard.resilience import is_transient

T = TypeVar("T")

CONNECTIONS: Final = 4
"""Connections that batches use at once, at most: with more of them, batches are smaller."""

QUEUE: Final = 20_000
"""Operations that may stand in line; more of them wait outside until there is room."""

QUEUE_BYTES: Final = 256_000_000
"""Bytes that they may have together; the last one to come may exceed it."""

# Operations and bytes in one batch at most. What has more bytes by itself is sent alone.
_MOST: Final = 64
_LARGE: Final = 1_000_000

# Threads of which the last one that was read or written was large: the next one is read alone.
_REMEMBERED: Final = 1_000

# Batches after which a connection goes back to the pool, which may have something to do with it.
_ROUNDS: Final = 50

# Seconds after which a batch that is still under way does not count: another one may be sent.
_SLOW: Final = 0.1

# In company nobody waits for a lock for longer than this. Who has to, waits alone.
_IN_COMPANY: Final = Statement("SELECT set_config('lock_timeout', '100ms', true)", ())

_BATCHES: Final = "_lghard_batches"


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
        "backend",
        "done",
        "found",
        "is_read",
        "line",
        "operation",
        "size",
        "statements",
        "timer",
        "turn",
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
        self.alone = self.size >= _LARGE
        self.found = 0
        self.line: Line
        self.timer: asyncio.TimerHandle
        # If it is not sent from here: when it is the first in line.
        self.turn: asyncio.Future[None] | None = None
        # While it wants to be sent, or is under way: who waits for it, and where it has been sent.
        self.done: asyncio.Future[list[DictRow]] | None = None
        self.backend: Backend | None = None

    def wants_to_be_sent(self) -> bool:
        """Whether it stands in line for an attempt, and nobody has sent it yet."""
        return self.backend is None and self._is_awaited()

    def answer(self, rows: list[DictRow]) -> None:
        """It is done, and returned `rows`."""
        if self.done and self._is_awaited():
            self.done.set_result(rows)

    def fail(self, error: psycopg.Error) -> None:
        """It has had no effect."""
        if self.done and self._is_awaited():
            self.done.set_exception(error)

    def put_off(self) -> None:
        """It has had no effect, and wants to be sent again."""
        self.backend = None

    def lose(self, loss: psycopg.Error) -> None:
        """Its connection was lost under it."""
        if self.done and self.backend and self._is_awaited():
            own = _copy(loss)
            self.operation.note_loss(self.backend, own)
            self.done.set_exception(own)

    def _is_awaited(self) -> bool:
        return self.done is not None and not self.done.done()


class Line:
    """The operations of one thread, in order."""

    __slots__ = ("is_busy", "jobs", "thread")

    def __init__(self, thread: object) -> None:
        self.thread = thread
        self.jobs: deque[Job] = deque()
        self.is_busy = False  # its turn has come, or some of it is under way


class _Outside(NamedTuple):
    """Who waits for room: told when he has come in."""

    admitted: asyncio.Future[None]
    job: Job
    thread: object


class Batches:
    """The lines of a pool.

    Args:
        pool: where connections come from.
        connections: how many of them at once. One at least is left for those that are sent alone.
    """

    def __init__(
        self, pool: AsyncConnectionPool[Connection], connections: int = CONNECTIONS
    ) -> None:
        self._pool = pool
        self._lines: dict[object, Line] = {}
        self._large: OrderedDict[object, None] = OrderedDict()
        self._outside: deque[_Outside] = deque()
        self._count = 0
        self._bytes = 0
        in_company = max(1, min(connections, pool.max_size - 1))
        alone = max(1, min(connections, pool.max_size - in_company))
        self._in_company = Lane(pool, self.offer, connections=in_company, alone=False)
        self._alone = Lane(pool, self.offer, connections=alone, alone=True)

    @classmethod
    def of(cls, pool: AsyncConnectionPool[Connection]) -> "Batches":
        """The one that all savers of this pool share."""
        batches: Batches | None = vars(pool).get(_BATCHES)
        if batches is None:
            batches = cls(pool)
            setattr(pool, _BATCHES, batches)
        return batches

    async def run(self, job: Job, outage: Outage, thread: object) -> list[DictRow]:
        """The rows of `job`, which is sent together with others, as often as its rule allows.

        Args:
            job: what to execute.
            outage: of the pool.
            thread: in whose line it stands.

        Raises:
            PoolTimeout: it could not be sent within the pool's timeout, or there was no room.
            psycopg.Error: as on a connection of its own.
        """
        await self._enter(job, thread)
        try:
            return await job.operation.run(partial(self._attempt, job), outage, self._pool)
        finally:
            self._leave(job)

    async def run_in_turn(
        self,
        operation: Operation,
        call: Callable[[], Awaitable[T]],
        outage: Outage,
        thread: object,
    ) -> T:
        """The result of `call`, which uses a connection of its own, when its turn has come.

        Raises:
            PoolTimeout: its turn did not come within the deadline.
            psycopg.Error: as without batches.
        """
        job = Job(operation, ())
        job.turn = asyncio.get_running_loop().create_future()
        await self._enter(job, thread)
        try:
            self.offer(job.line)
            await asyncio.wait({job.turn}, timeout=operation.patience())
            if not job.turn.done():
                raise self._late("its turn did not come")
            return await operation.run(call, outage, self._pool)
        finally:
            self._leave(job)

    async def _enter(self, job: Job, thread: object) -> None:
        if self._outside or not self._has_room():
            await self._wait_outside(job, thread)
        else:
            self._admit(job, thread)

    def _has_room(self) -> bool:
        return self._count < QUEUE and self._bytes < QUEUE_BYTES

    def _admit(self, job: Job, thread: object) -> None:
        self._count += 1
        self._bytes += job.size
        job.alone = job.alone or (job.is_read and thread in self._large)
        job.line = self._lines.get(thread) or self._lines.setdefault(thread, Line(thread))
        job.line.jobs.append(job)

    async def _wait_outside(self, job: Job, thread: object) -> None:
        admitted = asyncio.get_running_loop().create_future()
        place = _Outside(admitted, job, thread)
        self._outside.append(place)
        try:
            await asyncio.wait({admitted}, timeout=job.operation.remaining())
        except asyncio.CancelledError:
            if admitted.done():
                self._leave(job)
            raise
        finally:
            with suppress(ValueError):
                self._outside.remove(place)
        if not admitted.done():
            raise self._late("there was no room for it within its deadline")

    def _leave(self, job: Job) -> None:
        """It is over: done, or failed, or its caller has gone."""
        job.line.jobs.remove(job)
        self._count -= 1
        self._bytes -= job.size
        self._remember(job)
        self.offer(job.line)
        while self._outside and self._has_room():
            admitted, job, thread = self._outside.popleft()
            self._admit(job, thread)  # now, or others would take its place
            admitted.set_result(None)

    def _remember(self, job: Job) -> None:
        if max(job.size, job.found) >= _LARGE:
            self._large[job.line.thread] = None
            self._large.move_to_end(job.line.thread)
            if len(self._large) > _REMEMBERED:
                self._large.popitem(last=False)
        elif job.is_read:
            self._large.pop(job.line.thread, None)

    def offer(self, line: Line) -> None:
        """Have somebody send what stands at its head, unless it is somebody's already."""
        if line.is_busy:
            return
        if not line.jobs:
            self._lines.pop(line.thread, None)
        elif (head := line.jobs[0]).turn:
            if not head.turn.done():
                head.turn.set_result(None)
        elif head.wants_to_be_sent():
            line.is_busy = True
            (self._alone if head.alone else self._in_company).add(line)

    async def _attempt(self, job: Job) -> list[DictRow]:
        loop = asyncio.get_running_loop()
        job.backend, job.done = None, loop.create_future()
        patience = min(self._pool.timeout, job.operation.remaining())
        job.timer = loop.call_later(patience, self._expire, job)
        self.offer(job.line)
        try:
            return await job.done
        finally:
            job.timer.cancel()

    def _expire(self, job: Job) -> None:
        """It has waited as long as for a connection of its own, or its deadline has come."""
        if job.wants_to_be_sent():
            job.fail(self._late("it could not be sent"))
        elif left := job.operation.remaining():
            job.timer = asyncio.get_running_loop().call_later(left, self._expire, job)
        else:
            job.lose(psycopg.OperationalError("no answer within the deadline"))

    def _late(self, reason: str) -> PoolTimeout:
        error = PoolTimeout(
            f"{reason}: {self._count} operations with {self._bytes / 1e6:.1f} MB are in line"
        )
        if isinstance(self._pool, ManagedPool):
            self._pool.explain(error)
        return error


class Lane:
    """Lines whose turn it is, and the connections that serve them.

    Args:
        pool: where connections come from.
        offer: what to do with a line that has been served.
        connections: how many of them at once, not counting those whose batch is slow.
        alone: whether it is for operations that go without company.
    """

    def __init__(
        self,
        pool: AsyncConnectionPool[Connection],
        offer: Callable[[Line], None],
        *,
        connections: int,
        alone: bool,
    ) -> None:
        self._pool = pool
        self._offer = offer
        self._connections = connections
        self._is_alone = alone
        self._most = 1 if alone else _MOST
        self._ready: deque[Line] = deque()
        # Since when the batch of each is under way; None if it comes to take the next one.
        self._senders: dict[asyncio.Task[None] | None, float | None] = {}

    def add(self, line: Line) -> None:
        """It is the turn of `line`."""
        self._ready.append(line)
        self._wake()

    def _wake(self) -> None:
        """Have one more sender come, unless one does already, or there are enough."""
        if not self._ready or None in self._senders.values():
            return
        if self._quick() < self._connections:
            sender = asyncio.create_task(self._send_all(), name="lghard-batches")
            self._senders[sender] = None
            sender.add_done_callback(self._end)

    def _quick(self) -> int:
        """Senders whose batch is not slow."""
        now = monotonic()
        return sum(since is None or now - since < _SLOW for since in self._senders.values())

    def _end(self, sender: asyncio.Task[None]) -> None:
        del self._senders[sender]
        self._wake()

    async def _send_all(self) -> None:
        while self._ready and self._quick() <= self._connections:
            try:
                async with self._pool.connection() as conn:
                    await self._send_some(conn)
            except (PoolTimeout, psycopg.errors.ReadOnlySqlTransaction):
                pass  # those who have waited too long know it, and the pool knows its standbys
            except psycopg.Error as error:
                self._refuse(error)

    async def _send_some(self, conn: Connection) -> None:
        for _ in range(_ROUNDS):
            if conn.closed or not self._ready or self._pool._waiting:
                break
            if batch := self._take(Backend.of(conn)):
                await self._send(conn, batch)

    def _take(self, backend: Backend) -> list[Job]:
        """The next batch: of each line, what stands at its head and may go together."""
        batch: list[Job] = []
        size = 0
        while self._ready and len(batch) < self._most and size < _LARGE:
            line = self._ready.popleft()
            taken = len(batch)
            for job in line.jobs:
                if len(batch) == self._most or size >= _LARGE or not self._fits(job):
                    break
                job.backend = backend
                size += job.size
                batch.append(job)
            if len(batch) == taken:  # they have left, or what is first now belongs elsewhere
                self._release(line)
        return batch

    def _fits(self, job: Job) -> bool:
        return job.wants_to_be_sent() and job.alone is self._is_alone

    async def _send(self, conn: Connection, batch: Sequence[Job]) -> None:
        sender = asyncio.current_task()
        self._senders[sender] = monotonic()
        timer = asyncio.get_running_loop().call_later(_SLOW, self._wake)
        self._wake()
        try:
            await execute(conn, batch)
        finally:
            timer.cancel()
            self._senders[sender] = None
            for line in dict.fromkeys(job.line for job in batch):
                self._release(line)

    def _release(self, line: Line) -> None:
        line.is_busy = False
        self._offer(line)

    def _refuse(self, error: psycopg.Error) -> None:
        """There will be no connection: tell all who are waiting for one."""
        while self._ready:
            line = self._ready.popleft()
            for job in line.jobs:
                if job.wants_to_be_sent():
                    job.fail(_copy(error))
            self._release(line)


async def execute(conn: Connection, batch: Sequence[Job]) -> None:
    """Execute the operations in one round trip, or in a few where one fails; each hears for itself.

    Raises:
        psycopg.errors.ReadOnlySqlTransaction: the server has become a standby.
    """
    began = monotonic()
    patience = max(job.operation.attempt_time() for job in batch)
    try:
        with abort_after(conn, patience):
            settled = await _settled(conn, batch)
            await conn.commit()  # what asking has begun, or nothing: a batch is a transaction
            if settled and not await _execute_together(conn, settled):
                await _execute_each(conn, settled)
    except psycopg.errors.ReadOnlySqlTransaction:
        conn.pgconn.finish()  # the pool must replace it
        for job in batch:
            job.put_off()  # who has not been told yet has not been sent
        raise
    except psycopg.Error as loss:
        for job in batch:
            if monotonic() - began >= patience:
                job.operation.take_longer()
            job.lose(loss)
    finally:
        for job in batch:
            job.lose(psycopg.OperationalError("what sends the operations has been cancelled"))


async def _settled(conn: Connection, batch: Sequence[Job]) -> list[Job]:
    """Those of which no earlier attempt can still be at work."""
    settled = []
    held: set[Line] = set()
    for job in batch:
        if job.line in held:  # what stands before it will be tried again
            job.put_off()
            continue
        try:
            await job.operation.settle(conn)
        except (StillAtWork, PoolerInBetween) as error:
            job.fail(error)
            held.add(job.line)
        else:
            settled.append(job)
    return settled


async def _execute_together(conn: Connection, jobs: Sequence[Job]) -> bool:
    """Whether they could be executed as one transaction; if not, none was.

    What cannot even be sent is left out of it.
    """
    segments = [Segment(job.statements) for job in jobs]
    if len(jobs) == 1:
        await send_segments(conn, [segments])
        _tell(conn, jobs[0], segments[0])
        _refuse_standby(segments)
        return True
    await send_segments(conn, [[Segment([_IN_COMPANY]), *segments]])
    if not any(segment.is_done for segment in segments):
        return False
    for job, segment in zip(jobs, segments, strict=True):
        _tell(conn, job, segment)
    return True


async def _execute_each(conn: Connection, jobs: Sequence[Job]) -> None:
    """Execute each as a transaction of its own: first the first one of each line, and so on.

    Where one will be tried again, those behind it in its line wait for that.
    """
    while jobs:
        heads = list({job.line: job for job in reversed(jobs)}.values())
        segments = [Segment([_IN_COMPANY, *job.statements]) for job in heads]
        try:
            await send_segments(conn, [[segment] for segment in segments])
        finally:
            held = {
                job.line
                for job, segment in zip(heads, segments, strict=True)
                if not _is_over(conn, job, segment)
            }
        _refuse_standby(segments)
        jobs = _not_held(held, [job for job in jobs if job not in heads])


def _is_over(conn: Connection, job: Job, segment: Segment) -> bool:
    """Whether it will not be tried again, as far as it has heard."""
    if isinstance(segment.error, psycopg.errors.LockNotAvailable):
        job.alone = True
        job.put_off()
        return False
    _tell(conn, job, segment)
    return not (segment.error and is_transient(segment.error))


def _not_held(held: AbstractSet[Line], jobs: Sequence[Job]) -> list[Job]:
    """Those of `jobs` whose line goes on; the others are put off."""
    for job in jobs:
        if job.line in held:
            job.put_off()
    return [job for job in jobs if job.line not in held]


def _refuse_standby(segments: Sequence[Segment]) -> None:
    """Tell the pool, too, where a failover has left the connection with a standby."""
    for segment in segments:
        if isinstance(segment.error, psycopg.errors.ReadOnlySqlTransaction):
            raise segment.error


def _tell(conn: Connection, job: Job, segment: Segment) -> None:
    """What has become of it; nothing, if nobody knows."""
    if segment.error:
        job.fail(segment.error)
    elif segment.is_done and not job.is_read:
        job.answer([])
    elif segment.is_done and not conn.closed:
        rows = rows_of(conn, segment.results[-1])
        job.found = weight(rows)
        job.answer(rows)


def weight(value: object) -> int:
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


def _copy(error: psycopg.Error) -> psycopg.Error:
    """Another one like `error`: each of those who get it adds notes of its own."""
    other = copy(error)
    other.__cause__, other.__notes__ = error.__cause__, [*getattr(error, "__notes__", [])]
    return other
