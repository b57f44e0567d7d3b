"""Annotations, values of them, and what the static check must say: the cases of its tests.

This module is imported by whoever writes, and by whoever reads in another process.
"""

import array
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import io
import ipaddress
import pathlib
import re
import threading
import types
import typing
import uuid
import zoneinfo
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Optional, TypeVar, Union

import attrs
import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd
import pydantic
import typing_extensions as te
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, ToolMessage
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    RootModel,
    SecretStr,
)

from tests.state import coded

T = TypeVar("T")
N = TypeVar("N", bound="Leaf")
UserId = NewType("UserId", str)
Alias = te.TypeAliasType("Alias", "list[Leaf]")
Pairs = te.TypeAliasType("Pairs", list[tuple[int, T]], type_params=(T,))
Tree = te.TypeAliasType("Tree", "dict[str, Tree | int]")


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Name(str, enum.Enum):  # noqa: UP042 - what many people have
    ANN = "ann"


class Level(enum.IntEnum):
    LOW = 1


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Point(enum.Enum):
    ORIGIN = (0, 0)


class Nowhere(enum.Enum):
    NAN = float("nan")


class Raws(bytes, enum.Enum):
    A = b"a"


class Birthday(dt.date, enum.Enum):
    ANN = 2000, 1, 1


class Digits(enum.Enum):
    ONE = "1"


class Text(str):
    pass


class Number(int):
    pass


class Real(float):
    pass


class Raw(bytes):
    pass


class Attributes(dict):
    pass


class Rows(list):
    pass


class Own(set):
    pass


class Instant(dt.datetime):
    pass


class Day(dt.date):
    pass


@dataclass
class Leaf:
    x: int = 1


@dataclass(frozen=True)
class Frozen:
    x: int = 1


@dataclass(slots=True, kw_only=True)
class Slotted:
    x: int
    when: dt.date | None = None


@dataclass
class Box(Generic[T]):
    it: T


@dataclass
class Crate(Generic[T]):
    it: T


@dataclass
class IntBox(Crate[int]):
    pass


@dataclass
class PairBox(Crate[tuple[int, int]]):
    pass


@dataclass
class Node:
    value: int
    children: list["Node"] = field(default_factory=list)


@dataclass
class Missing:
    it: "Nonexistent"  # noqa: F821


@dataclass
class Derived:
    x: int
    y: int = field(init=False, default=3)


@dataclass
class Seeded:
    x: int
    seed: InitVar[int] = 5

    def __post_init__(self, seed):
        self.x += seed


@dataclass
class NeedsSeed:
    x: int
    seed: InitVar[int]

    def __post_init__(self, seed):
        pass


@dataclass
class Growing:
    cents: int

    def __post_init__(self):
        self.cents *= 100


@dataclass
class Checked:
    cents: int

    def __post_init__(self):
        if self.cents < 0:
            raise ValueError("negative")


@dataclass
class Unclear:
    names: list[str]

    def __post_init__(self):
        self.names = sorted(self.names)


@dataclass(init=False)
class OwnInit:
    x: int

    def __init__(self, start):
        self.x = start


@dataclass
class Stem:
    x: int = 1


@dataclass
class Trunk:
    x: int = 1


class Undecorated(Trunk):
    extra: int = 0


@dataclass
class DictClass(dict):
    x: int = 1


@dataclass(frozen=True)
class LikeSend:
    node: str
    arg: int
    more: int = 2


@dataclass
class Duck:
    x: int = 1

    def dict(self):
        return {"y": 2}


@dataclass
class Holder:
    tags: tuple[str, ...] = ()
    leaf: Leaf = field(default_factory=Leaf)


class Plain:
    def __init__(self, x=1):
        self.x = x


class Pair(NamedTuple):
    a: int
    b: str = ""


class Nested(NamedTuple):
    t: tuple[int, ...]


Loose = collections.namedtuple("Loose", "a b")  # noqa: PYI024


class Movie(te.TypedDict, total=False):
    title: te.Required[str]
    year: te.ReadOnly[int]
    cast: list[Leaf]


class GenericDict(te.TypedDict, Generic[T]):
    it: T


@attrs.define
class Attrs:
    x: int = 1


class Struct(msgspec.Struct):
    x: int = 1


class Model(BaseModel):
    x: int = 1
    leaf: Leaf | None = None
    pair: tuple[int, int] = (1, 2)
    colors: dict[Color, int] = {}
    when: dt.date | None = None


class Small(BaseModel):
    x: int = 1


class SmallKid(Small):
    y: int = 2


class Big(BaseModel):
    x: int = 1
    y: int = 2


class HoldsSmall(BaseModel):
    it: Small


class HoldsLeafs(BaseModel):
    leafs: list[Leaf] = []
    inner: "Big | None" = None


class Zoo(BaseModel):
    pets: list[Annotated[Union["Cat", "Dog"], Field(discriminator="kind")]]


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    bark: str = ""


class Mixed(BaseModel):
    it: Big | Leaf


class ModelOrDict(BaseModel):
    it: Big | dict[str, int]


class ListOrTuple(BaseModel):
    it: list[int] | tuple[int, ...]


class AliasDefault(BaseModel):
    x: int = Field(1, alias="X")


