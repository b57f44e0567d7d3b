"""Opening a pool: with what checkpointing needs, verified, and with an error that helps."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, Literal, TypeAlias, TypedDict, Unpack

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool.abc import AsyncConnectFailedCB, AsyncConnectionCB
from tenacity import AsyncRetrying, retry_if_exception, stop_before_delay

from lghard.errors import LghardError
from lghard.postgres.liveness import Connection, abort_after, is_pooled
from lghard.postgres.pool import ManagedPool
from lghard.postgres.settings import PoolSettings, parse_conninfo
from lghard.postgres.sizing import compare_with_server
from lghard.resilience import backoff, is_transient

logger = logging.getLogger("lghard.postgres")

# Seconds that a server has at the deadline to cancel a query; psycopg would give it five.
_CANCEL_TIME = 0.1

Pool: TypeAlias = ManagedPool[AsyncConnection[DictRow]]


class PoolOpenError(LghardError, psycopg.OperationalError):
    """The pool could not be opened: the message says where, why and what to do next.

    It shows host, port, database, user and the server's own words, never the password.
    """

    __module__ = "lghard"


class PoolOverrides(TypedDict, total=False):
    """What `open_pool` takes by keyword: fields of `PoolSettings`, and arguments of the pool."""

    min_size: int
    max_size: int
    loops: int
    timeout: float
    open_timeout: float
    connect_timeout: int
    max_idle: float
    max_lifetime: float
    ping_after: float
    ping_timeout: float
    statement_timeout: float | None
    lock_timeout: float | None
    idle_in_transaction_session_timeout: float | None
    drain_timeout: float
    leak_after: float | None
    pooler: Literal["auto", "transaction", "none"]
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
    try:
        await _open(pool, settings)
        yield pool
    finally:
        await pool.close(drain_timeout=settings.drain_timeout)


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


def _build(settings: PoolSettings, arguments: dict[str, Any]) -> Pool:
    given = arguments.pop("kwargs", None) or {}
    if not isinstance(given, dict):
        raise TypeError(
            f"open_pool adds to kwargs, so they must be a dict, not {type(given).__name__}; for "
            "credentials that change, use psycopg's passfile or service file"
        )
    if not given.get("autocommit", True):
        raise ValueError(
            "a checkpointer's pool needs autocommit: LangGraph never commits, and setup() creates "
            "indexes concurrently, which Postgres refuses inside a transaction; leave it out of "
            "kwargs, and use conn.transaction() where you want one"
        )
    ours = {"autocommit": True, "row_factory": dict_row, **settings.connection_parameters(**given)}
    pool = ManagedPool[AsyncConnection[DictRow]](
        connection_class=Connection,
        conninfo=settings.conninfo.get_secret_value(),
        kwargs={**ours, **given},
        open=False,
        **settings.model_dump(
            include={"min_size", "max_size", "timeout", "max_idle", "max_lifetime"}
        ),
        **arguments,
    )
    pool.ping_after, pool.ping_timeout = settings.ping_after, settings.ping_timeout
    pool.leak_after = settings.leak_after
    return pool


async def _open(pool: Pool, settings: PoolSettings, *, compare: bool = True) -> None:
    """Connect once, before the pool does: a refusal shows at once, a server that starts in time."""
    deadline = monotonic() + settings.open_timeout
    _check_event_loop(pool, settings)
    try:
        async with asyncio.timeout(settings.open_timeout), await _connect(pool, settings) as conn:
            with abort_after(conn, deadline - monotonic() + _CANCEL_TIME):
                await _adapt(pool, settings, conn)
                pool._configure = configure = _configuring(pool, settings)
                await configure(conn)
                if compare and not pool.pooler:
                    await compare_with_server(conn, settings, timeout=(deadline - monotonic()) / 2)
        await pool.open(wait=True, timeout=deadline - monotonic())
    except (psycopg.Error, TimeoutError, UnicodeError) as error:
        raise _open_error(pool, settings, pool._reconnects.error or error) from error


async def _connect(pool: Pool, settings: PoolSettings) -> AsyncConnection[DictRow]:
    """A bare connection: nothing is known yet of what stands between here and the server."""
    retrying = AsyncRetrying(
        stop=stop_before_delay(settings.open_timeout),
        wait=backoff(first=0.05, longest=1.0),
        retry=retry_if_exception(lambda error: is_transient(error) and not _is_refusal(error)),
        reraise=True,
    )

    async def attempt() -> AsyncConnection[DictRow]:
        try:
            return await pool.connection_class.connect(pool.conninfo, **pool.kwargs)  # type: ignore[arg-type]
        except psycopg.Error as error:
            pool._reconnects.failed(error)  # what there is to tell, should the time run out
            raise

    conn: AsyncConnection[DictRow] = await retrying(attempt)
    pool._reconnects.succeeded()
    return conn


async def _adapt(pool: Pool, settings: PoolSettings, conn: AsyncConnection[DictRow]) -> None:
    """Find out whether a pooler stands between, and do what is safe with or without one."""
    if settings.pooler == "auto":
        pool.pooler = await is_pooled(conn)
    else:
        pool.pooler = settings.pooler == "transaction"
    assert isinstance(pool.kwargs, dict)
    if pool.pooler:
        # One client's prepared statement may be another client's, under the same name.
        pool.kwargs.setdefault("prepare_threshold", None)


def _configuring(pool: Pool, settings: PoolSettings) -> AsyncConnectionCB[AsyncConnection[DictRow]]:
    """What is done to each new connection: our session settings, then the caller's `configure`."""
    configure, session = pool._configure, settings.session_settings()
    if pool.pooler and session:
        logger.warning(
            "%s not set: behind a transaction pooler a setting stays with the server's connection, "
            "and so reaches others; set it for the role: ALTER ROLE ... SET ...",
            ", ".join(session),
        )
        session = {}

    async def configure_or_close(conn: AsyncConnection[DictRow]) -> None:
        try:
            for name, value in session.items():
                await conn.execute("SELECT set_config(%s, %s, false)", (name, value))
            if configure:
                await configure(conn)
        except BaseException:  # the caller's code may raise anything
            conn.pgconn.finish()  # upstream would leave it open
            raise

    return configure_or_close


