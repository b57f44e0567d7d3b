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
        StateNotSerializableError,
        ThreadDeletedError,
    )
    from lghard.postgres import (
        HardenedAsyncPostgresSaver,
        ManagedPool,
        PoolOpenError,
        PoolPlan,
        PoolSettings,
        StatementRefusedError,
        close_shared_pools,
        open_checkpointer,
        open_pool,
        open_store,
        plan_pool,
        shared_pool,
    )
    from lghard.state import (
        CheckedSerializer,
        CheckSettings,
        Finding,
        Report,
        Severity,
        allowlist_of,
        assert_checkpointable,
        check_graph,
        check_schema,
        check_value,
        checked,
        forbid_mutations,
    )

__all__ = [
    "CheckSettings",
    "CheckedSerializer",
    "Finding",
    "ForeignLoopError",
    "HardenedAsyncPostgresSaver",
    "LghardError",
    "ManagedPool",
    "PoolOpenError",
    "PoolPlan",
    "PoolSettings",
    "Report",
    "SchemaSetupError",
    "Severity",
    "StateNotSerializableError",
    "StatementRefusedError",
    "ThreadDeletedError",
    "allowlist_of",
    "assert_checkpointable",
    "check_graph",
    "check_schema",
    "check_value",
    "checked",
    "close_shared_pools",
    "forbid_mutations",
    "open_checkpointer",
    "open_pool",
    "open_store",
    "plan_pool",
    "shared_pool",
]

_HOMES = {
    "CheckSettings": "lghard.state",
    "CheckedSerializer": "lghard.state",
    "Finding": "lghard.state",
    "ForeignLoopError": "lghard.errors",
    "HardenedAsyncPostgresSaver": "lghard.postgres",
    "LghardError": "lghard.errors",
    "ManagedPool": "lghard.postgres",
    "PoolOpenError": "lghard.postgres",
    "PoolPlan": "lghard.postgres",
    "PoolSettings": "lghard.postgres",
    "Report": "lghard.state",
    "SchemaSetupError": "lghard.errors",
    "Severity": "lghard.state",
    "StateNotSerializableError": "lghard.errors",
    "StatementRefusedError": "lghard.postgres",
    "ThreadDeletedError": "lghard.errors",
    "allowlist_of": "lghard.state",
    "assert_checkpointable": "lghard.state",
    "check_graph": "lghard.state",
    "check_schema": "lghard.state",
    "check_value": "lghard.state",
    "checked": "lghard.state",
    "close_shared_pools": "lghard.postgres",
    "forbid_mutations": "lghard.state",
    "open_checkpointer": "lghard.postgres",
    "open_pool": "lghard.postgres",
    "open_store": "lghard.postgres",
    "plan_pool": "lghard.postgres",
    "shared_pool": "lghard.postgres",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
