# ruff: noqa: UP042, D106
"""Classes that people put into a state: those that come back, and those that do not."""

import dataclasses
import threading
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum, Flag, IntEnum, IntFlag, StrEnum
from functools import cached_property
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, Optional, TypeVar
from uuid import UUID, uuid4

import attrs
import msgspec
from langchain_core.documents import Document
from langchain_core.messages import AnyMessage, BaseMessage
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    RootModel,
    SecretStr,
    SerializeAsAny,
    computed_field,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypedDict

T = TypeVar("T")


class Color(Enum):
    RED = "red"
    ONE = 1


class Level(IntEnum):
    LOW = 1


class Mode(StrEnum):
    FAST = "fast"


class OldMode(str, Enum):
    SLOW = "slow"


class Access(Flag):
    READ = 1
    WRITE = 2


class Bits(IntFlag):
    A = 1
    B = 2


class Pair(Enum):
    ORIGIN = (0, 0)


class Several(Enum):
    SET = frozenset({1, "a"})


class WithData(Enum):
    EARTH = (5.9, 6.3)

    def __init__(self, mass: float, radius: float) -> None:
        self.mass, self.radius = mass, radius


class DateEnum(Enum):
    START = date(2020, 1, 1)


class Point(NamedTuple):
    x: int
    y: Any = 0


OldPoint = namedtuple("OldPoint", "x y")  # noqa: PYI024


class PointPlus(Point):
    """A namedtuple with a `__dict__`."""


@dataclasses.dataclass
class Person:
    name: str
    tags: Any = None


@dataclasses.dataclass
class Shared:
    a: int = 1
    limit: ClassVar[int] = 2


@dataclasses.dataclass(frozen=True)
class Frozen:
    a: int
    b: Any = 1


@dataclasses.dataclass(slots=True)
class Slotted:
    a: Any
    b: Any = 1


@dataclasses.dataclass(kw_only=True)
class KwOnly:
    a: Any
    b: Any = 1


@dataclasses.dataclass
class NoInit:
    a: int = 1
    b: int = dataclasses.field(default=2, init=False)


@dataclasses.dataclass
class WithInitVar:
    a: int
    seed: dataclasses.InitVar[int]

    def __post_init__(self, seed: int) -> None:
        self.a += seed


@dataclasses.dataclass
class Growing:
    a: int

    def __post_init__(self) -> None:
        self.a *= 100


@dataclasses.dataclass(init=False)
class OwnInit:
    a: int

    def __init__(self, value: int) -> None:
        self.a = value


@dataclasses.dataclass
class NodeAndArg:
    node: str
    arg: Any
    more: int = 0


@dataclasses.dataclass
class JustNodeAndArg:
    node: str
    arg: Any


@dataclasses.dataclass
class FieldNamedDict:
    dict: Any
    _asdict: Any = 1


@dataclasses.dataclass
class WithMethodDict:
    a: int
    b: int

    def dict(self) -> dict[str, int]:
        return {"a": self.a}


@dataclasses.dataclass
class Box(Generic[T]):
    item: T


@dataclasses.dataclass(eq=False)
class NoEq:
    a: int


@dataclasses.dataclass
class PropertyField:
    a: int = 1

    @property
    def twice(self) -> int:
        return self.a * 2


@pydantic_dataclass
class PydanticData:
    a: int
    b: str = "x"


class Plain:
    def __init__(self) -> None:
        self.a = 1


@attrs.define
class Attrs:
    a: int


class Struct(msgspec.Struct):
    a: int


class DictMethod:
    def __init__(self, a: int = 1, b: int = 2) -> None:
        self.a, self.b = a, b

    def dict(self) -> dict[str, int]:
        return {"a": self.a}


class Row(tuple):
    def _asdict(self) -> dict[str, int]:
        return {"x": 1}


class Text(str):
    pass


class Number(int):
    pass


class Real(float):
    pass


class Blob(bytes):
    pass


class Items(list):
    pass


class Attributes(dict):
    pass


class Tuple(tuple):
    pass


class Tags(set):
    pass


class Day(date):
    pass


class Moment(datetime):
    pass


class Span(timedelta):
    pass


class Money(Decimal):
    pass


class Key(UUID):
    pass


class Hostile:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


class Raising:
    @property
    def dict(self) -> Any:
        raise RuntimeError

    @property
    def __class__(self) -> Any:
        raise RuntimeError


class Outer:
    class Nested(BaseModel):
        x: int = 1

    class Color(Enum):
        BLUE = "blue"

    @dataclasses.dataclass
    class Inner:
        a: int = 1


class Flat(BaseModel):
    a: int = 1
    b: str = "x"
    c: float | None = None


class Inner(BaseModel):
    x: int = 1


class Rich(BaseModel):
    inner: Inner = Inner()
    items: list[Inner] = []
    by_key: dict[str, Inner] = {}
    pair: tuple[int, str] = (1, "a")
    many: tuple[int, ...] = ()
    tags: set[str] = set()
    pairs: set[tuple[int, int]] = set()
    color: Color = Color.RED
    maybe: Optional[Inner] = None  # noqa: UP045
    when: datetime | None = None
    what: Literal["a", "b"] = "a"
    by_color: dict[Color, int] = {}
    number: int | str = 1
    amount: Decimal = Decimal("1.5")
    id: UUID | None = None
    blob: bytes = b""


class Untyped(BaseModel):
    a: Any = None
    d: dict = {}
    items: list = []


class Aliased(BaseModel):
    value: int = Field(default=1, alias="X")


class RequiredAlias(BaseModel):
    value: int = Field(alias="X")
    inner: Inner = Inner()


class ChoiceAlias(BaseModel):
    value: int = Field(default=1, validation_alias=AliasChoices("x", "y"))


