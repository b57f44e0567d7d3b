"""Who is measured against whom, and the graph they all run."""

import asyncio
import random
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache
from typing import Any, Protocol
from uuid import uuid4

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from lghard import open_checkpointer

POOL_SIZE = 20
POOL_TIMEOUT = 30.0
"""Seconds; psycopg_pool's own default."""

_QUOTED = 200
"""How much of the last message an answer repeats."""

Saver = BaseCheckpointSaver[Any]
Graph = CompiledStateGraph[MessagesState, Any, MessagesState, MessagesState]


class Contestant(Protocol):
    """A checkpointer of LangGraph's."""

    def __call__(
        self, conninfo: str, /, *, pool_timeout: float = ...
    ) -> AbstractAsyncContextManager[Saver]:
        """Open a saver on this database, and close it after the block."""


class Node(Protocol):
    """A node of the graph."""

    async def __call__(self, state: MessagesState) -> MessagesState:
        """What the node adds to the state."""


@asynccontextmanager
async def upstream(
    conninfo: str,
    *,
    pool_timeout: float = POOL_TIMEOUT,
    pool_size: int = POOL_SIZE,
    check: bool = False,
) -> AsyncIterator[Saver]:
    """LangGraph's saver on psycopg's pool, set up as LangGraph's documentation says."""
    async with AsyncConnectionPool[AsyncConnection[DictRow]](
        conninfo,
        max_size=pool_size,
        timeout=pool_timeout,
        kwargs={"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row},
        check=AsyncConnectionPool.check_connection if check else None,
        open=False,
    ) as pool:
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        yield saver


@asynccontextmanager
async def upstream_checked(
    conninfo: str, *, pool_timeout: float = POOL_TIMEOUT
) -> AsyncIterator[Saver]:
    """The same with `check=check_connection`, psycopg's own answer to dead connections."""
    async with upstream(conninfo, pool_timeout=pool_timeout, check=True) as saver:
        yield saver


@asynccontextmanager
async def lghard(
    conninfo: str,
    *,
    pool_timeout: float = POOL_TIMEOUT,
    pool_size: int = POOL_SIZE,
    batching: bool = True,
) -> AsyncIterator[Saver]:
    """`open_checkpointer` as it comes, on a pool of the same size."""
    async with open_checkpointer(
        conninfo, batching=batching, max_size=pool_size, timeout=pool_timeout
    ) as saver:
        yield saver


@asynccontextmanager
async def in_memory(_: str, *, pool_timeout: float = POOL_TIMEOUT) -> AsyncIterator[Saver]:  # noqa: ARG001
    """No database at all: the ceiling, since the rest of a run is LangGraph's own work."""
    yield InMemorySaver()


def build_graph(saver: Saver, *, nodes: int, work: float = 0.0) -> Graph:
    """A chain of nodes that each add one message after `work` seconds of waiting."""
    builder = StateGraph(MessagesState)
    names = [f"node_{i}" for i in range(nodes)]
    for name in names:
        builder.add_node(name, _node(name, work))
    for source, target in zip([START, *names], [*names, END], strict=True):
        builder.add_edge(source, target)
    return builder.compile(checkpointer=saver)


def _node(name: str, work: float) -> Node:
    async def node(state: MessagesState) -> MessagesState:
        await asyncio.sleep(work)
        return {"messages": [AIMessage(_answer(name, state["messages"]))]}

    return node


def _answer(name: str, messages: list[AnyMessage]) -> str:
    last = str(messages[-1].content)[:_QUOTED]
    return f"{name} saw {len(messages)} messages, the last one: {last}"


def new_thread() -> str:
    """The id of a thread that nobody else has."""
    return uuid4().hex


async def run(graph: Graph, thread_id: str, *, size: int = 0) -> list[str]:
    """One run on a new thread, from a first message of this size; returns the final messages."""
    first: MessagesState = {"messages": [HumanMessage(thread_id + _filler(size))]}
    state = await graph.ainvoke(first, {"configurable": {"thread_id": thread_id}})
    return contents(state)


@cache
def _filler(size: int) -> str:
    """Text that Postgres cannot compress."""
    return b64encode(random.Random(size).randbytes(size))[:size].decode()


def contents(state: dict[str, Any]) -> list[str]:
    """The messages of a state, as text."""
    return [str(message.content) for message in state["messages"]]


def expected(thread_id: str, nodes: int, *, size: int = 0) -> list[str]:
    """What `contents` must be after a run of `nodes` nodes."""
    messages: list[AnyMessage] = [HumanMessage(thread_id + _filler(size))]
    for i in range(nodes):
        messages.append(AIMessage(_answer(f"node_{i}", messages)))
    return contents({"messages": messages})


async def count_wrong(conninfo: str, done: Mapping[str, list[str]], *, nodes: int) -> int:
    """How many of the finished runs returned or stored anything but what they must.

    Read by upstream's saver on a connection of its own: the judge is not a contestant.
    """
    wrong = 0
    async with AsyncPostgresSaver.from_conn_string(conninfo) as saver:
        graph = build_graph(saver, nodes=nodes)
        for thread_id, returned in done.items():
            stored = await graph.aget_state({"configurable": {"thread_id": thread_id}})
            right = expected(thread_id, nodes)
            wrong += not (returned == right == contents(stored.values) and not stored.next)
    return wrong
