"""A graph that takes its time; each of its steps does something that cannot be undone."""

import asyncio
import json
import operator
import os
import time
from pathlib import Path
from typing import Annotated, TypedDict

from langgraph.graph import END, START, StateGraph


class State(TypedDict, total=False):
    """What is to be done, and what is done."""

    key: str
    steps: int
    pause: float
    done: Annotated[list[int], operator.add]


async def work(state: State) -> State:
    await asyncio.sleep(state["pause"])
    step = len(state.get("done", []))
    leave_trace({"key": state["key"], "at": time.time()})
    return {"done": [step]}


def leave_trace(line: dict[str, object]) -> None:
    with Path(os.environ["EFFECTS"]).open("ab", buffering=0) as file:
        file.write(json.dumps(line).encode() + b"\n")


def more(state: State) -> str:
    return "work" if len(state["done"]) < state["steps"] else END


builder = StateGraph(State)
builder.add_node(work)
builder.add_edge(START, "work")
builder.add_conditional_edges("work", more, ["work", END])
graph = builder.compile()
