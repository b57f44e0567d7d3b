"""What the benchmarks share: the contestants, their graph, and how a result is shown and kept."""

import asyncio
import json
import os
import platform
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool
from rich.console import Console
from rich.table import Table

from lghard import open_checkpointer

RESULTS = Path(__file__).parent / "results"
POOL_SIZE = 20

Contestant = Callable[[str], AbstractAsyncContextManager[BaseCheckpointSaver[Any]]]


@asynccontextmanager
async def upstream(
    conninfo: str, *, check: bool = False
) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    """LangGraph's saver on psycopg's pool, set up as LangGraph's documentation says."""
    async with AsyncConnectionPool[AsyncConnection[DictRow]](
        conninfo,
        max_size=POOL_SIZE,
        kwargs={"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row},
        check=AsyncConnectionPool.check_connection if check else None,
        open=False,
    ) as pool:
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        yield saver


@asynccontextmanager
async def upstream_checked(conninfo: str) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    """The same with `check=check_connection`, psycopg's own answer to dead connections."""
    async with upstream(conninfo, check=True) as saver:
        yield saver


@asynccontextmanager
async def lghard(conninfo: str) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    """`open_checkpointer` as it comes, on a pool of the same size."""
    async with open_checkpointer(conninfo, max_size=POOL_SIZE) as saver:
        yield saver


@asynccontextmanager
async def in_memory(conninfo: str) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    """No database at all: the ceiling."""
    yield InMemorySaver()


def build_graph(nodes: int, *, work: float = 0.0) -> StateGraph[MessagesState]:
    """A chain of nodes that each add one message after `work` seconds of waiting."""
    builder = StateGraph(MessagesState)
    names = [f"node_{i}" for i in range(nodes)]
    for name in names:
        builder.add_node(name, _say(name, work))
    for source, target in zip([START, *names], [*names, END], strict=True):
        builder.add_edge(source, target)
    return builder


def _say(name: str, work: float) -> Callable[[MessagesState], Any]:
    async def node(state: MessagesState) -> dict[str, Any]:
        await asyncio.sleep(work)
        return {"messages": [AIMessage(f"{name} saw {len(state['messages'])} messages")]}

    return node


async def run_once(graph: Any) -> None:
    """One run on a thread of its own, from first message to final state."""
    config = {"configurable": {"thread_id": uuid4().hex}}
    await graph.ainvoke({"messages": [HumanMessage("hello")]}, config)


async def throughput(graph: Any, *, concurrency: int, seconds: float) -> float:
    """Runs per second that `concurrency` callers get done, each starting the next at once."""
    done = 0
    ends_at = time.perf_counter() + seconds

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < ends_at:
            await run_once(graph)
            done += 1

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return done / (time.perf_counter() - started)


def middle(values: list[float]) -> float:
    """The median: on a shared machine the mean belongs to the neighbours."""
    return statistics.median(values)





def keep(name: Literal["concurrent_runs", "kill_storm"], result: dict[str, Any]) -> None:
    """Write the result, with what it was measured on, to `results/<name>.json`."""
    RESULTS.mkdir(exist_ok=True)
    packages = "lghard", "langgraph", "langgraph-checkpoint-postgres", "psycopg", "psycopg-pool"
    machine = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        **{package: version(package) for package in packages},
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"measured_on": machine, **result}, indent=2) + "\n")
