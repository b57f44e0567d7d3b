"""Members of a union that pydantic cannot tell apart once they are dumped.

Where several models take a dict, pydantic takes the one that uses most of its keys; of those the
one that has to convert least; of those the first.
"""

import collections
import collections.abc
import dataclasses
import datetime as dt
import decimal
import enum
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

import typing_extensions

from lghard.state.annotations import LITERALS, arguments_of, fields_of, fill, resolve, strip
from lghard.state.core_schema import is_model

_OPEN = (
    dict,
    collections.abc.Mapping,
    collections.abc.MutableMapping,
    collections.defaultdict,
    collections.OrderedDict,
    collections.Counter,
)
_SCALARS = (bool, int, float, str, bytes, dt.datetime, dt.date, dt.time, uuid.UUID, decimal.Decimal)


@dataclasses.dataclass(frozen=True)
class _Shape:
    """What a dict looks like that values of a type are dumped to.

    Attributes:
        annotation: the type.
        hints: its fields.
        required: those without a default.
        open: it takes any keys.
    """

    annotation: Any
    hints: Mapping[str, Any]
    required: frozenset[str]
    open: bool = False

    @property
    def converts(self) -> bool:
        """Whether it has to convert what it has dumped itself: lists to tuples, str to keys."""
        return any(_converts(hint, set()) for hint in self.hints.values())

    def tags(self) -> dict[str, frozenset[object]]:
        """The fields that are one of a few values."""
        found = {name: strip(hint) for name, hint in self.hints.items()}
        return {
            name: frozenset(get_args(hint))
            for name, hint in found.items()
            if get_origin(hint) in LITERALS
        }


def confusions(members: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Members whose values may come back as another one, with that one."""
    shapes = [shape for member in members if (shape := _shape_of(member)) is not None]
    for i, one in enumerate(shapes):
        for j, other in enumerate(shapes):
            if i != j and _may_be_taken(one, other, first=j < i):
                yield one.annotation, other.annotation


def _may_be_taken(one: _Shape, other: _Shape, *, first: bool) -> bool:
    """Whether `other`, which may stand first, reads the dump of `one` as well as `one` does."""
    if one.open or _told_apart(one.tags(), other.tags()):
        return one.open
    names = frozenset(one.hints)
    if not (other.required <= names and (other.open or names <= frozenset(other.hints))):
        return False
    if one.converts:
        return True
    apart = any(_exclusive(one.hints[name], other.hints[name]) for name in names & set(other.hints))
    return (first and not apart) or other.open


def _told_apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return any(name in other and not values & other[name] for name, values in one.items())


def _exclusive(one: Any, other: Any) -> bool:
    """Whether no value of the one type is exactly of the other."""
    kinds = strip(one), strip(other)
    return kinds[0] is not kinds[1] and all(kind in _SCALARS for kind in kinds)


def _converts(annotation: Any, seen: set[int]) -> bool:
    bare = strip(annotation)
    cls = get_origin(bare) or bare
    if id(cls) in seen and not get_args(bare):
        return False
    seen.add(id(cls))
    if isinstance(cls, type) and (issubclass(cls, tuple) or cls in _OPEN[1:] or _is_key(cls)):
        return True
    shape = _shape_of(bare)
    inner = list(get_args(bare)) + (list(shape.hints.values()) if shape is not None else [])
    return any(_converts(each, seen) for each in inner if not isinstance(each, str))


def _is_key(cls: type) -> bool:
    """What is a str, or its value, as the key of a dict; elsewhere it is itself: no harm done."""
    return issubclass(cls, enum.Enum) or cls in (uuid.UUID, dt.date, dt.time, dt.datetime)


def _shape_of(annotation: Any) -> _Shape | None:
    cls: Any = get_origin(annotation) or annotation
    if cls in _OPEN:
        return _Shape(annotation, {}, frozenset(), open=True)
    if is_model(cls):
        return _model_shape(cls)
    if dataclasses.is_dataclass(cls) and isinstance(cls, type):
        return _dataclass_shape(cls)
    if typing_extensions.is_typeddict(cls):
        return _Shape(annotation, typed_dict_fields(cls), frozenset(cls.__required_keys__))
    return None


def _model_shape(cls: Any) -> _Shape:
    if cls.__pydantic_root_model__:
        return _Shape(cls, {}, frozenset(), open=True)
    hints = {name: field.annotation for name, field in cls.model_fields.items()}
    required = frozenset(n for n, field in cls.model_fields.items() if field.is_required())
    return _Shape(cls, hints, required, open=cls.model_config.get("extra") == "allow")


def _dataclass_shape(cls: Any) -> _Shape:
    hints, missing = fields_of(cls), dataclasses.MISSING
    fields = dataclasses.fields(cls)
    required = frozenset(
        f.name for f in fields if f.default is missing and f.default_factory is missing
    )
    return _Shape(cls, {f.name: hints.get(f.name, Any) for f in fields}, required)


def typed_dict_fields(cls: type) -> dict[str, Any]:
    """The keys of a TypedDict, which has those of its bases in its own annotations."""
    filled = arguments_of(cls)
    own = vars(cls).get("__annotations__", {})
    return {name: fill(resolve(hint, cls), filled) for name, hint in own.items()}
