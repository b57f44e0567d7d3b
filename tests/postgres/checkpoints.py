"""Checkpoints to write, and a look at the database from the outside."""

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import Checkpoint, CheckpointMetadata, empty_checkpoint

METADATA: CheckpointMetadata = {"source": "loop", "step": 1, "parents": {}}


def config_of(thread_id: str, checkpoint_id: str | None = None) -> RunnableConfig:
    configurable = {"thread_id": thread_id, "checkpoint_ns": ""}
    if checkpoint_id:
        configurable["checkpoint_id"] = checkpoint_id
    return {"configurable": configurable}


def checkpoint(number: int = 1, **channels: Any) -> Checkpoint:
    """The `number`-th checkpoint of a thread, with these channel values."""
    values = channels or {"messages": [HumanMessage(f"message {number}", id=str(number))]}
    version = f"{number:032}.0"
    made = empty_checkpoint()
    made["id"] = f"1f000000-0000-6000-8000-{number:012}"
    made["channel_values"] = values
    made["channel_versions"] = dict.fromkeys(values, version)
    return made


async def put(saver: Any, thread_id: str, number: int = 1, **channels: Any) -> RunnableConfig:
    """Write that checkpoint."""
    made = checkpoint(number, **channels)
    return await saver.aput(config_of(thread_id), made, METADATA, made["channel_versions"])


async def eventually(condition: Callable[[], Any]) -> Any:
    """The first true answer of `condition`, a function or coroutine function."""
    async with asyncio.timeout(30):
        while True:
            answer = condition()
            if asyncio.iscoroutine(answer):
                answer = await answer
            if answer:
                return answer
            await asyncio.sleep(0.01)


async def query(conninfo: str, sql: str, *args: Any) -> list[Any]:
    """Rows as a stranger to the pool sees them."""
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as conn:
        return await (await conn.execute(sql, args)).fetchall()


async def execute(conninfo: str, *statements: str) -> None:
    """Statements of a stranger to the pool."""
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as conn:
        for statement in statements:
            await conn.execute(statement)


async def waiting_backend(conninfo: str) -> int:
    """The process id of the backend that waits for a lock."""
    return (await waiting_backends(conninfo, 1))[0]


async def waiting_backends(conninfo: str, number: int) -> list[int]:
    """The process ids of the backends that wait for a lock, as soon as there are so many."""

    async def ask() -> list[int]:
        rows = await query(
            conninfo,
            "SELECT pid FROM pg_stat_activity "
            "WHERE wait_event_type = 'Lock' AND datname = current_database()",
        )
        return [pid for (pid,) in rows] if len(rows) >= number else []

    return await eventually(ask)
