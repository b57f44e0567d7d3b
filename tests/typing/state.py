"""What type checkers see of the state's checks."""

from typing import Any, TypedDict, assert_type

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph.state import StateGraph

from lghard import (
    CheckedSerializer,
    Finding,
    Report,
    Severity,
    assert_checkpointable,
    check_value,
    checked,
    forbid_mutations,
)


class State(TypedDict):
    """A schema."""

    a: int


builder = StateGraph(State)
assert_type(checked(builder), StateGraph[State, None, State, State])
assert_type(forbid_mutations(builder), StateGraph[State, None, State, State])
assert_type(check_value({"a": 1}, State, roundtrip=True), Report)
assert_type(check_value(1, channel="a").findings, tuple[Finding, ...])
assert_type(Report().worst, Severity | None)
assert_type(assert_checkpointable(State, fail_on="warning"), None)
serde: JsonPlusSerializer = CheckedSerializer(mode="warn", on_nul="strip")
assert_type(serde.loads_typed(("null", b"")), Any)
