"""Where the connections of checkpointers and stores live, when several event loops use them."""

import asyncio
import concurrent.futures
import os
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from functools import partial
from time import monotonic
from typing import Protocol, TypeVar

from psycopg import AsyncConnection
from psycopg.rows import DictRow
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout
from tenacity import AsyncRetrying, retry_if_exception_type
from typing_extensions import override

from lghard.postgres.io_thread import IOThread, countdown, run_in
from lghard.postgres.opening import PoolOpenError, PoolOverrides
from lghard.postgres.retries import Outage
from lghard.postgres.shared import Call, Request, Share, _registry
from lghard.resilience import backoff

T = TypeVar("T")
AnyPool = AsyncConnectionPool[AsyncConnection[DictRow]]

# An error is a result here: asyncio reports an exception that a waiter has not fetched, and one
# that is raised again and again keeps the frames of all who have ever met it.
Where = concurrent.futures.Future[Share | BaseException]

# Seconds that a loop gets to close its pool when a second loop has come. One that takes longer is
# blocked, and has its idle connections closed from outside.
_RETIRE = 1.0
_POLL = 0.01

# Seconds by which an opening may overrun its timeout, to say why it failed.
_MARGIN = 0.5


class Place(Protocol):
    """Where a saver's connections are.

    Attributes:
        outage: what all savers of this place go through together.
    """

    outage: Outage

    @property
    def pool(self) -> AnyPool:
        """Where they come from."""

    def is_closed(self) -> bool:
        """Whether there will be none any more."""

    async def run(
        self,
        work: Callable[[AnyPool], Awaitable[T]],
        *,
        timeout: Callable[[], float],
        patience: Callable[[], float],
    ) -> T:
        """The result of `work(pool)`, done in the event loop of the pool."""


class Here:
    """A pool that somebody else has opened, in this loop."""

    def __init__(self, pool: AnyPool) -> None:
        self.pool = pool
        self.outage = Outage()

    def is_closed(self) -> bool:
        """Whether it has been closed."""
        return self.pool.closed

    async def run(
        self,
        work: Callable[[AnyPool], Awaitable[T]],
        *,
        timeout: Callable[[], float],  # noqa: ARG002
        patience: Callable[[], float],  # noqa: ARG002
    ) -> T:
        """The result of `work(pool)`."""
        return await work(self.pool)


