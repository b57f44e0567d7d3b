"""What the database tests share: a server that they may break, if they mend it again."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import psutil
import psycopg
import pytest
from hypothesis import HealthCheck, settings

from lghard.testing import FaultProxy, TemporaryPostgres, temporary_postgres
from lghard.testing.binaries import PostgresNotFoundError, find_binaries
from lghard.testing.fixtures import require_or_skip
from tests.postgres.tls import temporary_tls_postgres

# Random tests are quick, and the same at each run; `pytest --hypothesis-profile=full` goes further.
settings.register_profile(
    "fast",
    max_examples=15,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile(
    "full", settings.get_profile("fast"), max_examples=2000, derandomize=False, database=None
)
settings.load_profile("fast")

Until = Callable[[Callable[[], object]], Awaitable[None]]
Kill = Callable[..., Awaitable[None]]


@pytest.fixture(scope="session")
def breakable_postgres() -> Iterator[TemporaryPostgres]:
    """A server that a test may restart or freeze, if it leaves it running; one for the session."""
    if os.environ.get("LGHARD_TEST_DSN"):
        require_or_skip("this test needs a server that it may break: unset LGHARD_TEST_DSN")
    try:
        binaries = find_binaries(None)
    except PostgresNotFoundError as error:
        require_or_skip(str(error))
    with temporary_postgres(binaries=binaries) as server:
        yield server


@pytest.fixture(scope="session")
def tls_postgres() -> Iterator[TemporaryPostgres]:
    """Such a server that is spoken to over TLS, by clients that ask for it."""
    with temporary_tls_postgres() as server:
        yield server


@pytest.fixture
async def proxy(breakable_postgres: TemporaryPostgres) -> AsyncIterator[FaultProxy]:
    """A network to the breakable server."""
    async with FaultProxy(breakable_postgres.host, breakable_postgres.port) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def until() -> Until:
    """Poll until a condition holds; twenty seconds are for machines under load."""

    async def until(condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.002)

    return until


@pytest.fixture(scope="session")
def kill(until: Until) -> Kill:
    """Terminate backends of a server, and wait until their processes are gone.

    A backend vanishes from pg_stat_activity before its socket does; after its process, all that it
    will ever send is there to be read.
    """

    async def kill(server: TemporaryPostgres, *pids: int) -> None:
        with psycopg.connect(server.conninfo, autocommit=True) as admin:
            for pid in pids:
                admin.execute("SELECT pg_terminate_backend(%s)", [pid])
        await until(lambda: not any(psutil.pid_exists(pid) for pid in pids))

    return kill


@pytest.fixture
def busy_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """psycopg lets others run wherever it may, as it does in an event loop that is busy.

    So there are as many points as there can be at which a task may be cancelled.
    """
    monkeypatch.setattr("psycopg.waiting.MAX_BUSY_TIME", 0.0)
