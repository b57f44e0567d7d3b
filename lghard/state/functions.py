"""What a node's function says about its update: its annotation, and the dicts it returns."""

import ast
import inspect
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

import typing_extensions
from langchain_core.runnables import Runnable
from langgraph.types import Command, Send

from lghard.state.annotations import (
    MISSING,
    UNIONS,
    Unresolved,
    fields_of,
    members_of,
    return_of,
    strip,
)

_LIMIT = 1000
Tree = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def function_of(runnable: object) -> Any:
    """The user's function in what LangGraph has made of a node; None, if it is not one."""
    for name in ("func", "afunc"):
        function = getattr(runnable, name, None)
        if callable(function):
            return _bare(function)
    return None


def _bare(function: Any) -> Any:
    function = inspect.unwrap(function)
    while hasattr(function, "func") and not inspect.isfunction(function):
        function = function.func
    if not inspect.isroutine(function) and callable(function):
        return type(function).__call__
    return getattr(function, "__func__", function)


def no_update(function: Any) -> Iterator[Any]:
    """What it is annotated to return, as far as LangGraph refuses that as an update."""
    annotated = return_of(function)
    if annotated is MISSING or isinstance(annotated, Unresolved):
        return
    for member in _members(strip(annotated)):
        bare = strip(member)
        if not _updates(bare):
            yield bare


def is_awaitable(annotation: Any) -> bool:
    """A coroutine, by its annotation."""
    origin = get_origin(annotation) or annotation
    return isinstance(origin, type) and (issubclass(origin, typing.Awaitable))


def _members(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) in UNIONS:
        yield from members_of(annotation)
    else:
        yield annotation


def _updates(annotation: Any) -> bool:
    """Whether LangGraph takes it: a dict, a Command, None, a class with fields, a list of such."""
    origin = get_origin(annotation) or annotation
    if not isinstance(origin, type) or origin in (Any, object, type(None)):
        return True
    if origin in (list, tuple):
        return any(_may_command(strip(arg)) for arg in get_args(annotation) or (Any,))
    known = (dict, Command, Runnable, typing.Mapping)
    if issubclass(origin, known):
        return True
    scalar = origin.__module__ in ("builtins", "datetime", "decimal", "uuid", "pathlib")
    return not scalar and (is_awaitable(annotation) or _has_fields(origin))


def _may_command(annotation: Any) -> bool:
    kinds = [get_origin(m) or m for m in _members(annotation)]
    return any(kind in (Any, object, Command, ...) for kind in kinds)


def _has_fields(cls: type) -> bool:
    return any(vars(base).get("__annotations__") for base in cls.__mro__)


def declared_keys(function: Any) -> Iterator[tuple[str, str]]:
    """The keys that its return annotation declares, with the class that does."""
    annotated = return_of(function)
    if isinstance(annotated, Unresolved):
        return
    for member in _members(strip(annotated)):
        bare = strip(member)
        if get_origin(bare) is Command or bare is Command:
            continue
        if typing_extensions.is_typeddict(get_origin(bare) or bare):
            cls = get_origin(bare) or bare
            yield from ((key, cls.__name__) for key in vars(cls).get("__annotations__", {}))
        elif isinstance(bare, type) and hasattr(bare, "model_fields"):
            yield from ((key, bare.__name__) for key in bare.model_fields)
        elif isinstance(bare, type) and hasattr(bare, "__dataclass_fields__"):
            yield from ((key, bare.__name__) for key in fields_of(bare))


def returned_keys(function: Any) -> Iterator[str]:
    """The constant keys of the dicts that its source returns, as they are or in a Command."""
    tree = tree_of(function)
    for value in _returned(tree) if tree is not None else ():
        yield from _constant_keys(_update_in(value))


def _update_in(value: ast.expr) -> ast.expr | None:
    match value:
        case ast.Call(func=ast.Name(id="Command"), keywords=keywords):
            given = {k.arg: k.value for k in keywords}
            return given.get("update") if "graph" not in given else None
        case _:
            return value


