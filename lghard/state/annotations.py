"""What an annotation means: names looked up, aliases opened, type variables filled in."""

import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Final, TypeVar, get_args, get_origin

import typing_extensions

QUALIFIERS = frozenset(
    {
        Annotated,
        Final,
        typing_extensions.Required,
        typing_extensions.NotRequired,
        typing_extensions.ReadOnly,
        *(getattr(typing, name) for name in ("ReadOnly",) if hasattr(typing, name)),
    }
)
"""What stands around a type without changing what is stored; their first argument is the type."""

ALIASES = tuple(
    {
        typing_extensions.TypeAliasType,
        getattr(typing, "TypeAliasType", typing_extensions.TypeAliasType),
    }
)
UNIONS = frozenset({typing.Union, types.UnionType})
LITERALS = frozenset({typing.Literal, typing_extensions.Literal})

Arguments = Mapping[Any, Any]


@dataclasses.dataclass(frozen=True)
class Unresolved:
    """An annotation that cannot be evaluated.

    Attributes:
        name: what is missing, or the whole annotation where that is not known.
        error: what Python says.
    """

    name: str
    error: str


def fields_of(cls: type) -> dict[str, Any]:
    """What a class annotates, its bases first, names looked up and type variables filled in."""
    found: dict[str, Any] = {}
    filled = arguments_of(cls)
    for owner in reversed(cls.__mro__):
        for name, annotation in _own_annotations(owner).items():
            resolved = resolve(annotation, owner)
            if get_origin(resolved) is not ClassVar and resolved is not ClassVar:
                found[name] = fill(resolved, filled)
    return found


def _own_annotations(cls: type) -> Mapping[str, Any]:
    own = vars(cls).get("__annotations__", {})
    return own if isinstance(own, Mapping) else {}


def resolve(annotation: object, owner: object) -> Any:
    """The annotation with all names in it looked up where `owner`, a class or function, stands.

    Returns:
        Unresolved, where that fails.
    """
    module = owner if inspect.ismodule(owner) else sys.modules.get(str(_module_of(owner)))
    # A copy: where globals are the locals, pydantic takes the caller for a module's top level, and
    # registers generics in it that no other process will find.
    names = {**(vars(module) if module else {}), **getattr(owner, "__globals__", {})}
    names |= {t.__name__: t for t in getattr(owner, "__type_params__", ())}
    # As Python does it: names of the module go before those of the class.
    inner = {owner.__name__: owner, **vars(owner)} if isinstance(owner, type) else {}
    holder = type("_", (), {"__annotations__": {"it": annotation}, "__module__": __name__})
    try:
        return typing_extensions.get_type_hints(holder, inner, names, include_extras=True)["it"]
    except NameError as error:
        return Unresolved(error.name or str(annotation), str(error))
    except Exception as error:  # an annotation is code, and may raise anything
        return Unresolved(str(annotation), f"{type(error).__name__}: {error}")


def _module_of(owner: object) -> object:
    return getattr(owner, "__module__", None)


def return_of(function: object) -> Any:
    """What a function is annotated to return; None is `NoneType`, and MISSING is no annotation."""
    annotations = getattr(function, "__annotations__", None)
    if not isinstance(annotations, Mapping) or "return" not in annotations:
        return MISSING
    return resolve(annotations["return"], function)


MISSING = Unresolved("", "no annotation")


def arguments_of(cls: Any) -> Arguments:
    """Which types stand for the type variables of a class, `Box[int]`, and of its bases."""
    origin = get_origin(cls)
    if origin is None:
        return _inherited_arguments(cls)
    parameters = getattr(origin, "__parameters__", ()) or getattr(origin, "__type_params__", ())
    own = dict(zip(parameters, get_args(cls), strict=False))
    return {**{k: fill(v, own) for k, v in _inherited_arguments(origin).items()}, **own}


def _inherited_arguments(cls: Any) -> Arguments:
    found: dict[Any, Any] = {}
    for base in getattr(cls, "__orig_bases__", ()):
        if get_origin(base) not in (None, typing.Generic, typing.Protocol):
            found |= arguments_of(base)
    return found


def fill(annotation: Any, arguments: Arguments) -> Any:
    """The annotation with its type variables replaced, where it is known by what."""
    if not arguments:
        return annotation
    if isinstance(annotation, TypeVar):
        return arguments.get(annotation, annotation)
    parameters = getattr(annotation, "__parameters__", ())
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation
    if not isinstance(parameters, tuple) or not any(p in arguments for p in parameters):
        return annotation
    try:
        return annotation[tuple(arguments.get(p, p) for p in parameters)]
    except TypeError:
        return annotation


def open_alias(annotation: Any) -> Any:
    """What stands behind `type X = ...`; Unresolved, if that names what is not there."""
    origin = get_origin(annotation)
    alias = origin if isinstance(origin, ALIASES) else annotation
    try:
        value = alias.__value__
    except NameError as error:
        return Unresolved(error.name or str(annotation), str(error))
    except Exception as error:  # an annotation is code, and may raise anything
        return Unresolved(str(annotation), f"{type(error).__name__}: {error}")
    filled = dict(zip(alias.__type_params__, get_args(annotation), strict=False))
    module = sys.modules.get(alias.__module__ or "")
    opened = fill(value, filled)
    return resolve(opened, module) if isinstance(opened, str | typing.ForwardRef) else opened


def members_of(annotation: Any) -> Iterator[Any]:
    """The members of a union, unions inside it and their aliases opened."""
    for member in get_args(annotation):
        bare = strip(member)
        if get_origin(bare) in UNIONS:
            yield from members_of(bare)
        else:
            yield member


def strip(annotation: Any) -> Any:
    """The type inside Annotated, Required, NewType and aliases."""
    for _ in range(50):
        origin = get_origin(annotation)
        if origin in QUALIFIERS:
            annotation = get_args(annotation)[0]
        elif isinstance(annotation, ALIASES) or isinstance(origin, ALIASES):
            annotation = open_alias(annotation)
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        else:
            break
    return annotation


def show(annotation: Any) -> str:
    """As it stands in the code, without the names of modules where they say nothing."""
    if annotation is Any:
        return "Any"
    if annotation is None or annotation is type(None):
        return "None"
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return type_name(annotation)
    try:
        return str(annotation).replace("typing.", "").replace("typing_extensions.", "")
    except Exception:  # its repr may raise anything
        return type(annotation).__name__


def type_name(cls: Any) -> str:
    """A class as people call it: `int`, `decimal.Decimal`, `agent.Plan`."""
    module = getattr(cls, "__module__", None)
    name = str(getattr(cls, "__qualname__", None) or getattr(cls, "__name__", None) or cls)
    return name if module in (None, "builtins", "typing") else f"{module}.{name}"
