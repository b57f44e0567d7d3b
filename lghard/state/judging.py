"""What LangGraph's serializer does with one object, by its type.

The order is that of `_msgpack_default` in langgraph.checkpoint.serde.jsonplus: what it asks first
decides. Nothing here runs code of the object.
"""

import inspect
import re
import sys
from collections import deque
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, EnumMeta
from fractions import Fraction
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from math import isnan
from pathlib import Path as FilePath
from pathlib import PosixPath, PurePath, WindowsPath
from types import SimpleNamespace
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import ormsgpack
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from lghard.state.compare import attributes, differences
from lghard.state.doubts import rebuild_doubt
from lghard.state.inline import inline_surrogate
from lghard.state.looking import (
    class_dict,
    class_dict_of_bases,
    in_class,
    inherits,
    is_trusted,
    lookup_problem,
    module_of,
    mro_of,
    name_of,
    own_attributes,
    own_code,
    spelled,
)
from lghard.state.models import is_dataclass, is_simple, name_problem, plan_of, stored_fields
from lghard.state.paths import ROOT, Path
from lghard.state.rebuilding import CLASS_VAR, INIT_VAR, Note, constructor, undeclared, unset
from lghard.state.report import Severity
from lghard.state.rules import RULES


class Place(NamedTuple):
    """What a value is inside of.

    Attributes:
        outer: the name of the outermost object that is encoded on its own, which is all that
            LangGraph's error names; None if there is none.
        dumped: whether it is in a pydantic model, whose dump holds no objects of its own.
    """

    outer: str | None = None
    dumped: bool = False

    def inside(self, kind: type) -> "Place":
        """Of an object of this class."""
        return self if self.outer else self._replace(outer=name_of(kind))


class Verdict(NamedTuple):
    """What is known about one object, apart from what it holds.

    Attributes:
        findings: rule, path and fields.
        inner: what it holds.
        boxed: whether it is encoded on its own, so that depth starts again.
        model: whether it is a pydantic model or dataclass, which takes a closer look.
        stored_as: module and name that it is stored under, if it is.
    """

    findings: tuple[Note, ...] = ()
    inner: tuple[tuple[Path, Any, Place], ...] = ()
    boxed: bool = False
    model: bool = False
    stored_as: tuple[str, str] | None = None


FINE = Verdict()


def judge(path: Path, value: Any, place: Place) -> Verdict:
    """What the serializer does with this object."""
    kind = type(value)
    exact = _EXACT.get(kind)
    if exact:
        return exact(path, value, place)
    mro = mro_of(kind)
    if Enum not in mro:
        for base, judged in _NATIVE:
            if base in mro:
                return judged(path, value, place)
    if type in mro:
        return _class(path, value, place)
    if place.dumped and tuple in mro and not _is_namedtuple(kind, value):
        return _tuple(path, value, place)
    if place.dumped and Fraction in mro:
        return _noted("LGS227", path, was=spelled(kind), became="another type")
    return _object(path, value, place)


def _noted(rule: str, path: Path, **fields: object) -> Verdict:
    return Verdict(((rule, path, fields),))


def _fine(path: Path, value: Any, place: Place) -> Verdict:  # noqa: ARG001
    return FINE


def _int(path: Path, value: int, place: Place) -> Verdict:  # noqa: ARG001
    if -(1 << 63) <= value < 1 << 64:
        return FINE
    return _noted("LGS103", path, bits=int.bit_length(value))


def _str(path: Path, value: str, place: Place) -> Verdict:  # noqa: ARG001
    at = inline_surrogate(value)
    return FINE if at is None else _noted("LGS221", path, at=at)


def _bytes_like(path: Path, value: Any, place: Place) -> Verdict:
    if type(value) is memoryview and not value.contiguous:
        return _raised(path, value, place)
    return _noted("LGS303", path, type=type(value).__name__, base="bytes")


def _list(path: Path, value: list[Any], place: Place) -> Verdict:
    return Verdict(inner=tuple((path[i], x, place) for i, x in enumerate(list.__iter__(value))))


def _tuple(path: Path, value: tuple[Any, ...], place: Place) -> Verdict:
    inner = tuple((path[i], x, place) for i, x in enumerate(tuple.__iter__(value)))
    return Verdict((("LGS301", path, {}),), inner)


