"""Random schemas as source code, with values of them: what another process can import."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from hypothesis import strategies as st

HEAD = """
import datetime, decimal, enum, ipaddress, pathlib, re, uuid
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, NamedTuple, Optional, TypeVar, Union
from typing_extensions import NotRequired, TypedDict
import pydantic
from pydantic import BaseModel, ConfigDict, Field
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage
from tests.state.kinds import Big, Case, Color, Frozen, Leaf, Level, Name, Node, Pair
from tests.state.kinds import Small, SmallKid

T = TypeVar("T")
UUID1 = uuid.UUID(int=1)
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
"""


@dataclass(frozen=True)
class Piece:
    """A type.

    Attributes:
        annotation: its source.
        values: sources of two of its values.
        definitions: sources of the classes in it, those it needs first.
        hashable: its values may be in a set.
    """

    annotation: str
    values: tuple[str, ...]
    definitions: tuple[str, ...] = ()
    hashable: bool = False


PLAIN = [
    Piece("int", ("1", "-5"), hashable=True),
    Piece("float", ("1.5", "1.0"), hashable=True),
    Piece("str", ("'a'", "'1'"), hashable=True),
    Piece("bool", ("True", "False"), hashable=True),
    Piece("None", ("None",), hashable=True),
    Piece("bytes", ("b'a'", "b''"), hashable=True),
    Piece("uuid.UUID", ("UUID1",), hashable=True),
    Piece("decimal.Decimal", ("decimal.Decimal('1.10')",), hashable=True),
    Piece("datetime.date", ("NOW.date()",), hashable=True),
    Piece("datetime.time", ("NOW.time()",), hashable=True),
    Piece("datetime.timedelta", ("datetime.timedelta(1)",), hashable=True),
    Piece("pathlib.Path", ("pathlib.Path('a')",), hashable=True),
    Piece("ipaddress.IPv4Address", ("ipaddress.IPv4Address(1)",), hashable=True),
    Piece("re.Pattern[str]", ("re.compile('a')",), hashable=True),
    Piece("Color", ("Color.RED", "Color.BLUE"), hashable=True),
    Piece("Level", ("Level.LOW",), hashable=True),
    Piece("Name", ("Name.ANN",), hashable=True),
    Piece("Literal['a', 1, Color.RED]", ("'a'", "1", "Color.RED"), hashable=True),
    Piece("Frozen", ("Frozen(3)",), hashable=True),
    Piece("Pair", ("Pair(1, 'b')",), hashable=True),
    Piece("Leaf", ("Leaf(3)",)),
    Piece("Node", ("Node(1, [Node(2)])",)),
    Piece("Big", ("Big(x=3)",)),
    Piece("Small", ("Small(x=3)", "SmallKid(y=7)")),
    Piece("deque[int]", ("deque([1], maxlen=2)",)),
    Piece("defaultdict[str, int]", ("defaultdict(int, a=1)",)),
    Piece("OrderedDict[str, int]", ("OrderedDict(a=1)",)),
    Piece("datetime.datetime", ("NOW",), hashable=True),
    Piece("complex", ("1j",), hashable=True),
    Piece("AnyMessage", ("AIMessage('a')", "HumanMessage('b')")),
    Piece("BaseMessage", ("AIMessage('a')",)),
]
KEYS = ["str", "int", "float", "bool", "uuid.UUID", "Color", "datetime.date", "tuple[int, str]",
        "Literal['a']", "str | int", "uuid.UUID | str", "Level", "bytes"]  # fmt: skip
KEY_VALUES = {
    "str": "'a'", "int": "1", "float": "1.5", "bool": "True", "uuid.UUID": "UUID1",
    "Color": "Color.RED", "datetime.date": "NOW.date()", "tuple[int, str]": "(1, 'a')",
    "Literal['a']": "'a'", "str | int": "1", "uuid.UUID | str": "UUID1", "Level": "Level.LOW",
    "bytes": "b'a'",
}  # fmt: skip


def one(annotation: str, values: Iterable[str], *parts: Piece, hashable: bool = False) -> Piece:
    """A piece of pieces."""
    definitions = tuple(dict.fromkeys(d for part in parts for d in part.definitions))
    return Piece(annotation, tuple(values), definitions, hashable)


def containers(inner: "st.SearchStrategy[Piece]") -> "st.SearchStrategy[Piece]":
    """Types with types in them."""
    return st.one_of(
        inner.map(lambda p: one(f"list[{p.annotation}]", (f"[{v}]" for v in p.values), p)),
        st.builds(_dict, st.sampled_from(KEYS), inner),
        inner.map(lambda p: one(f"Sequence[{p.annotation}]", (f"[{v}]" for v in p.values), p)),
        inner.map(
            lambda p: one(f"Mapping[str, {p.annotation}]", (f"{{'a': {v}}}" for v in p.values), p)
        ),
        st.builds(_tuple, inner, inner),
        inner.filter(lambda p: p.hashable).map(_set),
        inner.map(
            lambda p: one(f"Optional[{p.annotation}]", (*p.values, "None"), p, hashable=p.hashable)
        ),
        st.builds(_union, inner, inner),
        inner.map(
            lambda p: one(f"Annotated[{p.annotation}, 'x']", p.values, p, hashable=p.hashable)
        ),
        st.builds(_fields, st.sampled_from(sorted(KINDS)), inner, inner),
        st.builds(
            _fields, st.sampled_from(["model", "model", "strict", "validated"]), inner, inner
        ),
    )


def _dict(key: str, p: Piece) -> Piece:
    values = (f"{{{KEY_VALUES[key]}: {value}}}" for value in p.values)
    return one(f"dict[{key}, {p.annotation}]", values, p)


def _tuple(p: Piece, q: Piece) -> Piece:
    values = [f"({v}, {w})" for v, w in zip(p.values, q.values, strict=False)]
    return one(
        f"tuple[{p.annotation}, {q.annotation}]", values, p, q, hashable=p.hashable and q.hashable
    )


def _set(p: Piece) -> Piece:
    return one(
        f"frozenset[{p.annotation}]", (f"frozenset({{{v}}})" for v in p.values), p, hashable=True
    )


def _union(p: Piece, q: Piece) -> Piece:
    text = f"Union[{p.annotation}, {q.annotation}]"
    return one(text, (*p.values, *q.values), p, q, hashable=p.hashable and q.hashable)


KINDS = {
    "dataclass": "@dataclass\nclass {name}:\n    a: {a}\n    b: {b}\n",
    "slots": "@dataclass(slots=True, kw_only=True)\nclass {name}:\n    a: {a}\n    b: {b}\n",
    "namedtuple": "class {name}(NamedTuple):\n    a: {a}\n    b: {b}\n",
    "typeddict": "class {name}(TypedDict):\n    a: {a}\n    b: NotRequired[{b}]\n",
    "model": "class {name}(BaseModel):\n    a: {a}\n    b: {b}\n",
    "strict": (
        "class {name}(BaseModel):\n    model_config = ConfigDict(strict=True)\n"
        "    a: {a}\n    b: {b}\n"
    ),
    "validated": "@pydantic.dataclasses.dataclass\nclass {name}:\n    a: {a}\n    b: {b}\n",
    "generic": "@dataclass\nclass {name}(Generic[T]):\n    a: {a}\n    b: T\n",
    "quoted": "@dataclass\nclass {name}:\n    a: '''{a}'''\n    b: '''list[{b}]'''\n",
}


def _fields(kind: str, p: Piece, q: Piece) -> Piece:
    body = KINDS[kind].format(name="NAME", a=p.annotation, b=q.annotation)
    name = f"C{hashlib.sha1(body.encode()).hexdigest()[:10]}"
    made = one("", (), p, q)
    pairs = zip(p.values, q.values, strict=False)
    wrapped = (lambda w: f"[{w}]") if kind == "quoted" else (lambda w: w)
    call = "dict" if kind == "typeddict" else name
    values = tuple(f"{call}(a={v}, b={wrapped(w)})" for v, w in pairs)
    annotation = f"{name}[{q.annotation}]" if kind == "generic" else name
    return Piece(annotation, values, (*made.definitions, body.replace("NAME", name)))


schemas = st.recursive(st.sampled_from(PLAIN), containers, max_leaves=6)


def module_of(pieces: Iterable[Piece]) -> str:
    """Their source, with a case for each."""
    pieces = list(pieces)
    definitions = dict.fromkeys(d for piece in pieces for d in piece.definitions)
    cases = [
        f"    {str(i)!r}: Case({p.annotation}, lambda: [{', '.join(p.values)}]),"
        for i, p in enumerate(pieces)
    ]
    return "\n\n".join([HEAD, *definitions, "CASES = {", "\n".join(cases), "}"])