def _constant_keys(value: ast.expr | None) -> Iterator[str]:
    if isinstance(value, ast.Dict):
        for key in value.keys:
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value


def unawaited(function: Any) -> Iterator[str]:
    """The coroutine functions that are called in what is returned, without an await."""
    tree = tree_of(function)
    for value in _returned(tree) if tree is not None else ():
        for part in _parts(value):
            if isinstance(part, ast.Call) and isinstance(part.func, ast.Name):
                called = _named(function, part.func.id)
                if inspect.iscoroutinefunction(called):
                    yield part.func.id


def _parts(value: ast.expr) -> Iterator[ast.expr]:
    """The value itself, and what stands in it as a dict's or list's own element."""
    yield value
    inner = _update_in(value)
    if isinstance(inner, ast.Dict):
        for part in inner.values:
            yield from _parts(part)
    elif isinstance(value, ast.List | ast.Tuple):
        for part in value.elts:
            yield from _parts(part)


def _named(function: Any, name: str) -> object:
    code = function.__code__
    if name in code.co_freevars and function.__closure__:
        cell = function.__closure__[code.co_freevars.index(name)]
        try:
            return cell.cell_contents
        except ValueError:  # not filled yet
            return None
    return function.__globals__.get(name)


def tree_of(function: Any) -> Tree | None:
    """The source of a function; None, where there is none, or more than one lambda on the line."""
    if not inspect.isfunction(function):
        return None
    try:
        module = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    if function.__name__ == "<lambda>":
        lambdas = [node for node in ast.walk(module) if isinstance(node, ast.Lambda)]
        return lambdas[0] if len(lambdas) == 1 else None
    first = module.body[0] if module.body else None
    return first if isinstance(first, ast.FunctionDef | ast.AsyncFunctionDef) else None


def _returned(tree: Tree) -> Iterator[ast.expr]:
    if isinstance(tree, ast.Lambda):
        yield tree.body
        return
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.Return) and node.value is not None:
            yield node.value
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            waiting += ast.iter_child_nodes(node)


def sends(function: Any) -> bool:
    """Whether it is annotated to return a Send."""
    annotated = return_of(function)
    return not isinstance(annotated, Unresolved) and _mentions(annotated)


def _mentions(annotation: Any) -> bool:
    if annotation is Send:
        return True
    return any(_mentions(arg) for arg in get_args(annotation))


def reachable(function: Any) -> Iterator[object]:
    """What a function and the functions of its module that it calls name: tasks, graphs."""
    seen: set[int] = set()
    waiting = [function]
    while waiting and len(seen) < _LIMIT:
        each = waiting.pop()
        for found in _names_in(each):
            if id(found) in seen:
                continue
            seen.add(id(found))
            yield found
            inner = getattr(found, "func", found)
            if inspect.isfunction(inner) and _same_package(inner, function):
                waiting.append(inner)


def _names_in(function: Any) -> Iterator[object]:
    function = getattr(function, "__func__", function)
    code, names = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    if code is None:
        return
    yield from (names[name] for name in code.co_names if name in names)
    yield from _attributes(code.co_names, names)
    for constant in code.co_consts:
        if inspect.iscode(constant):
            yield from (names[name] for name in constant.co_names if name in names)
    for cell in getattr(function, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue


def _attributes(called: tuple[str, ...], names: Mapping[str, Any]) -> Iterator[object]:
    """`tasks.fetch`, where `tasks` is a module."""
    for name in called:
        module = names.get(name)
        if inspect.ismodule(module):
            yield from (vars(module)[other] for other in called if other in vars(module))


def _same_package(function: Any, other: Any) -> bool:
    package = str(function.__module__).split(".")[0]
    return package == str(getattr(other, "__module__", "")).split(".")[0]