def _dict(path: Path, value: dict[Any, Any], place: Place) -> Verdict:
    notes: list[Note] = []
    for key in dict.keys(value):
        if type(key) is not str or inline_surrogate(key) is not None:
            notes += _key(path, key, dumped=place.dumped)
    inner = tuple((path[key], x, place) for key, x in dict.items(value))
    return Verdict(tuple(notes), inner)


def _key(path: Path, key: Any, *, dumped: bool = False) -> list[Note]:  # noqa: PLR0911
    """What becomes of a dict key: the same, a str, or an error."""
    kind, place = type(key), path.key(key)
    mro = mro_of(kind)
    if kind in (float, bool, bytes, type(None)):
        return []
    if dumped and tuple in mro and kind is not tuple:
        return [("LGS302", place, {"type": spelled(kind), "back": "tuple"})]
    if kind is tuple:
        return [note for k in key for note in _part_of_key(path, place, k)]
    if kind is int:
        return list(_int(place, key, Place()).findings)
    if kind is str:
        bad = inline_surrogate(key) is not None
        return [("LGS104", place, {"type": "str with a surrogate"})] if bad else []
    if Enum in mro and _has_own_value(kind):
        return [("LGS302", place, {"type": spelled(kind), "back": "its value"})]
    if Enum in mro:
        member = attributes(key).get("_value_")
        back = {"type": spelled(kind), "back": type(member).__name__}
        return (
            [*_key(path, member), ("LGS302", place, back)]
            if type(member) is not str
            else [("LGS302", place, back)]
        )
    if (kind is time and key.tzinfo is not None) or (kind is memoryview and not key.contiguous):
        return [("LGS104", place, {"type": spelled(kind)})]
    if kind in (UUID, date, datetime, time) or str in mro or int in mro or kind is memoryview:
        back_to = "int" if int in mro else "bytes" if kind is memoryview else "str"
        return [("LGS302", place, {"type": spelled(kind), "back": back_to})]
    return [("LGS104", place, {"type": spelled(kind)})]


def _part_of_key(path: Path, place: Path, part: Any) -> list[Note]:
    """In a tuple, a surrogate is replaced; as a key of its own, it is refused."""
    at = inline_surrogate(part) if type(part) is str else None
    if at is not None:
        return [("LGS221", place, {"at": at})]
    return [(rule, place, fields) for rule, _, fields in _key(path, part)]


def _native(base: type, rule: str, judged: Callable[..., Verdict]) -> Callable[..., Verdict]:
    """A subclass that ormsgpack takes for its base, without asking anybody."""

    def judge_subclass(path: Path, value: Any, place: Place) -> Verdict:
        as_base = judged(path, value, place)
        note = rule, path, {"type": spelled(type(value)), "base": base.__name__}
        return as_base._replace(findings=(note, *as_base.findings))

    return judge_subclass


def _members(path: Path, value: Any, place: Place) -> Verdict:
    """A set, whose members must come back hashable."""
    kind = type(value)
    base = frozenset if frozenset in mro_of(kind) else set
    members = list(base.__iter__(value))
    notes = [*_named(path, kind, "a list")]
    if any(_comes_back_unhashable(member) for member in members):
        notes.append(("LGS217", path, {"type": spelled(kind)}))
    inside = place.inside(kind)
    inner = tuple((path.member(), x, inside) for x in members if type(x) is not tuple)
    inner += tuple((path.member(), y, inside) for x in members if type(x) is tuple for y in x)
    return Verdict(tuple(notes), inner, boxed=True, stored_as=_stored(kind))


def _comes_back_unhashable(member: object) -> bool:
    kind = type(member)
    if tuple in mro_of(kind):
        return not _is_namedtuple(kind, member) or lookup_problem(kind, "") is not None
    if is_trusted(module_of(kind)) or Enum in mro_of(kind):
        return False
    return lookup_problem(kind, "") is not None


def _deque(path: Path, value: deque[Any], place: Place) -> Verdict:
    notes = [*_named(path, type(value), "a list")]
    if value.maxlen is not None:
        notes.append(("LGS304", path, {}))
    inside = place.inside(deque)
    inner = tuple((path[i], x, inside) for i, x in enumerate(deque.__iter__(value)))
    return Verdict(tuple(notes), inner, boxed=True, stored_as=_stored(type(value)))


