"""A real Postgres, a real LangGraph server, and a network that fails on demand, for tests."""

from lghard.testing.binaries import PostgresNotFoundError
from lghard.testing.pgbouncer import (
    PgBouncerNotFoundError,
    TemporaryPgBouncer,
    temporary_pgbouncer,
)
from lghard.testing.postgres import TemporaryPostgres, temporary_postgres
from lghard.testing.proxy import FaultProxy, ProxyProcess, proxy_process
from lghard.testing.server import LangGraphServer, langgraph_server

__all__ = [
    "FaultProxy",
    "LangGraphServer",
    "PgBouncerNotFoundError",
    "PostgresNotFoundError",
    "ProxyProcess",
    "TemporaryPgBouncer",
    "TemporaryPostgres",
    "langgraph_server",
    "proxy_process",
    "temporary_pgbouncer",
    "temporary_postgres",
]
