"""Where the connections of a checkpointer live, when several event loops use it."""

import asyncio
import concurrent.futures
import os
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from time import monotonic
from typing import Protocol, TypeVar

from psycopg import AsyncConnection
from psycopg.rows import DictRow
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout
from tenacity import AsyncRetrying, retry_if_exception_type
from typing_extensions import override

from lghard.postgres.io_thread import IOThread, run_in
from lghard.postgres.opening import PoolOpenError, PoolOverrides
from lghard.postgres.shared import Call, Request, Share, _registry
from lghard.resilience import backoff

T = TypeVar("T")
AnyPool = AsyncConnectionPool[AsyncConnection[DictRow]]

# Seconds that a loop gets to close its pool when a second loop has come. One that takes longer is
# blocked, and has its idle connections closed from outside.
_RETIRE = 1.0
_POLL = 0.01

# Seconds that a call which was sent to the thread may take beyond its own deadline.
_GRACE = 5.0


class Place(Protocol):
    """Where a saver's connections are."""

    @property
    def pool(self) -> AnyPool:
        """Where they come from."""

    async def run(self, work: Callable[[AnyPool], Awaitable[T]], *, patience: float) -> T:
        """The result of `work(pool)`, done in the event loop of the pool."""


class Here:
    """A pool that somebody else has opened, in this loop."""

    def __init__(self, pool: AnyPool) -> None:
        self.pool = pool

    async def run(self, work: Callable[[AnyPool], Awaitable[T]], *, patience: float) -> T:  # noqa: ARG002
        """The result of `work(pool)`."""
        return await work(self.pool)


class Home:
    """The connections of one database, for the checkpointers of all event loops of this process.

    They live in the event loop that uses them, as long as it is the only one: nothing is faster.
    When a second loop comes they move, for good, to a thread of their own, where no other loop's
    blocking or end can reach them. So there are never more than `max_size`, however many loops.
    """

    def __init__(self, call: Call, asked: Request) -> None:
        self.asked = asked
        self.guests: Counter[asyncio.AbstractEventLoop] = Counter()
        self._call = call
        self._share: Share | None = None
        self._where = concurrent.futures.Future[Share]()
        self._thread: IOThread | None = None
        self._move: concurrent.futures.Future[None] | None = None
        self._obstacle: BaseException | None = None

    @property
    def pool(self) -> AnyPool:
        """The pool, wherever it is now."""
        assert self._share
        return self._share.pool

    async def run(self, work: Callable[[AnyPool], Awaitable[T]], *, patience: float) -> T:
        """The result of `work(pool)`, done where the pool is.

        Args:
            work: may be called again, if the pool moves away under it.
            patience: seconds that `work` takes at most.

        Raises:
            PoolClosed: the pool has been closed.
        """
        while True:
            where = self._where
            try:
                share = await self._found(where, patience)
                if share.loop is asyncio.get_running_loop():
                    return await work(share.pool)
                there = partial(work, share.pool)
                return await run_in(share.loop, there, patience=patience + _GRACE)
            except PoolClosed:
                if where is self._where:
                    raise

    async def _found(self, where: concurrent.futures.Future[Share], patience: float) -> Share:
        if not where.done():
            found = asyncio.wrap_future(where)
            found.add_done_callback(_have_seen)  # who is cancelled here never looks at it
            await asyncio.wait({found}, timeout=patience)
        if not where.done():
            raise PoolTimeout(
                f"there was no connection within {patience:.0f} s"
            ) from self._obstacle
        return where.result()

    # Called by Homes, under its lock

    def is_of_use(self) -> bool:
        """Whether another checkpointer may live here."""
        return not (self._where.done() and self._where.exception())

    def welcome(self, loop: asyncio.AbstractEventLoop) -> None:
        """One more checkpointer of `loop`, which is running, lives here now."""
        self.guests[loop] += 1
        if self._share is None:
            self._share = Share(self._call, self.asked, settings=self.asked.settings)
            _registry.keep(self._share, compare=True)
            self._share.ready.add_done_callback(partial(_pass_on, self._share, self._where))
        elif self._thread is None and self._share.loop is not loop:
            self._begin_to_move(self._share)

    def _begin_to_move(self, old: Share) -> None:
        self._where = concurrent.futures.Future()
        self._thread = IOThread()
        self._thread.start()
        self._move = asyncio.run_coroutine_threadsafe(self._move_in(old), self._thread.loop)
        self._move.add_done_callback(partial(_say_if_it_failed, self._where))

    def leave_behind(self) -> None:
        """In a forked child: nothing of this is ours."""
        self._refuse(
            "this checkpointer was opened before the process was forked, and its connections are "
            "the parent's: open one in the child"
        )

    def _refuse(self, reason: str) -> None:
        self._where = concurrent.futures.Future()
        self._where.set_exception(PoolClosed(reason))

    def finish(self) -> None:
        """End what is left when all loops that lived here have been closed."""
        self._refuse("all event loops that used this checkpointer have been closed")
        if self._thread:
            self._thread.stop()
        elif self._share:
            self._share.finish()

    # In the thread

    async def _move_in(self, old: Share) -> None:
        budget = self.asked.settings.max_size
        left = await self._retire(old, budget)
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(PoolOpenError), wait=backoff(first=0.1, longest=1.0)
        )
        share: Share = await retrying(self._open, budget - left)
        self._share = share
        self._where.set_result(share)
        if left:
            await _until(lambda: not old.open_connections(), float("inf"))
            await share.pool.resize(self.asked.settings.min_size, budget)

    async def _retire(self, old: Share, budget: int) -> int:
        """Have `old` closed; returns how many connections it still has, less than `budget`."""
        if old.is_over():
            old.finish()
        else:
            old.retire()
            if not await _until(old.ended.done, _RETIRE):
                old.leave()
        await _until(lambda: old.open_connections() < budget, float("inf"))
        return old.open_connections()

    async def _open(self, size: int) -> Share:
        wanted = self.asked.settings
        sizes = {"max_size": size, "min_size": min(size, wanted.min_size)}
        share = Share(self._call, self.asked, settings=wanted.model_copy(update=sizes))
        _registry.keep(share, compare=False)
        await asyncio.wait({share.ready})
        self._obstacle = share.ready.exception()
        share.ready.result()
        return share

    # Called by the last one who leaves

    async def close(self) -> None:
        """Close the pool, wherever it is."""
        self._refuse("the checkpointer is closed")
        if self._move:
            self._move.cancel()
        try:
            if self._share:
                await self._share.close()
        finally:
            if self._thread:
                self._thread.stop()


