"""Type aliases and type parameters, as Python 3.12 writes them."""

import sys

import pytest

from lghard.state.graph import allowlist_of, check_schema
from lghard.state.report import Severity
from tests.state.round_trip import CHANGED, EQUAL, fates

pytestmark = pytest.mark.skipif(sys.version_info < (3, 12), reason="needs Python 3.12")


def test_says_what_happens(tmp_path):
    """Each case is told as it is, and comes back as it was told."""
    from tests.state.syntax_312 import CASES  # noqa: PLC0415 - older Pythons cannot

    told = {
        name: {f.rule for f in check_schema(case.annotation) if f.severity >= Severity.WARNING}
        for name, case in CASES.items()
    }
    assert {name: set(case.rules) for name, case in CASES.items()} == told
    expected = {
        name: [CHANGED if case.rules else EQUAL] * len(case.values())
        for name, case in CASES.items()
    }
    assert expected == fates("tests.state.syntax_312", tmp_path / "written")


def test_allowlist_looks_behind_aliases():
    """LangGraph's own does not."""
    from tests.state import syntax_312  # noqa: PLC0415 - older Pythons cannot

    assert ("tests.state.kinds", "Leaf") in allowlist_of(syntax_312.Leafs)
    assert ("tests.state.syntax_312", "Box") in allowlist_of(syntax_312.Box[int])
