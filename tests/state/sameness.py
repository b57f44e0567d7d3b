"""Whether two values are the same: equal, and every type inside exactly the same.

Written without a look at lghard's own comparison, so that neither hides a mistake of the other.
"""

import dataclasses
import datetime as dt
import enum
import types
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel


def same(one: Any, other: Any) -> bool:
    """The same, except that pydantic may know other fields to have been set."""
    return fingerprint(one) == fingerprint(other)


def fingerprint(value: Any) -> Any:
    """All that a value is, in tuples."""
    kind = type(value)
    if isinstance(value, type | enum.Enum | types.ModuleType | types.BuiltinFunctionType):
        return kind, repr(value)
    if isinstance(value, BaseModel):
        held = {
            **vars(value),
            **(value.__pydantic_extra__ or {}),
            **(value.__pydantic_private__ or {}),
        }
        return kind, _pairs(held)
    if dataclasses.is_dataclass(value):
        names = [f.name for f in dataclasses.fields(value)]
        rest = getattr(value, "__dict__", {})
        return kind, _pairs({**{n: getattr(value, n) for n in names}, **rest}), _builtin(value)
    return kind, _builtin(value), _pairs(getattr(value, "__dict__", {}))


def _builtin(value: Any) -> Any:
    if isinstance(value, Mapping):
        more = getattr(value, "default_factory", None)
        return tuple((fingerprint(k), fingerprint(v)) for k, v in value.items()), more
    if isinstance(value, list | tuple | deque):
        return tuple(map(fingerprint, value)), getattr(value, "maxlen", None)
    if isinstance(value, set | frozenset):
        return frozenset(map(_frozen, value))
    if isinstance(value, dt.datetime | dt.time):
        return value.isoformat(), value.fold, type(value.tzinfo), str(value.tzinfo)
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes(), value.flags.writeable
    return repr(value) if isinstance(value, float) else _plain(value)


def _plain(value: Any) -> Any:
    known = isinstance(value, int | str | bytes) or type(value).__module__ != "tests.state.kinds"
    return value if known else repr(value)


def _frozen(value: Any) -> Any:
    return repr(fingerprint(value))


def _pairs(held: Mapping[str, Any]) -> Any:
    return tuple((name, fingerprint(held[name])) for name in sorted(held))
