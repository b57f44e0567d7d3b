"""A real Postgres, a real LangGraph server, and a network that fails on demand, for tests."""

from lghard.testing.proxy import FaultProxy, ProxyProcess, proxy_process

__all__ = ["FaultProxy", "ProxyProcess", "proxy_process"]
