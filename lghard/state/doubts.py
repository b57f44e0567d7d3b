"""Does code of a class's own change what it is given? Told from its source, which is not run."""

import ast
import inspect
import textwrap
from typing import Any, Literal

Doubt = Literal["no", "unknown", "changes"]
"""Whether code that runs when a value is stored, or read, changes it."""

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


def _assigns(node: ast.AST, name: str) -> bool:
    if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Delete | ast.For):
        targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
        return any(
            t is not None and (_root(t) == name or not isinstance(t, ast.Name)) for t in targets
        )
    return isinstance(node, ast.NamedExpr) and node.target.id == name


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
