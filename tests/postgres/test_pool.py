"""ManagedPool and open_pool, on a real Postgres, through everything that breaks connections."""

import asyncio
import inspect
import secrets
import select
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

import lghard
from lghard.errors import LghardError
from lghard.postgres.liveness import Pulse, look
from lghard.postgres.opening import PoolOpenError, open_pool
from lghard.postgres.pool import ManagedPool
from lghard.postgres.settings import CONNINFO_VARIABLES, PoolSettings, application_name
from lghard.testing import FaultProxy, TemporaryPostgres, temporary_postgres

Until = Callable[[Callable[[], object]], Awaitable[None]]
Kill = Callable[..., Awaitable[None]]
Pool = AsyncConnectionPool[AsyncConnection[Any]]

AUTOCOMMIT = {"autocommit": True}
LONG = 20.0
"""Seconds for what must succeed, on machines under load."""
UNREACHABLE = "postgresql://app:s3cret@127.0.0.1:1/app"


@pytest.fixture
def conninfo(breakable_postgres: TemporaryPostgres) -> str:
    """The way to the breakable server."""
    return breakable_postgres.conninfo


@pytest.fixture
def way(breakable_postgres: TemporaryPostgres, proxy: FaultProxy) -> str:
    """The way to the breakable server, through a network that can be broken."""
    return proxy.conninfo(breakable_postgres.conninfo)


@asynccontextmanager
async def opened(
    conninfo: Any, size: int, *, kind: type[Any] = ManagedPool, **arguments: Any
) -> AsyncIterator[Any]:
    """A pool of `size` connections, all of them open and idle."""
    arguments = {"kwargs": AUTOCOMMIT, "min_size": size, "max_size": size, **arguments}
    pool = kind(conninfo, open=False, **arguments)
    await pool.open(wait=True, timeout=LONG)
    try:
        yield pool
    finally:
        await pool.close()


def pids(pool: Pool) -> list[int]:
    """The backends of the idle connections, first to be borrowed first."""
    return [conn.info.backend_pid for conn in pool._pool]


async def works(pool: Pool, timeout: float = LONG) -> bool:
    """Whether a borrower gets a connection that a statement works on, at the first try."""
    async with pool.connection(timeout=timeout) as conn:
        return bool((await (await conn.execute("SELECT true")).fetchone())[0])


def is_whole(pool: Pool) -> bool:
    """Whether every slot of the pool has a connection that can be borrowed."""
    stats = pool.get_stats()
    return stats["pool_available"] == stats["pool_size"] >= stats["pool_min"]


@asynccontextmanager
async def frozen(server: TemporaryPostgres, *pids: int) -> AsyncIterator[None]:
    """Freeze backends for the time of a block."""
    for pid in pids:
        server.freeze_backend(pid)
    try:
        yield
    finally:
        for pid in pids:
            server.thaw_backend(pid)


def readable(conn: AsyncConnection[Any]) -> bool:
    """Whether something has arrived on an idle connection: a notification, or its end."""
    return bool(select.select([conn.fileno()], [], [], 0)[0])


def is_asked(conn: AsyncConnection[Any]) -> bool:
    """Whether a statement is under way on a connection."""
    return conn.info.transaction_status is TransactionStatus.ACTIVE


async def notify(server: TemporaryPostgres, conn: AsyncConnection[Any], until: Until) -> None:
    """Let a healthy idle connection receive a notification."""
    await conn.execute("LISTEN lghard")
    async with await AsyncConnection.connect(server.conninfo, autocommit=True) as other:
        await other.execute("NOTIFY lghard")
    await until(lambda: readable(conn))


# It is upstream's pool


def test_it_is_upstreams_pool() -> None:
    """LangGraph and users ask isinstance."""
    assert isinstance(ManagedPool(open=False), AsyncConnectionPool)


def test_it_has_upstreams_signature() -> None:
    """What is written for upstream's constructor works, unknown keywords included."""
    assert inspect.signature(ManagedPool) == inspect.signature(AsyncConnectionPool)


@pytest.mark.parametrize("name", ["getconn", "close", "open", "connection", "putconn", "check"])
def test_it_has_upstreams_methods(name: str) -> None:
    """The public methods take what upstream's take; close() takes more."""
    ours, theirs = (
        [(each.name, each.kind, each.default) for each in signature.parameters.values()]
        for signature in (
            inspect.signature(getattr(ManagedPool, name)),
            inspect.signature(getattr(AsyncConnectionPool, name)),
        )
    )
    assert ours[: len(theirs)] == theirs
    assert [more[0] for more in ours[len(theirs) :]] == ["drain_timeout"] * (name == "close")


async def test_it_is_generic(conninfo: str) -> None:
    """A pool of one's own connection class is spelled as upstream's."""

    class MyConnection(AsyncConnection[Any]):
        pass

    kwargs = {"autocommit": True}
    pool = ManagedPool[MyConnection](
        conninfo, connection_class=MyConnection, kwargs=kwargs, min_size=1, open=False
    )
    async with pool, pool.connection() as conn:
        assert type(conn) is MyConnection


