"""One assertion for a schema, a graph or a value."""

from typing import Any, TypedDict

import pytest
from langgraph.graph import StateGraph

from lghard import StateNotSerializableError, assert_checkpointable
from tests.state.zoo import Aliased, Flat, Plain


class Good(TypedDict):
    flat: Flat


class Bad(TypedDict):
    plain: Plain


def graph_of(schema: Any) -> Any:
    builder = StateGraph(schema)
    builder.add_node("a", lambda _: None)
    builder.set_entry_point("a")
    return builder.compile()


@pytest.mark.parametrize(
    "fine", [Good, graph_of(Good), {"flat": Flat()}, list[Flat], [1], None, "x"]
)
def test_what_comes_back_passes(fine: Any) -> None:
    assert_checkpointable(fine)


@pytest.mark.parametrize(
    "bad", [Bad, graph_of(Bad), {"plain": Plain()}, list[Plain], Plain(), Aliased(X=5)]
)
def test_what_does_not_fails(bad: Any) -> None:
    """With the report, for whoever reads the test's output."""
    with pytest.raises(StateNotSerializableError, match="LGS") as error:
        assert_checkpointable(bad)
    assert error.value.report.findings


def test_warnings_fail_on_request() -> None:
    assert_checkpointable({"pair": (1, 2)})
    with pytest.raises(StateNotSerializableError, match="LGS301"):
        assert_checkpointable({"pair": (1, 2)}, fail_on="warning")