def _datetime(path: Path, value: datetime, place: Place) -> Verdict:  # noqa: ARG001
    zone = value.tzinfo
    if type(zone) is timezone and timedelta() < abs(zone.utcoffset(None)) < timedelta(seconds=1):
        return _noted("LGS305", path, back="UTC")
    if zone is not None and type(zone) is not timezone:
        back = "a fixed offset" if is_trusted(module_of(type(zone))) else "what its code says"
        return _noted("LGS305", path, back=back)
    return _noted("LGS305", path, back="fold=0") if value.fold else FINE


def _time(path: Path, value: time, place: Place) -> Verdict:
    zone = value.tzinfo
    inner = () if zone is None else ((path.attribute("tzinfo"), zone, place.inside(time)),)
    return Verdict(inner=inner, boxed=True)


def _zone(path: Path, value: ZoneInfo, place: Place) -> Verdict:  # noqa: ARG001
    if value.key is None:
        return _noted("LGS227", path, was="a ZoneInfo from a file", became="None")
    return Verdict(stored_as=("zoneinfo", "ZoneInfo"))


def _file_path(path: Path, value: PurePath, place: Place) -> Verdict:
    bad = [at for part in value.parts if (at := inline_surrogate(part)) is not None]
    return _noted("LGS221", path, at=bad[0]) if bad else _str(path, "", place)


def _pattern(path: Path, value: re.Pattern[Any], place: Place) -> Verdict:
    if type(value.pattern) is str:
        return _str(path, value.pattern, place)
    return (
        FINE
        if type(value.pattern) is bytes
        else _noted("LGS227", path, was="re.Pattern", became="another re.Pattern")
    )


_EXACT: dict[type, Callable[..., Verdict]] = {
    **dict.fromkeys(
        (type(None), bool, float, bytes, UUID, Decimal, date, timedelta, timezone), _fine
    ),
    **dict.fromkeys(
        (IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network), _fine
    ),
    **dict.fromkeys((PosixPath, WindowsPath), _file_path),
    int: _int,
    str: _str,
    bytearray: _bytes_like,
    memoryview: _bytes_like,
    list: _list,
    tuple: _tuple,
    dict: _dict,
    set: _members,
    frozenset: _members,
    deque: _deque,
    datetime: _datetime,
    time: _time,
    ZoneInfo: _zone,
    re.Pattern: _pattern,
}

_NATIVE: tuple[tuple[type, Callable[..., Verdict]], ...] = (
    (str, _native(str, "LGS303", _str)),
    (int, _native(int, "LGS303", _int)),
    (list, _native(list, "LGS218", _list)),
    (dict, _native(dict, "LGS218", _dict)),
)


def _class(path: Path, value: Any, place: Place) -> Verdict:
    """A class itself; a dataclass is taken for an instance of it."""
    fields = in_class(value, "__dataclass_fields__")
    if type(fields) is not dict or inherits(value, "pydantic", "BaseModel"):
        return _raised(path, value, place)
    names = class_dict_of_bases(value)
    if any(n not in names or inspect.ismemberdescriptor(in_class(value, n)) for n in fields):
        return _raised(path, value, place)
    return _noted("LGS220", path, type=spelled(value))


# In the order in which the serializer asks for them.
_DUCKS = "model_dump", "get_secret_value", "dict", "_asdict"


def _object(path: Path, value: Any, place: Place) -> Verdict:
    """An object of some other class, in the serializer's order."""
    kind = type(value)
    for matches, judged in _ORDER:
        if matches(kind, value):
            return judged(path, value, place)
    return _raised(path, value, place)


def _duck(kind: type, value: object) -> str | None:
    """The attribute that makes the serializer take it for something else."""
    held = attributes(value)
    return next((name for name in _DUCKS if _answers(kind, held, name)), None)


def _answers(kind: type, held: dict[str, Any], name: str) -> bool:
    """Whether an attribute is there and callable, or decided by code of the class."""
    found = held.get(name, _ABSENT)
    in_kind = in_class(kind, name)
    if found is not _ABSENT and not hasattr(type(in_kind), "__set__"):
        return in_class(type(found), "__call__") is not None
    if in_kind is None or inspect.ismemberdescriptor(in_kind):
        return found is not _ABSENT and in_class(type(found), "__call__") is not None
    return in_class(type(in_kind), "__call__") is not None or hasattr(type(in_kind), "__get__")


_ABSENT = object()


