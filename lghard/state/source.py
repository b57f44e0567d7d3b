"""Comments in the user's code: `# lghard: ignore[LGS301]`."""

import ast
import inspect
import io
import linecache
import re
import sys
import tokenize
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

_IGNORE = re.compile(r"#\s*lghard:\s*ignore(?:\[([^\]]*)\])?")

Lines = tuple[int, int]
Key = tuple[str, str | None] | tuple[int, None]


class Site(NamedTuple):
    """Where something is written: a field of a class, or a class or function itself.

    Attributes:
        owner: the class or function.
        name: of the field; None for the owner itself.
    """

    owner: Any
    name: str | None = None

    def ignores(self, rule: str) -> bool:
        """Whether a comment on this line says so; one without a list ignores every rule."""
        return any(not rules or rule in rules for rules in self._comments())

    def _comments(self) -> list[frozenset[str]]:
        file = _file_of(self.owner)
        comments, places = _read(file) if file is not None else ({}, {})
        first, last = places.get(self._key(), (1, 0)) if comments else (1, 0)
        return [comments[line] for line in range(first, last + 1) if line in comments]

    def _key(self) -> Key:
        """Functions are found by their line, which they know, and classes by their name."""
        if isinstance(self.owner, type):
            return str(self.owner.__qualname__), self.name
        code = getattr(inspect.unwrap(self.owner), "__code__", None)
        return getattr(code, "co_firstlineno", 0), None


def _file_of(owner: Any) -> str | None:
    if isinstance(owner, type):
        return getattr(sys.modules.get(str(owner.__module__)), "__file__", None)
    code = getattr(owner, "__code__", None)
    return getattr(code, "co_filename", None)


@lru_cache(maxsize=256)
def _read(file: str) -> tuple[dict[int, frozenset[str]], dict[Key, Lines]]:
    """What is to be ignored on which line; if there is anything, also what stands where."""
    source = "".join(linecache.getlines(file))
    if not _IGNORE.search(source):
        return {}, {}
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
        places = dict(_places(ast.parse(source), ""))
    except (SyntaxError, ValueError, tokenize.TokenError, RecursionError, SystemError):
        return {}, {}
    found = {t.start[0]: _rules(t.string) for t in tokens if t.type == tokenize.COMMENT}
    return {line: rules for line, rules in found.items() if rules is not None}, places


def _places(tree: ast.AST, prefix: str) -> Iterator[tuple[Key, Lines]]:
    """The head of each class and function, and each annotated name in a class."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            name = f"{prefix}{node.name}"
            yield (name, None), _head(node)
            yield from (
                ((name, s.target.id), (s.lineno, s.end_lineno or s.lineno))
                for s in node.body
                if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)
            )
            yield from _places(node, f"{name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min((d.lineno for d in node.decorator_list), default=node.lineno)
            yield (first, None), _head(node)
            yield from _places(node, f"{prefix}{node.name}.<locals>.")
        else:
            yield from _places(node, prefix)


def _head(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Lines:
    return node.lineno, max(node.lineno, node.body[0].lineno - 1)


def _rules(comment: str) -> frozenset[str] | None:
    found = _IGNORE.search(comment)
    if found is None:
        return None
    return frozenset(rule.strip() for rule in (found[1] or "").split(",") if rule.strip())
