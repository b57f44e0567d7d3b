"""The test kit as pytest fixtures: `pytest_plugins = ["lghard.testing.fixtures"]` in conftest.py.

What the environment decides:

- `LGHARD_TEST_POSTGRES`: which Postgres to start, a bin folder or a major version like `15`.
- `LGHARD_TEST_DSN`: a running server to use instead, for those who cannot start one. The fixtures
  create their databases there; tests that need power over the server's processes are skipped.
- `LGHARD_REQUIRE_ALL=1`: what would be skipped for want of a server fails, as it should in CI.

A conftest.py may also import from this module, which pytest would otherwise warn of:
PYTEST_DONT_REWRITE.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NoReturn

import pytest

from lghard.testing.binaries import PostgresNotFoundError, find_binaries
from lghard.testing.pgbouncer import (
    PgBouncerNotFoundError,
    TemporaryPgBouncer,
    temporary_pgbouncer,
)
from lghard.testing.postgres import TemporaryPostgres, temporary_postgres
from lghard.testing.server import LangGraphServer, langgraph_server


def require_or_skip(reason: str) -> NoReturn:
    """Skip the test for want of a server, or fail it where `LGHARD_REQUIRE_ALL=1` demands one.

    Args:
        reason: What is missing, and how to get it.

    Raises:
        pytest.skip.Exception: Unless all servers are required.
        pytest.fail.Exception: If they are.
    """
    if os.environ.get("LGHARD_REQUIRE_ALL") == "1":
        pytest.fail(f"LGHARD_REQUIRE_ALL=1, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def lghard_postgres() -> Iterator[TemporaryPostgres]:
    """A Postgres server for the whole test session, or the one `LGHARD_TEST_DSN` names.

    Tests share it, so leave it running: for a test that stops or freezes the server itself, there
    is `lghard_own_postgres`.
    """
    dsn = os.environ.get("LGHARD_TEST_DSN")
    if dsn:
        yield TemporaryPostgres(None, dsn)
    else:
        with _started() as server:
            yield server


@pytest.fixture
def lghard_own_postgres() -> Iterator[TemporaryPostgres]:
    """A Postgres server for this test alone, to be restarted, frozen and promoted at will."""
    if os.environ.get("LGHARD_TEST_DSN"):
        require_or_skip("this test needs a server of its own: unset LGHARD_TEST_DSN")
    with _started() as server:
        yield server


@pytest.fixture
def lghard_empty_database(lghard_postgres: TemporaryPostgres) -> Iterator[str]:
    """The conninfo of an empty database for this test alone."""
    with _database(lghard_postgres) as conninfo:
        yield conninfo


@pytest.fixture
def lghard_database(lghard_postgres: TemporaryPostgres, _lghard_template: str) -> Iterator[str]:
    """The conninfo of a database for this test alone, with the tables of a checkpointer.

    They are those of upstream's `PostgresSaver.setup()`, copied instead of created anew.
    """
    with _database(lghard_postgres, template=_lghard_template) as conninfo:
        yield conninfo


@pytest.fixture(scope="session")
def _lghard_template(lghard_postgres: TemporaryPostgres) -> Iterator[str]:
    from langgraph.checkpoint.postgres import PostgresSaver  # noqa: PLC0415 - only who needs it

    with _database(lghard_postgres) as conninfo:
        # Closed again at once: a database that somebody is connected to cannot be copied.
        with PostgresSaver.from_conn_string(conninfo) as saver:
            saver.setup()
        yield conninfo


@pytest.fixture(scope="session")
def lghard_langgraph_server() -> Iterator[Callable[..., LangGraphServer]]:
    """A function that starts a LangGraph server, which then runs to the end of the session.

    It takes the arguments of `langgraph_server`. A start takes seconds, so give a test module one
    server, by a fixture of the module's own that calls this one.
    """
    with ExitStack() as servers:
        yield lambda *args, **kwargs: servers.enter_context(langgraph_server(*args, **kwargs))


@pytest.fixture(scope="session")
def lghard_pgbouncer(lghard_postgres: TemporaryPostgres) -> Iterator[TemporaryPgBouncer]:
    """A PgBouncer in transaction mode in front of `lghard_postgres`, for the whole session."""
    with ExitStack() as stack:
        try:
            pooler = stack.enter_context(temporary_pgbouncer(lghard_postgres))
        except PgBouncerNotFoundError as error:
            require_or_skip(str(error))
        yield pooler


@contextmanager
def _started() -> Iterator[TemporaryPostgres]:
    try:
        binaries = find_binaries(None)
    except PostgresNotFoundError as error:
        require_or_skip(str(error))
    with temporary_postgres(binaries=binaries) as server:
        yield server


@contextmanager
def _database(server: TemporaryPostgres, template: str | None = None) -> Iterator[str]:
    conninfo = server.create_database(template=template)
    try:
        yield conninfo
    finally:
        server.drop_database(conninfo)