def _dynamic(kind: type) -> str | None:
    """Code that answers for attributes that are not there, or not as they seem."""
    return own_code(kind, "__getattr__", "__getattribute__", "__class__")


def _is_mock(kind: type, value: object) -> bool:  # noqa: ARG001
    return inherits(kind, "unittest.mock", "NonCallableMock")


def _is_pandas(kind: type, value: object) -> bool:  # noqa: ARG001
    return inherits(kind, "pandas", "NDFrame", "Index")


def _is_namedtuple(kind: type, value: object) -> bool:  # noqa: ARG001
    return tuple in mro_of(kind) and type(in_class(kind, "_fields")) is tuple


def _is_duck(kind: type, value: object) -> bool:
    return not _is_namedtuple(kind, value) and _duck(kind, value) is not None


def _ducked(path: Path, value: Any, place: Place) -> Verdict:
    kind = type(value)
    if place.dumped and type(in_class(kind, "__dataclass_fields__")) is dict:
        return _dataclass(path, value, place)  # pydantic has made a dict of it
    if inherits(kind, "pydantic.v1", "BaseModel"):
        return _coded(path, kind, "pydantic v1")
    name = _duck(kind, value) or ""
    if rebuild_doubt(kind, in_class(kind, name), attributes(value)) == "unknown":
        return _coded(path, kind, name)
    return _noted("LGS210", path, type=spelled(kind), attribute=f"{name}()")


def _coded(path: Path, kind: type, code: str) -> Verdict:
    notes: tuple[Note, ...] = tuple(_named(path, kind, "raw values"))
    note: Note = ("LGS404", path, {"type": spelled(kind), "code": code})
    return Verdict((*notes, note), stored_as=_stored(kind))


def _model(path: Path, value: Any, place: Place) -> Verdict:
    kind = type(value)
    notes: tuple[Note, ...] = ()
    if inherits(kind, "langchain_core", "Runnable", "PromptValue"):
        notes = (("LGS311", path, {"type": spelled(kind)}),)
    if not place.dumped:
        return Verdict(notes, model=True, stored_as=_stored(kind))
    inner = stored_fields(value, plan_of(kind))
    return Verdict(notes, tuple((path.attribute(name), x, place) for name, x in inner))


def _secret(path: Path, value: Any, place: Place) -> Verdict:
    kind = type(value)
    notes: list[Note] = [
        ("LGS310", path, {"type": spelled(kind)}),
        *_named(path, kind, "plain text"),
    ]
    held = own_attributes(value).get("_secret_value")
    inner = ((path, held, place.inside(kind)),)
    return Verdict(tuple(notes), inner, boxed=True, stored_as=_stored(kind))


def _namedtuple(path: Path, value: Any, place: Place) -> Verdict:
    kind = type(value)
    notes = [*_named(path, kind, "a dict")]
    code = own_code(kind, "__new__", "__init__", "_asdict", "__iter__", "__getattribute__")
    if code:
        notes.append(("LGS404", path, {"type": spelled(kind), "code": code}))
    notes += undeclared(path, value, ())
    fields = zip(in_class(kind, "_fields"), tuple.__iter__(value), strict=False)
    inside = place.inside(kind)
    if place.dumped:
        notes.append(("LGS301", path, {}))
    inner = tuple((path.attribute(name), x, inside) for name, x in fields)
    return Verdict(tuple(notes), inner, boxed=not place.dumped, stored_as=_stored(kind))


def _enum(path: Path, value: Any, place: Place) -> Verdict:
    kind = type(value)
    member = own_attributes(value).get("_value_")
    notes = [*_named(path, kind, f"{type(member).__name__}")]
    if _has_own_value(kind):
        notes.append(("LGS404", path, {"type": spelled(kind), "code": "value"}))
        return Verdict(tuple(notes), boxed=True, stored_as=_stored(kind))
    within = _Within(path.attribute("value"), member)
    trouble = _not_found(path, kind, within)
    inner = () if within.notes else ((path.attribute("value"), member, place.inside(kind)),)
    return Verdict((*notes, *trouble), inner, boxed=True, stored_as=_stored(kind))


def _has_own_value(kind: type) -> bool:
    """Whether code of the class says what the value of a member is."""
    overridden = in_class(kind, "value") is not class_dict(Enum).get("value")
    return overridden or not issubclass(EnumMeta, type(kind)) or bool(own_code(kind, "__getattr__"))


