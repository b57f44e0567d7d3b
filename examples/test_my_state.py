"""The unit test to copy: does a state come back from the database as it went in?

    uv run pytest examples/test_my_state.py

The first state does, and its test passes. The second does not, and its test shows how that looks.
"""

from dataclasses import dataclass
from typing import Annotated, TypedDict

import pytest
from langchain_core.messages import AIMessage, AnyMessage
from langgraph.graph.message import add_messages

from lghard import StateNotSerializableError, assert_checkpointable


@dataclass
class Leg:
    """From here to there."""

    start: str
    end: str


class Trip(TypedDict):
    """It comes back."""

    messages: Annotated[list[AnyMessage], add_messages]
    legs: list[Leg]


class Map(TypedDict):
    """It does not."""

    visited: set[tuple[int, int]]  # comes back as a list


# The three lines.
def test_my_state() -> None:
    """Nothing is lost, whatever a node puts into it."""
    assert_checkpointable(Trip)


def test_a_sample_of_my_state() -> None:
    """And what the types do not tell: this value."""
    assert_checkpointable({"messages": [AIMessage("To Rome.")], "legs": [Leg("Oslo", "Rome")]})


def test_a_state_that_does_not_come_back() -> None:
    """How it looks when it fails: rule, path, what happens, and what to do."""
    with pytest.raises(StateNotSerializableError) as error:
        assert_checkpointable(Map)
    print(error.value)
    assert [(f.rule, f.path) for f in error.value.report] == [("LGS217", "$.visited")]
