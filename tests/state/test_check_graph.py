"""`check_graph`: what a graph really stores, and what its nodes return."""

import asyncio
import gc
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest
from langgraph.channels.untracked_value import UntrackedValue
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.errors import InvalidUpdateError
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.managed import RemainingSteps
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from langgraph.types import CachePolicy, Command, Send
from pydantic import BaseModel, SecretStr

from lghard.state.graph import check_graph
from lghard.state.report import Severity
from tests.state.graphs import functional, hazards, nested, react
from tests.state.kinds import Color, Leaf, Name, Plain


def told(report, least="warning"):
    """Where and what, for all that is this bad."""
    return {(finding.path, finding.rule) for finding in report.at_least(least)}


def graph_of(schema, node=lambda state: {}, **compile_with):
    """A graph of one node."""
    return (
        StateGraph(schema)
        .add_node("node", node)
        .add_edge(START, "node")
        .add_edge("node", END)
        .compile(**compile_with)
    )


# --- the four graphs


def test_planted_hazards():
    """Each hazard is found where it was planted, and nothing else."""
    assert {
        ("$.size", "LGS301"),
        ("$.mood", "LGS307"),
        ("$.counts", "LGS218"),
        ("$.owner.pet", "LGS206"),
        ("$.answer.first_name", "LGS201"),
        ("$.order.lines[*]", "LGS301"),
        ("$.token", "LGS109"),
        ("$.callback", "LGS101"),
        ("$.seen", "LGS217"),
        ("$.by_id", "LGS302"),
        ("$.started", "LGS305"),
        ("$.api_key", "LGS310"),
        ("__start__.lock", "LGS125"),
        ("plan()", "LGS116"),
        ("plan()", "LGS113"),
        ("count()", "LGS115"),
        ("ask()", "LGS117"),
        ("__pregel_tasks.work", "LGS203"),
    } == told(check_graph(hazards.graph))


def test_prebuilt_agent_is_clean():
    """LangGraph's own ReAct agent, with tools and messages, is as it should be."""
    assert set() == told(check_graph(react.graph))
    assert check_graph(react.graph).clean


def test_functional_api():
    """What an @entrypoint saves, and what tasks return, those in functions that it calls, too."""
    assert {("__previous__[*]", "LGS217"), ("judge().scores", "LGS301")} == told(
        check_graph(functional.graph)
    )


def test_task_without_an_annotation_is_a_note():
    """Nothing is known of its result."""
    assert ("unknown()", "LGS316") in told(check_graph(functional.graph), "note")


def test_nested_graphs():
    """A graph that is a node, a graph that a function of it calls, and the schema of one node."""
    assert {("$.secret", "LGS217"), ("middle|call_leaf|$.point", "LGS301")} == told(
        check_graph(nested.graph)
    )


def test_builder_is_a_graph():
    """One that is not compiled yet says the same."""
    assert told(check_graph(hazards.builder)) == told(check_graph(hazards.graph))


# --- the serializer and the checkpointer


class Moody(TypedDict):
    name: Name
    plain: Plain


def test_in_memory_checkpointer_hides_what_postgres_does():
    """And the report says so."""
    report = check_graph(graph_of(Moody, checkpointer=InMemorySaver()))
    assert {("$.plain", "LGS109")} == told(report)
    assert ("$", "LGS402") in told(report, "note")


def test_without_a_checkpointer_it_is_judged_for_postgres():
    """As the graph will be deployed."""
    assert {("$.plain", "LGS109"), ("$.name", "LGS307")} == told(check_graph(graph_of(Moody)))


def test_in_memory_store_is_told():
    """It keeps live objects, which Postgres does not."""
    report = check_graph(graph_of(MessagesState, store=InMemoryStore()))
    assert "InMemoryStore" in next(f.message for f in report if f.rule == "LGS402")


class Elsewhere(BaseStore):
    """A store that keeps its values in a database."""

    def batch(self, ops):
        raise NotImplementedError

    async def abatch(self, ops):
        raise NotImplementedError


def test_store():
    """Nothing tells what nodes will put there."""
    report = check_graph(graph_of(MessagesState, store=Elsewhere()))
    assert any("a store's values (Elsewhere)" in f.message for f in report if f.rule == "LGS316")
    assert report.clean


@pytest.mark.parametrize("serde", [JsonPlusSerializer(pickle_fallback=True), "server"])
def test_pickle_fallback(serde):
    """What has no encoding is pickled there, with its whole channel."""
    report = check_graph(graph_of(Moody), serde=serde)
    assert ("$.plain", "LGS312") in told(report)
    assert "LGS109" not in report.rules
    assert "$.plain is pickled as a whole" in report.under("$.plain")[0].message


