"""Does code of a class's own change what it is given? Told from its source, which is not run."""

import ast
import inspect
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any, Literal

Doubt = Literal["no", "unknown", "changes", "forgets"]
"""Whether code that runs when a value is stored, or read, changes it: some values, or all."""

_Tree = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_REPEATABLE = frozenset(
    {"strip", "lstrip", "rstrip", "lower", "upper", "casefold", "sorted", "set", "frozenset"}
    | {"list", "tuple", "dict", "str", "int", "float", "bool", "round", "abs", "bytes", "cls"}
)


def constructor_doubt(function: Any, fields: frozenset[str]) -> Doubt:
    """Whether a method of `self`, `__post_init__` say, changes fields when it runs once more."""
    tree = _source_of(function)
    if tree is None or not tree.args.args:
        return "unknown"
    self = tree.args.args[0].arg
    doubts = {_of_statement(node, self, fields) for node in _body(tree)}
    return "changes" if "changes" in doubts else "unknown" if "unknown" in doubts else "no"


def validator_doubt(function: Any) -> Doubt:
    """Whether a validator, run on what it has returned, returns something else."""
    tree = _source_of(function)
    given = _parameters(tree) if tree is not None else []
    if tree is None or not given:
        return "unknown"
    value = given[0]
    body = _body(tree)
    if any(_assigns(node, value) for node in body):
        return "unknown"
    returned = [node.value for node in body if isinstance(node, ast.Return)]
    returned += [tree.body] if isinstance(tree, ast.Lambda) else []
    doubts = {_of_returned(each, value) for each in returned}
    calls = (node for node in body if isinstance(node, ast.Call))
    if any(_touches(node, value) for node in calls):
        doubts.add("unknown")
    return "changes" if "changes" in doubts else "unknown" if "unknown" in doubts else "no"


def serializer_doubt(function: Any, *, takes: int, handler: bool) -> Doubt:
    """Whether what a pydantic serializer returns is surely something else, once it is read again.

    Most are made to be undone by the validation of the field: a datetime as text, say. What no
    validation can undo is a constant, which forgets any value; a part of it, or what arithmetic
    makes of it, changes some.

    Args:
        function: the serializer.
        takes: at which of its parameters the value comes.
        handler: whether the next one is pydantic's own serializer, which changes nothing.
    """
    tree = _source_of(function)
    names = [each.arg for each in (*tree.args.posonlyargs, *tree.args.args)] if tree else []
    if tree is None or len(names) <= takes + handler:
        return "unknown"
    value, own = names[takes], names[takes + 1] if handler else None
    body = _body(tree)
    if any(_assigns(node, value) for node in body):
        return "unknown"
    returned = [node.value for node in body if isinstance(node, ast.Return)]
    returned += [tree.body] if isinstance(tree, ast.Lambda) else []
    doubts = {_of_serialized(each, value, own) for each in returned} or {"forgets"}
    calls = (node for node in body if isinstance(node, ast.Call))
    if "no" in doubts and any(_touches(call, value) and not _calls(call, own) for call in calls):
        doubts.add("unknown")
    return doubts.pop() if len(doubts) == 1 else "unknown"


def _calls(call: ast.Call, name: str | None) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id == name


def _of_serialized(  # noqa: PLR0911 - a case for each kind of expression
    value: ast.expr | None, given: str, handler: str | None
) -> Doubt:
    match value:
        case ast.Name(id=name) if name == given:
            return "no"
        case ast.Call(func=ast.Name(id=name), args=[ast.Name(id=first)]) if (
            first == given and name == handler
        ):
            return "no"
        case None | ast.Constant():
            return "forgets"
        case ast.Call(func=ast.Name(id="round"), args=[ast.Name(id=first), *_]) if first == given:
            return "changes"
        case ast.Dict(values=values) if any(isinstance(v, ast.Constant) for v in values):
            return "changes"
        case ast.Subscript(value=ast.Name(id=name)) if name == given:
            return "changes"
        case ast.BinOp(left=ast.Name(id=name)) | ast.BinOp(right=ast.Name(id=name)):
            return "changes" if name == given else "unknown"
        case _:
            return "unknown"


