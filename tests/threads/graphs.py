"""Graphs that ask questions, and threads that wait for an answer."""

import operator
from typing import Annotated, Any, TypedDict

from langgraph.graph import START, StateGraph
from langgraph.types import interrupt


class State(TypedDict):
    """What has been said, and what was answered."""

    log: Annotated[list[Any], operator.add]


def ask(state: State) -> State:
    """A question, and then an approval, in the same node."""
    answer = interrupt({"kind": "question"})
    return {"log": [answer, interrupt({"kind": "approval"})]}


def question(state: State) -> State:
    """Anybody may answer."""
    return {"log": [interrupt({"kind": "question"})]}


def approval(state: State) -> State:
    """Only some may."""
    return {"log": [interrupt({"kind": "approval"})]}


def untold(state: State) -> State:
    """As in the documentation: the value is a sentence."""
    return {"log": [interrupt("How old are you?")]}


NODES = {node.__name__: node for node in (ask, question, approval, untold)}


def build(checkpointer: Any, *names: str) -> Any:
    """A graph that runs these nodes side by side."""
    builder = StateGraph(State)
    for name in names:
        builder.add_node(name, NODES[name])
        builder.add_edge(START, name)
    return builder.compile(checkpointer=checkpointer)


def build_nested(checkpointer: Any, *names: str) -> Any:
    """Two graphs around it."""
    inner = build(None, *names)
    for name in ("inner", "outer"):
        builder = StateGraph(State)
        builder.add_node(name, inner)
        builder.add_edge(START, name)
        inner = builder.compile(checkpointer=checkpointer if name == "outer" else None)
    return inner
