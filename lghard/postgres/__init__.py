"""Talking to Postgres: the pool, the checkpointer and what keeps them alive."""

try:
    import psycopg as psycopg
except ImportError as error:
    raise ImportError(
        "psycopg finds no libpq, the client library of Postgres: pip install 'lghard[binary]' "
        f"({error})"
    ) from error

# Bound eagerly: the LangGraph server looks a checkpointer's path up in this module's __dict__.
from lghard.postgres.fencing import ThreadLease
from lghard.postgres.health import PoolHealth, PoolSnapshot
from lghard.postgres.leases import thread_lock
from lghard.postgres.opening import PoolOpenError, open_pool
from lghard.postgres.pool import ManagedPool
from lghard.postgres.saver import HardenedAsyncPostgresSaver, open_checkpointer
from lghard.postgres.settings import PoolSettings
from lghard.postgres.shared import close_shared_pools, shared_pool
from lghard.postgres.sizing import PoolPlan, plan_pool
from lghard.postgres.statements import StatementRefusedError
from lghard.postgres.store import open_store

__all__ = [
    "HardenedAsyncPostgresSaver",
    "ManagedPool",
    "PoolHealth",
    "PoolOpenError",
    "PoolPlan",
    "PoolSettings",
    "PoolSnapshot",
    "StatementRefusedError",
    "ThreadLease",
    "close_shared_pools",
    "open_checkpointer",
    "open_pool",
    "open_store",
    "plan_pool",
    "shared_pool",
    "thread_lock",
]
