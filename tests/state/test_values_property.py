"""For any value: nothing found means it comes back equal, and what is said to raise raises.

`pytest --hypothesis-profile=full` goes on for longer.
"""

import ipaddress
import pathlib
import uuid
from collections import OrderedDict, deque
from collections.abc import Iterator
from datetime import timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import Send

from lghard.state import check_value
from tests.state.fingerprint import fingerprint
from tests.state.reader import Reader
from tests.state.test_values import verdict_of
from tests.state.zoo import (
    Animal,
    Box,
    Cat,
    Chat,
    Color,
    Dog,
    Either,
    Extra,
    Flat,
    Frozen,
    Holder,
    Inner,
    Level,
    Mode,
    Person,
    Pet,
    Plain,
    Point,
    Rich,
    Slotted,
    Text,
    Tree,
    UnionA,
    UnionB,
    Untyped,
    Zoo,
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")

text = st.text(max_size=8) | st.text("aé\ud800\0", max_size=3)
zones = st.sampled_from([timezone.utc, ZoneInfo("Europe/Berlin"), None])  # noqa: UP017
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats()
    | text
    | st.binary(max_size=4)
    | st.builds(bytearray, st.binary(max_size=4))
    | st.datetimes(timezones=zones)
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.uuids()
    | st.decimals()
    | st.sampled_from([Color.RED, Color.ONE, Level.LOW, Mode.FAST, Text("x"), 1j, Plain(), Flat])
    | st.ip_addresses()
    | st.builds(ipaddress.ip_network, st.ip_addresses())
    | st.builds(pathlib.Path, st.sampled_from(["a", "a/b", "/", ""]))
)
hashable = (
    st.integers(0, 9)
    | text
    | st.sampled_from([Color.RED, Level.LOW, None, 1.5, True, b"x"])
    | st.uuids()
    | st.tuples(st.integers(0, 3), st.integers(0, 3))
)
keys = st.text("ab", max_size=2) | hashable | st.decimals(allow_nan=False) | st.dates()
texts = st.text("abé", max_size=5)


def extended(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Containers, dataclasses, models and messages of these."""
    lists = st.lists(inner, max_size=3)
    plain = st.dictionaries(st.text("ab", max_size=2), inner, max_size=3)
    return (
        lists
        | st.lists(inner, min_size=2, max_size=2).map(tuple)
        | plain
        | st.dictionaries(keys, inner, max_size=2)
        | plain.map(OrderedDict)
        | st.builds(deque, lists, st.none() | st.just(5))
        | st.builds(Person, texts, inner)
        | st.builds(Slotted, inner)
        | st.builds(Box, inner)
        | st.builds(Point, st.integers(0, 3), inner)
        | st.builds(lambda v: Untyped(a=v), inner)
        | st.builds(lambda v: Untyped(d=v), plain)
        | st.builds(lambda v: Extra(z=v), inner)
        | st.builds(lambda v: Holder(thing=v), inner)
        | st.builds(lambda v: AIMessage("é", additional_kwargs=v), plain)
        | st.builds(lambda v: AIMessage("x", response_metadata=v), plain)
        | st.builds(lambda v: ToolMessage("x", tool_call_id="1", artifact=v), inner)
        | st.builds(lambda v: HumanMessage([{"type": "t", "v": v}, "x"]), inner)
        | st.builds(
            lambda v: AIMessage("", tool_calls=[{"name": "a", "args": v, "id": "1"}]), plain
        )
        | st.builds(lambda v: Document("x", metadata=v), plain)
        | st.builds(lambda v: Send("n", v), inner)
        | st.builds(lambda v: Flat.model_construct(a=v, b="x", c=None), inner)
        | st.builds(lambda v: Rich.model_construct(**{**Rich().__dict__, "number": v}), inner)
        | st.builds(lambda v: Either.model_construct(one=v), inner)
    )


typed = st.one_of(
    st.builds(Flat, a=st.integers(-5, 2**63), b=texts, c=st.none() | st.floats()),
    st.builds(
        Rich,
        inner=st.builds(Inner, x=st.integers(0, 9)),
        items=st.lists(st.builds(Inner), max_size=2),
        tags=st.sets(texts, max_size=2),
        pairs=st.sets(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=2),
        when=st.none() | st.datetimes(timezones=zones),
        by_color=st.dictionaries(st.sampled_from(Color), st.integers(0, 3)),
        number=st.integers(0, 5) | texts,
        amount=st.decimals(allow_nan=False, allow_infinity=False),
        blob=st.binary(max_size=3),
    ),
    st.builds(Zoo, animal=st.builds(Animal) | st.builds(Dog)),
    st.builds(Either, one=st.builds(UnionA, x=st.integers(0, 2)) | st.builds(UnionB)),
    st.builds(Pet, pet=st.builds(Cat)),
    st.builds(
        Chat, messages=st.lists(st.builds(AIMessage, texts) | st.builds(SystemMessage, texts))
    ),
    st.builds(Tree, children=st.lists(st.builds(Tree), max_size=2)),
    st.sets(hashable, max_size=3),
    st.frozensets(st.builds(Frozen, st.integers(0, 3), hashable), max_size=2),
)
values = st.recursive(scalars | typed, extended, max_leaves=6)


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with Reader() as reader:
        yield reader


def write(value: Any) -> tuple[str, bytes] | None:
    try:
        return JsonPlusSerializer(allowed_msgpack_modules=True).dumps_typed(value)
    except Exception:
        return None


def truth(value: Any, reader: Reader) -> str:
    stored = write(value)
    if stored is None:
        return "raises"
    before = fingerprint(value)
    return "equal" if [before] == reader.read([stored]) else "different"


@settings(
    max_examples=max(150, settings().max_examples),
    suppress_health_check=[*HealthCheck],
)
@given(value=values)
def test_what_is_said_is_what_happens(value: Any, reader: Reader) -> None:
    """By looking, with nothing run, and by trying it out."""
    happens = truth(value, reader)
    looked = check_value(value, channel="c", postgres=False)
    assert happens == verdict_of(looked), str(looked)
    tried = check_value(value, channel="c", postgres=False, roundtrip=True)
    assert happens == verdict_of(tried), str(tried)


def test_the_reader_tells_values_apart(reader: Reader) -> None:
    """The control: what comes back different is seen to be."""
    assert "different" == truth((1, 2), reader)
    assert "equal" == truth([uuid.UUID(int=1), Decimal("1.50")], reader)
    assert "raises" == truth(1j, reader)
