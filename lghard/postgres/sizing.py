"""How many connections a pool may have, and whether the server has as many."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from lghard.postgres.liveness import abort
from lghard.postgres.settings import PoolSettings

logger = logging.getLogger("lghard.postgres")


@dataclass(frozen=True, kw_only=True, repr=False)
class PoolPlan:
    """What `plan_pool` worked out: its repr is the calculation, `explain()` says what to change.

    Attributes:
        max_connections: what the server admits.
        reserved: those that it keeps for administrators.
        other: those that other clients need.
        replicas: machines or containers.
        processes: in each replica.
        loops: event loops in each process.
    """

    __module__ = "lghard"

    max_connections: int
    reserved: int = 3
    other: int = 0
    replicas: int = 1
    processes: int = 1
    loops: int = 1

    @property
    def available(self) -> int:
        """Connections that all pools together may have."""
        return self.max_connections - self.reserved - self.other

    @property
    def pools(self) -> int:
        """How many pools there are: one in each event loop."""
        return self.replicas * self.processes * self.loops

    @property
    def max_size(self) -> int:
        """Connections of one pool: `open_pool(max_size=…)`."""
        return self.available // self.pools

    @property
    def process_max_size(self) -> int:
        """Connections of one process: `shared_pool(max_size=…)`, which divides them by `loops`."""
        return self.available // (self.replicas * self.processes)

    def explain(self) -> str:
        """The calculation in words, and which number to change for one connection more."""
        spare = self.available - self.max_size * self.pools
        return (
            f"max_size={self.max_size} for each of {self._factors()}: {self._rest()}, {spare} of "
            f"them to spare. For max_size={self.max_size + 1} {self._change(self.max_size + 1)}."
        )

    def __repr__(self) -> str:
        return (
            f"<PoolPlan max_size={self.max_size}: ({self.max_connections} - {self.reserved} - "
            f"{self.other}) // ({self.replicas} * {self.processes} * {self.loops})>"
        )

    def _rest(self) -> str:
        return (
            f"max_connections={self.max_connections} less reserved={self.reserved} and "
            f"other={self.other} leaves {self.available}"
        )

    def _factors(self) -> str:
        return (
            f"{self.pools} pools ({self.replicas} replicas * {self.processes} processes * "
            f"{self.loops} loops)"
        )

    def _change(self, size: int) -> str:
        """Each single number that would give every pool `size` connections."""
        missing = size * self.pools - self.available
        factors = {name: getattr(self, name) for name in ("replicas", "processes", "loops")}
        fitting = {
            name: self.available * now // (size * self.pools) for name, now in factors.items()
        }
        lower = [f"{name} to {fits}" for name, fits in fitting.items() if fits >= 1]
        raise_it = f"raise max_connections by {missing} to {self.max_connections + missing}"
        return f"{raise_it}, or lower {' or '.join(lower)}" if lower else raise_it


def plan_pool(
    *,
    max_connections: int,
    reserved: int = 3,
    other: int = 0,
    replicas: int = 1,
    processes: int = 1,
    loops: int = 1,
) -> PoolPlan:
    """Work out how many connections a pool may have, so that all pools together fit the server.

    `(max_connections - reserved - other) // (replicas * processes * loops)`. Sizes are set per
    pool while the limit is the server's, and nothing multiplies them but this.

    Sources: `max_connections`, `superuser_reserved_connections` and `reserved_connections` in the
    PostgreSQL manual, "Connections and Authentication". The result is what fits, not what is
    fastest: "About Pool Sizing" in HikariCP's wiki recommends 2 · cores + spindles connections for
    *all* clients of a server together, beyond which they only wait for its cores and disks.

    Args:
        max_connections: what the server admits; `SHOW max_connections`.
        reserved: `superuser_reserved_connections` (3 by default), and from Postgres 16 on
            `reserved_connections` (0 by default) on top of it.
        other: what everybody else needs: other services, migrations, backups, psql.
        replicas: machines or containers, including those that a rolling update starts before it
            stops the old ones.
        processes: processes in each replica.
        loops: event loops in each process: 1, or `1 + N_JOBS_PER_WORKER` on a LangGraph server
            with `BG_JOB_ISOLATED_LOOPS=true`.

    Raises:
        ValueError: there is less than one connection for each pool; it says which number to change
            by how much.

    Example:
        >>> plan_pool(max_connections=100, replicas=3, processes=4).max_size
        8
    """
    plan = PoolPlan(
        max_connections=max_connections,
        reserved=reserved,
        other=other,
        replicas=replicas,
        processes=processes,
        loops=loops,
    )
    _check_numbers(plan)
    if plan.max_size < 1:
        raise ValueError(
            f"less than one connection for each of {plan._factors()}: {plan._rest()}; "
            + plan._change(1)
        )
    return plan


def _check_numbers(plan: PoolPlan) -> None:
    lowest = {"reserved": 0, "other": 0}
    for name in ("max_connections", "reserved", "other", "replicas", "processes", "loops"):
        if getattr(plan, name) < lowest.get(name, 1):
            raise ValueError(
                f"{name} must be at least {lowest.get(name, 1)}, not {getattr(plan, name)}"
            )


# Everything in one round trip. A role without pg_read_all_stats sees no backend_type of others,
# but their name, role and database. Superusers are exempt from the limits of roles and databases.
# Processes of lghard are known by their application_name, see settings.application_name.
_SURVEY = """
WITH me AS (
    SELECT r.oid AS role, r.rolname, d.oid AS database, d.datname,
           CASE WHEN r.rolsuper THEN -1 ELSE r.rolconnlimit END AS role_limit,
           CASE WHEN r.rolsuper THEN -1 ELSE d.datconnlimit END AS database_limit
    FROM pg_catalog.pg_roles r, pg_catalog.pg_database d
    WHERE r.rolname = session_user AND d.datname = current_database()
), client AS (
    SELECT a.application_name LIKE 'lghard %' AS ours, a.application_name,
           a.usesysid = me.role AS same_role, a.datid = me.database AS same_database
    FROM pg_catalog.pg_stat_activity a, me
    WHERE a.datid IS NOT NULL
      AND coalesce(a.backend_type, 'client backend') = 'client backend'
      AND a.pid <> pg_backend_pid()
      AND NOT (a.application_name LIKE 'lghard %'
               AND a.application_name = current_setting('application_name'))
)
SELECT pg_backend_pid() AS pid, me.rolname, me.datname, me.role_limit, me.database_limit,
       current_setting('max_connections')::int AS max_connections,
       current_setting('superuser_reserved_connections')::int
           + coalesce(current_setting('reserved_connections', true), '0')::int AS reserved,
       (SELECT count(*) FROM client WHERE NOT ours) AS server_others,
       (SELECT count(DISTINCT application_name) FROM client WHERE ours) AS server_peers,
       (SELECT count(*) FROM client WHERE NOT ours AND same_role) AS role_others,
       (SELECT count(DISTINCT application_name) FROM client WHERE ours AND same_role)
           AS role_peers,
       (SELECT count(*) FROM client WHERE NOT ours AND same_database) AS database_others,
       (SELECT count(DISTINCT application_name) FROM client WHERE ours AND same_database)
           AS database_peers
