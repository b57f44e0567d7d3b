"""The pool comes back as soon as its server does, and does not insist where that does harm."""

import asyncio
from contextlib import asynccontextmanager
from itertools import pairwise
from types import SimpleNamespace

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout
from psycopg_pool.base import AttemptWithBackoff
from psycopg_pool.pool_async import AddConnection

from lghard import ManagedPool, open_pool
from lghard.postgres.reconnecting import URGENT, Attempt, Reconnects, is_away
from lghard.testing import FaultProxy
from tests.postgres.checkpoints import eventually, query

REFUSED = "Connection refused"
STARTING = "FATAL:  the database system is starting up"
PASSWORD = 'FATAL:  password authentication failed for user "ada"'
FULL = "FATAL:  sorry, too many clients already"

ATTEMPTS = 10


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


async def test_an_outage_is_not_logged_with_each_attempt(lghard_postgres, lghard_database, caplog):
    """One line for each connection that is lost, and one when the server gives another reason."""
    async with FaultProxy(lghard_postgres.host, lghard_postgres.port) as proxy:
        conninfo = proxy.conninfo(lghard_database)
        async with open_pool(conninfo, min_size=2, max_size=2) as pool:
            proxy.refuse()
            proxy.drop()
            borrower = asyncio.create_task(pool.getconn())
            await eventually(lambda: pool._reconnects._failures > 12)
            assert ["psycopg.pool"] * 2 == [record.name for record in caplog.records]
            lghard_postgres.drop_database(lghard_database)
            proxy.accept()
            await eventually(lambda: "does not exist" in caplog.text)
            borrower.cancel()
    (reason,) = [record for record in caplog.records if record.name == "lghard.postgres"]
    assert "cannot connect" in reason.getMessage()


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
        (f'connection to server at "x" failed: {REFUSED}', True),
        (STARTING, True),
        ("server closed the connection unexpectedly", True),
        (PASSWORD, False),
        (FULL, False),
        ("FATAL:  Passwort-Authentifizierung für Benutzer »ada« fehlgeschlagen", False),
    ],
)
def test_who_is_away_and_who_refuses(words, away):
    """Insisting helps with the one, and does harm with the other."""
    assert away is is_away(psycopg.OperationalError(words))


