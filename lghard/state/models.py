"""What pydantic does with a model on the way to the database and back.

Decided from the model's own core schema, which pydantic documents as `__pydantic_core_schema__`. If
none of the functions in it is the user's, running pydantic runs no code of his.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import GetSetDescriptorType
from typing import Any

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from lghard.state.compare import attributes
from lghard.state.core_schema import doubt_of, view_of
from lghard.state.doubts import unwritten
from lghard.state.looking import (
    Found,
    class_dict,
    class_dict_of_bases,
    definers,
    in_class,
    inherits,
    is_generated,
    is_remembered,
    is_trusted,
    lookup_problem,
    module_of,
    mro_of,
    name_of,
    spelled,
)

logger = logging.getLogger("lghard.state")

_METHODS = (
    "__init__",
    "__new__",
    "__setattr__",
    "__getattr__",
    "__getattribute__",
    "__class__",
    "__dict__",
    "__iter__",
    "model_dump",
    "model_construct",
    "model_post_init",
    "__post_init__",
    "__get_pydantic_core_schema__",
)

# Values of these types are dumped as themselves, and validated by a schema of that type as such.
_SIMPLE = {"str": str, "int": int, "float": float, "bool": bool, "bytes": bytes, "none": type(None)}
_CONSTRAINTS = {
    "gt", "ge", "lt", "le", "multiple_of", "max_length", "min_length", "pattern",
    "strip_whitespace", "to_lower", "to_upper", "allow_inf_nan",
}  # fmt: skip
_ALIASES = {"validation_alias", "serialization_alias"}
_STR_CONFIG = ("str_to_lower", "str_to_upper", "str_strip_whitespace", "str_max_length",
               "str_min_length", "allow_inf_nan")  # fmt: skip


@dataclass(frozen=True)
class ModelPlan:
    """What is known about a model class.

    Attributes:
        code: which of its code is the user's, and runs when it is stored or read; None if none.
        excluded: fields that are not stored.
        encoded: fields that have a serializer of their own; true if it surely loses the value.
        aliased: fields that are not read by their name; true if they have a default.
        root: whether it is a RootModel.
        encodes_itself: whether a serializer of the whole model decides what is stored.
        loses_itself: whether it surely writes no model.
        unwritten: fields that it leaves out.
        computed: computed fields that come back as extra ones.
        simple: the types that a field may have so that it surely comes back; None if that takes a
            closer look.
    """

    code: str | None = None
    excluded: frozenset[str] = frozenset()
    encoded: dict[str, bool] = field(default_factory=dict)
    aliased: dict[str, bool] = field(default_factory=dict)
    simple: dict[str, frozenset[type]] | None = None
    root: bool = False
    encodes_itself: bool = False
    loses_itself: bool = False
    unwritten: frozenset[str] = frozenset()
    computed: tuple[str, ...] = ()


def plan_of(kind: type) -> ModelPlan:
    """What is known about this model class; looked at once."""
    found = _PLANS.get(id(kind))
    if found is None or found[0] is not kind:
        found = _PLANS[id(kind)] = kind, _plan(kind)
    return found[1]


_PLANS: dict[int, tuple[type, ModelPlan]] = {}


def _plan(kind: type) -> ModelPlan:
    schema = in_class(kind, "__pydantic_core_schema__")
    if type(schema) is not dict:
        return ModelPlan(code="a schema that is not built yet")
    if meta := _own_metaclass(kind):  # which may run when the class is asked for anything
        return ModelPlan(code=meta)
    code = _own_part(kind) or _own_function(schema)
    fields, config, root = _fields(schema)
    aliased = _aliased(kind)
    if is_dataclass(kind):  # whose fields LangGraph stores itself, by their names
        simple = None if code or aliased else _simple(fields, config)
        return ModelPlan(code=code, aliased=aliased, simple=simple)
    return ModelPlan(
        code=code,
        excluded=frozenset(n for n, f in fields.items() if f.get("serialization_exclude")),
        encoded={n: _loses(_outer(f)) for n, f in fields.items() if _own_serializer(_outer(f))},
        aliased=aliased,
        simple=None if code or aliased or root else _simple(fields, config),
        computed=_kept_computed(schema),
        root=root,
        encodes_itself=_own_serializer(_model_node(schema)) is not None,
        loses_itself=_loses(_model_node(schema)),
        unwritten=unwritten((_own_serializer(_model_node(schema)) or {}).get("function"), fields),
    )


def is_dataclass(kind: type) -> bool:
    """Whether it is a dataclass that pydantic validates, which makes of a list a tuple again."""
    for base in mro_of(kind):
        if "__dataclass_fields__" in class_dict(base):
            return "__pydantic_core_schema__" in class_dict(base)
    return False


def _own_serializer(schema: dict[str, Any]) -> dict[str, Any] | None:
    """One of the user's, for dumps to Python: those to JSON do not matter."""
    found: dict[str, Any] = schema.get("serialization") or {}
    function = found.get("function")
    json_only = str(found.get("when_used", "always")).startswith("json")
    return None if function is None or json_only or _is_known(function) else found


