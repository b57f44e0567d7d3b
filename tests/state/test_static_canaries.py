"""The private names of LangGraph that the static check leans on; each says what depends on it."""

import dataclasses
import inspect
from typing import TypedDict

from langgraph.checkpoint.serde import _msgpack
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.func import entrypoint, task
from langgraph.graph import START, StateGraph
from langgraph.pregel import Pregel
from langgraph.pregel._utils import find_subgraph_pregel
from langgraph.types import CachePolicy

from lghard.state.functions import function_of


class State(TypedDict):
    number: int


def node(state: State) -> None: ...


builder = (
    StateGraph(State).add_node("node", node, cache_policy=CachePolicy()).add_edge(START, "node")
)


def test_strict_mode_and_its_safe_types():
    """Which classes strict mode blocks is read from these two."""
    assert ("uuid", "UUID") in _msgpack.SAFE_MSGPACK_TYPES
    assert isinstance(_msgpack.STRICT_MSGPACK_ENABLED, bool)


def test_allowlist_of_a_serializer():
    """It is a set of names, or True for every class."""
    assert JsonPlusSerializer()._allowed_msgpack_modules is True
    assert {("a", "B")} == JsonPlusSerializer(
        allowed_msgpack_modules=[("a", "B")]
    )._allowed_msgpack_modules


def test_allowlist_of_a_graph():
    """In strict mode a compiled graph has the names that LangGraph found."""
    assert hasattr(builder.compile(), "_serde_allowlist")


def test_default_key_of_the_cache():
    """It is known by its name."""
    key = builder.nodes["node"].cache_policy.key_func
    assert "default_cache_key" == key.__name__
    assert "pickle.dumps" in inspect.getsource(key)


def test_function_of_a_node():
    """LangGraph's runnables hold it as `func` or `afunc`."""
    assert node is function_of(builder.nodes["node"].runnable)


def test_function_of_a_task_and_an_entrypoint():
    """Tasks are found by the name of their class."""

    @task
    def job(x: int) -> int: ...

    @entrypoint()
    def flow(x: int) -> int: ...

    assert "_TaskFunction" == type(job).__name__
    assert {"__start__", "__end__", "__previous__"} <= set(flow.channels)
    (only,) = flow.nodes.values()
    assert "flow" == function_of(only.bound).__name__


def test_subgraph_of_a_runnable():
    """As LangGraph finds it."""
    inner = builder.compile()
    assert inner is find_subgraph_pregel(inner)
    assert isinstance(inner, Pregel)


def test_marks_of_dataclass_fields():
    """What is an InitVar is told by the mark of its field."""

    @dataclasses.dataclass
    class Seeded:
        seed: dataclasses.InitVar[int]

    assert "_FIELD_INITVAR" == Seeded.__dataclass_fields__["seed"]._field_type.name