async def test_defaults_are_upstreams(conninfo: str) -> None:
    """Only open_pool adds what checkpointing needs: the class connects as upstream's does."""
    async with ManagedPool(conninfo, min_size=1) as pool, pool.connection() as conn:
        assert conn.autocommit is False


# Connections that died while idle


async def test_upstream_hands_out_the_dead(
    breakable_postgres: TemporaryPostgres, kill: Kill, conninfo: str
) -> None:
    """Control: without a check, each dead connection costs a caller an error."""
    async with opened(conninfo, 2, kind=AsyncConnectionPool) as pool:
        await kill(breakable_postgres, *pids(pool))
        for _ in range(2):
            with pytest.raises(psycopg.OperationalError):
                await works(pool)


async def test_upstreams_check_waits_too_long(
    breakable_postgres: TemporaryPostgres, kill: Kill, conninfo: str
) -> None:
    """Control: with a check, it waits 1, 2, 4, … seconds between unrelated dead connections."""
    check = AsyncConnectionPool.check_connection
    async with opened(conninfo, 5, kind=AsyncConnectionPool, check=check) as pool:
        await kill(breakable_postgres, *pids(pool))
        with pytest.raises(PoolTimeout):
            await works(pool, timeout=1.5)


async def test_all_idle_connections_killed(
    breakable_postgres: TemporaryPostgres, kill: Kill, until: Until, conninfo: str
) -> None:
    """The next borrower gets a live connection, and the pool replaces the others by itself."""
    async with opened(conninfo, 5) as pool:
        dead = pids(pool)
        await kill(breakable_postgres, *dead)
        assert await works(pool, timeout=LONG)
        await until(lambda: is_whole(pool))
        assert set(pids(pool)).isdisjoint(dead)


async def test_every_borrower_of_a_killed_pool_is_served(
    breakable_postgres: TemporaryPostgres, kill: Kill, until: Until, conninfo: str
) -> None:
    """Callers that come all at once to a pool of dead connections are all served."""
    async with opened(conninfo, 5) as pool:
        await kill(breakable_postgres, *pids(pool))
        served = await asyncio.gather(*(works(pool) for _ in range(20)))
        assert served == [True] * 20
        await until(lambda: is_whole(pool))


async def test_statistics_after_a_massacre(
    breakable_postgres: TemporaryPostgres, kill: Kill, until: Until, conninfo: str
) -> None:
    """Each dead connection is counted once, and no request as failed."""
    async with opened(conninfo, 5) as pool:
        await kill(breakable_postgres, *pids(pool))
        await works(pool)
        await until(lambda: is_whole(pool))
        stats = pool.get_stats()
    shown = {name: stats.get(name, 0) for name in ("connections_lost", "requests_num")}
    assert shown == {"connections_lost": 5, "requests_num": 1}
    assert (stats.get("requests_errors", 0), stats["requests_waiting"]) == (0, 0)
    assert (stats["pool_size"], stats["connections_num"]) == (5, 10)


async def test_healthy_siblings_survive(
    breakable_postgres: TemporaryPostgres, kill: Kill, until: Until, conninfo: str
) -> None:
    """One dead connection of four costs the three others nothing."""
    async with opened(conninfo, 4) as pool:
        dead, *alive = pids(pool)
        await kill(breakable_postgres, dead)
        assert await works(pool)
        await until(lambda: is_whole(pool))
        assert set(alive) < set(pids(pool))


async def test_dead_siblings_behind_a_healthy_one(
    breakable_postgres: TemporaryPostgres, kill: Kill, until: Until, conninfo: str
) -> None:
    """The sweep reaches every dead connection, wherever it stands."""
    async with opened(conninfo, 4) as pool:
        first, second, alive, last = pids(pool)
        await kill(breakable_postgres, first, second, last)
        assert await works(pool)
        await until(lambda: is_whole(pool))
        assert {first, second, alive, last} & set(pids(pool)) == {alive}


async def test_notified_connection_survives(
    breakable_postgres: TemporaryPostgres, until: Until, conninfo: str
) -> None:
    """A readable socket is no reason to throw a healthy connection away."""
    async with opened(conninfo, 1) as pool:
        before = pids(pool)
        await notify(breakable_postgres, pool._pool[0], until)
        async with pool.connection() as conn:
            assert [conn.info.backend_pid] == before


async def test_suspect_stays_one_until_it_has_answered(
    breakable_postgres: TemporaryPostgres, until: Until, conninfo: str
) -> None:
    """What made the socket readable is read by the first look; the next one must not be fooled."""
    async with opened(conninfo, 1) as pool:
        pool.ping_timeout = 0.1
        before = pids(pool)
        await notify(breakable_postgres, pool._pool[0], until)
        async with frozen(breakable_postgres, *before), pool.connection() as conn:
            assert [conn.info.backend_pid] != before
        assert pool.snapshot().evictions == {"silent": 1}


