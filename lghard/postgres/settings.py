"""What a pool needs to know, from arguments or from the environment."""

import os
import re
import socket
from collections.abc import Mapping
from typing import Literal

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

CONNINFO_VARIABLES = ("LGHARD_DATABASE_URI", "POSTGRES_URI", "DATABASE_URL", "DATABASE_URI")
_LIBPQ_VARIABLES = ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE")

# "postgresql+asyncpg://…" is SQLAlchemy's way to name a driver; libpq wants it without.
_DRIVER = re.compile(r"^(postgres(?:ql)?)\+\w+(?=://)")
_URI = re.compile(r"^postgres(ql)?(\+\w+)?://")
_KEYWORD = re.compile(r"^\s*\w+\s*=")


def conninfo_from_environment(environ: Mapping[str, str] = os.environ) -> str:
    """The first of `CONNINFO_VARIABLES` that names a Postgres database.

    Other values are skipped: `langgraph dev` sets `DATABASE_URI=:memory:`, and a `DATABASE_URL`
    may belong to another database. libpq's own variables (`PGHOST`, `PGSERVICE`, …) need no
    conninfo at all.

    Raises:
        ValueError: when the environment names no Postgres database.
    """
    for name in CONNINFO_VARIABLES:
        value = environ.get(name, "")
        if _URI.match(value) or _KEYWORD.match(value):
            return _DRIVER.sub(r"\1", value)
    if any(environ.get(name) for name in _LIBPQ_VARIABLES):
        return ""
    raise ValueError(
        "no conninfo given and none in the environment: pass one, or set "
        + " or ".join(CONNINFO_VARIABLES)
        + " to a postgresql:// URI"
    )


def loops_from_environment(environ: Mapping[str, str] = os.environ) -> int:
    """How many event loops of this process use the database.

    A LangGraph server runs its jobs on its one loop, or with `BG_JOB_ISOLATED_LOOPS=true` each
    worker on a loop of its own, besides the one that serves HTTP (langgraph_api 0.16.7,
    `config/__init__.py`: `N_JOBS_PER_WORKER`, 10 by default).
    """
    if environ.get("BG_JOB_ISOLATED_LOOPS", "").lower() not in ("true", "1"):
        return 1
    return 1 + int(environ.get("N_JOBS_PER_WORKER") or "10")


