"""What the serializer does with a type: the static half of the rules.

A type is judged by looking at it. No user code runs beyond what its import has run already.
"""

import collections
import collections.abc
import dataclasses
import datetime as dt
import decimal
import enum
import inspect
import ipaddress
import pathlib
import re
import sys
import types
import typing
import uuid
import zoneinfo
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal, TypeVar, get_args, get_origin

import typing_extensions
from pydantic import SecretBytes, SecretStr

from lghard.state import core_schema as models
from lghard.state.annotations import (
    ALIASES,
    LITERALS,
    QUALIFIERS,
    UNIONS,
    Unresolved,
    arguments_of,
    fields_of,
    fill,
    members_of,
    open_alias,
    resolve,
    show,
    strip,
    type_name,
)
from lghard.state.class_kinds import (
    has_tuple,
    is_dumped_to_dict,
    is_enum,
    is_from,
    is_message,
    is_named,
    is_namedtuple,
    is_parametrized,
    is_pure_path,
    is_runnable,
    is_users,
    is_v1_model,
    members_or_itself,
    method_of,
    scalar_of,
    subclasses,
    tells_apart,
)
from lghard.state.doubts import rebuild_doubt
from lghard.state.found import Found, Place, found_by
from lghard.state.judging import member_notes
from lghard.state.looking import is_standard, lookup_problem
from lghard.state.objects import ObjectWalk, unresolved
from lghard.state.paths import ROOT
from lghard.state.report import Severity
from lghard.state.rules import RULES
from lghard.state.serializers import SAFE, Name, Serialization
from lghard.state.source import Site
from lghard.state.unions import confusions, typed_dict_fields

Profile = Literal["json"]


# What comes back as it was, whatever is around it.
_SAFE_CLASSES = frozenset(
    {bool, int, float, str, bytes, type(None), uuid.UUID, decimal.Decimal}
    | {dt.date, dt.time, dt.timedelta, dt.timezone, zoneinfo.ZoneInfo}
    | {pathlib.Path, pathlib.PosixPath, pathlib.WindowsPath, re.Pattern}
    | {ipaddress.IPv4Address, ipaddress.IPv4Interface, ipaddress.IPv4Network}
    | {ipaddress.IPv6Address, ipaddress.IPv6Interface, ipaddress.IPv6Network}
)
_JSON_CLASSES = frozenset({bool, int, float, str, type(None), list, dict})
# By-name classes of Python whose subclasses are rebuilt by calling the subclass.
_ADDRESSES = (
    ipaddress.IPv4Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Address,
    ipaddress.IPv6Network,
)
_TIMES = (dt.date, dt.timedelta, dt.time, dt.timezone, zoneinfo.ZoneInfo)
_SETS = (set, frozenset, collections.deque)
_REBUILT = (pathlib.PurePath, uuid.UUID, decimal.Decimal, *_SETS, *_ADDRESSES, *_TIMES)
_SEQUENCES = (
    collections.abc.Sequence,
    collections.abc.MutableSequence,
    collections.abc.Collection,
    collections.abc.Set,
    collections.abc.MutableSet,
    collections.abc.Iterable,
    collections.abc.Container,
    collections.abc.Reversible,
)
_MAPPINGS = (collections.abc.Mapping, collections.abc.MutableMapping)
_DICTS = (collections.defaultdict, collections.OrderedDict, collections.Counter)
_ENUMS = (enum.Enum, enum.Flag, enum.IntEnum, enum.IntFlag, enum.StrEnum)
_NOTHING_KNOWN = (
    object,
    collections.abc.Hashable,
    collections.abc.Sized,
    typing.Protocol,
    typing.Generic,
    *_ENUMS,
)
_LISTLIKE = (list, tuple, set, frozenset, collections.deque, *_SEQUENCES)
_DUCKS = ("model_dump", "get_secret_value", "dict", "_asdict")
_NO_PICKLE = frozenset(
    {"_thread", "threading", "socket", "_socket", "io", "_io", "asyncio", "generator", "coroutine"}
)
_RAISING = frozenset({"LGS101", "LGS102", "LGS104", "LGS106", "LGS107", "LGS109", "LGS110"})
_KEYS = frozenset({str, int, float, bool, bytes, type(None)})
_BECOME_STR = (uuid.UUID, dt.date, dt.time)
_LIMIT = 60


