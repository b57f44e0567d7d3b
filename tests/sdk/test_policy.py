"""A policy is checked where it is written."""

import dataclasses

import pytest

from lghard import RunPolicy


def test_defaults_are_safe() -> None:
    """Cancel, interrupt, and a limit on every wait."""
    policy = RunPolicy()
    assert ("cancel", "interrupt") == (policy.on_disconnect, policy.multitask_strategy)
    assert None not in (policy.deadline, policy.first_event_timeout, policy.idle_timeout)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("on_disconnect", "stop"),
        ("multitask_strategy", "Interrupt"),
        ("durability", True),
        ("if_not_exists", "make"),
        ("deadline", 0),
        ("first_event_timeout", -1.0),
        ("idle_timeout", float("inf")),
        ("deadline", float("nan")),
        ("deadline", "60"),
        ("deadline", True),
        ("retries", -1),
        ("retries", 1.5),
    ],
)
def test_value_that_means_nothing_is_refused(field: str, value: object) -> None:
    """The message names the field, and what it got."""
    with pytest.raises(ValueError, match=rf"{field} must be .*not {value!r}"):
        RunPolicy(**{field: value})


def test_policy_is_frozen() -> None:
    """It can be shared, and changed only into another one."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunPolicy().deadline = 1.0
    assert 1.0 == dataclasses.replace(RunPolicy(), deadline=1.0).deadline


def test_repr_shows_what_differs() -> None:
    """And nothing else."""
    assert "RunPolicy()" == repr(RunPolicy())
    assert "RunPolicy(deadline=5.0, reconnect=True)" == repr(RunPolicy.resumable(deadline=5.0))
