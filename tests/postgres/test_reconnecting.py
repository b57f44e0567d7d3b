"""The pool comes back as soon as its server does, and does not insist where that does harm."""

import asyncio

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from lghard import ForeignLoopError, ManagedPool, open_pool
from lghard.postgres.reconnecting import is_away
from tests.postgres.checkpoints import eventually, query


def sizes(pool):
    """What upstream counts as its own, and what lies idle."""
    stats = pool.get_stats()
    return stats["pool_size"], stats["pool_available"]


@pytest.mark.parametrize("pool_class", [AsyncConnectionPool, ManagedPool])
async def test_the_pool_fills_up_again_after_it_has_given_up(lghard_own_postgres, pool_class):
    """Upstream stays empty once reconnect_timeout is over, whatever the server does later."""
    server = lghard_own_postgres
    gave_up = asyncio.Event()
    async with pool_class(
        server.conninfo,
        min_size=2,
        reconnect_timeout=0.3,
        reconnect_failed=lambda _: gave_up.set(),
        open=False,
    ) as pool:
        await pool.wait()
        await asyncio.to_thread(server.stop, "immediate")
        for _ in range(2):
            with pytest.raises((psycopg.OperationalError, PoolTimeout)):
                async with pool.connection(timeout=0.2) as conn:
                    await conn.execute("SELECT 1")
        async with asyncio.timeout(30):
            await gave_up.wait()
        if pool_class is AsyncConnectionPool:
            await eventually(lambda: pool._nconns == 0)
            await asyncio.to_thread(server.start)
            assert (0, 0) == sizes(pool)
        else:
            await asyncio.to_thread(server.start)
            await eventually(lambda: sizes(pool) == (2, 2))


async def test_a_server_that_comes_back_is_noticed_by_who_waits(lghard_own_postgres):
    """However long the server was away, and however far the attempts had backed off."""
    server = lghard_own_postgres
    async with open_pool(server.conninfo, min_size=2, timeout=60) as pool:
        await asyncio.to_thread(server.stop, "immediate")
        await eventually(lambda: pool._reconnects._failures > 4)
        borrower = asyncio.ensure_future(pool.getconn())
        await eventually(lambda: pool.snapshot().waiting == 1)
        seen = pool._reconnects._failures
        await eventually(lambda: pool._reconnects._failures > seen + 3)
        await asyncio.to_thread(server.start)
        await pool.putconn(await borrower)
        await eventually(lambda: pool.snapshot().missing == 0)


async def test_one_attempt_at_a_time_while_the_server_is_away(lghard_own_postgres):
    """Ten missing connections are not ten times the attempts."""
    server = lghard_own_postgres
    async with open_pool(server.conninfo, min_size=10, max_size=10) as pool:
        await asyncio.to_thread(server.stop, "immediate")
        await eventually(lambda: pool.snapshot().missing == 10)
        before = pool._reconnects._failures
        await eventually(lambda: pool._reconnects._failures > before)
        assert pool.snapshot().missing >= 9
        await asyncio.to_thread(server.start)
        await eventually(lambda: sizes(pool) == (10, 10))


@pytest.mark.parametrize(
    ("words", "away"),
    [
        ('connection to server at "x" failed: Connection refused', True),
        ("FATAL:  the database system is starting up", True),
        ("server closed the connection unexpectedly", True),
        ('FATAL:  password authentication failed for user "ada"', False),
        ("FATAL:  sorry, too many clients already", False),
        ("FATAL:  Passwort-Authentifizierung für Benutzer »ada« fehlgeschlagen", False),
    ],
)
def test_who_is_away_and_who_refuses(words, away):
    """Insisting helps with the one, and does harm with the other."""
    assert away is is_away(psycopg.OperationalError(words))


@pytest.mark.parametrize("pool_class", [AsyncConnectionPool, ManagedPool])
async def test_idle_connections_are_replaced_at_max_lifetime(lghard_database, pool_class):
    """Upstream serves them, however old, until they come back from somebody."""
    async with pool_class(lghard_database, min_size=1, max_lifetime=0.5, open=False) as pool:
        await pool.wait()
        (old,) = pool._pool
        await eventually(lambda: old._expire_at < asyncio.get_running_loop().time())
        async with pool.connection() as conn:
            assert (conn is old) is (pool_class is AsyncConnectionPool)


