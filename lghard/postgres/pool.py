"""A connection pool that notices dead connections before its borrowers do."""

import asyncio
import logging
from collections.abc import Mapping
from time import monotonic
from types import MappingProxyType
from weakref import WeakKeyDictionary

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from psycopg_pool.abc import ACT
from psycopg_pool.base import AttemptWithBackoff
from psycopg_pool.pool_async import AddConnection, ReturnConnection
from typing_extensions import override

from lghard.postgres.liveness import Pulse, abort, look, ping

logger = logging.getLogger("lghard.postgres")


class Reconnect(AttemptWithBackoff):
    """How long to wait before connecting again: at first hardly, never longer than `LONGEST`.

    psycopg_pool waits 1, 2, 4, … seconds without a bound, so that a server that was away for a
    minute is missed for up to another one.
    """

    INITIAL_DELAY = 0.05
    LONGEST = 1.0

    @override
    def update_delay(self, now: float) -> None:
        super().update_delay(now)
        self.delay = min(self.delay, self.LONGEST)


class ManagedPool(AsyncConnectionPool[ACT]):
    """psycopg_pool's `AsyncConnectionPool`, with the dead connections taken out.

    Signature, defaults and contracts are `AsyncConnectionPool`'s, with these differences:

    - Every borrow looks at the connection's socket first (no round trip). The first dead
      connection sweeps all idle ones at once, where upstream hands them out one by one, or with
      `check=` waits 1, 2, 4, 8, … seconds between unrelated ones. A `check` callback is still
      called, and sees only connections that passed.
    - A connection idle for longer than `ping_after` answers an empty query first, within
      `ping_timeout`. `check()` asks all idle connections at once, and within that time.
    - A cancellation is honoured on Python 3.11 too, and who has stopped waiting no longer counts
      as waiting.
    - Reconnecting starts after 0.05 s and slows down to 1 s, where upstream starts at 1 s and
      doubles without a bound.
    - A `PoolTimeout` has the last connection error as its cause, if there is one.

    Attributes:
        ping_after: seconds a connection may be idle before a borrow asks the server.
        ping_timeout: seconds the server may take to answer.

    Example:
        >>> async with ManagedPool(conninfo, min_size=2, max_size=10) as pool:
        ...     async with pool.connection() as conn:
        ...         await conn.execute("SELECT 1")
    """

    ping_after: float = 30.0
    ping_timeout: float = 3.0

    _connect_error: Exception | None = None
    _connecting: int = 0
    _asked: Mapping[asyncio.Task[bool], ACT] = MappingProxyType({})

    @override
    def _open(self) -> None:
        if self._closed and not self._opened:
            self._idle_since: WeakKeyDictionary[ACT, float] = WeakKeyDictionary()
            self._asked = self._questions = dict[asyncio.Task[bool], ACT]()
        super()._open()

    @override
    async def close(self, timeout: float = 5.0) -> None:
        """As upstream."""
        asked = dict(self._asked)
        for conn in asked.values():
            abort(conn)
        await super().close(timeout)
        if asked:
            await asyncio.wait(asked)

    @override
    async def getconn(self, timeout: float | None = None) -> ACT:
        """As upstream; a timeout tells why there was no connection."""
        try:
            return await super().getconn(timeout)
        except PoolTimeout as error:
            cause = self._obstacle()
            error.add_note(self._advice(cause))
            raise error from cause

    def _obstacle(self) -> Exception | None:
        """What keeps the pool from connecting, if anything does."""
        if self._connect_error:
            return self._connect_error
        if self._connecting or self._asked:
            return psycopg.errors.ConnectionTimeout("the server has not answered yet")
        return None

    def _advice(self, obstacle: Exception | None) -> str:
        if obstacle:
            return f"lghard: the pool {self.name!r} cannot connect: see the cause above"
        return (
            f"lghard: all {self._nconns} connections of the pool {self.name!r} are in use: raise "
            f"max_size (now {self.max_size}), or hold connections for a shorter time"
        )

    @override
    async def _getconn_unchecked(self, timeout: float) -> ACT:
        deadline = monotonic() + timeout
        while True:
            self._check_open_getconn()
            conn = await self._next(deadline - monotonic())
            pulse = self._pulse(conn)
            if pulse is Pulse.ALIVE:
                return conn
            if pulse is Pulse.SUSPECT and await self._answers(conn, deadline - monotonic()):
                return conn
            conn._pool = None
            self._replace(conn)
            await self._sweep()

    async def _next(self, timeout: float) -> ACT:
        """Upstream's next connection, without upstream's loss of cancellations and waiters."""
        task = asyncio.current_task()
        cancelled = task.cancelling() if task else 0
        try:
            conn = await super()._getconn_unchecked(timeout)
        except BaseException:
            self._forget_waiters()
            raise
        if task and task.cancelling() > cancelled:
            # asyncio.wait_for of Python 3.11 drops a cancellation that meets its result.
            self._put_back(conn)
            raise asyncio.CancelledError
        return conn

    def _forget_waiters(self) -> None:
        """Those who have given up count against max_waiting until a connection comes back."""
        for waiter in [waiter for waiter in self._waiting if waiter.error]:
            self._waiting.remove(waiter)

    def _pulse(self, conn: ACT) -> Pulse:
        pulse = look(conn)
        if pulse is Pulse.ALIVE and self._idle_time(conn) >= self.ping_after:
            return Pulse.SUSPECT
        return pulse

    def _idle_time(self, conn: ACT) -> float:
        return monotonic() - self._idle_since.get(conn, 0.0)

    async def _answers(self, conn: ACT, timeout: float) -> bool:
        """Ask the server. Whoever stops waiting for the answer leaves `conn` to the pool."""
        question = self._ask(conn)
        try:
            await asyncio.wait({question}, timeout=max(0.0, timeout))
        except asyncio.CancelledError:
            self._put_back_when_answered(conn, question)
            raise
        if not question.done():
            self._put_back_when_answered(conn, question)
            raise PoolTimeout
        return question.result()

    def _ask(self, conn: ACT) -> asyncio.Task[bool]:
        question = asyncio.create_task(ping(conn, self.ping_timeout))
        self._questions[question] = conn
        question.add_done_callback(self._questions.pop)
        return question

    def _put_back_when_answered(self, conn: ACT, question: asyncio.Task[bool]) -> None:
        question.add_done_callback(lambda _: self._put_back(conn))

    def _put_back(self, conn: ACT) -> None:
        """Return `conn` in whatever state, without a wait in which the caller can be cancelled."""
        if self._closed:
            conn.pgconn.finish()
        else:
            self.run_task(PutBack(self, conn, from_getconn=True))

    async def _sweep(self) -> None:
        """Replace the dead among the idle connections, all at once.

        Whatever killed one connection (a restart, a failover, a proxy's idle timeout) has usually
        killed its siblings too. Healthy ones never leave the pool; suspects are asked in parallel,
        and come back when they have answered.
        """
        async with self._lock:
            idle = [(conn, self._pulse(conn)) for conn in self._pool]
            self._pool.clear()
            self._pool.extend(conn for conn, pulse in idle if pulse is Pulse.ALIVE)
        for conn, pulse in idle:
            if pulse is Pulse.DEAD:
                self._replace(conn)
            elif pulse is Pulse.SUSPECT:
                self._put_back_when_answered(conn, self._ask(conn))

    @override
    async def check(self) -> None:
        """As upstream, but all connections at once, and within `ping_timeout`."""
        async with self._lock:
            idle = list(self._pool)
            self._pool.clear()
            self._maybe_grow_pool()
        questions = [self._ask(conn) for conn in idle]
        for conn, question in zip(idle, questions, strict=True):
            self._put_back_when_answered(conn, question)
        if questions:
            await asyncio.wait(questions)

    def _replace(self, conn: ACT) -> None:
        conn.pgconn.finish()
        self._stats[self._CONNECTIONS_LOST] += 1
        self.run_task(AddConnection(self))

    @override
    async def _add_to_pool(self, conn: ACT) -> None:
        self._idle_since[conn] = monotonic()
        await super()._add_to_pool(conn)

    @override
    async def _connect(self, timeout: float | None = None) -> ACT:
        self._connecting += 1
        try:
            conn = await super()._connect(timeout)
        except Exception as error:
            self._connect_error = error
            raise
        finally:
            self._connecting -= 1
        self._connect_error = None
        return conn

    @override
    async def _add_connection(
        self, attempt: AttemptWithBackoff | None, growing: bool = False
    ) -> None:
        attempt = attempt or Reconnect(timeout=self.reconnect_timeout)
        await super()._add_connection(attempt, growing=growing)


class PutBack(ReturnConnection):
    """Return a connection to the pool, or close it if the pool has been closed meanwhile."""

    async def run(self) -> None:
        """Upstream drops what it finds in the queue of a closed pool."""
        pool = self.pool()
        if pool and not pool.closed:
            await super().run()
        else:
            self.conn.pgconn.finish()
