"""What becomes of what was found: it is raised, logged once, or nothing."""

import logging
import re
from threading import Lock
from typing import Literal

from lghard.errors import StateNotSerializableError
from lghard.state.report import Report, Severity

logger = logging.getLogger("lghard.state")

Mode = Literal["raise", "warn", "off"]

_INDEX = re.compile(r"\[\d+\]")

# So many rules and paths are remembered; a program with more has paths that are all different.
_MOST = 10_000


class Verdicts:
    """Raises what is bad, and logs the rest, each rule at each path once.

    Args:
        mode: "raise", "warn" or "off".
        fail_on: from which severity on it is raised.
    """

    def __init__(self, mode: Mode, fail_on: Severity | str) -> None:
        if mode not in ("raise", "warn", "off"):
            raise ValueError(f'no mode {mode!r}: it is one of "raise", "warn", "off"')
        self.mode = mode
        self.fail_on = Severity.of(fail_on)
        self._told: set[tuple[str, str]] = set()
        self._lock = Lock()

    def on(self, report: Report, where: str = "") -> None:
        """Raise or log what was found.

        Args:
            report: what was found.
            where: who made the value, for the message: "node 'plan'".

        Raises:
            StateNotSerializableError: something is as bad as `fail_on`, or worse.
        """
        if not report.findings or self.mode == "off":
            return
        bad = report.at_least(self.fail_on)
        if bad.findings and self.mode == "raise":
            raise refusal(bad, where)
        for finding in report.at_least(Severity.WARNING):
            if self._is_new(finding.rule, finding.path):
                logger.warning("%s%s → %s", f"{where}: " if where else "", finding, finding.fix)

    def _is_new(self, rule: str, path: str) -> bool:
        key = rule, _INDEX.sub("[]", path)  # the next message is not the next problem
        with self._lock:
            if key in self._told or len(self._told) >= _MOST:
                return False
            self._told.add(key)
            return True


def refusal(report: Report, where: str = "") -> StateNotSerializableError:
    """The error that shows a report."""
    title = f"{where} returned what will not come back" if where else "this will not come back"
    return StateNotSerializableError(f"{title}\n{report}", report)