async def test_what_expires_while_nobody_borrows_is_replaced(lghard_database):
    """So that the next borrower need not wait for a new connection."""
    async with open_pool(lghard_database, min_size=2, max_lifetime=0.5) as pool:
        old = {conn.pgconn.backend_pid for conn in pool._pool}
        await eventually(lambda: not old & {conn.pgconn.backend_pid for conn in pool._pool})
        await eventually(lambda: pool.snapshot().evictions.get("expired", 0) >= 2)


async def test_what_dies_while_nobody_borrows_is_replaced(lghard_postgres, lghard_database):
    """Before anybody meets it."""
    async with open_pool(lghard_database, min_size=3) as pool:
        old = {conn.pgconn.backend_pid for conn in pool._pool}
        await asyncio.to_thread(
            lghard_postgres.terminate_backends, database=lghard_database.rsplit("/", 1)[-1]
        )
        await eventually(lambda: sizes(pool) == (3, 3))
        await eventually(lambda: not old & {conn.pgconn.backend_pid for conn in pool._pool})
        assert 3 == pool.snapshot().evictions["dead"]


@pytest.mark.parametrize("pool_class", [AsyncConnectionPool, ManagedPool])
async def test_after_a_failover_the_old_primary_is_left(lghard_own_postgres, pool_class):
    """Upstream keeps connections to a read-only server: an empty query works on a standby too."""
    server = lghard_own_postgres
    async with pool_class(
        server.conninfo, min_size=2, kwargs={"autocommit": True}, open=False
    ) as pool:
        await pool.wait()
        old = {conn.pgconn.backend_pid for conn in pool._pool}
        async with await AsyncConnection.connect(server.conninfo, autocommit=True) as admin:
            await admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            await admin.execute("SELECT pg_reload_conf()")
            await eventually(lambda: is_read_only(server.conninfo))
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                async with pool.connection() as conn:
                    await conn.execute("CREATE TABLE t ()")
            await admin.execute("SET default_transaction_read_only = off")
            await admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
        await eventually(lambda: len(pool._pool) == 2)
        now = {conn.pgconn.backend_pid for conn in pool._pool}
        assert (old if pool_class is AsyncConnectionPool else set()) == old & now


async def is_read_only(conninfo):
    return [("on",)] == await query(conninfo, "SHOW default_transaction_read_only")


async def test_a_real_failover(lghard_own_postgres):
    """Two servers, one conninfo: when the primary is gone, the promoted standby takes over."""
    primary = lghard_own_postgres
    with primary.standby() as standby:
        hosts = f"{primary.host}:{primary.port},{standby.host}:{standby.port}"
        async with open_pool(f"postgresql://postgres@{hosts}/postgres", timeout=60) as pool:
            async with pool.connection() as conn:
                await conn.execute("CREATE TABLE turns (n int)")
            await asyncio.to_thread(primary.stop, "immediate")
            writing = asyncio.create_task(write_a_turn(pool))
            await eventually(lambda: pool.snapshot().waiting)
            await asyncio.to_thread(standby.promote)
            await writing
        assert [(1,)] == await query(standby.conninfo, "SELECT n FROM turns")


async def write_a_turn(pool):
    async with pool.connection() as conn:
        await conn.execute("INSERT INTO turns VALUES (1)")


def elsewhere(coroutine):
    """Run it in an event loop of its own, in a thread of its own."""
    return asyncio.to_thread(asyncio.run, coroutine)


async def test_another_event_loop_is_told_apart(lghard_database):
    """Upstream works there by chance, and fails in the owner's loop instead."""
    async with open_pool(lghard_database) as pool:
        with pytest.raises(ForeignLoopError, match="open a pool in each event loop") as caught:
            await elsewhere(pool.getconn())
        assert 2 == str(caught.value).count("_UnixSelectorEventLoop")
        assert "'MainThread'" in str(caught.value)
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")


@pytest.mark.parametrize("pool_class", [AsyncConnectionPool, ManagedPool])
async def test_who_has_given_up_does_not_wait(lghard_database, pool_class):
    """max_waiting counts who waits, not who has waited once: upstream refuses the fourth."""
    async with (
        pool_class(lghard_database, min_size=1, max_size=1, max_waiting=3, open=False) as pool,
        pool.connection(),
    ):
        for _ in range(5):
            error = await failing(pool)
        upstream = pool_class is AsyncConnectionPool
        assert ("TooManyRequests" if upstream else "PoolTimeout") == error
        assert (3 if upstream else 0) == pool.get_stats()["requests_waiting"]