async def test_notified_connection_survives_a_sweep(
    breakable_postgres: TemporaryPostgres, kill: Kill, until: Until, conninfo: str
) -> None:
    """A sweep asks a suspect, and keeps it if it answers."""
    async with opened(conninfo, 2) as pool:
        dead, suspect = pids(pool)
        await notify(breakable_postgres, pool._pool[1], until)
        await kill(breakable_postgres, dead)
        assert await works(pool)
        await until(lambda: is_whole(pool))
        assert suspect in pids(pool)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_restarted_server(
    breakable_postgres: TemporaryPostgres, until: Until, conninfo: str, mode: str
) -> None:
    """After a restart the first caller is served, where upstream's first one fails."""
    async with (
        opened(conninfo, 3) as pool,
        opened(conninfo, 3, kind=AsyncConnectionPool) as upstream,
    ):
        await asyncio.to_thread(breakable_postgres.restart, mode)
        with pytest.raises(psycopg.OperationalError):
            await works(upstream)
        assert await works(pool)
        await until(lambda: is_whole(pool))


async def test_caller_waits_for_a_server_that_is_away(
    breakable_postgres: TemporaryPostgres, conninfo: str
) -> None:
    """Who borrows while the server is down is served once it is up again."""
    async with opened(conninfo, 3) as pool:
        await asyncio.to_thread(breakable_postgres.stop)
        borrowing = asyncio.create_task(works(pool))
        try:
            await asyncio.sleep(0)
            assert not borrowing.done()
        finally:
            await asyncio.to_thread(breakable_postgres.start)
        assert await borrowing


async def test_connections_reset_on_the_way(proxy: FaultProxy, until: Until, way: str) -> None:
    """A middlebox that resets all idle connections costs nobody an error."""
    async with opened(way, 5) as pool, opened(way, 1, kind=AsyncConnectionPool) as upstream:
        proxy.reset()
        await until(lambda: all(map(readable, [*pool._pool, *upstream._pool])))
        with pytest.raises(psycopg.OperationalError):
            await works(upstream)
        assert await works(pool)


# Connections that are silent


async def test_silent_network_while_idle(proxy: FaultProxy, way: str) -> None:
    """A borrower gives up on a silent network, while upstream's check knows no deadline."""
    check = AsyncConnectionPool.check_connection
    async with (
        opened(way, 1) as pool,
        opened(way, 1, kind=AsyncConnectionPool, check=check) as upstream,
    ):
        pool.ping_after, pool.ping_timeout = 0, 0.1
        proxy.blackhole()
        hanging = asyncio.create_task(works(upstream, timeout=0.2))
        with pytest.raises(PoolTimeout) as timeout:
            await works(pool, timeout=0.4)
        assert not hanging.done()
        assert isinstance(timeout.value.__cause__, psycopg.OperationalError)
        proxy.restore()
        await asyncio.wait({hanging})
        assert await works(pool)
        hanging.exception()


async def test_silent_connection_is_replaced_once_the_network_is_back(
    proxy: FaultProxy, way: str
) -> None:
    """A borrower that found its connection silent gets a new one from the healed network."""
    async with opened(way, 1) as pool:
        pool.ping_after, pool.ping_timeout = 0, 0.05
        silent = pids(pool)
        proxy.blackhole()
        borrowing = asyncio.create_task(pool.getconn(timeout=LONG))
        await asyncio.wait({borrowing}, timeout=0.15)
        proxy.restore(lose=True)
        conn = await borrowing
        assert [conn.info.backend_pid] != silent
        await pool.putconn(conn)


@asynccontextmanager
async def forgotten(way: str, conninfo: str, proxy: FaultProxy, size: int) -> AsyncIterator[Any]:
    """A pool whose idle connections the network has forgotten, while new ones work."""
    ways = [way]
    async with opened(lambda: ways[0], size) as pool:
        ways[0] = conninfo
        proxy.blackhole()
        pool.ping_after = 0
        yield pool


async def test_one_forgotten_connection(proxy: FaultProxy, way: str, conninfo: str) -> None:
    """A connection that a firewall forgot is replaced within the time of one ping."""
    async with forgotten(way, conninfo, proxy, 1) as pool:
        pool.ping_timeout = 0.1
        assert await works(pool)


async def test_many_forgotten_connections(proxy: FaultProxy, way: str, conninfo: str) -> None:
    """Connections that a firewall forgot together are found out together, not one by one."""
    async with forgotten(way, conninfo, proxy, 8) as pool:
        pool.ping_timeout = 0.25
        assert await works(pool, timeout=1.5)


async def test_a_borrowers_deadline_holds_for_the_ping(proxy: FaultProxy, way: str) -> None:
    """Who is ready to wait 0.1 s does not wait for a ping that may take longer."""
    async with opened(way, 1) as pool:
        pool.ping_after, pool.ping_timeout = 0, 2.0
        proxy.blackhole()
        borrowing = asyncio.create_task(pool.getconn(timeout=0.1))
        done, _ = await asyncio.wait({borrowing}, timeout=1)
        proxy.restore()
        await asyncio.wait({borrowing})
        if borrowing.exception() is None:
            await pool.putconn(borrowing.result())
        assert done == {borrowing}
        assert isinstance(borrowing.exception(), PoolTimeout)


