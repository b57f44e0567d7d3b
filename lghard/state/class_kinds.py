"""Small questions about a class or annotation, answered without running any of its code."""

import collections
import dataclasses
import enum
import inspect
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from lghard.state import core_schema as models
from lghard.state.annotations import UNIONS, members_of
from lghard.state.looking import is_standard

_MANY = 1000


def members_or_itself(annotation: Any) -> Iterator[Any]:
    """The members of a union; of any other type, itself."""
    if get_origin(annotation) in UNIONS:
        yield from members_of(annotation)
    else:
        yield annotation


def is_namedtuple(cls: Any) -> bool:
    """A class that namedtuple or NamedTuple made."""
    return isinstance(cls, type) and issubclass(cls, tuple) and hasattr(cls, "_fields")


def has_tuple(annotation: Any) -> bool:
    """A tuple, with or without the types in it."""
    return (get_origin(annotation) or annotation) is tuple


def is_dumped_to_dict(annotation: Any) -> bool:
    """What pydantic dumps to a dict."""
    cls = get_origin(annotation) or annotation
    return models.is_model(cls) or dataclasses.is_dataclass(cls)


def is_from(cls: type, package: str) -> bool:
    """A class of this package, which is loaded."""
    return cls.__module__.split(".")[0] == package and package in sys.modules


def is_pure_path(cls: type) -> bool:
    """A path that is not of this file system."""
    return issubclass(cls, pathlib.PurePath) and not issubclass(cls, pathlib.Path)


def is_named(item: object, name: str) -> bool:
    """Metadata of this name, be it the class or an object of it."""
    return type(item).__name__ == name or getattr(item, "__name__", None) == name


def tells_apart(item: object) -> bool:
    """A discriminator: the members of a union are told apart by what is written in them."""
    return (
        type(item).__name__ == "Discriminator" or getattr(item, "discriminator", None) is not None
    )


def is_v1_model(cls: type) -> bool:
    """A model of pydantic's old version."""
    v1 = sys.modules.get("pydantic.v1.main") or sys.modules.get("pydantic.v1")
    return v1 is not None and issubclass(cls, getattr(v1, "BaseModel", ()))


def is_runnable(cls: type) -> bool:
    """A Runnable of LangChain: a prompt, a model, a graph."""
    base = sys.modules.get("langchain_core.runnables.base")
    return base is not None and issubclass(cls, base.Runnable)


def is_message(cls: type) -> bool:
    """A message of LangChain."""
    base = sys.modules.get("langchain_core.messages.base")
    return base is not None and issubclass(cls, base.BaseMessage)


def is_enum(cls: type) -> bool:
    """An Enum, which may be a dataclass as well."""
    return issubclass(cls, enum.Enum)


def is_parametrized(cls: Any) -> bool:
    """A generic model that was given its types."""
    return getattr(cls, "__pydantic_generic_metadata__", {}).get("origin") is not None


def subclasses(cls: type) -> list[type]:
    """All that are loaded; a class that is only a frame for others has too many to say anything."""
    if cls in (object, dict, list, set, frozenset, str, int, tuple, enum.Enum, BaseModel):
        return []
    found: dict[type, None] = {}
    waiting: list[type] = list(type.__subclasses__(cls))
    while waiting and len(found) < _MANY:
        each = waiting.pop()
        if each not in found:
            found[each] = None
            waiting += type.__subclasses__(each)
    return [each for each in found if each is not cls]


def scalar_of(annotation: Any) -> type | None:
    """The scalar type in `NDArray[...]`."""
    for arg in get_args(annotation)[1:]:
        for scalar in get_args(arg):
            if isinstance(scalar, type) and scalar.__module__ == "numpy":
                return scalar
    return None


def owner(cls: Any, name: str) -> Any:
    """The class in which a field is written."""
    for base in cls.__mro__:
        if name in vars(base).get("__annotations__", {}):
            return base
    return cls


def is_users(cls: type, method: str) -> bool:
    """Whether a method was written by somebody, and not made by dataclasses or namedtuple."""
    for base in cls.__mro__:
        if method in vars(base):
            found = vars(base)[method]
            code: Any = getattr(getattr(found, "__func__", found), "__code__", None)
            if code is None or is_standard(base.__module__.split(".")[0]):
                return False
            return not code.co_filename.startswith("<") and code.co_filename != collections.__file__
    return False


def has_enum_default(cls: Any, name: str) -> bool:
    """A field whose default is a member that pydantic does not convert."""
    field = cls.model_fields.get(name) if models.is_model(cls) else None
    return (
        field is not None
        and isinstance(field.default, enum.Enum)
        and not (field.validate_default or cls.model_config.get("validate_default"))
    )


def method_of(cls: type, name: str) -> Any:
    """A method as the class has it, without running any of its code; None if it has none."""
    found = inspect.getattr_static(cls, name, None)
    found = (
        getattr(found, "__func__", found)
        if isinstance(found, classmethod | staticmethod)
        else found
    )
    return found if callable(found) else None


def accepts(function: Callable[..., object], names: list[str]) -> str | None:
    """Why the call `function(**names)` fails; None if it does not."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return "its __init__ has no signature"
    try:
        signature.bind(**dict.fromkeys(names))
    except TypeError as error:
        return str(error)
    return None
