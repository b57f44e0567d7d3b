# ruff: noqa: RUF012, PLW0108
"""Classes whose own code, or whose library's, decides what comes back; some decide well."""

import dataclasses
import ipaddress
import pathlib
import re
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime, time
from decimal import Decimal
from enum import Enum, Flag, member
from fractions import Fraction
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    RootModel,
    field_serializer,
    field_validator,
    model_serializer,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass

# Serializers of fields and models


class Iso(BaseModel):
    when: datetime

    @field_serializer("when")
    def iso(self, value: datetime) -> str:
        return value.isoformat()


class Same(BaseModel):
    number: int

    @field_serializer("number")
    def same(self, value: int) -> int:
        return value


class AsText(BaseModel):
    number: int

    @field_serializer("number")
    def text(self, value: int) -> str:
        return str(value)


class Masked(BaseModel):
    key: str

    @field_serializer("key")
    def mask(self, _: str) -> str:
        return "***"


class Wrapped(BaseModel):
    key: str

    @field_serializer("key", mode="wrap")
    def unchanged(self, value: str, handler: Callable[[str], str]) -> str:
        return handler(value)


class Short(BaseModel):
    key: str

    @field_serializer("key")
    def shorten(self, value: str) -> str:
        return value[:4]


class Rebound(BaseModel):
    key: str

    @field_serializer("key")
    def other(self, value: str) -> str:
        with nullcontext("other") as value:  # noqa: PLR1704
            return value


class Appended(BaseModel):
    keys: list[str]

    @field_serializer("keys")
    def more(self, value: list[str]) -> list[str]:
        value.append("more")
        return value


class ByLambda(BaseModel):
    price: Annotated[Decimal, PlainSerializer(lambda value: str(value))]


class Upper(BaseModel):
    text: str

    @field_serializer("text")
    def upper(self, value: str) -> str:
        return value.upper()


class AllOfIt(BaseModel):
    a: int

    @model_serializer
    def everything(self) -> dict[str, int]:
        return {"a": self.a}


class HalfOfIt(BaseModel):
    a: int
    b: int = 0

    @model_serializer
    def half(self) -> dict[str, int]:
        return {"a": self.a}


class WrappedWhole(BaseModel):
    a: int

    @model_serializer(mode="wrap")
    def unchanged(self, handler: Callable[[Any], Any]) -> Any:
        return handler(self)


class AsOneText(BaseModel):
    a: int

    @model_serializer
    def text(self) -> str:
        return "one"


class OwnDump(BaseModel):
    a: int

    def model_dump(self, **options: Any) -> dict[str, Any]:
        return super().model_dump(**options)


class Thing:
    def __init__(self, a: int) -> None:
        self.a = a

    def __eq__(self, other: object) -> bool:
        return type(other) is Thing and other.a == self.a

    __hash__ = None  # type: ignore[assignment]


