"""Creating LangGraph's tables, by any number of replicas at once."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import DictRow, dict_row

from lghard.postgres.liveness import is_pooled

_VERSION = "SELECT max(v) AS version FROM checkpoint_migrations"

# Left behind by a CREATE INDEX CONCURRENTLY that was cancelled. Only LangGraph's own indexes are
# ours to mend, and not while somebody is building them.
_INVALID_INDEXES = """
SELECT c.relname AS name
FROM pg_catalog.pg_index AS i
JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
WHERE NOT i.indisvalid
AND i.indrelid IN (
    to_regclass('checkpoints'), to_regclass('checkpoint_blobs'), to_regclass('checkpoint_writes')
)
AND NOT EXISTS (
    SELECT FROM pg_catalog.pg_stat_progress_create_index AS p WHERE p.index_relid = i.indexrelid
)
"""

# One migration at a time in each schema; the number says whose lock it is.
_LOCK = "hashtext('lghard.migrations'), hashtext(current_schema())"


async def migrate(conn: psycopg.AsyncConnection[DictRow], migrations: Sequence[str]) -> None:
    """Bring the tables up to the last of `migrations`; without any DDL if they are.

    `setup()` of the base class fails when two replicas call it at once, and takes an index for
    granted that a cancelled run has left behind INVALID. A lock that is waited for would be worse
    than none: whoever waits holds a snapshot, for which CREATE INDEX CONCURRENTLY waits in turn.

    Args:
        conn: a connection in autocommit mode.
        migrations: the statements; the position of each is its version.
    """
    async with conn.cursor(row_factory=dict_row) as cur:
        if await _is_current(cur, migrations):
            return
        # A transaction pooler gives each statement another session, and none can hold a lock.
        alone = not await is_pooled(conn)
        async with _unhurried(cur, alone=alone), _lock(cur, held=alone):
            await _rebuild_invalid_indexes(cur, migrations)
            await _run_missing(cur, migrations)


Cursor = psycopg.AsyncCursor[DictRow]


async def _is_current(cur: Cursor, migrations: Sequence[str]) -> bool:
    try:
        version = await _version(cur)
    except psycopg.errors.UndefinedTable:
        return False
    return version >= len(migrations) - 1 and not await _invalid_indexes(cur, migrations)


async def _version(cur: Cursor) -> int:
    await cur.execute(_VERSION)
    row = await cur.fetchone()
    return -1 if row is None or row["version"] is None else int(row["version"])


async def _invalid_indexes(cur: Cursor, migrations: Sequence[str]) -> list[str]:
    await cur.execute(_INVALID_INDEXES)
    names = [row["name"] for row in await cur.fetchall()]
    return [name for name in names if any(f" {name} " in migration for migration in migrations)]


@asynccontextmanager
async def _unhurried(cur: Cursor, *, alone: bool) -> AsyncIterator[None]:
    """Without the session's timeouts, which are meant for statements that users wait for."""
    names = ("statement_timeout", "lock_timeout") if alone else ()
    before = [await _answer(cur, f"SELECT current_setting('{name}') AS answer") for name in names]
    for name in names:
        await cur.execute(f"SET {name} = 0")
    try:
        yield
    finally:
        if not cur.connection.closed:
            for name, value in zip(names, before, strict=True):
                await cur.execute("SELECT set_config(%s, %s, false)", (name, value))


@asynccontextmanager
async def _lock(cur: Cursor, *, held: bool) -> AsyncIterator[None]:
    """The lock of this schema's migrations, polled for."""
    while held and not await _answer(cur, f"SELECT pg_try_advisory_lock({_LOCK}) AS answer"):  # noqa: ASYNC110 - the server has no event to wait for
        await asyncio.sleep(random.uniform(0.05, 0.2))  # noqa: S311 - jitter
    try:
        yield
    finally:
        if held and not cur.connection.closed:
            await _answer(cur, f"SELECT pg_advisory_unlock({_LOCK}) AS answer")


async def _answer(cur: Cursor, query: str) -> Any:
    await cur.execute(query)
    row = await cur.fetchone()
    return row["answer"] if row else None


async def _rebuild_invalid_indexes(cur: Cursor, migrations: Sequence[str]) -> None:
    for name in await _invalid_indexes(cur, migrations):
        await cur.execute(
            sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(name))
        )
        for migration in migrations:
            if f" {name} " in migration:
                await cur.execute(migration)


async def _run_missing(cur: Cursor, migrations: Sequence[str]) -> None:
    """As the base class."""
    await cur.execute(migrations[0])
    for version in range(await _version(cur) + 1, len(migrations)):
        await cur.execute(migrations[version])
        await cur.execute("INSERT INTO checkpoint_migrations (v) VALUES (%s)", (version,))
