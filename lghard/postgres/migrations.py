"""Creating LangGraph's tables, by any number of replicas at once."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from time import monotonic
from typing import Any, NamedTuple

import psycopg
from psycopg import sql
from psycopg.rows import DictRow, dict_row

from lghard.errors import SchemaSetupError
from lghard.postgres.liveness import Connection, abort_after, is_pooled


class Schema(NamedTuple):
    """Tables of LangGraph's, and the statements that made them what they are.

    Attributes:
        versions: the table that says which statements have been executed.
        tables: those that they create.
        migrations: the statement of each version.
        further: tables of our own by name, and how to create each.
    """

    versions: str
    tables: Sequence[str]
    migrations: Mapping[int, str]
    further: Mapping[str, str]


def checkpoints(migrations: Sequence[str], further: Mapping[str, str]) -> Schema:
    """The tables of a checkpointer."""
    tables = "checkpoints", "checkpoint_blobs", "checkpoint_writes"
    return Schema("checkpoint_migrations", tables, dict(enumerate(migrations)), further)


# Only where they would be created: what other schemas of the search_path have is not ours.
_EXISTS = """
SELECT to_regclass(quote_ident(current_schema()) || '.' || quote_ident(%s)) IS NOT NULL AS answer
"""

# Left behind by a CREATE INDEX CONCURRENTLY that was cancelled. Only LangGraph's own indexes are
# ours to mend, and not while somebody is building them.
_INVALID_INDEXES = """
SELECT c.relname AS name
FROM pg_catalog.pg_index AS i
JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_class AS t ON t.oid = i.indrelid
WHERE NOT i.indisvalid
AND t.relnamespace = to_regnamespace(quote_ident(current_schema()))
AND t.relname = ANY(%s)
AND NOT EXISTS (
    SELECT FROM pg_catalog.pg_stat_progress_create_index AS p WHERE p.index_relid = i.indexrelid
)
"""

# One migration at a time in each schema; the number says whose lock it is.
_LOCK = "hashtext('lghard.migrations'), hashtext(coalesce(current_schema(), ''))"
_HOLDER = """
SELECT a.pid, a.application_name, a.state, a.query_start
FROM pg_catalog.pg_locks AS l JOIN pg_catalog.pg_stat_activity AS a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
AND l.classid = (hashtext('lghard.migrations')::bigint & 4294967295)::oid
AND l.objid = (hashtext(coalesce(current_schema(), ''))::bigint & 4294967295)::oid
"""


# Seconds that one question may take when the time for waiting is over.
_GRACE = 1.0


async def migrate(
    conn: psycopg.AsyncConnection[DictRow], schema: Schema, *, patience: float
) -> None:
    """Bring the tables up to their last migration; without any DDL if they are.

    `setup()` of the base class fails when two replicas call it at once, and takes an index for
    granted that a cancelled run has left behind INVALID. A lock that is waited for would be worse
    than none: whoever waits holds a snapshot, for which CREATE INDEX CONCURRENTLY waits in turn.

    Args:
        conn: a connection in autocommit mode.
        schema: the tables.
        patience: seconds to wait for another replica that is at it.

    Raises:
        SchemaSetupError: this role may not, or somebody else does not get done.
    """
    async with conn.cursor(row_factory=dict_row) as cur:
        try:
            if await missing(cur, schema.further) or not await _is_current(cur, schema):
                async with _alone(cur, patience):
                    await _rebuild_invalid_indexes(cur, schema)
                    await _run_missing(cur, schema)
                    for table in await missing(cur, schema.further):
                        await cur.execute(schema.further[table].encode())
        except asyncio.CancelledError:
            conn.pgconn.finish()  # whose session may still have the lock, or no timeouts
            raise
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidSchemaName) as error:
            tables = schema.versions, *schema.tables, *schema.further
            raise await _refusal(cur, tables, error) from error


Cursor = psycopg.AsyncCursor[DictRow]


async def _is_current(cur: Cursor, schema: Schema) -> bool:
    if await missing(cur, [schema.versions]):
        return False
    version = await _version(cur, schema)
    return version >= max(schema.migrations) and not await _invalid_indexes(cur, schema)


async def _version(cur: Cursor, schema: Schema) -> int:
    version = await _answer(cur, f"SELECT max(v) AS answer FROM {schema.versions}")  # noqa: S608 - a constant
    return -1 if version is None else int(version)


async def _invalid_indexes(cur: Cursor, schema: Schema) -> list[str]:
    await cur.execute(_INVALID_INDEXES, [[*schema.tables]])
    names = [row["name"] for row in await cur.fetchall()]
    return [name for name in names if _creating(schema, name)]


def _creating(schema: Schema, index: str) -> list[str]:
    return [each for each in schema.migrations.values() if f" {index} " in each]


@asynccontextmanager
async def _alone(cur: Cursor, patience: float) -> AsyncIterator[None]:
    """While nobody else migrates this schema."""
    ends_at = monotonic() + patience
    if await is_pooled(cur.connection):
        async with _lock_behind_a_pooler(cur, ends_at):
            yield
    else:
        async with _unhurried(cur), _lock(cur, ends_at):
            yield


@asynccontextmanager
async def _unhurried(cur: Cursor) -> AsyncIterator[None]:
    """Without the session's timeouts, which are meant for statements that users wait for."""
    names = "statement_timeout", "lock_timeout"
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
async def _lock(cur: Cursor, ends_at: float) -> AsyncIterator[None]:
    """The lock of this schema's migrations, polled for."""
    while not await _answer(cur, f"SELECT pg_try_advisory_lock({_LOCK}) AS answer"):
        await _pause(cur, ends_at)
    try:
        yield
    finally:
        if not cur.connection.closed:
            await _answer(cur, f"SELECT pg_advisory_unlock({_LOCK}) AS answer")


