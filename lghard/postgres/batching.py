"""Many operations in one round trip: what concurrent runs read and write travels together.

A connection is busy for a round trip, whatever it carries. Operations that come while it is under
way wait for the next one and share it: nothing waits when there is nothing to wait for, and the
busier the application, the larger its batches.

The operations of a thread stand in line. They are sent in order, and while one of them is under
way, or waits to be tried again, those behind it wait.

Deadlines are for what does not move. When ten thousand conversations begin at once, the last of
them stands in line for as long as the others take, and that is no failure: while those before it
are served, it waits on.
"""

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from functools import partial
from time import monotonic
from typing import Final, TypeVar

import psycopg
from psycopg.rows import DictRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from lghard.postgres.batch import LARGE, Job, copy_of, execute
from lghard.postgres.pool import ManagedPool
from lghard.postgres.retries import Operation, Outage, Repeat
from lghard.postgres.settling import Attempt, Connection
from lghard.postgres.statements import Statement
from lghard.postgres.voiding import attempt_on

T = TypeVar("T")

CONNECTIONS: Final = 4
"""Connections that batches use at once, at most: with more of them, batches are smaller."""

QUEUE: Final = 20_000
"""Operations that may stand in line; more of them wait outside until there is room."""

QUEUE_BYTES: Final = 256_000_000
"""Bytes that they may have together; the last one to come may exceed it."""

# Operations in one batch at most.
_MOST: Final = 64

# Threads of which is remembered whether what was last read was large: then it is read alone.
_REMEMBERED: Final = 20_000

# Batches after which a connection goes back to the pool, which may have something to do with it.
_ROUNDS: Final = 50

# Seconds after which a batch that is still under way does not count: another one may be sent.
_SLOW: Final = 0.1

# Seconds between two looks at those whose time may be over: each look is at all who wait.
_BETWEEN_LOOKS: Final = 0.05

_BATCHES: Final = "_lghard_batches"


class Line:
    """The operations of one thread, in order.

    Attributes:
        left: attempts that were lost when their callers had gone. They must not come late, after
            what follows.
        served_at: when one of them was served last.
    """

    __slots__ = ("_known", "_others_known", "is_busy", "jobs", "left", "served_at", "thread")

    def __init__(self, thread: str) -> None:
        self.thread = thread
        self.jobs: deque[Job] = deque()
        self.left: list[Attempt] = []
        self.is_busy = False  # its turn has come, or some of it is under way
        self.served_at = 0.0
        # What the jobs have been excused for already: `served_at`, and when others were served.
        self._known = 0.0
        self._others_known = 0.0

    def excuse(self, others_at: float) -> None:
        """Do not count what they have waited while others were served before them.

        That is all the time until one of this line was served, and the head's, while it waits for
        those in other lines. How long the head is under way, or stays away until it is tried again,
        counts against all of them.

        Args:
            others_at: when those were served last for whom the head waits, if it waits for any.
        """
        if self.served_at > self._known:
            self._known = self.served_at
            for job in self.jobs:
                job.excuse(0.0, self.served_at)
        if others_at > self._others_known and self.jobs:
            since = max(self._others_known, self.jobs[0].waits_since)
            self._others_known = others_at
            for job in self.jobs:
                job.excuse(since, others_at)

    def leave(self, attempt: Attempt) -> None:
        """Keep in mind that this one may still be at work, for whoever writes next."""
        if attempt not in self.left:
            self.left.append(attempt)