@pytest.fixture
def clock(monkeypatch):
    """A list whose one item is the time: it passes only where `Reconnects` sleeps."""
    now, really_sleep = [0.0], asyncio.sleep

    async def sleep(seconds):
        now[0] += seconds
        await really_sleep(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr("lghard.postgres.reconnecting.monotonic", lambda: now[0])
    return now


async def pauses(clock, error, *, waited_for):
    """The seconds between attempts that all fail with this error."""
    times, over = [clock[0]], asyncio.Event()

    def run(task):
        times.append(clock[0])
        if len(times) > ATTEMPTS:
            over.set()
        else:
            fail(task)

    def fail(task):
        reconnects.failed(psycopg.OperationalError(error))
        reconnects.postpone(task)

    reconnects = Reconnects(run, lambda: waited_for)
    fail(SimpleNamespace(attempt=Attempt(timeout=600)))
    await over.wait()
    await asyncio.gather(*reconnects.stop(), return_exceptions=True)
    return [later - earlier for earlier, later in pairwise(times)]


def upstreams_pauses():
    """The seconds between attempts of upstream, whatever the error and whoever waits."""
    attempt = AttemptWithBackoff(timeout=600)
    for _ in range(ATTEMPTS):
        attempt.update_delay(0.0)
        yield attempt.delay


@pytest.mark.parametrize("error", [REFUSED, STARTING])
async def test_who_waits_for_a_server_that_is_away_is_not_kept_waiting(clock, error):
    """Each attempt follows the last one within 0.05 s; upstream's tenth within minutes."""
    assert max(await pauses(clock, error, waited_for=True)) == pytest.approx(URGENT)
    assert max(upstreams_pauses()) > 300


@pytest.mark.parametrize("error", [REFUSED, STARTING])
async def test_nobody_waits_for_a_server_that_is_away(clock, error):
    """Attempts back off, to a second at most and not all pools to the same moment."""
    seconds = await pauses(clock, error, waited_for=False)
    assert seconds[0] < 0.5 <= min(seconds[-5:])
    assert max(seconds) <= 1.0
    assert len(set(seconds[-5:])) > 1


@pytest.mark.parametrize("waited_for", [True, False])
@pytest.mark.parametrize("error", [PASSWORD, FULL])
async def test_a_server_that_refuses_is_not_pressed(clock, error, waited_for):
    """Insisting would lock the account, or take the last connections, whoever waits."""
    seconds = await pauses(clock, error, waited_for=waited_for)
    assert 2.5 <= min(seconds[-4:])
    assert max(seconds) <= 5.0


async def test_when_one_attempt_succeeds_all_others_follow():
    """At once: who had to wait for the server need not wait for a back-off as well."""
    tried = []
    reconnects = Reconnects(tried.append, lambda: False)
    for missing in range(3):
        reconnects.postpone(missing)
    reconnects.succeeded()
    await asyncio.wait(reconnects.stop())
    assert [0, 1, 2] == tried


@pytest.mark.parametrize("pool_class", [AsyncConnectionPool, ManagedPool])
async def test_idle_connections_are_replaced_at_max_lifetime(lghard_database, pool_class):
    """Upstream serves them, however old, until they come back from somebody."""
    async with pool_class(lghard_database, min_size=1, max_lifetime=0.5, open=False) as pool:
        await pool.wait()
        (old,) = pool._pool
        await eventually(lambda: old._expire_at < asyncio.get_running_loop().time())
        async with pool.connection() as conn:
            assert (conn is old) is (pool_class is AsyncConnectionPool)


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
    """When the primary is gone, the promoted standby takes over; upstream is content with less."""
    primary = lghard_own_postgres
    with primary.standby() as standby:
        hosts = f"{primary.host}:{primary.port},{standby.host}:{standby.port}"
        conninfo = f"postgresql://postgres@{hosts}/postgres"
        async with open_pool(conninfo, timeout=60) as pool, upstream_pool(conninfo) as upstream:
            async with pool.connection() as conn:
                await conn.execute("CREATE TABLE turns (n int)")
            await eventually(lambda: has_turns(standby.conninfo))
            await asyncio.to_thread(primary.stop, "immediate")
            writing = asyncio.create_task(write_a_turn(pool))
            await eventually(lambda: pool.snapshot().waiting)
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                await write_a_turn(upstream)
            await asyncio.to_thread(standby.promote)
            await writing
        assert [(1,)] == await query(standby.conninfo, "SELECT n FROM turns")


@asynccontextmanager
async def upstream_pool(conninfo):
    """Upstream's, with one connection that is checked before each borrow."""
    check = AsyncConnectionPool.check_connection
    async with AsyncConnectionPool(conninfo, min_size=1, check=check, open=False) as pool:
        await pool.wait()
        yield pool


async def has_turns(conninfo):
    return [(True,)] == await query(conninfo, "SELECT to_regclass('turns') IS NOT NULL")


async def write_a_turn(pool):
    async with pool.connection() as conn:
        await conn.execute("INSERT INTO turns VALUES (1)")


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


async def test_upstream_closes_over_what_is_borrowed(lghard_database):
    """The control: it does not wait, and nobody knows how many are at work still."""
    pool = AsyncConnectionPool(lghard_database, min_size=1, open=False)
    await pool.open()
    conn = await pool.getconn()
    await pool.close()
    assert (True, False) == (pool.closed, conn.closed)
    await pool.putconn(conn)


async def test_closing_waits_for_what_is_borrowed(lghard_database):
    """Newcomers are refused meanwhile, whatever is idle; then everything is closed."""
    pool = ManagedPool(lghard_database, min_size=2, open=False)
    await pool.open(wait=True)
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


async def test_a_pool_that_is_closed_does_not_begin_to_reconnect():
    """One of its workers may fail while it is being closed, and is the last."""
    reconnects = Reconnects(lambda _: None, lambda: False)
    reconnects.stop()
    reconnects.postpone(AddConnection(ManagedPool("", open=False)))
    assert 0 == len(reconnects)
    assert not reconnects.stop()
