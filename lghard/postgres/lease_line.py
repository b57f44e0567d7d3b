"""Who has a thread's lock in this process, and who waits for it, in the order in which they asked.

All event loops that lock threads of one database stand in the same lines, in whichever threads they
run and whichever pools they use. What is done about a line, to take the lease or to pass it on, is
done by one turn at a time: its current one. A loop may be blocked in the middle of it, or end. Then
it is passed over: the next one is current, and the owner that the first one went by is a stray. The
row may be a stray's, though nobody is entitled to it; whoever is current takes it from there.

So whoever comes back from an await looks, under the lock, whether it is current still. All that is
here happens under the lock, and none of it waits.
"""

import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Final
from uuid import UUID

from lghard.errors import ThreadBusyError
from lghard.postgres.fencing import CLOSED, FORKED, PASSED_OVER, RELEASED, ThreadLease, inside
from lghard.postgres.lease_keeping import Keeper
from lghard.postgres.lease_rows import Row

if TYPE_CHECKING:
    import asyncio

    from lghard.postgres.lease_desk import Desk

POLL: Final = 0.25
"""Seconds between two looks at a lock that another process has, at most."""


class Turn:
    """Somebody who wants a thread's lock, or has it.

    Args:
        desk: of its event loop.
        thread_id: the thread.
        timeout: seconds that it waits.
        ttl: seconds without a sign of life after which it loses the lock.
        tell: is called in its loop when it has lost the lock inside its block.

    Attributes:
        lease: what it will have; another one each time that it may get the lock, so that an owner
            who is a stray is never entitled again.
        is_waiting: it is not inside of its block yet.
    """

    line: "Line"

    def __init__(
        self, desk: "Desk", thread_id: str, *, timeout: float, ttl: float, tell: Callable[[], None]
    ) -> None:
        self.desk = desk
        self.lease = ThreadLease(thread_id, ttl)
        self.tell = tell
        self.is_waiting = True
        self.began = monotonic()
        self._ends_at = self.began + timeout
        self._come: asyncio.Future[None] | None = None

    def begin_anew(self) -> ThreadLease:
        """It may get the lock now: the lease."""
        self.lease = ThreadLease(self.lease.thread_id, self.lease._ttl)
        return self.lease

    def left(self) -> float:
        """Seconds until its deadline."""
        return max(0.0, self._ends_at - monotonic())

    def coming(self) -> "asyncio.Future[None]":
        """What is done when something has happened to it."""
        self._come = self.desk.loop.create_future()
        return self._come

    def wake(self) -> None:
        """Something has happened. To be called in its loop."""
        if self._come and not self._come.done():
            self._come.set_result(None)

    def has_it(self) -> bool:
        """Whether it has the lock, inside of its block."""
        return not (self.is_waiting or self.lease._over)

    def is_lost(self) -> bool:
        """Whether it has lost the lock, inside of its block."""
        return not self.is_waiting and self.lease._over not in {"", RELEASED}


class Line:
    """Who has a thread's lock, and who waits for it.

    Attributes:
        current: who has it, or is about to take it or to give it away.
        turns: the others, in order.
        strays: owners whose the row may be, without being entitled to it.
        seen: who had it when somebody looked last.
        rests_until: it is left to others so long, who have waited for it in other processes.
    """

    def __init__(self, thread_id: str) -> None:
        self.thread_id = thread_id
        self.current: Turn | None = None
        self.turns: deque[Turn] = deque()
        self.strays: set[UUID] = set()
        self.seen: Row | None = None
        self.rests_until = 0.0

    def holder(self) -> Row | None:
        """Who has it, as far as this process knows."""
        current = self.current
        return current.lease._row if current and current.lease.epoch else self.seen

    def rest(self) -> float:
        """Seconds to leave it to others yet."""
        return max(0.0, self.rests_until - monotonic())

    def stand(self, turn: Turn) -> None:
        """Let it wait behind those who have asked before."""
        at = len(self.turns)
        while at and self.turns[at - 1].began > turn.began:
            at -= 1
        self.turns.insert(at, turn)

    def next(self) -> Turn | None:
        """Whose turn comes next: the first one whose loop answers, if there is any."""
        while self.turns and self.turns[0].desk.is_over():
            self.turns.popleft()
        present = (turn for turn in self.turns if turn.desk.is_present())
        return next(present, self.turns[0] if self.turns else None)

    def is_stuck(self) -> bool:
        """Whether others must go on without the current one."""
        turn = self.current
        if turn is None:
            return False
        if turn.is_lost() or turn.desk.is_over():
            return True
        if turn.desk.is_present() or turn.has_it():
            return False
        return not turn.is_waiting or any(other.desk.is_present() for other in self.turns)