def _loses(schema: dict[str, Any]) -> bool:
    """Whether a field's own serializer writes what no value of the field can be read from."""
    doubt = doubt_of(_own_serializer(schema) or {})
    return doubt == "forgets" or (schema.get("type") == "is-instance" and doubt != "no")


def _model_node(schema: dict[str, Any]) -> dict[str, Any]:
    return _definition(schema) or {} if schema.get("type") == "definitions" else schema


def _own_method(kind: type) -> str | None:
    for base, name in definers(kind, *_METHODS):
        if is_trusted(module_of(base)) or (name == "__new__" and base is object):
            continue
        found = class_dict(base)[name]
        # pydantic's own model_post_init, which sets up private attributes, is in each such class.
        if is_trusted(getattr(found, "__module__", None)) or is_generated(found) or _is_slot(found):
            continue
        return f"{name_of(base)}.{name}"
    return None


def _own_part(kind: type) -> str | None:
    """What of a model class itself is the user's, and runs."""
    return _own_method(kind) or _own_metaclass(kind) or _own_factory(kind)


def _own_factory(kind: type) -> str | None:
    """The default factory of a private attribute: the schema does not tell of those."""
    private = in_class(kind, "__private_attributes__")
    for name, attribute in private.items() if type(private) is dict else ():
        factory = getattr(attribute, "default_factory", None)
        if factory is not None and not _is_known(factory):
            return str(name)
    return None


def _is_slot(found: object) -> bool:
    """The descriptor with which each class that has a `__dict__` gives it."""
    return type(found) is GetSetDescriptorType


def _own_metaclass(kind: type) -> str | None:
    meta = type(kind)
    return None if is_trusted(module_of(meta)) else f"metaclass {name_of(meta)}"


def _own_function(schema: Any) -> str | None:
    """The first function of the user's in a core schema."""
    nodes: list[Any] = [schema]
    while nodes:
        node = nodes.pop()
        if type(node) is list or type(node) is tuple:
            nodes.extend(node)
        elif type(node) is dict:
            code = _function_in(node)
            if code:
                return code
            # What a schema says about the class, and what only JSON schemas need, is no code.
            nodes.extend(v for k, v in node.items() if k not in ("metadata", "cls", "config"))
    return None


def _function_in(  # noqa: PLR0911 - a case for each kind
    node: dict[str, Any],
) -> str | None:
    if str(node.get("when_used", "")).startswith("json"):
        return None
    for key in _CODE:
        found = node.get(key)
        if type(found) is dict:
            found = found.get("function", found)
        if found is None or isinstance(found, (str, bool, dict, list)):
            continue
        if not _is_known(found):
            return f"{getattr(found, '__qualname__', key)}"
    if node.get("type") == "computed-field":
        return str(node["property_name"])
    if node.get("type") in ("call", "generator", "custom-error"):
        return f"a {node['type']} schema"
    kinds = node.get("cls")
    if isinstance(kinds, type) and node.get("type") in ("is-instance", "is-subclass"):
        return _own_metaclass(kinds)
    if isinstance(kinds, type) and node.get("type") in ("model", "dataclass"):
        return _own_part(kinds)
    return None


_CODE = (
    "function", "default_factory", "discriminator", "fail_fast", "post_init",
    "serialization_exclude_if",
)  # fmt: skip


def _kept_computed(schema: dict[str, Any]) -> tuple[str, ...]:
    """Their values are stored with the fields; `extra="allow"` takes them for extra ones."""
    model = _model_node(schema)
    if model.get("config", {}).get("extra_fields_behavior") != "allow":
        return ()
    inner = model.get("schema", {})
    return tuple(each["property_name"] for each in inner.get("computed_fields", ()))


def _is_known(function: Any) -> bool:
    inner = getattr(function, "__wrapped__", None) or getattr(function, "__func__", function)
    inner = getattr(inner, "func", inner)  # of a partial
    return is_trusted(getattr(inner, "__module__", None) or module_of(type(inner)))


def _fields(schema: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any], bool]:
    """The fields of a model, its config, and whether it is a RootModel."""
    node: Any = schema
    config: dict[str, Any] = {}
    root = False
    while type(node) is dict:
        if node.get("type") == "definitions":
            node = _definition(node)
            continue
        if node.get("type") in ("model", "dataclass"):
            config, root = node.get("config", {}), bool(node.get("root_model"))
        if root:
            break
        if node.get("type") == "model-fields":
            return node["fields"], config, root
        if node.get("type") == "dataclass-args":
            return {found["name"]: found for found in node["fields"]}, config, root
        node = node.get("schema")
    return {}, config, root


def _definition(node: dict[str, Any]) -> Any:
    inner = node["schema"]
    if inner.get("type") != "definition-ref":
        return inner
    named = {d.get("ref"): d for d in node["definitions"]}
    return named.get(inner["schema_ref"])