class AliasRequired(BaseModel):
    x: int = Field(alias="X")
    big: Big = Big()


class AliasByName(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    x: int = Field(alias="X")


class AliasBoth(BaseModel):
    model_config = ConfigDict(serialize_by_alias=True)
    x: int = Field(alias="X")


class Camel(BaseModel):
    model_config = ConfigDict(alias_generator=lambda name: name.upper())
    x: int = 1


class Private(BaseModel):
    x: int = 1
    _seen: int = 0


class Excluded(BaseModel):
    x: int = Field(1, exclude=True)


class Rounded(BaseModel):
    x: float = 1.0

    @pydantic.field_serializer("x")
    def short(self, value):
        return round(value)


class JsonOnly(BaseModel):
    x: float = 1.0

    @pydantic.field_serializer("x", when_used="json")
    def short(self, value):
        return round(value)


class Whole(BaseModel):
    x: int = 1

    @pydantic.model_serializer
    def all(self):
        return {"x": 0}


class AnnotatedCode(BaseModel):
    x: Annotated[int, PlainSerializer(lambda value: value + 1)] = 1


class Scaling(BaseModel):
    cents: int = 1

    @pydantic.field_validator("cents")
    @classmethod
    def scale(cls, value):
        return value * 100


class Checking(BaseModel):
    cents: int = 1

    @pydantic.field_validator("cents")
    @classmethod
    def positive(cls, value):
        if value < 0:
            raise ValueError("negative")
        return value

    @pydantic.model_validator(mode="after")
    def whole(self):
        if self.cents > 1000:
            raise ValueError("too much")
        return self


class Stripping(BaseModel):
    name: Annotated[str, BeforeValidator(lambda value: value)] = ""
    other: str = ""

    @pydantic.field_validator("other")
    @classmethod
    def strip(cls, value):
        return value.strip().lower()


class PostInit(BaseModel):
    x: int = 1

    def model_post_init(self, context):
        self.x += 1


class EnumValues(BaseModel):
    model_config = ConfigDict(use_enum_values=True)
    color: Color = Color.RED


class EnumValuesRequired(BaseModel):
    model_config = ConfigDict(use_enum_values=True)
    color: Color


class Root(RootModel[list[int]]):
    pass


class HoldsRoot(BaseModel):
    it: Root


class Gen(BaseModel, Generic[T]):
    it: T


class IntGen(Gen[int]):
    pass


GenAtTop = Gen[str]


def gen_inside():
    return Gen[dt.date]


GenInside = gen_inside()


class StrictTuple(BaseModel):
    model_config = ConfigDict(strict=True)
    it: tuple[int, ...] = ()


class StrictPlain(BaseModel):
    model_config = ConfigDict(strict=True)
    it: int = 1
    names: list[str] = []


class SetOfFrozen(BaseModel):
    it: set[Frozen]


class SetOfTuples(BaseModel):
    it: set[tuple[int, int]]


class KeyedByUuid(BaseModel):
    it: dict[uuid.UUID, int]


class KeyedByEither(BaseModel):
    it: dict[uuid.UUID | str, int]


class Url(BaseModel):
    it: pydantic.AnyUrl


class Lazy(BaseModel):
    it: Iterable[int]


class Either(BaseModel):
    it: Sequence[int]


class Messages(BaseModel):
    it: list[BaseMessage]


class TaggedMessages(BaseModel):
    it: list[AnyMessage]


class Arbitrary(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    it: Plain


class Secrets(BaseModel):
    it: SecretStr


class Untyped(BaseModel):
    it: Any = None


class Extra(BaseModel):
    model_config = ConfigDict(extra="allow")


class Computed(BaseModel):
    model_config = ConfigDict(extra="allow")
    x: int = 1

    @pydantic.computed_field
    @property
    def double(self) -> int:
        return self.x * 2


class ComputedAlone(BaseModel):
    x: int = 1

    @pydantic.computed_field
    @property
    def double(self) -> int:
        return self.x * 2


class Swapped(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    x: int = Field(1, alias="y")
    y: int = Field(2, alias="x")


class Addresses(BaseModel):
    address: pydantic.IPvAnyAddress = ipaddress.ip_address("::1")
    network: pydantic.IPvAnyNetwork = ipaddress.ip_network("10.0.0.0/8")


class OneMore:
    """A descriptor."""

    def __get__(self, obj, kind=None):
        return 0 if obj is None else obj.__dict__["x"]

    def __set__(self, obj, value):
        obj.__dict__["x"] = value + 1


@dataclass
class Described:
    x: int = OneMore()


class Collections(BaseModel):
    a: defaultdict[str, list[int]]
    b: OrderedDict[str, int]
    c: collections.Counter[str]
    d: frozenset[int]
    e: Pair


class Parsed(BaseModel):
    it: pydantic.Json[list[Pair]]


class Existing(BaseModel):
    it: pydantic.FilePath


class Self_(BaseModel):  # noqa: N801
    kids: list["Self_"] = []


class InstanceOf(BaseModel):
    it: pydantic.InstanceOf[Small]


class LocalEnumHolder(BaseModel):
    it: "Outer.Inner"


class LocalEnumOrText(BaseModel):
    it: "Outer.Inner | str"


class Outer:
    class Inner(enum.Enum):  # noqa: D106
        A = "a"

    @dataclass
    class Leaf:  # noqa: D106 - there is another class of this name
        y: int = 1

    @dataclass
    class Hidden:  # noqa: D106
        y: int = 1


LocalEnumHolder.model_rebuild()
LocalEnumOrText.model_rebuild()
Zoo.model_rebuild()
HoldsLeafs.model_rebuild()


@dataclass
class StemKid(Stem):
    y: int = 2


@dataclass
class Lonely:
    x: int = 1


class HoldsStem(BaseModel):
    it: Stem


class HoldsLonely(BaseModel):
    it: Lonely
    many: dict[str, list[Lonely]] = {}


@dataclass
class AliasInside:
    x: Annotated[int, Field(alias="X")] = 1


class HoldsAliasInside(BaseModel):
    it: AliasInside


class HoldsDuck(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    it: "PlainDuck"


class PlainDuck:
    def dict(self):
        return {"x": 1}


HoldsDuck.model_rebuild()


@dataclass
class Propertied:
    x: int

    @property
    def x(self):
        return self._x * 2

    @x.setter
    def x(self, value):
        self._x = value


@dataclass
class Watching:
    x: int

    def __setattr__(self, name, value):
        object.__setattr__(self, name, value + 1)


class Doubling(NamedTuple("Doubling", [("a", int)])):
    def __new__(cls, a):
        return super().__new__(cls, a * 2)


class Loud(enum.Enum):
    A = "a"

    @property
    def value(self):
        return self._value_.upper()


@dataclass
class Set(set):
    x: int = 1


@dataclass(eq=False)
class Identity:
    x: int = 1


class Tagged(BaseModel):
    it: te.TypedDict("It", {"kind": Literal["it"]}) | te.TypedDict("Other", {"kind": Literal["o"]})


class Unvalidated(BaseModel):
    it: Annotated[tuple[int, ...], pydantic.SkipValidation]


class DateKeys(BaseModel):
    it: dict[dt.date | dt.datetime, int]


class DigitKeys(BaseModel):
    it: dict[int | Digits, int]


class LiteralKeys(BaseModel):
    it: dict[Literal[Color.RED], int]


class Narrow(BaseModel):
    a: int


class Wide(BaseModel):
    a: int
    b: int | None = None


class NarrowFirst(BaseModel):
    it: Narrow | Wide


class WideFirst(BaseModel):
    it: Wide | Narrow


class Words(BaseModel):
    a: str


class ByType(BaseModel):
    it: Words | Narrow


class TupleInside(BaseModel):
    a: tuple[int, ...]


class ListInside(BaseModel):
    a: list[int]


class TupleOrList(BaseModel):
    it: TupleInside | ListInside


@dataclass
class Parent:
    x: int = 1


@dataclass
class Child(Parent):
    pair: tuple[int, int] = (1, 2)


@pydantic.dataclasses.dataclass
class Validated:
    pair: tuple[int, int]
    big: Big


@pydantic.dataclasses.dataclass
class ValidatedAlias:
    x: int = Field(1, alias="X")


class HoldsDerived(BaseModel):
    it: Derived


def local_class():
    @dataclass
    class Local:
        x: int = 1

    return Local


LOCAL = local_class()
Made = dataclasses.make_dataclass("MadeByCall", [("x", int)])
Made.__module__ = "nowhere"


@dataclass
class Shadowed:
    x: int = 1


First = Shadowed


@dataclass
class Shadowed:
    y: int = 1


def _made():
    yield 1


@dataclass(frozen=True)
class Case:
    """An annotation, and what is known of it.

    Attributes:
        annotation: a type.
        values: of that type; if a rule is expected, the ones that it is about.
        rules: which are expected at warning or above; none: all values come back.
        notes: which are expected below.
    """

    annotation: Any
    values: Callable[[], list[Any]]
    rules: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


CASES: dict[str, Case] = {}


def case(name, annotation, values, *rules):
    assert name not in CASES, name
    warned = tuple(r for r in rules if r not in ("LGS316", "LGS404"))
    notes = tuple(r for r in rules if r in ("LGS316", "LGS404"))
    CASES[name] = Case(annotation, values, warned, notes)


UUID1 = uuid.UUID(int=1)
TODAY = dt.date(2026, 1, 2)
NOW = dt.datetime(2026, 1, 2, 3, 4, 5)
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")

# --- plain values, and what LangGraph encodes by itself
case("int", int, lambda: [0, -(2**63), 2**64 - 1, True])
case("float", float, lambda: [1.5, float("inf"), -0.0])
case("str", str, lambda: ["", "ä", "a\x00b"])
case("bool", bool, lambda: [True, False])
case("none", None, lambda: [None])
case("bytes", bytes, lambda: [b"", b"a"])
case("optional", Optional[int], lambda: [None, 1])  # noqa: UP045
case("union", int | str | None, lambda: [None, 1, "a"])
case("literal", Literal["a", 1, True, b"x"] | None, lambda: ["a", 1, None, True, b"x"])
case("literal enum", Literal[Color.RED], lambda: [Color.RED])
case("newtype", UserId, lambda: ["a"])
case("annotated", Annotated[list[int], "sum"], lambda: [[1]])
case("never", te.Never, list)
case("literal string", te.LiteralString, lambda: ["a"])
case("date", dt.date, lambda: [NOW.date()])
case("time", dt.time, lambda: [dt.time(1), dt.time(1, fold=1, tzinfo=BERLIN)])
case("timedelta", dt.timedelta, lambda: [dt.timedelta(-1, 2, 3)])
case("timezone", dt.timezone, lambda: [dt.UTC])
case("zoneinfo", zoneinfo.ZoneInfo, lambda: [BERLIN])
case("datetime", dt.datetime, lambda: [NOW.replace(tzinfo=BERLIN)], "LGS305")
case("uuid", uuid.UUID, lambda: [UUID1])
case("decimal", decimal.Decimal, lambda: [decimal.Decimal("1.10")])
case("path", pathlib.Path, lambda: [pathlib.Path("a/b"), pathlib.Path("/a")])
case("pure path", pathlib.PurePosixPath, lambda: [pathlib.PurePosixPath("a")], "LGS110")
case("ip", ipaddress.IPv4Address | ipaddress.IPv6Network,
     lambda: [ipaddress.IPv4Address(1), ipaddress.IPv6Network("::/8")])  # fmt: skip
case("pattern", re.Pattern[str], lambda: [re.compile("a", re.IGNORECASE)])
case("bare pattern", re.Pattern, lambda: [re.compile(b"a")])
case("match", re.Match[str], lambda: [re.match("a", "a")], "LGS101")
case("complex", complex, lambda: [1j], "LGS110")
case("range", range, lambda: [range(3)], "LGS110")
case("fraction", fractions.Fraction, lambda: [fractions.Fraction(1, 2)], "LGS110")
case("bytearray", bytearray, lambda: [bytearray(b"a")])
case("nested bytearray", list[bytearray], lambda: [[bytearray(b"a")]], "LGS303")
case("memoryview", memoryview, lambda: [memoryview(b"a")], "LGS303")
case("datetime subclass", Instant, lambda: [Instant(2026, 1, 1)], "LGS306")
case("timestamp", pd.Timestamp, lambda: [pd.Timestamp(2026, 1, 1)], "LGS306")
case("date subclass", Day, lambda: [Day(2026, 1, 1)])

# --- containers
case("list", list[int], lambda: [[], [1]])
case("typing list", typing.List[int], lambda: [[1]])  # noqa: UP006
case("bare list", list, lambda: [[1]], "LGS316")
case("bare dict", dict, lambda: [{"a": 1}], "LGS316")
case("any", Any, lambda: [1], "LGS316")
case("object", object, lambda: [1], "LGS316")
case("tuple", tuple[int, str], lambda: [(1, "a")], "LGS301")
case("tuples", tuple[int, ...], lambda: [(1,)], "LGS301")
case("empty tuple", tuple[()], lambda: [()], "LGS301")
case("bare tuple", tuple, lambda: [(1,)], "LGS301", "LGS316")
case("nested tuple", dict[str, list[tuple[int, int]]], lambda: [{"a": [(1, 2)]}], "LGS301")
case("set", set[str], lambda: [{"a"}, set()])
case("frozenset", frozenset[int], lambda: [frozenset({1})])
case("set of enums", set[Color], lambda: [{Color.RED}])
case("set of frozen", set[Frozen], lambda: [{Frozen(2)}])
case("set of namedtuples", set[Pair], lambda: [{Pair(1, "b")}])
case("set of tuples", set[tuple[int, int]], lambda: [{(1, 2)}], "LGS217")
case("set of uuids", frozenset[uuid.UUID], lambda: [frozenset({UUID1})])
case("deque", deque[int], lambda: [deque([1], maxlen=3)], "LGS304")
case("dict", dict[str, float], lambda: [{"a": 1.0}, {}])
case("int keys", dict[int, str], lambda: [{1: "a", -1: "b"}])
case("plain keys", dict[int | str | float | bool | bytes | None, str],
     lambda: [{1: "a", "b": "", 1.5: "", b"a": "", None: ""}])  # fmt: skip
case("tuple keys", dict[tuple[int, str], int], lambda: [{(1, "a"): 1}])
case("literal keys", dict[Literal["a", "b"], int], lambda: [{"a": 1}])
case("enum keys", dict[Color, int], lambda: [{Color.RED: 1}], "LGS302")
case("int enum keys", dict[Level, int], lambda: [{Level.LOW: 1}], "LGS302")
case("uuid keys", dict[uuid.UUID, int], lambda: [{UUID1: 1}], "LGS302")
case("date keys", dict[dt.date, int], lambda: [{NOW.date(): 1}], "LGS302")
case("datetime keys", dict[dt.datetime, int], lambda: [{NOW: 1}], "LGS302")
case("time keys", dict[dt.time, int], lambda: [{NOW.time(): 1}], "LGS302")
case("str subclass keys", dict[Text, int], lambda: [{Text("a"): 1}], "LGS302")
case("enum in tuple keys", dict[tuple[Color, int], int], lambda: [{(Color.RED, 1): 1}], "LGS302")
case("decimal keys", dict[decimal.Decimal, int], lambda: [{decimal.Decimal(1): 1}], "LGS104")
case("timedelta keys", dict[dt.timedelta, int], lambda: [{dt.timedelta(1): 1}], "LGS104")
case("frozen keys", dict[Frozen, int], lambda: [{Frozen(): 1}], "LGS104")
case("path keys", dict[pathlib.Path, int], lambda: [{pathlib.Path("a"): 1}], "LGS104")
case("namedtuple keys", dict[Pair, int], lambda: [{Pair(1): 1}], "LGS104")
case("frozenset keys", dict[frozenset[int], int], lambda: [{frozenset({1}): 1}], "LGS104")
case("numpy keys", dict[np.int64, int], lambda: [{np.int64(1): 1}], "LGS104")
case("defaultdict", defaultdict[str, int], lambda: [defaultdict(int, a=1)], "LGS218")
case("ordered dict", OrderedDict[str, int], lambda: [OrderedDict(a=1)], "LGS218")
case("counter", collections.Counter[str], lambda: [collections.Counter("aab")], "LGS218")
case("dict subclass", Attributes, lambda: [Attributes(a=1)], "LGS218")
case("list subclass", Rows, lambda: [Rows([1])], "LGS218")
case("set subclass", Own, lambda: [Own({1})])
case("str subclass", Text, lambda: [Text("a")], "LGS303")
case("int subclass", Number, lambda: [Number(1)], "LGS303")
case("float subclass", Real, lambda: [Real(1)], "LGS109")
case("bytes subclass", list[Raw], lambda: [[Raw(b"a")]], "LGS109")
case("top bytes subclass", Raw, lambda: [Raw(b"a")], "LGS303")
case("sequence", Sequence[Leaf], lambda: [[Leaf()]], "LGS316")
case("sequence of tuples", Sequence[tuple[int, int]], lambda: [[(1, 2)]], "LGS316", "LGS301")
case("mapping", Mapping[str, Leaf], lambda: [{"a": Leaf()}], "LGS316")
case("mapping keys", Mapping[uuid.UUID, Leaf], lambda: [{UUID1: Leaf()}], "LGS316", "LGS302")
case("userdict", collections.UserDict, lambda: [collections.UserDict()], "LGS101")
case("chain map", collections.ChainMap[str, int], lambda: [collections.ChainMap({})], "LGS101")
case("proxy", types.MappingProxyType[str, int], lambda: [types.MappingProxyType({})], "LGS101")
case("array", array.array, lambda: [array.array("i", [1])], "LGS101")
case("namespace", types.SimpleNamespace, lambda: [types.SimpleNamespace()], "LGS101")

# --- what has no encoder
case("lock", list[threading.Lock], lambda: [[threading.Lock()]], "LGS101")
case("event", threading.Event, lambda: [threading.Event()], "LGS101")
case("callable", Callable[[int], int], lambda: [len], "LGS101")
case("bare callable", Callable, lambda: [len], "LGS101")
case("iterator", Iterator[int], lambda: [iter([1])], "LGS101")
case("generator", Generator[int, None, None], lambda: [_made()], "LGS101")
case("module", types.ModuleType, lambda: [enum], "LGS101")
case("class", type[Plain], lambda: [Plain], "LGS101")
case("model class", type[Small], lambda: [Small], "LGS101")
case("dataclass class", type[Leaf], lambda: [Leaf], "LGS220")
case("file", io.StringIO, lambda: [io.StringIO()], "LGS101")
case("plain", Plain, lambda: [Plain()], "LGS109")
case("attrs", Attrs, lambda: [Attrs()], "LGS109")
case("msgspec", Struct, lambda: [Struct()], "LGS109")
case("exception", ValueError, lambda: [ValueError("a")], "LGS219")
case("inside", list[threading.Event], lambda: [[threading.Event()]], "LGS101")
case("in dataclass", list[Box[threading.Event]], lambda: [[Box(threading.Event())]], "LGS102")

# --- enums
case("enum", Color, lambda: [Color.RED])
case("str enum", list[Name], lambda: [[Name.ANN]])
case("flag", Right, lambda: [Right.READ | Right.WRITE])
case("tuple enum", Point, lambda: [Point.ORIGIN], "LGS222")
case("nan enum", Nowhere, lambda: [Nowhere.NAN], "LGS222")
case("nested enum", Outer.Inner, lambda: [Outer.Inner.A], "LGS212")
case("any enum", enum.Enum, lambda: [Color.RED], "LGS316")

# --- code of its own, or of pydantic's
case("iso serializer", list[coded.Iso], lambda: [[coded.Iso(when=NOW)]], "LGS404")
case("identity serializer", coded.Same, lambda: [coded.Same(number=1)])
case("str serializer", coded.AsText, lambda: [coded.AsText(number=1)], "LGS404")
case("mask", coded.Masked, lambda: [coded.Masked(key="secret")], "LGS205")
case("wrap serializer that changes nothing", coded.Wrapped, lambda: [coded.Wrapped(key="x")])
case("slice", coded.Short, lambda: [coded.Short(key="abcdef")], "LGS205")
case("rebound name", coded.Rebound, lambda: [coded.Rebound(key="x")], "LGS404")
case("changed in place", coded.Appended, lambda: [coded.Appended(keys=[])], "LGS404")
case("lambda", coded.ByLambda, lambda: [coded.ByLambda(price=1)], "LGS404")
case("upper", coded.Upper, lambda: [coded.Upper(text="A")], "LGS404")
case("model serializer of all", coded.AllOfIt, lambda: [coded.AllOfIt(a=1)], "LGS404")
case("model serializer of half", coded.HalfOfIt, lambda: [coded.HalfOfIt(a=1, b=2)], "LGS205")
case("model serializer that wraps", coded.WrappedWhole, lambda: [coded.WrappedWhole(a=1)])
case("model serializer to text", coded.AsOneText, lambda: [coded.AsOneText(a=1)], "LGS205")
case("own model_dump", coded.OwnDump, lambda: [coded.OwnDump(a=1)], "LGS404")
case("serializer of any object", list[coded.WithThing],
     lambda: [[coded.WithThing(thing=coded.Thing(1))]], "LGS205")  # fmt: skip
case("serializer that is undone", list[coded.ReadsThing],
     lambda: [[coded.ReadsThing(thing=coded.Thing(1))]], "LGS404")  # fmt: skip
case("pydantic dataclass of a tuple", coded.Typed, lambda: [coded.Typed((1, 2))])
case("nested ones", coded.Nested,
     lambda: [coded.Nested(coded.Typed((1, 2)), [coded.Typed((3, 4))])])  # fmt: skip
case("strict one", coded.Strict, lambda: [coded.Strict((1, 2))], "LGS216")
case("one in a model", coded.WithTyped, lambda: [coded.WithTyped(typed=coded.Typed((1, 2)))])
case("renamed field", coded.Renamed, lambda: [coded.Renamed(A=3)], "LGS201")
case("twice renamed", coded.RenamedTwice, lambda: [coded.RenamedTwice(A=3)], "LGS201")
case("duck that dumps", coded.Dumps, lambda: [coded.Dumps(1, "x")], "LGS404")
case("duck by vars", coded.Dict, lambda: [coded.Dict(1)], "LGS404")
case("forgetful duck", coded.Forgetful, lambda: [coded.Forgetful("ada", "secret")], "LGS210")
case("duck that wants more", coded.WantsMore, lambda: [coded.WantsMore(1, 2)], "LGS210")
case("duck that refuses", coded.Refuses, lambda: [coded.Refuses(1)], "LGS210")
case("duck with a secret", coded.Secret, lambda: [coded.Secret("x")], "LGS404")
case("dataclass with dict()", coded.WithDict, lambda: [coded.WithDict(1)], "LGS404")
case("enum of times", coded.Moment, lambda: [coded.Moment.FOLDED], "LGS222")
case("enum of containers", coded.Shape, lambda: [coded.Shape.WITH_NAN], "LGS222")
case("enum of objects", coded.Object,
     list, "LGS222", "LGS103", "LGS102", "LGS404")  # fmt: skip
case("lenient enum", coded.Lenient, lambda: [coded.Lenient.PAIR], "LGS404")

# --- dataclasses
case("dataclass", Leaf, lambda: [Leaf(2)])
case("slots", Slotted, lambda: [Slotted(x=1, when=NOW.date())])
case("generic", Box[int], lambda: [Box(1)])
case("generic of tuple", Box[tuple[int, int]], lambda: [Box((1, 2))], "LGS301")
case("inherited generic", IntBox, lambda: [IntBox(1)])
case("inherited generic of tuple", PairBox, lambda: [PairBox((1, 2))], "LGS301")
case("open generic", Box, lambda: [Box(1)], "LGS316")
case("recursive", Node, lambda: [Node(1, [Node(2)])])
case("unresolved", Missing, list, "LGS114")
case("init=False", Derived, lambda: [Derived(1)], "LGS214")
case("InitVar", Seeded, lambda: [Seeded(1, 2)], "LGS215")
case("required InitVar", NeedsSeed, lambda: [NeedsSeed(1, 2)], "LGS214")
case("post init", Growing, lambda: [Growing(5)], "LGS215")
case("post init that checks", Checked, lambda: [Checked(5)])
case("post init that is unclear", Unclear, lambda: [Unclear(["b", "a"])], "LGS404")
case("own init", OwnInit, lambda: [OwnInit(1)], "LGS214")
case("undecorated", Undecorated, lambda: [_with(Undecorated(), extra=3)], "LGS203")
case("dataclass of dict", DictClass, lambda: [DictClass(3)], "LGS218")
case("like a Send", LikeSend, lambda: [LikeSend("a", 1, 5)], "LGS210")
case("duck", Duck, lambda: [Duck()], "LGS210")
case("tuple in dataclass", Holder, lambda: [Holder(("a",))], "LGS301")
case("nested class of a known name", Outer.Leaf, lambda: [Outer.Leaf(5)], "LGS211")
case("nested class", Outer.Hidden, lambda: [Outer.Hidden(5)], "LGS212")
case("local class", LOCAL, lambda: [LOCAL(5)], "LGS213")
case("made class", Made, lambda: [Made(5)], "LGS213")
case("shadowed", First, lambda: [First(5)], "LGS211")

# --- named tuples, typed dicts
case("namedtuple", Pair, lambda: [Pair(1, "b")])
case("tuple in namedtuple", Nested, lambda: [Nested((1,))], "LGS301")
case("untyped namedtuple", Loose, lambda: [Loose(1, 2)], "LGS316")
case("typed dict", Movie, lambda: [{"title": "a", "cast": [Leaf()]}])
case("generic typed dict", GenericDict[tuple[int, int]], lambda: [{"it": (1, 2)}], "LGS301")

# --- aliases and type variables
case("alias", Alias, lambda: [[Leaf()]])
case("generic alias", Pairs[int], lambda: [[(1, 2)]], "LGS301")
case("recursive alias", Tree, lambda: [{"a": {"b": 1}}])
case("type variable", N, lambda: [Leaf()])
case("free type variable", T, lambda: [1], "LGS316")

# --- pydantic
case("model", Model,
     lambda: [Model(leaf=Leaf(2), pair=(3, 4), colors={Color.RED: 1}, when=TODAY)])  # fmt: skip
case("models", list[HoldsLeafs], lambda: [[HoldsLeafs(leafs=[Leaf(3)], inner=Big(x=5))]])
case("subclass in a field", HoldsSmall, lambda: [HoldsSmall(it=SmallKid())], "LGS206")
case("subclass in a channel", Small, lambda: [SmallKid(y=3)])
case("discriminated", Zoo, lambda: [Zoo(pets=[Cat(), Dog(bark="a")])])
case("ambiguous union", Mixed, lambda: [Mixed(it=Leaf(5))], "LGS206")
case("model or dict", ModelOrDict, lambda: [ModelOrDict(it=Big())], "LGS206")
case("list or tuple", ListOrTuple, lambda: [ListOrTuple(it=(1, 2))], "LGS301")
case("alias with default", AliasDefault, lambda: [AliasDefault(X=2)], "LGS201")
case("required alias", AliasRequired, lambda: [AliasRequired(X=2)], "LGS202")
case("alias by name", AliasByName, lambda: [AliasByName(X=2)])
case("alias both ways", AliasBoth, lambda: [AliasBoth(X=2)])
case("alias generator", Camel, lambda: [Camel(X=2)], "LGS201")
case("private", Private, lambda: [_with(Private(), _seen=3)], "LGS203")
case("excluded", Excluded, lambda: [Excluded(x=3)], "LGS204")
case("serializer", Rounded, lambda: [Rounded(x=1.6)], "LGS205")
case("serializer for JSON", JsonOnly, lambda: [JsonOnly(x=1.6)])
case("model serializer", Whole, lambda: [Whole()], "LGS205")
case("annotated serializer", AnnotatedCode, lambda: [AnnotatedCode()], "LGS205")
case("validator", Scaling, lambda: [Scaling(cents=5)], "LGS215")
case("validators that check", Checking, lambda: [Checking(cents=5)])
case("validators that strip", Stripping, lambda: [Stripping(name=" a", other=" A ")])
case("model_post_init", PostInit, lambda: [PostInit()], "LGS215")
case("enum values with default", EnumValues, lambda: [EnumValues()], "LGS205")
case("enum values", EnumValuesRequired, lambda: [EnumValuesRequired(color=Color.BLUE)])
case("root model", Root, lambda: [Root([1])], "LGS223")
case("root model in a field", HoldsRoot, lambda: [HoldsRoot(it=Root([1]))])
case("generic model", IntGen, lambda: [IntGen(it=1)])
case("generic at top level", GenAtTop, lambda: [GenAtTop(it="a")])
case("generic inside a function", GenInside, lambda: [GenInside(it=NOW.date())], "LGS223")
case("strict tuple", StrictTuple, lambda: [StrictTuple(it=(1,))], "LGS216")
case("strict", StrictPlain, lambda: [StrictPlain(names=["a"])])
case("set of dataclasses in a model", SetOfFrozen, lambda: [SetOfFrozen(it={Frozen()})], "LGS102")
case("set of tuples in a model", SetOfTuples, lambda: [SetOfTuples(it={(1, 2)})])
case("uuid keys in a model", KeyedByUuid, lambda: [KeyedByUuid(it={UUID1: 1})])
case("uuid or str keys", KeyedByEither, lambda: [KeyedByEither(it={UUID1: 1})], "LGS302")
case("url", Url, lambda: [Url(it="http://a")], "LGS110")
case("lazy", Lazy, lambda: [Lazy(it=[1])], "LGS102", "LGS316")
case("sequence in a model", Either, lambda: [Either(it=[1])], "LGS316")
case("messages in a model", Messages, lambda: [Messages(it=[AIMessage("a")])], "LGS206")
case("tagged messages", TaggedMessages,
     lambda: [TaggedMessages(it=[AIMessage("a"), ToolMessage("b", tool_call_id="c")])])  # fmt: skip
case("arbitrary", Arbitrary, lambda: [Arbitrary(it=Plain())], "LGS109")
case("untyped", Untyped, lambda: [Untyped(it=1)], "LGS316")
case("extra", Extra, lambda: [Extra(a=1)], "LGS316")
case("computed", Computed, lambda: [Computed()], "LGS205", "LGS316")
case("computed alone", ComputedAlone, lambda: [ComputedAlone()], "LGS404")
case("swapped aliases", Swapped, lambda: [Swapped(x=5, y=6)], "LGS201")
case("any address", Addresses, lambda: [Addresses()])
case("a descriptor", Described, lambda: [Described(1)], "LGS404")
case("collections in a model", Collections,
     lambda: [Collections(a={"a": [1]}, b={"b": 1}, c={"a": 2}, d={1}, e=Pair(1))])  # fmt: skip
case("parsed", Parsed, lambda: [Parsed(it='[[1, "a"]]')], "LGS216")
case("existing", Existing, list, "LGS216")
case("recursive model", Self_, lambda: [Self_(kids=[Self_()])])
case("instances only", InstanceOf, lambda: [InstanceOf(it=Small())], "LGS206", "LGS216")
case("nested enum in a model", LocalEnumHolder, lambda: [LocalEnumHolder(it=Outer.Inner.A)])
case("nested enum or text", LocalEnumOrText, lambda: [LocalEnumOrText(it=Outer.Inner.A)], "LGS212")
case("pydantic dataclass", Validated, lambda: [Validated((1, 2), Big())])
case("pydantic dataclass with alias", ValidatedAlias, lambda: [ValidatedAlias(X=2)], "LGS201")
case(
    "derived in a model", HoldsDerived, lambda: [HoldsDerived(it=_with(Derived(1), y=9))], "LGS214"
)
case("secret", list[SecretStr], list, "LGS310")
case("secrets", Secrets, list, "LGS310")

case("dataclass subclass in a model", HoldsStem, lambda: [HoldsStem(it=StemKid())], "LGS206")
case("dataclass in a model", HoldsLonely,
     lambda: [HoldsLonely(it=Lonely(3), many={"a": [Lonely(4)]})])  # fmt: skip
case("alias inside", HoldsAliasInside,
     lambda: [HoldsAliasInside.model_validate({"it": {"X": 3}})], "LGS216")  # fmt: skip
case("duck in a model", HoldsDuck, lambda: [HoldsDuck(it=PlainDuck())], "LGS210")
case("property", list[Propertied], lambda: [[Propertied(1)]], "LGS404")
case("own setattr", list[Watching], lambda: [[Watching(1)]], "LGS404")
case("own new", list[Doubling], lambda: [[Doubling(1)]], "LGS404")
case("own value", list[Loud], lambda: [[Loud.A]], "LGS404")
case("dataclass of set", list[Set], lambda: [[Set()]], "LGS404")
case("identity", list[Identity], lambda: [[Identity()]], "LGS404")
case("tagged dicts", Tagged, lambda: [Tagged(it={"kind": "o"})])
case("nested tuple keys", dict[tuple[tuple[int, int], str], int], lambda: [{((1, 2), "a"): 1}])
case("timedelta64", pd.Timedelta, lambda: [pd.Timedelta(1, "D")], "LGS306")

case("bytes enum", Raws, lambda: [Raws.A], "LGS303")
case("date enum", Birthday, lambda: [Birthday.ANN], "LGS222")
case("skipped validation", Unvalidated, lambda: [Unvalidated(it=(1,))], "LGS301")
case("keys of two dates", DateKeys, lambda: [DateKeys(it={dt.datetime(2026, 1, 1): 1})], "LGS302")
case("keys of digits", DigitKeys, lambda: [DigitKeys(it={Digits.ONE: 1})], "LGS302")
case("literal enum keys", LiteralKeys, lambda: [LiteralKeys(it={Color.RED: 1})], "LGS302")
case("narrow first", NarrowFirst, lambda: [NarrowFirst(it=Narrow(a=1)), NarrowFirst(it=Wide(a=1))])
case("wide first", WideFirst, lambda: [WideFirst(it=Narrow(a=1))], "LGS206")
case("told apart by type", ByType, lambda: [ByType(it=Words(a="1")), ByType(it=Narrow(a=1))])
case("tuple or list inside", TupleOrList, lambda: [TupleOrList(it=TupleInside(a=(1,)))], "LGS206")
case("subclass that changes", list[Parent], lambda: [[Parent()]], "LGS316")

# --- messages, documents, arrays
case("message", AIMessage, lambda: [AIMessage("a", tool_calls=[])])
case("base message", list[BaseMessage], lambda: [[HumanMessage("a"), AIMessage("b")]])
case("any message", AnyMessage, lambda: [HumanMessage("a")])
case("document", Document, lambda: [Document("a", metadata={"b": 1})])
case("ndarray", npt.NDArray[np.float64], lambda: [np.array([1.0])], "LGS308")
case("object array", npt.NDArray[np.object_], lambda: [np.array([{}])], "LGS208", "LGS308")
case("structured array", npt.NDArray[np.void], lambda: [np.zeros(1, "i4,i4")], "LGS209", "LGS308")
case("dates array", npt.NDArray[np.datetime64],
     lambda: [np.array(["2026"], "datetime64[D]")], "LGS106", "LGS308")  # fmt: skip
case("masked", np.ma.MaskedArray, lambda: [np.ma.array([1], mask=[True])], "LGS209")
case("scalar", np.float64, lambda: [np.float64(1)], "LGS106")
case("frame", pd.DataFrame, lambda: [pd.DataFrame({"a": [1]})], "LGS107")
case("series", pd.Series, lambda: [pd.Series([1])], "LGS107")


def _with(obj, **attributes):
    for name, value in attributes.items():
        setattr(obj, name, value)
    return obj
