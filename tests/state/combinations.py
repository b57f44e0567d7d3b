"""Classes made of everything with everything: members of Enums, fields of pydantic's classes."""

import dataclasses
import ipaddress
import re
import uuid
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, EnumType, Flag, IntEnum, StrEnum, member
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, RootModel
from pydantic.dataclasses import dataclass as pydantic_dataclass

Makers = Iterator[tuple[str, Callable[[], Any]]]


class Colour(Enum):
    RED = "red"
    PAIR = (1, 2)


class Model(BaseModel):
    x: Any = 1


@dataclasses.dataclass(frozen=True)
class Plain:
    a: Any = 1


@pydantic_dataclass
class Pair:
    pair: tuple[int, int]


class Point(NamedTuple):
    x: int
    y: Any = None


class Text(str):
    pass


class Items(list[Any]):
    pass


PARIS = ZoneInfo("Europe/Paris")
MEMBERS: tuple[Any, ...] = (
    *(0, 1, True, None, 1.0, -0.0, 1.5, float("inf"), float("nan"), 1 << 63, 1 << 64, -(1 << 65)),
    *("", "é", "a\x00", "a\ud800", b"x", bytearray(b"x"), Text("x"), Items([1])),
    *((), (1,), [], [1], [(1,)], [float("nan")], {}, {"a": 1}, {1: 2}, {"a": (1,)}, {(1,): 2}),
    *(set(), {1}, {(1,)}, frozenset({1}), frozenset({(1, 2)})),
    *(OrderedDict(a=1), defaultdict(int, a=1), deque([1]), deque([1], maxlen=2)),
    *(date(2020, 1, 1), datetime(2020, 1, 1), datetime(2020, 10, 25, 2, 30, fold=1)),
    *(datetime(2020, 1, 1, tzinfo=zone) for zone in (timezone.utc, PARIS)),  # noqa: UP017
    datetime(2020, 10, 25, 2, 30, tzinfo=PARIS, fold=1),
    datetime(2020, 1, 1, tzinfo=timezone(timedelta(microseconds=1))),
    *(time(1, 2), time(1, 2, tzinfo=timezone.utc), timedelta(1), PARIS),  # noqa: UP017
    *(Decimal("1.0"), Decimal("NaN"), Fraction(1, 2), 1 + 2j, uuid.UUID(int=1), Path("/x")),
    *(ipaddress.ip_address("127.0.0.1"), re.compile("a"), range(3), len),
    *(Colour.RED, Colour.PAIR, Plain(), Plain((1,)), Plain([1]), Point(1), Point(1, (1,))),
    *(Model(), Model(x=(1,)), Pair((1, 2))),
)
BASES: Mapping[str, tuple[type, ...]] = {
    "Enum": (Enum,),
    "IntEnum": (IntEnum,),
    "StrEnum": (StrEnum,),
    "Flag": (Flag,),
    **{f"{kind.__name__}_Enum": (kind, Enum) for kind in (str, int, float, bytes, tuple, date)},
}


def enums() -> Makers:
    """An Enum for each value, of each kind that takes it."""
    for base, bases in BASES.items():
        for at, value in enumerate(MEMBERS):
            names = EnumType.__prepare__(name := f"{base}_{at}", bases)
            names["__module__"] = __name__
            try:
                names["A"] = member(value)
                kind: Any = EnumType(name, bases, names)
            except Exception:
                continue
            globals()[name] = kind
            yield f"{name}({value!r})", partial(kind.__members__.__getitem__, "A")


FIELDS: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
    "int": (int, (5,)),
    "float": (float, (1.5, float("nan"))),
    "str": (str, ("a",)),
    "tuple": (tuple[int, int], ((1, 2),)),
    "any_tuple": (tuple, ((1, [2]),)),
    "set": (set[int], ({1},)),
    "any_set": (set, ({1, "a"}, {(1, 2)})),
    "dict": (dict[str, Any], ({"a": (1,)}, {"a": 1}, {})),
    "dates": (dict[date, int], ({date(2020, 1, 1): 1},)),
    "colours": (dict[Colour, int], ({Colour.RED: 1},)),
    "any": (Any, (1, (1,), {1}, Model(), Plain((1,)), Colour.PAIR, Pair((1, 2)), Point(1, (2,)))),
    "tuples": (list[tuple[int, int]], ([(1, 2)],)),
    "optional": (tuple[int, int] | None, (None, (1, 2))),
    "either": (list[int] | tuple[int, ...], ([1], (1,))),
    "datetime": (datetime, (datetime(2020, 1, 1), datetime(2020, 1, 1, tzinfo=PARIS))),
    "colour": (Colour, (Colour.RED, Colour.PAIR)),
    "model": (Model, (Model(), Model(x=(1,)))),
    "plain": (Plain, (Plain(), Plain((1,)))),
    "pair": (Pair, (Pair((1, 2)),)),
    "pairs": (dict[str, Pair], ({"a": Pair((1, 2))},)),
    "point": (Point, (Point(1), Point(1, (2,)))),
    "literal": (Literal["a", 1], ("a", 1)),
}
CONFIGS: Mapping[str, ConfigDict] = {
    "": ConfigDict(),
    "strict": ConfigDict(strict=True),
    "allow": ConfigDict(extra="allow"),
    "values": ConfigDict(use_enum_values=True),
}


def records() -> Makers:
    """Dataclasses that pydantic validates, and models, with a field of each type."""
    for field, (hint, values) in FIELDS.items():
        for config, settings in CONFIGS.items():
            name = f"{field}_{config}_"
            for kind, argument in _kinds(name, hint, settings):
                globals()[kind.__name__] = kind
                for value in values:
                    make = partial(kind, **{argument: value})
                    try:
                        make()
                    except Exception:
                        continue
                    yield f"{kind.__name__}({value!r})", make


def _kinds(name: str, hint: Any, settings: ConfigDict) -> Iterator[tuple[Any, str]]:
    """Classes with a field `a` of this type, and what their constructor calls it."""

    def body(hints: dict[str, Any], **fields: Any) -> dict[str, Any]:
        return {"__module__": __name__, "__annotations__": {"a": hint} | hints, **fields}

    decorate = pydantic_dataclass(config=settings)
    first = decorate(type(f"{name}field", (), body({})))
    yield first, "a"
    yield decorate(type(f"{name}default", (), body({"b": int}, b=3))), "a"
    yield decorate(type(f"{name}alias", (), body({}, a=Field(alias="A")))), "A"
    yield decorate(type(f"{name}excluded", (), body({}, a=Field(exclude=True)))), "a"
    yield type(f"{name}undecorated", (first,), {"__module__": __name__}), "a"
    yield type(f"{name}model", (BaseModel,), body({}, model_config=settings)), "a"
    if not settings:
        derived = Field(default=3, init=False)
        yield decorate(type(f"{name}derived", (), body({"b": int}, b=derived))), "a"
        yield type(f"{name}root", (RootModel[hint],), {"__module__": __name__}), "root"


VALUES: Mapping[str, Callable[[], Any]] = {**dict(enums()), **dict(records())}
