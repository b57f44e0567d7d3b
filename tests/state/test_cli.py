"""`lghard check`: what it prints, and how it exits."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from lghard.cli import main

GRAPHS = "tests.state.graphs"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder without a pyproject.toml, that is gone from sys.path afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


def run(capsys, *arguments):
    """The exit code, and what was printed."""
    code = main(["check", *arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_clean_graph(capsys):
    """Zero, one line, and how many notes there are."""
    code, out, _ = run(capsys, f"{GRAPHS}.react:graph")
    assert 0 == code
    assert f"{GRAPHS}.react:graph: nothing found" == out.splitlines()[0]
    assert out.splitlines()[1].endswith("notes: --notes shows them")


def test_code_that_decides(capsys):
    """What nobody can tell without running it is counted by itself, as it may be lost."""
    _, out, _ = run(capsys, "tests.state.coded:Iso")
    assert "1 on code that only a round trip can judge: --notes shows them" in out.splitlines()[-1]


def test_findings(capsys):
    """One, and a tree with rule, severity, message and fix at each path."""
    code, out, _ = run(capsys, f"{GRAPHS}.nested:graph")
    assert 1 == code
    assert f"{GRAPHS}.nested:graph: 1 data-loss, 1 warning" == out.splitlines()[0]
    assert "└── middle|call_leaf|$.point" in out
    assert "LGS301 warning: a tuple comes back as a list" in out


def test_fail_on(capsys):
    """What is less bad is printed, and does not fail."""
    assert 1 == run(capsys, f"{GRAPHS}.nested:graph", "--fail-on", "data-loss")[0]
    assert 0 == run(capsys, f"{GRAPHS}.nested:graph", "--fail-on", "error")[0]
    assert 1 == run(capsys, f"{GRAPHS}.react:graph", "--fail-on", "note")[0]


def test_json(capsys):
    """The whole of each report, notes included."""
    code, out, _ = run(capsys, f"{GRAPHS}.nested:graph", f"{GRAPHS}.react:graph", "--json")
    whole = json.loads(out)
    assert 1 == code
    assert whole["clean"] is False
    assert [False, True] == [report["clean"] for report in whole["reports"]]
    assert {"rule", "severity", "path", "message", "fix"} == set(whole["reports"][0]["findings"][0])


def test_schema(capsys):
    """A state schema is a target, too."""
    assert 1 == run(capsys, f"{GRAPHS}.nested:Leaf")[0]
    assert 0 == run(capsys, f"{GRAPHS}.nested:Outer")[0]


def test_notes(capsys):
    """They are printed when asked for."""
    assert "LGS316" in run(capsys, f"{GRAPHS}.react:graph", "--notes")[1]


def test_ignore(capsys):
    """A rule may be dropped for a run."""
    arguments = [f"{GRAPHS}.nested:graph", "--ignore", "LGS301", "--ignore", "LGS217"]
    assert 0 == run(capsys, *arguments)[0]


def test_profile_json(capsys):
    """A message is no plain JSON."""
    assert "LGS318 error" in run(capsys, f"{GRAPHS}.react:graph", "--profile", "json")[1]


def test_allowlist(capsys):
    """It is Python, to be copied."""
    code, out, _ = run(capsys, f"{GRAPHS}.functional:graph", "--allowlist")
    namespace: dict = {}
    exec(out, namespace)
    module = f"{GRAPHS}.functional"
    assert 0 == code
    assert [(module, "Draft"), (module, "Verdict")] == namespace["allowed_msgpack_modules"]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("nowhere:graph", "ModuleNotFoundError: No module named 'nowhere'"),
        (f"{GRAPHS}.nested:nothing", "has no attribute 'nothing'; the graphs in it: leaf, middle"),
        (f"{GRAPHS}.nested", "is no module:graph, such as agent:graph"),
        ("./nowhere.py:graph", "No such file or directory"),
        (f"{GRAPHS}.nested:prepare", "is a function; if it makes the graph, --factory calls it"),
        (f"{GRAPHS}.react:CALL", "got an object of type dict"),
    ],
)
def test_could_not_check(capsys, target, words):
    """Two, and Python's own words on standard error."""
    code, out, err = run(capsys, target)
    assert (2, "") == (code, out)
    assert words in err


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("1 +", "SyntaxError: invalid syntax"),
        ("raise ValueError('no key')", "ValueError: no key"),
        ("raise SystemExit('no key')", "SystemExit: no key"),
    ],
)
def test_module_that_cannot_be_imported(capsys, source, words):
    """Whatever it raises is said, with its place."""
    Path("broken.py").write_text(source)
    code, _, err = run(capsys, "./broken.py:graph")
    assert 2 == code
    assert words in err
    assert "broken.py" in err