class Batches:
    """The lines of a pool, in an event loop.

    Args:
        pool: where connections come from.
        connections: how many of them at once. One at least is left for those that are sent alone.
    """

    def __init__(
        self, pool: AsyncConnectionPool[Connection], connections: int = CONNECTIONS
    ) -> None:
        self._pool = pool
        self._lines: dict[str, Line] = {}
        self._is_large: OrderedDict[str, bool] = OrderedDict()
        self._outside: dict[Job, tuple[str, asyncio.Future[None]]] = {}
        self._count = 0
        self._bytes = 0
        # One for all, for the next one whose time is over: nearly all are answered long before.
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = math.inf
        in_company = max(1, min(connections, pool.max_size - 1))
        alone = max(1, min(connections, pool.max_size - in_company))
        self._in_company = Lane(pool, self.offer, connections=in_company, alone=False)
        self._alone = Lane(pool, self.offer, connections=alone, alone=True)

    @classmethod
    def of(cls, pool: AsyncConnectionPool[Connection]) -> "Batches":
        """The one that all savers of this pool share, as long as the event loop runs.

        Raises:
            ForeignLoopError: the pool belongs to another event loop.
        """
        if isinstance(pool, ManagedPool):
            pool._check_loop()  # before anybody there could answer to this one
        loop = asyncio.get_running_loop()
        batches: dict[asyncio.AbstractEventLoop, Batches] = vars(pool).setdefault(_BATCHES, {})
        if loop not in batches:
            for other in [each for each in batches if each.is_closed()]:
                del batches[other]
            batches[loop] = cls(pool)
        return batches[loop]

    async def run(self, job: Job, outage: Outage, thread: str) -> list[DictRow]:
        """The rows of `job`, which is sent together with others, as often as its rule allows.

        Args:
            job: what to execute.
            outage: of the pool.
            thread: in whose line it stands.

        Raises:
            PoolTimeout: it could not be sent within the pool's timeout, or there was no room.
            psycopg.Error: as on a connection of its own.
        """
        if job.scale and thread not in self._is_large:
            if self._count:
                return await self._weigh_and_run(job, job.scale, outage, thread)
            job.alone = True
        return await self._run(job, outage, thread)

    async def _weigh_and_run(
        self, job: Job, scale: Statement, outage: Outage, thread: str
    ) -> list[DictRow]:
        """As `_run`, for a thread of unknown size: nobody has to wait for a large one."""
        rows = await self._run(Job(job.operation, [scale], is_read=True), outage, thread)
        if not rows:  # nor are there any to be read
            return rows
        self._remember(thread, is_large=rows[0]["bytes"] >= LARGE)
        return await self._run(job, outage, thread)

    async def _run(self, job: Job, outage: Outage, thread: str) -> list[DictRow]:
        job.line = None  # of another pool, which has moved
        try:
            await self._enter(job, thread)
            return await job.operation.run(partial(self._attempt, job), outage, self._pool)
        finally:
            self._leave(job)

    async def run_in_turn(
        self,
        operation: Operation,
        call: Callable[[], Awaitable[T]],
        outage: Outage,
        thread: str,
    ) -> T:
        """The result of `call`, which takes a connection of its own, when its turn has come.

        What comes later waits for it, unless it is a read.

        Args:
            operation: how often it is repeated.
            call: what to execute.
            outage: of the pool.
            thread: in whose line it stands.

        Raises:
            PoolTimeout: its turn did not come within the deadline.
            psycopg.Error: as without batches.
        """
        job = Job(operation, ())
        job.turn = asyncio.get_running_loop().create_future()
        try:
            await self._wait_in_line(job, job.turn, thread)
            if operation.rule is not Repeat.FREELY:
                result = await operation.run(call, outage, self._pool)
                job.serve()
                return result
        finally:
            self._leave(job)
        return await operation.run(call, outage, self._pool)

    async def _wait_in_line(self, job: Job, turn: asyncio.Future[None], thread: str) -> None:
        await self._enter(job, thread)
        if not await self._is_told(turn, job):
            raise self._late(
                "its turn did not come within its deadline",
                "what stands before it in this thread is not over: look what that waits for, "
                "or raise the deadline",
            )

    async def _enter(self, job: Job, thread: str) -> None:
        if self._has_room() and not self._outside:
            self._admit(job, thread)
        else:
            await self._wait_outside(job, thread)

    def _has_room(self) -> bool:
        return self._count < QUEUE and self._bytes < QUEUE_BYTES

    def _admit(self, job: Job, thread: str) -> None:
        self._count += 1
        self._bytes += job.size
        job.alone = job.alone or (job.is_read and self._is_large.get(thread, False))
        job.line = self._lines.get(thread) or self._lines.setdefault(thread, Line(thread))
        job.line.jobs.append(job)
        self.offer(job.line)

    async def _wait_outside(self, job: Job, thread: str) -> None:
        admitted = asyncio.get_running_loop().create_future()
        self._outside[job] = thread, admitted
        try:
            is_admitted = await self._is_told(admitted, job)
        finally:
            self._outside.pop(job, None)
        if not is_admitted:
            raise self._explained(
                "there was no room for it within its deadline",
                "let fewer runs go on at once, or look for what holds up the database",
            )

    async def _is_told(self, told: asyncio.Future[None], job: Job) -> bool:
        """Whether it was told, as soon as it is: at its deadline, or later while others are."""
        job.waits_since = monotonic()
        while not told.done() and (left := self._time_left(job)) > 0:
            await asyncio.wait({told}, timeout=left)
        self._excuse(job)
        return told.done()

    def _time_left(self, job: Job) -> float:
        """Seconds that it may wait still: for its turn, to be sent, or for an answer."""
        self._excuse(job)
        left = job.operation.remaining()
        if job.is_under_way():
            return left
        # To be sent, as long as for a connection of its own.
        longest = self._pool.timeout if job.wants_to_be_sent() else job.operation.deadline
        return min(left, job.waits_since + longest - monotonic())

    def _excuse(self, job: Job) -> None:
        """Do not count what it has waited while others were served before it."""
        if not job.line:
            job.excuse(0.0, max(self._in_company.served_at, self._alone.served_at))
        else:
            head = job.line.jobs[0]
            lane = self._alone if head.alone else self._in_company
            job.line.excuse(lane.served_at if head.wants_to_be_sent() else 0.0)

    def _leave(self, job: Job) -> None:
        """It is over: done, or failed, or its caller has gone."""
        if job.line:
            job.line.jobs.remove(job)
            self._count -= 1
            self._bytes -= job.size
            if (is_large := max(job.size, job.found) >= LARGE) or job.is_read:
                self._remember(job.line.thread, is_large=is_large)
            self.offer(job.line)
        while self._outside and self._has_room():
            next_one = next(iter(self._outside))
            thread, admitted = self._outside.pop(next_one)
            self._excuse(next_one)
            self._admit(next_one, thread)
            admitted.set_result(None)

    def _remember(self, thread: str, *, is_large: bool) -> None:
        self._is_large[thread] = is_large
        self._is_large.move_to_end(thread)
        if len(self._is_large) > _REMEMBERED:
            self._is_large.popitem(last=False)

    def offer(self, line: Line) -> None:
        """Have somebody send what stands at its head, unless it is somebody's already."""
        if line.is_busy:
            return
        if not line.jobs:
            if not line.left or len(self._lines) > QUEUE:
                self._lines.pop(line.thread, None)
        elif (head := line.jobs[0]).turn:
            if not head.turn.done():
                head.turn.set_result(None)
        elif head.wants_to_be_sent():
            line.is_busy = True
            (self._alone if head.alone else self._in_company).add(line)

    async def _attempt(self, job: Job) -> list[DictRow]:
        done: asyncio.Future[list[DictRow]] = asyncio.get_running_loop().create_future()
        job.begin(done)
        job.waits_since = monotonic()
        job.expires_at = job.waits_since + min(self._pool.timeout, job.operation.remaining())
        if job.expires_at < self._rings_at:
            self._set_timer(job.expires_at)
        if job.line:
            self.offer(job.line)
        return await done

    def _set_timer(self, at: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._rings_at = at
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(at - monotonic(), self._ring, context=Context())

    def _ring(self) -> None:
        """Look for those whose time is over, and have it ring again for the others."""
        self._timer, self._rings_at = None, math.inf
        now = monotonic()
        waiting = [job for line in self._lines.values() for job in line.jobs if job.is_awaited()]
        for job in waiting:
            if job.expires_at <= now:
                job.expires_at = now + self._time_left(job)
        if later := [job.expires_at for job in waiting if job.expires_at > now]:
            self._set_timer(max(min(later), now + _BETWEEN_LOOKS))
        for job in waiting:
            if job.expires_at <= now:
                self._expire(job)

    def _expire(self, job: Job) -> None:
        """Its time is over."""
        if job.wants_to_be_sent():
            step = "see what lghard notes on the pool"
            job.fail(self._explained("it could not be sent", step))
        else:
            job.give_up(
                psycopg.OperationalError(
                    "no answer within the deadline: raise it, or look for what the server is doing "
                    "(pg_stat_activity)"
                )
            )

    def _late(self, reason: str, step: str) -> PoolTimeout:
        return PoolTimeout(
            f"{reason}: {self._count} operations with {self._bytes / 1e6:.1f} MB are in line; "
            f"{step}"
        )

    def _explained(self, reason: str, step: str) -> PoolTimeout:
        """One that may be for want of a connection."""
        error = self._late(reason, step)
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

    Attributes:
        served_at: when one of the operations was served last.
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
        self.served_at = 0.0
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
        if self._quick() < self._connections and not self._is_full():
            # In nobody's context: it serves all, and may live long. With eager tasks it has begun.
            sender = asyncio.create_task(self._send_all(), name="lghard-batches", context=Context())
            self._senders.setdefault(sender, None)
            sender.add_done_callback(self._end)

    def _quick(self) -> int:
        """Senders whose batch is not slow."""
        now = monotonic()
        return sum(since is None or now - since < _SLOW for since in self._senders.values())

    def _is_full(self) -> bool:
        """What goes alone may take long, and leaves one connection to those who do not."""
        return self._is_alone and len(self._senders) >= max(1, self._pool.max_size - 1)

    def _end(self, sender: asyncio.Task[None]) -> None:
        del self._senders[sender]
        self._wake()

    async def _send_all(self) -> None:
        while self._ready and self._quick() <= self._connections:
            try:
                async with self._pool.connection() as conn:
                    await self._send_some(conn)
            except PoolTimeout:
                self._forget()  # those who have waited too long know it
            except psycopg.errors.ReadOnlySqlTransaction:
                pass  # the pool knows its standbys
            except psycopg.Error as error:
                self._refuse(error)
            except Exception as error:  # a pool of another class may raise anything
                self._refuse(error)
                raise  # for asyncio to report, should nobody be waiting

    async def _send_some(self, conn: Connection) -> None:
        for _ in range(_ROUNDS):
            if batch := self._take(attempt_on(conn, self._pool)):
                await self._send(conn, batch)
            # Not before the first one: two who yield to each other would never send anything.
            if conn.closed or not self._ready or self._pool._waiting:
                break

    def _take(self, attempt: Attempt) -> list[Job]:
        """The next batch: of each line, what stands at its head and may go together."""
        batch: list[Job] = []
        size = 0
        while self._ready and len(batch) < self._most and size < LARGE:
            line = self._ready.popleft()
            line.excuse(self.served_at)
            taken = len(batch)
            for job in line.jobs:
                if len(batch) == self._most or size >= LARGE or not self._fits(job):
                    break
                job.attempt = attempt
                size += job.size
                batch.append(job)
            if len(batch) == taken:  # they have left, or what is first now belongs elsewhere
                self._release(line)
        return batch

    def _fits(self, job: Job) -> bool:
        return job.wants_to_be_sent() and job.alone is self._is_alone

    async def _send(self, conn: Connection, batch: Sequence[Job]) -> None:
        lines = {job.line: None for job in batch if job.line}  # in order, each once
        sender = asyncio.current_task()
        self._senders[sender] = monotonic()
        timer = asyncio.get_running_loop().call_later(_SLOW, self._wake)
        self._wake()
        try:
            await execute(conn, batch, self._pool)
        finally:
            timer.cancel()
            self._senders[sender] = None
            if any(job.is_served for job in batch):
                self.served_at = monotonic()
            for line in lines:
                self._release(line)

    def _release(self, line: Line) -> None:
        line.is_busy = False
        self._offer(line)

    def _forget(self) -> None:
        """Drop the lines that everybody has left: in a long outage there are many."""
        for _ in range(len(self._ready)):
            line = self._ready.popleft()
            if line.jobs:
                self._ready.append(line)
            else:
                self._release(line)

    def _refuse(self, error: Exception) -> None:
        """There will be no connection: tell all who are waiting for one."""
        while self._ready:
            line = self._ready.popleft()
            for job in line.jobs:
                if job.wants_to_be_sent():
                    job.fail(copy_of(error) if isinstance(error, psycopg.Error) else error)
            self._release(line)