async def test_no_round_trip_within_the_bypass_window(
    breakable_postgres: TemporaryPostgres, conninfo: str
) -> None:
    """What was just used is handed out without asking its slow server; upstream's check asks."""
    check = AsyncConnectionPool.check_connection
    async with (
        opened(conninfo, 1) as pool,
        opened(conninfo, 1, kind=AsyncConnectionPool, check=check) as upstream,
    ):
        before = pids(pool)
        async with frozen(breakable_postgres, *before, *pids(upstream)):
            asking = asyncio.create_task(upstream.getconn())
            async with pool.connection() as conn:
                assert [conn.info.backend_pid] == before
            assert not asking.done()
        await upstream.putconn(await asking)


async def test_opening_twice_changes_nothing(
    breakable_postgres: TemporaryPostgres, conninfo: str
) -> None:
    """Opening an open pool is harmless, as upstream promises, and asks no connection anew."""
    async with opened(conninfo, 1) as pool:
        before = pids(pool)
        pool.ping_timeout = 0.1
        async with frozen(breakable_postgres, *before):
            await pool.open()
            async with pool.connection() as conn:
                assert [conn.info.backend_pid] == before


async def test_check_of_the_whole_pool_is_bounded(
    breakable_postgres: TemporaryPostgres, conninfo: str
) -> None:
    """pool.check() gives up on a server that does not answer, and replaces its connection."""
    async with opened(conninfo, 2) as pool:
        pool.ping_timeout = 0.5
        silent, alive = pids(pool)
        async with frozen(breakable_postgres, silent):
            checking = asyncio.create_task(pool.check())
            done, _ = await asyncio.wait({checking}, timeout=2)
        await checking
        assert done == {checking}
        assert await works(pool)
        assert alive in pids(pool)


# The check callback


async def test_check_callback_sees_only_the_living(
    breakable_postgres: TemporaryPostgres, kill: Kill, conninfo: str
) -> None:
    """A check of one's own is called for each borrow, on a connection that has passed ours."""
    seen: list[Pulse] = []

    async def check(conn: AsyncConnection[Any]) -> None:
        seen.append(look(conn))

    async with opened(conninfo, 3, check=check) as pool:
        await works(pool)
        await kill(breakable_postgres, *pids(pool))
        await works(pool)
    assert seen == [Pulse.ALIVE] * 2


async def test_check_callback_can_refuse(until: Until, conninfo: str) -> None:
    """A connection that the check refuses is not handed out, and the next one is tried."""
    refused: list[int] = []

    async def check(conn: AsyncConnection[Any]) -> None:
        if not refused:
            refused.append(conn.info.backend_pid)
            await conn.close()
            raise psycopg.OperationalError("not this one")

    async with opened(conninfo, 2, check=check) as pool:
        async with pool.connection() as conn:
            assert conn.info.backend_pid not in refused
        await until(lambda: is_whole(pool))


# PoolTimeout says why


async def test_timeout_has_the_connection_error_as_its_cause(
    proxy: FaultProxy, until: Until, way: str
) -> None:
    """Who waited in vain for a server that refuses reads so, where upstream says nothing."""
    async with opened(way, 1) as pool, opened(way, 1, kind=AsyncConnectionPool) as upstream:
        proxy.refuse()
        proxy.drop()
        await until(lambda: all(map(readable, [*pool._pool, *upstream._pool])))
        with pytest.raises(psycopg.OperationalError):
            await works(upstream)
        with pytest.raises(PoolTimeout) as silent:
            await works(upstream, timeout=0.2)
        with pytest.raises(PoolTimeout) as telling:
            await works(pool, timeout=0.2)
        proxy.accept()
    assert silent.value.__cause__ is None
    assert "Connection refused" in str(telling.value.__cause__)
    assert "cannot connect" in telling.value.__notes__[0]
    assert "of max_size=1 connections it has 0 idle and 0 in use" in telling.value.__notes__[0]


async def test_timeout_of_an_exhausted_pool_says_so(conninfo: str) -> None:
    """Who waited in vain reads how many are in use, and what to change; upstream does not tell."""
    async with opened(conninfo, 2, name="small") as pool, pool.connection(), pool.connection():
        with pytest.raises(PoolTimeout) as exhausted:
            await works(pool, timeout=0.05)
    async with opened(conninfo, 1, kind=AsyncConnectionPool) as upstream, upstream.connection():
        with pytest.raises(PoolTimeout) as silent:
            await works(upstream, timeout=0.05)
    assert exhausted.value.__cause__ is None
    assert "all 2 connections of the pool 'small' are in use" in exhausted.value.__notes__[0]
    assert not hasattr(silent.value, "__notes__")


async def test_cause_is_forgotten_after_recovery(proxy: FaultProxy, until: Until, way: str) -> None:
    """A pool that has recovered does not blame yesterday's failure."""
    async with opened(way, 1) as pool:
        proxy.refuse()
        proxy.drop()
        await until(lambda: readable(pool._pool[0]))
        with pytest.raises(PoolTimeout):
            await works(pool, timeout=0.2)
        proxy.accept()
        async with pool.connection():
            with pytest.raises(PoolTimeout) as exhausted:
                await works(pool, timeout=0.05)
    assert exhausted.value.__cause__ is None


# Closing


