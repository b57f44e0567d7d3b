"""What every test has, and how the Python of the README and of docs/ is run.

All Python blocks of a page run, whatever attributes they carry: from top to bottom, in one
namespace, one event loop (so a block may `await`) and one temporary folder, with an empty database
in LGHARD_DATABASE_URI. A block with a title is written to that file as well, which blocks below may
import. The tests that a block defines are called, with their fixtures.
"""

import ast
import asyncio
import inspect
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

from lghard.testing import TemporaryPostgres

pytest_plugins = ["lghard.testing.fixtures"]


_MEMORY = Path("/dev/shm")  # noqa: S108 - what it is for
_ROOM = 4_000_000_000


def pytest_configure(config: pytest.Config) -> None:
    """Hear Ctrl-C, and keep temporary files in memory; so do the processes that tests start."""
    # A shell starts a background job with SIGINT ignored, and children inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Two thousand databases of a thousand files each: on a disk, that is half of the work.
    has_room = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM
    if "TMPDIR" not in os.environ and has_room and os.access(_MEMORY, os.W_OK | os.X_OK):
        os.environ["TMPDIR"] = tempfile.tempdir = str(_MEMORY)
    # They are hundreds. Each would compile all that it imports, were nothing kept for the next one.
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None) and config.cache:
        os.environ["PYTHONPYCACHEPREFIX"] = str(config.cache.mkdir("bytecode"))


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: a third of the time, a test waits for something."""
    return (os.cpu_count() or 1) + 1


_FENCES = RawFencedCodeBlockLexer(re.compile(r"(?P<attributes>[^\n]*)\n"))
_PYTHON = re.compile(r"\W*(?:python|python3|py|pycon)\b", re.IGNORECASE)
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass
class Page:
    """What a block is run with."""

    runner: asyncio.Runner
    fixture: Callable[[str], Any]

    def run(self, returned: object) -> None:
        """Run what a block or a test returned, if that is a coroutine."""
        if inspect.iscoroutine(returned):
            self.runner.run(returned)


@pytest.fixture(scope="module")
def _page_runner(
    lghard_postgres: TemporaryPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[asyncio.Runner]:
    conninfo = lghard_postgres.create_database()
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        patch.setenv("LGHARD_DATABASE_URI", conninfo)
        folder = tmp_path_factory.mktemp("page")
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        yield runner
    lghard_postgres.drop_database(conninfo)


@pytest.fixture
def _page(_page_runner: asyncio.Runner, request: pytest.FixtureRequest) -> Page:
    return Page(_page_runner, request.getfixturevalue)


def _python_blocks(document: Document) -> Iterator[Region]:
    for region in _FENCES(document):
        if _PYTHON.match(region.lexemes["attributes"]):
            region.parsed = region.lexemes["source"]
            region.evaluator = _run
            yield region


def _run(example: Example) -> None:
    source = str(example.parsed)
    if title := _TITLE.search(example.region.lexemes["attributes"]):
        Path(title[1]).write_text(source)
    namespace = example.namespace
    page: Page = namespace.pop("_page")
    before = dict(namespace)
    # Examples that are written as scripts run to their end, and errors show the page's own lines.
    namespace["__name__"] = "__main__"
    padded = "\n" * example.line + source
    code = compile(padded, example.path, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    page.run(eval(code, namespace))  # noqa: S307 - our own documentation
    for name, test in list(namespace.items()):
        if name.startswith("test_") and before.get(name) is not test:
            page.run(
                test(**{need: page.fixture(need) for need in inspect.signature(test).parameters})
            )


pytest_collect_file = Sybil(
    parsers=[_python_blocks],
    patterns=["README.md", "docs/*.md", "docs/*/*.md"],
    fixtures=["_page"],
).pytest()
