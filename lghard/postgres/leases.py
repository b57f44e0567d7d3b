"""One writer per thread, in however many tasks, event loops, processes and replicas.

Whoever writes has a lease: a row in a table, with an epoch, an owner and an expiry that is put off
again and again (see lease_rows.py). It costs no connection while it is held. A holder that shows no
sign of life, because it is frozen or cut off, loses it; nobody can tell it so, but what it writes
checks the epoch in the same transaction, and is refused.
"""

import asyncio
import logging
import math
import os
import random
import socket
import threading
from collections import deque
from collections.abc import Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from itertools import count
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from psycopg import AsyncConnection, errors
from psycopg.rows import DictRow
from psycopg_pool import AsyncConnectionPool
from typing_extensions import override

from lghard.errors import SchemaSetupError, ThreadBusyError
from lghard.postgres import lease_rows
from lghard.postgres.fencing import RELEASED, TAKEN_OVER, ThreadLease, clock, expired, inside
from lghard.postgres.home import Here, Place
from lghard.postgres.lease_rows import TABLE, Row, hand_over, release, renew, row_of
from lghard.postgres.liveness import abort_after
from lghard.postgres.operating import Operating, fetch_all
from lghard.postgres.statements import Statement
from lghard.resilience import is_transient

if TYPE_CHECKING:
    from lghard.postgres.saver import HardenedAsyncPostgresSaver

T = TypeVar("T")

logger = logging.getLogger("lghard.postgres")

Pool = AsyncConnectionPool[AsyncConnection[DictRow]]

TIMEOUT: Final = 30.0
"""Seconds that somebody waits for a thread's lock."""

TTL: Final = 30.0
"""Seconds without a sign of life after which a holder loses the lock."""

POLL: Final = 0.25
"""Seconds between two looks at a lock that another process has, at most."""

RELEASE_TIMEOUT: Final = 5.0
"""Seconds that giving the lock back may take; if it fails, the lock expires."""

_FIRST_POLL = 0.01

# Renewals in the time in which a lease expires: two may fail.
_RENEWALS = 3

# Seconds that one statement gets even if the time is over, and after a renewal that failed.
_LEAST = 1.0
_AGAIN = 0.5

# Seconds in which the server says who has a lock; what takes longer is tried on another connection.
_ANSWER = 5.0

_LEASES: Final = "_lghard_leases"


class Guard:
    """Cancels the task of a block, and knows its own cancellation from others'.

    As `asyncio.timeout` does. It strikes from the event loop's callbacks only, while the task waits
    for something; so the cancellation has always arrived when the block ends.
    """

    def __init__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("thread_lock() must be used in a task")
        self._task = task
        self._before = task.cancelling()
        self._is_open, self._has_struck = True, False

    def strike(self) -> None:
        """Cancel the task, if it is still in its block."""
        if self._is_open and not self._has_struck:
            self._has_struck = True
            self._task.cancel()

    def close(self, error: BaseException | None) -> bool:
        """The block ends with `error`; whether that is our cancellation, and nobody else's."""
        self._is_open = False
        if not self._has_struck:
            return False
        return self._task.uncancel() <= self._before and isinstance(error, asyncio.CancelledError)


class Turn:
    """Somebody who wants a thread's lock, in line with others of this event loop.

    Attributes:
        lease: what it will have.
        come: its turn has come: to take the lock, or it has been handed over.
    """

    def __init__(self, lease: ThreadLease, timeout: float) -> None:
        self.lease = lease
        self.come: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.began = monotonic()
        self._ends_at = self.began + timeout

    def left(self) -> float:
        """Seconds until its deadline."""
        return max(0.0, self._ends_at - monotonic())

    def begin(self) -> None:
        """It comes now."""
        if not self.come.done():
            self.come.set_result(None)


