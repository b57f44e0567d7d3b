"""pytest plugin: lghard's class in the place of upstream's, in tests that are not edited for it.

It runs in upstream's copy, where `tests` is another package, so it imports nothing from here.
"""

import functools
import importlib
import json
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Everything is named as module:name."""
    add = parser.getgroup("substitution").addoption
    add("--upstream", help="the class that the tests are about")
    add("--ours", help="the class to put in its place")
    add("--constant", action="append", default=[], help="=VALUE, set before tests are imported")
    add("--function", action="append", default=[], help="=module:name, put in place afterwards")
    add("--outcomes", type=Path, help="where to write what became of each test")


def pytest_configure(config: pytest.Config) -> None:
    """Substitute, after upstream's conftest.py was imported and before its test modules are."""
    upstream = pkgutil.resolve_name(config.getoption("upstream"))
    ours = pkgutil.resolve_name(config.getoption("ours"))
    config.pluginmanager.register(Recorder(upstream, ours, config.getoption("outcomes")))
    put(config.getoption("upstream"), ours)
    for constant in config.getoption("constant"):
        put(*constant.split("=", 1))


def pytest_collection_modifyitems(config: pytest.Config) -> None:
    """Put functions in place; both may be of the test modules, which are imported by now."""
    for function in config.getoption("function"):
        place, found = function.split("=")
        put(place, pkgutil.resolve_name(found))


def put(place: str, value: object) -> None:
    """Give a name in a module another value; the name must be there already."""
    pkgutil.resolve_name(place)
    module, name = place.split(":")
    setattr(importlib.import_module(module), name, value)


class Recorder:
    """Writes down what became of each test, and how many objects of which class it made."""

    def __init__(self, upstream: type, ours: type, path: Path) -> None:
        self.upstream, self.ours, self.path = upstream, ours, path
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.made = {"ours": 0, "theirs": 0}
        upstream.__init__ = self.counting(upstream.__init__)  # type: ignore[misc]

    def counting(self, init: Callable[..., None]) -> Callable[..., None]:
        """Wrap upstream's `__init__`, which ours goes through too."""

        @functools.wraps(init)
        def counted(made: object, *args: Any, **kwargs: Any) -> None:
            if isinstance(made, self.ours):
                self.made["ours"] += 1
            elif type(made) is self.upstream:
                self.made["theirs"] += 1
            init(made, *args, **kwargs)

        return counted

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Add to the outcome what was made meanwhile, and whether psycopg marks it as `timing`."""
        self.made.update(ours=0, theirs=0)
        result = yield
        timing = item.get_closest_marker("timing") is not None
        self.outcomes[item.nodeid].update(self.made, timing=timing)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A failure in a fixture is one of the test, and the first one counts."""
        outcome = self.outcomes.setdefault(report.nodeid, {"outcome": "passed", "error": ""})
        if not report.passed and outcome["outcome"] == "passed":
            outcome.update(outcome=report.outcome, error=message(report))

    def pytest_sessionfinish(self) -> None:
        """Write it all down."""
        self.path.write_text(json.dumps(self.outcomes))


def message(report: pytest.TestReport) -> str:
    """What the test failed with, or why it was skipped."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return crash.message if crash else str(report.longrepr)
