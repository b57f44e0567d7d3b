"""[tool.lghard] in pyproject.toml: which rules are ignored, and how bad the others are."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from lghard.state.report import Report, Severity
from lghard.state.rules import RULES

_KNOWN = frozenset({"ignore", "severity", "fail-on", "profile"})


@dataclass(frozen=True)
class CheckSettings:
    """What a project has decided about the rules.

    Attributes:
        ignore: rules whose findings are dropped.
        severity: rules that are as bad as this, and not as the table says.
        fail_on: from which severity on `lghard check` exits with 1.
        profile: "json", or None.
    """

    ignore: tuple[str, ...] = ()
    severity: Mapping[str, Severity] = field(default_factory=dict)
    fail_on: Severity = Severity.WARNING
    profile: Literal["json"] | None = None

    @classmethod
    def load(cls, start: Path | None = None) -> Self:
        """From the pyproject.toml of this folder, or of the next one above that has one.

        Raises:
            ValueError: a key, a rule or a severity in it is unknown.
        """
        folder = (start or Path.cwd()).resolve()
        for place in (folder, *folder.parents):
            file = place / "pyproject.toml"
            if file.is_file():
                return cls._of_file(file)
        return cls()

    @classmethod
    def _of_file(cls, file: Path) -> Self:
        try:
            table = tomllib.loads(file.read_text()).get("tool", {}).get("lghard", {})
            return cls.of(table)
        except (tomllib.TOMLDecodeError, ValueError) as error:
            raise ValueError(f"{file}: {error}") from None

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Self:
        """From the keys of [tool.lghard].

        Raises:
            ValueError: a key, a rule or a severity in it is unknown.
        """
        if unknown := sorted(set(table) - _KNOWN):
            known = ", ".join(sorted(_KNOWN))
            raise ValueError(f"[tool.lghard] has no {unknown[0]!r}; it takes {known}")
        rules = (*table.get("ignore", ()), *table.get("severity", {}))
        if wrong := [rule for rule in rules if rule not in RULES]:
            raise ValueError(f"[tool.lghard] names {wrong[0]!r}, and there is no such rule")
        if table.get("profile") not in (None, "json"):
            raise ValueError(f"[tool.lghard] profile is 'json', not {table['profile']!r}")
        return cls(
            tuple(table.get("ignore", ())),
            {rule: Severity.of(name) for rule, name in table.get("severity", {}).items()},
            Severity.of(table.get("fail-on", "warning")),
            table.get("profile"),
        )

    def applied(self, report: Report) -> Report:
        """The report, as the project wants it."""
        kept = (f for f in report if f.rule not in self.ignore)
        judged = (replace(f, severity=self.severity.get(f.rule, f.severity)) for f in kept)
        return Report(tuple(judged), report.subject)