class Home:
    """The connections of one database, for all event loops of this process.

    They live in the event loop that uses them, as long as it is the only one: nothing is faster.
    When a second loop comes they move, for good, to a thread of their own, where no other loop's
    blocking or end can reach them. So there are never more than `max_size`, however many loops.
    """

    def __init__(self, call: Call, asked: Request) -> None:
        self.asked = asked
        self.outage = Outage()
        self.guests: Counter[asyncio.AbstractEventLoop] = Counter()
        self._call = call
        self._share: Share | None = None
        self._where = Where()
        self._thread: IOThread | None = None
        self._move: concurrent.futures.Future[None] | None = None
        self._obstacle: BaseException | None = None

    @property
    def pool(self) -> AnyPool:
        """The pool, wherever it is now."""
        assert self._share
        return self._share.pool

    def is_closed(self) -> bool:
        """Whether it has been closed, or could not be opened."""
        return not self.is_of_use()

    async def run(
        self,
        work: Callable[[AnyPool], Awaitable[T]],
        *,
        timeout: Callable[[], float],
        patience: Callable[[], float],
    ) -> T:
        """The result of `work(pool)`, done where the pool is.

        Args:
            work: may be called again, if the pool moves away under it.
            timeout: seconds to wait, from then on, for a pool that is being opened, or moves.
            patience: seconds that `work` takes at most, from then on.

        Raises:
            PoolClosed: the pool has been closed.
            PoolTimeout: there was none within `timeout`.
        """
        while True:
            where = self._where
            try:
                share = await self._found(where, timeout())
                if share.loop is asyncio.get_running_loop():
                    return await work(share.pool)
                there = partial(work, share.pool)
                return await run_in(share.loop, there, patience=patience)
            except PoolClosed:
                if where is self._where:
                    raise

    async def _found(self, where: Where, timeout: float) -> Share:
        if not where.done():
            await asyncio.wait({asyncio.wrap_future(where)}, timeout=timeout)
        if not where.done():
            raise PoolTimeout(
                f"the pool was not open within {timeout:.1f} s: see the cause above, or where "
                "another event loop is blocked that has borrowed all connections"
            ) from self._obstacle
        found = where.result()
        if isinstance(found, Share):
            return found
        raise found.with_traceback(None)

    # Called by Homes, under its lock

    def is_gone(self) -> bool:
        """Whether its pool has been closed, too."""
        return self._share is None or self._share.is_over() or self._share.ended.done()

    def is_of_use(self) -> bool:
        """Whether another checkpointer or store may live here."""
        where = self._where  # once: it may move, and whoever asks must not wait for that
        if not where.done():
            return True
        found = where.result()
        return isinstance(found, Share) and not found.is_closed()

    def welcome(self, loop: asyncio.AbstractEventLoop) -> None:
        """One more guest of `loop`, which is running, lives here now."""
        if self._share is None:
            self._share = Share(self._call, self.asked, settings=self.asked.settings)
            _registry.keep(self._share, compare=True)
            self._share.ready.add_done_callback(partial(_pass_on, self._share, self._where))
        elif self._thread is None and self._share.loop is not loop:
            self._begin_to_move(self._share)
        self.guests[loop] += 1

    def _begin_to_move(self, old: Share) -> None:
        thread = IOThread()
        thread.start()  # a process has only so many: nothing has changed if this fails
        self._thread, self._where = thread, Where()
        self._move = asyncio.run_coroutine_threadsafe(self._move_in(old, self._where), thread.loop)
        self._move.add_done_callback(partial(_say_if_it_failed, self._where))

    def leave_behind(self) -> None:
        """In a forked child: nothing of this is ours."""
        self._refuse(
            "this pool was opened before the process was forked, and its connections are "
            "the parent's: open one in the child"
        )

    def _refuse(self, reason: str) -> None:
        self._where = Where()
        self._where.set_result(PoolClosed(reason))

    def finish(self) -> None:
        """End what is left when all loops that lived here have been closed."""
        self._refuse("all event loops that used this pool have been closed: open it in this one")
        if self._thread:
            self._thread.stop()
        if self._share and self._share.is_over():
            self._share.finish()

    # In the thread

    async def _move_in(self, old: Share, where: Where) -> None:
        budget = self.asked.settings.max_size
        left = await self._retire(old, budget)
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(),  # a configure callback may raise anything
            wait=backoff(first=0.1, longest=1.0),
        )
        share: Share = await retrying(self._open, budget - left)
        self._share = share
        _settle(where, share)
        if left:
            await _until(lambda: not _remaining(old), float("inf"))
            await share.pool.resize(self.asked.settings.min_size, budget)

    async def _retire(self, old: Share, budget: int) -> int:
        """Have `old` closed; returns how many connections it still has, less than `budget`."""
        if not old.is_over():
            old.retire()
            if not await _until(old.ended.done, _RETIRE):
                old.leave()
        await _until(lambda: _remaining(old) < budget, float("inf"))
        return _remaining(old)

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
        self._refuse("the pool is closed: use it inside the block that opened it")
        if self._move:
            self._move.cancel()
        try:
            if self._share:
                await self._share.close()
        finally:  # whoever is cancelled here must not leave a thread behind
            if self._thread:
                self._thread.stop()


def _remaining(old: Share) -> int:
    """How many connections it still has. What a loop that has ended has borrowed comes not back."""
    if old.is_over():
        old.finish()
    return old.open_connections()


def _pass_on(share: Share, where: Where, ready: "asyncio.Future[object]") -> None:
    _settle(where, ready.exception() or share)


def _say_if_it_failed(where: Where, move: concurrent.futures.Future[None]) -> None:
    closed = PoolClosed("the pool was closed while its connections moved")
    _settle(where, (not move.cancelled() and move.exception()) or closed)


