"""Comments on the line of a field, a class or a function."""

from dataclasses import dataclass, field
from typing import TypedDict

import pytest
from langgraph.graph import START, StateGraph
from pydantic import BaseModel, Field

from lghard.state.check_settings import CheckSettings
from lghard.state.graph import check_graph, check_schema
from lghard.state.report import Severity


def told(report):
    """Path and rule, for all that is a warning or worse."""
    return {(finding.path, finding.rule) for finding in report.at_least("warning")}


class OneLine(TypedDict):
    a: tuple[int, int]  # lghard: ignore[LGS301]
    b: tuple[int, int]
    c: tuple[int, int]  # lghard: ignore[LGS302, LGS301]
    d: tuple[int, int]  # lghard: ignore
    e: tuple[int, int]  # lghard: ignore[LGS302]
    f: dict[  # lghard: ignore[LGS301]
        str,
        tuple[int, int],
    ]


def test_comment_on_the_line_of_a_field():
    """It is for the rules that it names, or for all of them; and for no other field."""
    assert {("$.b", "LGS301"), ("$.e", "LGS301")} == told(check_schema(OneLine))


@dataclass
class Inner:
    a: tuple[int, int]  # lghard: ignore[LGS301]
    b: list[tuple[int, int]] = field(default_factory=list)


class Holder(TypedDict):
    one: Inner
    two: Inner  # lghard: ignore[LGS301]


def test_comment_inside_and_above():
    """A comment in a class is for all places that hold it, one above for all that is below."""
    assert {("$.one.b[*]", "LGS301")} == told(check_schema(Holder))


class Model(BaseModel):
    a: int = Field(1, alias="A")  # lghard: ignore[LGS201]
    b: int = Field(1, alias="B")
    _c: int = 0  # lghard: ignore[LGS203]


class Kid(Model):
    pass


@pytest.mark.parametrize("schema", [Model, Kid, list[Kid]])
def test_comment_in_a_model(schema):
    """Also for those that inherit the field."""
    assert {"LGS201"} == {rule for _, rule in told(check_schema(schema))}
    assert 1 == len(told(check_schema(schema)))


def test_comment_on_a_class():
    """What is wrong with the class itself is ignored on its own line."""

    @dataclass
    class Local:  # lghard: ignore[LGS213]
        pair: tuple[int, int]

    assert {("$[*].pair", "LGS301")} == told(check_schema(list[Local]))


class Numbers(TypedDict):
    number: int


def node(state: Numbers) -> str:  # lghard: ignore[LGS115]
    return "a"


def test_comment_on_a_function():
    """What is wrong with a node's return is ignored on the line of its `def`."""
    graph = StateGraph(Numbers).add_node("node", node).add_edge(START, "node")
    assert set() == told(check_graph(graph))


def test_settings_given():
    """Settings may be given instead of being read from a file."""
    settings = CheckSettings(ignore=("LGS316",), severity={"LGS301": Severity.ERROR})
    report = check_schema(OneLine, settings=settings)
    assert {Severity.ERROR} == {f.severity for f in report}


def test_settings_of_the_folder(tmp_path, monkeypatch):
    """They are those of the next pyproject.toml above, in a unit test as on the command line."""
    (tmp_path / "pyproject.toml").write_text('[tool.lghard]\nignore = ["LGS301"]\n')
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    assert check_schema(OneLine).clean
