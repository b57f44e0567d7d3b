"""The graphs of the tests' LangGraph server; each step leaves a line in the file of effects.

The server looks for new runs every half a second, which is most of what a test would wait for. Here
it looks more often; that changes when a run starts, and nothing else.
"""

import asyncio
import json
import operator
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt
from langgraph_runtime_inmem.ops import Runs

EFFECTS = Path(os.environ["LGHARD_TEST_EFFECTS"])
QUEUE_POLL = 0.03
"""Seconds between two looks, instead of 0.5."""

_next = Runs.next


async def next_run(wait: bool, limit: int = 1) -> AsyncIterator[Any]:
    """Do what the server does to get a run, after a shorter pause."""
    if wait:
        await asyncio.sleep(QUEUE_POLL)
    async for run in _next(wait=False, limit=limit):
        yield run


Runs.next = staticmethod(next_run)


class Steps(TypedDict, total=False):
    key: str
    steps: int
    pause: float
    text: str
    done: Annotated[list[int], operator.add]


def leave(state: Steps, config: RunnableConfig, step: int) -> None:
    """Write one line, whole: what a step did to the world."""
    run_id = str(config["configurable"].get("run_id"))
    line = {"key": state.get("key"), "run_id": run_id, "step": step, "at": time.time()}
    with EFFECTS.open("ab", buffering=0) as file:
        file.write(json.dumps(line).encode() + b"\n")


def looped(step):
    """A graph that does one step after the other, each with a checkpoint and an update."""

    def more(state: Steps) -> str:
        return "step" if len(state.get("done", [])) < state.get("steps", 1) else END

    return (
        StateGraph(Steps)
        .add_node("step", step)
        .add_edge(START, "step")
        .add_conditional_edges("step", more, ["step", END])
        .compile()
    )


def single(node):
    return StateGraph(Steps).add_node("step", node).add_edge(START, "step").compile()


async def slow_step(state: Steps, config: RunnableConfig) -> Steps:
    """Wait, and only then do it."""
    await asyncio.sleep(state.get("pause", 0.0))
    step = len(state.get("done", []))
    leave(state, config, step)
    return {"done": [step]}


def sync_steps(state: Steps, config: RunnableConfig) -> Steps:
    """Do all steps in one synchronous node, which nothing can stop."""
    for step in range(state.get("steps", 1)):
        time.sleep(state.get("pause", 0.0))
        leave(state, config, step)
    return {"done": [*range(state.get("steps", 1))]}


async def stubborn_steps(state: Steps, config: RunnableConfig) -> Steps:
    """Do all steps in one node, and swallow cancellations."""
    for step in range(state.get("steps", 1)):
        ends_at = time.monotonic() + state.get("pause", 0.0)
        while (left := ends_at - time.monotonic()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                continue
        leave(state, config, step)
    return {"done": [*range(state.get("steps", 1))]}


async def failing_step(state: Steps, config: RunnableConfig) -> Steps:
    await asyncio.sleep(state.get("pause", 0.0))
    leave(state, config, 0)
    raise RuntimeError(state.get("text", "the graph failed"))


async def asking_step(state: Steps, config: RunnableConfig) -> Steps:
    answer = interrupt({"question": state.get("text", "go on?")})
    leave(state, config, 0)
    return {"text": str(answer), "done": [0]}


async def echo_step(state: Steps, config: RunnableConfig) -> Steps:
    leave(state, config, 0)
    return {"text": f"{state.get('text', '')}!", "done": [0]}


slow = looped(slow_step)
sync = single(sync_steps)
stubborn = single(stubborn_steps)
fail = single(failing_step)
ask = single(asking_step)
echo = single(echo_step)