def test_what_cannot_be_pickled_is_an_error_all_the_same():
    """A lock is none of those."""

    class State(TypedDict):
        lock: list[threading.Lock]

    serde = JsonPlusSerializer(pickle_fallback=True)
    assert {("$.lock[*]", "LGS101")} == told(check_graph(graph_of(State), serde=serde))
    with pytest.raises(TypeError, match="cannot pickle"):
        serde.dumps_typed([threading.Lock()])


def test_allowlist_with_holes():
    """A list for one class blocks all others."""
    serde = JsonPlusSerializer(allowed_msgpack_modules=[Color])

    class State(TypedDict):
        color: Color
        leaf: Leaf

    assert {("$.leaf", "LGS315")} == told(check_graph(graph_of(State), serde=serde))
    assert {"x": 1} == serde.loads_typed(serde.dumps_typed(Leaf()))


def test_encryption_keeps_secrets():
    """A secret that is encrypted is none that is stored in plain text."""

    class State(TypedDict):
        key: SecretStr

    encrypted = EncryptedSerializer.__new__(EncryptedSerializer)
    encrypted.serde = JsonPlusSerializer()
    assert {("$.key", "LGS310")} == told(check_graph(graph_of(State)))
    assert set() == told(check_graph(graph_of(State), serde=encrypted))


def test_encryption_hides_no_allowlist():
    """The serializer inside it is the one that is judged by."""
    encrypted = EncryptedSerializer.__new__(EncryptedSerializer)
    encrypted.serde = JsonPlusSerializer(allowed_msgpack_modules=[Color])

    class State(TypedDict):
        leaf: Leaf

    assert {("$.leaf", "LGS315")} == told(check_graph(graph_of(State), serde=encrypted))


def test_somebody_elses_serializer_cannot_be_judged():
    """It is said, and nothing is claimed."""

    class Own:
        def dumps_typed(self, obj): ...

        def loads_typed(self, data): ...

    report = check_graph(graph_of(Moody), serde=Own())
    assert ["LGS316"] == list(report.rules)
    assert "the serializer Own" in report[0].message


# --- what is stored


def test_untracked_values_are_not_stored():
    """Neither are managed ones, nor what is passed as context."""

    class State(TypedDict):
        steps: RemainingSteps
        lock: Annotated[threading.Lock, UntrackedValue]
        number: int

    class Input(TypedDict):
        number: int

    class Context(TypedDict):
        lock: threading.Lock

    builder = StateGraph(State, input_schema=Input, context_schema=Context)
    builder.add_node("node", lambda state: {})
    builder.add_edge(START, "node")
    assert set() == told(check_graph(builder))


def test_untracked_value_in_the_input_is_stored():
    """LangGraph raises, when it is given; it cannot tell an input's keys apart."""

    class State(TypedDict):
        lock: Annotated[threading.Lock, UntrackedValue]
        number: int

    graph = graph_of(State, checkpointer=InMemorySaver())
    assert {("__start__.lock", "LGS125")} == told(check_graph(graph))
    with pytest.raises(TypeError, match="not msgpack serializable"):
        graph.invoke({"lock": threading.Lock()}, {"configurable": {"thread_id": "1"}})


def test_private_schema_of_a_node_is_a_channel():
    """A node may take what the state does not have."""

    class State(TypedDict):
        number: int

    class Private(TypedDict):
        pair: tuple[int, int]

    def node(state: Private): ...

    builder = StateGraph(State).add_node("node", node).add_edge(START, "node")
    assert {("$.pair", "LGS301")} == told(check_graph(builder))


def test_bytearray_is_safe_in_a_channel_only():
    """In the input it is inside a dict, and comes back as bytes."""

    class State(TypedDict):
        raw: bytearray

    assert {("__start__.raw", "LGS303")} == told(check_graph(graph_of(State)))


@dataclass
class Job:
    pair: tuple[int, int]


def test_reducers_and_other_channels():
    """A channel has the type of its annotation, whatever it does with its updates."""

    class State(TypedDict):
        jobs: Annotated[Sequence[Job], lambda a, b: [*a, *b]]
        plain: NotRequired[Annotated[list[Job], "no reducer"]]

    assert {("$.jobs[*].pair", "LGS301"), ("$.plain[*].pair", "LGS301")} == told(
        check_graph(graph_of(State))
    )


