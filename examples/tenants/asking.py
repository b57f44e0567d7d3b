"""A graph that asks before it does something."""

from typing import Any, TypedDict

from langgraph.graph import START, StateGraph
from langgraph.types import interrupt


class State(TypedDict, total=False):
    """What was wished for, and what became of it."""

    wish: str
    answer: Any


def ask(state: State) -> State:
    return {"answer": interrupt({"kind": "approval", "wish": state.get("wish", "")})}


builder = StateGraph(State)
builder.add_node("ask", ask)
builder.add_edge(START, "ask")
graph = builder.compile()