class ByName(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    value: int = Field(default=1, alias="X")


class Private(BaseModel):
    a: int = 1
    _secret: int = PrivateAttr(default=0)
    _cache: dict[str, int] = PrivateAttr(default_factory=dict)


class Excluding(BaseModel):
    a: int = 1
    hidden: int = Field(default=0, exclude=True)


class Secretive(BaseModel):
    key: SecretStr = SecretStr("x")


class Animal(BaseModel):
    name: str = "x"


class Dog(Animal):
    breed: str = "d"


class Zoo(BaseModel):
    animal: Animal
    animals: list[Animal] = []


class AnyZoo(BaseModel):
    animal: SerializeAsAny[Animal]


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    name: str = ""


class Fish(BaseModel):
    kind: Literal["fish"] = "fish"
    name: str = ""


class Pet(BaseModel):
    pet: Annotated[Cat | Fish, Field(discriminator="kind")]


class UnionA(BaseModel):
    x: int = 1


class UnionB(BaseModel):
    x: int = 1
    y: int = 2


class Either(BaseModel):
    one: UnionA | UnionB


class Chat(BaseModel):
    messages: list[AnyMessage] = []


class BaseChat(BaseModel):
    messages: list[BaseMessage] = []


class Docs(BaseModel):
    docs: list[Document] = []


class Validated(BaseModel):
    a: int

    @field_validator("a")
    @classmethod
    def check(cls, value: int) -> int:
        return value


class Doubling(BaseModel):
    a: int

    @field_validator("a")
    @classmethod
    def twice(cls, value: int) -> int:
        return value * 2


class AnnotatedDoubling(BaseModel):
    a: Annotated[int, AfterValidator(lambda v: v * 2)]


class ModelValidated(BaseModel):
    a: int = 1
    b: int = 0

    @model_validator(mode="after")
    def sum_up(self) -> "ModelValidated":
        self.b += self.a
        return self


class PostInit(BaseModel):
    a: int = 1

    def model_post_init(self, context: Any, /) -> None:
        self.a += 1


class Serialized(BaseModel):
    a: float = 1.0

    @field_serializer("a")
    def shorten(self, value: float) -> float:
        return round(value)


class JsonSerialized(BaseModel):
    a: Annotated[float, PlainSerializer(round, when_used="json")] = 1.5


class SerializesItself(BaseModel):
    a: int = 1
    b: int = 2

    @model_serializer
    def dump(self) -> dict[str, Any]:
        return {"a": self.a}


class EnumValues(BaseModel):
    model_config = ConfigDict(use_enum_values=True)
    color: Color = Color.RED


class Extra(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int = 1


class Computed(BaseModel):
    a: int = 1

    @computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> int:
        return self.a * 2


class ExtraComputed(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int = 1

    @computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> int:
        return self.a * 2


class ComputedRaises(BaseModel):
    a: int = 1

    @computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> int:
        raise ValueError


class ComputedLock(BaseModel):
    a: int = 1

    @computed_field  # type: ignore[prop-decorator]
    @property
    def lock(self) -> Any:
        return threading.Lock()


class StoredByAlias(BaseModel):
    model_config = ConfigDict(serialize_by_alias=True)
    a: int = Field(1, serialization_alias="b")


class StoredByAnother(BaseModel):
    model_config = ConfigDict(serialize_by_alias=True, populate_by_name=True)
    a: int = Field(1, validation_alias="b", serialization_alias="c")


class StoredByItsAlias(BaseModel):
    model_config = ConfigDict(serialize_by_alias=True)
    a: int = Field(1, alias="b")


class Swapped(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    a: int = Field(1, alias="b")
    b: int = Field(2, alias="a")


class LeftOut(BaseModel):
    a: int = Field(1, exclude_if=lambda a: a == 5)


class MadePrivate(BaseModel):
    a: int = 1
    _token: UUID = PrivateAttr(default_factory=lambda: uuid4())  # noqa: PLW0108


class BytesMember(bytes, Enum):
    X = b"x"


class ListMember(Enum):
    BOTH = [1, "a"]  # noqa: RUF012


@dataclasses.dataclass
class Parametrized(Generic[T]):
    a: T

    @cached_property
    def slow(self) -> int:
        return 5


@dataclasses.dataclass
class Routed:
    node: str
    arg: int
    more: int = 0


@dataclasses.dataclass
class NothingByDefault:
    a: int | None = None


class Cached(BaseModel):
    a: int = 1

    @cached_property
    def slow(self) -> int:
        return self.a * 2


class Bounded(BaseModel):
    a: int = Field(default=1, ge=0)
    name: Annotated[str, Field(max_length=3)] = "x"
    inner: Inner = Inner()


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    pair: tuple[int, int] = (1, 2)
    color: Color = Color.RED


class Stripped(BaseModel):
    model_config = ConfigDict(str_strip_whitespace=True, str_to_lower=True)
    a: str = "x"


class Numbers(RootModel[list[int]]):
    pass


class Typed(TypedDict, total=False):
    a: int


class HoldsTyped(BaseModel):
    typed: Typed = {}


class Generically(BaseModel, Generic[T]):
    item: T


GenericInt = Generically[int]


class Tree(BaseModel):
    children: list["Tree"] = []
    name: str = ""


class Holder(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    thing: Any = None
    call: Callable[[], int] | None = None
    person: Person | None = None
    point: Point | None = None
    plain: Plain | None = None
    default: defaultdict[str, int] | None = None
    ordered: OrderedDict[str, int] | None = None
    user: UserDict | None = None


def local_model() -> Any:
    class Local(BaseModel):
        a: int = 1

    return Local()


def local_dataclass() -> Any:
    @dataclasses.dataclass
    class Local:
        a: int = 1

    return Local()
