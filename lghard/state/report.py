"""What was found: findings, and the report that holds them."""

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import IntEnum
from itertools import groupby
from typing import overload


class Severity(IntEnum):
    """How bad it is; they compare, `Severity.WARNING < Severity.DATA_LOSS`.

    Attributes:
        NOTE: good to know; nothing that is wrong by itself.
        WARNING: it comes back different in a way that often does not matter: a tuple as a list.
        DATA_LOSS: it comes back as something else, or without a part, and nothing is raised.
        ERROR: it cannot be stored, or what is stored cannot be read.
    """

    NOTE = 1
    WARNING = 2
    DATA_LOSS = 3
    ERROR = 4

    @classmethod
    def of(cls, name: "Severity | str") -> "Severity":
        """The severity of this name: "note", "warning", "data-loss", "error".

        Raises:
            ValueError: there is none of this name.
        """
        if isinstance(name, Severity):
            return name
        try:
            return cls[name.upper().replace("-", "_")]
        except KeyError:
            names = ", ".join(str(severity) for severity in cls)
            raise ValueError(f"no severity {name!r}: it is one of {names}") from None

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True)
class Finding:
    """What will happen to one part of the state.

    Attributes:
        rule: which rule, "LGS301"; each has a page in the documentation.
        severity: how bad it is.
        path: where, from the state down: `$.messages[2].artifact`.
        message: what will happen. It names types and keys, never a value.
        fix: what to do about it.
    """

    rule: str
    severity: Severity
    path: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.rule} {self.severity} {self.path}: {self.message}"

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return {**asdict(self), "severity": str(self.severity)}


@dataclass(frozen=True, repr=False)
class Report(Collection[Finding]):
    """All findings, in the order of their paths in the value or schema.

    It is true if it is clean, so `assert check_value(state)` reads as it should. `str()` is a tree.

    Attributes:
        findings: what was found.
        subject: what was looked at, in one word or two.
    """

    findings: tuple[Finding, ...] = ()
    subject: str = "state"

    @property
    def clean(self) -> bool:
        """Nothing at warning or above."""
        return self.worst is None or self.worst < Severity.WARNING

    @property
    def worst(self) -> Severity | None:
        """The highest severity; None if nothing was found at all."""
        return max((finding.severity for finding in self.findings), default=None)

    @property
    def rules(self) -> tuple[str, ...]:
        """Which rules have found something, each once, in order."""
        return tuple(dict.fromkeys(finding.rule for finding in self.findings))

    def at_least(self, severity: Severity | str) -> "Report":
        """Only what is this bad, or worse."""
        least = Severity.of(severity)
        return self._with(finding for finding in self.findings if finding.severity >= least)

    def without(self, *rules: str) -> "Report":
        """Without the findings of these rules."""
        return self._with(finding for finding in self.findings if finding.rule not in rules)

    def under(self, path: str) -> "Report":
        """Only what stands at this path, or below it."""
        below = (f"{path}.", f"{path}[")
        return self._with(
            finding
            for finding in self.findings
            if finding.path == path or finding.path.startswith(below)
        )

    def _with(self, findings: Iterable[Finding]) -> "Report":
        return Report(tuple(findings), self.subject)

    def __add__(self, other: "Report") -> "Report":
        return self._with(dict.fromkeys((*self.findings, *other.findings)))

    def __bool__(self) -> bool:
        return self.clean

    def __len__(self) -> int:
        return len(self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __contains__(self, finding: object) -> bool:
        return finding in self.findings

    @overload
    def __getitem__(self, index: int) -> Finding: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Finding, ...]: ...
    def __getitem__(self, index: int | slice) -> Finding | tuple[Finding, ...]:
        return self.findings[index]

    def to_json(self, *, indent: int | None = None) -> str:
        """For programs: subject, clean, worst, and each finding."""
        return json.dumps(
            {
                "subject": self.subject,
                "clean": self.clean,
                "worst": None if self.worst is None else str(self.worst),
                "findings": [finding.as_dict() for finding in self.findings],
            },
            indent=indent,
        )

    def summary(self) -> str:
        """In one line: "2 errors, 1 warning"."""
        if not self.findings:
            return "nothing found"
        counts = {
            severity: sum(finding.severity is severity for finding in self.findings)
            for severity in sorted(Severity, reverse=True)
        }
        return ", ".join(_counted(n, str(severity)) for severity, n in counts.items() if n)

    def __str__(self) -> str:
        lines = [f"{self.subject}: {self.summary()}"]
        by_path = [(path, list(found)) for path, found in groupby(self.findings, _path_of)]
        for i, (path, found) in enumerate(by_path):
            last = i == len(by_path) - 1
            lines += [f"{'└──' if last else '├──'} {path}"]
            lines += _branch(found, "    " if last else "│   ")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Report {self.subject}: {self.summary()}>"


def _path_of(finding: Finding) -> str:
    return finding.path


def _branch(found: list[Finding], indent: str) -> list[str]:
    lines = []
    for i, finding in enumerate(found):
        last = i == len(found) - 1
        lines.append(
            f"{indent}{'└──' if last else '├──'} {finding.rule} {finding.severity}: "
            f"{finding.message}"
        )
        lines.append(f"{indent}{'   ' if last else '│  '}   → {finding.fix}")
    return lines


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 or what == "data-loss" else f"{n} {what}s"
