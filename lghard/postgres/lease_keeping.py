"""Keeping the leases of a process alive: who renews them, who is told that one is lost.

Any event loop may be blocked, or end. So the clock is watched in a thread, the keeper, which is
there as long as there is something to watch. It does nothing that can wait. When it is time to
renew, it asks all event loops that hold a lease, and the first one to come renews all, those of the
others as well, in one statement on a connection of its own. If that is not done in time, it asks
again.
"""

import logging
import math
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from lghard.postgres.fencing import TAKEN_OVER, ThreadLease, clock, expired
from lghard.postgres.lease_rows import renew

if TYPE_CHECKING:
    from lghard.postgres.lease_desk import Desk
    from lghard.postgres.lease_line import Line, Lines, Turn

logger = logging.getLogger("lghard.postgres")

LOOK: Final = 1.0
"""Seconds after which the keeper asks whether the event loop is alive that others wait for."""

# Renewals in the time in which a lease expires: two may fail.
_RENEWALS = 3

# Seconds that one renewal gets at least; and after which who has failed tries again.
_LEAST = 1.0
_AGAIN = 0.5


class Keeper:
    """What is held in one database, and the thread that watches it.

    Attributes:
        held: whose leases are renewed.
    """

    def __init__(self, lines: "Lines") -> None:
        self._lines = lines
        self._changed = threading.Condition(lines.lock)
        self._thread: threading.Thread | None = None
        self._wakes_at = math.inf
        self.held: set[Turn] = set()  # not by epoch: a failover may bring one again
        self._desks: list[Desk] = []
        self._watched: dict[Line, float] = {}  # those that must go on, and when to look at them
        self._check_at = self._renew_at = math.inf
        self._is_due = self._is_away = False

    # What there is to watch. Under the lock

    def watch(self, line: "Line", seconds: float | None = None) -> None:
        """Look after a while whether it goes on.

        Raises:
            RuntimeError: no thread could be started.
        """
        due = clock() + (LOOK if seconds is None else seconds)
        step = LOOK / 4  # so that the keeper comes seldom, however many lines there are
        self._watched[line] = math.ceil(due / step) * step
        self._come_by(self._watched[line])

    def unwatch(self, line: "Line") -> None:
        """It needs nobody's help."""
        self._watched.pop(line, None)

    def hold(self, turn: "Turn") -> None:
        """Renew its lease from now on."""
        lease = turn.lease
        self.held.add(turn)
        if turn.desk not in self._desks:
            self._desks.append(turn.desk)
        self._check_at = min(self._check_at, lease._ends_at)
        self._renew_at = min(self._renew_at, lease._ends_at - lease._ttl * (1 - 1 / _RENEWALS))
        self._come_by(min(self._check_at, self._renew_at))

    def drop(self, turn: "Turn") -> bool:
        """Renew it no more; whether it was held."""
        was_held = turn in self.held
        self.held.discard(turn)
        return was_held

    def _come_by(self, at: float) -> None:
        """See to it that the keeper looks by then."""
        if self._thread is None:
            thread = threading.Thread(target=self._keep, name="lghard-leases", daemon=True)
            thread.start()  # a process has only so many: nothing has changed if this fails
            self._thread = thread
        elif at < self._wakes_at:
            self._wakes_at = at
            self._changed.notify()

    # The thread

    def _keep(self) -> None:
        while self._sleep():
            lost = self._look()
            with suppress(Exception):  # an application's own filter of its log may raise anything
                _say_lost(lost)

    def _sleep(self) -> bool:
        """Until there is something to do; False if there will be nothing."""
        with self._changed:
            if not (self.held or self._watched):
                self._thread, self._renew_at, self._check_at = None, math.inf, math.inf
                self._forget_desks()
                return False
            at = min(self._renew_at, self._check_at, *self._watched.values())
            self._wakes_at = at
            self._changed.wait(min(max(0.0, at - clock()), threading.TIMEOUT_MAX))
            return True

    def _look(self) -> list[ThreadLease]:
        """Do what is due; returns what is lost."""
        with self._changed:
            now, lost = clock(), []
            for line in [line for line, at in self._watched.items() if at <= now]:
                self._see_to(line)
            if min(self._check_at, self._renew_at) <= now:
                lost = self._leave_closed_loops() + self._end_expired(now)
            if self._renew_at <= now:
                self._offer(now)
            return lost

    def _see_to(self, line: "Line") -> None:
        turn = line.current
        self.unwatch(line)
        if turn is None:
            self._lines.forget_if_empty(line)
        elif line.is_stuck():
            self._lines.pass_over(turn)
        elif turn not in self.held or turn.is_waiting:
            turn.desk.ping()
            if line.turns or turn.desk.is_present():
                self.watch(line)

    def _leave_closed_loops(self) -> list[ThreadLease]:
        """Whatever is held in a loop that has ended is given back, by another one."""
        left = [(turn, turn.lease) for turn in self.held if turn.desk.is_over()]
        for turn, lease in left:
            self._lines.pass_over(turn)
            any(desk.post_give_up(turn, lease) for desk in self._desks if desk.can_ask())
        return [lease for _, lease in left]

    def _end_expired(self, now: float) -> list[ThreadLease]:
        over = [turn for turn in self.held if turn.lease._over or turn.lease._ends_at <= now]
        for turn in over:  # over: a write has found it out
            self._lose(turn, expired(turn.lease._ttl))
        self._check_at = min((turn.lease._ends_at for turn in self.held), default=math.inf)
        return [turn.lease for turn in over]

    def _lose(self, turn: "Turn", reason: str) -> None:
        """Tell its holder. Others wait a while for the end of its block, and not for ever."""
        self.held.discard(turn)
        turn.lease._end(reason)
        if not turn.is_waiting:
            turn.desk.post(turn.tell)
        if turn.line.current is turn:
            self.watch(turn.line)

    # Renewing

    def _offer(self, now: float) -> None:
        """Have the first loop that comes renew all."""
        self._is_due = bool(self.held)
        self._renew_at = now + self._period() / 2 if self.held else math.inf  # unless it succeeds
        self._forget_desks()
        for desk in self._desks:
            desk.post(self._take_up, desk)

    def _forget_desks(self) -> None:
        """Keep nothing of loops and pools that have ended."""
        self._desks = [desk for desk in self._desks if desk.can_ask()]

    def _period(self) -> float:
        return min((turn.lease._ttl for turn in self.held), default=math.inf) / _RENEWALS

    def _take_up(self, desk: "Desk") -> None:
        """In the loop of `desk`: it renews, unless somebody else does."""
        with self._changed:
            if not self._is_due or desk.is_renewing() or not desk.can_ask():
                return
            if desk.has_failed:  # others first
                desk.has_failed = False
                desk.loop.call_later(min(self._period(), _AGAIN), self._take_up, desk)
                return
            self._is_due = False
            turns = [(turn, turn.lease) for turn in self.held]
        desk.renewing = desk.start(self._renew(desk, turns))

    async def _renew(self, desk: "Desk", turns: list[tuple["Turn", ThreadLease]]) -> None:
        """Renew all, in one statement."""
        leases = [lease for _, lease in turns]
        period = min((lease._ttl for lease in leases), default=math.inf) / _RENEWALS
        patience = max(period, _LEAST)
        try:
            if leases:
                asking = renew([(lease.epoch, lease._owner, lease._ttl) for lease in leases])
                sent_at, (*_, rows) = await desk.ask(asking, patience, patience)
                self._note(turns, sent_at, {row["owner"]: row["is_held"] for row in rows}, period)
        except Exception as error:  # a pool's callbacks may raise anything: until they expire, try
            desk.has_failed = True
            self._say_away(leases, error)
            with self._changed:
                self._renew_at = clock()
                self._come_by(self._renew_at)

    def _note(
        self,
        turns: list[tuple["Turn", ThreadLease]],
        sent_at: float,
        left_out: dict[object, bool],
        period: float,
    ) -> None:
        """What a renewal has come to. Those that are left out were not renewed."""
        lost = []
        for _, lease in turns:
            if lease._owner not in left_out:
                lease._ends_at = max(lease._ends_at, sent_at + lease._ttl)
        with self._changed:
            for turn, lease in turns:
                is_held = left_out.get(lease._owner, True)
                if not is_held and turn in self.held and turn.lease is lease:
                    self._lose(turn, TAKEN_OVER)
                    lost.append(lease)
            soon = any(left_out.values())
            self._renew_at = clock() + min(period, _AGAIN) if soon else sent_at + period
            self._renew_at = min(self._renew_at, sent_at + self._period())
            self._is_due = self._is_away = False
            self._come_by(self._renew_at)
        _say_lost(lost)

    def _say_away(self, leases: list[ThreadLease], error: Exception) -> None:
        if not self._is_away:
            self._is_away = True
            logger.warning(
                "the locks of %d threads could not be renewed, and are lost in %.1f s: %s",
                *(len(leases), min(each._ends_at for each in leases) - clock(), words(error)),
            )


def _say_lost(leases: Iterable[ThreadLease]) -> None:
    for lease in leases:
        logger.warning("the lock of thread %r is lost: %s", lease.thread_id, lease._over)


def words(error: BaseException) -> str:
    """The first line of an error."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
