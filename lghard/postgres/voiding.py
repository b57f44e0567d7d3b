"""An attempt that was lost behind a transaction pooler is declared void, and then repeated.

A pooler hides which backend was at work, so nobody can wait until that one is gone. Instead, each
attempt has a token of its own. Its transaction takes a lock on the token, shared, and then looks
for the token among those that are void; if it is there, the transaction fails. Before another
attempt, the lost one's token is put there, and committed; only then one looks whether somebody
holds its lock.

A transaction that had its lock by then is seen, told to stop, and waited for. One that gets its
lock later looks later still, with a snapshot younger than the void token, and does nothing. So once
the token is void and its lock free, the attempt has been committed, or never will be: however late
its message arrives, and whoever delivers it.

That takes READ COMMITTED: elsewhere the snapshot may be older than the lock. There, and where the
table is missing, nothing is voided, and the outcome of what is lost stays unknown.

A transaction of several messages needs the lock alone. Its COMMIT is sent once the lock has been
answered, so whatever may yet be committed holds it.
"""

import logging
import secrets
from collections.abc import Sequence
from time import monotonic
from typing import Any, Final, TypeGuard

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from typing_extensions import override

from lghard.postgres.liveness import is_pooled
from lghard.postgres.migrations import missing
from lghard.postgres.pool import ManagedPool
from lghard.postgres.settling import Attempt, Backend, Connection, Unprovable
from lghard.postgres.statements import Statement

logger = logging.getLogger("lghard.postgres")

TABLE: Final = "lghard_voided_attempts"
_CREATE = f"""
CREATE TABLE IF NOT EXISTS {TABLE} (token BIGINT PRIMARY KEY, voided_at TIMESTAMPTZ NOT NULL)
"""

# The key of the lock is the token itself, 63 random bits. Locks of one key are apart from those of
# two, such as the fence's and the migrations'.
_LOCK = "SELECT pg_advisory_xact_lock_shared(%s::bigint)"

# A statement of its own, whose snapshot is younger than the lock; where it is not, a NULL says so.
# It inserts what is there already, which is nothing, or a violation of the primary key.
_REFUSE_VOIDED = f"""
INSERT INTO {TABLE} (token, voided_at)
SELECT token, voided_at FROM {TABLE} WHERE token = %s
UNION ALL
SELECT NULL, NULL WHERE current_setting('transaction_isolation') <> 'read committed'
"""  # noqa: S608 - a constant

# It forgets, by the way, what is too old to come late.
_VOID = f"""
WITH forgotten AS (
    DELETE FROM {TABLE} WHERE token = ANY(ARRAY(
        SELECT token FROM {TABLE}
        WHERE voided_at < now() - interval '1 day' AND token <> %(token)s
        LIMIT 1000 FOR UPDATE SKIP LOCKED
    ))
)
INSERT INTO {TABLE} (token, voided_at) VALUES (%(token)s, now())
ON CONFLICT (token) DO UPDATE SET voided_at = EXCLUDED.voided_at
"""  # noqa: S608 - a constant

# A pooler may send what only reads to a standby, which knows of no lock.
_TERMINATE = """
WITH holders AS (
    SELECT pid, usename = session_user AND datname = current_database() AS ours
    FROM pg_catalog.pg_locks LEFT JOIN pg_catalog.pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND objsubid = 1
    AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
    AND classid = (%(token)s::bigint >> 32)::oid
    AND objid = (%(token)s::bigint & 4294967295)::oid
)
SELECT
    pg_is_in_recovery() OR EXISTS (SELECT FROM holders) AS present,
    (SELECT count(pg_terminate_backend(pid)) FROM holders WHERE ours) AS terminated
"""

_IMPOSSIBLE = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.NotNullViolation,
)

# Seconds after which a write looks again for a table that was missing.
_LOOK_AGAIN = 600.0

_NEXT_STEP = (
    f"next step: call setup() once through the pooler, as a role that may create {TABLE}, and "
    f"GRANT SELECT, INSERT, UPDATE, DELETE ON {TABLE} to the roles that write"
)
_ADVICE = (
    f"lghard: with the table {TABLE}, and READ COMMITTED as the default isolation level, it is "
    f"repeated safely; {_NEXT_STEP}"
)


