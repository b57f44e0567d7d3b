"""Stores to compare, and a stand-in for pgvector, which the servers of the test kit do not have."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from langgraph.store.postgres import AsyncPostgresStore
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from tests.postgres.checkpoints import query

USER = ("users", "ada")

# pgvector's type as SQL sees it: what is inserted and searched for arrives, and is compared. The
# extension itself counts as created.
VECTOR = """
CREATE TYPE vector;
CREATE FUNCTION vector_in(cstring) RETURNS vector LANGUAGE internal IMMUTABLE STRICT AS 'textin';
CREATE FUNCTION vector_out(vector) RETURNS cstring
    LANGUAGE internal IMMUTABLE STRICT AS 'textout';
CREATE FUNCTION vector_typmod_in(cstring[]) RETURNS integer
    LANGUAGE internal IMMUTABLE STRICT AS 'varchartypmodin';
CREATE TYPE vector (INPUT = vector_in, OUTPUT = vector_out, TYPMOD_IN = vector_typmod_in);
CREATE CAST (float8[] AS vector) WITH INOUT AS ASSIGNMENT;
CREATE FUNCTION cosine_distance(a vector, b vector) RETURNS float8 LANGUAGE sql IMMUTABLE AS $$
    SELECT 1 - sum(x * y) / sqrt(sum(x * x) * sum(y * y))
    FROM unnest(a::text::float8[], b::text::float8[]) AS pairs (x, y)
$$;
CREATE OPERATOR <=> (LEFTARG = vector, RIGHTARG = vector, FUNCTION = cosine_distance);
CREATE TABLE vector_migrations (v integer PRIMARY KEY);
INSERT INTO vector_migrations VALUES (0);
"""


async def execute(conninfo: str, *statements: str) -> None:
    """Do this as a stranger to the pool."""
    async with await AsyncConnection.connect(conninfo, autocommit=True) as conn:
        for statement in statements:
            await conn.execute(statement)


@asynccontextmanager
async def upstream_store(conninfo: str, **options: Any) -> AsyncIterator[AsyncPostgresStore]:
    """Upstream's, on upstream's pool, and stopped."""
    async with AsyncConnectionPool(conninfo, kwargs={"autocommit": True}, open=False) as pool:
        await pool.wait()
        store = AsyncPostgresStore(pool, **options)
        try:
            yield store
        finally:
            if store._task:
                store._task.cancel()


class Embedding:
    """Counts the vowels of a text; when told to, only after `gate` has been opened."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.gate: Callable[[], Awaitable[Any]] | None = None

    async def __call__(self, texts: list[str]) -> list[list[float]]:
        self.texts += texts
        if self.gate:
            await self.gate()
        return [[1.0 + text.count(vowel) for vowel in "aeiou"] for text in texts]

    @property
    def index(self) -> Any:
        """The configuration of a store that embeds with this, without an index."""
        kind = {"kind": "flat"}
        return {"dims": 5, "embed": self, "fields": ["text"], "ann_index_config": kind}


async def stored(conninfo: str, namespace: tuple[str, ...] = USER) -> dict[str, Any]:
    """Keys and values, as the database has them."""
    select = "SELECT key, value FROM store WHERE prefix = %s"
    return dict(await query(conninfo, select, ".".join(namespace)))
