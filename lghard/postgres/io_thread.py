"""A thread with an event loop that nobody else can block, and calls from other loops into it."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic
from typing import Generic, TypeVar

import psycopg
from psycopg_pool import PoolClosed

T = TypeVar("T")

# Seconds that a cancelled caller waits for the other loop to stop what it does for it: what it
# does next must not overtake that. psycopg's cancel request to the server may take 1 s of them.
STOP_TIMEOUT = 2.0

# Seconds that work which was sent to another loop may take beyond its own deadline.
GRACE = 5.0


class IOThread(threading.Thread):
    """A daemon thread that runs an event loop until `stop`.

    Attributes:
        loop: there once `start` has returned. A selector loop: psycopg needs one on Windows.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        super().__init__(name="lghard-io", daemon=True)
        self._is_up = threading.Event()
        self._failure: OSError | None = None

    def start(self) -> None:
        """Start the thread and its loop.

        Raises:
            RuntimeError: one of them could not be started.
        """
        super().start()
        self._is_up.wait()
        if self._failure:
            raise RuntimeError(
                "no event loop could be started for lghard's I/O: does the process have too many "
                "files open (ulimit -n)?"
            ) from self._failure

    def run(self) -> None:
        """The thread's life; what still runs in its loop is cancelled at the end."""
        try:
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(self._serve())
        except OSError as error:  # no socket for the loop to be woken by; start() tells
            self._failure = error
            self._is_up.set()

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        self._is_up.set()
        await self._stopped.wait()

    def stop(self) -> None:
        """End the loop and the thread; returns at once."""
        with suppress(RuntimeError):  # it is closed already
            self.loop.call_soon_threadsafe(self._stopped.set)


def countdown(seconds: float) -> Callable[[], float]:
    """What is left of so many seconds from now on."""
    ends_at = monotonic() + seconds
    return lambda: ends_at - monotonic()


async def run_in(
    loop: asyncio.AbstractEventLoop,
    work: Callable[[], Awaitable[T]],
    *,
    patience: Callable[[], float],
) -> T:
    """The result of `work()`, done in another event loop with this one's context variables.

    The caller's cancellation is passed on, and waited for no longer than `STOP_TIMEOUT`.

    Args:
        loop: runs in another thread.
        work: is called there.
        patience: seconds to wait for the result, from then on, should that loop hang or be gone.
            They may become more meanwhile.

    Raises:
        PoolClosed: that loop has been closed, or stopped the work.
        psycopg.OperationalError: no result when `patience` has come to its end, and a little later;
            the work has been cancelled.
    """
    errand = Errand(loop, work)
    errand.start()
    began = monotonic()
    try:
        while not errand.returned.done():
            is_late = (left := patience()) <= 0
            await asyncio.wait({errand.returned}, timeout=GRACE if is_late else left)
            if is_late and patience() <= 0:
                break
    except asyncio.CancelledError:
        await errand.stop()
        raise
    if not errand.returned.done():
        await errand.stop()
        raise psycopg.OperationalError(
            f"the thread that does lghard's I/O has not answered for {monotonic() - began:.0f} s: "
            "what it was asked to do may have been done, or may yet be"
        )
    return errand.result()


class Errand(Generic[T]):
    """Work that is done in another event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Callable[[], Awaitable[T]]) -> None:
        self._there = loop
        self._here = asyncio.get_running_loop()
        self._work = work
        self._task: asyncio.Future[T]
        self.returned: asyncio.Future[None] = self._here.create_future()

    def start(self) -> None:
        """Have the work begun."""
        try:
            self._there.call_soon_threadsafe(self._begin)
        except RuntimeError as error:
            raise PoolClosed("the event loop that does lghard's I/O is closed") from error

    def _begin(self) -> None:
        self._task = asyncio.ensure_future(self._work())
        self._task.add_done_callback(self._report)

    def _report(self, task: asyncio.Future[T]) -> None:
        if not task.cancelled():
            task.exception()  # asyncio reports what nobody looks at, and the caller may be gone
        with suppress(RuntimeError):  # the caller's loop is closed
            self._here.call_soon_threadsafe(self._return)

    def _return(self) -> None:
        if not self.returned.done():
            self.returned.set_result(None)

    async def stop(self) -> None:
        """Cancel the work, and wait for its end, but not for ever."""
        with suppress(RuntimeError):
            self._there.call_soon_threadsafe(self._cancel)
            await asyncio.wait({self.returned}, timeout=STOP_TIMEOUT)

    def _cancel(self) -> None:
        self._task.cancel()

    def result(self) -> T:
        """What the work returned or raised."""
        if self._task.cancelled():
            raise PoolClosed("the event loop that does lghard's I/O has stopped")
        return self._task.result()
