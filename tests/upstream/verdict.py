"""Whether what became of upstream's tests is what is expected of a subclass that hardens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Difference:
    """Why a test of upstream's does not pass, and how one sees that it is for this reason.

    Args:
        reason: What lghard does otherwise, and why; or why the test is skipped.
        error: What stands in the message of the failure, or of the skip.
        always: Whether it never passes, or that depends on how a race ends.
    """

    reason: str
    error: str
    always: bool = True


@dataclass(frozen=True)
class Outcome:
    """What became of one test.

    Args:
        outcome: As pytest has it.
        error: The message of the failure, or of the skip.
        ours: How many objects of our class it made.
        theirs: How many of upstream's.
        timing: Whether upstream says that it measures time, and may fail on a busy machine.
    """

    outcome: Literal["passed", "failed", "skipped"]
    error: str = ""
    ours: int = 0
    theirs: int = 0
    timing: bool = False

    def __str__(self) -> str:
        if self.outcome == "passed" and not self.ours:
            return "passed without it"
        return self.outcome


def complaints(outcomes: Mapping[str, Outcome], differences: Mapping[str, Difference]) -> list[str]:
    """Return what is not as expected: all pass on our class, except exactly the explained ones.

    Args:
        outcomes: What became of each test, by its id.
        differences: The tests that are known not to pass, by their ids.
    """
    others = {test: it for test, it in outcomes.items() if it.outcome != "passed"}
    found = [
        f"{test} {it.outcome}, and nothing explains it: {it.error}"
        for test, it in others.items()
        if test not in differences
    ]
    found += [
        f"{test} {others[test].outcome}, but not with {it.error!r}: {others[test].error}"
        for test, it in differences.items()
        if test in others and it.error not in others[test].error
    ]
    found += [
        f"{test} is explained, and passed: take it off the list"
        for test, it in differences.items()
        if it.always and test in outcomes.keys() - others.keys()
    ]
    found += [
        f"{test} is explained, and did not run: take it off the list"
        for test in differences
        if test not in outcomes
    ]
    found += [
        f"{test} made an object of upstream's class" for test, it in outcomes.items() if it.theirs
    ]
    if not any(it.outcome == "passed" and it.ours for it in outcomes.values()):
        found.append("no test passed on our class: nothing was collected, or nothing substituted")
    return found


def to_repeat(outcomes: Mapping[str, Outcome], differences: Mapping[str, Difference]) -> list[str]:
    """Return the tests whose failure may be the machine's fault, so that they get another chance.

    Args:
        outcomes: What became of each test, by its id.
        differences: The tests that are known not to pass, by their ids.
    """
    return [
        test
        for test, it in outcomes.items()
        if it.outcome == "failed" and it.timing and test not in differences
    ]
