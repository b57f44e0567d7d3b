"""What type checkers see of the static check."""

from typing import Any, TypedDict, assert_type

from lghard import (
    CheckSettings,
    Finding,
    Report,
    Severity,
    allowlist_of,
    check_graph,
    check_schema,
)


class State(TypedDict):
    """A state."""

    number: int


def reports(graph: Any) -> None:
    """Both return a report, whose findings are typed."""
    report = assert_type(check_graph(graph), Report)
    assert_type(check_schema(State, profile="json"), Report)
    assert_type(check_schema(list[int], settings=CheckSettings(ignore=("LGS301",))), Report)
    for finding in report:
        assert_type(finding, Finding)
        assert_type(finding.severity, Severity)
    assert_type(allowlist_of(graph), tuple[tuple[str, str], ...])


check_schema(State, profile="xml")  # pyright: ignore[reportArgumentType]
