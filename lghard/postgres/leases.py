"""One writer per thread, in however many tasks, event loops, processes and replicas.

Whoever writes has a lease: a row in a table, with an epoch, an owner and an expiry that is put off
again and again (lease_rows.py). It costs no connection while it is held. A holder that shows no
sign of life, because it is frozen or cut off, loses it; nobody can tell it so, but what it writes
checks the epoch in the same transaction, and is refused (fencing.py).

The event loops of a process that lock threads of the same database (lease_database.py) share what
they know: who comes next (lease_line.py), and what must be renewed (lease_keeping.py). Each takes
and gives leases (lease_taking.py) on its own connections (lease_desk.py).
"""

import asyncio
import math
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from lghard.postgres.fencing import RELEASED, TAKEN_OVER, ThreadLease, inside
from lghard.postgres.lease_desk import Source
from lghard.postgres.lease_taking import acquire, release

if TYPE_CHECKING:
    from lghard.postgres.lease_line import Turn

TIMEOUT: Final = 30.0
"""Seconds that somebody waits for a thread's lock."""

TTL: Final = 30.0
"""Seconds without a sign of life after which a holder loses the lock."""


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


def thread_lock(
    source: Source,
    thread_id: str,
    *,
    timeout: float = TIMEOUT,
    ttl: float = TTL,
) -> AbstractAsyncContextManager[ThreadLease]:
    """Be the only writer of a thread, for the length of the block.

    Two runs on one thread at once lose each other's messages, in whichever task, event loop,
    process or replica they are. Inside the block, no other block of this thread is entered
    anywhere; those who wait for it in one process, in however many event loops, are served in the
    order in which they asked.

    It is a lease, kept alive in the background by any event loop of the process that locks threads
    of this database, and holds no connection. A process that stands still for `ttl`, or has lost
    the database for so long, loses it: the task of the block is cancelled, and what it yet writes
    to this thread with a checkpointer of lghard's is refused, however late.

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
        source: Source,
        thread_id: str,
        timeout: float,
        ttl: float,
    ) -> None:
        self._source = source
        self._thread_id = thread_id
        self._timeout = timeout
        self._ttl = ttl
        self._is_used = False
        self._turn: Turn
        self._guard: Guard

    @override
    async def __aenter__(self) -> ThreadLease:
        if self._is_used:
            raise RuntimeError("this lock has been used already: call thread_lock() again")
        self._is_used = True
        self._guard = guard = Guard()
        try:
            self._turn = await acquire(
                self._source,
                self._thread_id,
                timeout=self._timeout,
                ttl=self._ttl,
                tell=guard.strike,
            )
        except BaseException as error:
            guard.close(error)
            raise
        lease = self._turn.lease
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
        lease = self._turn.lease
        is_ours = self._guard.close(error)
        lease._is_inside = False
        # Not by a token: blocks may be left in another order, or context, than they were entered.
        inside.set(tuple(held for held in inside.get() if held is not lease))
        was_held = await release(self._turn)
        if was_held is False and lease._over == RELEASED:
            lease._over = TAKEN_OVER
        if lease._over != RELEASED and (error is None or is_ours):
            raise lease._lost() from error
