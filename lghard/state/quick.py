"""Whether there is surely nothing to find in a value, asked of C.

ormsgpack visits all plain data in C, and comes back to Python only for objects, which are looked
at by their type. Everything that it refuses, or hands over without being asked, takes the walk with
the paths; so does what is unusual. A "no" therefore means "look closely"; a "yes" is certain.

ormsgpack takes bytearray and memoryview for bytes, and writes its own Ext and Fragment, without
telling; a Fragment leaves no mark in what is written. So orjson, which takes none of them, always
looks again: only what both take is plain.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from operator import itemgetter
from typing import Any
from uuid import UUID

import orjson
import ormsgpack
from langchain_core.messages import (
    AIMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from lghard.state.compare import attributes
from lghard.state.judging import Place, judge
from lghard.state.looking import mro_of
from lghard.state.models import is_simple, name_problem, plan_of
from lghard.state.paths import ROOT

_OPTIONS = (
    ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_TUPLE
    | ormsgpack.OPT_PASSTHROUGH_UUID
)
_JSON_OPTIONS = (
    orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)

# What is packed at once stays in the cache of the processor; larger lists go by pieces.
_PIECE = 128

# In characters. Longer strings are not packed.
_LARGE = 1 << 20

View = Callable[[Any], Any]


class LookCloselyError(TypeError):
    """This is not certain."""


def surely_clean(value: object) -> bool:
    """Whether all of it comes back equal, without doubt. Runs no code of anybody's."""
    kind = type(value)
    if kind is list:
        return _list_is_clean(value)  # type: ignore[arg-type]
    if kind is str:
        return str.isascii(value)  # type: ignore[arg-type]
    if kind is bytes or kind is bytearray or value is None:
        return True
    if kind is dict:
        return _dict_is_clean(value)  # type: ignore[arg-type]
    if bytes in mro_of(kind):  # the serializer takes it for bytes, whatever it says in a list
        return False
    # In a list, so that no level is one less deep than where the serializer counts it.
    return _piece_is_clean([value])


def _list_is_clean(values: list[Any]) -> bool:
    """A message list: by pieces."""
    if len(values) <= _PIECE:
        return _piece_is_clean(values)
    return all(_piece_is_clean(values[i : i + _PIECE]) for i in range(0, len(values), _PIECE))


def _dict_is_clean(values: dict[Any, Any]) -> bool:
    """What is large in it is not packed with the rest."""
    rest = {}
    for key, held in values.items():
        if type(held) is str and len(held) > _LARGE:
            if not held.isascii():
                return False
        elif type(held) is not bytes:
            rest[key] = held
    return _piece_is_clean(rest)


def _piece_is_clean(value: Any) -> bool:
    try:
        if type(value) is list and MESSAGES.keys() >= {*map(type, value)}:
            return _messages_are_clean(value)
        ormsgpack.packb(value, default=_view, option=_OPTIONS)
        orjson.dumps(value, default=_json_view, option=_JSON_OPTIONS)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def plain_bytes(value: list[Any] | dict[str, Any]) -> bytes | None:
    """What is written of plain data, if it is plain: looking at it and writing it are one walk."""
    try:
        packed = ormsgpack.packb(value, option=_OPTIONS)
        orjson.dumps(value, default=_bytes_view, option=_JSON_OPTIONS)
    except (TypeError, ValueError, RecursionError):
        return None
    return packed


def _view(value: Any) -> Any:
    """What is left to look at of an object that comes back as its parts do."""
    return _VIEWS.get(type(value), _object_view)(value)


def _json_view(value: Any) -> Any:
    """The same; bytes, which are certain, are nothing to look at."""
    return None if type(value) is bytes else _view(value)


def _bytes_view(value: Any) -> None:
    if type(value) is not bytes:
        raise LookCloselyError


def _object_view(value: Any) -> Any:
    verdict = judge(ROOT, value, Place())
    if verdict.findings:
        raise LookCloselyError
    if not verdict.model:
        return [inner for _, inner, _ in verdict.inner]
    kind = type(value)
    if not is_simple(value, plan_of(kind)) or name_problem(kind):
        raise LookCloselyError
    return list(attributes(value).values())


# Messages of langchain-core, which are most of most states. What their validators would change is
# what is checked here; what is untyped in them is packed.

_COMMON = ("content", "type", "additional_kwargs", "response_metadata", "name", "id")
_MORE = {
    AIMessage: ("tool_calls", "invalid_tool_calls", "usage_metadata"),
    ToolMessage: ("tool_call_id", "artifact", "status"),
    HumanMessage: (),
    SystemMessage: (),
}
# A class that has other fields, in another version of langchain-core, takes the walk.
MESSAGES: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    kind: itemgetter(*_COMMON, *more)
    for kind, more in _MORE.items()
    if {*_COMMON, *more} == getattr(kind, "model_fields", {}).keys()
}
_CALL = ("name", "args", "id", "type")
_USAGE = ("input_tokens", "output_tokens", "total_tokens")
_STR, _INT = {str}, {int}
_KINDS = {"human", "ai", "tool", "system"}


