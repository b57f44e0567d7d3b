"""What the package promises before any of it runs: light, complete, and honest about versions."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lghard

ROOT = Path(__file__).parents[1]
HEAVY = {"httpx", "langgraph", "psycopg", "pydantic"}


def run(code: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run code in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | env,
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


def loaded(code: str) -> str:
    """Return which of the heavy packages a fresh interpreter has loaded after some code."""
    return run(f"import sys; {code}; print(*sorted({HEAVY} & set(sys.modules)))").stdout.strip()


def test_import_loads_none_of_the_heavy_packages() -> None:
    """`import lghard` costs nothing, while the first use of a name loads what it needs."""
    assert loaded("import lghard") == ""
    assert "psycopg" in loaded("import lghard; lghard.open_pool").split()


def test_every_public_name_resolves() -> None:
    """`__all__` is sorted, equals the table of homes, and each name is really there."""
    assert sorted(lghard._HOMES) == lghard.__all__
    code = "import lghard; print([getattr(lghard, name) is None for name in lghard.__all__])"
    assert run(code).stdout == f"{[False] * len(lghard.__all__)}\n"


def test_unknown_name_is_an_attribute_error() -> None:
    """The lazy module refuses a name it does not have, as any module does."""
    with pytest.raises(AttributeError, match="module 'lghard' has no attribute 'no_such_name'"):
        lghard.no_such_name  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    """The imports under TYPE_CHECKING are the table of homes, name by name."""
    tree = ast.parse(Path(lghard.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    imported = {
        alias.asname or alias.name: statement.module
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert imported == lghard._HOMES


def test_names_of_the_postgres_room_are_bound_eagerly() -> None:
    """The LangGraph server looks a checkpointer's path up in the module's `__dict__`."""
    names = {name for name, home in lghard._HOMES.items() if home == "lghard.postgres"}
    bound = run("import lghard.postgres; print(sorted(vars(lghard.postgres)))").stdout
    assert names - set(ast.literal_eval(bound)) == set()


def test_missing_libpq_says_what_to_install() -> None:
    """Where psycopg finds no libpq, the ImportError names the extra that brings one."""
    result = run("from lghard import open_pool", PSYCOPG_IMPL="c")
    assert result.returncode == 1
    assert "ImportError" in result.stderr
    assert "pip install 'lghard[binary]'" in result.stderr


def test_lower_bounds_are_those_that_ci_runs_on() -> None:
    """Each `>=` in pyproject.toml is the `==` in constraints-min.txt, and nothing else is there."""
    pins = re.findall(r"^([\w-]+)==(\S+)$", read("tests/constraints-min.txt"), re.MULTILINE)
    bounds = [re.match(r"([\w-]+)(?:\[.*\])?>=([\w.]+)", item) for item in requirements()]
    assert dict(pins) == {bound[1]: bound[2] for bound in bounds if bound}


def test_every_requirement_has_a_lower_bound() -> None:
    """A requirement without one would escape the run on the oldest versions."""
    assert [item for item in requirements() if ">=" not in item] == []


def requirements() -> list[str]:
    """Return what pyproject.toml requires from others, extras included."""
    project = tomllib.loads(read("pyproject.toml"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return [item for items in lists for item in items if not item.startswith("lghard[")]


def read(name: str) -> str:
    """Return a file of the repository."""
    return (ROOT / name).read_text()
