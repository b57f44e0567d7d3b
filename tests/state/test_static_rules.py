"""What the static check says of a type is what happens to its values in another process."""

import json
import subprocess
import sys

import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from lghard.state.graph import check_schema
from lghard.state.report import Severity
from tests.state.kinds import CASES
from tests.state.round_trip import CHANGED, EQUAL, RAISED, ROOT, fates

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


SCRIPT = """
import json
from dataclasses import dataclass
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from lghard.state.graph import check_schema

@dataclass
class Mine:
    x: int = 1

rules = [finding.rule for finding in check_schema(list[Mine]).at_least("warning")]
kind, data = JsonPlusSerializer().dumps_typed([Mine()])
print(json.dumps([rules, kind, data.hex()]))
"""


def test_class_of_a_script():
    """What is defined in __main__ is found by no other process, and comes back as a dict."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rules, kind, data = json.loads(done.stdout)
    assert ["LGS213"] == rules
    assert [{"x": 1}] == JsonPlusSerializer().loads_typed((kind, bytes.fromhex(data)))