class Locking:
    """An attempt that holds a lock before it does anything.

    Args:
        token: the key of the lock, 63 random bits.
    """

    def __init__(self, token: int) -> None:
        self.token = token

    @override
    def __str__(self) -> str:
        return f"what it had sent (token {self.token})"

    @property
    def opening(self) -> Sequence[Statement]:
        """What takes the lock. Nothing else may be sent before it has been answered."""
        return (Statement(_LOCK, (self.token,)),)

    async def is_over(self, conn: Connection) -> bool:
        """Whether nobody holds its lock.

        `pg_terminate_backend` is no proof by itself: a frozen process obeys when it thaws.
        """
        async with conn.cursor(row_factory=dict_row) as cur:
            try:
                await cur.execute(_TERMINATE, {"token": self.token}, prepare=False)
            except psycopg.errors.InsufficientPrivilege:
                return False  # it belongs to a role that this session has put aside
            row: dict[str, Any] = await cur.fetchone() or {}
        return not row["present"]


class Voidable(Locking):
    """An attempt that can be declared void: it may be sent as one message."""

    @property
    @override
    def opening(self) -> Sequence[Statement]:
        """What takes the lock, and fails if the token is void."""
        return *super().opening, Statement(_REFUSE_VOIDED, (self.token,))

    @override
    async def is_over(self, conn: Connection) -> bool:
        """Declare it void; whether nobody holds its lock.

        Raises:
            Unprovable: this role may not declare it void, or the table is not there any more.
        """
        async with conn.cursor() as cur:
            try:
                await cur.execute(_VOID, {"token": self.token}, prepare=False)
            except _IMPOSSIBLE as error:
                raise Unprovable from error
        await conn.commit()  # which is nothing in autocommit mode
        return await super().is_over(conn)


def attempt_on(
    conn: Connection, pool: AsyncConnectionPool[Any] | None, *, stepwise: bool = False
) -> Attempt:
    """A new attempt on a connection of `pool`, told by a token where that is necessary.

    Args:
        conn: the connection.
        pool: where it comes from.
        stepwise: each of its statements is sent when the one before has been answered.
    """
    if _is_pooled(pool) and stepwise:
        return Locking(secrets.randbits(63))
    if _is_pooled(pool) and monotonic() >= pool._unvoidable_until:
        return Voidable(secrets.randbits(63))
    return Backend.of(conn)


def _is_pooled(pool: AsyncConnectionPool[Any] | None) -> TypeGuard[ManagedPool[Any]]:
    return isinstance(pool, ManagedPool) and bool(pool.pooler)


def is_impossible(error: Exception | None) -> bool:
    """Whether an attempt failed for its opening alone: nothing of it was executed."""
    if not isinstance(error, _IMPOSSIBLE):
        return False
    return TABLE in f"{error.diag.table_name} {error.diag.message_primary}"


def note_impossible(pool: AsyncConnectionPool[Any] | None) -> None:
    """Attempts on `pool` are not voidable for a while."""
    if isinstance(pool, ManagedPool):
        pool._unvoidable_until = monotonic() + _LOOK_AGAIN


def advice(pool: AsyncConnectionPool[Any] | None) -> str:
    """What to do so that attempts on `pool` become voidable; nothing, if they are."""
    return _ADVICE if _is_pooled(pool) and monotonic() < pool._unvoidable_until else ""


async def provide(conn: Connection, pool: AsyncConnectionPool[Any]) -> None:
    """Create the table where it is of use, or say that it is missing."""
    pooler = getattr(pool, "pooler", None)
    if pooler is None:
        pooler = await is_pooled(conn)
    if isinstance(pool, ManagedPool):
        pool.pooler = pooler
    obstacle = await _create(conn) if pooler else None
    if obstacle and not advice(pool):
        logger.warning(
            "the table %s could not be created: %s; until it is there, a write that loses its "
            "connection behind a pooler is not repeated, and its outcome is unknown; %s",
            *(TABLE, obstacle, _NEXT_STEP),
        )
        note_impossible(pool)
    elif not obstacle and isinstance(pool, ManagedPool):
        pool._unvoidable_until = 0.0


async def _create(conn: Connection) -> str:
    """Create the table, if it is not there; returns what was in the way, if anything was."""
    async with conn.cursor(row_factory=dict_row) as cur:
        if await missing(cur, [TABLE]):
            try:
                async with conn.transaction():
                    await cur.execute(_CREATE)
            except psycopg.Error as error:
                if conn.closed:
                    raise
                if await missing(cur, [TABLE]):  # no other replica was faster
                    return error.diag.message_primary or str(error)
    return ""