class Lines:
    """The lines of this process for the threads of one database, and what keeps its leases alive.

    Attributes:
        is_tidy: somebody here has looked for what killed processes have left behind.
        is_left_behind: all of this is the parent's, in a forked child.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.keeper = Keeper(self)
        self.is_tidy = self.is_left_behind = False
        self._lines: dict[str, Line] = {}

    # Waiting

    def join(self, turn: Turn) -> None:
        """Stand in line; it may be its turn at once.

        Raises:
            RuntimeError: the caller has the lock already; or no thread could be started.
        """
        thread_id = turn.lease.thread_id
        with self.lock:
            line = turn.line = self._lines.get(thread_id) or Line(thread_id)
            if line.current and line.current.desk.is_over():
                self.pass_over(line.current)
            _refuse_again(line.current)
            self.keeper.watch(line)
            self._lines[thread_id] = line
            line.stand(turn)
            if line.current is None:
                self._call_next(line)

    def enter(self, turn: Turn) -> bool:
        """Whether it has the lock, and so is inside of its block from now on."""
        with self.lock:
            has_it = turn.line.current is turn and turn.lease.epoch > 0
            if has_it:
                turn.is_waiting = False
                self.keeper.unwatch(turn.line)
            return has_it

    def leave(self, turn: Turn) -> bool:
        """It does not wait any more; whether it has the lock, and so has to give it away."""
        line = turn.line
        with self.lock:
            turn.is_waiting = False
            if line.current is not turn:
                if turn in line.turns:  # unless its loop was taken for closed
                    line.turns.remove(turn)
                self.forget_if_empty(line)
            elif turn.lease.epoch:
                self.begin_to_give(turn)
                return True
            else:
                self._call_next(line)
            return False

    # Having

    def take(self, turn: Turn, lease: ThreadLease, row: Row, sent_at: float) -> bool:
        """The database has given it `lease`; False if it had been passed over meanwhile."""
        with self.lock:
            if turn.line.current is not turn or turn.lease is not lease:
                return False
            self._have(turn, row, sent_at)
            return True

    def begin_to_give(self, turn: Turn) -> bool:
        """Nothing is written under its lease any more; whether it was still held."""
        with self.lock:
            was_held = self.keeper.drop(turn)
            turn.lease._end(RELEASED)
            turn.line.strays.add(turn.lease._owner)
            if turn.line.current is turn:
                self.keeper.watch(turn.line)
            return was_held

    def heir(self, turn: Turn) -> Turn | None:
        """Who may have it after `turn`."""
        with self.lock:
            heir = turn.line.next() if turn.line.current is turn else None
            if heir:
                turn.line.strays.add(heir.begin_anew()._owner)
            return heir

    def hand(self, turn: Turn, heir: Turn, row: Row, sent_at: float) -> bool:
        """The database has given it to `heir`; False if that one is not to have it any more."""
        line = turn.line
        with self.lock:
            if line.current is not turn or heir not in line.turns:  # passed over, or it has left
                return False
            line.turns.remove(heir)
            line.current = heir
            self._have(heir, row, sent_at)
            self.keeper.watch(line)
            if not heir.desk.wake(heir):
                self.pass_over(heir)
            return True

    def free(self, turn: Turn) -> None:
        """It has given it back, as far as it could."""
        with self.lock:
            if turn.line.current is turn:
                self._call_next(turn.line)

    def strays(self, turn: Turn, lease: ThreadLease) -> list[UUID] | None:
        """From whom it may be taken for `lease`, which may be a stray by that; None if not now."""
        with self.lock:
            if turn.line.current is not turn or turn.lease is not lease:
                return None
            strays = [owner for owner in turn.line.strays if owner != lease._owner]
            turn.line.strays.add(lease._owner)
            return strays

    def clear(self, turn: Turn, lease: ThreadLease) -> None:
        """The row is not that lease's, for certain."""
        with self.lock:
            turn.line.strays.discard(lease._owner)

    def _have(self, turn: Turn, row: Row, sent_at: float) -> None:
        turn.lease._begin(row, sent_at)
        turn.line.strays.clear()  # the row is nobody's else
        self.keeper.hold(turn)

    # Going on. Under the lock

    def _call_next(self, line: Line) -> None:
        while turn := line.next():
            line.turns.remove(turn)
            turn.begin_anew()
            line.current = turn
            self.keeper.watch(line)
            if turn.desk.wake(turn):
                return
        line.current = None
        self.forget_if_empty(line)

    def pass_over(self, turn: Turn) -> None:
        """The others go on without `turn`; if it waits, it is the first one when it comes back."""
        line, is_over = turn.line, turn.desk.is_over()
        self.keeper.drop(turn)
        line.strays.add(turn.lease._owner)
        turn.lease._end(CLOSED if is_over else PASSED_OVER)
        if turn.is_waiting and not is_over:
            line.stand(turn)
        self._call_next(line)

    def forget_if_empty(self, line: Line) -> None:
        """Keep nothing of threads that nobody wants."""
        if line.current or line.turns or self._lines.get(line.thread_id) is not line:
            return
        if rest := line.rest():  # whoever comes back at once must know of it
            self.keeper.watch(line, rest)
        else:
            del self._lines[line.thread_id]
            self.keeper.unwatch(line)

    def leave_behind(self) -> None:
        """In a forked child: what is held here is held by the parent, and written by it alone."""
        self.is_left_behind = True
        for turn in self.keeper.held:
            turn.lease._end(FORKED)


def _refuse_again(turn: Turn | None) -> None:
    if turn and turn.lease._is_inside and turn.lease in inside.get():
        raise again(turn.lease.thread_id)


def again(thread_id: str) -> RuntimeError:
    """The error of who would wait for itself."""
    return RuntimeError(
        f"the lock of thread {thread_id!r} is held already, by a block that this is called in: it "
        "would wait for itself. Leave the inner thread_lock() out; a task that is to wait for the "
        "end of that block must be started in a context of its own: "
        "asyncio.create_task(..., context=contextvars.Context())"
    )


def busy(turn: Turn) -> ThreadBusyError:
    """The error of who has waited in vain."""
    thread_id, waited, row = turn.lease.thread_id, monotonic() - turn.began, turn.line.holder()
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
