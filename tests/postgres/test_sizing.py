"""plan_pool, and the comparison with a real server's limits when a pool is opened."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolTimeout

import lghard
from lghard import PoolPlan, open_pool, plan_pool
from lghard.postgres.settings import PoolSettings
from lghard.postgres.sizing import compare_with_server
from lghard.testing import TemporaryPgBouncer, TemporaryPostgres, temporary_postgres

Until = Callable[[Callable[[], object]], Awaitable[None]]

MAX_CONNECTIONS = 20
ROOM = 17
"""MAX_CONNECTIONS less what is reserved for superusers."""
PEER = {"application_name": "lghard other:1"}


@pytest.fixture(scope="module")
def server() -> Iterator[TemporaryPostgres]:
    """A server with few connections, and roles that may have fewer still."""
    settings = {"max_connections": str(MAX_CONNECTIONS), "max_wal_senders": "0"}
    with temporary_postgres(settings=settings) as server:
        with psycopg.connect(server.conninfo, autocommit=True) as admin:
            admin.execute("CREATE ROLE ada LOGIN")
            admin.execute("CREATE ROLE bob LOGIN CONNECTION LIMIT 5")
            admin.execute("CREATE ROLE eve SUPERUSER LOGIN CONNECTION LIMIT 5")
        yield server


@pytest.fixture
def conninfo(server: TemporaryPostgres) -> str:
    """The way to the small server, for an ordinary role."""
    return as_role(server.conninfo, "ada")


def as_role(conninfo: str, role: str) -> str:
    """The same database for another role."""
    return conninfo.replace("postgres@", f"{role}@")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What has been logged for whoever sets the sizes."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "lghard.postgres" and record.levelno == logging.WARNING
    ]


# plan_pool


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({"max_connections": 100}, 97),
        ({"max_connections": 100, "reserved": 0}, 100),
        ({"max_connections": 100, "other": 17}, 80),
        ({"max_connections": 100, "replicas": 3, "processes": 4}, 8),
        ({"max_connections": 100, "replicas": 3, "processes": 4, "loops": 2}, 4),
        ({"max_connections": 400, "replicas": 2, "processes": 2, "loops": 11}, 9),
        ({"max_connections": 4}, 1),
    ],
)
def test_a_plan_divides_what_is_left(numbers: dict[str, int], expected: int) -> None:
    """Reserve and others come off first; replicas, processes and loops share the rest."""
    assert expected == plan_pool(**numbers).max_size


@pytest.mark.parametrize("loops", range(1, 12))
def test_the_budget_of_a_process_fits_too(loops: int) -> None:
    """What shared_pool makes of a process' budget is what one pool may have."""
    plan = plan_pool(max_connections=100, replicas=2, processes=3, loops=loops)
    assert plan.max_size == plan.process_max_size // loops


def test_a_plan_shows_its_calculation() -> None:
    """The repr is for logs."""
    plan = plan_pool(max_connections=100, other=7, replicas=3, processes=4, loops=2)
    assert "<PoolPlan max_size=3: (100 - 3 - 7) // (3 * 4 * 2)>" == repr(plan)


def test_a_plan_says_which_number_to_change() -> None:
    """Each change on its own is enough for one connection more."""
    plan = plan_pool(max_connections=100, replicas=3, processes=4, loops=2)
    expected = (
        "max_size=4 for each of 24 pools (3 replicas * 4 processes * 2 loops): "
        "max_connections=100 less reserved=3 and other=0 leaves 97, 1 of them to spare. "
        "For max_size=5 raise max_connections by 23 to 123, "
        "or lower replicas to 2 or processes to 3 or loops to 1."
    )
    assert expected == plan.explain()


@pytest.mark.parametrize(
    "change", [{"max_connections": 123}, {"replicas": 2}, {"processes": 3}, {"loops": 1}]
)
def test_what_a_plan_advises_is_enough(change: dict[str, int]) -> None:
    """The advice of the test above, followed."""
    numbers = {"max_connections": 100, "replicas": 3, "processes": 4, "loops": 2}
    assert plan_pool(**{**numbers, **change}).max_size >= 5


