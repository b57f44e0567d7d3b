"""Dataclasses and pydantic models: the static half of what makes an object anew from its fields."""

import dataclasses
import inspect
import typing
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Protocol

from lghard.state import core_schema as models
from lghard.state.annotations import Unresolved, arguments_of, fields_of, fill, type_name
from lghard.state.class_kinds import (
    accepts,
    has_enum_default,
    is_dumped_to_dict,
    is_enum,
    is_named,
    is_parametrized,
    is_runnable,
    is_users,
    method_of,
    owner,
    subclasses,
)
from lghard.state.doubts import constructor_doubt, unwritten, validator_doubt
from lghard.state.found import Found, Place, found_by
from lghard.state.source import Site


class Walk(Protocol):
    """What judges the types of the fields, and the name of the class."""

    def field(self, hint: Any, owner: type, place: Place) -> Iterable[Found]:
        """What will happen to the values of a field."""

    def named(self, cls: type, back: str, place: Place) -> list[Found]:
        """Whether another process finds the class."""

    def kin(self, cls: type, place: Place) -> Iterator[Found]:
        """What will happen to values of subclasses."""


class ObjectWalk:
    """Judges classes whose objects are stored as their fields.

    Args:
        walk: judges what is in the fields.
    """

    def __init__(self, walk: Walk) -> None:
        self._walk = walk

    # --- dataclasses ---

    def dataclass(self, cls: type, annotation: Any, place: Place) -> list[Found]:
        """Of the standard library, or one that pydantic validates."""
        found = [] if place.dumped else self._walk.named(cls, "a dict", place)
        if place.dumped:
            found += self._subclassed(cls)
        if place.dumped and not place.healed:
            found.append(
                found_by("LGS216", type=place.outer, why=f"{type_name(cls)} came as a dict")
            )
        if not place.dumped and (sent := _taken_for_send(cls)):
            found.append(sent)
        view = models.view_of(cls) if models.is_pydantic_dataclass(cls) else None
        found += [f.under("", Site(cls)) for f in self._rebuilding(cls, view, place)]
        if view is not None:
            found += self._pydantic_dataclass(cls, view, place)
        if not place.dumped:
            found += self._walk.kin(cls, place)
        inner = (
            place.unvalidated(type_name(cls))
            if view is None
            else replace(place.unvalidated(type_name(cls)), healed=True)
        )
        inner = replace(inner, dumped=True, healed=True) if place.dumped else inner
        strict = {name for name, field in view.fields.items() if field.strict} if view else set()
        return found + self._dataclass_fields(cls, annotation, inner, strict)

    def _dataclass_fields(
        self, cls: type, annotation: Any, inner: Place, strict: set[str]
    ) -> list[Found]:
        found: list[Found] = []
        hints, given = fields_of(cls), arguments_of(annotation)
        for field in dataclasses.fields(cls):
            hint = fill(hints.get(field.name, field.type), given)
            if field.name in strict:
                below = list(self._walk.field(hint, cls, replace(inner, healed=False)))
                below = self._strictly(below, cls, field.name)
            else:
                below = list(self._walk.field(hint, cls, inner))
            found += [f.under(f".{field.name}", Site(cls, field.name)) for f in below]
        return found

    def _rebuilding(
        self, cls: type, view: models.ModelView | None, place: Place
    ) -> Iterator[Found]:
        """Whether `cls(**fields)` makes the same again."""
        name = type_name(cls)
        why = None if place.dumped or view is not None else self._refused(cls)
        if why is not None:
            yield found_by("LGS214", type=name, why=why)
            return
        yield from self._init_vars(cls, place)
        yield from self._undeclared(cls)
        yield from self._own_code(cls)

    def _refused(self, cls: type) -> str | None:
        fields = [field.name for field in dataclasses.fields(cls)]
        return accepts(cls, fields)

    def _init_vars(self, cls: type, place: Place) -> Iterator[Found]:
        pseudo = cls.__dataclass_fields__.values()  # type: ignore[attr-defined]
        init_vars = [f.name for f in pseudo if f._field_type.name == "_FIELD_INITVAR"]
        post_init = method_of(cls, "__post_init__")
        if init_vars and constructor_doubt(post_init, frozenset(fields_of(cls))) != "no":
            what = f"what it makes of {', '.join(init_vars)}, which is not stored"
            yield found_by("LGS215", type=type_name(cls), what=what)
        derived = [f.name for f in dataclasses.fields(cls) if not f.init]
        lost = place.dumped or models.is_pydantic_dataclass(cls)
        if lost and derived and not hasattr(cls, "__post_init__"):
            yield found_by("LGS214", type=type_name(cls), why=f"{derived[0]} is not in __init__")

    def _undeclared(self, cls: type) -> Iterator[Found]:
        """A subclass that is not decorated annotates what are no fields."""
        if "__dataclass_params__" in vars(cls):
            return
        fields = {field.name for field in dataclasses.fields(cls)}
        for name in vars(cls).get("__annotations__", {}):
            if name not in fields:
                yield found_by("LGS203", model=type_name(cls), attribute=name)

    def _own_code(self, cls: type) -> Iterator[Found]:
        name = type_name(cls)
        init = method_of(cls, "__init__")
        code = getattr(getattr(inspect.unwrap(init), "__code__", None), "co_filename", "<")
        if not code.startswith("<") and "pydantic" not in code:
            yield found_by("LGS404", type=name, code="__init__")
        for method in ("__new__", "__setattr__", "__getattribute__", "__getattr__"):
            if is_users(cls, method):
                yield found_by("LGS404", type=name, code=method)
        for field in dataclasses.fields(cls):
            found = inspect.getattr_static(cls, field.name, None)
            if hasattr(type(found), "__set__") and not inspect.ismemberdescriptor(found):
                yield found_by("LGS404", type=name, code=f"the descriptor {field.name}")
        if method_of(cls, "__eq__") is vars(object)["__eq__"]:
            yield found_by("LGS404", type=name, code="no __eq__")
        yield from self._post_init(cls, "__post_init__")

    def _post_init(self, cls: type, method: str) -> Iterator[Found]:
        function = method_of(cls, method)
        if function is None:
            return
        names = frozenset(fields_of(cls))
        doubt = constructor_doubt(function, names)
        if doubt == "changes":
            yield found_by("LGS215", type=type_name(cls), what=f"a field ({method})")
        elif doubt == "unknown":
            yield found_by("LGS404", type=type_name(cls), code=method)

    def _pydantic_dataclass(self, cls: type, view: models.ModelView, place: Place) -> list[Found]:
        inside = replace(place.inside(), healed=True)
        return [*self._model_code(cls, view), *self._model_fields(cls, view, inside)]

    # --- pydantic models ---

    def model(self, cls: Any, place: Place) -> list[Found]:
        """Of pydantic's second version."""
        name = type_name(cls)
        if is_runnable(cls):
            return [found_by("LGS311", type=name)]
        found = [] if place.dumped else self._walk.named(cls, "a dict", place)
        found = [self._generated(f, cls) for f in found]
        view = models.view_of(cls)
        if view is None:
            return [*found, *self._incomplete(cls)]
        if place.dumped:
            found += self._subclassed(cls)
        else:
            found += self._walk.kin(cls, place)
        if cls.__pydantic_root_model__ and not place.healed and not place.dumped:
            found.append(found_by("LGS223", type=name, back="its root"))
        if not all(field.required for field in view.fields.values()):
            found.append(found_by("LGS309", model=name))
        whole = [*self._model_code(cls, view), *self._attributes(cls)]
        found += [replace(f, sites=(Site(cls), *f.sites)) for f in whole]
        inner = replace(place.inside(), dumped=True, healed=True, outer=name)
        found += self._model_fields(cls, view, inner)
        return found + self._model_hints(cls, view, inner)

    def _generated(self, found: Found, cls: Any) -> Found:
        """A generic that was given its arguments inside a function or class body."""
        generic = cls.__pydantic_generic_metadata__.get("origin") is not None
        if not generic or found.rule not in ("LGS212", "LGS213"):
            return found
        fields = (("type", type_name(cls)), ("back", "a dict"))
        return replace(found, rule="LGS223", fields=fields)

    def _incomplete(self, cls: Any) -> Iterator[Found]:
        missing = [h for h in fields_of(cls).values() if isinstance(h, Unresolved)]
        for hint in missing:
            yield unresolved(hint, type_name(cls))
        if not missing:
            yield found_by("LGS404", type=type_name(cls), code="model_rebuild")

    def _subclassed(self, cls: Any) -> Iterator[Found]:
        below = [c for c in subclasses(cls) if not is_parametrized(c) and not is_enum(c)]
        if below:
            yield found_by("LGS206", subclass=type_name(below[0]), base=type_name(cls))

    def _model_code(self, cls: Any, view: models.ModelView) -> Iterator[Found]:
        name = type_name(cls)
        if view.custom_init:
            yield found_by("LGS404", type=name, code="__init__")
        if models.is_model(cls):
            yield from self._overridden(cls)
        for code in view.serializers if models.is_model(cls) else ():
            lost = unwritten(code.function, view.fields)
            yield from self._serializer(
                name, "itself", replace(code, doubt="changes") if lost else code
            )
        for code in view.validators:
            yield from self._validator(name, code, whole=True)
        extra = view.config.get("extra")
        if view.computed and extra in ("allow", "forbid"):
            yield found_by("LGS205", model=name, field=f"the computed field {view.computed[0]}")
        elif view.computed:
            yield found_by("LGS404", type=name, code=view.computed[0])
        if extra == "allow":
            yield found_by("LGS316", annotation=f"{name}, which allows extra fields,")

    def _overridden(self, cls: Any) -> Iterator[Found]:
        for method in ("model_dump", "model_construct"):
            function = method_of(cls, method)
            if not models.is_own(function):
                yield found_by("LGS404", type=type_name(cls), code=method)
        for method in ("__new__", "__setattr__", "__getattr__", "__getattribute__"):
            function = method_of(cls, method)
            if is_users(cls, method) and not models.is_own(function):
                yield found_by("LGS404", type=type_name(cls), code=method)
        function = method_of(cls, "model_post_init")
        wrapped = getattr(function, "__name__", "") == "wrapped_model_post_init"
        if wrapped:
            yield found_by("LGS404", type=type_name(cls), code="model_post_init")
        elif not models.is_own(function):
            yield from self._post_init(cls, "model_post_init")

    def _attributes(self, cls: Any) -> Iterator[Found]:
        """Private attributes are not dumped."""
        for attribute in getattr(cls, "__private_attributes__", {}):
            yield Found(
                "LGS203",
                (("model", type_name(cls)), ("attribute", attribute)),
                sites=(Site(owner(cls, attribute), attribute),),
            )

    def _serializer(self, model: str, field: str, code: models.Code) -> Iterator[Found]:
        if code.doubt in ("changes", "forgets"):
            yield found_by("LGS205", model=model, field=f"{field} ({code.name})")
        elif code.doubt == "unknown":
            yield found_by("LGS404", type=model, code=code.name)

    def _validator(self, name: str, code: models.Code, *, whole: bool) -> Iterator[Found]:
        if whole and code.mode == "after":
            doubt = constructor_doubt(code.function, frozenset())
        elif code.mode in ("after", "before"):
            doubt = validator_doubt(code.function)
        else:
            doubt = "unknown"
        if doubt == "changes":
            yield found_by("LGS215", type=name, what=f"what the validator {code.name} returns")
        elif doubt == "unknown":
            yield found_by("LGS404", type=name, code=code.name)

    def _model_fields(self, cls: Any, view: models.ModelView, place: Place) -> list[Found]:
        found: list[Found] = []
        for name, field in view.fields.items():
            below = self._field_code(cls, name, field, view, place)
            found += [f.under(f".{name}", Site(owner(cls, name), name)) for f in below]
        return found

    def _field_code(
        self, cls: Any, name: str, field: models.FieldView, view: models.ModelView, place: Place
    ) -> Iterator[Found]:
        model = type_name(cls)
        if field.excluded and place.dumped:
            yield found_by("LGS204", model=model, field=name)
        elif name != "root" and (field.written not in field.read or _taken(name, view)):
            rule = "LGS202" if field.required else "LGS201"
            yield found_by(rule, model=model, field=name)
        for code in field.serializers if place.dumped else ():
            instance = field.instances and not field.validators and code.doubt != "no"
            yield from self._serializer(
                model, name, replace(code, doubt="forgets") if instance else code
            )
        for code in field.validators:
            yield from self._validator(f"{model}.{name}", code, whole=False)
        if (why := _refuses(field)) is not None:
            yield found_by("LGS216", type=model, why=f"{name}: {why}")
        if view.config.get("use_enum_values") and has_enum_default(cls, name):
            yield found_by("LGS205", model=model, field=f"the Enum default of {name}")

    def _model_hints(self, cls: Any, view: models.ModelView, place: Place) -> list[Found]:
        found: list[Found] = []
        for name, field in cls.model_fields.items():
            hint = field.annotation
            for item in reversed(field.metadata):
                if is_named(item, "SkipValidation"):
                    hint = typing.Annotated[hint, item]
            if name in view.fields and any(c.doubt != "no" for c in view.fields[name].serializers):
                continue  # what is stored is what they write
            strict = name in view.fields and view.fields[name].strict
            below = list(
                self._walk.field(hint, cls, replace(place, union=False, healed=not strict))
            )
            below = self._strictly(below, cls, name) if strict else below
            if field.discriminator is not None:
                below = [f for f in below if not dict(f.fields).get("mistaken")]
            if view.config.get("use_enum_values"):
                below = [f for f in below if f.rule not in ("LGS211", "LGS212", "LGS213", "LGS222")]
            found += [f.under(f".{name}", Site(owner(cls, name), name)) for f in below]
        return found

    def _strictly(self, found: list[Found], cls: Any, name: str) -> list[Found]:
        """A strict field takes nothing in place of what it wants: the model is unvalidated."""
        mended = {"LGS216", "LGS217", "LGS218", "LGS301", "LGS302"}
        if not any(each.rule in mended for each in found):
            return found
        why = f"{name} is strict, and takes no list, dict or str in place of what it was"
        refused = found_by("LGS216", type=type_name(cls), why=why)
        return [refused, *(each for each in found if each.rule not in mended)]