FROM me
"""


async def compare_with_server(
    conn: psycopg.AsyncConnection[Any], settings: PoolSettings, *, timeout: float
) -> None:
    """Warn once, with the number to change, when the pools cannot all fit the server.

    Asks the server in one round trip for its limits (`max_connections`, the role's and the
    database's CONNECTION LIMIT) and for who else is connected. Every other process of lghard is
    taken to open as many connections as this one; other clients count as they are now.

    Behind a pooler it says nothing: there, other limits hold. A server that does not tell or does
    not answer within `timeout` seconds is no reason not to open a pool.

    Args:
        conn: a connection that is used for nothing else any more.
        settings: of the pool that is being opened.
        timeout: seconds.
    """
    # A task of its own, and abort: a cancelled query waits for the server, see liveness.ping.
    survey = asyncio.create_task(_survey(conn))
    try:
        await asyncio.wait({survey}, timeout=timeout)
    finally:
        if not survey.done():
            abort(conn)
            await asyncio.wait({survey})
    found = survey.result()
    if found and (complaint := _complaint(found, settings)):
        logger.warning("%s", complaint)


async def _survey(conn: psycopg.AsyncConnection[Any]) -> dict[str, Any] | None:
    try:
        async with conn.cursor(row_factory=dict_row) as cur:
            await cur.execute(_SURVEY, prepare=False)
            found = await cur.fetchone()
    except psycopg.Error as error:
        logger.debug("cannot compare max_size with the server's limits: %s", error)
        return None
    # The server's pid is not that of the handshake: a pooler has answered the handshake.
    return found if found and found["pid"] == conn.info.backend_pid else None


@dataclass(frozen=True)
class _Limit:
    """One limit on the server, and who shares it."""

    words: str
    connections: int
    others: int
    peers: int
    raise_it: str

    def asked(self, settings: PoolSettings) -> int:
        """What there would be if every pool were full."""
        return settings.max_size * settings.loops * (self.peers + 1) + self.others

    def complaint(self, settings: PoolSettings) -> str:
        fits = (self.connections - self.others) // (settings.loops * (self.peers + 1))
        lower = f"lower max_size (LGHARD_POOL_MAX_SIZE) to {fits} or " if fits >= 1 else ""
        missing = self.asked(settings) - self.connections
        return (
            f"max_size={settings.max_size}{self._times(settings)} and {self.others} connections of "
            f"other clients make {self.asked(settings)}, but {self.words}: {lower}"
            f"{self.raise_it.format(missing)}, before Postgres refuses connections"
        )

    def _times(self, settings: PoolSettings) -> str:
        loops = f" * {settings.loops} event loops (LGHARD_POOL_LOOPS)"
        peers = f" * {self.peers + 1} processes of lghard"
        return (loops if settings.loops > 1 else "") + (peers if self.peers else "")


def _complaint(found: Mapping[str, Any], settings: PoolSettings) -> str | None:
    """What to say about the tightest limit that does not hold what is asked for."""
    broken = [limit for limit in _limits(found) if limit.asked(settings) > limit.connections]
    if not broken:
        return None
    tightest = max(broken, key=lambda limit: limit.asked(settings) - limit.connections)
    return tightest.complaint(settings)


def _limits(found: Mapping[str, Any]) -> list[_Limit]:
    def limit(scope: str, words: str, connections: int, raise_it: str) -> _Limit:
        others, peers = found[f"{scope}_others"], found[f"{scope}_peers"]
        return _Limit(words, connections, others, peers, raise_it)

    most, reserved = found["max_connections"], found["reserved"]
    words = f"max_connections={most} less {reserved} reserved leaves {most - reserved}"
    limits = [limit("server", words, most - reserved, "raise max_connections by {}")]
    for scope, name in (("role", found["rolname"]), ("database", found["datname"])):
        connections = found[f"{scope}_limit"]
        if connections >= 0:
            words = f"the CONNECTION LIMIT of {scope} {name} is {connections}"
            limits.append(limit(scope, words, connections, "raise that limit by {}"))
    return limits