@pytest.mark.parametrize(
    "change", [{"max_connections": 122}, {"replicas": 3}, {"processes": 4}, {"loops": 2}]
)
def test_a_plan_advises_no_more_than_needed(change: dict[str, int]) -> None:
    """One less than the advice is not enough."""
    numbers = {"max_connections": 100, "replicas": 3, "processes": 4, "loops": 2}
    assert 4 == plan_pool(**{**numbers, **change}).max_size


def test_less_than_one_connection_is_refused_with_the_numbers() -> None:
    """A pool of no connection would only fail later."""
    expected = (
        "less than one connection for each of 110 pools (2 replicas * 5 processes * 11 loops): "
        "max_connections=100 less reserved=3 and other=0 leaves 97; raise max_connections by 13 "
        "to 113, or lower replicas to 1 or processes to 4 or loops to 9"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        plan_pool(max_connections=100, replicas=2, processes=5, loops=11)


def test_others_that_leave_nothing() -> None:
    """Then no number of replicas helps, and only more connections do."""
    with pytest.raises(ValueError, match=r"leaves -1; raise max_connections by 2 to 12$"):
        plan_pool(max_connections=10, other=8)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in ("max_connections", "replicas", "processes", "loops")),
        *((name, -1) for name in ("reserved", "other")),
    ],
)
def test_impossible_numbers_are_refused(name: str, value: int) -> None:
    """Nothing is divided by zero, and nothing is reserved by a minus."""
    with pytest.raises(ValueError, match=f"^{name} must be at least {value + 1}, not {value}$"):
        plan_pool(**{"max_connections": 100, name: value})


def test_a_plan_is_a_value() -> None:
    """Equal numbers make equal plans, under the name that users import."""
    assert PoolPlan(max_connections=100) == plan_pool(max_connections=100)
    assert lghard.PoolPlan is PoolPlan


# Compared with the server


async def test_a_pool_that_fits_is_silent(caplog: pytest.LogCaptureFixture, conninfo: str) -> None:
    """Up to the last connection that the server gives to an ordinary role."""
    async with open_pool(conninfo, max_size=ROOM):
        assert [] == warnings(caplog)


async def test_upstream_says_nothing_until_it_is_too_late(
    caplog: pytest.LogCaptureFixture, conninfo: str
) -> None:
    """The control: a pool that cannot fit opens like any other, and its last borrower waits."""
    async with (
        AsyncConnectionPool(conninfo, min_size=1, max_size=ROOM + 1, open=False) as pool,
        AsyncExitStack() as borrowed,
    ):
        await pool.wait()
        assert [] == caplog.records
        for _ in range(ROOM):
            await borrowed.enter_async_context(pool.connection())
        with pytest.raises(PoolTimeout):
            await pool.getconn(timeout=0.2)
        assert "remaining connection slots" in caplog.text


async def test_a_pool_of_the_size_that_was_advised_can_be_full(conninfo: str) -> None:
    """Every one of its connections can be borrowed at once, where the control's last one cannot."""
    size = plan_pool(max_connections=MAX_CONNECTIONS).max_size
    async with open_pool(conninfo, max_size=size) as pool, AsyncExitStack() as borrowed:
        for _ in range(size):
            await borrowed.enter_async_context(pool.connection())
        assert (ROOM, ROOM) == (size, pool.snapshot().borrowed)


async def test_a_pool_that_is_too_large_is_told_once(
    caplog: pytest.LogCaptureFixture, conninfo: str
) -> None:
    """The number to change, and to what; the pool works nevertheless."""
    async with open_pool(conninfo, max_size=ROOM + 1) as pool, pool.connection() as conn:
        await conn.execute("SELECT 1")
    expected = (
        "max_size=18 and 0 connections of other clients make 18, but max_connections=20 less 3 "
        "reserved leaves 17: lower max_size (LGHARD_POOL_MAX_SIZE) to 17 or raise max_connections "
        "by 1, before Postgres refuses connections"
    )
    assert [expected] == warnings(caplog)