def _taken(name: str, view: models.ModelView) -> bool:
    """Whether what is stored of a field is read as another one, whose alias is its name."""
    written = view.fields[name].written
    return any(written in other.read for key, other in view.fields.items() if key != name)


def _taken_for_send(cls: type) -> Found | None:
    """What has `node` and `arg`, and can be hashed, is encoded as a Send."""
    names = [field.name for field in dataclasses.fields(cls)]
    if not {"node", "arg"} <= set(names) or cls.__hash__ is None:
        return None
    if names == ["node", "arg"]:
        return None
    return found_by("LGS210", type=type_name(cls), attribute="node and arg")


def _refuses(  # noqa: PLR0911 - a case for each kind
    field: models.FieldView,
) -> str | None:
    """Why pydantic does not take back what it has written."""
    if "json" in field.kinds:
        return "Json wants text, and is given what was parsed"
    if "alias" in field.kinds:
        return "something in it is read by its alias, and written by its name"
    if "excluded" in field.kinds:
        return "something in it is excluded"
    if "exists" in field.kinds:
        return "the path must exist, or not, where it is read"
    if "future" in field.kinds:
        return "it must be in the future when it is read"
    if any(is_dumped_to_dict(cls) for cls in field.instances):
        return "it takes instances only, and is given a dict"
    return None


def unresolved(hint: Unresolved, where: str) -> Found:
    """A name in an annotation that nobody knows."""
    return found_by("LGS114", name=hint.name, where=where, error=hint.error)
