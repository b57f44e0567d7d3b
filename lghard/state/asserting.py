"""One assertion for unit tests."""

from typing import Any

from lghard.state.report import Report, Severity
from lghard.state.values import check_value
from lghard.state.verdicts import refusal


def assert_checkpointable(obj: object, *, fail_on: Severity | str = "data-loss") -> None:
    """Fail unless this comes back from a checkpoint as it went in.

    Args:
        obj: a state schema, a graph (built or compiled), or a value.
        fail_on: from which severity on it fails: "warning" for everything that comes back different.

    Raises:
        StateNotSerializableError: it would not; the message is the report.

    Example:
        >>> def test_my_state():
        ...     assert_checkpointable(MyState)
    """
    found = check(obj).at_least(fail_on)
    if found.findings:
        raise refusal(found)


def check(obj: Any) -> Report:
    """The report of whatever this is: a graph, a schema, or a value."""
    return check_value(obj)
