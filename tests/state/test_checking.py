"""Nodes are asked as they return, so that nothing runs after a value that cannot be stored."""

import threading
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage
from langgraph.channels import UntrackedValue
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint
from langgraph.graph import MessagesState, StateGraph
from langgraph.types import Command, Send
from pydantic import BaseModel

from lghard import StateNotSerializableError, check_value, checked, forbid_mutations
from tests.state.zoo import Color, Flat, Person, Untyped

CONFIG: Any = {"configurable": {"thread_id": "1"}}
DURABILITIES = ["sync", "async", "exit"]


class State(TypedDict, total=False):
    value: Any
    items: list[int]
    live: Annotated[Any, UntrackedValue]


def steps(first: Any, ran: list[str]) -> StateGraph[Any]:
    """A node that returns this, and two that must not run after it if it is bad."""
    builder = StateGraph(State)
    builder.add_node("plan", lambda _: ran.append("plan") or first)
    builder.add_node("reserve", lambda _: ran.append("reserve"))
    builder.add_node("charge card", lambda _: ran.append("charge card"))
    builder.set_entry_point("plan")
    builder.add_edge("plan", "reserve")
    builder.add_edge("reserve", "charge card")
    return builder


@pytest.mark.parametrize("durability", ["async", "exit"])
async def test_upstream_runs_three_nodes_after_a_bad_value(durability: Any) -> None:
    """The control: the card is charged, then the run fails."""
    ran: list[str] = []
    graph = steps({"value": threading.Lock()}, ran).compile(checkpointer=InMemorySaver())
    with pytest.raises(TypeError, match="not msgpack serializable"):
        await graph.ainvoke({}, CONFIG, durability=durability)
    assert "charge card" in ran


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_the_error_surfaces_in_the_node(durability: Any) -> None:
    """Under each durability, and nothing runs after it."""
    ran: list[str] = []
    graph = checked(steps({"value": threading.Lock()}, ran)).compile(checkpointer=InMemorySaver())
    with pytest.raises(StateNotSerializableError, match=r"node 'plan'[^$]*\$\.value"):
        await graph.ainvoke({}, CONFIG, durability=durability)
    assert ["plan"] == ran


@pytest.mark.parametrize("durability", DURABILITIES)
def test_and_in_synchronous_runs(durability: Any) -> None:
    ran: list[str] = []
    graph = checked(steps({"value": threading.Lock()}, ran)).compile(checkpointer=InMemorySaver())
    with pytest.raises(StateNotSerializableError):
        graph.invoke({}, CONFIG, durability=durability)
    assert ["plan"] == ran


@pytest.mark.parametrize(
    ("update", "path"),
    [
        (Command(update={"value": 1j}), "$.update.value"),
        (Command(update=[("value", 1j)]), "$.update.value"),
        ([Command(update={"value": 1j})], "$[0].update.value"),
        (Command(goto=Send("reserve", 1j)), "$.goto[0].arg"),
        (Command(goto=[Send("reserve", {"a": 1j})]), "$.goto[0].arg.a"),
    ],
)
def test_commands_are_looked_into(update: Any, path: str) -> None:
    graph = checked(steps(update, [])).compile()
    with pytest.raises(StateNotSerializableError) as error:
        graph.invoke({})
    assert path == error.value.report[0].path


def test_what_comes_back_runs_through() -> None:
    """A clean graph does what it did."""
    ran: list[str] = []
    graph = checked(steps({"value": [1]}, ran)).compile(checkpointer=InMemorySaver())
    assert [1] == graph.invoke({}, CONFIG)["value"]
    assert ["plan", "reserve", "charge card"] == ran


def test_what_is_not_stored_is_not_looked_at() -> None:
    graph = checked(steps({"live": threading.Lock()}, [])).compile(checkpointer=InMemorySaver())
    graph.invoke({}, CONFIG)


def test_a_compiled_graph_can_be_checked_too() -> None:
    graph = checked(steps({"value": 1j}, []).compile())
    with pytest.raises(StateNotSerializableError):
        graph.invoke({})


def test_a_subgraph_is_checked_in_its_own_nodes() -> None:
    ran: list[str] = []
    outer = StateGraph(State)
    outer.add_node("inner", steps({"value": 1j}, ran).compile())
    outer.set_entry_point("inner")
    with pytest.raises(StateNotSerializableError, match="node 'plan'"):
        checked(outer).compile().invoke({})
    assert ["plan"] == ran


def test_an_entrypoint_is_checked() -> None:
    @entrypoint(checkpointer=InMemorySaver())
    def flow(value: int) -> Any:
        return {"a": 1j}

    with pytest.raises(StateNotSerializableError):
        checked(flow).invoke(1, CONFIG)


def test_the_builder_stays_as_it_was() -> None:
    builder = steps({"value": 1j}, [])
    checked(builder)
    builder.compile().invoke({})