async def test_close_ends_what_a_sweep_began(
    breakable_postgres: TemporaryPostgres, kill: Kill, until: Until, conninfo: str
) -> None:
    """Closing a pool ends its pings, too, and leaves no task."""
    before = asyncio.all_tasks()
    async with opened(conninfo, 2) as pool:
        dead, suspect = pids(pool)
        await notify(breakable_postgres, pool._pool[1], until)
        await kill(breakable_postgres, dead)
        async with frozen(breakable_postgres, suspect):
            assert await works(pool)
            closing = asyncio.create_task(pool.close())
            await until(lambda: pool.closed)
        await closing
    assert asyncio.all_tasks() == before


async def test_close_closes_what_a_sweep_was_asking(
    breakable_postgres: TemporaryPostgres, kill: Kill, until: Until, conninfo: str
) -> None:
    """A connection that was being asked when its pool was closed is closed as well."""
    async with opened(conninfo, 2) as pool:
        pool.ping_timeout = 60
        dead, suspect = pids(pool)
        asked = pool._pool[1]
        await notify(breakable_postgres, asked, until)
        await kill(breakable_postgres, dead)
        async with frozen(breakable_postgres, suspect):
            assert await works(pool)
            closing = asyncio.create_task(pool.close())
            await until(lambda: pool.closed)
            await asyncio.wait({closing}, timeout=0.1)
        await closing
    was_closed = asked.closed
    await asked.close()
    assert was_closed


async def test_close_does_not_wait_for_a_silent_suspect(
    breakable_postgres: TemporaryPostgres, kill: Kill, until: Until, conninfo: str
) -> None:
    """Closing does not take the time of a ping that nobody needs the answer of."""
    async with opened(conninfo, 2) as pool:
        pool.ping_timeout = 60
        dead, suspect = pids(pool)
        asked = pool._pool[1]
        await notify(breakable_postgres, asked, until)
        await kill(breakable_postgres, dead)
        async with frozen(breakable_postgres, suspect):
            assert await works(pool)
            closing = asyncio.create_task(pool.close())
            done, _ = await asyncio.wait({closing}, timeout=2)
        await closing
    await asked.close()
    assert done == {closing}


async def test_close_of_a_pool_that_was_never_opened() -> None:
    """Closing what was never opened is nothing, as upstream has it."""
    await AsyncConnectionPool(open=False).close()
    await ManagedPool(open=False).close()


async def test_close_twice(conninfo: str) -> None:
    """Closing what is closed is nothing."""
    async with opened(conninfo, 1) as pool:
        await pool.close()
        await pool.close()


async def test_waiting_borrower_hears_of_the_close(until: Until, conninfo: str) -> None:
    """Who waits for a connection when the pool is closed hears so at once."""
    async with opened(conninfo, 1) as pool:
        conn = await pool.getconn()
        borrowing = asyncio.create_task(pool.getconn(timeout=600))
        await until(lambda: pool.get_stats()["requests_waiting"])
        await pool.close()
        with pytest.raises(PoolClosed):
            await borrowing
        await pool.putconn(conn)
        assert conn.closed


async def test_pinging_borrower_hears_of_the_close(
    breakable_postgres: TemporaryPostgres, until: Until, conninfo: str
) -> None:
    """Who finds a dead connection in a pool closed meanwhile does not wait for another one."""
    async with opened(conninfo, 1) as pool:
        pool.ping_after, pool.ping_timeout = 0, 0.2
        async with frozen(breakable_postgres, *pids(pool)):
            borrowing = asyncio.create_task(pool.getconn(timeout=1))
            await until(lambda: not pool._pool)
            await pool.close()
            await asyncio.wait({borrowing})
        assert isinstance(borrowing.exception(), PoolClosed)


async def test_drain_reaches_what_a_sweep_is_asking(
    breakable_postgres: TemporaryPostgres, kill: Kill, until: Until, conninfo: str
) -> None:
    """No connection from before a drain comes back after it."""
    async with opened(conninfo, 2) as pool:
        pool.ping_timeout = 60
        dead, suspect = pids(pool)
        await notify(breakable_postgres, pool._pool[1], until)
        await kill(breakable_postgres, dead)
        async with frozen(breakable_postgres, suspect):
            assert await works(pool)
            await pool.drain()
        await until(lambda: is_whole(pool))
        assert suspect not in pids(pool)


# open_pool


async def test_opened_pool_is_ready_for_checkpointing(conninfo: str) -> None:
    """Its connections commit by themselves, return dicts, and can be told apart on the server."""
    async with open_pool(conninfo) as pool, pool.connection() as conn:
        cursor = await conn.execute("SHOW application_name")
        assert await cursor.fetchone() == {"application_name": application_name()}
        assert conn.autocommit is True
        assert isinstance(pool, ManagedPool)


async def test_opened_pool_notices_a_vanished_server(conninfo: str) -> None:
    """Its connections have the keepalives and timeouts of the settings."""
    async with open_pool(conninfo) as pool, pool.connection() as conn:
        parameters = conn.info.get_parameters()
    expected = {
        name: str(value)
        for name, value in PoolSettings(conninfo=conninfo).connection_parameters().items()
    }
    assert {name: parameters.get(name) for name in expected} == expected


