"""One assertion for unit tests."""

from types import ModuleType
from typing import Any

from lghard.state.graph import check_graph, check_schema, is_graph
from lghard.state.looking import module_of, mro_of
from lghard.state.report import Report, Severity
from lghard.state.values import check_value
from lghard.state.verdicts import refusal


def assert_checkpointable(obj: object, *, fail_on: Severity | str = "data-loss") -> None:
    """Fail unless this comes back from a checkpoint as it went in.

    Args:
        obj: a state schema, a graph (built or compiled), or a value.
        fail_on: from which severity on it fails: "warning" for all that comes back different.

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
    if is_graph(obj):
        return check_graph(obj)
    return check_schema(obj) if _is_annotation(obj) else check_value(obj)


def _is_annotation(obj: Any) -> bool:
    """A class, or something like `list[int]`; nothing is asked of an object that may be a value."""
    kind = type(obj)
    return type in mro_of(kind) or (module_of(kind) in _ANNOTATIONS and kind is not ModuleType)


_ANNOTATIONS = {"typing", "typing_extensions", "types"}
