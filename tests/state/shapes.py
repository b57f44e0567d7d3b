"""Annotations that hide their types from LangGraph's own allowlist, and some that do not."""

import enum
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypeVar

import typing_extensions as te
from pydantic import BaseModel, SecretStr

from tests.state.kinds import Case


class Mark(enum.Enum):
    A = "a"


class InLiteral(enum.Enum):
    A = "a"


@dataclass
class InList:
    x: int = 1


@dataclass
class InSequence:
    x: int = 1


@dataclass
class InCollection:
    x: int = 1


@dataclass
class InMapping:
    x: int = 1


@dataclass
class InMutable:
    x: int = 1


@dataclass
class InDefault:
    x: int = 1


@dataclass
class InOrdered:
    x: int = 1


@dataclass
class InAlias:
    x: int = 1


@dataclass
class InBound:
    x: int = 1


@dataclass
class InBox:
    x: int = 1


@dataclass
class InGenericDict:
    x: int = 1


@dataclass
class InTuple:
    x: int = 1


@dataclass
class InReadOnly:
    x: int = 1


@dataclass
class InNewType:
    x: int = 1


class Base(BaseModel):
    x: int = 1


class Kid(Base):
    y: int = 2


class Model(BaseModel):
    x: int = 1
    mark: Mark = Mark.A


T = TypeVar("T")
B = TypeVar("B", bound=InBound)
Alias = te.TypeAliasType("Alias", dict[str, InAlias])
New = NewType("New", InNewType)


@dataclass
class Box(Generic[T]):
    it: T


class GenericDict(te.TypedDict, Generic[T]):
    it: T


class Pair(NamedTuple):
    it: InTuple


@dataclass
class Forward:
    it: "Later"
    gone: "int"


@dataclass
class Later:
    x: int = 1


class State(te.TypedDict):
    in_list: list[InList]
    in_sequence: Sequence[InSequence]
    in_collection: Collection[InCollection]
    in_mapping: Mapping[str, InMapping]
    in_mutable: MutableMapping[str, InMutable]
    in_alias: Alias
    in_bound: "list[B]"  # type: ignore[valid-type]
    in_box: Box[InBox]
    in_generic_dict: GenericDict[InGenericDict]
    in_namedtuple: Pair
    in_read_only: te.ReadOnly[InReadOnly]
    in_newtype: New
    in_literal: Literal[InLiteral.A]
    model: Model
    subclass: Base
    secret: SecretStr
    forward: Forward
    annotated: Annotated[dict[str, Any] | None, "nothing"]


VALUES = {
    "in_list": [InList(2)],
    "in_sequence": [InSequence(2)],
    "in_collection": [InCollection(2)],
    "in_mapping": {"a": InMapping(2)},
    "in_mutable": {"a": InMutable(2)},
    "in_alias": {"a": InAlias(2)},
    "in_bound": [InBound(2)],
    "in_box": Box(InBox(2)),
    "in_generic_dict": {"it": InGenericDict(2)},
    "in_namedtuple": Pair(InTuple(2)),
    "in_read_only": InReadOnly(2),
    "in_newtype": InNewType(2),
    "in_literal": InLiteral.A,
    "model": Model(x=2),
    "subclass": Kid(y=3),
    "secret": SecretStr("a"),
    "forward": Forward(Later(2), 1),
    "annotated": {"a": 1},
}
CASES = {name: Case(State, lambda value=value: [value]) for name, value in VALUES.items()}
