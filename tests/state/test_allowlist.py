"""The complete allowlist, in a fresh process in strict mode."""

import json
import os
import subprocess
import sys

import pytest

from lghard.state.graph import allowlist_of
from tests.state import shapes
from tests.state.graphs import functional, nested
from tests.state.round_trip import ROOT, write_in_another_process


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    """What a process in strict mode has read, and found."""
    file = tmp_path_factory.mktemp("strict") / "written"
    write_in_another_process("tests.state.shapes", file)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.state.strict", str(file)],
        cwd=ROOT,
        env=os.environ | {"LANGGRAPH_STRICT_MSGPACK": "true"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_langgraphs_own_list_has_holes(strict):
    """The control: with what compile() adds, many declared types come back as raw values."""
    assert {"in_sequence", "in_mapping", "in_box", "in_literal"} <= set(
        strict["lost with LangGraph's"]
    )


def test_complete_list_restores_every_declared_type(strict):
    """With lghard's list strict mode gives back what was stored."""
    assert [] == strict["lost with ours"]


def test_says_which_types_strict_mode_hides(strict):
    """LGS314 names the channels that come back raw; a subclass is in no annotation."""
    assert sorted(strict["lost with LangGraph's"]) == sorted([*strict["found"], "subclass"])


def test_nothing_is_hidden_with_the_complete_list(strict):
    """And none with lghard's list."""
    assert [] == strict["found with ours"]


def test_names_module_and_class():
    """An entry is what LangGraph looks up."""
    assert ("tests.state.shapes", "InSequence") in allowlist_of(shapes.State)


def test_leaves_out_what_langgraph_allows_anyway():
    """Messages and datetimes are on LangGraph's own list."""
    assert () == allowlist_of(list[int])


def test_results_of_tasks_are_in_the_list():
    """LangGraph does not look at what a @task returns."""
    names = {name for _, name in allowlist_of(functional.graph)}
    assert {"Draft", "Verdict"} == names


def test_a_graph_without_classes_needs_no_list():
    """Subgraphs included."""
    assert () == allowlist_of(nested.graph)


def test_refuses_a_value():
    """It says what it was given."""
    with pytest.raises(TypeError, match="expected a graph or a schema; got an object of type int"):
        allowlist_of(3)
