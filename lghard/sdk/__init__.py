"""Talking to a LangGraph server: the SDK's own clients, with safe defaults."""

from lghard.sdk.background import RunHandle, RunResult, await_run, start_run
from lghard.sdk.client import get_client, get_sync_client, harden_client
from lghard.sdk.once import create_run_once, forget_run_key
from lghard.sdk.outcomes import CircuitOpenError
from lghard.sdk.policy import RunPolicy

__all__ = [
    "CircuitOpenError",
    "RunHandle",
    "RunPolicy",
    "RunResult",
    "await_run",
    "create_run_once",
    "forget_run_key",
    "get_client",
    "get_sync_client",
    "harden_client",
    "start_run",
]
