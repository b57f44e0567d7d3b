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
        RunCancelledError,
        RunDeadlineError,
        RunFailedError,
        RunKeyReusedError,
        RunOutcomeUnknownError,
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
    from lghard.sdk import (
        CircuitOpenError,
        RunHandle,
        RunPolicy,
        RunResult,
        await_run,
        create_run_once,
        forget_run_key,
        get_client,
        get_sync_client,
        harden_client,
        start_run,
    )
    from lghard.threads import (
        Principal,
        Role,
        ThreadAccess,
        ThreadId,
        ThreadNamespace,
    )

__all__ = [
    "CircuitOpenError",
    "ForeignLoopError",
    "HardenedAsyncPostgresSaver",
    "LghardError",
    "ManagedPool",
    "PoolOpenError",
    "PoolPlan",
    "PoolSettings",
    "Principal",
    "Role",
    "RunCancelledError",
    "RunDeadlineError",
    "RunFailedError",
    "RunHandle",
    "RunKeyReusedError",
    "RunOutcomeUnknownError",
    "RunPolicy",
    "RunResult",
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
    "await_run",
    "close_shared_pools",
    "create_run_once",
    "forget_run_key",
    "get_client",
    "get_sync_client",
    "harden_client",
    "open_checkpointer",
    "open_pool",
    "open_store",
    "plan_pool",
    "shared_pool",
    "start_run",
    "thread_lock",
]

_HOMES = {
    "CircuitOpenError": "lghard.sdk",
    "ForeignLoopError": "lghard.errors",
    "HardenedAsyncPostgresSaver": "lghard.postgres",
    "LghardError": "lghard.errors",
    "ManagedPool": "lghard.postgres",
    "PoolOpenError": "lghard.postgres",
    "PoolPlan": "lghard.postgres",
    "PoolSettings": "lghard.postgres",
    "Principal": "lghard.threads",
    "Role": "lghard.threads",
    "RunCancelledError": "lghard.errors",
    "RunDeadlineError": "lghard.errors",
    "RunFailedError": "lghard.errors",
    "RunHandle": "lghard.sdk",
    "RunKeyReusedError": "lghard.errors",
    "RunOutcomeUnknownError": "lghard.errors",
    "RunPolicy": "lghard.sdk",
    "RunResult": "lghard.sdk",
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
    "await_run": "lghard.sdk",
    "close_shared_pools": "lghard.postgres",
    "create_run_once": "lghard.sdk",
    "forget_run_key": "lghard.sdk",
    "get_client": "lghard.sdk",
    "get_sync_client": "lghard.sdk",
    "harden_client": "lghard.sdk",
    "open_checkpointer": "lghard.postgres",
    "open_pool": "lghard.postgres",
    "open_store": "lghard.postgres",
    "plan_pool": "lghard.postgres",
    "shared_pool": "lghard.postgres",
    "start_run": "lghard.sdk",
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
