"""Comments in the user's code: `# lghard: ignore[LGS301]`."""

import ast
import inspect
import io
import re
import textwrap
import tokenize
from functools import lru_cache
from typing import Any, NamedTuple

_IGNORE = re.compile(r"#\s*lghard:\s*ignore(?:\[([^\]]*)\])?")


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

    def _comments(self) -> tuple[frozenset[str], ...]:
        try:
            return _comments_of(self.owner).get(self.name, ())
        except TypeError:  # an unhashable owner
            return ()


@lru_cache(maxsize=1024)
def _comments_of(owner: Any) -> dict[str | None, tuple[frozenset[str], ...]]:
    """What is to be ignored, by the name of the field."""
    try:
        source = textwrap.dedent(inspect.getsource(owner))
        tree = ast.parse(source).body[0]
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (OSError, TypeError, SyntaxError, ValueError, IndexError, tokenize.TokenError):
        return {}
    comments = {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}
    found: dict[str | None, tuple[frozenset[str], ...]] = {}
    for name, first, last in _lines(tree):
        rules = (_rules(comments.get(line, "")) for line in range(first, last + 1))
        found[name] = tuple(r for r in rules if r is not None)
    return found


def _lines(tree: ast.stmt) -> list[tuple[str | None, int, int]]:
    """The lines of the head, and of each annotated name in the body."""
    body = getattr(tree, "body", [])
    head = min((s.lineno for s in body), default=tree.lineno + 1) - 1
    fields: list[tuple[str | None, int, int]] = [
        (s.target.id, s.lineno, s.end_lineno or s.lineno)
        for s in body
        if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)
    ]
    return [(None, tree.lineno, max(head, tree.lineno)), *fields]


def _rules(comment: str) -> frozenset[str] | None:
    found = _IGNORE.search(comment)
    if found is None:
        return None
    return frozenset(rule.strip() for rule in (found[1] or "").split(",") if rule.strip())