def unwritten(function: Any, fields: Iterable[str]) -> frozenset[str]:
    """The fields that a serializer of a whole model surely leaves out of what it returns."""
    tree = _source_of(function)
    keys = _written_keys(tree) if tree is not None else None
    return frozenset() if keys is None else frozenset(fields) - keys


def _written_keys(tree: _Tree) -> frozenset[str] | None:
    """The keys of the dict that a function returns; None unless all are there to be read."""
    returned = [node.value for node in _body(tree) if isinstance(node, ast.Return)]
    match returned:
        case [ast.Dict(keys=keys)] if all(isinstance(key, ast.Constant) for key in keys):
            return frozenset(str(key.value) for key in keys if isinstance(key, ast.Constant))
        case _:
            return None


def rebuild_doubt(cls: type, function: Any, held: Mapping[str, Any] | None = None) -> Doubt:
    """Whether `cls(**what the method returns)` can be the object that the method was called on.

    It can if the method names all that the constructor is given, or hands out what the object
    holds.

    Args:
        cls: a class that LangGraph takes for one of pydantic's, or for a namedtuple.
        function: its `model_dump`, `dict`, `_asdict` or `get_secret_value`.
        held: what the object holds, if there is one; what is as the constructor's default makes it
            needs no mention.
    """
    tree, parameters = _source_of(function), _parameters_of(cls)
    if parameters is None:
        return "unknown"
    needed = {name for name, p in parameters.items() if p.default is p.empty}
    if tree is None:
        return "forgets" if needed else "unknown"
    written = _written_keys(tree) or frozenset()
    if written - parameters.keys() and getattr(function, "__name__", "") != "get_secret_value":
        return "forgets"  # the constructor refuses what it is given
    told = {part for node in _body(tree) for part in _names_in(node)}
    if told & _ALL_OF_IT:
        return "unknown"
    if not needed <= told:
        return "forgets"
    left = parameters.keys() - told
    return "changes" if any(_matters(parameters[name], held) for name in left) else "unknown"


def _matters(parameter: inspect.Parameter, held: Mapping[str, Any] | None) -> bool:
    """Whether an object without this argument is another one: of some it is, if there is none."""
    if held is None:
        return True
    default = parameter.default
    value = held.get(parameter.name, default)
    plain = type(value) in (str, int, float, bool, bytes, type(None))
    return type(value) is not type(default) or (plain and value != default)


_ALL_OF_IT = frozenset({"__dict__", "vars", "asdict", "__slots__", "fields", "_fields"})


def _parameters_of(cls: type) -> dict[str, inspect.Parameter] | None:
    """What a class is called with, by name; None if nothing tells, or anything goes."""
    init = inspect.getattr_static(cls, "__init__")
    if init is object.__init__:
        return {}
    try:
        _, *parameters = inspect.signature(init).parameters.values()
    except (TypeError, ValueError):
        return None
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    return {p.name: p for p in parameters} if all(p.kind in named for p in parameters) else None


def _names_in(node: ast.AST) -> list[str]:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
            return [name]
        case ast.Constant(value=str(name)):
            return [name]
        case _:
            return []


def _parameters(tree: _Tree) -> list[str]:
    names = [argument.arg for argument in tree.args.args]
    return names[1:] if names[:1] == ["cls"] else names


def _body(tree: _Tree) -> list[ast.AST]:
    """Without decorators, defaults and annotations, which do not run again."""
    parts = [tree.body] if isinstance(tree, ast.Lambda) else tree.body
    return [node for part in parts for node in ast.walk(part)]


def _source_of(function: Any) -> _Tree | None:
    function = getattr(function, "__func__", function)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    if getattr(function, "__name__", "") == "<lambda>":
        lambdas = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda)]
        return lambdas[0] if len(lambdas) == 1 else None
    first = tree.body[0] if tree.body else None
    return first if isinstance(first, ast.FunctionDef | ast.AsyncFunctionDef) else None


