"""What one event loop does about leases: it asks the database, on connections of its own.

Others look here, too: whether the loop still answers, and to have something done in it.
"""

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from contextvars import Context
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar, Union
from weakref import WeakKeyDictionary

import psycopg
from psycopg import AsyncConnection, errors
from psycopg.rows import DictRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from lghard.postgres import lease_rows
from lghard.postgres.fencing import ThreadLease, clock
from lghard.postgres.home import Here, Place
from lghard.postgres.io_thread import countdown
from lghard.postgres.lease_database import databases
from lghard.postgres.lease_keeping import logger, words
from lghard.postgres.lease_line import Lines, Turn
from lghard.postgres.liveness import abort_after
from lghard.postgres.operating import Operating, fetch_all
from lghard.postgres.statements import Statement
from lghard.resilience import is_transient

if TYPE_CHECKING:
    from lghard.postgres.saver import HardenedAsyncPostgresSaver

T = TypeVar("T")
Connection = AsyncConnection[DictRow]
Pool = AsyncConnectionPool[Connection]
Source = Union[Pool, "HardenedAsyncPostgresSaver"]

ABSENT: Final = 2.0
"""Seconds without an answer after which an event loop counts as blocked."""

RELEASE_TIMEOUT: Final = 5.0
"""Seconds that giving the lock back may take; if it fails, the lock expires."""

LEAST: Final = 1.0
"""Seconds that one statement gets even if the time is over."""

# Seconds in which the server says who has a lock; what takes longer is tried on another connection.
_ANSWER = 5.0

_DESKS: Final = "_lghard_leases"


