"""What the static check says of a type is what happens to its values in another process."""

import pytest

from lghard.state.graph import check_schema
from lghard.state.report import Severity
from tests.state.kinds import CASES
from tests.state.round_trip import CHANGED, EQUAL, RAISED, fates

RAISING = {"LGS101", "LGS102", "LGS104", "LGS106", "LGS107", "LGS109", "LGS110"}


@pytest.fixture(scope="module")
def become(tmp_path_factory):
    """What has become of the values of all cases."""
    return fates("tests.state.kinds", tmp_path_factory.mktemp("state") / "written")


@pytest.mark.parametrize("name", CASES)
def test_says_what_happens(name):
    """It finds the rules that the case is about, and no other."""
    case = CASES[name]
    report = check_schema(case.annotation)
    told = {f.rule for f in report if f.severity >= Severity.WARNING}
    assert set(case.rules) == told, report
    notes = {f.rule for f in report if f.severity < Severity.WARNING} & {"LGS316", "LGS404"}
    assert set(case.notes) == notes, report


@pytest.mark.parametrize("name", CASES)
def test_it_happens(name, become):
    """A clean type's values come back the same; those of another one raise, or do not."""
    case, fate = CASES[name], become[name]
    if not case.rules and "LGS404" in case.notes:
        return  # that is what the note says: only a round trip can tell
    if not case.rules:
        assert [EQUAL] * len(fate) == fate
    elif fate and RAISING & set(case.rules):
        assert all(each.startswith(RAISED) for each in fate), fate
    elif fate:
        assert [CHANGED] * len(fate) == fate
