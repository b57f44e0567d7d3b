"""Whether calling a dataclass with its fields makes the same object again. Runs no code of it."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from lghard.state.compare import attributes
from lghard.state.looking import (
    class_dict_of_bases,
    in_class,
    inherits,
    is_generated,
    is_remembered,
    is_trusted,
    module_of,
    name_of,
    own_code,
    spelled,
)
from lghard.state.paths import Path

Note = tuple[str, Path, Mapping[str, object]]
"""A rule, where, and what its message wants to be told."""

# Private names of dataclasses: its `fields()` leaves both kinds out, the constructor does not.
INIT_VAR: Any = dataclasses._FIELD_INITVAR  # type: ignore[attr-defined]
CLASS_VAR: Any = dataclasses._FIELD_CLASSVAR  # type: ignore[attr-defined]


def constructor(path: Path, kind: type, fields: dict[str, Any]) -> list[Note]:  # noqa: PLR0911
    """Whether calling the class with its fields makes the same object again."""
    if is_trusted(module_of(kind)) and not inherits(kind, "langgraph", "Command"):
        return []
    name = spelled(kind)
    bare = [n for n, f in fields.items() if f._field_type not in (INIT_VAR, CLASS_VAR)]
    variables = [n for n, f in fields.items() if f._field_type is INIT_VAR]
    without = [n for n in bare if not fields[n].init]
    if without:
        return [("LGS214", path, {"type": name, "why": f"{without[0]} has init=False"})]
    needed = [n for n in variables if not _has_default(fields[n])]
    if needed:
        return [("LGS214", path, {"type": name, "why": f"{needed[0]} is an InitVar"})]
    init: Any = in_class(kind, "__init__")
    if "__pydantic_validator__" in class_dict_of_bases(kind):  # a base is pydantic's, it is not
        return [("LGS404", path, {"type": name, "code": "pydantic's validation"})]
    if not is_generated(init):
        return [_own_init(path, name, init, bare)]
    missing = [n for n in bare if n not in init.__code__.co_varnames]
    if missing:
        return [("LGS214", path, {"type": name, "why": f"__init__ does not take {missing[0]}"})]
    code = own_code(kind, "__post_init__", "__new__", "__setattr__", *_DYNAMIC)
    meta = None if is_trusted(module_of(type(kind))) else f"metaclass {name_of(type(kind))}"
    described = next(
        (
            n
            for n in bare
            if hasattr(type(in_class(kind, n)), "__set__")
            and not inspect.ismemberdescriptor(in_class(kind, n))
        ),
        None,
    )
    found = code or meta or described
    return [("LGS404", path, {"type": name, "code": found})] if found else []


def _own_init(path: Path, name: str, init: Any, fields: list[str]) -> Note:
    """A constructor that somebody wrote: whether it can be called with the fields, at least."""
    code = getattr(init, "__code__", None)
    taken = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if code else ()
    anything = code is None or code.co_flags & inspect.CO_VARKEYWORDS
    missing = [field for field in fields if field not in taken]
    if missing and not anything:
        return "LGS214", path, {"type": name, "why": f"__init__ does not take {missing[0]}"}
    return "LGS404", path, {"type": name, "code": "__init__"}


_DYNAMIC = ("__getattr__", "__getattribute__", "__class__")


def _has_default(field: Any) -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def unset(path: Path, kind: type, name: str) -> Note:
    """A field that its instance does not hold: a default of the class, a property, or nothing."""
    found = in_class(kind, name)
    place = path.attribute(name)
    if type(found) in (str, int, float, bool, type(None)) and name in class_dict_of_bases(kind):
        return "LGS404", place, {"type": spelled(kind), "code": name}
    if found is None or inspect.ismemberdescriptor(found):
        return "LGS111", place, {"error": "AttributeError", "type": spelled(kind)}
    return "LGS404", place, {"type": spelled(kind), "code": name}


def undeclared(path: Path, value: Any, fields: Any) -> list[Note]:
    """What an object holds beside its fields."""
    name = spelled(type(value))
    return [
        ("LGS203", path.attribute(n), {"model": name, "attribute": n})
        for n in attributes(value)
        if n not in fields and n not in _CACHED_BY_PYDANTIC
        if not is_remembered(type(value), n)
    ]


_CACHED_BY_PYDANTIC = {"__pydantic_fields_set__", "__pydantic_initialised__"}