class TypeWalk:
    """Judges types, and remembers which classes are stored by name.

    Args:
        serialization: how values are written and read.
        profile: "json" promises more: plain JSON only.
    """

    def __init__(self, serialization: Serialization, profile: Profile | None = None) -> None:
        self.serialization = serialization
        self.profile = profile
        self.names: dict[Name, type] = {}
        self._seen: dict[tuple[int, Place], tuple[Found, ...]] = {}
        self._kept: list[Any] = []
        self._depth = 0
        self._objects = ObjectWalk(self)

    def judge(self, annotation: Any, place: Place) -> tuple[Found, ...]:
        """What will happen to values of this type at such a place."""
        # By identity: equality and hash of an annotation may be anybody's code.
        key = (id(annotation), place)
        self._kept.append(annotation)
        if key in self._seen:
            return self._seen[key]
        if self._depth > _LIMIT:
            return (found_by("LGS316", annotation="an annotation nested without end"),)
        self._seen[key] = ()  # what a recursive type finds in itself is found already
        self._depth += 1
        try:
            self._seen[key] = tuple(self._guarded(annotation, place))
        finally:
            self._depth -= 1
        return self._seen[key]

    def _guarded(self, annotation: Any, place: Place) -> list[Found]:
        try:
            found = list(self._any(annotation, place))
        except Exception as error:  # a check never crashes: it is a finding
            what = f"{show(annotation)} (which lghard cannot judge: {type(error).__name__})"
            return [found_by("LGS316", Severity.WARNING, annotation=what)]
        return [self._as_pickled(f) for f in found] if self.serialization.pickles else found

    def _as_pickled(self, found: Found) -> Found:
        """With a pickle fallback, what has no encoding is pickled, if it can be."""
        fields = dict(found.fields)
        if found.rule not in _RAISING or found.steps or fields.get("no_pickle"):
            return found
        return replace(found, rule="LGS312", fields=(("type", fields.get("type")),))

    # --- annotations ---

    def _any(  # noqa: PLR0911 - a case for each kind
        self, annotation: Any, place: Place
    ) -> Iterable[Found]:
        origin = get_origin(annotation)
        if isinstance(annotation, Unresolved):
            return [unresolved(annotation, "the schema")]
        if isinstance(annotation, str | typing.ForwardRef):
            return self._text(annotation, place)
        if annotation is None:
            return []
        if annotation is Any or annotation is typing_extensions.Any:
            return [found_by("LGS316", annotation="Any")]
        if isinstance(annotation, ALIASES) or isinstance(origin, ALIASES):
            return self.judge(open_alias(annotation), place)
        if origin in QUALIFIERS:
            return self._qualified(annotation, place)
        if origin in UNIONS:
            return self._union(annotation, place)
        if origin in LITERALS:
            return self._literal(annotation, place)
        if hasattr(annotation, "__supertype__"):
            return self.judge(annotation.__supertype__, place)
        if isinstance(annotation, TypeVar):
            return self._variable(annotation, place)
        if annotation in (typing.Never, typing.NoReturn):
            return []
        if annotation is typing.LiteralString or annotation is typing_extensions.LiteralString:
            return self.judge(str, place)
        return self._concrete(annotation, origin, place)

    def _concrete(self, annotation: Any, origin: Any, place: Place) -> Iterable[Found]:
        if self.profile == "json" and (wrong := self._not_json(annotation, origin)):
            return [wrong]
        if origin is not None:
            return self._generic(annotation, origin, place)
        if isinstance(annotation, type):
            return self._class(annotation, annotation, place)
        if callable(annotation) and getattr(annotation, "__module__", None) in (
            "_thread",
            "threading",
        ):
            return [_no_encoder(annotation, place, no_pickle=True)]
        return [found_by("LGS316", annotation=show(annotation))]

    def _not_json(self, annotation: Any, origin: Any) -> Found | None:
        cls = origin or annotation
        fine = cls in _JSON_CLASSES or cls in (Any, object) or typing_extensions.is_typeddict(cls)
        if not fine or (cls is dict and get_args(annotation)[:1] not in ((), (str,), (Any,))):
            return found_by("LGS318", type=show(annotation))
        return None

    def _text(self, annotation: Any, place: Place) -> Iterable[Found]:
        resolved = resolve(annotation, None)
        if isinstance(resolved, str | typing.ForwardRef):
            return [found_by("LGS316", annotation=show(annotation))]
        return self.judge(resolved, place)

    def _qualified(self, annotation: Any, place: Place) -> Iterable[Found]:
        inner, *metadata = get_args(annotation)
        if any(is_named(m, "SkipValidation") for m in metadata):
            place = replace(place, healed=False)
        found = self.judge(inner, place)
        if any(tells_apart(m) for m in metadata):
            found = tuple(f for f in found if not dict(f.fields).get("mistaken"))
        return found

    def _variable(self, annotation: TypeVar, place: Place) -> Iterable[Found]:
        if annotation.__constraints__:
            return self._each(annotation.__constraints__, replace(place, union=True))
        if annotation.__bound__ is not None:
            bound = resolve(annotation.__bound__, sys.modules.get(annotation.__module__ or ""))
            return self.judge(bound, place)
        return [found_by("LGS316", annotation=f"the type variable {annotation.__name__}")]

    def _each(self, annotations: Iterable[Any], place: Place) -> list[Found]:
        return [found for annotation in annotations for found in self.judge(annotation, place)]

    def _literal(self, annotation: Any, place: Place) -> Iterable[Found]:
        kinds = dict.fromkeys(type(value) for value in get_args(annotation))
        return self._each(kinds, place)

    def _union(self, annotation: Any, place: Place) -> Iterable[Found]:
        members = [m for m in members_of(annotation) if strip(m) not in (None, type(None))]
        place = replace(place, union=place.union or len(members) > 1)
        found = self._each(members, place)
        if any(getattr(strip(m), "__name__", "").endswith("MessageChunk") for m in members):
            found = [f for f in found if not dict(f.fields).get("chunks")]
        if place.healed and len(members) > 1:
            found += self._mistaken(members, place)
        return found

    def _mistaken(self, members: list[Any], place: Place) -> Iterator[Found]:
        """Members that cannot be told apart once they are dicts or lists."""
        bare = [strip(m) for m in members]
        origins = [get_origin(m) or m for m in bare]
        lists = [o for o in origins if o in _LISTLIKE or is_namedtuple(o)]
        if len(lists) > 1 and any(isinstance(o, type) and issubclass(o, tuple) for o in lists):
            yield found_by("LGS301")
        if not place.dumped:
            return
        for one, other in confusions(bare):
            yield found_by("LGS206", subclass=show(one), base=show(other), mistaken=True)

    # --- generics ---

    def _generic(  # noqa: PLR0911 - a case for each kind
        self, annotation: Any, origin: Any, place: Place
    ) -> Iterable[Found]:
        args, below = get_args(annotation), place.inside()
        if origin is list:
            return _under("[*]", self._each(args, below))
        if origin is tuple:
            return self._tuple(args, place)
        if origin in (set, frozenset):
            return self._set(origin, args, place)
        if origin is collections.deque:
            return [found_by("LGS304"), *_under("[*]", self._each(args, below))]
        if origin is dict:
            return self._dict(args, below)
        if origin in _DICTS:
            return [*self._own_dict(origin, place), *self._dict(args, below)]
        if origin in _SEQUENCES or origin in _MAPPINGS:
            return self._abstract(annotation, origin, args, place)
        if origin is type:
            return [_class_itself(args[0], place)]
        if origin is re.Pattern:
            return []
        if not isinstance(origin, type):
            return [found_by("LGS316", annotation=show(annotation))]
        return self._class(origin, annotation, place)

    def _tuple(self, args: tuple[Any, ...], place: Place) -> list[Found]:
        found = [] if place.healed else [found_by("LGS301")]
        if args[1:] == (...,):
            return [*found, *_under("[*]", self.judge(args[0], place.inside()))]
        for i, arg in enumerate(args):
            found += _under(f"[{i}]", self.judge(arg, place.inside()))
        return found

    def _set(self, origin: Any, args: tuple[Any, ...], place: Place) -> list[Found]:
        if not args:
            return [found_by("LGS316", annotation=origin.__name__)]
        members = [strip(m) for m in members_or_itself(strip(args[0]))]
        if place.dumped and any(is_dumped_to_dict(m) for m in members):
            return [
                found_by("LGS102", type=f"{origin.__name__}[{show(args[0])}]", outer=place.outer)
            ]
        found = self.judge(args[0], place.inside())
        if not place.healed and any(has_tuple(m) for m in members):
            found = tuple(f for f in found if f.rule != "LGS301" or f.steps)
            return [found_by("LGS217", type=origin.__name__), *_under("[*]", found)]
        return _under("[*]", found)

    def _dict(self, args: tuple[Any, ...], place: Place) -> list[Found]:
        if not args:
            return [found_by("LGS316", annotation="dict")]
        found = list(self._key(args[0], place))
        return found + _under("[*]", self._each(args[1:], place.inside()))

    def _key(self, annotation: Any, place: Place) -> Iterator[Found]:
        """What becomes of the keys of a dict; pydantic makes of a str what it was."""
        bare = strip(annotation)
        if isinstance(bare, TypeVar) and bare.__bound__ is not None:
            bare = strip(bare.__bound__)
        members = list(members_or_itself(bare))
        # A str that may be a key of two types is taken for the one, or the other.
        place = replace(place, healed=place.healed and len(members) == 1)
        for member in map(strip, members):
            yield from self._one_key(member, place)

    def _one_key(self, key: Any, place: Place) -> Iterable[Found]:
        origin = get_origin(key)
        if origin in LITERALS:
            kinds = dict.fromkeys(type(v) for v in get_args(key))
            raw = replace(place, healed=False)
            return [f for kind in kinds for f in self._one_key(kind, raw)]
        if origin is tuple:
            inner = [a for a in get_args(key) if a is not ...]
            return [f for a in inner for f in self._key(a, place)]
        if isinstance(key, Unresolved):
            return [unresolved(key, "the schema")]
        key = origin or key
        if not isinstance(key, type) or key in (Any, object, tuple, collections.abc.Hashable):
            return [found_by("LGS316", annotation=f"the dict key {show(key)}")]
        if key in _KEYS:
            return []
        return self._class_key(key, place)

    def _class_key(self, key: type, place: Place) -> Iterable[Found]:
        heals = place.healed and not issubclass(key, enum.Enum)
        if issubclass(key, enum.Enum):
            back = "its value"
            heals = place.healed and not place.union and not any(self._enum_values(key))
        elif key in _BECOME_STR or issubclass(key, dt.datetime):
            back = "str"
        elif issubclass(key, str | int):
            back = "str" if issubclass(key, str) else "int"
            heals = False
        else:
            return [found_by("LGS104", type=type_name(key))]
        return [] if heals else [found_by("LGS302", type=type_name(key), back=back)]

    def _own_dict(self, origin: type, place: Place) -> list[Found]:
        return [] if place.healed else [found_by("LGS218", type=origin.__name__, base="dict")]

    def _abstract(self, annotation: Any, origin: Any, args: Any, place: Place) -> list[Found]:
        if place.dumped and origin is collections.abc.Iterable:
            return [_no_encoder(annotation, place)]
        note = found_by("LGS316", annotation=show(annotation))
        if origin in _MAPPINGS:
            return [note, *self._dict(args, place.inside())]
        return [note, *_under("[*]", self._each(args, place.inside()))]

    # --- classes ---

    def _class(self, cls: type, annotation: Any, place: Place) -> Iterable[Found]:
        """In the order in which LangGraph's encoder asks."""
        if cls in _SAFE_CLASSES:
            return []
        if (plain := self._plain_class(cls, place)) is not None:
            return plain
        if typing_extensions.is_typeddict(cls):
            return self._typed_dict(cls, annotation, place)
        for judge in (
            self._upstream,
            self._native,
            self._pydantic_type,
            self._modelled,
            self._duck,
        ):
            if (found := judge(cls, annotation, place)) is not None:
                return found
        return self._hooked(cls, annotation, place)

    def _plain_class(  # noqa: PLR0911 - a case for each kind
        self, cls: type, place: Place
    ) -> list[Found] | None:
        """A container without its arguments, and what says nothing."""
        if cls in _NOTHING_KNOWN or getattr(cls, "_is_protocol", False):
            return [found_by("LGS316", annotation=show(cls))]
        note = [found_by("LGS316", annotation=cls.__name__)]
        if cls in (list, dict, set, frozenset, *_MAPPINGS):
            return note
        if cls in _SEQUENCES:
            return [*note, *([_no_encoder(cls, place)] if _lazy(cls, place) else [])]
        if cls is tuple:
            return note if place.healed else [found_by("LGS301"), *note]
        if cls is collections.deque:
            return [found_by("LGS304"), *note]
        if cls in _DICTS:
            return [*self._own_dict(cls, place), *note]
        if cls is dt.datetime:
            return [found_by("LGS305", back="a fixed offset, unless it is UTC or naive")]
        if cls is dt.tzinfo:
            return note
        if cls in (bytearray, memoryview):
            whole = cls is bytearray and place.inline
            return [] if whole else [found_by("LGS303", type=cls.__name__, base="bytes")]
        return None

    def _native(self, cls: type, _: Any, place: Place) -> list[Found] | None:
        """Subclasses of what msgpack knows by itself, which does not ask for a hook."""
        if issubclass(cls, enum.Enum):
            return self._enum(cls, place)
        if issubclass(cls, str | int):
            if place.healed and cls.__module__ == "pydantic.types":
                return []
            base = "str" if issubclass(cls, str) else "int"
            return [found_by("LGS303", type=type_name(cls), base=base)]
        if issubclass(cls, dict | list):
            base = "dict" if issubclass(cls, dict) else "list"
            return [found_by("LGS218", type=type_name(cls), base=base)]
        if issubclass(cls, bytes) and place.inline:
            return [found_by("LGS303", type=type_name(cls), base="bytes")]
        return None

    def _typed_dict(self, cls: type, annotation: Any, place: Place) -> list[Found]:
        found = []
        given = arguments_of(annotation)
        for name, hint in typed_dict_fields(cls).items():
            site = Site(cls, name)
            inner = self.field(fill(hint, given), cls, place.inside())
            found += [f.under(f".{name}", site) for f in inner]
        return found

    def field(self, hint: Any, owner: type, place: Place) -> Iterable[Found]:
        """What will happen to the values of a field of `owner`."""
        if isinstance(hint, Unresolved):
            return [unresolved(hint, type_name(owner))]
        return self.judge(hint, place)

    def _upstream(self, cls: type, _: Any, place: Place) -> list[Found] | None:
        """Classes of LangChain and LangGraph: their own extras are judged by value."""
        if cls.__module__.split(".")[0] not in ("langchain_core", "langgraph"):
            return None
        if is_message(cls) or (cls.__module__, cls.__name__) in SAFE:
            return self._message(cls, place)
        if is_runnable(cls):
            if models.is_model(cls):
                return [found_by("LGS311", type=type_name(cls))]
            return [_no_encoder(cls, place)]
        return None

    def _message(self, cls: type, place: Place) -> list[Found]:
        if cls.__module__ == "langgraph.types":
            return [found_by("LGS316", annotation=f"what a {cls.__name__} carries")]
        if not place.dumped:
            return []
        below = [c for c in subclasses(cls) if not c.__name__.endswith("Chunk")]
        if below:
            sub = f"{below[0].__name__}, say,"
            return [found_by("LGS206", subclass=sub, base=cls.__name__)]
        if subclasses(cls):
            what = f"{cls.__name__}, which its chunks are, too,"
            return [found_by("LGS316", annotation=what, chunks=True)]
        return []

    def _pydantic_type(  # noqa: PLR0911 - a case for each kind
        self, cls: type, annotation: Any, place: Place
    ) -> list[Found] | None:
        """What pydantic brings, and is no model."""
        if not cls.__module__.startswith(("pydantic.", "pydantic_core", "pydantic_extra_types")):
            return None
        if issubclass(cls, SecretStr | SecretBytes) or cls.__name__.split("[")[0] == "Secret":
            return self._secret(cls, annotation, place)
        if cls.__name__ in ("IPvAnyAddress", "IPvAnyInterface", "IPvAnyNetwork"):
            return []  # what pydantic makes of it is of the class that Python has for it
        if cls.__name__ in ("AwareDatetime", "PastDatetime", "FutureDatetime"):
            return self._plain_class(dt.datetime, place) or []
        if cls.__name__ in ("NaiveDatetime", "PastDate", "FutureDate"):
            return []
        if models.is_model(cls):
            return (
                None
                if cls.__name__ not in ("BaseModel", "RootModel")
                else [found_by("LGS316", annotation=cls.__name__)]
            )
        return [found_by("LGS110", type=type_name(cls))]

    def _secret(self, cls: type, annotation: Any, place: Place) -> list[Found]:
        found = self.named(cls, "its value", place)
        if not self.serialization.encrypted:
            found = [found_by("LGS310", type=cls.__name__), *found]
        return [*found, *self._each(get_args(annotation), place.inside())]

    def _modelled(self, cls: type, _: Any, place: Place) -> list[Found] | None:
        if models.is_model(cls):
            return self._objects.model(cls, place)
        if is_v1_model(cls):
            return [
                found_by("LGS404", type=type_name(cls), code="pydantic.v1"),
                *self.named(cls, "a dict", place),
            ]
        return None

    def _duck(self, cls: type, annotation: Any, place: Place) -> list[Found] | None:
        """Classes that the encoder takes for something else because of a method's name."""
        if is_namedtuple(cls):
            return self._namedtuple(cls, annotation, place)
        if place.dumped and dataclasses.is_dataclass(cls):
            return None
        for name in _DUCKS:
            if (method := method_of(cls, name)) is not None:
                return self._encoded_by(cls, name, method)
        return None

    def _encoded_by(self, cls: type, name: str, method: Any) -> list[Found]:
        if rebuild_doubt(cls, method) != "unknown":
            return [found_by("LGS210", type=type_name(cls), attribute=f"{name}()")]
        return [
            found_by("LGS404", type=type_name(cls), code=name),
            *self.named(cls, "a dict", Place()),
        ]

    def _hooked(  # noqa: PLR0911 - a case for each kind
        self, cls: type, annotation: Any, place: Place
    ) -> Iterable[Found]:
        if issubclass(cls, dt.datetime):
            return [found_by("LGS306", type=type_name(cls), back="str")]
        if issubclass(cls, dt.timedelta) and is_from(cls, "pandas"):
            return [found_by("LGS306", type=type_name(cls), back="another duration")]
        if is_pure_path(cls):
            return [found_by("LGS110", type=type_name(cls))]
        if issubclass(cls, _REBUILT):
            return self._rebuilt(cls, place)
        if dataclasses.is_dataclass(cls):
            return self._objects.dataclass(cls, annotation, place)
        if is_from(cls, "numpy"):
            return self._numpy(cls, annotation)
        if is_from(cls, "pandas"):
            return [found_by("LGS107", type=type_name(cls))]
        if issubclass(cls, BaseException):
            return [found_by("LGS219", type=type_name(cls))]
        return [_without_codec(cls, annotation, place)]

    def _rebuilt(self, cls: type, place: Place) -> list[Found]:
        found = self.named(cls, "plain values", place)
        if is_standard(cls.__module__.split(".")[0]):
            return found
        code = next((n for n in ("__new__", "__init__") if n in vars(cls)), None)
        if code is None:
            return found
        return [*found, found_by("LGS404", type=type_name(cls), code=code)]

    def _numpy(  # noqa: PLR0911 - a case for each kind
        self, cls: type, annotation: Any
    ) -> list[Found]:
        numpy = sys.modules["numpy"]
        if not issubclass(cls, numpy.ndarray):
            return [found_by("LGS106", type=f"numpy.{cls.__name__}")]
        if cls is not numpy.ndarray:
            what = "mask" if "ask" in cls.__name__ else "class"
            return [found_by("LGS209", type=f"numpy.{cls.__name__}", what=what)]
        found = [found_by("LGS308")]
        dtype = scalar_of(annotation)
        if dtype is None:
            return [*found, found_by("LGS316", annotation="an array whose dtype is not declared")]
        if issubclass(dtype, numpy.object_):
            return [*found, found_by("LGS208")]
        if issubclass(dtype, numpy.void):
            return [*found, found_by("LGS209", type="a structured array", what="dtype")]
        if issubclass(dtype, numpy.datetime64 | numpy.timedelta64):
            return [*found, found_by("LGS106", type=f"an array of {dtype.__name__}")]
        return found

    # --- what is stored by the name of its class ---

    def named(self, cls: type, back: str, place: Place) -> list[Found]:
        """Whether the class is found again, and whether strict mode rebuilds it."""
        name = (str(cls.__module__), cls.__name__)
        lost = lookup_problem(cls, back)
        heals = place.healed and not place.union
        if lost is not None:
            said = Found(lost.rule, tuple(lost.fields.items()), sites=(Site(cls),))
            return [said] if lost.rule == "LGS211" or not heals else []
        self._remember(cls)
        if not self.serialization.blocks(name) or heals:
            return []
        rule = "LGS314" if self.serialization.strict else "LGS315"
        return [found_by(rule, annotation=place.shape or show(cls), types=type_name(cls))]

    def kin(self, cls: type, place: Place) -> Iterator[Found]:
        """A value may be of a subclass, which is stored as such; one that is lost is told."""
        for each in subclasses(cls)[:_LIMIT]:
            if is_enum(each) or is_parametrized(each):
                continue
            found = self.judge(each, place)
            if any((f.severity or RULES[f.rule].severity) >= Severity.WARNING for f in found):
                what = f"{type_name(cls)}, whose subclass {type_name(each)} changes on its way,"
                yield found_by("LGS316", annotation=what)
                return

    def _remember(self, cls: type) -> None:
        for each in (cls, *subclasses(cls)):
            name = (str(each.__module__), each.__name__)
            if name not in SAFE and lookup_problem(each, "") is None:
                self.names.setdefault(name, each)

    def _enum(self, cls: type[enum.Enum], place: Place) -> list[Found]:
        ducks = [n for n in _DUCKS if method_of(cls, n) is not None]
        found = [found_by("LGS210", type=type_name(cls), attribute=f"{n}()") for n in ducks[:1]]
        found += self._enum_values(cls)
        if issubclass(cls, _REBUILT):  # the encoder asks for these first
            found.append(found_by("LGS222", type=type_name(cls)))
        if place.inline and issubclass(cls, bytes):
            found.append(found_by("LGS303", type=type_name(cls), base="bytes"))
        mixed = issubclass(cls, str | int | float)
        if place.inline and mixed and self.serialization.postgres:
            base = next(b.__name__ for b in (str, int, float) if issubclass(cls, b))
            found.append(found_by("LGS307", type=type_name(cls), back=base))
        return found + self.named(cls, "its value", place)

    def _enum_values(self, cls: type[enum.Enum]) -> list[Found]:
        if any("value" in vars(base) for base in cls.__mro__ if base.__module__ != "enum"):
            return [found_by("LGS404", type=type_name(cls), code="value")]
        if not cls.__members__:
            return [found_by("LGS316", annotation=f"{type_name(cls)}, which has no members,")]
        notes = [
            note for m in cls.__members__.values() for note in member_notes(ROOT, cls, m._value_)
        ]
        found = [
            found_by(rule, **fields).under("" if path is ROOT else ".value")
            for rule, path, fields in notes
        ]
        return list({(each.rule, each.steps): each for each in found}.values())

    def _namedtuple(self, cls: type, annotation: Any, place: Place) -> list[Found]:
        named = [] if place.dumped else self.named(cls, "a dict", place)
        for method in ("__new__", "_asdict"):
            if is_users(cls, method):
                named.append(found_by("LGS404", type=type_name(cls), code=method))
        inner = place.inside() if place.dumped else place.unvalidated(type_name(cls))
        hints, given = fields_of(cls), arguments_of(annotation)
        for name in cls._fields:  # type: ignore[attr-defined]
            hint = fill(hints.get(name, Any), given)
            found = self.field(hint, cls, inner)
            named += [f.under(f".{name}", Site(cls, name)) for f in found]
        return named


