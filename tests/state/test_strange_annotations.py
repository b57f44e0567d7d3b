# ruff: noqa: F821, UP044 - these are the names and forms that it is about
"""Whatever stands where an annotation may stand: the check does not fail, it finds."""

import functools
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from typing import Annotated, Any, ClassVar, Concatenate, Generic, ParamSpec, TypeVar, TypeVarTuple

import pytest
import typing_extensions as te
from pydantic import BaseModel

from lghard.state.graph import check_schema
from tests.state.kinds import Leaf

T = TypeVar("T")
P = ParamSpec("P")
Ts = TypeVarTuple("Ts")


class Liar:
    """Answers to whatever it is asked."""

    def __getattr__(self, name):
        return Liar()

    def __call__(self, *args, **kwargs):
        return Liar()

    def __hash__(self):
        raise RuntimeError("no hash")

    def __eq__(self, other):
        raise RuntimeError("no equality")


class HostileMeta(type):
    def __getattr__(cls, name):
        raise RuntimeError(name)

    def __subclasscheck__(cls, other):
        raise RuntimeError("no subclasses")

    def __instancecheck__(cls, other):
        raise RuntimeError("no instances")

    def __eq__(cls, other):
        raise RuntimeError("no equality")

    def __hash__(cls):
        return 1


class Hostile(metaclass=HostileMeta):
    pass


class RaisingProperty:
    @property
    def __class__(self):
        raise RuntimeError("no class")

    __annotations__ = 3  # type: ignore[assignment]


@dataclass
class BadAnnotations:
    a: "not python ["  # noqa: F722
    b: "1 / 0"  # type: ignore[valid-type]
    c: "Nowhere"
    d: "typing.Nowhere"
    e: "list[Nowhere]"


class Empty:
    pass


@dataclass
class Deep(Generic[T]):
    it: "Deep[list[T]] | None" = None


Endless = te.TypeAliasType("Endless", "list[Endless]")
Lost = te.TypeAliasType("Lost", "list[Nowhere]")
STRANGE = [
    3, "text", "[", ..., (), [int], {"a": int}, lambda: None, print, functools.partial(print), sys,
    Liar(), Hostile, RaisingProperty, Empty, type, object, types.GenericAlias, T, P, Ts,
    ClassVar[int], typing.Final[int], InitVar[int], te.Self, te.Never, te.LiteralString,
    te.TypeGuard[int], te.Unpack[Ts], tuple[te.Unpack[Ts]], tuple[int, te.Unpack[tuple[int, ...]]],
    Annotated[int, []], Annotated[Annotated[tuple[int, int], 1], 2], typing.Callable[P, T],
    Concatenate[int, P], Generic, Generic[T], typing.Protocol, typing.Union, typing.Optional,
    typing.Literal, typing.Literal[()], typing.Annotated, typing.ForwardRef("Nowhere"),
    list["Nowhere"], dict["Nowhere", "Nowhere"], Sequence["Nowhere"], Endless, Lost, Deep[int],
    te.Required[int], te.NotRequired[tuple[int, int]], type(None), NotImplemented, Ellipsis,
    typing.NamedTuple, te.TypedDict, BaseModel, typing.AnyStr, typing.IO[str], typing.Pattern,
    types.UnionType, types.FunctionType, memoryview, slice, super, property, classmethod,
]  # fmt: skip


@pytest.mark.parametrize("annotation", STRANGE, ids=lambda a: type(a).__name__)
def test_never_crashes(annotation):
    """Inside a container any object may stand; there is a report for each."""
    check_schema(dataclass(type("Holder", (), {"__annotations__": {"it": annotation}})))


@pytest.mark.parametrize("annotation", STRANGE, ids=lambda a: type(a).__name__)
def test_never_crashes_inside(annotation):
    """Nor below a generic that takes anything."""
    check_schema(types.GenericAlias(list, (annotation,)))
    check_schema(types.GenericAlias(dict, (annotation, annotation)))
    check_schema(types.GenericAlias(set, (annotation,)))


def test_each_unresolvable_name_is_a_finding():
    """It names what is missing."""
    report = check_schema(BadAnnotations)
    assert ["LGS114"] * 5 == [f.rule for f in report.at_least("warning")]
    assert "Nowhere cannot be resolved in" in report.under("$.c")[0].message
    assert "name 'Nowhere' is not defined" in report.under("$.e")[0].message
    assert "ZeroDivisionError" in report.under("$.b")[0].message


class Waiting(BaseModel):
    it: "list[Nowhere]"


def test_unresolvable_name_in_a_model():
    """So is one that a pydantic model waits for."""
    report = check_schema(list[Waiting])
    assert ["LGS114"] == [f.rule for f in report.at_least("warning")]


def test_recursive_types_end():
    """Also those that grow with each turn; the report says where it stops."""
    assert check_schema(Endless).clean
    assert "LGS316" in check_schema(Deep[int]).rules


def test_thousand_fields():
    """A wide schema is walked once per class."""
    wide = dataclass(
        type("Wide", (), {"__annotations__": {f"f{i}": list[Leaf] for i in range(1000)}})
    )
    assert {"LGS212"} == {f.rule for f in check_schema(wide).at_least("warning")}


@dataclass
class Shadowing:
    """A field that is named as its type is."""

    list: "list[int]" = field(default_factory=list)
    Leaf: "Leaf | None" = None


def test_field_that_is_named_as_its_type():
    """Names are looked up in the module first, as LangGraph does it."""
    assert check_schema(list[Shadowing]).clean


def test_nothing_of_the_users_is_called():
    """A class is looked at, and never made."""
    calls: list[Any] = []

    @dataclass
    class Loud:
        x: int = 1

        def __init_subclass__(cls):
            calls.append("subclass")

        def __new__(cls, *args):
            calls.append("new")
            return super().__new__(cls)

        def __post_init__(self):
            calls.append("post")

    check_schema(list[Loud])
    assert [] == calls