def _settle(where: Where, found: Share | BaseException) -> None:
    with suppress(concurrent.futures.InvalidStateError):  # another thread was faster
        where.set_result(found)


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
        self._closing: list[Home] = []
        self._is_hooked = False

    async def enter(self, call: Call) -> Home:
        """The home for this call, in which the running loop is a guest from now on.

        While the one before it is being closed, there would be two, each with a full budget.
        """
        asked = Request(call)
        ends_at = monotonic() + asked.settings.open_timeout
        while self._is_closing(asked) and monotonic() < ends_at:  # noqa: ASYNC110 - of other loops
            await asyncio.sleep(_POLL)
        return self._enter(call, asked)

    def _is_closing(self, asked: Request) -> bool:
        with self._lock:
            self._forget_closed_loops()
            self._closing = [home for home in self._closing if not home.is_gone()]
            return any(home.asked.equals(asked) for home in self._closing)

    def _enter(self, call: Call, asked: Request) -> Home:
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
                self._closing.append(home)
        if is_last:
            await home.close()

    def _forget_closed_loops(self) -> None:
        for home in [*self._homes]:
            home.guests = Counter(loop for loop in home.guests.elements() if not loop.is_closed())
            if not home.guests:
                self._homes.remove(home)
                self._closing.append(home)
                home.finish()

    def _hook(self) -> None:
        if not self._is_hooked and hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(after_in_child=self._in_child)
        self._is_hooked = True

    def _in_child(self) -> None:
        self._lock = threading.RLock()  # the parent's may be held by a thread that is not here
        inherited, self._homes, self._closing = self._homes, [], []
        for home in inherited:
            home.leave_behind()


_homes = Homes()


class Stay(AbstractAsyncContextManager[Home]):
    """A stay in the home of a database, which is opened if nobody lives there yet.

    Not a generator: a LangGraph server never ends it, and asyncio closes the generators that a loop
    leaves behind all at once, which fails where one waits for another.

    Args:
        conninfo: as in `open_pool`.
        overrides: as in `open_pool`.
        patience: seconds to wait for a home whose database is away just when it moves. Who opens it
            waits for `open_timeout`.

    Raises:
        ValueError: no conninfo anywhere.
    """

    def __init__(self, conninfo: str | None, overrides: PoolOverrides, *, patience: float) -> None:
        self._call = Call(conninfo, None, overrides, dict(os.environ))
        self._patience = patience

    @override
    async def __aenter__(self) -> Home:
        """Wait until there is a connection.

        Raises:
            PoolOpenError: the database cannot be reached.
        """
        self._loop = asyncio.get_running_loop()
        self._home = await _homes.enter(self._call)
        try:
            open_timeout = self._home.asked.settings.open_timeout
            await self._until_it_is_open(max(self._patience, open_timeout))
        except BaseException:  # a cancellation, too: who does not get in is no guest
            await _homes.leave(self._home, self._loop)
            raise
        return self._home

    async def _until_it_is_open(self, timeout: float) -> None:
        try:
            # The opening itself ends first, and knows why it failed.
            await self._home.run(
                _nothing, timeout=lambda: timeout + _MARGIN, patience=countdown(timeout)
            )
        except PoolTimeout as error:
            raise PoolOpenError(f"cannot open a pool: {error}") from error.__cause__

    @override
    async def __aexit__(self, *_: object) -> None:
        await _homes.leave(self._home, self._loop)


async def _nothing(pool: AnyPool) -> None:
    """What `Home.run` can do as soon as there is a pool."""


def place_of(
    source: str | AnyPool | None,
    overrides: PoolOverrides,
    *,
    patience: float,
) -> AbstractAsyncContextManager[Place]:
    """The place of a pool that somebody has opened, or of one that is opened for this database.

    Args:
        source: an open pool, or as in `open_pool`.
        overrides: as in `open_pool`.
        patience: as in `Stay`.

    Raises:
        TypeError: settings for a pool that is already open.
        ValueError: no conninfo anywhere.
    """
    if not isinstance(source, AsyncConnectionPool):
        return Stay(source, overrides, patience=patience)
    if overrides:
        raise TypeError(
            f"{', '.join(overrides)}: these are settings of a pool that is opened, and the one "
            "that was passed in is open already; set them where it is opened"
        )
    return nullcontext(Here(source))
