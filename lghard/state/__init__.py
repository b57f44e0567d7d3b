"""What will happen to a state when it is checkpointed."""

from lghard.state.asserting import assert_checkpointable
from lghard.state.check_settings import CheckSettings
from lghard.state.checking import checked
from lghard.state.graph import allowlist_of, check_graph, check_schema
from lghard.state.mutations import forbid_mutations
from lghard.state.report import Finding, Report, Severity
from lghard.state.serde import CheckedSerializer
from lghard.state.values import check_value

__all__ = [
    "CheckSettings",
    "CheckedSerializer",
    "Finding",
    "Report",
    "Severity",
    "allowlist_of",
    "assert_checkpointable",
    "check_graph",
    "check_schema",
    "check_value",
    "checked",
    "forbid_mutations",
]
