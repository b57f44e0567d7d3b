"""Run upstream's own tests on lghard's classes, from a fetched copy that is not edited.

    python -m tests.upstream saver
    python -m tests.upstream store
    python -m tests.upstream pool --psycopg PATH

`saver` and `store` fetch the source distribution of the installed langgraph-checkpoint-postgres
with pip, from the index that pip is configured with. psycopg_pool's tests are in no distribution;
PATH is a checkout of psycopg's repository, and what they need is installed in an environment of
their own.

It fails unless exactly the tests that differences.py lists do not pass, each with the error that is
said there. Further arguments go to pytest, like `--tb=short`.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions, version
from pathlib import Path

import pytest

from lghard.testing import temporary_postgres
from tests.upstream.suites import POOL, SAVER, SAVER_ON_POOLS, STORE, Suite
from tests.upstream.verdict import Outcome, complaints, to_repeat

ROOT = Path(__file__).parents[2]
PLUGIN = Path(__file__).parent / "plugin"
LANGGRAPH = {"saver": [SAVER, SAVER_ON_POOLS], "store": [STORE]}


def main() -> None:
    """Fail, with all that is not as expected."""
    arguments, more = parse()
    with (
        tempfile.TemporaryDirectory(prefix="lghard-upstream-") as name,
        temporary_postgres() as server,
    ):
        if arguments.suite in LANGGRAPH:
            suites, python = LANGGRAPH[arguments.suite], sys.executable
            copy = fetch_sdist("langgraph-checkpoint-postgres", Path(name))
        else:
            suites, copy = [POOL], arguments.psycopg.resolve()
            say(f"psycopg_pool {version('psycopg-pool')}, tests of {version_of_tests(copy)}")
            python = make_environment(POOL.requirements, Path(name))
        found = []
        for suite in suites:
            pytest_ = [python, "-m", "pytest", *options(suite, server.conninfo), *more]
            found += report(suite, run(suite, pytest_, copy))
    if found:
        sys.exit("\n".join(found))


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Return which suite, and what is for pytest."""
    parser = argparse.ArgumentParser(prog="python -m tests.upstream")
    suites = parser.add_subparsers(dest="suite", required=True)
    suites.add_parser("saver", help="LangGraph's tests of its saver")
    suites.add_parser("store", help="LangGraph's tests of its store")
    pool = suites.add_parser("pool", help="psycopg's tests of its pool")
    pool.add_argument("--psycopg", type=Path, required=True, help="a checkout of its repository")
    return parser.parse_known_args()


def fetch_sdist(package: str, folder: Path) -> Path:
    """Return the unpacked source distribution of the version that is installed here."""
    exact = f"{package}=={version(package)}"
    pip(
        sys.executable, "download", "--no-deps", f"--no-binary={package}", f"--dest={folder}", exact
    )
    (archive,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder / "copy", filter="data")
    (copy,) = (folder / "copy").iterdir()
    return copy


def make_environment(requirements: Sequence[str], folder: Path) -> str:
    """Return the Python of a new environment, with lghard and `requirements` as they are here."""
    installed = {it.name: it.version for it in distributions() if it.name != "lghard"}
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{name}=={of}\n" for name, of in installed.items()))
    venv.create(folder / "environment", with_pip=True)
    python = str(folder / "environment/bin/python")
    pip(python, "install", f"--constraint={constraints}", f"{ROOT}[binary]", *requirements)
    return python


def pip(python: str, *arguments: str) -> None:
    """Run the pip of this interpreter, and stop if it fails."""
    command = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"failed: {' '.join(command)}")


def version_of_tests(psycopg: Path) -> str:
    """Return the version of psycopg_pool in a checkout of psycopg."""
    project = tomllib.loads((psycopg / "psycopg_pool/pyproject.toml").read_text())["project"]
    return str(project["version"])


def options(suite: Suite, conninfo: str) -> list[str]:
    """Return what the pytest of a suite is told, but for the tests."""
    places = {"conninfo": conninfo, "server": conninfo.removesuffix("postgres")}
    return [
        *("-p", "substitution", "--override-ini=addopts=", "-q", "--tb=no", "--no-summary"),
        f"--upstream={suite.upstream}",
        f"--ours={suite.ours}",
        *(option.format_map(places) for option in suite.options),
    ]


def run(suite: Suite, pytest_: Sequence[str], copy: Path) -> dict[str, Outcome]:
    """Return what became of each test, by its id; what measures time gets three chances."""
    outcomes = run_once(pytest_, suite.tests, copy)
    for _ in range(2):
        if again := to_repeat(outcomes, suite.differences):
            say(f"once more, since they measure time: {' '.join(again)}")
            outcomes |= run_once(pytest_, again, copy)
    return outcomes


def run_once(pytest_: Sequence[str], tests: Sequence[str], copy: Path) -> dict[str, Outcome]:
    """Return what became of these tests, in a copy that stays as it is."""
    # Its `tests` is found before ours.
    path = os.pathsep.join([str(PLUGIN), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryDirectory(prefix="lghard-upstream-") as folder:
        outcomes = Path(folder, "outcomes.json")
        written = [f"--outcomes={outcomes}", f"--override-ini=cache_dir={folder}/cache"]
        command = [*pytest_, *written, *tests]
        ended = subprocess.run(command, cwd=copy, env=environment, check=False).returncode
        if ended not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            sys.exit(f"pytest ended with {ended}: {shlex.join(command)}")
        return {test: Outcome(**it) for test, it in json.loads(outcomes.read_text()).items()}


def report(suite: Suite, outcomes: Mapping[str, Outcome]) -> list[str]:
    """Print what was tested, and return what is not as expected."""
    counts = Counter(str(it) for it in outcomes.values())
    became = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    found = complaints(outcomes, suite.differences)
    judged = "not all as expected" if found else "all as expected"
    say(f"{suite.ours} in place of {suite.upstream}: {became}, {judged}")
    return found


def say(words: str) -> None:
    """Print before pytest does."""
    print(words, flush=True)


if __name__ == "__main__":
    main()