FILE = """
from typing import TypedDict
from langgraph.graph import START, StateGraph

print("imported")

class State(TypedDict):
    pair: tuple[int, int]

def make():
    return StateGraph(State).add_node("a", lambda s: {}).add_edge(START, "a").compile()

async def amake():
    return make()

graph = make()
"""


@pytest.mark.parametrize("arguments", [["graph"], ["make", "--factory"], ["amake", "--factory"]])
def test_file(capsys, arguments):
    """A file is imported by its path; what it prints does not get into the output."""
    Path("agent.py").write_text(FILE)
    attribute, *options = arguments
    code, out, err = run(capsys, f"./agent.py:{attribute}", "--json", *options)
    assert 1 == code
    assert ["$.pair"] == [
        finding["path"]
        for finding in json.loads(out)["reports"][0]["findings"]
        if finding["severity"] == "warning"
    ]
    assert "imported\n" == err


def test_langgraph_json(capsys):
    """Without a target, the graphs of langgraph.json are checked, as the server stores them."""
    Path("agent.py").write_text(FILE)
    graphs = {"one": "./agent.py:graph", "two": {"path": f"{GRAPHS}.react:graph"}}
    Path("langgraph.json").write_text(json.dumps({"dependencies": ["."], "graphs": graphs}))
    code, out, _ = run(capsys)
    assert 1 == code
    assert "one: 1 warning" in out
    assert "two: nothing found" in out


def test_no_target(capsys):
    """And without a langgraph.json there is nothing to check."""
    code, _, err = run(capsys)
    assert 2 == code
    assert "name what to check" in err


def test_settings_of_the_project(capsys):
    """[tool.lghard] says what is ignored, how bad the others are, and from where on it fails."""
    Path("pyproject.toml").write_text(
        '[tool.lghard]\nignore = ["LGS217"]\nfail-on = "error"\n'
        '[tool.lghard.severity]\nLGS301 = "error"\n'
    )
    code, out, _ = run(capsys, f"{GRAPHS}.nested:graph")
    assert 1 == code
    assert "LGS301 error: a tuple comes back as a list" in out
    assert "LGS217" not in out
    assert 0 == run(capsys, f"{GRAPHS}.nested:graph", "--ignore", "LGS301")[0]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('ignored = ["LGS301"]', "has no 'ignored'; it takes fail-on, ignore, profile, severity"),
        ('ignore = ["LGS999"]', "names 'LGS999', and there is no such rule"),
        ('fail-on = "bad"', "no severity 'bad'"),
        ('profile = "xml"', "profile is 'json', not 'xml'"),
        ("ignore = ", "pyproject.toml: Invalid value"),
    ],
)
def test_settings_that_are_wrong(capsys, table, words):
    """Two, with the file and the key."""
    Path("pyproject.toml").write_text(f"[tool.lghard]\n{table}\n")
    code, _, err = run(capsys, f"{GRAPHS}.nested:graph")
    assert 2 == code
    assert words in err


def test_terminal_gets_colors():
    """Through a pseudo-terminal there are colors; through a pipe there are none."""
    parent, child = pty.openpty()
    command = [sys.executable, "-W", "ignore", "-m", "lghard", "check", f"{GRAPHS}.nested:graph"]
    env = os.environ | {"TERM": "xterm-256color", "PYTHONPATH": os.pathsep.join(sys.path)}
    env.pop("NO_COLOR", None)
    with subprocess.Popen(command, stdout=child, env=env) as process:
        os.close(child)
        shown = b""
        while chunk := _read(parent):
            shown += chunk
    os.close(parent)
    assert 1 == process.returncode
    assert b"\x1b[33mLGS301 warning" in shown
    assert b"\x1b[" not in subprocess.run(command, env=env, capture_output=True, check=False).stdout


def _read(file):
    try:
        return os.read(file, 65536)
    except OSError:  # what Linux says at the end of a terminal
        return b""


def test_without_rich(capsys, monkeypatch):
    """It is printed plain, and the extra that brings colors is named."""
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    code, out, err = run(capsys, f"{GRAPHS}.nested:graph")
    assert 1 == code
    assert "LGS301 warning" in out
    assert "pip install 'lghard[cli]'" in err