def _messages_are_clean(messages: list[Any]) -> bool:  # noqa: PLR0911, PLR0912
    """Whether these are messages as their validators leave them, holding plain data.

    One loop and no calls: this is what every message of a state costs. The types of all texts and
    counts are looked at together, which C does.
    """
    texts: list[Any] = []
    kinds: list[Any] = []
    counts: list[Any] = []
    rest: list[Any] = []
    for message in messages:
        kind, held = type(message), message.__dict__
        content, type_, kwargs, metadata, name, id_, *more = MESSAGES[kind](held)
        if len(held) != 6 + len(more):
            return False
        if message.__pydantic_extra__ or message.__pydantic_private__:
            return False
        texts.append(content)
        kinds.append(type_)
        if id_ is not None:
            texts.append(id_)
        if name is not None:
            texts.append(name)
        if type(kwargs) is not dict or type(metadata) is not dict:
            return False
        if kwargs:
            rest.append(kwargs)
        if metadata:
            rest.append(metadata)
        if kind is AIMessage:
            calls, invalid, usage = more
            # Raw calls are parsed again where there are no others.
            if invalid or type(invalid) is not list or "tool_calls" in kwargs:
                return False
            if (calls or type(calls) is not list) and not _calls_are_clean(calls, texts, rest):
                return False
            if usage is not None:
                if type(usage) is not dict:
                    return False
                if tuple(usage) == _USAGE:
                    counts += usage.values()
                elif not _usage_is_clean(usage, counts):
                    return False
        elif kind is ToolMessage:
            texts.append(more[0])
            rest.append(more[1:])
    if {*map(type, kinds)} - _STR or not {*kinds} <= _KINDS:
        return False
    return _texts_are_clean(texts, rest) and _counts_are_clean(counts)


def _calls_are_clean(calls: Any, texts: list[Any], rest: list[Any]) -> bool:
    if type(calls) is not list:
        return False
    for call in calls:
        if type(call) is not dict or tuple(call) != _CALL:
            return False
        name, args, id_, what = call.values()
        if type(args) is not dict or type(what) is not str or what != "tool_call":
            return False
        texts.append(name)
        rest.append(args)
        if id_ is not None:
            texts.append(id_)
    return True


_DETAILS = {
    "input_token_details": ("audio", "cache_creation", "cache_read"),
    "output_token_details": ("audio", "reasoning"),
}


def _usage_is_clean(usage: dict[Any, Any], counts: list[Any]) -> bool:
    for key, count in usage.items():
        if type(key) is not str:
            return False
        if key in _USAGE:
            counts.append(count)
        elif type(count) is dict and key in _DETAILS:
            if not {*map(type, count)} <= _STR or not {*count} <= {*_DETAILS[key]}:
                return False
            counts += count.values()
        else:
            return False
    return True


def _counts_are_clean(counts: list[Any]) -> bool:
    """They are not packed: whether they are int, and fit into 64 bits, is asked here."""
    if not counts:
        return True
    return {*map(type, counts)} == _INT and min(counts) >= -(1 << 63) and max(counts) < 1 << 64


def _texts_are_clean(texts: list[Any], rest: list[Any]) -> bool:
    """What is no str among the texts may be a list of blocks; what is not ASCII takes C's look."""
    if {*map(type, texts)} != _STR:
        blocks = [text for text in texts if type(text) is not str]
        texts = [text for text in texts if type(text) is str]
        if not all(type(b) is list and {*map(type, b)} <= _STR_OR_DICT for b in blocks):
            return False
        rest = [*rest, *blocks]
    if not "".join(texts).isascii():
        rest = [*rest, texts]
    if rest:
        # At the depth at which the serializer sees them, and not one less. No object is certain
        # here: where no type says what it is, most come back as dicts.
        ormsgpack.packb([[[rest]]], option=_OPTIONS)
        orjson.dumps(rest, default=_bytes_view, option=_JSON_OPTIONS)
    return True


_STR_OR_DICT = {str, dict}


def _message_view(message: Any) -> None:
    if not _messages_are_clean([message]):
        raise LookCloselyError


def _nothing(value: Any) -> None:
    """It comes back as it is."""


def _datetime_view(value: datetime) -> None:
    if value.fold or (value.tzinfo is not None and value.tzinfo is not UTC):
        raise LookCloselyError


_VIEWS: dict[type, View] = {
    **dict.fromkeys(MESSAGES, _message_view),
    **dict.fromkeys((UUID, Decimal, date, timedelta, timezone), _nothing),
    datetime: _datetime_view,
}