async def test_the_callers_parameters_win(conninfo: str) -> None:
    """What conninfo or kwargs say themselves is kept."""
    given = make_conninfo(conninfo, application_name="mine", keepalives_idle=7)
    kwargs = {"row_factory": tuple_row, "tcp_user_timeout": 9000, "prepare_threshold": None}
    async with open_pool(given, kwargs=kwargs) as pool, pool.connection() as conn:
        row = await (await conn.execute("SHOW application_name")).fetchone()
        parameters = conn.info.get_parameters()
        threshold = conn.prepare_threshold
    assert (row, threshold) == (("mine",), None)
    assert (parameters["keepalives_idle"], parameters["tcp_user_timeout"]) == ("7", "9000")


async def test_settings_and_overrides(conninfo: str) -> None:
    """Overrides win over settings, and the pool's own arguments pass through."""
    settings = PoolSettings(conninfo=conninfo, max_size=3, ping_after=7)
    async with open_pool(settings=settings, max_size=2, name="mine", max_waiting=5) as pool:
        assert (pool.max_size, pool.ping_after, pool.name, pool.max_waiting) == (2, 7, "mine", 5)


async def test_autocommit_cannot_be_switched_off(conninfo: str) -> None:
    """What would lose checkpoints silently is refused with the reason."""
    with pytest.raises(ValueError, match="needs autocommit"):
        async with open_pool(conninfo, kwargs={"autocommit": False}):
            pass


async def test_kwargs_of_none_are_none(conninfo: str) -> None:
    """Upstream's default for kwargs is accepted as such."""
    async with open_pool(conninfo, kwargs=None) as pool:
        assert await works_as_dict(pool)


async def works_as_dict(pool: Pool) -> bool:
    """Whether a borrower's statement returns a dict."""
    async with pool.connection(timeout=LONG) as conn:
        return await (await conn.execute("SELECT 42 AS answer")).fetchone() == {"answer": 42}


async def test_conninfo_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, conninfo: str
) -> None:
    """Without an argument, the first variable that names a Postgres is the database."""
    for name in CONNINFO_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LGHARD_DATABASE_URI", conninfo)
    monkeypatch.setenv("POSTGRES_URI", UNREACHABLE)
    async with open_pool() as pool:
        assert await works_as_dict(pool)


async def test_pool_is_closed_with_its_block(conninfo: str) -> None:
    """Whoever opened it closes it, also when the block fails."""
    with pytest.raises(ZeroDivisionError):
        async with open_pool(conninfo) as pool:
            1 / 0  # noqa: B018
    assert pool.closed


async def test_silent_connections_are_pinged_by_settings(
    breakable_postgres: TemporaryPostgres, conninfo: str
) -> None:
    """ping_after and ping_timeout reach the pool that open_pool opens."""
    async with open_pool(conninfo, ping_after=0, ping_timeout=0.1, max_size=1) as pool:
        before = pids(pool)
        async with frozen(breakable_postgres, *before), pool.connection() as conn:
            assert [conn.info.backend_pid] != before


async def test_open_waits_for_a_starting_server(
    breakable_postgres: TemporaryPostgres, conninfo: str, until: Until
) -> None:
    """A server that comes up while it is waited for is no error, where a plain connect fails."""
    await asyncio.to_thread(breakable_postgres.stop)
    opening = asyncio.create_task(opens(conninfo, open_timeout=60))
    try:
        with pytest.raises(psycopg.OperationalError):
            await AsyncConnection.connect(conninfo)
        assert not opening.done()
    finally:
        await asyncio.to_thread(breakable_postgres.start)
    assert await opening


async def opens(conninfo: str | None = None, **overrides: Any) -> bool:
    """Whether a pool can be opened, and a statement works on it."""
    async with open_pool(conninfo, **overrides) as pool:
        return await works_as_dict(pool)


# open_pool fails


def text_of(error: BaseException) -> str:
    """All that is shown of an error: message, notes, causes, contexts, traceback, repr."""
    return "".join(traceback.format_exception(error)) + repr(error) + str(error.args)


async def refused(conninfo: str | None = None, **overrides: Any) -> PoolOpenError:
    """The error of a pool that cannot be opened."""
    with pytest.raises(PoolOpenError) as error:
        await opens(conninfo, **{"open_timeout": 0.3, **overrides})
    assert "s3cret" not in text_of(error.value)
    return error.value


@pytest.fixture(scope="module")
def strict_postgres(breakable_postgres: TemporaryPostgres) -> TemporaryPostgres:
    """The breakable server, with a user `app` who needs a password, and `nobody` who may not."""
    hba = breakable_postgres.directory / "data" / "pg_hba.conf"
    rules = "host all app all scram-sha-256\nhost all nobody all reject\n"
    hba.write_text(rules + hba.read_text())
    with psycopg.connect(breakable_postgres.conninfo, autocommit=True) as admin:
        admin.execute("CREATE ROLE app LOGIN PASSWORD 'right-s3cret'")
        admin.execute("CREATE ROLE nobody LOGIN")
        admin.execute("CREATE ROLE group_role NOLOGIN")
        admin.execute("CREATE ROLE single LOGIN CONNECTION LIMIT 1")
    breakable_postgres.restart()
    return breakable_postgres


