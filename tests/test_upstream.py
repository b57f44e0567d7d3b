"""When a run of upstream's own tests is as expected (they run by `python -m tests.upstream`)."""

import pytest

from tests.upstream.verdict import Difference, Outcome, complaints, to_repeat

PASSED = Outcome("passed", ours=1)
FAILED = Outcome("failed", error="AssertionError: assert 1 == 2", ours=1)
EXPLAINED = {"test_b": Difference("Ours counts otherwise.", error="assert 1 == 2")}
RACE = {"test_b": Difference("Whoever is faster.", error="assert 1 == 2", always=False)}


def test_only_what_is_explained_fails():
    """That is as expected."""
    assert [] == complaints({"test_a": PASSED, "test_b": FAILED}, EXPLAINED)


def test_a_failure_that_nothing_explains():
    """It is reported, with its error."""
    (complaint,) = complaints({"test_a": PASSED, "test_b": FAILED}, {})
    assert "test_b failed, and nothing explains it: AssertionError: assert 1 == 2" == complaint


def test_a_skip_that_nothing_explains():
    """What upstream skips here is not tested, and somebody must have said that this is right."""
    (complaint,) = complaints({"test_a": PASSED, "test_b": Outcome("skipped", "no server")}, {})
    assert "test_b skipped, and nothing explains it: no server" == complaint


def test_a_failure_for_another_reason():
    """An explanation holds for one error only."""
    (complaint,) = complaints(
        {"test_a": PASSED, "test_b": Outcome("failed", error="TypeError: no")}, EXPLAINED
    )
    assert "test_b failed, but not with 'assert 1 == 2': TypeError: no" == complaint


def test_an_explained_test_that_passes():
    """A list that is out of date is reported."""
    (complaint,) = complaints({"test_a": PASSED, "test_b": PASSED}, EXPLAINED)
    assert "test_b is explained, and passed: take it off the list" == complaint


@pytest.mark.parametrize("explained", [EXPLAINED, RACE])
def test_an_explained_test_that_did_not_run(explained):
    """So is one that names a test which upstream no longer has."""
    (complaint,) = complaints({"test_a": PASSED}, explained)
    assert "test_b is explained, and did not run: take it off the list" == complaint


def test_a_race_may_end_either_way():
    """A difference that is not always there may be absent."""
    assert [] == complaints({"test_a": PASSED, "test_b": PASSED}, RACE)
    assert [] == complaints({"test_a": PASSED, "test_b": FAILED}, RACE)


def test_nothing_collected():
    """A run without tests proves nothing."""
    (complaint,) = complaints({}, {})
    assert complaint.startswith("no test passed on our class")


def test_nothing_substituted():
    """Nor does one of upstream's class."""
    theirs = Outcome("passed", theirs=1)
    assert [
        "test_a made an object of upstream's class",
        "no test passed on our class: nothing was collected, or nothing substituted",
    ] == complaints({"test_a": theirs}, {})


def test_what_measures_time_gets_another_chance():
    """But neither any other test that fails, nor one that is known to."""
    slow = Outcome("failed", ours=1, timing=True)
    outcomes = {"test_a": slow, "test_b": slow, "test_c": FAILED, "test_d": PASSED}
    assert ["test_a"] == to_repeat(outcomes, EXPLAINED)
