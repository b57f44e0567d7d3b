"""What will happen to a state when it is checkpointed."""

from lghard.state.report import Finding, Report, Severity

__all__ = ["Finding", "Report", "Severity"]