def _pass_on(
    share: Share, where: concurrent.futures.Future[Share], ready: "asyncio.Future[object]"
) -> None:
    if error := ready.exception():
        where.set_exception(error)
    else:
        where.set_result(share)


def _have_seen(found: "asyncio.Future[Share]") -> None:
    """Asyncio reports an exception that nobody has looked at."""
    if not found.cancelled():
        found.exception()


def _say_if_it_failed(
    where: concurrent.futures.Future[Share], move: concurrent.futures.Future[None]
) -> None:
    if not where.done():
        closed = PoolClosed("the checkpointer was closed while its connections moved")
        where.set_exception((not move.cancelled() and move.exception()) or closed)


async def _until(condition: Callable[[], bool], timeout: float) -> bool:
    """Whether `condition`, which nobody here can be told of, came true in time."""
    ends_at = monotonic() + timeout
    while not condition() and monotonic() < ends_at:  # noqa: ASYNC110 - of another thread
        await asyncio.sleep(_POLL)
    return condition()


class Homes:
    """All homes of this process. Event loops of many threads ask for one."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._homes: list[Home] = []
        self._is_hooked = False

    def enter(self, call: Call) -> Home:
        """The home for this call, in which the running loop is a guest from now on."""
        asked = Request(call)
        with self._lock:
            self._hook()
            self._forget_closed_loops()
            for home in self._homes:
                if home.is_of_use() and home.asked.equals(asked):
                    break
            else:
                self._homes.append(home := Home(call, asked))
            home.welcome(asyncio.get_running_loop())
            return home

    async def leave(self, home: Home, loop: asyncio.AbstractEventLoop) -> None:
        """A guest goes; the last one closes the door."""
        with self._lock:
            home.guests[loop] -= 1
            home.guests = +home.guests
            is_last = not home.guests and home in self._homes
            if is_last:
                self._homes.remove(home)
        if is_last:
            await home.close()

    def _forget_closed_loops(self) -> None:
        for home in [*self._homes]:
            home.guests = Counter(loop for loop in home.guests.elements() if not loop.is_closed())
            if not home.guests:
                self._homes.remove(home)
                home.finish()

    def _hook(self) -> None:
        if not self._is_hooked and hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(after_in_child=self._in_child)
        self._is_hooked = True

    def _in_child(self) -> None:
        self._lock = threading.RLock()  # the parent's may be held by a thread that is not here
        inherited, self._homes = self._homes, []
        for home in inherited:
            home.leave_behind()


_homes = Homes()


class Stay(AbstractAsyncContextManager[Home]):
    """A stay in the home of a database, which is opened if nobody lives there yet.

    Not a generator: a LangGraph server never ends it, and asyncio closes the generators that a loop
    leaves behind all at once, which fails where one waits for another.

    Raises:
        ValueError: no conninfo anywhere.
    """

    def __init__(self, conninfo: str | None, overrides: PoolOverrides) -> None:
        self._call = Call(conninfo, None, overrides, dict(os.environ))

    @override
    async def __aenter__(self) -> Home:
        """Wait until there is a connection.

        Raises:
            PoolOpenError: the database cannot be reached.
        """
        self._loop = asyncio.get_running_loop()
        self._home = _homes.enter(self._call)
        try:
            await self._home.run(_nothing, patience=self._home.asked.settings.open_timeout)
        except BaseException:
            await _homes.leave(self._home, self._loop)
            raise
        return self._home

    @override
    async def __aexit__(self, *_: object) -> None:
        await _homes.leave(self._home, self._loop)


async def _nothing(pool: AnyPool) -> None:
    """What `Home.run` can do as soon as there is a pool."""
