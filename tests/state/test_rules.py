"""Every rule can be looked up: a page that shows it happen, and a place in the index."""

from pathlib import Path

import pytest

from lghard.state.report import Finding, Report, Severity
from lghard.state.rules import RULES, finding

PAGES = Path(__file__).parents[2] / "docs" / "rules"


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_each_rule_has_a_page(rule):
    """Which says what happens, why, what to do, and when to ignore it; and runs it."""
    page = (PAGES / f"{rule.id}.md").read_text()
    assert page.startswith(f"# {rule.id}: {rule.title}\n")
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert ["## What happens", "## Why", "## The fix", "## When to ignore it"] == headings
    assert "```python" in page
    assert f"**{rule.severity}**" in page


def test_each_page_has_a_rule():
    assert {*RULES, "index"} == {path.stem for path in PAGES.glob("*.md")}


def test_the_index_names_all_rules():
    index = (PAGES / "index.md").read_text()
    assert [] == [rule for rule in RULES if f"[{rule}]({rule}.md)" not in index]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_finding_is_made_of_the_fields_of_its_rule(rule):
    """And of nothing else."""
    found = finding(rule.id, "$.a", **{name: name for name in rule.fields})
    assert (rule.id, rule.severity, "$.a") == (found.rule, found.severity, found.path)
    assert "{" not in found.message + found.fix


def test_the_number_of_a_rule_is_its_kind():
    """1: raised; 2: lost; 3: different; 4: good to know."""
    least = {"1": Severity.ERROR, "2": Severity.DATA_LOSS, "3": Severity.NOTE, "4": Severity.NOTE}
    assert [] == [r.id for r in RULES.values() if r.severity < least[r.id[3]]]


def test_a_rule_that_does_not_exist():
    with pytest.raises(KeyError):
        finding("LGS999", "$")


# Reports

TUPLE = finding("LGS301", "$.a")
KEY = finding("LGS104", "$.a.b", type="Decimal")
NOTE = finding("LGS316", "$.c", annotation="Any")


def test_severities_compare():
    assert Severity.NOTE < Severity.WARNING < Severity.DATA_LOSS < Severity.ERROR
    assert Severity.DATA_LOSS is Severity.of("data-loss")
    assert "data-loss" == str(Severity.DATA_LOSS)


@pytest.mark.parametrize(
    ("findings", "clean", "worst"),
    [((), True, None), ((NOTE,), True, Severity.NOTE), ((NOTE, TUPLE), False, Severity.WARNING)],
)
def test_clean_is_nothing_at_warning_or_above(findings, clean, worst):
    report = Report(findings)
    assert (clean, clean, worst) == (report.clean, bool(report), report.worst)


def test_a_report_is_filtered():
    report = Report((TUPLE, KEY, NOTE))
    assert [KEY] == [*report.at_least("error")]
    assert [KEY, NOTE] == [*report.without("LGS301")]
    assert [TUPLE, KEY] == [*report.under("$.a")]
    assert [KEY] == [*report.under("$.a.b")]


def test_a_report_is_a_tree():
    expected = """\
state: 1 error, 1 warning
├── $.a
│   └── LGS301 warning: a tuple comes back as a list
│         → use a list, or a pydantic state that makes it a tuple again
└── $.a.b
    └── LGS104 error: a dict key of type Decimal cannot be stored
          → use str or int keys"""
    assert expected == str(Report((TUPLE, KEY)))


def test_a_report_is_json():
    assert (
        '{"subject": "state", "clean": false, "worst": "warning", "findings": [{"rule": "LGS301", '
        '"severity": "warning", "path": "$.a", "message": "a tuple comes back as a list", '
        '"fix": "use a list, or a pydantic state that makes it a tuple again"}]}'
    ) == Report((TUPLE,)).to_json()


def test_findings_are_values():
    assert TUPLE == finding("LGS301", "$.a")
    assert isinstance(TUPLE, Finding)
    assert 2 == len(Report((TUPLE, KEY)) + Report((KEY,)))
