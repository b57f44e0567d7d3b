"""What PostgresStore does to a value: it keeps JSON, all of it in one JSONB."""

from collections.abc import Iterator
from enum import Enum
from typing import Any

from lghard.state.inline import inline_findings
from lghard.state.looking import mro_of, spelled
from lghard.state.paths import ROOT, Path
from lghard.state.report import Finding
from lghard.state.rules import finding

_DEEPEST = 900  # json's own encoder gives up where Python's stack ends


def store_findings(value: object) -> Iterator[Finding]:
    """What will not be stored, or come back different, in the order of the value."""
    steps: list[tuple[Path, Any, tuple[int, ...]]] = [(ROOT, value, ())]
    while steps:
        path, item, above = steps.pop()
        if id(item) in above or len(above) > _DEEPEST:
            what = "a cycle" if id(item) in above else f"{len(above)} levels"
            yield finding("LGS105", str(path), what=what, limit=_DEEPEST)
            continue
        yield from _of(path, item)
        steps.extend(
            (inner, held, (*above, id(item))) for inner, held in reversed([*_inner(path, item)])
        )


def _inner(path: Path, item: Any) -> Iterator[tuple[Path, Any]]:
    mro = mro_of(type(item))
    if dict in mro:
        yield from ((path[key], held) for key, held in dict.items(item))
    elif list in mro or tuple in mro:
        base = list if list in mro else tuple
        yield from ((path[i], held) for i, held in enumerate(base.__iter__(item)))


_PLAIN = (str, float, int, bool, type(None), list, dict)


def _of(path: Path, item: Any) -> Iterator[Finding]:
    kind, mro = type(item), mro_of(type(item))
    yield from inline_findings(path, item)
    if dict in mro:
        yield from _keys(path, item)
    if kind in _PLAIN:
        return
    if tuple in mro:
        yield finding("LGS301", str(path))
    elif dict in mro or list in mro:
        base = "dict" if dict in mro else "list"
        yield finding("LGS218", str(path), type=spelled(kind), base=base)
    elif str in mro or int in mro or float in mro:
        if Enum not in mro:
            base = next(b.__name__ for b in (str, int, float) if b in mro)
            yield finding("LGS303", str(path), type=spelled(kind), base=base)
    else:
        yield finding("LGS112", str(path), type=spelled(kind))


def _keys(path: Path, item: Any) -> Iterator[Finding]:
    for key in dict.keys(item):
        kind = type(key)
        place = str(path.key(key))
        if kind is str:
            yield from inline_findings(place, key)
        elif any(base in mro_of(kind) for base in (str, int, float)) or key is None:
            yield finding("LGS302", place, type=spelled(kind), back="str")
        else:
            yield finding("LGS104", place, type=spelled(kind))
