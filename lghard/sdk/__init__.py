"""Talking to a LangGraph server: the SDK's own clients, with safe defaults."""

from lghard.sdk.client import get_client, get_sync_client, harden_client
from lghard.sdk.policy import RunPolicy

__all__ = ["RunPolicy", "get_client", "get_sync_client", "harden_client"]
