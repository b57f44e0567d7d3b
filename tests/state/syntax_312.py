"""Cases in the syntax of Python 3.12; nothing older can import this."""
# ruff: noqa: F821

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

from pydantic import BaseModel

from tests.state.kinds import Case, Leaf

type Leafs = list[Leaf]
type Pairs[T] = list[tuple[int, T]]
type Tree = dict[str, Tree | int]
type Gone = list[Nowhere]


@dataclass
class Box[T]:
    it: T


@dataclass
class Bound[T: Leaf]:
    it: T


@dataclass
class IntBox(Box[int]):
    pass


class Model[T](BaseModel):
    it: T


class IntModel(Model[int]):
    pass


class Dict[T](TypedDict):
    it: T


class Tuple[T](NamedTuple):
    it: T


CASES = {
    "alias": Case(Leafs, lambda: [[Leaf()]]),
    "generic alias": Case(Pairs[int], lambda: [[(1, 2)]], ("LGS301",)),
    "recursive alias": Case(Tree, lambda: [{"a": {"b": 1}}]),
    "unresolvable alias": Case(Gone, list, ("LGS114",)),
    "box": Case(Box[Leaf], lambda: [Box(Leaf())]),
    "box of tuple": Case(Box[tuple[int, int]], lambda: [Box((1, 2))], ("LGS301",)),
    "inherited": Case(IntBox, lambda: [IntBox(1)]),
    "bound": Case(Bound, lambda: [Bound(Leaf())]),
    "model": Case(IntModel, lambda: [IntModel(it=1)]),
    "typed dict": Case(Dict[tuple[int, int]], lambda: [{"it": (1, 2)}], ("LGS301",)),
    "named tuple": Case(Tuple[int], lambda: [Tuple(1)]),
    "sequence": Case(Sequence[Leafs], lambda: [[[Leaf()]]]),
}