def member_notes(path: Path, kind: type, member: object) -> tuple[Note, ...]:
    """What is wrong with the value of an Enum member, which is looked for among all of the class.

    Args:
        path: where the member is.
        kind: its class.
        member: its value.
    """
    return _not_found(path, kind, _Within(path.attribute("value"), member))


# More than so much in the value of a member is not looked at.
_MANY = 10_000


class _Within:
    """All that is in the value of a member, and about it.

    Attributes:
        value: the value.
        notes: about it and what is in it; that something is not equal to itself, too.
        is_known: whether no code of anybody's is in it.
    """

    def __init__(self, path: Path, value: Any) -> None:
        self.value = value
        self.notes: list[Note] = []
        self.is_known = True
        steps = [(path, value, Place("a member"))]
        for _ in range(_MANY):
            if not steps:
                return
            steps += self._look(*steps.pop())
        self.notes.append(("LGS404", path, {"type": spelled(type(value)), "code": "its size"}))
        self.is_known = False

    def _look(self, path: Path, value: Any, place: Place) -> tuple[tuple[Path, Any, Place], ...]:
        kind, verdict = type(value), judge(path, value, place)
        self.is_known = self.is_known and all(map(_is_inert, mro_of(kind)))
        self.notes += verdict.findings
        is_nan = (kind is float and isnan(value)) or (kind is Decimal and value.is_nan())
        if is_nan:
            self.notes.append(("LGS227", path, {"was": "nan", "became": "another nan"}))
        if verdict.model and (not is_simple(value, plan_of(kind)) or name_problem(kind)):
            self.notes.append(("LGS404", path, {"type": spelled(kind), "code": "its validation"}))
        return verdict.inner


def _not_found(path: Path, kind: type, within: _Within) -> tuple[Note, ...]:
    raising = [note for note in within.notes if RULES[note[0]].severity is Severity.ERROR]
    if raising:
        return tuple(raising)
    if not within.notes or _is_found(within):
        return ()
    own = own_code(kind, "_missing_")
    if own or {"LGS404"} == {rule for rule, _, _ in within.notes}:
        return (("LGS404", path, {"type": spelled(kind), "code": own or "its value"}),)
    return (("LGS222", path, {"type": spelled(kind)}),)


def _is_found(within: _Within) -> bool:
    """Whether what comes back of a value finds it: as a key, or by being equal to it."""
    value = within.value
    if not within.is_known:
        return False
    serializer = JsonPlusSerializer(allowed_msgpack_modules=True)
    became = serializer.loads_typed(serializer.dumps_typed([value]))[0]
    return bool(value == became) and (_is_key(value) or not _is_key(became))


def _is_inert(kind: type) -> bool:
    """Whether no code in a class is anybody's; what only gives a name to its base has none."""
    return is_trusted(module_of(kind)) or class_dict(kind).keys() <= _INERT