class PoolSettings(BaseSettings):
    """Sizes and deadlines of a pool; every field can be set as `LGHARD_POOL_<FIELD>`.

    Durations are seconds. Sizes are connections of this process, not of the deployment. All fields
    are in docs/how-to/pool.md.

    Example:
        >>> async with open_pool(settings=PoolSettings(max_size=4)) as pool: ...
    """

    model_config = SettingsConfigDict(env_prefix="LGHARD_POOL_", frozen=True, extra="forbid")

    conninfo: SecretStr = Field(
        default_factory=lambda: SecretStr(conninfo_from_environment()),
        description="libpq conninfo or URI; by default the first of LGHARD_DATABASE_URI, "
        "POSTGRES_URI, DATABASE_URL and DATABASE_URI that names a Postgres database",
    )
    min_size: NonNegativeInt = Field(default=1, description="connections kept open")
    max_size: PositiveInt = Field(default=10, description="connections at most")
    loops: PositiveInt = Field(
        default_factory=loops_from_environment,
        description="event loops of this process among which shared_pool divides max_size; by "
        "default 1, or 1 + N_JOBS_PER_WORKER where BG_JOB_ISOLATED_LOOPS=true",
    )
    timeout: PositiveFloat = Field(
        default=30.0, description="how long a borrower waits for a connection"
    )
    open_timeout: PositiveFloat = Field(
        default=10.0, description="how long opening may take, retries included"
    )
    connect_timeout: PositiveInt = Field(
        default=5, description="how long one connection attempt may take"
    )
    max_idle: PositiveFloat = Field(
        default=600.0, description="after which an unused connection above min_size is closed"
    )
    max_lifetime: PositiveFloat = Field(
        default=3600.0, description="after which a connection is replaced"
    )
    ping_after: float = Field(
        default=30.0, ge=0, description="idle time after which a borrow asks the server first"
    )
    ping_timeout: PositiveFloat = Field(
        default=3.0, description="how long the server may take to answer that"
    )

    statement_timeout: PositiveFloat | None = Field(
        default=None, description="how long one statement may take; the server's own by default"
    )
    lock_timeout: PositiveFloat | None = Field(
        default=None, description="how long a statement may wait for a lock"
    )
    idle_in_transaction_session_timeout: PositiveFloat | None = Field(
        default=None, description="how long a transaction may stay open with nothing to do"
    )
    drain_timeout: float = Field(
        default=10.0, ge=0, description="how long closing waits for borrowed connections"
    )
    leak_after: PositiveFloat | None = Field(
        default=300.0, description="after which a borrow is reported with its stack; None for never"
    )
    pooler: Literal["auto", "transaction", "none"] = Field(
        default="auto",
        description='whether a transaction pooler stands between; "auto" finds out at opening',
    )

    def connection_parameters(self, **kwargs: object) -> dict[str, str | int]:
        """Connection parameters that make a dead peer noticed and a live one nameable.

        Sources: `keepalives*`, `tcp_user_timeout` and `target_session_attrs` in the libpq manual,
        section "Parameter Key Words". A vanished peer is noticed after 30 + 3 · 10 s of silence, or
        30 s after data that nobody acknowledged (milliseconds in `tcp_user_timeout`); Linux
        defaults are two hours and fifteen minutes. Of several hosts, the one that takes writes is
        meant. What the conninfo, `kwargs` or libpq's environment (`PGAPPNAME`, …) say is kept.
        """
        ours: dict[str, str | int] = {
            "application_name": application_name(),
            "connect_timeout": self.connect_timeout,
            "keepalives": 1,
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
        }
        conninfo = parse_conninfo(self.conninfo.get_secret_value())
        given: dict[str, object] = {**libpq_environment(), **conninfo, **kwargs}
        if "," in str(given.get("hostaddr", given.get("host"))):
            ours["target_session_attrs"] = "read-write"
        return {name: value for name, value in ours.items() if name not in given}

    def session_settings(self) -> dict[str, str]:
        """The server's settings that every session of the pool gets, in the server's units."""
        names = "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"
        seconds = {name: getattr(self, name) for name in names}
        return {name: f"{value * 1000:.0f}ms" for name, value in seconds.items() if value}


def libpq_environment() -> dict[str, str]:
    """The parameters that libpq takes from its environment variables."""
    return {
        option.keyword.decode(): os.environ[option.envvar.decode()]
        for option in psycopg.pq.Conninfo.get_defaults()
        if option.envvar and option.envvar.decode() in os.environ
    }


def parse_conninfo(conninfo: str) -> dict[str, str]:
    """The parameters of a conninfo.

    Raises:
        ValueError: when libpq cannot parse it, or reads a part of the password as something else.
            The message does not repeat it, nor libpq's words, which quote the offending part.
    """
    try:
        parameters = {name: str(value) for name, value in conninfo_to_dict(conninfo).items()}
    except psycopg.ProgrammingError:
        parameters = None
    if parameters is None or (_URI.match(conninfo) and _is_torn(parameters)):
        raise ValueError(
            "the conninfo is neither a postgresql:// URI nor a list of key=value pairs: "
            "special characters in a URI's user and password must be percent-encoded"
        )
    return parameters


def _is_torn(parameters: Mapping[str, str]) -> bool:
    """Whether a password that was not percent-encoded has been torn apart.

    libpq ends it at the first @ or /, and takes the rest for a host, a port or a database.
    """
    hosts = parameters.get("host", "").split(",")
    return (
        any("@" in host and not host.startswith("@/") for host in hosts)
        or "@" in parameters.get("dbname", "")
        or not re.fullmatch(r"[\d,]*", parameters.get("port", ""))
    )


def application_name() -> str:
    """Host and process, so that pg_stat_activity tells the replicas of a service apart.

    Postgres truncates it to 63 bytes (NAMEDATALEN - 1); the process id must survive that.
    """
    pid = os.getpid()
    host = socket.gethostname().encode("ascii", "replace").decode()
    return f"lghard {host[: 54 - len(str(pid))]}:{pid}"