class WithThing(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    thing: Thing

    @field_serializer("thing")
    def number(self, value: Thing) -> int:
        return value.a


class ReadsThing(WithThing):
    @field_validator("thing", mode="before")
    @classmethod
    def read(cls, value: Any) -> Any:
        return value if isinstance(value, Thing) else Thing(value)


class CodedAndExcluded(BaseModel):
    a: int = 1
    b: int = Field(2, exclude=True)

    @field_validator("a")
    @classmethod
    def same(cls, value: int) -> int:
        return value


class CodedAndAliased(BaseModel):
    a: int = Field(1, alias="A")

    @field_validator("a")
    @classmethod
    def same(cls, value: int) -> int:
        return value


# Dataclasses that pydantic validates, and models of a root


@dataclasses.dataclass(frozen=True)
class Frozen:
    a: int


@pydantic_dataclass
class Typed:
    pair: tuple[int, int]


@pydantic_dataclass
class Nested:
    first: Typed
    rest: list[Typed]


@pydantic_dataclass
class Untyped:
    anything: Any


@pydantic_dataclass(config=ConfigDict(strict=True))
class Strict:
    pair: tuple[int, int]


@pydantic_dataclass
class Checked:
    pair: tuple[int, int]

    def __post_init__(self) -> None:
        if not self.pair:
            raise ValueError("no pair")


@pydantic_dataclass
class Renamed:
    a: int = Field(1, alias="A")


@pydantic_dataclass(config=ConfigDict(serialize_by_alias=True))
class RenamedTwice:
    a: int = Field(1, alias="A")


@pydantic_dataclass(config=ConfigDict(serialize_by_alias=True))
class RenamedWithCode:
    a: int = Field(1, alias="A")

    def __post_init__(self) -> None:
        if not self.a:
            raise ValueError("no a")


@pydantic_dataclass
class Derived:
    a: int
    b: int = Field(init=False, default=3)


@pydantic_dataclass
class Emptied:
    members: set[int]
    when: Iso | None = None


class WithTyped(BaseModel):
    typed: Typed


@pydantic_dataclass
class Decorated:
    pair: tuple[int, int]


class Undecorated(Decorated):
    pass


@dataclasses.dataclass
class DecoratedByPython(Decorated):
    more: int = 0


class RootOfDict(RootModel[dict[str, int]]):
    pass


class RootOfModel(RootModel[AllOfIt]):
    pass


class RootOfDataclass(RootModel[Frozen]):
    pass


class RootOfTyped(RootModel[Typed]):
    pass


class RootOfNumbers(RootModel[dict[int, str]]):
    pass


class RootOfList(RootModel[list[int]]):
    pass


# What LangGraph takes for a model, because of the name of a method


class Dumps:
    def __init__(self, a: int, b: str = "") -> None:
        self.a, self.b = a, b

    def model_dump(self) -> dict[str, Any]:
        return {"a": self.a, "b": self.b}

    def __eq__(self, other: object) -> bool:
        return type(other) is Dumps and other.__dict__ == self.__dict__

    __hash__ = None  # type: ignore[assignment]


class Dict:
    def __init__(self, a: int) -> None:
        self.a = a

    def dict(self) -> Any:
        return vars(self).copy()


class Forgetful:
    def __init__(self, name: str = "", token: str = "") -> None:
        self.name, self.token = name, token

    def dict(self) -> Any:
        return {"name": self.name}


class WantsMore:
    def __init__(self, a: int, b: int) -> None:
        self.a = a * b

    def _asdict(self) -> dict[str, int]:
        return {"a": self.a}


class Refuses:
    def __init__(self, a: int) -> None:
        self.a = a

    def model_dump(self) -> dict[str, int]:
        return {"a": self.a, "kind": 1}


class Secret:
    def __init__(self, a: str) -> None:
        self.a = a

    def get_secret_value(self) -> str:
        return self.a


@dataclasses.dataclass
class WithDict:
    a: int

    def dict(self) -> Any:
        return {"a": self.a}


# Members of an Enum, which are found again by their value


class Moment(Enum):
    NAIVE = datetime(2020, 1, 1)
    UTC = datetime(2020, 1, 1, tzinfo=UTC)
    ZONED = datetime(2020, 7, 1, tzinfo=ZoneInfo("Europe/Paris"))
    FOLDED = datetime(2020, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Paris"), fold=1)
    HOUR = time(1, 2)
    TWICE = datetime(2020, 10, 25, 2, 30, fold=1)


class Shape(Enum):
    DICT = {"a": 1}
    SET = {1}
    LISTS = [[1], [2]]
    WITH_TUPLE = [(1, 2)]
    WITH_NAN = [float("nan")]
    NOT_A_NUMBER = Decimal("NaN")
    ORDERED = OrderedDict(a=1)
    BOUNDED = deque([1], maxlen=2)


class Text(str):
    pass


class Odd(str):
    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        return type(other) is Odd


class Colour(Enum):
    RED = "red"


class Object(Enum):
    PATH = pathlib.Path("/x")
    ADDRESS = ipaddress.ip_address("127.0.0.1")
    PATTERN = re.compile("x")
    OTHER = Colour.RED
    FROZEN = Frozen(1)
    TYPED = Typed((1, 2))
    BYTES = bytearray(b"x")
    TEXT = Text("x")
    ODD = Odd("y")
    HUGE = 1 << 70
    FRACTION = Fraction(1, 3)
    CALL = member(len)


class Valued(Enum):
    HALF = Fraction(1, 2)

    @property
    def value(self) -> str:
        return "half"


class Lenient(Enum):
    PAIR = (1, 2)

    @classmethod
    def _missing_(cls, value: object) -> Any:
        return cls(tuple(value)) if isinstance(value, list) else None


class Bits(Flag):
    ONE = 1
    TWO = 2
