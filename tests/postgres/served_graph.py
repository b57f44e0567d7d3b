"""Graphs for a LangGraph server, and upstream's checkpointer to compare ours with."""

import asyncio
import operator
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import interrupt
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool


class State(TypedDict, total=False):
    said: Annotated[list[str], operator.add]
    gate: str
    question: str


async def hear(state: State) -> dict[str, Any]:
    """Be done at once."""
    return {"said": ["heard"]}


async def note(state: State) -> dict[str, Any]:
    """Be done while the one beside still waits."""
    return {"said": ["noted"]}


async def wait(state: State) -> dict[str, Any]:
    """Say that it is here, and wait until somebody opens the gate."""
    if name := state.get("gate"):
        gate = Path(name)
        gate.with_suffix(".reached").touch()
        while not gate.exists():  # noqa: ASYNC240
            await asyncio.sleep(0.01)
    return {"said": ["waited"]}


async def ask(state: State) -> dict[str, Any]:
    """Ask a human, if there is a question."""
    question = state.get("question")
    return {"said": [interrupt(question)]} if question else {}


builder = StateGraph(State)
for node in (hear, note, wait, ask):
    builder.add_node(node)
builder.add_edge(START, "hear")
builder.add_edge("hear", "note")
builder.add_edge("hear", "wait")
builder.add_edge(["note", "wait"], "ask")
builder.add_edge("ask", END)
graph = builder.compile()


class Unwanted(InMemorySaver):
    """Fails whoever uses it."""

    async def aput(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the graph's own checkpointer is used")


def factory() -> CompiledStateGraph[Any, Any, Any, Any]:
    """The graph, with a checkpointer of its own."""
    return builder.compile(checkpointer=Unwanted())


@asynccontextmanager
async def upstream() -> AsyncIterator[AsyncPostgresSaver]:
    """Upstream's checkpointer on a pool, as a server gets it without lghard."""
    async with AsyncConnectionPool[AsyncConnection[DictRow]](
        os.environ["LGHARD_DATABASE_URI"],
        max_size=int(os.environ["LGHARD_POOL_MAX_SIZE"]),
        kwargs={"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row},
        open=False,
    ) as pool:
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        yield saver