def test_payload_that_no_schema_describes():
    """A Send to a node that takes the state may carry anything."""

    class State(TypedDict):
        number: int

    def spread(state: State) -> Sequence[Send] | Literal["__end__"]:
        return [Send("node", {"lock": threading.Lock()})]

    builder = StateGraph(State)
    builder.add_node("node", lambda state: {})
    builder.add_edge(START, "node")
    builder.add_conditional_edges("node", spread)
    assert ("__pregel_tasks", "LGS316") in told(check_graph(builder), "note")


def test_pydantic_state_mends_what_it_validates():
    """Its nodes get a tuple again; what get_state() shows is a note."""

    class State(BaseModel):
        pair: tuple[int, int] = (1, 2)

    seen = []
    graph = graph_of(
        State, lambda state: seen.append(state.pair), checkpointer=InMemorySaver(),
        interrupt_before=["node"],
    )  # fmt: skip
    config = {"configurable": {"thread_id": "1"}}
    graph.invoke({"pair": (3, 4)}, config)
    graph.invoke(None, config)
    report = check_graph(graph)
    assert set() == told(report)
    assert ("$.pair", "LGS301") in told(report, "note")
    assert [(3, 4)] == seen
    assert [3, 4] == graph.get_state(config).values["pair"]


def test_graph_without_channels_of_its_own():
    """A state that is no class is one channel."""
    builder = StateGraph(Annotated[list[tuple[int, int]], lambda a, b: a + b])
    builder.add_node("node", lambda state: [])
    builder.add_edge(START, "node")
    assert {("$[*]", "LGS301")} == told(check_graph(builder))


def test_subgraph_that_stores_nothing():
    """With checkpointer=False there is nothing to come back."""

    class State(TypedDict):
        pair: tuple[int, int]

    class Outer(TypedDict):
        number: int

    inner = graph_of(State, checkpointer=False)

    def node(state: Outer):
        inner.invoke({"pair": (1, 2)})

    assert set() == told(check_graph(graph_of(Outer, node)))


def test_subgraph_in_strict_hands_is_walked_once():
    """A graph that two nodes call is reported where it is met first."""

    class State(TypedDict):
        pair: tuple[int, int]

    inner = graph_of(State)

    class Outer(TypedDict):
        number: int

    builder = StateGraph(Outer).add_node("a", inner).add_node("b", inner)
    builder.add_edge(START, "a").add_edge("a", "b")
    assert {("a|$.pair", "LGS301")} == told(check_graph(builder))


def test_annotations_of_an_entrypoint_that_are_text():
    """`from __future__ import annotations` makes them text, which LangGraph leaves as it is."""

    @entrypoint()
    def flow(job: "Job") -> "list[tuple[int, int]]":
        return [job.pair]

    assert {
        ("__start__.pair", "LGS301"),
        ("__end__[*]", "LGS301"),
        ("__previous__[*]", "LGS301"),
    } == told(check_graph(flow))


def test_entrypoint_without_annotations():
    """Nothing is known, and that is said."""

    @task
    def job(x):
        return x

    @entrypoint()
    def flow(x):
        return job(x).result()

    report = check_graph(flow)
    assert report.clean
    assert {"__start__", "__end__", "__previous__", "job()"} <= {f.path for f in report}


# --- what nodes return


class Numbers(TypedDict):
    number: int


def a_list(state: Numbers) -> list[int]:
    return [1]


def a_string(state: Numbers) -> str:
    return "a"


def a_union(state: Numbers) -> dict[str, int] | int:
    return 1


@pytest.mark.parametrize(
    ("node", "what"), [(a_list, "list[int]"), (a_string, "str"), (a_union, "int")]
)
def test_annotation_that_is_no_update(node, what):
    """LangGraph raises InvalidUpdateError for what it says that it returns."""
    graph = graph_of(Numbers, node)
    (finding,) = check_graph(graph).at_least("warning")
    assert ("LGS115", "node()") == (finding.rule, finding.path)
    assert f"to return {what};" in finding.message
    with pytest.raises(InvalidUpdateError):
        graph.invoke({"number": 1})


def a_dict(state: Numbers) -> dict[str, int]:
    return {"number": 1}


def nothing(state: Numbers) -> None:
    return None


def a_command(state: Numbers) -> Command[Literal["__end__"]]:
    return Command(update={"number": 1}, goto=END)


def commands(state: Numbers) -> list[Command[Any]]:
    return [Command(update={"number": 1})]


def a_state(state: Numbers) -> Numbers:
    return {"number": 1}


async def an_async(state: Numbers) -> dict[str, int]:
    return {"number": 1}


def unannotated(state):
    return {"number": 1}


