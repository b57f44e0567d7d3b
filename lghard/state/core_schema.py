"""What pydantic does with a class on its way out and back, as its core schema says it.

Nothing of the class is run: the core schema is the plan by which pydantic dumps and validates.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import BaseModel

from lghard.state.doubts import Doubt, serializer_doubt

Core = Mapping[str, Any]

_OWN = ("pydantic.", "pydantic_core.", "langchain_core.", "operator.")
_INNER = (
    "schema",
    "items_schema",
    "keys_schema",
    "values_schema",
    "lax_schema",
    "python_schema",
    "arguments_schema",
    "return_schema",
    "extras_schema",
)


@dataclass(frozen=True)
class Code:
    """A function of the user's that pydantic runs when it reads, or writes, a value.

    Attributes:
        function: the function.
        mode: "before", "after", "wrap" or "plain".
        doubt: of a serializer, whether what it writes is surely something else.
    """

    function: Any
    mode: str
    doubt: Doubt = "unknown"

    @property
    def name(self) -> str:
        """How it is called."""
        return str(getattr(self.function, "__name__", type(self.function).__name__))


@dataclass
class FieldView:
    """One field.

    Attributes:
        written: the key it is dumped under.
        read: the keys it is read from.
        required: it has no default.
        excluded: it is not dumped.
        validators: the user's code on reading.
        serializers: the user's code on writing.
        kinds: the types of the core schemas in it, "tuple", "json".
        instances: classes that it takes instances of only.
        strict: nothing is converted on reading.
    """

    written: str
    read: frozenset[str]
    required: bool = True
    excluded: bool = False
    validators: list[Code] = field(default_factory=list)
    serializers: list[Code] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    instances: list[type] = field(default_factory=list)
    strict: bool = False
    init: bool = True


@dataclass
class ModelView:
    """A model or pydantic dataclass.

    Attributes:
        fields: by name.
        validators: the user's code on the whole model.
        serializers: the same, on writing.
        computed: names of computed fields.
        custom_init: it has an `__init__` of its own.
        config: of pydantic.
        init_only: names of InitVars.
    """

    fields: dict[str, FieldView] = field(default_factory=dict)
    validators: list[Code] = field(default_factory=list)
    serializers: list[Code] = field(default_factory=list)
    computed: list[str] = field(default_factory=list)
    custom_init: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    init_only: list[str] = field(default_factory=list)


def is_model(cls: object) -> bool:
    """A pydantic model, of version 2."""
    return isinstance(cls, type) and issubclass(cls, BaseModel)


def is_pydantic_dataclass(cls: object) -> bool:
    """A dataclass that pydantic validates."""
    return isinstance(cls, type) and "__pydantic_core_schema__" in vars(cls) and not is_model(cls)


def view_of(cls: Any) -> ModelView | None:
    """What the core schema says; None if the class is not complete, and cannot be completed."""
    core = _core_of(cls)
    if core is None:
        return None
    view = ModelView(config=_config(cls))
    _Reader(view, core).read()
    return view


def _config(cls: Any) -> Mapping[str, Any]:
    config = getattr(cls, "model_config", None) or getattr(cls, "__pydantic_config__", None)
    return config if isinstance(config, Mapping) else {}


def _core_of(cls: Any) -> Core | None:
    """A class that waited for a name is completed, as its first use would do it."""
    if not getattr(cls, "__pydantic_complete__", True) and is_model(cls):
        cls.model_rebuild(raise_errors=False)
    core = vars(cls).get("__pydantic_core_schema__")
    return core if isinstance(core, dict) else None


class _Reader:
    def __init__(self, view: ModelView, core: Core) -> None:
        self._view = view
        self._core = core
        self._definitions: dict[str, Core] = {}
        self._is_dumped = True

    def read(self) -> None:
        core = self._unwrap(self._core, self._view)
        self._is_dumped = core.get("type") != "dataclass"
        self._view.custom_init = bool(core.get("custom_init"))
        inner = self._unwrap(core.get("schema", {}), self._view)
        if core.get("root_model") or "fields" not in inner:  # whatever fields its root has
            self._view.fields["root"] = self._field("root", {"schema": inner})
            return
        self._view.computed = [c["property_name"] for c in inner.get("computed_fields", ())]
        fields = inner.get("fields", ())
        named = fields.items() if isinstance(fields, Mapping) else ((f["name"], f) for f in fields)
        for name, entry in named:
            if entry.get("init_only"):
                self._view.init_only.append(name)
            else:
                self._view.fields[name] = self._field(name, entry)

    def _unwrap(self, core: Core, view: ModelView) -> Core:
        """Through the functions around a model, to the model."""
        while True:
            self._keep_definitions(core)
            view.serializers += _serializers(core)
            kind = str(core.get("type", ""))
            if kind == "definition-ref":
                core = self._definitions.get(core["schema_ref"], {})
            elif kind.startswith("function-"):
                view.validators += _validators(core)
                core = core.get("schema", {})
            elif kind == "definitions":
                core = core["schema"]
            else:
                return core

    def _keep_definitions(self, core: Core) -> None:
        for definition in core.get("definitions", ()):
            self._definitions[definition.get("ref", "")] = definition

    def _field(self, name: str, entry: Core) -> FieldView:
        config = self._view.config
        alias = entry.get("validation_alias")
        by_alias = config.get("validate_by_alias", True)
        by_name = config.get("populate_by_name") or config.get("validate_by_name")
        read = set(_keys(alias)) if alias is not None and by_alias else set()
        if alias is None or by_name:
            read.add(name)
        written = name  # by LangGraph, if it is a dataclass
        if config.get("serialize_by_alias") and self._is_dumped:
            written = entry.get("serialization_alias") or name
        view = FieldView(written, frozenset(read), strict=bool(config.get("strict")))
        view.excluded = bool(
            entry.get("serialization_exclude") or entry.get("serialization_exclude_if")
        )
        view.init = entry.get("init", True) is not False
        self._into(entry["schema"], view, set())
        view.required = not _has_default(entry["schema"])
        return view

    def _into(self, core: Core, view: FieldView, seen: set[int]) -> None:
        """All that happens to a value of the field, up to the next model, which is its own."""
        if id(core) in seen:
            return
        seen.add(id(core))
        self._keep_definitions(core)
        kind = str(core.get("type", ""))
        view.kinds.add(kind)
        view.strict = view.strict or core.get("strict") is True
        view.serializers += _serializers(core)
        if kind == "model":
            return
        if kind.startswith("function-"):
            view.validators += _validators(core)
            view.kinds |= _path_check(core)
        if core.get("now_op") == "future":
            view.kinds.add("future")
        if kind in ("dataclass-field", "typed-dict-field"):
            view.kinds |= {"alias"} if _has_alias(core) else set()
            view.kinds |= {"excluded"} if core.get("serialization_exclude") else set()
        if kind == "is-instance" and isinstance(core.get("cls"), type):
            view.instances.append(core["cls"])
        for inner in self._inner(core):
            self._into(inner, view, seen)

    def _inner(self, core: Core) -> Iterator[Core]:
        if core.get("type") == "definition-ref":
            yield self._definitions.get(core["schema_ref"], {})
        yield from (core[key] for key in _INNER if isinstance(core.get(key), Mapping))
        for key in ("items_schema", "steps", "arguments_schema"):
            if isinstance(core.get(key), list | tuple):
                yield from (part for part in core[key] if isinstance(part, Mapping))
        choices = core.get("choices", ())
        for choice in choices.values() if isinstance(choices, Mapping) else choices:
            first = choice[0] if isinstance(choice, tuple) else choice
            if isinstance(first, Mapping):
                yield first
        fields = core.get("fields", ())
        for entry in fields.values() if isinstance(fields, Mapping) else fields:
            if isinstance(entry, Mapping):
                yield entry


def _has_alias(core: Core) -> bool:
    """A field of a dataclass or TypedDict inside a model that is read by an alias."""
    return core.get("validation_alias") is not None


def _has_default(core: Core) -> bool:
    while core:
        if core.get("type") == "default":
            return True
        core = core.get("schema", {}) if str(core.get("type", "")).startswith("function-") else {}
    return False


def _keys(alias: Any) -> Iterator[str]:
    """The names that an alias of any kind reads from; a path into something is none."""
    if isinstance(alias, str):
        yield alias
        return
    choices = alias if all(isinstance(part, list) for part in alias) else [alias]
    yield from (path[0] for path in choices if len(path) == 1)


def _validators(core: Core) -> list[Code]:
    function = core.get("function")
    found = function.get("function") if isinstance(function, Mapping) else function
    return [] if is_own(found) else [Code(found, str(core["type"]).removeprefix("function-"))]


def _path_check(core: Core) -> set[str]:
    """FilePath, DirectoryPath and NewPath look at the disk of whoever reads."""
    function = core.get("function")
    found = function.get("function") if isinstance(function, Mapping) else function
    return {"exists"} if getattr(found, "__qualname__", "").startswith("PathType.") else set()


def _serializers(core: Core) -> list[Code]:
    how = core.get("serialization")
    if not isinstance(how, Mapping) or str(how.get("when_used", "always")).startswith("json"):
        return []
    function = how.get("function")
    if function is None or is_own(function):
        return []
    return [Code(function, str(how["type"]).removeprefix("function-"), doubt_of(how))]


def doubt_of(how: Core) -> Doubt:
    """Of the serialization in a core schema: a serializer of a field is a method, most often."""
    if how.get("function") is None:
        return "unknown"
    takes = int(bool(how.get("is_field_serializer")))
    return serializer_doubt(how["function"], takes=takes, handler=how["type"] == "function-wrap")


def is_own(function: object) -> bool:
    """Pydantic's own functions do what its documentation says, and nothing on the second read."""
    while isinstance(function, partial):
        function = function.func
    module = getattr(function, "__module__", None) or type(function).__module__
    name = type(function).__module__ if module is None else str(module)
    return f"{name}.".startswith(_OWN)
