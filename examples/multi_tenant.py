"""Whose conversation is it? Two tenants, a forged session id, and twenty writers of one thread.

    uv run examples/multi_tenant.py

A real Postgres is started; nothing is mocked. First two tenants whose naive ids are the same text
talk to one graph, and one of them asks for the other's session. Then twenty tasks in four processes
take turns on one thread, each of them five times: first inside `thread_lock`, then without it.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lghard import (
    Principal,
    Role,
    ThreadAccess,
    ThreadAccessError,
    ThreadLease,
    ThreadNamespace,
    open_checkpointer,
    thread_lock,
)
from lghard.testing import temporary_postgres

PROCESSES = 4
TASKS = 5  # in each process
TURNS = 5  # of each task
THINKING = 0.01  # seconds that a turn takes beside its checkpoints
ALL = PROCESSES * TASKS * TURNS

NAMESPACE = ThreadNamespace("tenant", "user", "session")
ACCESS = ThreadAccess(NAMESPACE, roles={"member": Role(own={"read", "write"})})

Graph = CompiledStateGraph[MessagesState, None, MessagesState, MessagesState]
Step = Callable[[], Any]


async def answer(state: MessagesState) -> dict[str, Any]:
    await asyncio.sleep(THINKING)
    return {"messages": [AIMessage(f"re: {state['messages'][-1].content}")]}


def build_graph(saver: BaseCheckpointSaver[str]) -> Graph:
    builder = StateGraph(MessagesState).add_node("answer", answer)
    return builder.add_edge(START, "answer").add_edge("answer", END).compile(checkpointer=saver)


async def say(graph: Graph, thread_id: str, text: str) -> None:
    await graph.ainvoke({"messages": [HumanMessage(text)]}, NAMED(thread_id))


async def read(graph: Graph, thread_id: str) -> list[str]:
    state = await graph.aget_state(NAMED(thread_id))
    return [str(message.content) for message in state.values.get("messages", [])]


def NAMED(thread_id: str) -> Any:  # noqa: N802
    return {"configurable": {"thread_id": thread_id}}
