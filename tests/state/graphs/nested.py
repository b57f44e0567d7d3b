"""Graphs in graphs: added as a node, called by a function, with a private schema of its own."""

from typing import TypedDict

from langgraph.graph import END, START, StateGraph


class Leaf(TypedDict):
    point: tuple[int, int]


class Middle(TypedDict):
    name: str
    seen: set[str]


class Private(TypedDict):
    secret: frozenset[tuple[int, int]]


class Outer(TypedDict):
    name: str


def at_leaf(state: Leaf) -> dict[str, tuple[int, int]]:
    return {"point": (1, 2)}


leaf = (
    StateGraph(Leaf)
    .add_node("at_leaf", at_leaf)
    .add_edge(START, "at_leaf")
    .add_edge("at_leaf", END)
    .compile()
)


def call_leaf(state: Middle) -> dict[str, str]:
    leaf.invoke({"point": (0, 0)})
    return {"name": "leaf"}


middle = (
    StateGraph(Middle)
    .add_node("call_leaf", call_leaf)
    .add_edge(START, "call_leaf")
    .add_edge("call_leaf", END)
    .compile()
)


def prepare(state: Outer) -> Private:
    return {"secret": frozenset({(1, 2)})}


def consume(state: Private) -> Outer:
    return {"name": str(len(state["secret"]))}


graph = (
    StateGraph(Outer)
    .add_node("prepare", prepare)
    .add_node("consume", consume)
    .add_node("middle", middle)
    .add_edge(START, "prepare")
    .add_edge("prepare", "consume")
    .add_edge("consume", "middle")
    .add_edge("middle", END)
    .compile()
)