async def test_other_clients_count(
    caplog: pytest.LogCaptureFixture, server: TemporaryPostgres, conninfo: str
) -> None:
    """Also those of roles and databases that an ordinary role cannot look into."""
    with psycopg.connect(server.conninfo), psycopg.connect(server.conninfo):
        async with open_pool(conninfo, max_size=16):
            pass
    (warning,) = warnings(caplog)
    assert "max_size=16 and 2 connections of other clients make 18" in warning
    assert "lower max_size (LGHARD_POOL_MAX_SIZE) to 15 or" in warning


async def test_other_processes_of_lghard_count_in_full(
    caplog: pytest.LogCaptureFixture, conninfo: str
) -> None:
    """Another replica has few connections open now, and may open as many as this one."""
    async with open_pool(conninfo, kwargs=PEER), open_pool(conninfo, max_size=9):
        pass
    (warning,) = warnings(caplog)
    assert "max_size=9 * 2 processes of lghard and 0 connections of other clients" in warning
    assert "lower max_size (LGHARD_POOL_MAX_SIZE) to 8 or" in warning


async def test_this_process_does_not_count_twice(
    caplog: pytest.LogCaptureFixture, conninfo: str
) -> None:
    """What this process has open already is part of what it may open."""
    async with open_pool(conninfo, min_size=3, max_size=10), open_pool(conninfo, max_size=ROOM):
        assert [] == warnings(caplog)


async def test_event_loops_count(caplog: pytest.LogCaptureFixture, conninfo: str) -> None:
    """A LangGraph server with isolated loops opens a pool in each."""
    async with open_pool(conninfo, max_size=4, loops=11):
        pass
    (warning,) = warnings(caplog)
    assert "max_size=4 * 11 event loops (LGHARD_POOL_LOOPS)" in warning
    assert "lower max_size (LGHARD_POOL_MAX_SIZE) to 1 or" in warning


async def test_advice_is_possible(caplog: pytest.LogCaptureFixture, conninfo: str) -> None:
    """Nobody is told to lower max_size to zero."""
    async with open_pool(conninfo, max_size=1, loops=18):
        pass
    (warning,) = warnings(caplog)
    assert "lower" not in warning
    assert "raise max_connections by 1" in warning


async def test_the_limit_of_a_role(
    caplog: pytest.LogCaptureFixture, server: TemporaryPostgres
) -> None:
    """ALTER ROLE … CONNECTION LIMIT is often smaller than max_connections."""
    async with open_pool(as_role(server.conninfo, "bob"), max_size=6):
        pass
    (warning,) = warnings(caplog)
    assert "the CONNECTION LIMIT of role bob is 5: lower max_size" in warning
    assert "to 5 or raise that limit by 1" in warning


async def test_the_limit_of_a_role_is_its_own(
    caplog: pytest.LogCaptureFixture, server: TemporaryPostgres
) -> None:
    """Other roles' connections do not count against it."""
    with psycopg.connect(server.conninfo), psycopg.connect(server.conninfo):
        async with open_pool(as_role(server.conninfo, "bob"), max_size=5):
            assert [] == warnings(caplog)


async def test_limits_of_superusers_do_not_hold(
    caplog: pytest.LogCaptureFixture, server: TemporaryPostgres
) -> None:
    """Postgres does not apply a role's limit to a superuser."""
    async with open_pool(as_role(server.conninfo, "eve"), max_size=10):
        assert [] == warnings(caplog)