# --- small questions ---


def _under(step: str, found: Iterable[Found]) -> list[Found]:
    return [each.under(step) for each in found]


def _no_encoder(cls: Any, place: Place, *, no_pickle: bool = False) -> Found:
    if place.outer:
        return found_by("LGS102", type=show(cls), outer=place.outer, no_pickle=no_pickle)
    return found_by("LGS101", type=show(cls), no_pickle=no_pickle)


def _class_itself(cls: Any, place: Place) -> Found:
    """`type[Plan]`: a dataclass is stored as its defaults, any other class cannot be."""
    if dataclasses.is_dataclass(cls) and isinstance(cls, type) and not place.dumped:
        return found_by("LGS220", type=type_name(cls))
    return _no_encoder(f"type[{show(cls)}]", place)


def _without_codec(cls: type, annotation: Any, place: Place) -> Found:
    name = type_name(cls)
    if is_pure_path(cls) or name in ("complex", "range", "fractions.Fraction", "slice"):
        if place.dumped and name == "fractions.Fraction":
            return found_by("LGS316", annotation="Fraction, which pydantic writes as a str,")
        return found_by("LGS110", type=name)
    stdlib = is_standard(cls.__module__.split(".")[0])
    if inspect.isabstract(cls) and not stdlib:
        return found_by("LGS316", annotation=f"the abstract class {name}")
    if stdlib or cls is type:
        known = cls.__module__.split(".")[0] in _NO_PICKLE or cls.__name__ in _NO_PICKLE
        known = known or cls in (
            types.ModuleType,
            collections.abc.Generator,
            collections.abc.Coroutine,
        )
        return _no_encoder(annotation, place, no_pickle=known)
    return found_by("LGS109", type=name)


def _lazy(cls: type, place: Place) -> bool:
    return place.dumped and cls is collections.abc.Iterable
