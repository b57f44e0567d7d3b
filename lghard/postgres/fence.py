"""A deleted thread stays deleted: what arrives late is refused.

A run that is still at work when its thread is deleted writes its next checkpoint afterwards, and so
brings back a part of the thread. Here the deletion leaves a tombstone for a while, which every
write looks for in its own transaction. A lock for each thread, shared between writers, keeps the
two apart: a write that came first is waited for and deleted, and one that comes later sees the
tombstone. It belongs to the transaction, so it works behind a transaction pooler as well.
"""

from collections.abc import Sequence
from typing import Final

from psycopg import AsyncCursor
from psycopg.rows import DictRow

from lghard.postgres.statements import Statement

TABLES: Final = {
    "lghard_deleted_threads": """
        CREATE TABLE IF NOT EXISTS lghard_deleted_threads (
            thread_id TEXT PRIMARY KEY,
            forget_at TIMESTAMPTZ NOT NULL
        );
        CREATE INDEX IF NOT EXISTS lghard_deleted_threads_forget_at_idx
        ON lghard_deleted_threads (forget_at);
    """
}
PRIMARY_KEY: Final = "lghard_deleted_threads_pkey"

# Two statements: the second one's snapshot is younger than the lock. It inserts what is there
# already, which is nothing, or a violation of the primary key.
_LOCK_SHARED = "SELECT pg_advisory_xact_lock_shared(hashtext('lghard.threads'), hashtext(%s))"
_REFUSE_DELETED = """
INSERT INTO lghard_deleted_threads (thread_id, forget_at)
SELECT thread_id, forget_at FROM lghard_deleted_threads WHERE thread_id = %s AND forget_at > now()
"""

_BOUND_WAIT = (
    "SELECT set_config('lock_timeout', %s, true) WHERE current_setting('lock_timeout') = '0'"
)
_LOCK = """
SELECT pg_advisory_xact_lock(hashtext('lghard.threads'), key)
FROM (SELECT DISTINCT hashtext(id) AS key FROM unnest(%s::text[]) AS id ORDER BY key) AS keys
"""
_BURY = """
INSERT INTO lghard_deleted_threads (thread_id, forget_at)
SELECT DISTINCT id, now() + make_interval(secs => %s) FROM unnest(%s::text[]) AS id ORDER BY id
ON CONFLICT (thread_id) DO UPDATE
SET forget_at = greatest(lghard_deleted_threads.forget_at, EXCLUDED.forget_at)
"""
_FORGET = """
DELETE FROM lghard_deleted_threads WHERE thread_id = ANY(ARRAY(
    SELECT thread_id FROM lghard_deleted_threads WHERE forget_at <= now()
    LIMIT 1000 FOR UPDATE SKIP LOCKED
))
"""


def refuse_deleted(thread_id: str) -> list[Statement]:
    """What stands before the statements of a write, and fails if the thread has been deleted."""
    return [Statement(_LOCK_SHARED, (thread_id,)), Statement(_REFUSE_DELETED, (thread_id,))]


async def bury(
    cur: AsyncCursor[DictRow], thread_ids: Sequence[str], *, fence: float, patience: float
) -> None:
    """Keep writers out, in the transaction that `cur` is in and for `fence` seconds after it.

    Args:
        cur: in a transaction that goes on to delete the threads.
        thread_ids: the threads.
        fence: seconds for which they stay deleted.
        patience: seconds to wait for writers that came first, unless there is a lock_timeout.
    """
    ids = list(thread_ids)
    await cur.execute(_BOUND_WAIT, (f"{patience * 1000:.0f}ms",))
    await cur.execute(_LOCK, (ids,))
    await cur.execute(_FORGET)
    await cur.execute(_BURY, (fence, ids))
