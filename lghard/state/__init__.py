"""What will happen to a state when it is checkpointed."""

from lghard.state.check_settings import CheckSettings
from lghard.state.graph import allowlist_of, check_graph, check_schema
from lghard.state.report import Finding, Report, Severity

__all__ = [
    "CheckSettings",
    "Finding",
    "Report",
    "Severity",
    "allowlist_of",
    "check_graph",
    "check_schema",
]
