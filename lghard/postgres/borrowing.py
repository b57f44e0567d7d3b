"""Who has borrowed a connection, since when and from where in the code, and who waits for one."""

import asyncio
import logging
import sys
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import islice
from time import monotonic
from types import CodeType, FrameType

from psycopg_pool import PoolTimeout
from psycopg_pool.abc import ACT
from psycopg_pool.pool_async import WaitingClient
from typing_extensions import override

logger = logging.getLogger("lghard.postgres")

# Frames of the borrower that a report shows; enough to get past LangGraph's own.
_DEPTH = 24


class Waiter(WaitingClient[ACT]):
    """A borrower without a connection.

    Upstream's waits with `asyncio.wait_for`, which costs a task for each wait on Python 3.11 and
    drops a cancellation that meets its result.
    """

    __slots__ = ("_served",)

    def __init__(self) -> None:
        self.conn: ACT | None = None
        self.error: BaseException | None = None
        self._served: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @override
    async def wait(self, timeout: float) -> ACT:
        timer = asyncio.get_running_loop().call_later(timeout, self._refuse, PoolTimeout())
        try:
            await self._served
        finally:
            timer.cancel()
        if self.error:
            raise self.error
        assert self.conn
        return self.conn

    def take(self, conn: ACT) -> bool:
        """Take `conn`; False if it is not needed any more."""
        if self._served.done():
            return False
        self.conn = conn
        self._served.set_result(None)
        return True

    def _refuse(self, error: BaseException) -> bool:
        if self._served.done():
            return False
        self.error = error
        self._served.set_result(None)
        return True

    @override
    async def set(self, conn: ACT) -> bool:
        return self.take(conn)

    @override
    async def fail(self, error: Exception) -> bool:
        return self._refuse(error)


@dataclass(slots=True)
class _Borrow:
    since: float
    stack: list[tuple[CodeType, int]]
    reported: bool = False


class Borrows:
    """The connections that are out.

    A connection that is not returned is missing for ever, and nobody knows who has it. With the
    stack of the borrower, which costs a few microseconds to note, one does.
    """

    def __init__(self) -> None:
        self._out: dict[Hashable, _Borrow] = {}
        self._all_back = asyncio.Event()

    def __len__(self) -> int:
        return len(self._out)

    def begin(self, conn: Hashable, *, with_stack: bool) -> None:
        """Somebody has borrowed `conn`."""
        self._out[conn] = _Borrow(monotonic(), _stack() if with_stack else [])

    def end(self, conn: Hashable) -> None:
        """It is back."""
        self._out.pop(conn, None)
        if not self._out:
            self._all_back.set()

    def longest(self) -> float:
        """Seconds since the oldest one; 0 if there is none. Any thread may ask."""
        borrows = list(self._out.values())  # in one step: another thread may be adding one
        now = monotonic()
        return now - min((borrow.since for borrow in borrows), default=now)

    async def all_back(self, timeout: float) -> bool:
        """Wait until nothing is borrowed; False if something still is after `timeout` seconds."""
        self._all_back.clear()
        if self._out:
            waiting = asyncio.ensure_future(self._all_back.wait())
            try:
                await asyncio.wait({waiting}, timeout=timeout)
            finally:
                waiting.cancel()
        return not self._out

    def report(self, pool: str, leak_after: float) -> None:
        """Log those that are out for longer than `leak_after` seconds, each once."""
        for conn, borrow in self._out.items():
            age = monotonic() - borrow.since
            if age > leak_after and not borrow.reported:
                borrow.reported = True
                logger.warning(
                    "a connection of the pool %r has been borrowed for %.0f s and is not back: "
                    "%s\nIt was borrowed at (most recent call first):\n%s",
                    *(pool, age, conn, _format(borrow.stack)),
                )


def _stack() -> list[tuple[CodeType, int]]:
    """The borrower's frames, innermost first, without the pool's own."""
    frame: FrameType | None = sys._getframe(3)
    stack: list[tuple[CodeType, int]] = []
    while frame and len(stack) < _DEPTH:
        stack.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return stack


def _format(stack: list[tuple[CodeType, int]]) -> str:
    return "\n".join(
        f'  File "{code.co_filename}", line {_line(code, instruction)}, in {code.co_name}'
        for code, instruction in stack
    )


def _line(code: CodeType, instruction: int) -> int | None:
    """Worked out for a report only: it takes longer than all else that a borrow costs."""
    return next(islice(code.co_positions(), instruction // 2, None))[0]