def _check_event_loop(pool: Pool, settings: PoolSettings) -> None:
    """Psycopg cannot work in Windows' default loop, and the pool would only say so in its log."""
    if type(asyncio.get_running_loop()).__name__ == "ProactorEventLoop":
        raise _open_error(pool, settings, psycopg.InterfaceError(_PROACTOR))


_PROACTOR = (
    "psycopg cannot use Windows' ProactorEventLoop; run your application with "
    "asyncio.run(main(), loop_factory=asyncio.SelectorEventLoop), in Python 3.11 after "
    "asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy())"
)

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
    "too many connections for": "lower max_size, or raise the CONNECTION LIMIT of the role",
    "no answer within": "is the host reachable from here (firewall, security group)?",
    "ProactorEventLoop": "choose the SelectorEventLoop where your application starts",
    "timeout": "is the host reachable from here (firewall, security group)?",
}
_REFUSALS = tuple(_NEXT_STEPS)[:5]


def _is_refusal(error: BaseException) -> bool:
    return any(words in str(error) for words in _REFUSALS)


def _open_error(pool: Pool, settings: PoolSettings, error: BaseException) -> PoolOpenError:
    words = str(error).strip() or f"no answer within {settings.open_timeout:.1f} s"
    steps = [step for part, step in _NEXT_STEPS.items() if part in words]
    return PoolOpenError(
        f"cannot open a pool on {_describe(_parameters(pool))}: {words}; "
        f"next step: {steps[0] if steps else 'see what the server logged'}"
    )


def _parameters(pool: Pool) -> dict[str, str]:
    """What libpq connects with: its defaults and environment, the conninfo, the kwargs."""
    defaults = {
        option.keyword.decode(): option.val.decode()
        for option in psycopg.pq.Conninfo.get_defaults()
        if option.val
    }
    assert isinstance(pool.conninfo, str)
    assert isinstance(pool.kwargs, dict)
    given = {name: str(value) for name, value in pool.kwargs.items() if value is not None}
    return {**defaults, **parse_conninfo(pool.conninfo), **given}


def _describe(parameters: Mapping[str, str]) -> str:
    host = parameters.get("hostaddr") or parameters.get("host") or "the default host"
    port = parameters.get("port", "5432")
    database = parameters.get("dbname", "the default database")
    user = parameters.get("user", "the default user")
    return f"{host}:{port}, database {database}, user {user}"