class Desk:
    """An event loop, and a place where its connections to a database are.

    Attributes:
        lines: of that database, as soon as it has said which one it is.
        name: the application_name that others see there.
    """

    lines: Lines
    name: str = ""

    def __init__(self, place: Place) -> None:
        self.loop = asyncio.get_running_loop()
        self.thread = threading.current_thread()
        self.renewing: asyncio.Task[None] | None = None
        self.has_failed = False
        self._place = place
        self._tasks: set[asyncio.Task[Any]] = set()
        self._finding: asyncio.Task[None] | None = None
        self._pinged_at: float | None = None

    @classmethod
    def of(cls, source: Source) -> "Desk":
        """The one of the running event loop."""
        if isinstance(source, AsyncConnectionPool):
            place: Place = Here(source)
        elif isinstance(source, Operating):
            place = source._place
        else:
            raise TypeError(
                "thread_lock() needs a pool, or a checkpointer of lghard's, not "
                f"{type(source).__name__}"
            )
        anchor = place.pool if isinstance(place, Here) else place
        loop = asyncio.get_running_loop()
        # Without a lock, which a fork might leave locked: each step is one, and to its own loop.
        desks: WeakKeyDictionary[asyncio.AbstractEventLoop, Desk]
        desks = vars(anchor).setdefault(_DESKS, WeakKeyDictionary())
        if loop not in desks:
            _forget_closed(desks)
            desks[loop] = cls(place)
        desks[loop].thread = threading.current_thread()
        return desks[loop]

    # Which database it is

    async def find(self, left: Callable[[], float]) -> None:
        """Know the lines of the database; those who come meanwhile keep their order."""
        while not hasattr(self, "lines"):
            if self._finding is None or self._finding.done():
                self._finding = self.start(self._find(max(left(), LEAST)))
                self._finding.add_done_callback(_look_at)
            finding = self._finding
            await asyncio.wait({finding}, timeout=max(left(), LEAST))
            if not finding.done():
                raise PoolTimeout("the database has not said in time which one it is")
            error = finding.exception()
            if error and (not is_transient(error) or left() <= 0):
                raise error.with_traceback(None)
            if error:
                await asyncio.sleep(0.1)

    async def _find(self, seconds: float) -> None:
        try:
            while (found := await self._look(seconds))[0]["leases"] is None:
                await self.provide(seconds)
        except psycopg.Error as error:
            error.add_note("lghard: thread_lock() was trying to find out which database it is in")
            raise
        row, where = found
        table = row["database"], row["leases"]
        self.name = row["name"]
        self.lines = databases.lines([(*table, row["started"]), (*table, *where)])

    async def _look(self, seconds: float) -> tuple[DictRow, Sequence[Hashable]]:
        async def look(conn: Connection) -> tuple[DictRow, Sequence[Hashable]]:
            ((row,),) = await _fetch(conn, [lease_rows.WHERE])
            where = conn.info
            return row, (where.hostaddr or where.host, where.port, where.dbname)

        return await self._borrow(look, seconds, _ANSWER)

    async def provide(self, seconds: float) -> None:
        """Create the table, if this role may."""
        if step := await self._borrow(lease_rows.provide, seconds, seconds):
            raise lease_rows.not_allowed(step)

    # Asking

    async def ask(
        self, statements: Sequence[Statement], seconds: float, answer_within: float = _ANSWER
    ) -> tuple[float, list[list[DictRow]]]:
        """When `statements` were sent, and their rows.

        Args:
            statements: they are executed all or none.
            seconds: how long it may take, with the wait for a connection.
            answer_within: how long the server may take.
        """

        async def ask(conn: Connection) -> tuple[float, list[list[DictRow]]]:
            return clock(), await _fetch(conn, statements)

        return await self._borrow(ask, seconds, answer_within)

    async def _borrow(
        self, work: Callable[[Connection], Awaitable[T]], seconds: float, answer_within: float
    ) -> T:
        async def borrow(pool: Pool) -> T:
            async with pool.connection(timeout=seconds) as conn:
                with abort_after(conn, min(seconds, answer_within)):
                    return await work(conn)

        return await self._place.run(borrow, timeout=lambda: seconds, patience=countdown(seconds))

    async def insist(
        self, statements: Sequence[Statement]
    ) -> tuple[float, list[list[DictRow]], bool]:
        """As `ask`, repeated for a while; and whether no answer was lost before."""
        ends_at, is_sure = monotonic() + RELEASE_TIMEOUT, True
        while True:
            try:
                answer = await self.ask(statements, max(ends_at - monotonic(), LEAST))
            except errors.LockNotAvailable:  # a write is under way
                if monotonic() >= ends_at:
                    raise
            except psycopg.Error as error:
                if not is_transient(error) or monotonic() >= ends_at:
                    raise
                is_sure = False
            else:
                return *answer, is_sure
            await asyncio.sleep(random.uniform(0.01, 0.1))  # noqa: S311 - jitter

    def start(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """In nobody's context, and to its end if whoever waits for it is cancelled."""
        task = self.loop.create_task(work, name="lghard-leases", context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def give_up(self, turn: Turn, lease: ThreadLease) -> None:
        """Give back what may have been given to somebody who had gone."""
        try:
            await self.insist(lease_rows.release(lease.thread_id, lease._owner))
        except errors.UndefinedTable:
            pass  # nor has it been given anything
        except Exception as error:  # a pool's own callbacks may raise anything
            say_it_expires(lease, error)
        else:
            turn.desk.lines.clear(turn, lease)

    def is_renewing(self) -> bool:
        """Whether a renewal is under way; it may have been cancelled before it began."""
        return self.renewing is not None and not self.renewing.done()

    # From any thread

    def post(self, callback: Callable[..., object], *args: object) -> bool:
        """Have something called in the loop; False if that has ended."""
        try:
            self.loop.call_soon_threadsafe(callback, *args, context=Context())
        except RuntimeError:
            return False
        return True

    def wake(self, turn: Turn) -> bool:
        """Tell a turn of this loop that something has happened to it; False if that has ended."""
        if asyncio._get_running_loop() is self.loop:
            turn.wake()
            return True
        return self.post(turn.wake)

    def post_give_up(self, turn: Turn, lease: ThreadLease) -> bool:
        """Have the loop give a lease back for another one; False if that has ended."""
        return self.post(lambda: self.start(self.give_up(turn, lease)))

    def ping(self) -> None:
        """Ask the loop whether it is blocked."""
        if self._pinged_at is None:
            self._pinged_at = monotonic()
            self.post(self._pong)

    def _pong(self) -> None:
        self._pinged_at = None

    def is_present(self) -> bool:
        """Whether the loop is not blocked, as far as anybody knows."""
        pinged_at = self._pinged_at
        is_late = pinged_at is not None and monotonic() - pinged_at > ABSENT
        return not (is_late or self.is_over())

    def is_over(self) -> bool:
        """Whether the loop will never run again: closed, or left behind by its thread's end."""
        return self.loop.is_closed() or not (self.loop.is_running() or self.thread.is_alive())

    def can_ask(self) -> bool:
        """Whether it may have connections."""
        return not (self.is_over() or self._place.is_closed())


async def _fetch(conn: Connection, statements: Sequence[Statement]) -> list[list[DictRow]]:
    return await fetch_all(conn, statements, pipelined=psycopg.capabilities.has_pipeline())


def _look_at(finding: asyncio.Task[None]) -> None:
    """So that asyncio does not report its error: whoever has waited for it may be gone."""
    if not finding.cancelled():
        finding.exception()


def _forget_closed(desks: "WeakKeyDictionary[asyncio.AbstractEventLoop, Desk]") -> None:
    """A desk keeps its event loop, although nothing else does."""
    for ref in desks.keyrefs():  # a copy: another loop may come meanwhile
        loop = ref()
        if loop and loop.is_closed():
            desks.pop(loop, None)


def say_it_expires(lease: ThreadLease, error: Exception) -> None:
    """What becomes of a lease that could not be given back."""
    logger.warning(
        "the lock of thread %r could not be given back, and is free in %g s at most: %s",
        *(lease.thread_id, lease._ttl, words(error)),
    )