class Line:
    """Who has a thread's lock in this event loop, and who waits for it, in order.

    Attributes:
        seen: who had it when somebody looked last.
        rests_until: it is left to others so long, who have waited for it in other processes.
    """

    def __init__(self, thread_id: str) -> None:
        self.thread_id = thread_id
        self.lease: ThreadLease | None = None
        self.turns: deque[Turn] = deque()
        self.seen: Row | None = None
        self.rests_until = 0.0

    def call_next(self) -> None:
        """It is free, as far as this event loop is concerned."""
        self.lease = None
        if self.turns:
            self.turns[0].begin()

    def rest(self) -> float:
        """Seconds to leave it to others yet."""
        return max(0.0, self.rests_until - monotonic())


class Leases:
    """The leases of one event loop in one database, and what keeps them alive.

    There is no task that could be lost: a timer starts a short one for each renewal.

    Args:
        place: where the connections are.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._lines: dict[str, Line] = {}
        self._held: set[ThreadLease] = set()  # not by epoch: a failover may bring one again
        self._timer: asyncio.TimerHandle | None = None
        self._next_at = self._renew_at = math.inf
        self._renewing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_away = self._is_tidy = False

    @classmethod
    def of(cls, source: "Pool | HardenedAsyncPostgresSaver") -> "Leases":
        """Those of the running event loop."""
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
        with _lock:
            of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Leases]
            of_loops = vars(anchor).setdefault(_LEASES, WeakKeyDictionary())
            if loop not in of_loops:
                _forget_closed(of_loops)
                of_loops[loop] = cls(place)
            return of_loops[loop]

    # Acquiring

    async def acquire(self, thread_id: str, *, timeout: float, ttl: float) -> ThreadLease:
        """The lease of that thread, when its turn has come.

        Raises:
            ThreadBusyError: it has not come within `timeout`.
            RuntimeError: the caller has it already.
        """
        line = self._lines.setdefault(thread_id, Line(thread_id))
        _refuse_again(line.lease)
        turn = Turn(ThreadLease(thread_id, ttl), timeout)
        line.turns.append(turn)
        try:
            await self._wait(line, turn)
        except BaseException:  # a cancellation, too: who leaves stands in nobody's way
            line.turns.remove(turn)
            self._leave(line, turn)
            raise
        line.turns.remove(turn)
        return turn.lease

    async def _wait(self, line: Line, turn: Turn) -> None:
        if line.lease is None and line.turns[0] is turn:
            turn.begin()
        await asyncio.wait({turn.come}, timeout=turn.left())
        if not turn.come.done():
            raise _busy(turn, line.lease._row if line.lease else line.seen)
        if line.lease is None:
            await asyncio.sleep(min(line.rest(), turn.left()))
            await self._take(line, turn)
            line.lease = turn.lease
            self._hold(turn.lease)
        turn.lease._check()  # it may have been handed over to a process that stood still

    def _leave(self, line: Line, turn: Turn) -> None:
        if line.lease is turn.lease:
            self._start(self._release(line, turn.lease))
            return
        if turn.lease._is_asked_for:
            self._start(self._give_up(turn.lease))
        if line.lease is None and turn.come.done():
            line.call_next()
        self._forget_if_empty(line)

    def _forget_if_empty(self, line: Line) -> None:
        if line.lease or line.turns or self._lines.get(line.thread_id) is not line:
            return
        if rest := line.rest():  # whoever comes back at once must know of it
            asyncio.get_running_loop().call_later(rest, self._forget_if_empty, line)
        else:
            del self._lines[line.thread_id]

    async def _take(self, line: Line, turn: Turn) -> None:
        """Look whether it is free, again and again, and take it."""
        pause, want = _FIRST_POLL, False
        while not turn.lease.epoch:
            await self._claim(line, turn, want=want)
            if not turn.lease.epoch:
                if turn.left() <= 0:
                    raise _busy(turn, line.seen)
                await asyncio.sleep(min(turn.left(), pause * random.uniform(0.5, 1.0)))  # noqa: S311 - jitter
                pause, want = min(2 * pause, POLL), True

    async def _claim(self, line: Line, turn: Turn, *, want: bool) -> None:
        """Take it, if it is free; whoever has it has been seen."""
        lease = turn.lease
        asking = lease_rows.claim(
            lease.thread_id,
            lease._owner,
            ttl=lease._ttl,
            process=_process(),
            want=want,
            tidy=not self._is_tidy,
        )
        lease._is_asked_for = True
        try:
            sent_at, (*_, rows) = await self._ask(asking, max(turn.left(), _LEAST))
        except (errors.LockNotAvailable, errors.SerializationFailure):
            lease._is_asked_for = False  # a write is under way, or somebody else was faster
        except errors.UndefinedTable:
            lease._is_asked_for = False
            await self._provide(max(turn.left(), _LEAST))
            await self._claim(line, turn, want=want)
        except errors.InsufficientPrivilege as error:
            lease._is_asked_for = False
            raise _not_granted(error) from error
        except psycopg.Error as error:
            if not is_transient(error) or turn.left() <= 0:
                error.add_note(f"lghard: thread_lock() was trying to lock {lease.thread_id!r}")
                raise  # what has become of it otherwise, shows when we look again
        except Exception:  # a pool's own callbacks may raise anything, before there is a connection
            lease._is_asked_for = False
            raise
        else:
            lease._is_asked_for, self._is_tidy = False, True
            line.seen = row = row_of(rows)
            if row and row.owner == lease._owner:
                lease._begin(row, sent_at)
            elif row and row.owner in {held._owner for held in inside.get() if held._is_inside}:
                raise _again(lease.thread_id)

    async def _provide(self, seconds: float) -> None:
        """Create the table, if this role may."""

        async def create(pool: Pool) -> str:
            async with pool.connection(timeout=seconds) as conn:
                with abort_after(conn, seconds):
                    return await lease_rows.provide(conn)

        if step := await self._place.run(create, timeout=lambda: seconds, patience=seconds):
            raise lease_rows.not_allowed(step)

    async def _ask(
        self, statements: Sequence[Statement], seconds: float, answer_within: float = _ANSWER
    ) -> tuple[float, list[list[DictRow]]]:
        """When `statements` were sent, and their rows.

        Args:
            statements: they are executed all or none.
            seconds: how long it may take, with the wait for a connection.
            answer_within: how long the server may take.
        """

        async def ask(pool: Pool) -> tuple[float, list[list[DictRow]]]:
            async with pool.connection(timeout=seconds) as conn:
                with abort_after(conn, min(seconds, answer_within)):
                    sent_at = clock()
                    pipelined = psycopg.capabilities.has_pipeline()
                    return sent_at, await fetch_all(conn, statements, pipelined=pipelined)

        return await self._place.run(ask, timeout=lambda: seconds, patience=seconds)

    # Releasing

    async def release(self, lease: ThreadLease) -> bool | None:
        """Give it to the next in line, or back.

        It goes on if the caller is cancelled. Who has lost it does not wait for that.

        Returns:
            whether it was still held; None if nobody knows.
        """
        is_lost = lease not in self._held
        self._held.discard(lease)
        task = self._start(self._release(self._lines[lease.thread_id], lease))
        if is_lost:
            return None
        await asyncio.wait({task})
        return None if task.cancelled() else task.result()

    async def _release(self, line: Line, lease: ThreadLease) -> bool | None:
        was_held, heir = None, None
        try:
            was_held, heir = await self._pass_on(line, lease)
        except Exception as error:  # a pool's own callbacks may raise anything
            self._say_it_expires(lease, error)
        finally:  # also if the event loop ends
            if heir is None:
                line.call_next()
            self._forget_if_empty(line)
        return was_held

    async def _pass_on(self, line: Line, lease: ThreadLease) -> tuple[bool | None, Turn | None]:
        """Whether it was still held, and who in line has it now."""
        was_held = None
        for at in count():
            self._held.discard(lease)
            heir = line.turns[0] if line.turns else None
            still_held = await self._give(line, lease, heir)
            was_held = still_held if at == 0 else was_held
            if heir is None or not heir.lease.epoch:
                break
            lease = heir.lease
            if heir in line.turns:  # nor has it gone meanwhile
                line.lease = lease
                self._hold(lease)
                heir.begin()
                return was_held, heir
        return was_held, None

    async def _give(self, line: Line, lease: ThreadLease, heir: Turn | None) -> bool | None:
        """Give it to `heir`, or where others want it, back.

        Returns:
            whether it was still held; None if an answer was lost, and so nobody knows.
        """
        if heir is None:
            giving = release(lease.thread_id, lease._owner)
            _, (_, released), is_sure = await self._insist(giving)
            _let_rest(line, released)
            return bool(released) if released or is_sure else None
        mine = heir.lease
        giving = hand_over(lease.thread_id, lease._owner, mine._owner, mine._ttl)
        mine._is_asked_for = True
        sent_at, (_, handed, released), is_sure = await self._insist(giving)
        _let_rest(line, released)
        if handed:
            mine._begin(Row(**handed[0]), sent_at)
        is_known = bool(handed or released) or is_sure
        mine._is_asked_for = not is_known  # what it has then, it finds when it looks
        return bool(handed or released) if is_known else None

    async def _insist(
        self, statements: Sequence[Statement]
    ) -> tuple[float, list[list[DictRow]], bool]:
        """As `_ask`, repeated for a while; and whether no answer was lost before."""
        ends_at, is_sure = monotonic() + RELEASE_TIMEOUT, True
        while True:
            try:
                answer = await self._ask(statements, max(ends_at - monotonic(), _LEAST))
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

    async def _give_up(self, lease: ThreadLease) -> None:
        """Give back what may have been given to somebody who had gone."""
        try:
            await self._insist(release(lease.thread_id, lease._owner))
        except errors.UndefinedTable:
            pass  # nor has it been given anything
        except Exception as error:  # a pool's own callbacks may raise anything
            self._say_it_expires(lease, error)

    def _say_it_expires(self, lease: ThreadLease, error: Exception) -> None:
        logger.warning(
            "the lock of thread %r could not be given back, and is free in %g s at most: %s",
            *(lease.thread_id, lease._ttl, _words(error)),
        )

    # Keeping alive

    def _hold(self, lease: ThreadLease) -> None:
        """Renew it from now on."""
        self._held.add(lease)
        self._renew_at = min(self._renew_at, lease._ends_at - lease._ttl * (1 - 1 / _RENEWALS))
        self._wake_at(min(self._renew_at, lease._ends_at))

    def _wake_at(self, at: float) -> None:
        if at < self._next_at:
            if self._timer:
                self._timer.cancel()
            self._next_at = at
            self._timer = asyncio.get_running_loop().call_later(max(0.0, at - clock()), self._tick)

    def _tick(self) -> None:
        """Say which are over, and renew the others if it is time."""
        self._timer = None
        self._next_at, now = math.inf, clock()
        for lease in [*self._held]:
            if lease._over or lease._ends_at <= now:  # over: a write has found it out
                self._lose(lease, expired(lease._ttl))
        if not self._held:
            self._renew_at = math.inf
            return
        if self._renew_at <= now and self._renewing is None:
            self._renewing = self._start(self._renew([*self._held]))
            self._renewing.add_done_callback(self._look_again)
        self._look_again()

    def _look_again(self, renewed: asyncio.Task[None] | None = None) -> None:
        if renewed:
            self._renewing = None
        ends = min((lease._ends_at for lease in self._held), default=math.inf)
        due = self._renew_at if self._renewing is None else math.inf
        if self._held:
            self._wake_at(min(ends, due))

    async def _renew(self, leases: Sequence[ThreadLease]) -> None:
        """Renew `leases`, in one statement."""
        period = min(lease._ttl for lease in leases) / _RENEWALS
        self._renew_at = clock() + min(period, _AGAIN)  # unless it succeeds
        asking = renew([(lease.epoch, lease._owner, lease._ttl) for lease in leases])
        patience = max(period, _LEAST)
        try:
            sent_at, (*_, rows) = await self._ask(asking, patience, patience)
        except Exception as error:  # a pool's callbacks may raise anything: until they expire, try
            if not self._is_away:
                self._is_away = True
                logger.warning(
                    "the locks of %d threads could not be renewed, and are lost in %.1f s: %s",
                    *(len(leases), min(each._ends_at for each in leases) - clock(), _words(error)),
                )
            return
        self._is_away = False
        left_out = {row["owner"]: row["is_held"] for row in rows}
        if not any(left_out.values()):
            self._renew_at = sent_at + period
        for lease in leases:
            self._note(lease, sent_at, left_out.get(lease._owner))

    def _note(self, lease: ThreadLease, sent_at: float, left_out: bool | None) -> None:
        """What a renewal has come to; None for success."""
        if left_out is None:
            lease._ends_at = sent_at + lease._ttl
        elif not left_out and lease in self._held:
            self._lose(lease, TAKEN_OVER)

    def _lose(self, lease: ThreadLease, reason: str) -> None:
        """Tell its holder."""
        self._held.remove(lease)
        lease._end(reason)
        logger.warning("the lock of thread %r is lost: %s", lease.thread_id, lease._over)
        if lease._tell:
            lease._tell()

    def _start(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """In nobody's context, and to its end if whoever waits for it is cancelled."""
        task = asyncio.get_running_loop().create_task(work, name="lghard-leases", context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


_lock = threading.Lock()


def _forget_closed(of_loops: "WeakKeyDictionary[asyncio.AbstractEventLoop, Leases]") -> None:
    """The leases of an event loop may keep it, by a timer, although nothing else does."""
    for loop in [*of_loops]:
        if loop.is_closed():
            del of_loops[loop]


def _let_rest(line: Line, released: Sequence[DictRow]) -> None:
    """What others have asked for is left to them for a moment."""
    if released and released[0]["is_wanted"]:
        line.rests_until = monotonic() + POLL


def _process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _words(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _busy(turn: Turn, row: Row | None) -> ThreadBusyError:
    thread_id, waited = turn.lease.thread_id, monotonic() - turn.began
    if row is None:
        who = "others kept taking its turn, or the last holder's write is still under way"
    else:
        who = (
            f"{row.holder!r}, process {row.process!r}, has had it since {row.acquired_at} by the "
            "database's clock"
        )
    error = ThreadBusyError(
        f"thread {thread_id!r} is locked by another writer: {who}; waited for {waited:.1f} s. Next "
        "step: let the caller try again later, or raise the timeout"
    )
    error.thread_id = thread_id
    if row:
        error.holder, error.process, error.since = row.holder, row.process, row.acquired_at
    return error


def _again(thread_id: str) -> RuntimeError:
    return RuntimeError(
        f"the lock of thread {thread_id!r} is held already, by a block that this is called in: it "
        "would wait for itself. Leave the inner thread_lock() out; a task that is to wait for the "
        "end of that block must be started in a context of its own: "
        "asyncio.create_task(..., context=contextvars.Context())"
    )


def _refuse_again(held: ThreadLease | None) -> None:
    if held and held._is_inside and held in inside.get():
        raise _again(held.thread_id)


def _not_granted(error: psycopg.Error) -> SchemaSetupError:
    return SchemaSetupError(
        f"this role may not use the table {TABLE}, in which thread_lock() keeps its leases: "
        f"{error.diag.message_primary}; next step: GRANT SELECT, INSERT, UPDATE, DELETE ON {TABLE} "
        "to it, as the table's owner"
    )


# The lock


def thread_lock(
    source: "Pool | HardenedAsyncPostgresSaver",
    thread_id: str,
    *,
    timeout: float = TIMEOUT,
    ttl: float = TTL,
) -> AbstractAsyncContextManager[ThreadLease]:
    """Be the only writer of a thread, for the length of the block.

    Two runs on one thread at once lose each other's messages, in whichever task, event loop,
    process or replica they are. Inside the block, no other block of this thread is entered
    anywhere; who waits for it in the same event loop is served in order.

    It is a lease, kept alive in the background, and holds no connection. A holder that stands still
    for `ttl`, or has lost the database for so long, loses it: the task of the block is cancelled,
    and what it yet writes to this thread with a checkpointer of lghard's is refused, however late.

    Args:
        source: a pool, or a checkpointer; of the database and schema that the runs write to.
        thread_id: the thread.
        timeout: seconds to wait for it.
        ttl: seconds without a sign of life after which somebody else may have it.

    Raises:
        ThreadBusyError: somebody else was still at it after `timeout`; it says who, since when.
        ThreadLockLostError: the lock was lost; from writes inside the block, and from its end.
        SchemaSetupError: its table is missing, and this role may not create it.
        RuntimeError: the block is inside another one of the same thread.
        ValueError: an empty thread id, or one that Postgres cannot store; or a bad duration.
        psycopg.Error: the database cannot be reached within `timeout`.

    Example:
        >>> async with thread_lock(checkpointer, "acme:ada:7", timeout=10):
        ...     await graph.ainvoke(state, {"configurable": {"thread_id": "acme:ada:7"}})
    """
    if not 0 <= timeout < math.inf:
        raise ValueError(f"timeout must be 0 seconds or more, and finite, not {timeout}")
    if not 0 < ttl < math.inf:
        raise ValueError(f"ttl must be more than 0 seconds, and finite, not {ttl}")
    return Block(source, _checked(thread_id), timeout, ttl)


def _checked(thread_id: str) -> str:
    if not isinstance(thread_id, str):
        raise TypeError(f"a thread id is a str, not {type(thread_id).__name__}")
    if not thread_id or any(char == "\0" or "\ud800" <= char <= "\udfff" for char in thread_id):
        raise ValueError(
            f"Postgres stores no thread id like {thread_id[:80]!r}: it must not be empty, nor "
            "contain NUL or half of a surrogate pair"
        )
    return str.__str__(thread_id)


class Block(AbstractAsyncContextManager[ThreadLease]):
    """What `thread_lock` returns.

    Not a generator: it may be entered and left in different contexts.
    """

    def __init__(
        self,
        source: "Pool | HardenedAsyncPostgresSaver",
        thread_id: str,
        timeout: float,
        ttl: float,
    ) -> None:
        self._source = source
        self._thread_id = thread_id
        self._timeout = timeout
        self._ttl = ttl
        self._is_used = False
        self._lease: ThreadLease
        self._guard: Guard

    @override
    async def __aenter__(self) -> ThreadLease:
        if self._is_used:
            raise RuntimeError("this lock has been used already: call thread_lock() again")
        self._is_used = True
        guard = Guard()
        self._leases = Leases.of(self._source)
        self._lease = lease = await self._leases.acquire(
            self._thread_id, timeout=self._timeout, ttl=self._ttl
        )
        self._guard = guard
        lease._tell = guard.strike
        lease._is_inside = True
        inside.set((*inside.get(), lease))
        return lease

    @override
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        lease = self._lease
        is_ours = self._guard.close(error)
        lease._is_inside = False
        # Not by a token: blocks may be left in another order, or context, than they were entered.
        inside.set(tuple(held for held in inside.get() if held is not lease))
        is_lost = bool(lease._over)
        lease._end(RELEASED)
        if await self._leases.release(lease) is False and not is_lost:
            is_lost, lease._over = True, TAKEN_OVER
        if is_lost and (error is None or is_ours):
            raise lease._lost() from error
