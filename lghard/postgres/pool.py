"""A connection pool that notices dead connections before its borrowers do."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, TypedDict, Unpack
from weakref import WeakKeyDictionary

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from psycopg_pool.abc import ACT, AsyncConnectFailedCB, AsyncConnectionCB
from psycopg_pool.base import AttemptWithBackoff
from psycopg_pool.pool_async import AddConnection
from tenacity import AsyncRetrying, retry_if_exception, stop_before_delay
from typing_extensions import override

from lghard.errors import LghardError
from lghard.postgres.liveness import Pulse, look, ping
from lghard.postgres.settings import PoolSettings, parse_conninfo
from lghard.resilience import backoff, is_transient

logger = logging.getLogger("lghard.postgres")


class PoolOpenError(LghardError, psycopg.OperationalError):
    """The pool could not be opened: the message says where, why and what to do next.

    It shows host, port, database, user and the server's own words, never the password.
    """

    __module__ = "lghard"


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
      `ping_timeout`.
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

    @override
    def _open(self) -> None:
        super()._open()
        self._idle_since: WeakKeyDictionary[ACT, float] = WeakKeyDictionary()
        self._readmissions: set[asyncio.Task[None]] = set()

    @override
    async def close(self, timeout: float = 5.0) -> None:
        """As upstream."""
        await super().close(timeout)
        for task in self._readmissions:
            task.cancel()
        await asyncio.gather(*self._readmissions, return_exceptions=True)

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
        if self._connecting and not self._connect_error:
            return psycopg.errors.ConnectionTimeout("the server has not answered yet")
        return self._connect_error

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
            conn = await super()._getconn_unchecked(deadline - monotonic())
            try:
                alive = await self._is_alive(conn)
            except BaseException:
                await self._putconn(conn, from_getconn=True)
                raise
            if alive:
                return conn
            await self._putconn(conn, from_getconn=True)
            await self._sweep()

    async def _is_alive(self, conn: ACT) -> bool:
        pulse = look(conn)
        if pulse is Pulse.ALIVE and self._idle_time(conn) < self.ping_after:
            return True
        if pulse is Pulse.DEAD:
            conn.pgconn.finish()
            return False
        return await ping(conn, self.ping_timeout)

    def _idle_time(self, conn: ACT) -> float:
        return monotonic() - self._idle_since.get(conn, 0.0)

    async def _sweep(self) -> None:
        """Replace the dead among the idle connections, all at once.

        Whatever killed one connection (a restart, a failover, a proxy's idle timeout) has usually
        killed its siblings too. Healthy ones never leave the pool; suspects are asked in parallel,
        by tasks of their own: a borrower that is cancelled must not lose them.
        """
        async with self._lock:
            idle = [(conn, look(conn)) for conn in self._pool]
            self._pool.clear()
            self._pool.extend(conn for conn, pulse in idle if pulse is Pulse.ALIVE)
        for conn, pulse in idle:
            if pulse is Pulse.DEAD:
                self._replace(conn)
            elif pulse is Pulse.SUSPECT:
                task = asyncio.create_task(self._readmit(conn))
                self._readmissions.add(task)
                task.add_done_callback(self._readmissions.discard)

    async def _readmit(self, conn: ACT) -> None:
        if await ping(conn, self.ping_timeout):
            await self._add_to_pool(conn)
        else:
            self._replace(conn)

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


class PoolOverrides(TypedDict, total=False):
    """What `open_pool` takes by keyword: fields of `PoolSettings`, and arguments of the pool."""

    min_size: int
    max_size: int
    timeout: float
    open_timeout: float
    connect_timeout: int
    max_idle: float
    max_lifetime: float
    ping_after: float
    ping_timeout: float
    kwargs: dict[str, Any]
    configure: AsyncConnectionCB[AsyncConnection[DictRow]]
    check: AsyncConnectionCB[AsyncConnection[DictRow]]
    reset: AsyncConnectionCB[AsyncConnection[DictRow]]
    name: str
    max_waiting: int
    reconnect_timeout: float
    reconnect_failed: AsyncConnectFailedCB
    num_workers: int


@asynccontextmanager
async def open_pool(
    conninfo: str | None = None,
    *,
    settings: PoolSettings | None = None,
    **overrides: Unpack[PoolOverrides],
) -> AsyncIterator[ManagedPool[AsyncConnection[DictRow]]]:
    """Open a pool that is ready for checkpointing, and close it at the end of the block.

    It sets what checkpointing needs (autocommit, `dict_row`), keepalives that notice a vanished
    server, and an `application_name` of host and process id; what `conninfo` or `kwargs` say
    themselves is kept. It verifies at once that the database can be reached.

    Args:
        conninfo: libpq conninfo or URI; by default from the environment, see `PoolSettings`.
        settings: sizes and deadlines; by default from the environment.
        overrides: fields of `PoolSettings` that win over `settings`, and further arguments of
            `AsyncConnectionPool`. All durations are seconds.

    Raises:
        PoolOpenError: the database cannot be reached or refuses within `open_timeout`; nothing is
            left open. A wrong password or a missing database is reported at once, a server that
            is still starting is waited for.
        ValueError: no conninfo anywhere, or `kwargs` that would break checkpointing.

    Example:
        >>> async with open_pool("postgresql://localhost/app", max_size=4) as pool:
        ...     async with pool.connection() as conn:
        ...         await conn.execute("SELECT 1")
    """
    settings, arguments = _merge(conninfo, settings, overrides)
    pool = _build(settings, arguments)
    await _verify(pool, settings)
    try:
        await _fill(pool, settings)
        yield pool
    finally:
        await pool.close()


def _merge(
    conninfo: str | None, settings: PoolSettings | None, overrides: PoolOverrides
) -> tuple[PoolSettings, dict[str, Any]]:
    fields = {} if settings is None else settings.model_dump()
    if conninfo is not None:
        fields["conninfo"] = conninfo
    arguments: dict[str, Any] = dict(overrides)
    for name in PoolSettings.model_fields.keys() & arguments.keys():
        fields[name] = arguments.pop(name)
    return PoolSettings(**fields), arguments


def _build(
    settings: PoolSettings, arguments: dict[str, Any]
) -> ManagedPool[AsyncConnection[DictRow]]:
    given: dict[str, Any] = arguments.pop("kwargs", {})
    if not given.get("autocommit", True):
        raise ValueError(
            "a checkpointer's pool needs autocommit: LangGraph never commits, and setup() creates "
            "indexes concurrently, which Postgres refuses inside a transaction; leave it out of "
            "kwargs, and use conn.transaction() where you want one"
        )
    ours = {"autocommit": True, "row_factory": dict_row, **settings.connection_parameters()}
    pool = ManagedPool[AsyncConnection[DictRow]](
        settings.conninfo.get_secret_value(),
        kwargs={**ours, **given},
        open=False,
        **settings.model_dump(
            include={"min_size", "max_size", "timeout", "max_idle", "max_lifetime"}
        ),
        **arguments,
    )
    pool.ping_after, pool.ping_timeout = settings.ping_after, settings.ping_timeout
    return pool


async def _verify(pool: ManagedPool[AsyncConnection[DictRow]], settings: PoolSettings) -> None:
    """Connect once, waiting for a server that starts, before anything is opened."""
    retrying = AsyncRetrying(
        stop=stop_before_delay(settings.open_timeout),
        wait=backoff(first=0.05, longest=1.0),
        retry=retry_if_exception(lambda error: is_transient(error) and not _is_refusal(error)),
        reraise=True,
    )
    try:
        async with asyncio.timeout(settings.open_timeout):
            conn: AsyncConnection[DictRow] = await retrying(pool._connect)
    except (psycopg.Error, TimeoutError) as error:
        raise _open_error(settings, pool._connect_error or error) from error
    await conn.close()


async def _fill(pool: ManagedPool[AsyncConnection[DictRow]], settings: PoolSettings) -> None:
    try:
        await pool.open(wait=True, timeout=settings.open_timeout)
    except PoolTimeout as error:
        raise _open_error(settings, pool._connect_error or error) from error


# A failed connection attempt has no SQLSTATE, only the server's words. They are English unless
# lc_messages says otherwise; then a refusal is retried until open_timeout, and nothing worse.
_NEXT_STEPS = {
    "authentication failed": "check user and password",
    "no password supplied": "put the password into the conninfo, PGPASSWORD or ~/.pgpass",
    "does not exist": "check database and user: CREATE DATABASE, or correct the conninfo",
    "pg_hba.conf": "allow this client in the server's pg_hba.conf, or add sslmode=require",
    "not permitted to log in": "GRANT the role LOGIN, or use another one",
    "too many clients": "lower max_size, or raise max_connections on the server",
    "remaining connection slots": "lower max_size, or raise max_connections on the server",
    "Connection refused": "is the server running, and does it listen on this port?",
    "could not translate host name": "check the host name in the conninfo",
    "resolve": "check the host name in the conninfo",
    "timeout": "is the host reachable from here (firewall, security group)?",
}
_REFUSALS = tuple(_NEXT_STEPS)[:5]


def _is_refusal(error: BaseException) -> bool:
    return any(words in str(error) for words in _REFUSALS)


def _open_error(settings: PoolSettings, error: BaseException) -> PoolOpenError:
    words = str(error).strip() or f"no answer within {settings.open_timeout:.1f} s"
    steps = [step for part, step in _NEXT_STEPS.items() if part in words]
    where = _describe(parse_conninfo(settings.conninfo.get_secret_value()))
    return PoolOpenError(
        f"cannot open a pool on {where}: {words}; "
        f"next step: {steps[0] if steps else 'see what the server logged'}"
    )


def _describe(parameters: Mapping[str, str]) -> str:
    host = parameters.get("hostaddr") or parameters.get("host") or "the default host"
    port = parameters.get("port", "5432")
    database = parameters.get("dbname", "the default database")
    user = parameters.get("user", "the default user")
    return f"{host}:{port}, database {database}, user {user}"