def uri(
    server: TemporaryPostgres, user: str = "app:right-s3cret", database: str = "postgres"
) -> str:
    """The way to the strict server, for this user."""
    return f"postgresql://{user}@{server.host}:{server.port}/{database}"


async def test_right_password_opens(strict_postgres: TemporaryPostgres) -> None:
    """Control: the strict server lets in who has the password."""
    assert await opens(uri(strict_postgres))


@pytest.mark.parametrize(
    ("user", "database", "words", "step"),
    [
        ("app:wrong-s3cret", "postgres", "password authentication failed", "check user and"),
        ("app", "postgres", "no password supplied", "put the password into"),
        ("postgres:s3cret", "missing", 'database "missing" does not exist', "CREATE DATABASE"),
        ("stranger:s3cret", "postgres", 'role "stranger" does not exist', "check database and"),
        ("nobody:s3cret", "postgres", "pg_hba.conf", "allow this client"),
        ("group_role:s3cret", "postgres", "not permitted to log in", "GRANT the role LOGIN"),
    ],
    ids=["password", "no password", "database", "user", "hba", "nologin"],
)
async def test_refusal_is_told_at_once(
    strict_postgres: TemporaryPostgres, user: str, database: str, words: str, step: str
) -> None:
    """What no waiting mends is told at once: where, in the server's words, and what to do."""
    async with asyncio.timeout(LONG):
        error = await refused(uri(strict_postgres, user, database), open_timeout=600)
    message = str(error)
    assert [part for part in (words, step) if part not in message] == []
    assert (
        f"{strict_postgres.host}:{strict_postgres.port}, database {database}, "
        f"user {user.partition(':')[0]}" in message
    )


async def test_refused_port() -> None:
    """Where nothing listens, the error says so and asks the right question."""
    error = await refused(UNREACHABLE)
    assert "127.0.0.1:1, database app, user app" in str(error)
    assert "is the server running" in str(error)


async def test_unknown_host() -> None:
    """A host that does not resolve is named."""
    error = await refused("postgresql://app:s3cret@nowhere.invalid/app")
    assert "nowhere.invalid:5432, database app, user app" in str(error)
    assert "check the host name" in str(error)


async def test_silent_host(breakable_postgres: TemporaryPostgres, proxy: FaultProxy) -> None:
    """A host that accepts and never answers is given up at the deadline."""
    proxy.blackhole()
    way = proxy.conninfo(breakable_postgres.conninfo)
    async with asyncio.timeout(LONG):
        error = await refused(way, open_timeout=0.2, connect_timeout=600)
    assert f"{proxy.host}:{proxy.port}, database postgres, user postgres" in str(error)
    assert "no answer within 0.2 s" in str(error)


async def test_silent_host_has_a_next_step(
    breakable_postgres: TemporaryPostgres, proxy: FaultProxy
) -> None:
    """The next step for a host that never answers is to look at what is in between."""
    proxy.blackhole()
    way = proxy.conninfo(breakable_postgres.conninfo)
    assert "firewall" in str(await refused(way, open_timeout=0.1, connect_timeout=600))


async def test_server_that_stops_after_the_handshake(
    breakable_postgres: TemporaryPostgres, until: Until, conninfo: str
) -> None:
    """A question to a frozen server ends at the deadline, too: psycopg waits for its answer."""
    frozen: list[int] = []

    async def freeze_and_ask(conn: AsyncConnection[Any]) -> None:
        frozen.append(conn.info.backend_pid)
        breakable_postgres.freeze_backend(conn.info.backend_pid)
        await conn.execute("SELECT 1")

    control = await AsyncConnection.connect(conninfo)
    waiting = asyncio.create_task(freeze_and_ask(control))
    await until(lambda: frozen)
    waiting.cancel()
    try:
        error = await refused(conninfo, configure=freeze_and_ask)
        assert not waiting.done()
    finally:
        for pid in frozen:
            breakable_postgres.thaw_backend(pid)
    assert "no answer within 0.3 s" in str(error)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await control.close()


@pytest.fixture(scope="module")
def small_postgres(breakable_postgres: TemporaryPostgres) -> Iterator[TemporaryPostgres]:
    """A server with six connections."""
    with temporary_postgres(settings={"max_connections": "6", "max_wal_senders": "0"}) as server:
        yield server


@asynccontextmanager
async def taken(server: TemporaryPostgres, number: int) -> AsyncIterator[None]:
    """Somebody else has so many connections."""
    conns = [await AsyncConnection.connect(server.conninfo) for _ in range(number)]
    try:
        yield
    finally:
        for conn in conns:
            await conn.close()


async def test_too_many_clients(small_postgres: TemporaryPostgres) -> None:
    """A server that has no connection left says so, and so does the error."""
    async with asyncio.timeout(LONG), taken(small_postgres, 6):
        error = await refused(small_postgres.conninfo)
    assert "too many clients" in str(error)
    assert "raise max_connections" in str(error)


