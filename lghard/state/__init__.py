"""What will happen to a state when it is checkpointed."""

from lghard.state.asserting import assert_checkpointable
from lghard.state.checking import checked
from lghard.state.mutations import forbid_mutations
from lghard.state.report import Finding, Report, Severity
from lghard.state.serde import CheckedSerializer
from lghard.state.values import check_value

__all__ = [
    "CheckedSerializer",
    "Finding",
    "Report",
    "Severity",
    "assert_checkpointable",
    "check_value",
    "checked",
    "forbid_mutations",
]
