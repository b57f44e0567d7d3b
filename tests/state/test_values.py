"""What is said of a value is what happens to it: written here, read in a fresh process."""

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from lghard.state import Report, Severity
from lghard.state.values import check_value
from tests.state.cases import CASES, CONTEXTS
from tests.state.fingerprint import fingerprint
from tests.state.reader import Reader

# Pydantic says of what it is not sure about that it may not be as expected: so do these tests.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")

# They say something that is true of what comes back equal, too.
ALSO_EQUAL = {"LGS308", "LGS310", "LGS311"}

# Code of the value's class decides, and only a round trip tells.
UNDECIDED = {"LGS404"}


class Outcome(NamedTuple):
    """What was said of a value, and what became of it."""

    where: str
    looked: Report
    tried: Report | None
    truth: str
    verdict: str
    tried_verdict: str


def verdict_of(report: Report) -> str:
    """What a report promises."""
    if report.worst is Severity.ERROR:
        return "raises"
    claims = [f for f in report.at_least("warning") if f.rule not in ALSO_EQUAL]
    return "different" if claims else "equal"


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[tuple[str, str], Outcome]]:
    """Of each case in each context: written in this process, read in one that knows nothing."""
    logging.disable(logging.CRITICAL)
    written = {}
    for where, put in CONTEXTS.items():
        for case in CASES:
            try:
                value = put(case.make())
            except Exception:
                continue  # not everything is hashable
            written[where, case.name] = _write(value, case.name)
    with Reader() as reader:
        stored = [blob for _, _, blob, _ in written.values() if blob]
        read = iter(reader.read(stored))
    yield {
        (where, name): Outcome(
            f"{name} in {where}",
            looked,
            tried,
            "raises" if not blob else "equal" if next(read) == before else "different",
            verdict_of(looked),
            verdict_of(tried) if tried is not None else "",
        )
        for (where, name), (looked, tried, blob, before) in written.items()
    }
    logging.disable(logging.NOTSET)


def _write(value: Any, name: str) -> tuple[Report, Report | None, tuple[str, bytes] | None, str]:
    looked = check_value(value, channel="c", postgres=False)
    if "Mock" in name:
        return looked, None, None, ""  # takes seconds, and half a gigabyte, before it raises
    tried = check_value(value, channel="c", postgres=False, roundtrip=True)
    try:
        stored = JsonPlusSerializer(allowed_msgpack_modules=True).dumps_typed(value)
    except Exception:
        return looked, tried, None, ""
    return looked, tried, stored, fingerprint(value)


Outcomes = dict[tuple[str, str], Outcome]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_each_value_is_named_by_its_rule(case: Any) -> None:
    """In a list, where nothing but the value itself can be wrong."""
    report = check_value([case.make()], channel="c", postgres=False)
    assert case.rules == " ".join(report.rules)


def test_what_is_called_clean_comes_back_equal(outcomes: Outcomes) -> None:
    """The one unforgivable mistake; only code of the value's own may make it different."""
    wrong = [
        each.where
        for each in outcomes.values()
        if each.verdict == "equal" and each.truth != "equal" and "LGS404" not in each.looked.rules
    ]
    assert [] == wrong


def test_what_is_found_does_not_come_back_equal(outcomes: Outcomes) -> None:
    """The next worst mistake."""
    wrong = [
        each.where
        for each in outcomes.values()
        if each.verdict != "equal"
        and each.truth == "equal"
        and not UNDECIDED & {*each.looked.rules}
    ]
    assert [] == wrong


def test_what_is_said_to_raise_raises(outcomes: Outcomes) -> None:
    """And nothing else does."""
    wrong = [
        each.where
        for each in outcomes.values()
        if (each.verdict == "raises") != (each.truth == "raises")
        and not UNDECIDED & {*each.looked.rules}
    ]
    assert [] == wrong


def test_a_round_trip_decides(outcomes: Outcomes) -> None:
    """It says of every value what happens to it, also where only code of its own can tell."""
    wrong = [
        each.where
        for each in outcomes.values()
        if each.tried is not None and each.tried_verdict != each.truth
    ]
    assert [] == wrong


def test_a_round_trip_leaves_nothing_undecided(outcomes: Outcomes) -> None:
    """The note that says "try it out" is gone when it was."""
    undecided = [
        each.where for each in outcomes.values() if each.tried and "LGS404" in each.tried.rules
    ]
    raised = [each.where for each in outcomes.values() if each.truth == "raises"]
    assert [] == [where for where in undecided if where not in raised]


def test_a_metaclass_is_not_asked() -> None:
    """It is code, too."""

    class Nosy(type):
        def __getattribute__(cls, name: str) -> Any:
            raise SystemExit(name)

    class Asked(metaclass=Nosy):
        pass

    assert ("LGS109",) == check_value([Asked()], channel="c").rules


def test_a_mock_is_not_tried_out() -> None:
    """Each of its attributes has attributes of its own: it takes seconds to raise."""
    report = check_value({"a": MagicMock()}, channel="c", roundtrip=True)
    assert ("LGS101",) == report.rules


class Unreadable(JsonPlusSerializer):
    """Cannot read what it has written."""

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        raise ValueError(data[0])


def test_what_cannot_be_read_is_a_finding() -> None:
    """And no error of the check."""
    report = check_value([1], channel="c", roundtrip=True, serde=Unreadable())
    assert ("LGS111",) == report.rules
