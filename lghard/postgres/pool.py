"""A connection pool that notices dead connections before its borrowers do."""

import asyncio
import logging
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import cached_property
from math import inf
from time import monotonic

import psycopg
from psycopg.errors import ReadOnlySqlTransaction
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout
from psycopg_pool.abc import ACT
from psycopg_pool.base import AttemptWithBackoff
from psycopg_pool.pool_async import (
    AddConnection,
    MaintenanceTask,
    ReturnConnection,
)
from typing_extensions import override

from lghard.errors import ForeignLoopError
from lghard.postgres.borrowing import Borrows, Waiter
from lghard.postgres.health import PoolHealth, PoolSnapshot
from lghard.postgres.liveness import Pulse, abort, abort_after, look, ping
from lghard.postgres.reconnecting import Attempt, Reconnects

logger = logging.getLogger("lghard.postgres")

# Where a connection keeps the moment of its return, as psycopg_pool keeps there when it expires.
_IDLE_SINCE = "_lghard_idle_since"
_EVICTED_FOR = "_lghard_evicted_for"

# Seconds between two rounds of housekeeping.
_ROUND = 1.0


class ManagedPool(AsyncConnectionPool[ACT]):
    """psycopg_pool's `AsyncConnectionPool`, with the dead connections taken out.

    Signature, defaults and contracts are `AsyncConnectionPool`'s, with these differences:

    - Every borrow looks at the connection's socket first (no round trip). The first dead
      connection sweeps all idle ones at once, where upstream hands them out one by one, or with
      `check=` waits 1, 2, 4, 8, … seconds between unrelated ones. A `check` callback is still
      called, and sees only connections that passed.
    - A connection idle for longer than `ping_after` answers an empty query first, within
      `ping_timeout`. `check()` asks all idle connections at once, and within that time.
    - An idle connection is replaced at `max_lifetime` too, not only one that comes back.
    - While the server is away and somebody waits, one attempt to connect follows the other within
      0.05 s; otherwise they back off to 1 s, and to 5 s where the server refuses. Upstream starts
      at 1 s and doubles without a bound. An attempt that fails like the one before is not logged.
    - After `reconnect_timeout`, `reconnect_failed` is called as upstream, but the pool goes on
      trying to have `min_size` connections; upstream leaves it empty.
    - A connection that reports a read-only server (SQLSTATE 25006) in the block of `connection()`
      is not used again, nor are the idle ones beside it.
    - A cancellation is honoured on Python 3.11 too, and who has stopped waiting no longer counts
      as waiting: borrowers wait on a future, not on upstream's condition under `wait_for`.
    - A connection that a cancelled `pipeline()` has left in pipeline mode is not used again.
    - Using it in another event loop than the one it was opened in is a `ForeignLoopError`.
    - A `PoolTimeout` has the last connection error as its cause, if there is one.

    Attributes:
        ping_after: seconds a connection may be idle before a borrow asks the server.
        ping_timeout: seconds the server may take to answer.
        leak_after: seconds after which a borrow is reported, with the stack of who borrowed; None
            for never.
        pooler: whether a transaction pooler stands between; None if nobody has found out.

    Example:
        >>> async with ManagedPool(conninfo, min_size=2, max_size=10) as pool:
        ...     async with pool.connection() as conn:
        ...         await conn.execute("SELECT 1")
    """

    ping_after: float = 30.0
    ping_timeout: float = 3.0
    leak_after: float | None = None
    pooler: bool | None = None

    # Until when the table that voiding.py needs counts as missing.
    _unvoidable_until: float = 0.0

    _waiting: deque[Waiter[ACT]]  # type: ignore[assignment]
    _connecting: int = 0
    _made: ACT | None = None
    _draining: bool = False
    _loop: asyncio.AbstractEventLoop | None = None

    @cached_property
    def _asked(self) -> dict[asyncio.Task[bool], ACT]:
        """The connections that are being pinged."""
        return {}

    @cached_property
    def _returning(self) -> set[asyncio.Task[None]]:
        """Connections on their way back, whose borrowers may have been cancelled."""
        return set()

    @cached_property
    def _borrows(self) -> Borrows:
        return Borrows()

    @cached_property
    def _evictions(self) -> Counter[str]:
        return Counter()

    @cached_property
    def _reconnects(self) -> Reconnects:
        return Reconnects(self.run_task, lambda: bool(self._waiting))

    # Opening and closing

    @override
    def _open(self) -> None:
        if not self._opened:
            self._loop = asyncio.get_running_loop()
            self._thread = threading.current_thread().name
        super()._open()

    @override
    def _start_initial_tasks(self) -> None:
        super()._start_initial_tasks()
        self.run_task(Housekeeping(self))

    @override
    async def close(self, timeout: float = 5.0, *, drain_timeout: float = 0.0) -> None:
        """As upstream, after waiting for the connections that are out.

        One that is cancelled has closed the idle connections and refused all who wait.

        Args:
            timeout: seconds to wait for the pool's own tasks.
            drain_timeout: seconds to wait for borrowed connections to come back, while new
                borrowers are refused. None are waited for by default, as upstream: they are
                closed when they come back.
        """
        if self._closed:
            return
        self._check_loop()
        try:
            if drain_timeout and len(self._borrows):
                self._draining = True
                await self._borrows.all_back(drain_timeout)
        finally:
            await _honour(self._shut(timeout))

    async def _shut(self, timeout: float) -> None:
        # Upstream does this after it has waited for its workers, and when it is cancelled there,
        # nobody does it: connections stay open, and borrowers wait until their timeouts.
        for conn in self._pool:
            conn.pgconn.finish()
        for waiter in self._waiting:
            await waiter.fail(PoolClosed(f"the pool {self.name!r} is closed"))
        for conn in self._asked.values():
            abort(conn)
        ending = {*self._asked, *self._reconnects.stop()}
        await super().close(timeout)
        if ending:
            await asyncio.wait(ending)

    @override
    async def wait(self, timeout: float = 30.0) -> None:
        """As upstream; one that was cancelled can be repeated."""
        try:
            await _honour(super().wait(timeout))
        except asyncio.CancelledError:
            self._pool_full_event = None
            raise

    def _check_loop(self) -> None:
        """Raise, if this is not the pool's event loop."""
        if (here := asyncio.get_running_loop()) is not self._loop and self._loop is not None:
            raise ForeignLoopError(
                f"the pool {self.name!r} was opened in {self._loop!r} of thread {self._thread!r}, "
                f"and cannot be used in {here!r} of thread {threading.current_thread().name!r}: "
                "open a pool in each event loop, or use shared_pool()"
            )

    @override
    def _check_open_getconn(self) -> None:
        super()._check_open_getconn()
        if self._draining:
            raise PoolClosed(f"the pool {self.name!r} is closing")

    # Borrowing and returning

    @override
    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncIterator[ACT]:
        """As upstream; a connection to a server that became read-only is not used again."""
        conn = await self.getconn(timeout)
        began = monotonic()
        try:
            async with conn:
                yield conn
        except ReadOnlySqlTransaction:
            self._evict_read_only(conn)
            raise
        finally:
            await self.putconn(conn)
            self._stats[self._USAGE_MS] += int(1000.0 * (monotonic() - began))

    @override
    async def getconn(self, timeout: float | None = None) -> ACT:
        """As upstream; a timeout tells why there was no connection."""
        self._check_loop()
        conn = self._take() if timeout is None or timeout > 0 else None
        conn = conn or await self._wait_for_one(timeout)
        self._borrows.begin(conn, with_stack=self.leak_after is not None)
        return conn

    async def _wait_for_one(self, timeout: float | None) -> ACT:
        try:
            return await super().getconn(timeout)
        except PoolTimeout as error:
            self.explain(error)
            raise

    @override
    async def putconn(self, conn: ACT) -> None:
        """As upstream."""
        self._check_loop()
        if getattr(conn, "_pool", None) is self:
            self._borrows.end(conn)
        if not self._take_back(conn):
            await super().putconn(conn)

    @override
    async def _putconn(self, conn: ACT, from_getconn: bool) -> None:
        """As upstream, where a cancellation on the way back would lose the connection."""
        way_back = super()._putconn(conn, from_getconn)
        if self._is_clear(conn):
            await way_back
            return
        task = asyncio.create_task(way_back)
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)
        await asyncio.shield(task)

    def _is_clear(self, conn: ACT) -> bool:
        """Whether the way back has nowhere to wait, and so nowhere to be cancelled."""
        status = conn.pgconn.transaction_status
        at_rest = status in (TransactionStatus.IDLE, TransactionStatus.UNKNOWN)
        return at_rest and not self._lock.locked()

    def _take(self) -> ACT | None:
        """An idle connection that is fit for use, if that can be told here and now.

        Most borrows end here. What upstream guards with a lock is between its suspension points;
        there are none in here.
        """
        if self._closed or self._draining or self._check or not self._pool:
            return None
        conn = self._pool[0]
        if self._pulse(conn) is not Pulse.ALIVE:
            return None
        self._pool.popleft()
        self._nconns_min = min(self._nconns_min, len(self._pool))
        self._stats[self._REQUESTS_NUM] += 1
        conn._pool = self
        return conn

    def _take_back(self, conn: ACT) -> bool:
        """Whether `conn` could be passed on or made idle here and now, with nothing else to do."""
        if (
            getattr(conn, "_pool", None) is not self
            or self._closed
            or self._reset
            or self._pool_full_event
            or conn.pgconn.transaction_status != TransactionStatus.IDLE
            or conn.pgconn.pipeline_status != PipelineStatus.OFF
            or conn._created_at <= self._drained_at
            or conn._expire_at <= (now := monotonic())
        ):
            return False
        conn._pool = None
        setattr(conn, _IDLE_SINCE, now)
        while self._waiting:
            if self._waiting.popleft().take(conn):
                return True
        self._pool.append(conn)
        return True

    def explain(self, error: PoolTimeout) -> None:
        """Add to `error` why there is no connection, and what to do about it."""
        error.__cause__ = self._obstacle()
        error.add_note(self._advice(error.__cause__))

    def _obstacle(self) -> Exception | None:
        """What keeps the pool from connecting, if anything does."""
        if self._reconnects.error:
            return self._reconnects.error
        if self._connecting or self._asked:
            return psycopg.errors.ConnectionTimeout("the server has not answered yet")
        return None

    def _advice(self, obstacle: BaseException | None) -> str:
        if obstacle:
            return (
                f"lghard: the pool {self.name!r} cannot connect: see the cause above; of "
                f"max_size={self.max_size} connections it has {len(self._pool)} idle and "
                f"{len(self._borrows)} in use, and {len(self._waiting)} more borrowers wait"
            )
        return (
            f"lghard: all {self._nconns} connections of the pool {self.name!r} are in use, the "
            f"oldest for {self._borrows.longest():.1f} s, and {len(self._waiting)} more borrowers "
            f"wait: raise max_size (now {self.max_size}), or hold connections for a shorter time"
        )

    # Finding the dead

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
            self._evict(conn, "dead" if pulse is Pulse.DEAD else "silent")
            await self._sweep()

    async def _next(self, timeout: float) -> ACT:
        """An idle connection, or the next one that somebody brings back or makes."""
        conn = await self._get_ready_connection(timeout)
        if conn is None:
            waiter: Waiter[ACT] = Waiter()  # Waiter[ACT]() takes longer than the rest of this
            self._waiting.append(waiter)
            self._stats[self._REQUESTS_QUEUED] += 1
            self._maybe_grow_pool()
            conn = await self._wait(waiter, timeout)
        conn._pool = self
        return conn

    async def _wait(self, waiter: Waiter[ACT], timeout: float) -> ACT:
        began = monotonic()
        try:
            return await waiter.wait(timeout)
        except BaseException:  # a cancellation above all: whoever leaves must leave nothing behind
            self._stats[self._REQUESTS_ERRORS] += 1
            if waiter.conn:  # it was being served when it was cancelled
                self._put_back(waiter.conn)
            if waiter in self._waiting:  # upstream would count it as waiting for ever
                self._waiting.remove(waiter)
            raise
        finally:
            self._stats[self._REQUESTS_WAIT_MS] += int(1000.0 * (monotonic() - began))

    def _pulse(self, conn: ACT) -> Pulse:
        now = monotonic()
        if conn._expire_at <= now:
            return Pulse.DEAD
        pulse = look(conn)
        since: float = getattr(conn, _IDLE_SINCE, 0.0)
        if pulse is Pulse.ALIVE and now - since >= self.ping_after:
            return Pulse.SUSPECT
        if pulse is Pulse.SUSPECT:
            # The look has read what made it so: only an answer clears it, not a second look.
            setattr(conn, _IDLE_SINCE, -inf)
        return pulse

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
        question = asyncio.create_task(ping(conn, self.ping_timeout), name=f"{self.name}-ping")
        self._asked[question] = conn
        question.add_done_callback(self._asked.pop)
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
                self._evict(conn, "dead")
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
        if broken := sum(not question.result() for question in questions):
            logger.warning("%d idle connections of %r were broken", broken, self.name)

    @override
    async def _add_to_pool(self, conn: ACT) -> None:
        setattr(conn, _IDLE_SINCE, monotonic())
        await super()._add_to_pool(conn)

    @override
    async def _return_connection(self, conn: ACT, from_getconn: bool) -> None:
        if conn.pgconn.pipeline_status != PipelineStatus.OFF:
            conn.pgconn.finish()  # psycopg's pipeline() never leaves one that it was cancelled in
        broken = conn.pgconn.transaction_status == TransactionStatus.UNKNOWN
        await super()._return_connection(conn, from_getconn)
        if broken:
            reason = getattr(conn, _EVICTED_FOR, "silent" if from_getconn else "broken in use")
            self._evictions[reason] += 1
            await self._sweep()

    def _evict(self, conn: ACT, reason: str) -> None:
        """Take out a connection, and have it replaced."""
        if conn._expire_at <= monotonic():
            reason = "expired"
        conn.pgconn.finish()
        self._evictions[reason] += 1
        self._stats[self._CONNECTIONS_LOST] += reason != "expired"
        self.run_task(AddConnection(self))

    def _evict_read_only(self, conn: ACT) -> None:
        """After a failover every connection to the old primary is as useless as this one."""
        setattr(conn, _EVICTED_FOR, "read-only")
        conn.pgconn.finish()
        if conn._created_at > self._drained_at:
            self.run_task(Drain(self))

    # Connecting

    @override
    async def _connect(self, timeout: float | None = None) -> ACT:
        if made := self._made:
            self._made = None
            return made
        self._connecting += 1
        try:
            conn = await super()._connect(timeout)
        except Exception as error:  # the configure callback may raise anything
            self._reconnects.failed(error)
            raise
        finally:
            self._connecting -= 1
        self._reconnects.succeeded()
        return conn

    @override
    async def _add_connection(
        self, attempt: AttemptWithBackoff | None, growing: bool = False
    ) -> None:
        attempt = attempt or Attempt(timeout=self.reconnect_timeout)
        if attempt.give_up_at and not attempt.time_to_give_up(monotonic()):
            # Upstream asks _connect for it at once; nothing else runs in between.
            self._made = await self._try_again()
            if self._made is None:
                self._reconnects.postpone(AddConnection(self, attempt, growing=growing))
                return
        await super()._add_connection(attempt, growing=growing)

    async def _try_again(self) -> ACT | None:
        """A connection, if one can be made now. Upstream would log every attempt that fails."""
        before = str(self._reconnects.error)
        try:
            return await self._connect()
        except Exception as error:  # the configure callback may raise anything
            if str(error) != before:
                logger.warning("the pool %r cannot connect: %s", self.name, error)
            return None

    @override
    async def schedule_task(self, task: MaintenanceTask, delay: float) -> None:
        if isinstance(task, AddConnection):
            self._reconnects.postpone(task)
        else:
            await super().schedule_task(task, delay)

    # Telling

    def snapshot(self) -> PoolSnapshot:
        """The state of the pool at this moment, read without waiting for anything."""
        stats = self.get_stats()
        error = self._reconnects.error
        return PoolSnapshot(
            name=self.name,
            min_size=self.min_size,
            max_size=self.max_size,
            size=self._nconns,
            idle=len(self._pool),
            borrowed=len(self._borrows),
            asked=len(self._asked),
            missing=len(self._reconnects),
            waiting=len(self._waiting),
            longest_borrow=self._borrows.longest(),
            requests=stats.get(self._REQUESTS_NUM, 0),
            waited=stats.get(self._REQUESTS_QUEUED, 0),
            failed=stats.get(self._REQUESTS_ERRORS, 0),
            wait_time=stats.get(self._REQUESTS_WAIT_MS, 0) / 1000,
            usage_time=stats.get(self._USAGE_MS, 0) / 1000,
            evictions=dict(self._evictions),
            connect_error=str(error) if error else None,
        )

    async def health(self, timeout: float = 5.0) -> PoolHealth:
        """Whether a request could be served now: for a readiness endpoint.

        It borrows a connection and asks the server one question, within `timeout` seconds in all.
        What the database or the pool has to say against it is in the reasons, not raised.

        Raises:
            ForeignLoopError: the pool belongs to another event loop.

        Example:
            >>> health = await pool.health()
            >>> return Response(status_code=200 if health.ok else 503, content=str(health.reasons))
        """
        began = monotonic()
        try:
            answer = await self._interview(timeout)
        except psycopg.Error as error:
            words = [str(error).strip(), *getattr(error, "__notes__", [])]
            words += [str(error.__cause__).strip()] if error.__cause__ else []
            if monotonic() - began >= timeout and not isinstance(error, PoolTimeout):
                words.insert(0, f"no answer within {timeout} s")
            return PoolHealth(False, tuple(words), None, None, None, None, self.snapshot())
        read_only, version, pid_of_server, pid_of_handshake = answer
        reasons = ["the server is read-only: a standby, or a primary that became one"]
        return PoolHealth(
            ok=not read_only,
            reasons=tuple(reasons if read_only else []),
            round_trip=monotonic() - began,
            role="standby" if read_only else "primary",
            server_version=version,
            pooler=pid_of_server != pid_of_handshake,
            snapshot=self.snapshot(),
        )

    async def _interview(self, timeout: float) -> tuple[bool, str, int, int]:
        ends_at = monotonic() + timeout
        async with self.connection(timeout) as conn:
            with abort_after(conn, ends_at - monotonic()):
                async with conn.cursor(row_factory=tuple_row) as cur:
                    await cur.execute(
                        "SELECT current_setting('transaction_read_only')::bool, "
                        "current_setting('server_version'), pg_backend_pid()"
                    )
                    read_only, version, pid = await cur.fetchone() or (True, "", 0)
        return read_only, version, pid, conn.pgconn.backend_pid

    async def _keep_house(self) -> None:
        """Find what died, expired or leaked while nobody looked, and fill the pool up again."""
        if self.leak_after is not None:
            self._borrows.report(self.name, self.leak_after)
        await self._sweep()
        async with self._lock:
            missing = max(0, self._min_size - self._nconns)
            self._nconns += missing
        for _ in range(missing):
            self.run_task(AddConnection(self))


async def _honour(work: Awaitable[None]) -> None:
    """Await `work`, and raise the cancellation that it has dropped, if it has.

    `asyncio.wait_for` of Python 3.11, which upstream uses, does so when it is cancelled as what it
    waits for is done.
    """
    task = asyncio.current_task()
    assert task
    cancelled_before = task.cancelling()
    await work
    if task.cancelling() > cancelled_before:
        raise asyncio.CancelledError


class PutBack(ReturnConnection):
    """Return a connection to the pool, or close it if the pool has been closed meanwhile."""

    async def run(self) -> None:
        """Upstream drops what it finds in the queue of a closed pool."""
        pool = self.pool()
        if pool and not pool.closed:
            await super().run()
        else:
            self.conn.pgconn.finish()


class Drain(MaintenanceTask):
    """Replace all connections."""

    async def _run(self, pool: AsyncConnectionPool[ACT]) -> None:
        await pool.drain()


class Housekeeping(MaintenanceTask):
    """What has to be looked at now and then, whether anybody borrows or not."""

    async def _run(self, pool: AsyncConnectionPool[ACT]) -> None:
        assert isinstance(pool, ManagedPool)
        await pool.schedule_task(self, _ROUND)
        await pool._keep_house()
