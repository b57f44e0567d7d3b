"""Every example runs, as a user runs it, and tells the truth."""

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"
ROW = r"^\| ([\w ]+?) +\| +(.+?) +\| +(.+?) +\|$"


def run(name):
    """What an example prints when it is piped; it must end well."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=110, check=False
    )
    assert (0, "") == (done.returncode, done.stderr), done.stdout
    return done.stdout


def test_every_example_is_tested():
    """A new example needs a new test."""
    names = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert [
        "many_conversations.py",
        "on_server.py",
        "remember.py",
        "shared_pool.py",
        "survive.py",
        "test_my_state.py",
    ] == names


def test_my_state():
    """The unit test to copy passes, and shows how it looks when it fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--rootdir", EXAMPLES, "-c", "/dev/null", EXAMPLES / "test_my_state.py"],
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert 0 == done.returncode, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    assert "LGS217 data-loss" in done.stdout


def test_many_conversations():
    """All finish on four connections; with upstream's checkpointer, some are still at it."""
    printed = run("many_conversations.py")
    rows = {name: cells for name, *cells in re.findall(ROW, printed, re.MULTILINE)}
    assert ["500 of 500", "500 of 500", "none"] == [
        rows[name][0] for name in ("finished", "state correct", "error")
    ]
    assert 500 > int(rows["finished"][1].split()[0])


def test_on_server():
    """All runs finish within the budget; upstream loses some, and has a pool for each loop."""
    printed = run("on_server.py")
    rows = {name: cells for name, *cells in re.findall(ROW, printed, re.MULTILINE)}
    assert ["30 of 30", "30 of 30", "none", "1"] == [
        rows[name][0] for name in ("runs finished", "state correct", "error", "restarts")
    ]
    assert 4 >= int(rows["peak backends"][0].split()[0])
    assert 30 > int(rows["runs finished"][1].split()[0])
    assert 4 < int(rows["peak backends"][1].split()[0])


def test_remember():
    """Nobody's memory is lost on lghard; upstream's store, under the same faults, loses some."""
    printed = run("remember.py")
    rows = {name: cells for name, *cells in re.findall(ROW, printed, re.MULTILINE)}
    assert ["100 of 100", "2000 of 2000", "0", "none"] == [
        rows[name][0] for name in ("users served", "memories kept", "users lost", "error")
    ]
    assert int(rows["killed"][0]) > 20
    assert int(rows["users lost"][1]) > 0


def test_shared_pool():
    """The shared pool stays within its budget; a pool per call takes all that the server has."""
    printed = run("shared_pool.py")
    rows = {name: cells for name, *cells in re.findall(ROW, printed, re.MULTILINE)}
    assert ["60 of 60", "8 of 100", "0 times", "none"] == [
        rows[name][0] for name in ("runs finished", "peak backends", "refused", "error")
    ]
    assert int(rows["peak backends"][1].split()[0]) > 80
    assert int(rows["refused"][1].split()[0]) > 0


def test_survive():
    """All runs finish on lghard; upstream's checkpointer, under the same faults, loses some."""
    printed = run("survive.py")
    rows = dict(re.findall(r"^\| ([\w ]+?) +\| +(.+?) +\|", printed, re.MULTILINE))
    theirs = dict(re.findall(r"^\| ([\w ]+?) +\|.*\| +(.+?) +\|$", printed, re.MULTILINE))
    assert ["40 of 40", "40 of 40", "0", "none", "1"] == [
        rows[name] for name in ("runs finished", "state correct", "runs lost", "error", "restarts")
    ]
    assert int(rows["killed"]) > 40
    assert int(theirs["runs lost"]) > 0
    assert "\x1b" not in printed
