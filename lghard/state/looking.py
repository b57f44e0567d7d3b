"""Looking at a class or an object without running any of its code."""

import os
import sys
import sysconfig
from collections.abc import Iterator
from functools import cached_property
from pathlib import PurePath
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any, NamedTuple

mro_of = type.__dict__["__mro__"].__get__
_dict_of = type.__dict__["__dict__"].__get__
_module_of = type.__dict__["__module__"].__get__
_name_of = type.__dict__["__name__"].__get__
_qualname_of = type.__dict__["__qualname__"].__get__


def class_dict(kind: type) -> MappingProxyType[str, Any]:
    """The attributes of a class itself, even if its metaclass would tell others."""
    found: MappingProxyType[str, Any] = _dict_of(kind)
    return found


def module_of(kind: type) -> str:
    """The module it says it comes from."""
    found = _module_of(kind)
    return found if type(found) is str else "?"


def name_of(kind: type) -> str:
    """Its bare name."""
    found: str = _name_of(kind)
    return found


def spelled(kind: type) -> str:
    """Its name for people: with the module, unless it is a builtin."""
    module = module_of(kind)
    qualname: str = _qualname_of(kind)
    return qualname if module == "builtins" else f"{module}.{qualname}"


def inherits(kind: type, module: str, *names: str) -> bool:
    """Whether a class of one of these names, from this module or package, is among its bases."""
    return any(
        name_of(base) in names and f"{module_of(base)}.".startswith(f"{module}.")
        for base in mro_of(kind)
    )


def class_dict_of_bases(kind: type) -> set[str]:
    """All names that a class and its bases define."""
    return {name for base in mro_of(kind) for name in class_dict(base)}


def in_class(kind: type, name: str) -> Any:
    """What a class, or the first of its bases that has it, has under this name; None if none."""
    for base in mro_of(kind):
        if name in class_dict(base):
            return class_dict(base)[name]
    return None


def own_attributes(value: object) -> dict[str, Any]:
    """Its `__dict__`, even if a class has a property of that name."""
    try:
        found = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return found if type(found) is dict else {}


def is_remembered(kind: type, name: str) -> bool:
    """Whether an attribute only remembers what can be had again: no part of what an object is."""
    return name == "__orig_class__" or type(in_class(kind, name)) is cached_property


def definers(kind: type, *names: str) -> Iterator[tuple[type, str]]:
    """Which of its bases define one of these names themselves."""
    for base in mro_of(kind):
        for name in names:
            if name in class_dict(base):
                yield base, name


_TRUSTED = ("builtins", "pydantic", "pydantic_core", "langchain_core", "langgraph", "typing", "abc")


def is_trusted(module: object) -> bool:
    """Whether code of this module is LangGraph's, pydantic's or Python's, and so known to us."""
    if type(module) is not str:
        return False
    top = module.partition(".")[0]
    return top in _TRUSTED or is_standard(top)


def is_standard(top: str) -> bool:
    """Whether a module is Python's: one of ours may be called `profile` or `queue`, too."""
    if top not in sys.stdlib_module_names or top == "__main__":
        return False
    if top not in _STANDARD:
        file = getattr(sys.modules.get(top), "__file__", None)
        _STANDARD[top] = file is None or _is_pythons(file)
    return _STANDARD[top]


def _is_pythons(file: str) -> bool:
    homes = {PurePath(sysconfig.get_path("stdlib")), PurePath(os.__file__).parent}
    inside = [PurePath(file).relative_to(h) for h in homes if PurePath(file).is_relative_to(h)]
    return any(rest.parts[0] not in ("site-packages", "dist-packages") for rest in inside)


_STANDARD: dict[str, bool] = {}


def own_code(kind: type, *names: str) -> str | None:
    """The first of these methods that a class of somebody else's defines; None if none does."""
    for base, name in definers(kind, *names):
        found = class_dict(base)[name]
        if not is_trusted(module_of(base)) and not is_generated(found) and not _is_library(found):
            return name
    return None


def _is_library(function: object) -> bool:
    return type(function) is FunctionType and is_trusted(function.__module__)


def is_generated(function: object) -> bool:
    """Whether dataclasses or namedtuple wrote it."""
    function = function.__func__ if type(function) is staticmethod else function
    return type(function) is FunctionType and function.__code__.co_filename.startswith("<string>")


class Found(NamedTuple):
    """What another process finds under the name of a class.

    Attributes:
        rule: what is wrong with it.
        fields: for the message of the rule.
    """

    rule: str
    fields: dict[str, str]


def lookup_problem(kind: type, back: str) -> Found | None:
    """What goes wrong when another process looks for a class by its module and name.

    LangGraph looks for `__name__`, not `__qualname__`, in the module.

    Args:
        kind: the class.
        back: what comes back instead of it if it is not found: "a dict".
    """
    module, name = module_of(kind), name_of(kind)
    if module in ("__main__", "__mp_main__"):
        return _only_here(kind, module, back)
    home = sys.modules.get(module)
    found = vars(home).get(name) if isinstance(home, ModuleType) else None
    if found is kind:
        importable = _importable(home)
        return None if importable else _only_here(kind, f"{module}, which is no file", back)
    if found is not None:
        return Found("LGS211", {"type": spelled(kind), "module": module, "name": name})
    function, local, _ = _qualname_of(kind).rpartition(".<locals>")
    if local or home is None:
        return _only_here(kind, function or module, back)
    return Found("LGS212", {"type": spelled(kind), "module": module, "name": name, "back": back})


def _importable(home: object) -> bool:
    spec = vars(home).get("__spec__")
    return spec is not None or vars(home).get("__file__") is not None


def _only_here(kind: type, where: str, back: str) -> Found:
    return Found("LGS213", {"type": spelled(kind), "where": where, "back": back})