async def failing(pool):
    with pytest.raises(psycopg.OperationalError) as caught:
        await pool.getconn(timeout=0.05)
    return type(caught.value).__name__


async def test_closing_waits_for_what_is_borrowed(lghard_database):
    """Newcomers are refused meanwhile; then everything is closed."""
    pool = ManagedPool(lghard_database, min_size=1, open=False)
    await pool.open()
    conn = await pool.getconn()
    closing = asyncio.create_task(pool.close(drain_timeout=60))
    await eventually(lambda: pool._draining)
    with pytest.raises(PoolClosed, match="is closing"):
        await pool.getconn()
    await conn.execute("SELECT 1")
    assert not closing.done()
    await pool.putconn(conn)
    await closing
    assert pool.closed
    assert conn.closed


async def test_closing_does_not_wait_for_ever(lghard_database):
    """Who holds a connection for longer than drain_timeout loses it when it comes back."""
    pool = ManagedPool(lghard_database, min_size=1, open=False)
    await pool.open()
    conn = await pool.getconn()
    await pool.close(drain_timeout=0.05)
    assert pool.closed
    await pool.putconn(conn)
    assert conn.closed


async def test_a_leak_is_reported_once_with_its_stack(lghard_database, caplog):
    """Who borrowed a connection and did not bring it back is named by file and function."""
    async with open_pool(lghard_database) as pool:
        pool.leak_after = 0.1
        conn = await pool.getconn()
        await eventually(lambda: "not back" in caplog.text)
        await eventually(lambda: pool._borrows.longest() > 2.5)
        await pool.putconn(conn)
    reports = [record.getMessage() for record in caplog.records if "not back" in record.msg]
    assert 1 == len(reports)
    assert "in test_a_leak_is_reported_once_with_its_stack" in reports[0]


async def test_health_of_a_healthy_pool(lghard_database):
    """A readiness endpoint gets an answer and the numbers."""
    async with open_pool(lghard_database) as pool:
        health = await pool.health()
    assert (True, (), "primary", False) == (
        health.ok,
        health.reasons,
        health.role,
        health.pooler,
    )
    assert health.round_trip > 0
    assert health.snapshot.size == 1


async def test_health_of_a_dead_server(lghard_own_postgres):
    """No exception, but the reasons, in the server's or libpq's words."""
    server = lghard_own_postgres
    async with open_pool(server.conninfo) as pool:
        await asyncio.to_thread(server.stop, "immediate")
        await eventually(lambda: pool.snapshot().connect_error)
        health = await pool.health(timeout=0.2)
        await asyncio.to_thread(server.start)
    assert (False, None, None) == (health.ok, health.role, health.round_trip)
    assert any("refused" in reason for reason in health.reasons)


async def test_health_of_an_exhausted_pool(lghard_database):
    """It says which number to raise."""
    async with open_pool(lghard_database, max_size=1) as pool, pool.connection():
        health = await pool.health(timeout=0.1)
    assert any("raise max_size" in reason for reason in health.reasons)


async def test_health_of_a_standby(lghard_own_postgres):
    """A server that takes no writes cannot keep checkpoints."""
    with lghard_own_postgres.standby() as standby:
        async with open_pool(standby.conninfo) as pool:
            health = await pool.health()
    assert (False, "standby") == (health.ok, health.role)
    assert "read-only" in health.reasons[0]


async def test_snapshot_of_a_busy_pool(lghard_database):
    """What is out, what waits, and since when."""
    async with open_pool(lghard_database, max_size=1) as pool:
        async with pool.connection():
            waiting = asyncio.create_task(pool.getconn())
            await eventually(lambda: pool.snapshot().waiting)
            busy = pool.snapshot()
        await pool.putconn(await waiting)
        calm = pool.snapshot()
    assert (1, 0, 1, 1, True) == (
        busy.borrowed,
        busy.idle,
        busy.waiting,
        busy.size,
        busy.longest_borrow > 0,
    )
    assert (0, 1, 0, 2) == (calm.borrowed, calm.idle, calm.waiting, calm.requests)
