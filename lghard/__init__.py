"""lghard makes a LangGraph application survive production.

Every public name is imported on first use (PEP 562), so that `import lghard` costs nothing: it
loads none of langgraph, psycopg, httpx or pydantic.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lghard.errors import (
        ForeignLoopError,
        LghardError,
        SchemaSetupError,
        ThreadAccessError,
        ThreadBusyError,
        ThreadDeletedError,
        ThreadIdError,
        ThreadLockLostError,
    )
    from lghard.postgres import (
        HardenedAsyncPostgresSaver,
        ManagedPool,
        PoolOpenError,
        PoolPlan,
        PoolSettings,
        StatementRefusedError,
        ThreadLease,
        close_shared_pools,
        open_checkpointer,
        open_pool,
        open_store,
        plan_pool,
        shared_pool,
        thread_lock,
    )
    from lghard.threads import Principal, Role, ThreadAccess, ThreadId, ThreadNamespace

__all__ = [
    "ForeignLoopError",
    "HardenedAsyncPostgresSaver",
    "LghardError",
    "ManagedPool",
    "PoolOpenError",
    "PoolPlan",
    "PoolSettings",
    "Principal",
    "Role",
    "SchemaSetupError",
    "StatementRefusedError",
    "ThreadAccess",
    "ThreadAccessError",
    "ThreadBusyError",
    "ThreadDeletedError",
    "ThreadId",
    "ThreadIdError",
    "ThreadLease",
    "ThreadLockLostError",
    "ThreadNamespace",
    "close_shared_pools",
    "open_checkpointer",
    "open_pool",
    "open_store",
    "plan_pool",
    "shared_pool",
    "thread_lock",
]

_HOMES = {
    "ForeignLoopError": "lghard.errors",
    "HardenedAsyncPostgresSaver": "lghard.postgres",
    "LghardError": "lghard.errors",
    "ManagedPool": "lghard.postgres",
    "PoolOpenError": "lghard.postgres",
    "PoolPlan": "lghard.postgres",
    "PoolSettings": "lghard.postgres",
    "Principal": "lghard.threads",
    "Role": "lghard.threads",
    "SchemaSetupError": "lghard.errors",
    "StatementRefusedError": "lghard.postgres",
    "ThreadAccess": "lghard.threads",
    "ThreadAccessError": "lghard.errors",
    "ThreadBusyError": "lghard.errors",
    "ThreadDeletedError": "lghard.errors",
    "ThreadId": "lghard.threads",
    "ThreadIdError": "lghard.errors",
    "ThreadLease": "lghard.postgres",
    "ThreadLockLostError": "lghard.errors",
    "ThreadNamespace": "lghard.threads",
    "close_shared_pools": "lghard.postgres",
    "open_checkpointer": "lghard.postgres",
    "open_pool": "lghard.postgres",
    "open_store": "lghard.postgres",
    "plan_pool": "lghard.postgres",
    "shared_pool": "lghard.postgres",
    "thread_lock": "lghard.postgres",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
