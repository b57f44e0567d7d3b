"""A module of one's own may have the name of one of Python's."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from lghard.state import check_value, looking

CODE = """
from dataclasses import dataclass

@dataclass
class Profile:
    size: int = 1

    def __post_init__(self):
        self.size += 1
"""


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """As in a folder of scripts, which comes before Python's own."""
    (tmp_path / "profile.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "profile", raising=False)
    monkeypatch.setattr(looking, "_STANDARD", {})
    yield __import__("profile")
    monkeypatch.delitem(sys.modules, "profile")


def test_it_is_not_trusted(profile: ModuleType) -> None:
    """Its code runs on every read, as anybody's does."""
    assert ("LGS404",) == check_value([profile.Profile()]).rules
    assert ("LGS215",) == check_value([profile.Profile()], roundtrip=True).rules


@pytest.mark.parametrize("module", ["decimal", "_thread", "unittest.mock", "sys", "zoneinfo"])
def test_pythons_own_are(module: str) -> None:
    """Written in Python or in C."""
    assert looking.is_trusted(module)