@asynccontextmanager
async def _lock_behind_a_pooler(cur: Cursor, ends_at: float) -> AsyncIterator[None]:
    """The same lock, held by an open transaction on a connection of its own.

    A transaction pooler gives each statement another session, so that none can hold a lock, except
    for the length of a transaction; and there, indexes cannot be created concurrently. A READ
    COMMITTED transaction that is idle has no snapshot for which they would wait.
    """
    info = cur.connection.info
    async with (
        await Connection.connect(
            info.dsn, password=info.password, autocommit=True, prepare_threshold=None
        ) as guard,
        guard.cursor(row_factory=dict_row) as own,
    ):
        while True:
            async with AsyncExitStack() as transaction:
                with abort_after(guard, ends_at - monotonic() + _GRACE):
                    await transaction.enter_async_context(guard.transaction())
                    is_ours = await _take_for_the_transaction(own)
                if is_ours:
                    await _make_sure_of_a_second_session(cur, ends_at)
                    yield
                    return
            await _pause(own, ends_at)


async def _take_for_the_transaction(cur: Cursor) -> bool:
    await cur.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
    await cur.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
    return bool(await _answer(cur, f"SELECT pg_try_advisory_xact_lock({_LOCK}) AS answer"))


async def _make_sure_of_a_second_session(cur: Cursor, ends_at: float) -> None:
    """Or the migration would wait for the session that holds its own lock."""
    try:
        with abort_after(cur.connection, ends_at - monotonic() + _GRACE):
            await cur.execute("SELECT 1")
    except psycopg.OperationalError as error:
        if monotonic() < ends_at:  # it was not for want of time
            raise
        raise SchemaSetupError(
            "the pooler has given setup() one connection to the server, and no second one: raise "
            "its default_pool_size to 2 at least, or call setup() once over a direct connection"
        ) from error


async def _pause(cur: Cursor, ends_at: float) -> None:
    """Before the next attempt at the lock; raise if there is no time for another."""
    if monotonic() >= ends_at:
        await cur.execute(_HOLDER)
        raise _occupied(await cur.fetchone())
    await asyncio.sleep(random.uniform(0.05, 0.2))  # noqa: S311 - jitter


def _occupied(holder: DictRow | None) -> SchemaSetupError:
    if holder is None:
        return SchemaSetupError("other replicas kept setting up LangGraph's tables: try again")
    return SchemaSetupError(
        "another session is setting up LangGraph's tables, and has not come to an end: pid "
        f"{holder['pid']}, application_name {holder['application_name']!r}, {holder['state']} "
        f"since {holder['query_start']}; next step: wait, if it builds an index, with a longer "
        f"deadline; if its replica is gone, SELECT pg_terminate_backend({holder['pid']})"
    )


async def _refusal(cur: Cursor, tables: Iterable[str], error: psycopg.Error) -> SchemaSetupError:
    """What is missing, and who can help."""
    await cur.connection.rollback()  # which is nothing in autocommit mode
    await cur.execute("SELECT current_schema() AS schema, current_user AS role")
    row = await cur.fetchone() or {}
    schema, role = row["schema"], row["role"]
    if schema is None:
        step = "CREATE SCHEMA, or correct the search_path"
        return SchemaSetupError(f"no schema for LangGraph's tables: {error}; next step: {step}")
    if absent := await missing(cur, tables):
        what = f"tables are missing in schema {schema} ({', '.join(absent)})"
        step = f"GRANT CREATE ON SCHEMA {schema} TO {role}"
    else:
        what = f"the tables in schema {schema} are out of date, or not to be read"
        step = f"GRANT SELECT, INSERT, UPDATE, DELETE ON {', '.join(tables)} TO {role}"
    return SchemaSetupError(
        f"{what}, and role {role} may not change that: {error.diag.message_primary}; next step: "
        f"{step}, or call setup() once as a role that may, usually the owner"
    )


async def missing(cur: Cursor, tables: Iterable[str]) -> list[str]:
    """Those of `tables` that are not there, where they would be created."""
    return [table for table in tables if not await _answer(cur, _EXISTS, table)]


async def _answer(cur: Cursor, query: str, *params: Any) -> Any:
    await cur.execute(query, params)
    row = await cur.fetchone()
    return row["answer"] if row else None


async def _rebuild_invalid_indexes(cur: Cursor, schema: Schema) -> None:
    for name in await _invalid_indexes(cur, schema):
        await cur.execute(
            sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(name))
        )
        for statement in _creating(schema, name):
            await cur.execute(statement)


async def _run_missing(cur: Cursor, schema: Schema) -> None:
    """As the base class."""
    await cur.execute(f"CREATE TABLE IF NOT EXISTS {schema.versions} (v INTEGER PRIMARY KEY)")
    reached = await _version(cur, schema)
    for version, statement in schema.migrations.items():
        if version > reached:
            await cur.execute(statement)
            await cur.execute(f"INSERT INTO {schema.versions} (v) VALUES (%s)", (version,))  # noqa: S608 - a constant
