"""Where in a value something is: `$.messages[2].artifact`."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_NAME = re.compile(r"[^\W\d]\w*")
_LONGEST = 60
_LARGE = 10**15


@dataclass(frozen=True, eq=False)
class Path:
    """A place, and the one that it is inside of; spelled out only when somebody asks.

    A walk makes one for each step, most of which nobody ever sees.
    """

    parent: "Path | None" = None
    step: object = None
    kind: str = "item"

    def __getitem__(self, key: object) -> "Path":
        return Path(self, key)

    def attribute(self, name: str) -> "Path":
        """What stands in an attribute."""
        return Path(self, name, "attribute")

    def key(self, key: object) -> "Path":
        """A key itself, not what stands under it."""
        return Path(self, key, "key")

    def member(self) -> "Path":
        """Some member of a set."""
        return Path(self, None, "member")

    def __iter__(self) -> Iterator["Path"]:
        """From the outside in."""
        steps: list[Path] = []
        here: Path | None = self
        while here is not None:
            steps.append(here)
            here = here.parent
        return reversed(steps)

    def __str__(self) -> str:
        parts = [_spell(place) for place in self]
        if len(parts) > _LONGEST:  # ten thousand levels are spelled by their ends
            half = _LONGEST // 2
            parts = [*parts[:half], f"…{len(parts) - 2 * half} levels…", *parts[-half:]]
        return "".join(parts)


def _spell(place: Path) -> str:
    if place.parent is None:
        return str(place.step or "$")
    step = place.step
    if place.kind == "attribute":
        return f".{step}"
    if place.kind == "member":
        return "{}"
    if place.kind == "key":
        return f".keys()[{_shown(step)}]"
    if type(step) is str and _NAME.fullmatch(step):
        return f".{_short(step)}"
    return f"[{_shown(step)}]"


def _shown(key: object) -> str:
    """A key; of one that is no str or number, only its type: its repr is somebody's code."""
    if (type(key) is int and abs(key) < _LARGE) or type(key) in (bool, float, type(None)):
        return repr(key)
    if type(key) is str:
        return repr(_short(key)).replace("'", '"') if "'" not in key else repr(_short(key))
    return f"<{type(key).__name__}>"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


ROOT = Path()