def test_the_result_is_of_the_same_kind() -> None:
    builder = steps({}, [])
    assert isinstance(checked(builder), StateGraph)
    assert type(builder.compile()) is type(checked(builder.compile()))


def test_an_update_that_a_pydantic_state_refuses() -> None:
    """Upstream stores it, and after that the thread cannot even be read."""

    class Typed(BaseModel):
        count: int = 0

    builder = StateGraph(Typed)
    builder.add_node("plan", lambda _: {"count": "many"})
    builder.set_entry_point("plan")
    with pytest.raises(StateNotSerializableError, match="LGS126"):
        checked(builder).compile().invoke({})


def test_an_update_of_messages() -> None:
    builder = StateGraph(MessagesState)
    builder.add_node("model", lambda _: {"messages": [AIMessage("x", additional_kwargs={"a": 1j})]})
    builder.set_entry_point("model")
    with pytest.raises(StateNotSerializableError) as error:
        checked(builder).compile().invoke({"messages": []})
    assert "$.messages[0].additional_kwargs.a" == error.value.report[0].path


@pytest.mark.parametrize("function", [checked, forbid_mutations])
def test_what_is_no_graph_is_refused(function: Any) -> None:
    with pytest.raises(TypeError, match="not int"):
        function(1)


# Mutations


def mutating(change: Any) -> StateGraph[Any]:
    builder = StateGraph(State)
    builder.add_node("change", change)
    builder.set_entry_point("change")
    return builder


def append(state: Any) -> Any:
    state["items"].append(1)


def append_and_return(state: Any) -> Any:
    state["items"].append(1)
    return {"items": state["items"]}


def test_upstream_loses_a_mutation() -> None:
    """The control: the run's result shows it, the checkpoint does not have it."""
    builder = mutating(append)
    graph = builder.compile(checkpointer=InMemorySaver())
    result = graph.invoke({"items": []}, CONFIG, durability="sync")
    assert [1] == result["items"]
    assert [] == graph.get_state(CONFIG).values["items"]


def test_a_mutation_is_named() -> None:
    with pytest.raises(StateNotSerializableError, match=r"node 'change'") as error:
        forbid_mutations(mutating(append)).compile().invoke({"items": []})
    assert [("LGS226", "$.items")] == [(f.rule, f.path) for f in error.value.report]


async def test_a_mutation_is_named_in_async_nodes() -> None:
    async def change(state: Any) -> Any:
        state["value"].tags = [1]

    with pytest.raises(StateNotSerializableError) as error:
        await forbid_mutations(mutating(change)).compile().ainvoke({"value": Person("x")})
    assert "$.value.tags" == error.value.report[0].path


@pytest.mark.parametrize("node", [append_and_return, lambda state: {"items": [*state["items"], 1]}])
def test_what_is_returned_is_no_mutation(node: Any) -> None:
    assert [1] == forbid_mutations(mutating(node)).compile().invoke({"items": []})["items"]


# The schema


class Limited(BaseModel):
    count: int = 0
    inner: Flat = Flat()


@pytest.mark.parametrize(
    ("value", "paths"),
    [({"count": 1}, []), ({"count": "x"}, ["$.count"]), ({"inner": {"a": "x"}}, ["$.inner.a"])],
)
def test_a_pydantic_schema_is_asked(value: Any, paths: list[str]) -> None:
    report = check_value(value, Limited)
    assert paths == [f.path for f in report if f.rule == "LGS126"]


def test_an_instance_of_the_schema_is_a_state() -> None:
    """Its fields are channels of their own."""
    report = check_value(Untyped(a="x\0"), Untyped)
    assert [("LGS120", "$.a")] == [(f.rule, f.path) for f in report]


@pytest.mark.parametrize("result", [{"a": "x\0"}, entrypoint.final(value={"a": 1e16}, save=[1])])
def test_the_dict_of_an_entrypoint_is_one_value(result: Any) -> None:
    """Postgres does nothing to what is inside of it, as it does to a channel's own str."""

    @entrypoint(checkpointer=InMemorySaver())
    def run(given: int) -> Any:
        return result

    checked(run, fail_on="warning").invoke(1, CONFIG)


@pytest.mark.parametrize("result", [{(1,): {(1, 2)}}, {Color.RED: 1}, "x\0"])
def test_the_keys_of_an_entrypoints_dict_are_looked_at(result: Any) -> None:
    """They are no channels."""

    @entrypoint(checkpointer=InMemorySaver())
    def run(given: int) -> Any:
        return result

    with pytest.raises(StateNotSerializableError):
        checked(run, fail_on="warning").invoke(1, CONFIG)


def test_what_an_entrypoint_saves_is_looked_at() -> None:
    """What `previous` will be."""

    @entrypoint(checkpointer=InMemorySaver())
    def run(given: int) -> Any:
        return entrypoint.final(value=1, save={(1, 2)})

    with pytest.raises(StateNotSerializableError, match=r"\$\.save"):
        checked(run).invoke(1, CONFIG)
