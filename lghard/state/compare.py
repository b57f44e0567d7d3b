"""What differs between a value and what came back for it.

Looks at what objects hold, and never asks them: no `__eq__` of anybody's, since one that says
"equal" too easily would hide a loss.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from pathlib import PurePath
from types import MemberDescriptorType
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from lghard.state.looking import class_dict, is_remembered, mro_of, own_attributes
from lghard.state.paths import Path


class Difference(NamedTuple):
    """Where a value came back different.

    Attributes:
        path: where.
        was: what was there.
        became: what came back in its place; `MISSING` if nothing did.
    """

    path: Path
    was: Any
    became: Any


class _Missing:
    def __repr__(self) -> str:
        return "nothing"


MISSING = _Missing()

# Compared by `==`, which for these is C code that tells all that they are.
_ADDRESSES = (IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network)
_PLAIN: tuple[type, ...] = (
    *(str, bytes, bytearray, int, bool, type(None), UUID, timedelta, date),
    *_ADDRESSES,
)


def differences(was: object, became: object, path: Path) -> Iterator[Difference]:
    """Every place, outermost first, where type or value is not the same.

    Iterative: what is nested too deeply for Python's stack is compared, too.
    """
    pairs: list[tuple[Path, Any, Any]] = [(path, was, became)]
    seen: set[tuple[int, int]] = set()
    while pairs:
        place, old, new = pairs.pop()
        if old is new or (id(old), id(new)) in seen:
            continue
        if type(old) is not type(new) or not _same_leaf(old, new):
            yield Difference(place, old, new)
            continue
        seen.add((id(old), id(new)))
        pairs.extend(reversed([(place, old, new) for place, old, new in _inner(place, old, new)]))


def _same_leaf(old: Any, new: Any) -> bool:  # noqa: PLR0911
    """Whether two of the same type are the same, apart from what they hold inside."""
    kind = type(old)
    compare = _COMPARE.get(kind)
    if compare is not None:
        return compare(old) == compare(new)
    if kind in _PLAIN:
        return bool(old == new)
    if Enum in kind.__mro__:
        return False  # a member is itself, or another one
    if _is_array(kind):
        return bool(_array(old) == _array(new))
    if isinstance(old, PurePath):
        return bool(old.parts == new.parts)
    if PurePath not in kind.__mro__ and issubclass(kind, (dict, list, tuple, set, frozenset)):
        return len(old) == len(new)
    return True


def _zone(value: Any) -> object:
    zone = value.tzinfo
    if zone is None:
        return None
    return type(zone), zone.key if type(zone) is ZoneInfo else zone.utcoffset(None)


_COMPARE: dict[type, Callable[[Any], object]] = {
    float: float.hex,
    complex: repr,
    Decimal: Decimal.as_tuple,
    datetime: lambda value: (value.replace(tzinfo=None), value.fold, _zone(value)),
    time: lambda value: (value.replace(tzinfo=None), value.fold, _zone(value)),
    timezone: lambda value: value.utcoffset(None),
    ZoneInfo: lambda value: value.key,
    re.Pattern: lambda value: (type(value.pattern), value.pattern, value.flags),
    deque: lambda value: (len(value), value.maxlen),
    memoryview: lambda value: (value.format, value.shape, value.tobytes()),
}


def _is_array(kind: type) -> bool:
    return any(base.__name__ == "ndarray" and base.__module__ == "numpy" for base in kind.__mro__)


def _array(value: Any) -> object:
    return repr(value.dtype), value.shape, value.tobytes()


def _inner(path: Path, old: Any, new: Any) -> Iterable[tuple[Path, Any, Any]]:
    kind = type(old)
    if kind in _PLAIN or (kind in _COMPARE and kind is not deque) or PurePath in kind.__mro__:
        return
    if issubclass(kind, dict):
        yield from _items(path, old, new)
    elif issubclass(kind, (list, tuple, deque)):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            yield path[i], a, b
    elif issubclass(kind, (set, frozenset)):
        yield from _members(path, old, new)
    if not _is_array(kind):
        yield from _attributes(path, old, new)


def _items(path: Path, old: Any, new: Any) -> Iterator[tuple[Path, Any, Any]]:
    """Keys keep their order on the way, unless a typed dict says otherwise."""
    if all(type(key) is str for held in (old, new) for key in dict.keys(held)):
        for key in dict.fromkeys((*old, *new)):
            yield path[key], dict.get(old, key, MISSING), dict.get(new, key, MISSING)
        return
    for (a, x), (b, y) in zip(dict.items(old), dict.items(new), strict=True):
        if a is not b:
            yield path.key(a), a, b
        yield path[a], x, y


def _members(path: Path, old: Any, new: Any) -> Iterator[tuple[Path, Any, Any]]:
    """Members have no order; each wants one that is the same."""
    rest = list(new)
    for member in old:
        for i, other in enumerate(rest):
            if next(differences(member, other, path), None) is None:
                del rest[i]
                break
        else:
            yield path.member(), member, MISSING


def _attributes(path: Path, old: Any, new: Any) -> Iterator[tuple[Path, Any, Any]]:
    before, after = attributes(old), attributes(new)
    for name in dict.fromkeys((*before, *after)):
        if not (name in before and name in after) and is_remembered(type(old), name):
            continue
        yield path.attribute(name), before.get(name, MISSING), after.get(name, MISSING)


# Which fields were set is no part of what is equal; the others are listed under their own names.
_BOOKKEEPING = {"__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__"}


def attributes(value: object) -> dict[str, Any]:
    """What an object holds, in its `__dict__` and its slots, without asking it.

    Of a pydantic model also its extra and private attributes.
    """
    held = dict(own_attributes(value))
    for name, slot in _slots(type(value)):
        try:
            held[name] = slot.__get__(value)
        except AttributeError:
            continue
    for more in ("__pydantic_extra__", "__pydantic_private__"):
        if isinstance(held.get(more), dict):
            held |= held[more]
    return {name: held[name] for name in held if name not in _BOOKKEEPING}


_Slot = MemberDescriptorType
_HIDDEN = {"__weakref__", "__dict__"}


def _slots(kind: type) -> Iterator[tuple[str, Any]]:
    for base in mro_of(kind):
        for name, found in class_dict(base).items():
            if type(found) is _Slot and name not in _HIDDEN and "__slots__" in class_dict(base):
                yield name, found
