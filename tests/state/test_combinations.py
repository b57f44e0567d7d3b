"""What is said of a value is true, whatever its class is made of."""

import logging
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from lghard.state import Report, check_value
from tests.state.combinations import VALUES
from tests.state.fingerprint import fingerprint
from tests.state.reader import Reader
from tests.state.test_values import verdict_of

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")


class Outcome(NamedTuple):
    """What was said of a value by looking, and by trying it out, and what became of it."""

    looked: Report
    tried: Report
    truth: str


Outcomes = dict[str, Outcome]


@pytest.fixture(scope="module")
def outcomes() -> Iterator[Outcomes]:
    """Written in this process, read in one that knows nothing."""
    logging.disable(logging.CRITICAL)
    serde = JsonPlusSerializer(allowed_msgpack_modules=True)
    reports, stored, before = {}, {}, {}
    for name, make in VALUES.items():
        value = [make()]
        reports[name] = [
            check_value(value, channel="c", postgres=False, roundtrip=tried)
            for tried in (False, True)
        ]
        before[name] = fingerprint(value)
        try:
            kind, data = serde.dumps_typed(value)
        except Exception:
            continue
        stored[name] = kind, bytes(data)
    with Reader() as reader:
        became = dict(zip(stored, reader.read(list(stored.values())), strict=True))
    yield {
        name: Outcome(
            looked,
            tried,
            "raises"
            if name not in stored
            else "equal"
            if became[name] == before[name]
            else "different",
        )
        for name, (looked, tried) in reports.items()
    }
    logging.disable(logging.NOTSET)


def test_there_are_many(outcomes: Outcomes) -> None:
    """And of all kinds."""
    assert {"equal", "different", "raises"} == {each.truth for each in outcomes.values()}
    assert len(outcomes) > 1000


def test_by_looking(outcomes: Outcomes) -> None:
    """What is said is true; where the value's own code decides, only that much is said."""
    wrong = {
        name: (each.looked.rules, each.truth)
        for name, each in outcomes.items()
        if verdict_of(each.looked) != each.truth and "LGS404" not in each.looked.rules
    }
    assert {} == wrong


def test_by_trying_it_out(outcomes: Outcomes) -> None:
    """It decides all of them."""
    wrong = {
        name: (each.tried.rules, each.truth)
        for name, each in outcomes.items()
        if verdict_of(each.tried) != each.truth
    }
    assert {} == wrong