async def test_the_limit_of_a_database(
    caplog: pytest.LogCaptureFixture, server: TemporaryPostgres
) -> None:
    """ALTER DATABASE … CONNECTION LIMIT."""
    conninfo = server.create_database()
    name = conninfo.rpartition("/")[2]
    with psycopg.connect(server.conninfo, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 3")
    async with open_pool(as_role(conninfo, "ada")):
        pass
    (warning,) = warnings(caplog)
    assert f"the CONNECTION LIMIT of database {name} is 3: lower max_size" in warning


async def test_reserved_connections_count(
    caplog: pytest.LogCaptureFixture, server: TemporaryPostgres, conninfo: str
) -> None:
    """From Postgres 16 on there is a second reserve, whose name is unknown before."""
    if server.version < 16:
        pytest.skip("reserved_connections is of Postgres 16")
    with psycopg.connect(server.conninfo, autocommit=True) as admin:
        admin.execute("ALTER SYSTEM SET reserved_connections = 5")
        server.restart()
    try:
        async with open_pool(conninfo, max_size=13):
            pass
    finally:
        with psycopg.connect(server.conninfo, autocommit=True) as admin:
            admin.execute("ALTER SYSTEM RESET reserved_connections")
        server.restart()
    (warning,) = warnings(caplog)
    assert "less 8 reserved leaves 12: lower max_size (LGHARD_POOL_MAX_SIZE) to 12" in warning


async def test_behind_a_pooler_other_limits_hold(
    caplog: pytest.LogCaptureFixture,
    lghard_postgres: TemporaryPostgres,
    lghard_pgbouncer: TemporaryPgBouncer,
) -> None:
    """What PgBouncer's clients may open is no number of the server's."""
    through = lghard_pgbouncer.conninfo(lghard_postgres.conninfo)
    async with open_pool(through, max_size=1000, kwargs={"prepare_threshold": None}):
        assert [] == warnings(caplog)


async def test_a_server_that_does_not_tell(
    caplog: pytest.LogCaptureFixture, server: TemporaryPostgres
) -> None:
    """Where the views are closed to the role, a pool opens all the same."""
    conninfo = server.create_database()
    with psycopg.connect(conninfo, autocommit=True) as admin:
        admin.execute("REVOKE SELECT ON pg_catalog.pg_stat_activity FROM PUBLIC")
    async with open_pool(as_role(conninfo, "ada"), max_size=1000) as pool:
        await pool.check()
    assert [] == warnings(caplog)


async def test_a_server_that_does_not_answer(server: TemporaryPostgres) -> None:
    """The comparison is bounded, and leaves no query behind."""
    async with await AsyncConnection.connect(server.conninfo, autocommit=True) as conn:
        pid = conn.info.backend_pid
        server.freeze_backend(pid)
        try:
            async with asyncio.timeout(20):
                settings = PoolSettings(conninfo=server.conninfo)
                await compare_with_server(conn, settings, timeout=0.05)
        finally:
            server.thaw_backend(pid)
        assert conn.broken


async def test_cancelled_while_the_server_does_not_answer(
    until: Until, server: TemporaryPostgres
) -> None:
    """A cancellation does not wait for the server."""
    conn = await AsyncConnection.connect(server.conninfo, autocommit=True)
    pid = conn.info.backend_pid
    server.freeze_backend(pid)
    try:
        settings = PoolSettings(conninfo=server.conninfo)
        comparing = asyncio.create_task(compare_with_server(conn, settings, timeout=20))
        await until(lambda: conn.info.transaction_status.name == "ACTIVE")
        comparing.cancel()
        async with asyncio.timeout(5):
            with pytest.raises(asyncio.CancelledError):
                await comparing
    finally:
        server.thaw_backend(pid)
    assert conn.broken
    await conn.close()


async def test_rows_of_any_kind(caplog: pytest.LogCaptureFixture, conninfo: str) -> None:
    """A pool's own row factory does not disturb the comparison."""
    async with open_pool(
        conninfo, max_size=ROOM + 1, kwargs={"row_factory": psycopg.rows.tuple_row}
    ):
        assert 1 == len(warnings(caplog))