@pytest.mark.parametrize(
    "node", [a_dict, nothing, a_command, commands, a_state, an_async, unannotated]
)
async def test_annotations_that_are_updates(node):
    """LangGraph takes each of them, and nothing is found."""
    graph = graph_of(Numbers, node)
    assert set() == told(check_graph(graph))
    assert {"number": 1} == await graph.ainvoke({"number": 1})


class Typo(TypedDict):
    nmber: int


def declares_a_typo(state: Numbers) -> Typo:
    return {"nmber": 2}


def returns_a_typo(state: Numbers):
    if state["number"]:
        return {"nmber": 2}
    return {"number": 3}


def commands_a_typo(state: Numbers):
    return Command(update={"nmber": 2})


@pytest.mark.parametrize("node", [declares_a_typo, returns_a_typo, commands_a_typo])
def test_unknown_key(node):
    """LangGraph drops it without a word."""
    graph = graph_of(Numbers, node)
    (finding,) = check_graph(graph).at_least("warning")
    assert "LGS116" == finding.rule
    assert "nmber" in finding.message
    assert {"number": 1} == graph.invoke({"number": 1})


def for_the_parent(state: Numbers):
    return Command(graph=Command.PARENT, update={"other": 1})


def inner_function(state: Numbers):
    def inner():
        return {"other": 1}

    return {"number": inner()["other"]}


@pytest.mark.parametrize("node", [for_the_parent, inner_function])
def test_keys_that_are_no_updates_of_this_graph(node):
    """An update of the parent has its keys; so has what an inner function returns."""
    assert set() == told(check_graph(graph_of(Numbers, node)))


async def fetch() -> int:
    return 1


def forgets(state: Numbers):
    return {"number": fetch()}


def returns_it(state: Numbers):
    return fetch()


async def forgets_in_async(state: Numbers):
    return {"number": fetch()}


@pytest.mark.parametrize("node", [forgets, returns_it, forgets_in_async, lambda state: fetch()])
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_coroutine_that_nobody_awaits(node):
    """The run fails, in one way or another."""
    graph = graph_of(Numbers, node, checkpointer=InMemorySaver())
    assert {("node()", "LGS117")} == told(check_graph(graph))
    with pytest.raises((InvalidUpdateError, TypeError)):
        await graph.ainvoke({"number": 1}, {"configurable": {"thread_id": "1"}})
    gc.collect()


async def awaits(state: Numbers):
    return {"number": await fetch()}


def runs(state: Numbers):
    return {"number": asyncio.run(fetch())}


@pytest.mark.parametrize("node", [awaits, runs])
def test_coroutine_that_is_awaited(node):
    """There is nothing to find."""
    assert set() == told(check_graph(graph_of(Numbers, node)))


def test_callable_object_as_a_node():
    """Its __call__ is the function."""

    class Node:
        def __call__(self, state: Numbers) -> str:
            return "a"

    assert {("node()", "LGS115")} == told(check_graph(graph_of(Numbers, Node())))


def test_cache_key_of_a_plain_input():
    """It can be pickled, and nothing is found."""
    builder = StateGraph(Numbers)
    builder.add_node("node", a_dict, cache_policy=CachePolicy())
    builder.add_edge(START, "node")
    assert set() == told(check_graph(builder))


def test_cache_key_of_ones_own():
    """With a key_func of one's own the input is not pickled."""

    class State(TypedDict):
        lock: Annotated[threading.Lock, UntrackedValue]
        number: int

    builder = StateGraph(State, input_schema=Numbers)
    builder.add_node("own", a_dict, cache_policy=CachePolicy(key_func=str), input_schema=State)
    builder.add_node("default", a_dict, cache_policy=CachePolicy(), input_schema=State)
    builder.add_edge(START, "own")
    assert {("default()", "LGS113")} == told(check_graph(builder))


# --- bad input


@pytest.mark.parametrize(
    ("target", "given"),
    [
        (3, "an object of type int"),
        (MessagesState, "the class langgraph.graph.message.MessagesState"),
        (graph_of, "the function graph_of; call it first, if it makes the graph"),
        (None, "an object of type NoneType"),
    ],
)
def test_not_a_graph(target, given):
    """A TypeError says what was given."""
    with pytest.raises(TypeError, match=f"expected a graph: .*; got {given}"):
        check_graph(target)


def test_profile_json():
    """Nothing but plain JSON: no message, no date, no tuple, no int as a key."""
    rules = {f.rule for f in check_graph(react.graph, profile="json").at_least("warning")}
    assert {"LGS318"} == rules


def test_severity_of_a_report_is_its_worst():
    """The report of the hazards is an error."""
    assert Severity.ERROR == check_graph(hazards.graph).worst
