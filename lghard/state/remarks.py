"""What is worth knowing about a value that comes back: its size, and what it shares."""

from collections.abc import Iterator
from typing import Any

from lghard.state.compare import attributes
from lghard.state.judging import Place, judge
from lghard.state.looking import inherits, mro_of, spelled
from lghard.state.paths import Path
from lghard.state.quick import MESSAGES
from lghard.state.report import Finding
from lghard.state.rules import finding

# In megabytes: what is written again at each change of a channel.
LARGE = 10.0

_SAMPLES = 4
_SMALL = {int, float, bool, type(None)}
_FEW = 64
_DEEPEST = 4
_MOST = 100_000
_LONGEST = 60


def size_finding(path: Path, stored: float) -> list[Finding]:
    """Whether this many bytes are a large channel."""
    megabytes = stored / 1e6
    return [finding("LGS317", str(path), size=f"{megabytes:.0f}")] if megabytes > LARGE else []


def weight(value: object) -> float:
    """About how many bytes are stored of it, as far as a few samples tell."""
    return max(_weight(value, 0), _spread(value))


def has_messages(value: object) -> bool:
    """Whether it is a list of messages, as far as the first one tells: their text is not packed."""
    return type(value) is list and bool(value) and type(value[0]) in MESSAGES


def must_not_be_packed(value: object, stored: float) -> bool:
    """Whether looking by packing would copy something large. Lists are packed by pieces."""
    pieces = len(value) if type(value) is list else 1
    return stored > LARGE * 1e6 and stored / max(pieces, 1) > LARGE * 1e5


def _spread(value: Any) -> float:
    """How many values there are if each container is as its first: shared ones multiply."""
    count = 1.0
    for _ in range(_LONGEST):
        if type(value) not in (list, tuple, dict) or not value:
            break
        count *= len(value)
        value = next(iter(value.values() if type(value) is dict else value))
    return count


def _weight(value: Any, level: int) -> float:  # noqa: PLR0911
    """About how many bytes are stored."""
    kind = type(value)
    if kind is str or kind is bytes or kind is bytearray:
        return float(len(value))
    if kind in MESSAGES:
        content = value.__dict__["content"]
        return float(len(content)) if type(content) is str else _weight(content, level + 1)
    if level == _DEEPEST or kind in _SMALL:
        return 10.0
    if kind is list or kind is tuple:
        sample = value[:: max(1, -(-len(value) // _SAMPLES))]
        return sum(_weight(item, level + 1) for item in sample) * len(value) / (len(sample) or 1)
    if kind is dict and len(value) <= _FEW:
        return sum(_weight(item, level + 1) for item in value.values())
    if inherits(kind, "numpy", "ndarray"):
        return float(value.nbytes)
    if kind is dict:
        return 20.0 * len(value)
    return sum(_weight(held, level + 1) for held in attributes(value).values()) + 10.0


def remarks(path: Path, value: object) -> Iterator[Finding]:
    """What is the same object in two places, and models of which not all fields were set."""
    steps = [(path, value, Place())]
    seen: dict[int, Path] = {}
    while steps and len(seen) < _MOST:
        here, found, place = steps.pop()
        if not _is_mutable(found):
            continue
        other = seen.get(id(found))
        if other is not None:
            yield finding("LGS403", str(here), other=str(other))
            continue
        seen[id(found)] = here
        yield from _unset(here, found)
        verdict = judge(here, found, place)
        inner = verdict.inner
        if verdict.model:
            inner = tuple((here.attribute(n), x, place) for n, x in attributes(found).items())
        steps.extend(reversed(inner))


def _is_mutable(value: object) -> bool:
    mro = mro_of(type(value))
    if any(base in mro for base in (list, dict, set, bytearray)):
        return True
    return "__dict__" in dir(type(value)) and type not in mro


def _unset(path: Path, value: Any) -> Iterator[Finding]:
    kind = type(value)
    if not inherits(kind, "pydantic.main", "BaseModel") or inherits(
        kind, "langchain_core", "Serializable"
    ):
        return
    if {*kind.__pydantic_fields__} - value.__pydantic_fields_set__:
        yield finding("LGS309", str(path), model=spelled(kind))
