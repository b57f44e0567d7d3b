"""What a pool tells: to a readiness endpoint, a metric, a log, and who waits for it."""

import asyncio
from contextlib import asynccontextmanager

from psycopg_pool import AsyncConnectionPool

from lghard import open_pool
from lghard.postgres.borrowing import Borrows
from tests.postgres.checkpoints import eventually, query


@asynccontextmanager
async def upstream_pool(conninfo):
    """Upstream's, with one connection."""
    async with AsyncConnectionPool(conninfo, min_size=1, max_size=1, open=False) as pool:
        await pool.wait()
        yield pool


def warnings(caplog, logger):
    return [record.getMessage() for record in caplog.records if record.name == logger]


async def test_a_leak_is_reported_once_with_its_stack(lghard_database, caplog, monkeypatch):
    """Who borrowed a connection and did not bring it back is named; upstream never tells."""
    monkeypatch.setattr("lghard.postgres.pool._ROUND", 0.05)
    async with (
        upstream_pool(lghard_database) as upstream,
        open_pool(lghard_database, leak_after=0.1) as pool,
    ):
        theirs, ours = await upstream.getconn(), await pool.getconn()
        await eventually(lambda: warnings(caplog, "lghard.postgres"))
        await eventually(lambda: pool.snapshot().longest_borrow > 0.5)
        await pool.putconn(ours)
        await upstream.putconn(theirs)
    (report,) = warnings(caplog, "lghard.postgres")
    assert "is not back" in report
    assert "in test_a_leak_is_reported_once_with_its_stack" in report
    assert [] == warnings(caplog, "psycopg.pool")


async def test_health_of_a_healthy_pool(lghard_database):
    """A readiness endpoint gets an answer and the numbers."""
    async with open_pool(lghard_database) as pool:
        health = await pool.health()
        (version,) = await query(lghard_database, "SHOW server_version")
    assert (True, (), "primary", False) == (
        health.ok,
        health.reasons,
        health.role,
        health.pooler,
    )
    assert version == (health.server_version,)
    assert health.round_trip > 0
    assert health.snapshot.size == 1


async def test_health_behind_a_pooler(lghard_database, lghard_pgbouncer):
    """It is told from the server itself, by the process id."""
    async with open_pool(lghard_pgbouncer.conninfo(lghard_database)) as pool:
        health = await pool.health()
    assert (True, True) == (health.ok, health.pooler)


async def test_health_of_a_dead_server(lghard_own_postgres):
    """No exception, but the reasons, in libpq's words; upstream's numbers are those of before."""
    server = lghard_own_postgres
    async with open_pool(server.conninfo) as pool, upstream_pool(server.conninfo) as upstream:
        await asyncio.to_thread(server.stop, "immediate")
        await eventually(lambda: pool.snapshot().connect_error)
        health = await pool.health(timeout=0.2)
        assert 1 == upstream.get_stats()["pool_available"]
        await asyncio.to_thread(server.start)
    assert (False, None, None) == (health.ok, health.role, health.round_trip)
    assert any("refused" in reason for reason in health.reasons)


async def test_health_of_an_exhausted_pool(lghard_database):
    """It says which number to raise, as soon as its own time is over."""
    async with open_pool(lghard_database, max_size=1, timeout=600) as pool, pool.connection():
        health = await pool.health(timeout=0.1)
    assert any("raise max_size" in reason for reason in health.reasons)


async def test_health_of_a_frozen_server(lghard_postgres, lghard_database):
    """It answers within its own time; upstream's query still waits."""
    async with upstream_pool(lghard_database) as upstream, open_pool(lghard_database) as pool:
        (ours,), (theirs,) = pool._pool, upstream._pool
        pids = [conn.info.backend_pid for conn in (ours, theirs)]
        for pid in pids:
            lghard_postgres.freeze_backend(pid)
        try:
            asked = asyncio.create_task(ask(upstream))
            health = await pool.health(timeout=0.2)
            assert not asked.done()
        finally:
            for pid in pids:
                lghard_postgres.thaw_backend(pid)
        await asked
    assert (False, None) == (health.ok, health.round_trip)
    assert "no answer within 0.2 s" == health.reasons[0]


async def ask(pool):
    async with pool.connection() as conn:
        await conn.execute("SELECT 1")


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


async def test_snapshot_of_an_idle_pool(lghard_database):
    """Nothing is out, and so not even for less than no time."""
    async with open_pool(lghard_database) as pool:
        assert 0 == pool.snapshot().longest_borrow


def test_a_snapshot_is_read_in_another_thread():
    """Prometheus serves in one of its own, while the pool lends in its loop."""
    borrows = Borrows()

    class Since(float):
        """Somebody borrows in the middle of the comparison."""

        def __lt__(self, other):
            borrows.begin(object(), with_stack=False)
            return super().__lt__(other)

    for _ in range(3):
        borrows.begin(object(), with_stack=False)
    for borrow in borrows._out.values():
        borrow.since = Since(borrow.since)
    assert borrows.longest() > 0


async def test_snapshot_counts_how_long(lghard_database):
    """That borrowers wait, and that they use what they get."""
    async with open_pool(lghard_database, max_size=1) as pool:
        async with pool.connection() as conn:
            waiting = asyncio.create_task(pool.getconn())
            await eventually(lambda: pool.snapshot().waiting)
            await conn.execute("SELECT pg_sleep(0.1)")
        await pool.putconn(await waiting)
        snapshot = pool.snapshot()
    assert (2, 1, 0) == (snapshot.requests, snapshot.waited, snapshot.failed)
    assert min(snapshot.wait_time, snapshot.usage_time) >= 0.1
