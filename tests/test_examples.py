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
        [sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=240, check=False
    )
    assert (0, "") == (done.returncode, done.stderr), done.stdout
    return done.stdout


def test_every_example_is_tested():
    """A new example needs a new test."""
    names = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert [
        "fastapi_app.py",
        "many_conversations.py",
        "multi_tenant.py",
        "on_server.py",
        "remember.py",
        "run_once.py",
        "sdk_client.py",
        "shared_pool.py",
        "survive.py",
        "tenants_on_server.py",
        "test_my_state.py",
    ] == names


def test_fastapi_app():
    """By hand, strangers read what Ada said; on lghard nobody does, and one manager approves."""
    printed = run("fastapi_app.py")
    rows = {name: cells for name, *cells in re.findall(ROW, printed, re.MULTILINE)}
    assert {"colliding tenant", "thread_id in the body", "separator in the session"} == {
        name for name, cells in rows.items() if cells[0] == "reads what Ada said"
    }
    assert ["a thread of its own"] * 4 + ["refused: 422"] == [
        cells[1] for name, cells in rows.items() if name != "attempt"
    ]
    approvals = re.findall(
        r"^\| (a? ?[\w ,]+?) +\| (approved|refused.*?) +\|$", printed, re.MULTILINE
    )
    assert ["a manager"] == [name for name, outcome in approvals if outcome == "approved"]
    assert 5 == len(approvals)


def test_my_state():
    """The unit test to copy passes, and shows how it looks when it fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--rootdir", EXAMPLES, "-c", "/dev/null", EXAMPLES / "test_my_state.py"],
        capture_output=True, text=True, timeout=240, check=False,
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


def test_multi_tenant():
    """Each turn is kept, in order, and nobody hears of another; without lghard it is not so."""
    printed = run("multi_tenant.py")
    rows = {name: cells for name, *cells in re.findall(ROW, printed, re.MULTILINE)}
    assert ["apart", "refused", "100", "100 of 100", "yes"] == [
        rows[name][0]
        for name in ("two tenants", "forged session", "turns made", "turns kept", "in order")
    ]
    assert ["mixed up", "no"] == [rows[name][1] for name in ("two tenants", "in order")]
    assert "reads" in rows["forged session"][1]
    assert 100 > int(rows["turns kept"][1].split()[0])


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


def test_run_once():
    """Every order is charged once; with a retry loop around the SDK, orders are charged again."""
    printed = run("run_once.py")
    rows = {name: cells for name, *cells in re.findall(ROW, printed, re.MULTILINE)}
    assert ["50 of 50", "0", "50", "100 of 100", "50"] == [
        rows[name][0]
        for name in ("orders charged", "more than once", "charges", "answered", "answers lost")
    ]
    assert int(rows["more than once"][1]) > 0


def test_sdk_client():
    """A run stops with its reader, and nothing cut short looks whole; the SDK's own does not."""
    printed = run("sdk_client.py")
    rows = {name: cells for name, *cells in re.findall(ROW, printed, re.MULTILINE)}
    for name in ("closed", "broken out of", "cancelled", "killed"):
        ours, theirs = (int(cell.split()[-2]) for cell in rows[name])
        assert 2 * ours < theirs  # 100 ms at most, where nothing else goes on
    assert ["told: superseded", "got a result"] == rows["first caller"]
    assert rows["reset"][0].startswith("raises ")
    assert "2 of 8 updates, no error" == rows["reset"][1]


def test_shared_pool():
    """The shared pool stays within its budget; a pool per call takes all that the server has."""
    printed = run("shared_pool.py")
    rows = {name: cells for name, *cells in re.findall(ROW, printed, re.MULTILINE)}
    assert ["60 of 60", "0 times", "none"] == [
        rows[name][0] for name in ("runs finished", "refused", "error")
    ]
    assert int(rows["peak backends"][0].split()[0]) <= 8
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
    assert int(rows["killed"]) > 20
    assert int(theirs["runs lost"]) > 0
    assert "\x1b" not in printed


def test_tenants_on_server():
    """Without handlers a stranger gets everything, and with them nothing."""
    printed = run("tenants_on_server.py")
    rows = {name: cells for name, *cells in re.findall(ROW, printed, re.MULTILINE)}
    del rows["attempt"]
    assert ["done"] * 9 == [cells[0] for cells in rows.values()]
    assert ["nothing"] + ["refused"] * 8 == [cells[1].split(":")[0] for cells in rows.values()]