def _of_statement(  # noqa: PLR0911 - a case for each kind of statement
    node: ast.AST, self: str, fields: frozenset[str]
) -> Doubt:
    match node:
        case ast.AugAssign(target=target, op=op):
            name = _attribute(target, self)
            if name is None:
                return "unknown" if _root(target) == self else "no"
            return "unknown" if isinstance(op, ast.BitOr | ast.BitAnd) else "changes"
        case ast.Assign(targets=[target], value=value):
            return _of_assignment(target, value, self, fields)
        case ast.AnnAssign(target=target, value=value) if value is not None:
            return _of_assignment(target, value, self, fields)
        case ast.Assign() | ast.Delete():
            return "unknown"
        case ast.Call():
            return "no" if _harmless(node, self) else "unknown"
        case _:
            return "no"


def _of_assignment(target: ast.expr, value: ast.expr, self: str, fields: frozenset[str]) -> Doubt:
    name = _attribute(target, self)
    if name is None:
        return "unknown" if _root(target) == self else "no"
    arithmetic = any(
        isinstance(part, ast.BinOp) and _reads(part, self, name) for part in ast.walk(value)
    )
    if arithmetic:
        return "changes"
    return "unknown" if name in fields else "no"


def _harmless(call: ast.Call, self: str) -> bool:
    """Neither a method of `self` or its parts, nor a function that is handed them whole."""
    named = isinstance(call.func, ast.Name) and call.func.id in _LOOKS
    return named or not any(
        isinstance(part, ast.Name) and part.id in (self, "super") for part in ast.walk(call)
    )


_LOOKS = frozenset(
    {"isinstance", "len", "all", "any", "sum", "min", "max", "ValueError", "TypeError", "type"}
    | {"str", "repr", "int", "float", "bool", "sorted", "hasattr", "callable", "range", "abs"}
)


def _of_returned(value: ast.expr | None, given: str) -> Doubt:
    match value:
        case ast.Name(id=name) if name == given:
            return "no"
        case ast.Constant():
            return "no"
        case ast.Call(func=ast.Attribute(value=inner, attr=attr), args=[]) if attr in _REPEATABLE:
            return _of_returned(inner, given)
        case ast.BinOp(left=ast.Name(id=name)) | ast.BinOp(right=ast.Name(id=name)):
            return "changes" if name == given else "unknown"
        case ast.IfExp(body=body, orelse=orelse):
            doubts = {_of_returned(body, given), _of_returned(orelse, given)}
            return "no" if doubts == {"no"} else "unknown"
        case _:
            return "unknown"


def _assigns(node: ast.AST, name: str) -> bool:  # noqa: PLR0911 - a case for each kind of node
    """Whether a name may mean something else from here on, or what it means be changed in place."""
    match node:
        case ast.Name(id=other, ctx=ast.Store() | ast.Del()):
            return other == name
        case (
            ast.Attribute(ctx=ast.Store() | ast.Del()) | ast.Subscript(ctx=ast.Store() | ast.Del())
        ):
            return _root(node) == name
        case ast.ExceptHandler(name=other) | ast.MatchAs(name=other) | ast.MatchStar(name=other):
            return other == name
        case ast.FunctionDef(name=other) | ast.AsyncFunctionDef(name=other):
            return other == name
        case ast.ClassDef(name=other) | ast.alias(asname=other):
            return other == name
        case ast.Nonlocal(names=names) | ast.Global(names=names):
            return name in names
        case _:
            return False


def _touches(call: ast.Call, name: str) -> bool:
    """A call of a method that may change the value in place, or of a function that is handed it."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr not in _READS
    known = isinstance(call.func, ast.Name) and call.func.id in _LOOKS
    handed = any(isinstance(argument, ast.Name) and argument.id == name for argument in call.args)
    return handed and not known


_READS = _REPEATABLE | frozenset(
    {"startswith", "endswith", "isdigit", "isalpha", "isalnum", "get", "keys", "values", "items"}
    | {
        "count",
        "index",
        "find",
        "split",
        "isidentifier",
        "is_integer",
        "title",
        "replace",
        "format",
    }
)


def _attribute(target: ast.expr, self: str) -> str | None:
    match target:
        case ast.Attribute(value=ast.Name(id=name), attr=attr) if name == self:
            return attr
        case _:
            return None


def _reads(tree: ast.AST, self: str, name: str) -> bool:
    return any(
        isinstance(part, ast.Attribute) and _attribute(part, self) == name
        for part in ast.walk(tree)
    )


def _root(node: ast.AST) -> str | None:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None
