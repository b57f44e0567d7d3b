"""All that a value is, as text: exact types, flags, zones and private parts.

Knows nothing of lghard, and is the same in every process, so that what one has written and another
has read can be compared.
"""

import re
import sys
from collections import deque
from datetime import datetime, time, timezone
from decimal import Decimal
from enum import Enum
from functools import cached_property
from types import FunctionType, ModuleType
from typing import Any
from zoneinfo import ZoneInfo


def fingerprint(value: Any) -> str:
    """The text; two values have the same one if nobody can tell them apart."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)
    try:
        return _told(value)
    finally:
        sys.setrecursionlimit(limit)


def _told(value: Any) -> str:
    kind = type(value)
    name = f"{kind.__module__.replace('pathlib._local', 'pathlib')}.{kind.__qualname__}"
    return f"{name}({', '.join(_parts(kind, value))})"


def _parts(kind: type, value: Any) -> list[str]:  # noqa: PLR0911
    numpy = sys.modules.get("numpy")
    if isinstance(value, (type, FunctionType, ModuleType)):
        return [value.__name__]
    if isinstance(value, Enum):
        return [value.name or "", _told(value._value_)]
    if kind in (datetime, time):
        zone = "" if value.tzinfo is None else _told(value.tzinfo)
        return [str(value.replace(tzinfo=None)), str(value.fold), zone]
    if kind is timezone:
        return [str(value.utcoffset(None))]
    if kind is ZoneInfo:
        return [str(value.key)]
    if kind is float:
        return [value.hex()]
    if kind is Decimal:
        return [str(value.as_tuple())]
    if isinstance(value, re.Pattern):
        return [repr(value.pattern), str(value.flags)]
    if numpy and isinstance(value, numpy.ndarray):
        return [repr(value.dtype), str(value.shape), value.tobytes().hex()]
    if kind in (str, bytes, bytearray, int, bool, type(None)):
        return [repr(value)]
    return [*_held(value), *_attributes(value)]


def _held(value: Any) -> list[str]:
    if isinstance(value, dict):
        return sorted(f"{_told(k)}: {_told(v)}" for k, v in dict.items(value))
    if isinstance(value, (set, frozenset)):
        return sorted(map(_told, value))
    if isinstance(value, deque):
        return [*map(_told, value), str(value.maxlen)]
    if isinstance(value, (list, tuple)):
        return [_told(x) for x in value]
    if isinstance(value, (str, int, float, bytes)):
        return [repr(value)]
    return [] if hasattr(value, "__dict__") or hasattr(value, "__slots__") else [repr(value)]


_UNTOLD = {"__pydantic_fields_set__", "__weakref__", "__dict__", "is_safe"}


def _attributes(value: Any) -> list[str]:
    kind = type(value)
    if kind.__module__.startswith(("pathlib", "ipaddress")):
        return [str(value)]
    slots = [s for base in kind.__mro__ for s in _slots_of(base)]
    held = {s: getattr(value, s) for s in slots if s not in _UNTOLD and hasattr(value, s)}
    held |= getattr(value, "__dict__", {})
    held = {n: x for n, x in held.items() if not _is_remembered(kind, n)}
    return [f"{name}={_told(x)}" for name, x in sorted(held.items())]


def _is_remembered(kind: type, name: str) -> bool:
    """What can be had again is no part of a value."""
    return isinstance(getattr(kind, name, None), cached_property) or name == "__orig_class__"


def _slots_of(base: type) -> list[str]:
    slots = base.__dict__.get("__slots__", ())
    slots = [slots] if isinstance(slots, str) else slots
    return [
        f"_{base.__name__.lstrip('_')}{s}" if s.startswith("__") and not s.endswith("__") else s
        for s in slots
    ]
