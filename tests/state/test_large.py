"""What is large is not copied, and what has no end is found, not gone round in."""

import tracemalloc
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from langchain_core.messages import HumanMessage

from lghard import check_value

LARGE: dict[str, Any] = {
    "bytes": b"x" * 20_000_000,
    "bytes in a list": [b"x" * 20_000_000],
    "text": "é" * 20_000_000,
    "lines": ["x" * 1000] * 20_000,
    "array": [np.zeros(2_000_000)],
    "message": [HumanMessage("x" * 20_000_000)],
}


@pytest.mark.parametrize("name", LARGE)
def test_what_is_large_is_not_copied(name: str) -> None:
    """Looking takes less than a twentieth of its size; and its size is told."""
    tracemalloc.start()
    report = check_value({"a": LARGE[name]})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 1_000_000 > peak
    assert "LGS317" in report.rules


def test_a_mock_is_found_before_it_is_asked_for_anything() -> None:
    """Upstream takes a second and half a gigabyte before it raises."""
    mock = MagicMock()
    assert ("LGS101",) == check_value({"a": [mock]}).rules
    assert [] == mock.mock_calls


@pytest.mark.parametrize("leaf", [1, (1,)])
@pytest.mark.parametrize("roundtrip", [False, True])
def test_what_is_shared_at_each_level_is_looked_at_once(leaf: Any, roundtrip: bool) -> None:
    """Written out, it would be a million million values."""
    value = [leaf]
    for _ in range(40):
        value = [value, value]
    assert "LGS317" in check_value({"a": value}, roundtrip=roundtrip).rules


@pytest.mark.parametrize("roundtrip", [False, True])
def test_cycles_and_depth_are_findings(roundtrip: bool) -> None:
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    report = check_value({"cycle": cycle, "deep": deep}, roundtrip=roundtrip)
    assert ["LGS105", "LGS105"] == [each.rule for each in report]
    assert "$.cycle.self" == report[0].path