def _outer(model_field: dict[str, Any]) -> dict[str, Any]:
    """A field's schema, without its default."""
    schema: dict[str, Any] = model_field["schema"]
    while schema.get("type") == "default":
        schema = {**schema["schema"], **{k: v for k, v in schema.items() if k == "serialization"}}
    return schema


def _aliased(kind: type) -> dict[str, bool]:
    """Fields that are stored under a name by which they are not read; true if with a default."""
    view = view_of(kind)
    return {
        name: not found.required
        for name, found in (view.fields if view else {}).items()
        if found.written not in found.read
    }


def _simple(
    fields: dict[str, dict[str, Any]], config: dict[str, Any]
) -> dict[str, frozenset[type]] | None:
    if any(config.get(key) is not None for key in _STR_CONFIG):
        return None
    if config.get("extra_fields_behavior", "ignore") == "allow":
        return None
    simple = {}
    for name, found in fields.items():
        # What is stored or read under another name may be taken for another field.
        named = _ALIASES & found.keys()
        unusual = named or found.get("serialization_exclude") or found.get("init_only")
        given = found.get("init", True) is True
        kinds = _simple_types(_outer(found)) if given and not unusual else None
        if kinds is None:
            return None
        simple[name] = kinds
    return simple


def _simple_types(schema: dict[str, Any]) -> frozenset[type] | None:
    kind = schema.get("type")
    if "serialization" in schema or _CONSTRAINTS & schema.keys():
        return None
    if kind in _SIMPLE:
        return frozenset([_SIMPLE[kind]])
    if kind == "nullable":
        inner = _simple_types(schema["schema"])
        return inner and inner | {type(None)}
    return None


def name_problem(kind: type, model: Any = None) -> Found | None:
    """What goes wrong when a model is looked up by its name.

    Args:
        kind: its class.
        model: the model. One whose root is dumped to a dict is made again from what is in that.
    """
    plan = plan_of(kind)
    if plan.root and not _is_dumped_to_dict(attributes(model).get("root")):
        return Found("LGS223", {"type": spelled(kind), "back": "what it holds"})
    problem = lookup_problem(kind, "a dict")
    generated = "[" in name_of(kind) or class_dict(kind).get("__module__") is None
    if problem and generated and problem.rule != "LGS211":
        return Found("LGS223", {"type": spelled(kind), "back": "a dict"})
    return problem


def _is_dumped_to_dict(value: object) -> bool:
    kind = type(value)
    if inherits(kind, "pydantic.root_model", "RootModel"):
        return _is_dumped_to_dict(attributes(value).get("root"))
    fields = {"__pydantic_fields__", "__dataclass_fields__"}
    return kind is dict or bool(fields & class_dict_of_bases(kind))


def is_simple(model: Any, plan: ModelPlan) -> bool:
    """Whether each field has a type that its schema gives back as it is."""
    if plan.simple is None:
        return False
    held = attributes(model)
    if held.keys() != plan.simple.keys():
        return False
    return all(type(held[name]) in kinds for name, kinds in plan.simple.items())


def private_of(model: Any) -> dict[str, Any]:
    """Its private attributes; a dataclass has none."""
    if is_dataclass(type(model)):
        return {}
    return object.__getattribute__(model, "__pydantic_private__") or {}


def stored_fields(model: Any, plan: ModelPlan) -> Iterator[tuple[str, Any]]:
    """What a model's dump holds: fields and extras, without what is excluded or private."""
    private = private_of(model)
    for name, value in attributes(model).items():
        if name in private or name in plan.excluded or name in plan.encoded:
            continue
        if not is_remembered(type(model), name):
            yield name, value


def revive(model: Any) -> tuple[Any, str | None]:
    """What LangGraph makes of a model or pydantic dataclass, of whose class no code is the user's.

    Returns:
        What comes back, and why its own class refused the values, if it did.
    """
    kind: Any = type(model)
    serializer = JsonPlusSerializer(allowed_msgpack_modules=True)
    if is_dataclass(kind):
        fields = [name for name in kind.__dataclass_fields__ if name in attributes(model)]
        dumped: Any = {name: attributes(model)[name] for name in fields}
    else:
        dumped = kind.__pydantic_serializer__.to_python(model, warnings=False)
    if type(dumped) is not dict:
        return dumped, None
    values = serializer.loads_typed(serializer.dumps_typed(dumped))
    try:
        return kind(**values), None
    except Exception as refused:  # as LangGraph does
        return _unvalidated(kind, values), type(refused).__name__


def _unvalidated(kind: Any, values: dict[str, Any]) -> Any:
    try:
        return values if is_dataclass(kind) else kind.model_construct(**values)
    except Exception:  # what was stored, then
        return values


__all__ = [
    "ModelPlan",
    "is_dataclass",
    "is_simple",
    "mro_of",
    "name_problem",
    "plan_of",
    "revive",
    "stored_fields",
]
