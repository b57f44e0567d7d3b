"""What only Postgres does: to a channel's own None, str, int, float or bool.

PostgresSaver keeps these in the JSON of the checkpoint, where the serializer has no say.
"""

import re
from enum import Enum
from math import copysign, isfinite

from lghard.state.looking import mro_of, spelled
from lghard.state.report import Finding
from lghard.state.rules import finding

# Postgres' limit for a string in a JSONB.
MOST_BYTES = 268_435_455

# From here on, a float's JSON is that of an integer, and an integer comes back.
INTEGERS = 1e16

_SURROGATE = re.compile("[\ud800-\udfff]")
_LONE = re.compile("[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]")


def inline_findings(path: object, value: object) -> list[Finding]:
    """What Postgres does to this value as the value of a channel; for most, one type check.

    Args:
        path: spelled only where there is something to say, or a text to look at.
        value: what the channel holds.
    """
    kind = type(value)
    if kind in _NOT_TEXT:
        return []
    if kind is str:
        return _text(str(path), str.__str__(value))
    if kind is float:
        return _number(str(path), float(value))  # type: ignore[arg-type]
    return _subclass(str(path), value)


_NOT_TEXT = frozenset({list, dict, int, bool, type(None)})


def inline_surrogate(text: str) -> int | None:
    """Where the first surrogate is; None if there is none. Copies nothing."""
    if str.isascii(text):
        return None
    found = _SURROGATE.search(text)
    return found.start() if found else None


def _text(path: str, text: str) -> list[Finding]:
    found = []
    at = text.find("\0")
    if at >= 0:
        found.append(finding("LGS120", path, at=at))
    surrogate = inline_surrogate(text)
    if surrogate is not None:
        # Postgres takes a pair of them for the character that the pair stands for.
        lone = _LONE.search(text)
        rule, at = ("LGS122", lone.start()) if lone else ("LGS221", surrogate)
        return [*found, finding(rule, path, at=at)]
    if len(text) * 4 > MOST_BYTES and (size := _size(text)) > MOST_BYTES:
        found.append(finding("LGS123", path, bytes=size))
    return found


def _size(text: str) -> int:
    """In UTF-8; by pieces, so that no copy of it is ever whole."""
    if text.isascii():
        return len(text)
    piece = 1 << 20
    return sum(len(text[i : i + piece].encode()) for i in range(0, len(text), piece))


def _number(path: str, number: float) -> list[Finding]:
    if not isfinite(number):
        return [finding("LGS121", path, value=repr(number))]
    if abs(number) >= INTEGERS:
        return [finding("LGS307", path, type="a float of 1e16 or more", back="int")]
    if number == 0 and copysign(1, number) < 0:
        return [finding("LGS307", path, type="-0.0", back="0.0")]
    return []


def _subclass(path: str, value: object) -> list[Finding]:
    """An enum member that is also a str or int, or what somebody derived from these."""
    mro = mro_of(type(value))
    if str in mro:
        found = _text(path, str.__str__(value))
        back = "str"
    elif int in mro:
        found, back = [], "int"
    elif float in mro and Enum in mro:
        found, back = _number(path, float.__float__(value)), "float"  # type: ignore[arg-type]
    else:
        return []
    if Enum not in mro:
        return found
    return [*found, finding("LGS307", path, type=spelled(type(value)), back=back)]