def _is_key(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _send(path: Path, value: Any, place: Place) -> Verdict:
    inside = place.inside(type(value))
    held = attributes(value)
    inner = tuple((path.attribute(name), held[name], inside) for name in held)
    return Verdict((), inner, boxed=True, stored_as=_stored(type(value)))


def _is_send_like(kind: type, value: object) -> bool:
    names = {*class_dict_of_bases(kind), *own_attributes(value)}
    # The protocol wants a `__hash__`, too, which a dataclass has only if it is frozen.
    return {"node", "arg"} <= names and in_class(kind, "__hash__") is not None


def _send_like(path: Path, value: Any, place: Place) -> Verdict:
    kind = type(value)
    fields = in_class(kind, "__dataclass_fields__")
    if type(fields) is dict and list(fields)[:2] == ["node", "arg"]:
        held = attributes(value)
        rest = list(fields)[2:]
        if all(n in held and _same(held[n], fields[n].default) for n in rest):
            return _dataclass(path, value, place)
    return _noted("LGS210", path, type=spelled(kind), attribute="node and arg")


def _dataclass(path: Path, value: Any, place: Place) -> Verdict:
    kind = type(value)
    fields = in_class(kind, "__dataclass_fields__")
    if is_dataclass(kind) and not place.dumped:
        return Verdict(model=True, stored_as=_stored(kind))
    held = attributes(value)
    notes = [*_named(path, kind, "a dict")]
    if not place.dumped:
        notes += constructor(path, kind, fields)
        kept = {n for n, f in fields.items() if f._field_type is not CLASS_VAR}
        notes += undeclared(path, value, kept)
    inside = place.inside(kind)
    real = [n for n, f in fields.items() if getattr(f, "_field_type", None) is not INIT_VAR]
    real = [n for n in real if fields[n]._field_type is not CLASS_VAR]
    missing = [n for n in real if n not in held]
    notes += [unset(path, kind, name) for name in missing]
    inner = tuple((path.attribute(n), held[n], inside) for n in real if n in held)
    return Verdict(tuple(notes), inner, boxed=not place.dumped, stored_as=_stored(kind))


def _same(value: object, default: object) -> bool:
    return next(differences(default, value, ROOT), None) is None


def _item(path: Path, value: Any, place: Place) -> Verdict:
    if name_of(type(value)) != "Item":
        return _coded(path, type(value), "its slots")
    inside = place.inside(type(value))
    held = attributes(value)
    inner = tuple((path.attribute(n), x, inside) for n, x in held.items() if n != "namespace")
    return Verdict((), inner, boxed=True, stored_as=_stored(type(value)))


def _array(path: Path, value: Any, place: Place) -> Verdict:
    kind, dtype = type(value), value.dtype
    if name_of(kind) != "ndarray":
        what = "mask" if name_of(kind) == "MaskedArray" else "class"
        return _noted("LGS209", path, type=spelled(kind), what=what)
    if dtype.kind == "O":
        return _noted("LGS208", path)
    if dtype.kind == "V":
        return _noted("LGS209", path, type=spelled(kind), what="field names")
    if (dtype.kind in "mM" and value.flags.c_contiguous) or dtype.kind not in "biufcSUmM":
        return _raised(path, value, place)
    return _noted("LGS308", path)


def _exception(path: Path, value: Any, place: Place) -> Verdict:  # noqa: ARG001
    return _noted("LGS219", path, type=spelled(type(value)))


def _subclass_of(
    base: type, rule: str, back: str
) -> tuple[Callable[..., bool], Callable[..., Verdict]]:
    def matches(kind: type, value: object) -> bool:  # noqa: ARG001
        return base in mro_of(kind)

    def judged(path: Path, value: Any, place: Place) -> Verdict:
        return _derived(path, value, place, base, rule, back)

    return matches, judged


def _derived(path: Path, value: Any, place: Place, base: type, rule: str, back: str, /) -> Verdict:  # noqa: PLR0917
    """A subclass of a type that has an encoding: it is rebuilt by its own constructor."""
    kind = type(value)
    if base is datetime or module_of(kind).partition(".")[0] in ("pandas", "pendulum"):
        return _noted(rule or "LGS306", path, type=spelled(kind), back="str")
    if base in (set, frozenset, deque):
        verdict = (_deque if base is deque else _members)(path, value, place)
    else:
        verdict = Verdict(tuple(_named(path, kind, back)), stored_as=_stored(kind))
    notes = [*verdict.findings, *undeclared(path, value, _BASE_SLOTS)]
    # Anything of its own may run when it is made anew, or answer when it is asked.
    own = next(
        (
            n
            for b in mro_of(kind)
            if not is_trusted(module_of(b))
            for n in class_dict(b)
            if n not in _INERT
        ),
        None,
    )
    if own:
        notes.append(("LGS404", path, {"type": spelled(kind), "code": own}))
    return verdict._replace(findings=tuple(notes))


_INERT = {"__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__slots__",
          "__annotations__", "__firstlineno__", "__static_attributes__", "__orig_bases__",
          "__parameters__"}  # fmt: skip
# What the standard library's own classes hold, cached parts of paths among it.
_BASE_SLOTS = {
    "int", "is_safe", "_ip", "_scope_id", "network", "network_address", "netmask", "_prefixlen",
    "hostmask", "_raw_paths", "_drv", "_root", "_tail_cached", "_str", "_parts", "_hash", "_cparts",
    "_lines_cached", "_cached_cparts", "_str_normcase_cached", "_parts_normcase_cached", "_tail",
}  # fmt: skip


def _has_codec(kind: type) -> bool:
    """Whether there is an encoding for it, if no attribute says otherwise."""
    return type(in_class(kind, "__dataclass_fields__")) is dict or Enum in mro_of(kind)


def _is_packed(kind: type, value: object) -> bool:  # noqa: ARG001
    return kind in (ormsgpack.Ext, ormsgpack.Fragment)


def _packed(path: Path, value: Any, place: Place) -> Verdict:  # noqa: ARG001
    return _noted("LGS227", path, was=f"ormsgpack.{type(value).__name__}", became="what is in it")


def _is_opaque(kind: type, value: object) -> bool:  # noqa: ARG001
    """It answers for any attribute, and has no encoding if none of the answers is one."""
    return _dynamic(kind) is not None and not _has_codec(kind)


def _raised_later(path: Path, value: Any, place: Place) -> Verdict:
    return _raised(path, value, place)


_ORDER: tuple[tuple[Callable[..., bool], Callable[..., Verdict]], ...] = (
    (_is_mock, _raised_later),
    (_is_packed, _packed),
    (lambda kind, _: inherits(kind, "langgraph.checkpoint.serde.types", "_DeltaSnapshot"), _send),
    (lambda kind, _: inherits(kind, "pydantic.main", "BaseModel"), _model),
    (lambda kind, _: inherits(kind, "pydantic.types", "_SecretBase", "SecretStr"), _secret),
    (lambda kind, _: inherits(kind, "langgraph.store.base", "Item"), _item),
    (_is_pandas, _raised_later),
    (_is_duck, _ducked),
    (_is_namedtuple, _namedtuple),
    (_is_opaque, _raised_later),
    _subclass_of(FilePath, "", "a list"),
    _subclass_of(UUID, "", "str"),
    _subclass_of(Decimal, "", "str"),
    _subclass_of(set, "", "list"),
    _subclass_of(frozenset, "", "list"),
    _subclass_of(deque, "", "list"),
    *(_subclass_of(ip, "", "str") for ip in (IPv4Address, IPv4Network, IPv6Address, IPv6Network)),
    _subclass_of(datetime, "LGS306", "str"),
    _subclass_of(timedelta, "", "list"),
    _subclass_of(date, "", "list"),
    _subclass_of(time, "", "dict"),
    _subclass_of(ZoneInfo, "", "str"),
    (lambda kind, _: Enum in mro_of(kind), _enum),
    (lambda kind, _: inherits(kind, "langgraph.types", "Send"), _send),
    (_is_send_like, _send_like),
    (lambda kind, _: type(in_class(kind, "__dataclass_fields__")) is dict, _dataclass),
    (lambda kind, _: inherits(kind, "numpy", "ndarray"), _array),
    (lambda kind, _: BaseException in mro_of(kind), _exception),
)


def _named(path: Path, kind: type, back: str) -> list[Note]:
    """What is wrong with the name of a class, if anything is."""
    if is_trusted(module_of(kind)):
        return []
    problem = lookup_problem(kind, back)
    return [(problem.rule, path, dict(problem.fields))] if problem else []


def _stored(kind: type) -> tuple[str, str]:
    return module_of(kind), name_of(kind)


def _raised(path: Path, value: Any, place: Place) -> Verdict:
    """It has no encoding: which rule says so best."""
    kind = type(value)
    name = spelled(value) if type in mro_of(kind) else spelled(kind)
    if place.outer:
        return _noted("LGS102", path, type=name, outer=place.outer)
    return _noted(_rule_of(kind), path, type=name)


def _rule_of(kind: type) -> str:  # noqa: PLR0911
    top = module_of(kind).partition(".")[0]
    if inherits(kind, "numpy", "generic", "dtype", "Generator", "ndarray") or top == "numpy":
        return "LGS106"
    if top == "pandas":
        return "LGS107"
    mro = mro_of(kind)
    if any(base in mro for base in (PurePath, Fraction, complex, range)):
        return "LGS110"
    if top in ("pydantic", "pydantic_core", "uuid_utils"):
        return "LGS110"
    if kind is SimpleNamespace:
        return "LGS109"
    live = {"close", "aclose", "__enter__", "__aenter__", "__next__", "__await__", "__call__"}
    if top in sys.stdlib_module_names - {"__main__"} or live & class_dict_of_bases(kind):
        return "LGS101"
    return "LGS101" if inherits(kind, "langchain_core", "Runnable") else "LGS109"


__all__ = ["FINE", "Place", "Verdict", "judge", "member_notes", "tzinfo"]
