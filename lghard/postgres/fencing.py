"""What is written inside a `thread_lock` block: only as long as its lease is held.

The leases that a task is inside of stand in a context variable. The tasks that it starts have them
as well, and so do the threads that it sends something to: LangGraph's own runs carry them to
whatever writes their checkpoints. There, each write begins with a statement that fails if the lease
has gone.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from time import monotonic
from uuid import uuid4

from psycopg import errors
from typing_extensions import override

from lghard.errors import SchemaSetupError, ThreadLockLostError
from lghard.postgres.lease_rows import IS_HELD, TABLE, Row, refuse_lost
from lghard.postgres.statements import Statement


def clock() -> float:
    """Seconds that pass while the machine sleeps, too, where its system can tell."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return monotonic()


# The leases that this context is inside of, the innermost one last.
inside: ContextVar[tuple["ThreadLease", ...]] = ContextVar("lghard_thread_leases", default=())


class ThreadLease:
    """The right to be the only writer of a thread, for the length of a `thread_lock` block.

    Attributes:
        thread_id: the thread.
        epoch: greater than that of any lease of this thread before: a fencing token for whatever
            else is written inside the block.
        since: when it was acquired, by the database's clock.
    """

    epoch: int = 0
    since: datetime

    def __init__(self, thread_id: str, ttl: float) -> None:
        self.thread_id = thread_id
        self._owner = uuid4()
        self._ttl = ttl
        self._row: Row
        self._ends_at = 0.0
        self._over = ""
        self._is_inside = False

    @override
    def __repr__(self) -> str:
        state = self._over or f"{self._ends_at - clock():.1f} s left"
        return f"<ThreadLease {self.thread_id!r}, epoch {self.epoch}: {state}>"

    def _begin(self, row: Row, sent_at: float) -> None:
        """The database has given it, to somebody who asked at `sent_at` by our clock."""
        self._row, self.epoch, self.since = row, row.epoch, row.acquired_at
        self._ends_at = sent_at + row.remaining

    def _end(self, reason: str) -> None:
        """Nothing is written under it from now on."""
        self._over = self._over or reason

    def _check(self) -> None:
        """Raise if it is over, as far as this process knows."""
        if not self._over and clock() >= self._ends_at:
            self._end(expired(self._ttl))
        if self._over:
            raise self._lost()

    def _refused(self) -> ThreadLockLostError:
        """The error of a write that the database has refused."""
        gone_early = clock() < self._ends_at
        self._end(_NOT_THERE if gone_early else TAKEN_OVER)
        return self._lost()

    def _lost(self) -> ThreadLockLostError:
        error = ThreadLockLostError(
            f"the lock of thread {self.thread_id!r} is not held any more: {self._over}; what was "
            "written before stands, nothing is written now. Next step: end this run, read the "
            "thread again, and repeat the turn inside a new thread_lock()"
        )
        error.thread_id = self.thread_id
        return error


RELEASED = "its block has ended, and this task goes on without it"
TAKEN_OVER = "somebody else has taken it over, since this holder showed no sign of life in time"
CLOSED = "the event loop of its block has ended"
PASSED_OVER = "its event loop was blocked when its turn had come"
FORKED = "this process was forked inside the block, and the lock is its parent's"
_NOT_THERE = (
    "in the database it is over, though not by this machine's clock: the machine stood still "
    f"together with its clock, or the row in {TABLE} was deleted or lost in a failover, or what "
    "writes uses another database than thread_lock() was given"
)


def expired(ttl: float) -> str:
    """Why a lease is over that has not been renewed in time."""
    return (
        f"it was not renewed for {ttl:g} s, since this process stood still, its event loop was "
        "blocked, or the database was away"
    )


def leases_of(*thread_ids: str) -> list[ThreadLease]:
    """The leases of these threads that the caller is inside of; of any thread if none is named.

    Raises:
        ThreadLockLostError: one of them is over.
    """
    found: dict[str, ThreadLease] = {}
    for lease in inside.get():
        if lease.thread_id in thread_ids or not (thread_ids or lease._over == RELEASED):
            found[lease.thread_id] = lease  # the innermost one, where a task has outlived another
    for lease in found.values():
        lease._check()
    return [*found.values()]


def fences(leases: Sequence[ThreadLease]) -> list[Statement]:
    """What stands before the statements of a write that these leases allow."""
    return [refuse_lost(lease.thread_id, lease.epoch, lease._owner) for lease in leases]


@contextmanager
def fenced(leases: Sequence[ThreadLease]) -> Iterator[None]:
    """A write that begins with their `fences`; one that they have refused says so.

    Raises:
        ThreadLockLostError: one of them is not held any more. Nothing was written.
        SchemaSetupError: they are kept in another database, or schema.
    """
    try:
        yield
    except errors.CheckViolation as error:
        if not leases or error.diag.constraint_name != IS_HELD:
            raise
        detail = error.diag.message_detail or ""
        lost = [lease for lease in leases if str(lease._owner) in detail]
        raise (lost or leases)[0]._refused() from error
    except errors.UndefinedTable as error:
        if not leases or TABLE not in (error.diag.message_primary or ""):
            raise
        raise SchemaSetupError(
            f"the table {TABLE}, in which the lock of thread {leases[0].thread_id!r} is kept, is "
            "not where this checkpointer writes, so its writes cannot be fenced: give "
            "thread_lock() the checkpointer itself, or a pool of the same database and schema"
        ) from error
