"""Opening a pool: with what checkpointing needs, verified, and with an error that helps."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, TypedDict, Unpack

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool.abc import AsyncConnectFailedCB, AsyncConnectionCB
from tenacity import AsyncRetrying, retry_if_exception, stop_before_delay

from lghard.errors import LghardError
from lghard.postgres.pool import ManagedPool
from lghard.postgres.settings import PoolSettings, libpq_defaults, parse_conninfo
from lghard.resilience import backoff, is_transient


class PoolOpenError(LghardError, psycopg.OperationalError):
    """The pool could not be opened: the message says where, why and what to do next.

    It shows host, port, database, user and the server's own words, never the password.
    """

    __module__ = "lghard"


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
    try:
        await _open(pool, settings)
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
    if "configure" in arguments:
        arguments["configure"] = _closing(arguments["configure"])
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


async def _open(pool: ManagedPool[AsyncConnection[DictRow]], settings: PoolSettings) -> None:
    deadline = monotonic() + settings.open_timeout
    try:
        async with asyncio.timeout(settings.open_timeout):
            conn = await _first_connection(pool, settings)
        await conn.close()
        await pool.open(wait=True, timeout=deadline - monotonic())
    except (psycopg.Error, TimeoutError, UnicodeError) as error:
        raise _open_error(pool, settings, pool._connect_error or error) from error


async def _first_connection(
    pool: ManagedPool[AsyncConnection[DictRow]], settings: PoolSettings
) -> AsyncConnection[DictRow]:
    """Connect once, before the pool does: a refusal shows at once, a server that starts in time."""
    retrying = AsyncRetrying(
        stop=stop_before_delay(settings.open_timeout),
        wait=backoff(first=0.05, longest=1.0),
        retry=retry_if_exception(lambda error: is_transient(error) and not _is_refusal(error)),
        reraise=True,
    )
    conn: AsyncConnection[DictRow] = await retrying(pool._connect)
    return conn


def _closing(
    configure: AsyncConnectionCB[AsyncConnection[DictRow]],
) -> AsyncConnectionCB[AsyncConnection[DictRow]]:
    """`configure`, without the connection that upstream leaves open when it fails."""

    async def configure_or_close(conn: AsyncConnection[DictRow]) -> None:
        try:
            await configure(conn)
        except BaseException:
            conn.pgconn.finish()
            raise

    return configure_or_close


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
    "timeout": "is the host reachable from here (firewall, security group)?",
}
_REFUSALS = tuple(_NEXT_STEPS)[:5]


def _is_refusal(error: BaseException) -> bool:
    return any(words in str(error) for words in _REFUSALS)


def _open_error(
    pool: ManagedPool[AsyncConnection[DictRow]], settings: PoolSettings, error: BaseException
) -> PoolOpenError:
    words = str(error).strip() or f"no answer within {settings.open_timeout:.1f} s"
    steps = [step for part, step in _NEXT_STEPS.items() if part in words]
    return PoolOpenError(
        f"cannot open a pool on {_describe(_parameters(pool))}: {words}; "
        f"next step: {steps[0] if steps else 'see what the server logged'}"
    )


def _parameters(pool: ManagedPool[AsyncConnection[DictRow]]) -> dict[str, str]:
    """What libpq connects with: its defaults and environment, the conninfo, the kwargs."""
    assert isinstance(pool.conninfo, str)
    assert isinstance(pool.kwargs, dict)
    given = {name: str(value) for name, value in pool.kwargs.items() if value is not None}
    return {**libpq_defaults(), **parse_conninfo(pool.conninfo), **given}


def _describe(parameters: Mapping[str, str]) -> str:
    host = parameters.get("hostaddr") or parameters.get("host") or "the default host"
    port = parameters.get("port", "5432")
    database = parameters.get("dbname", "the default database")
    user = parameters.get("user", "the default user")
    return f"{host}:{port}, database {database}, user {user}"
