"""What is deleted, pruned and copied with a whole thread or run: all of it, or nothing."""

from collections.abc import Sequence
from typing import Final

from psycopg import AsyncCursor
from psycopg.rows import DictRow

STRATEGIES: Final = {"keep_latest": "keep_latest", "delete": "delete", "delete_all": "delete"}
"""The strategies of `aprune`; a LangGraph server's engine says "delete_all"."""

# The metadata of a copied checkpoint say from which thread it came. It keeps the run id of its
# original, but is not that run's work: rolling the run back must not touch it.
#
# A checkpoint whose DeltaChannel is not a snapshot has counters, and is nothing without the writes
# of its ancestors. LangGraph.js marks the threads of such graphs at their start instead.
#
# `metadata ->> 'run_id'` is spelled as in the index that docs/how-to/checkpointer.md recommends.
DELETE_FOR_RUNS = """
WITH doomed AS MATERIALIZED (
    SELECT thread_id, checkpoint_ns, checkpoint_id, checkpoint -> 'channel_versions' AS versions
    FROM checkpoints
    WHERE metadata ->> 'run_id' = ANY(%(run_ids)s) AND NOT metadata ? 'lghard_copied_from'
),
survivors AS MATERIALIZED (
    SELECT
        thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id,
        checkpoint -> 'channel_versions' AS versions, (
            metadata ? 'counters_since_delta_snapshot' OR metadata ? 'delta_writes_versioned'
        ) AS delta
    FROM checkpoints JOIN (SELECT DISTINCT thread_id, checkpoint_ns FROM doomed) AS namespaces
        USING (thread_id, checkpoint_ns)
    WHERE (metadata ->> 'run_id' = ANY(%(run_ids)s)) IS NOT TRUE OR metadata ? 'lghard_copied_from'
),
orphans AS MATERIALIZED (
    SELECT s.thread_id, s.checkpoint_ns, s.checkpoint_id, s.delta
    FROM survivors AS s JOIN doomed AS d
        ON s.thread_id = d.thread_id AND s.checkpoint_ns = d.checkpoint_ns
        AND s.parent_checkpoint_id = d.checkpoint_id
),
severed AS MATERIALIZED (
    SELECT DISTINCT thread_id FROM orphans WHERE delta
),
garbage AS (
    SELECT thread_id, checkpoint_ns, v.key AS channel, v.value AS version
    FROM doomed CROSS JOIN LATERAL jsonb_each_text(versions) AS v
    EXCEPT
    SELECT thread_id, checkpoint_ns, v.key, v.value
    FROM survivors CROSS JOIN LATERAL jsonb_each_text(versions) AS v
),
deleted_writes AS (
    DELETE FROM checkpoint_writes AS w USING doomed AS d
    WHERE w.thread_id = d.thread_id AND w.checkpoint_ns = d.checkpoint_ns
    AND w.checkpoint_id = d.checkpoint_id AND NOT EXISTS (SELECT FROM severed)
),
deleted_blobs AS (
    DELETE FROM checkpoint_blobs AS b USING garbage AS g
    WHERE b.thread_id = g.thread_id AND b.checkpoint_ns = g.checkpoint_ns
    AND b.channel = g.channel AND b.version = g.version AND NOT EXISTS (SELECT FROM severed)
),
deleted_checkpoints AS (
    DELETE FROM checkpoints AS c USING doomed AS d
    WHERE c.thread_id = d.thread_id AND c.checkpoint_ns = d.checkpoint_ns
    AND c.checkpoint_id = d.checkpoint_id AND NOT EXISTS (SELECT FROM severed)
),
roots AS (
    UPDATE checkpoints AS c SET parent_checkpoint_id = NULL FROM orphans AS o
    WHERE c.thread_id = o.thread_id AND c.checkpoint_ns = o.checkpoint_ns
    AND c.checkpoint_id = o.checkpoint_id AND NOT EXISTS (SELECT FROM severed)
)
SELECT thread_id FROM severed ORDER BY thread_id
"""

# Of target, target, source; target, source; target, source.
COPY_THREAD = """
WITH copied_checkpoints AS (
    INSERT INTO checkpoints (
        thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata
    )
    SELECT
        %s, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint,
        metadata || jsonb_build_object('lghard_copied_from', thread_id)
        || CASE WHEN metadata ? 'thread_id'
            THEN jsonb_build_object('thread_id', %s::text) ELSE '{}' END
    FROM checkpoints WHERE thread_id = %s
    ON CONFLICT DO NOTHING
),
copied_blobs AS (
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT %s, checkpoint_ns, channel, version, type, blob
    FROM checkpoint_blobs WHERE thread_id = %s
    ON CONFLICT DO NOTHING
)
INSERT INTO checkpoint_writes (
    thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path
)
SELECT %s, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path
FROM checkpoint_writes WHERE thread_id = %s
ON CONFLICT DO NOTHING
"""

# Ten thousand rows of each table at a time: however large the thread, no statement is so large that
# it runs into a statement_timeout. A row that is overwritten meanwhile has moved, and is missed.
_DELETE_SOME = """
WITH some_checkpoints AS (
    DELETE FROM checkpoints WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM checkpoints WHERE thread_id = ANY(%(thread_ids)s) LIMIT 10000
    )) RETURNING 1
),
some_blobs AS (
    DELETE FROM checkpoint_blobs WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM checkpoint_blobs WHERE thread_id = ANY(%(thread_ids)s) LIMIT 10000
    )) RETURNING 1
),
some_writes AS (
    DELETE FROM checkpoint_writes WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM checkpoint_writes WHERE thread_id = ANY(%(thread_ids)s) LIMIT 10000
    )) RETURNING 1
)
SELECT 10000 = greatest(
    (SELECT count(*) FROM some_checkpoints),
    (SELECT count(*) FROM some_blobs),
    (SELECT count(*) FROM some_writes)
) AS more
"""

_DELETE_REST = """
WITH rest_of_checkpoints AS (DELETE FROM checkpoints WHERE thread_id = ANY(%(thread_ids)s)),
rest_of_blobs AS (DELETE FROM checkpoint_blobs WHERE thread_id = ANY(%(thread_ids)s))
DELETE FROM checkpoint_writes WHERE thread_id = ANY(%(thread_ids)s)
"""


async def delete_threads(cur: AsyncCursor[DictRow], thread_ids: Sequence[str]) -> None:
    """Delete everything of these threads, in the transaction that `cur` is in."""
    params = {"thread_ids": list(thread_ids)}
    more = True
    while more:
        await cur.execute(_DELETE_SOME, params, prepare=False)
        row = await cur.fetchone()
        more = row is not None and row["more"]
    await cur.execute(_DELETE_REST, params, prepare=False)