async def test_too_many_clients_for_all_of_min_size(
    small_postgres: TemporaryPostgres, until: Until
) -> None:
    """Also when some of the first connections are let in; and those are given back."""
    conninfo = make_conninfo(small_postgres.conninfo, application_name="too-many")
    async with asyncio.timeout(LONG), taken(small_postgres, 3):
        error = await refused(conninfo, min_size=4)
        await until(lambda: not backends_of(small_postgres, "too-many"))
    assert "too many clients" in str(error)


async def test_too_many_connections_of_a_role(strict_postgres: TemporaryPostgres) -> None:
    """Managed databases limit roles, and their words have a next step, too."""
    conninfo = uri(strict_postgres, "single")
    async with await AsyncConnection.connect(conninfo):
        error = await refused(conninfo)
    assert "too many connections for role" in str(error)
    assert "lower max_size" in str(error)


async def test_the_error_is_upstreams_and_ours() -> None:
    """Who catches psycopg's errors catches it, and it shows its public module."""
    error = await refused(UNREACHABLE)
    assert isinstance(error, psycopg.OperationalError)
    assert isinstance(error, LghardError)
    assert (type(error).__module__, lghard.PoolOpenError) == ("lghard", PoolOpenError)


async def test_host_from_kwargs_is_shown() -> None:
    """The message shows where it really tried, wherever the address came from."""
    kwargs = {"host": "127.0.0.1", "port": 1, "user": "other", "password": "s3cret"}
    error = await refused("dbname=app", kwargs=kwargs)
    assert "127.0.0.1:1, database app, user other" in str(error)


async def test_host_from_libpqs_variables_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message shows where it really tried, when libpq's own variables said where."""
    for name in CONNINFO_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOST": "127.0.0.1", "PORT": "1", "DATABASE": "app", "USER": "me"}.items():
        monkeypatch.setenv(f"PG{name}", value)
    assert "127.0.0.1:1, database app, user me" in str(await refused())


@pytest.mark.parametrize("password", ["p@s3cret", "p/s3cret", "p/w@s3cret", "p@w/s3cret"])
async def test_password_that_was_not_encoded_is_not_shown(password: str) -> None:
    """A password with an @ or a / in it, pasted as it is, ends up in no error."""
    with pytest.raises((PoolOpenError, ValueError)) as error:
        await opens(f"postgresql://app:{password}@127.0.0.1:1/app", open_timeout=0.1)
    assert "s3cret" not in text_of(error.value)


@pytest.mark.parametrize("conninfo", ["postgresql://app:s3cret%zz@db/app", "s3cret"])
async def test_unparsable_conninfo_is_refused_without_a_word_of_it(conninfo: str) -> None:
    """What cannot be parsed is told before anything is tried, and not repeated."""
    with pytest.raises(ValueError, match="percent-encoded") as error:
        await opens(conninfo)
    assert "s3cret" not in text_of(error.value)


def backends_of(server: TemporaryPostgres, name: str) -> int:
    """How many connections with this application_name the server has."""
    question = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
    with psycopg.connect(server.conninfo) as admin:
        return admin.execute(question, [name]).fetchone()[0]


async def fails_to_configure(conn: AsyncConnection[Any]) -> None:
    """A configure callback with a mistake in it."""
    await conn.execute("SELECT * FROM nowhere")


class FailsLater:
    """A configure callback that fails on all but the first connection, which is not the pool's."""

    def __init__(self) -> None:
        self.conns: list[AsyncConnection[Any]] = []

    async def __call__(self, conn: AsyncConnection[Any]) -> None:
        self.conns.append(conn)  # as a callback may that has a registry, or a log
        if len(self.conns) > 1:
            await fails_to_configure(conn)


async def hangs(conn: AsyncConnection[Any]) -> None:
    """A configure callback that waits for something that never comes."""
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param({"configure": fails_to_configure}, id="configure fails"),
        pytest.param({"configure": FailsLater()}, id="configure fails later"),
        pytest.param({"configure": hangs}, id="configure hangs"),
        pytest.param({"kwargs": {"port": 1}}, id="refused"),
        pytest.param({"kwargs": {"dbname": "missing"}}, id="no database"),
    ],
)
async def test_failed_open_leaves_nothing(
    breakable_postgres: TemporaryPostgres, until: Until, failure: dict[str, Any]
) -> None:
    """After a failure there is no task and no backend, even while somebody keeps the error."""
    tasks = asyncio.all_tasks()
    name = secrets.token_hex()[:60]
    conninfo = make_conninfo(breakable_postgres.conninfo, application_name=name)
    error = await refused(conninfo, **failure)
    assert asyncio.all_tasks() == tasks
    async with asyncio.timeout(3):
        await until(lambda: not backends_of(breakable_postgres, name))
    assert error


async def test_closed_pool_leaves_nothing(
    breakable_postgres: TemporaryPostgres, until: Until
) -> None:
    """After the block there is no task and no backend."""
    tasks = asyncio.all_tasks()
    conninfo = make_conninfo(breakable_postgres.conninfo, application_name="gone")
    async with open_pool(conninfo, min_size=3) as pool:
        assert backends_of(breakable_postgres, "gone") == 3
        assert await works_as_dict(pool)
    assert asyncio.all_tasks() == tasks
    await until(lambda: not backends_of(breakable_postgres, "gone"))
