"""What happens to a checkpointer whose connections die: upstream's fails, lghard's goes on."""

import asyncio
import select
from contextlib import asynccontextmanager

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool, PoolClosed

from lghard import HardenedAsyncPostgresSaver, ManagedPool, open_checkpointer, open_pool
from lghard.postgres.liveness import abort
from lghard.testing import FaultProxy
from tests.postgres.checkpoints import checkpoint, config_of, eventually, put

AUTOCOMMIT = {"autocommit": True}


@asynccontextmanager
async def opened(pool_class, conninfo, size, **arguments):
    """A pool of `size` connections, all of them open and idle."""
    arguments = {"min_size": size, "max_size": size, "kwargs": AUTOCOMMIT, **arguments}
    async with pool_class(conninfo, open=False, **arguments) as pool:
        await pool.wait()
        yield pool


@asynccontextmanager
async def opened_saver(saver_class, conninfo):
    """A saver on a pool of one connection, which has written its first checkpoint."""
    ours = saver_class is HardenedAsyncPostgresSaver
    async with opened(ManagedPool if ours else AsyncConnectionPool, conninfo, 1) as pool:
        saver = saver_class(pool)
        await saver.setup()
        await put(saver, "t")
        yield saver


def pids(pool):
    return {conn.info.backend_pid for conn in pool._pool}


def readable(pool):
    """Whether something has arrived on every idle connection, such as its end."""
    return all(select.select([conn.fileno()], [], [], 0)[0] for conn in pool._pool)


def messages(caplog, logger):
    return [record.getMessage() for record in caplog.records if record.name == logger]


# One connection


async def test_upstreams_single_connection_is_lost_for_good(lghard_postgres, lghard_database):
    """The control: after one lost connection, every later operation fails."""
    async with AsyncPostgresSaver.from_conn_string(lghard_database) as saver:
        await put(saver, "t")
        lghard_postgres.terminate_backends(database=lghard_database)
        with pytest.raises(psycopg.OperationalError, match="closed the connection"):
            await put(saver, "t")
        for _ in range(3):
            with pytest.raises(psycopg.OperationalError, match="the connection is closed"):
                await put(saver, "t")


@pytest.mark.usefixtures("batching")
async def test_the_same_call_makes_a_checkpointer_that_reconnects(lghard_postgres, lghard_database):
    """Not even the first operation after the loss fails."""
    async with HardenedAsyncPostgresSaver.from_conn_string(lghard_database) as saver:
        await put(saver, "t")
        lghard_postgres.terminate_backends(database=lghard_database)
        await put(saver, "t", 2)
        assert checkpoint(2)["id"] == (await saver.aget_tuple(config_of("t"))).checkpoint["id"]


async def errors_on_one_connection(conninfo):
    """What goes wrong when two savers, each of which locks out its own tasks only, share one."""
    conn = await AsyncConnection.connect(conninfo, **AUTOCOMMIT)
    savers = [AsyncPostgresSaver(conn), AsyncPostgresSaver(conn)]
    tasks = [asyncio.create_task(put(savers[number % 2], f"t{number}")) for number in range(10)]
    await asyncio.wait(tasks, timeout=2)
    abort(conn)  # some may wait for an answer that another one has read
    results = await asyncio.gather(*tasks, return_exceptions=True)
    await conn.close()
    return [result for result in results if isinstance(result, BaseException)]


async def test_upstream_mixes_up_those_who_share_a_connection(lghard_database):
    """The control: sooner or later they get into each other's pipeline."""
    assert await eventually(lambda: errors_on_one_connection(lghard_database))


@pytest.mark.usefixtures("batching")
async def test_those_who_share_a_pool_do_not_meet(lghard_database):
    """Each operation has a connection of its own."""
    async with open_pool(lghard_database) as pool:
        savers = [HardenedAsyncPostgresSaver(pool), HardenedAsyncPostgresSaver(pool)]
        await asyncio.gather(*(put(savers[number % 2], f"t{number}") for number in range(10)))
        assert 10 == len([found async for found in savers[0].alist(None)])


# A TLS connection that ends


@pytest.fixture
async def proxy(tls_postgres):
    """A network to a server that is spoken to over TLS."""
    async with FaultProxy(tls_postgres.host, tls_postgres.port) as proxy:
        yield proxy


@pytest.fixture
def over_tls(tls_postgres, proxy):
    """The way to a database of that server, through that network."""
    conninfo = tls_postgres.create_database()
    yield make_conninfo(proxy.conninfo(conninfo), sslmode="require")
    tls_postgres.drop_database(conninfo)


ENDS = {
    "terminated": "SSL connection has been closed unexpectedly",
    "drop": "SSL error: unexpected eof while reading|SSL SYSCALL error: EOF detected",
    "reset": "server closed the connection unexpectedly|Connection reset by peer",
}
"""How a connection ends while nobody uses it, and what libpq says of that later."""


async def end(how, saver, tls_postgres, proxy):
    """End the idle connection of a saver."""
    if how == "terminated":
        await asyncio.to_thread(tls_postgres.terminate_backends)
    else:
        getattr(proxy, how)()
    await eventually(lambda: readable(saver.conn))


@pytest.mark.parametrize("how", ENDS)
async def test_upstream_writes_to_a_connection_that_has_ended(
    tls_postgres, proxy, over_tls, caplog, how
):
    """The control: it ended while a model was thinking, and the next checkpoint is lost."""
    async with opened_saver(AsyncPostgresSaver, over_tls) as saver:
        await end(how, saver, tls_postgres, proxy)
        with pytest.raises(psycopg.OperationalError, match=ENDS[how]):
            await put(saver, "t", 2)
        found = await saver.aget_tuple(config_of("t"))
    assert checkpoint(1)["id"] == found.checkpoint["id"]
    assert "discarding closed connection" in caplog.text


@pytest.mark.usefixtures("batching")
@pytest.mark.parametrize("how", ENDS)
async def test_a_connection_that_has_ended_is_not_used(tls_postgres, proxy, over_tls, caplog, how):
    """The next checkpoint goes over another one, and nothing has to be repeated."""
    async with opened_saver(HardenedAsyncPostgresSaver, over_tls) as saver:
        await end(how, saver, tls_postgres, proxy)
        await put(saver, "t", 2)
        found = await saver.aget_tuple(config_of("t"))
    assert checkpoint(2)["id"] == found.checkpoint["id"]
    assert [] == messages(caplog, "lghard.postgres")


CUTS = [(direction, reset) for direction in ("up", "down") for reset in (False, True)]


@pytest.mark.parametrize(("direction", "reset"), CUTS)
async def test_upstream_loses_a_batch_that_is_cut(proxy, over_tls, direction, reset):
    """The control: the connection ends in the middle of a write, or of its answer."""
    async with opened_saver(AsyncPostgresSaver, over_tls) as saver:
        proxy.cut_after(60, direction, reset=reset)
        with pytest.raises(psycopg.OperationalError):
            await put(saver, "t", 2, text=["x" * 500_000])


@pytest.mark.usefixtures("batching")
@pytest.mark.parametrize(("direction", "reset"), CUTS)
async def test_a_batch_that_is_cut_is_sent_again(proxy, over_tls, direction, reset):
    """All of it, over another connection."""
    async with opened_saver(HardenedAsyncPostgresSaver, over_tls) as saver:
        proxy.cut_after(60, direction, reset=reset)
        await put(saver, "t", 2, text=["x" * 500_000])
        found = await saver.aget_tuple(config_of("t"))
    assert {"text": ["x" * 500_000]} == found.checkpoint["channel_values"]


# A pool of them


@pytest.mark.parametrize("pool_class", [AsyncConnectionPool, ManagedPool])
async def test_how_much_is_said_about_dead_connections(
    lghard_postgres, lghard_database, caplog, pool_class
):
    """Upstream logs a line for each, and each is somebody's error; here they are a number."""
    async with opened(pool_class, lghard_database, 5) as pool:
        lghard_postgres.terminate_backends(database=lghard_database)
        errors = [error for _ in range(6) if (error := await error_of(pool))]
        lines = messages(caplog, "psycopg.pool")
        if pool_class is AsyncConnectionPool:
            assert (5, 5) == (len(errors), len(lines))
            assert all("discarding closed connection" in line for line in lines)
        else:
            assert ([], []) == (errors, lines)
            assert {"dead": 5} == pool.snapshot().evictions


async def error_of(pool):
    """The error that one statement gets, if any."""
    try:
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
    except psycopg.OperationalError as error:
        return error


@pytest.mark.parametrize("pool_class", [AsyncConnectionPool, ManagedPool])
async def test_a_time_limit_for_idle_sessions(lghard_database, pool_class):
    """As cloud databases and proxies have one: whoever comes after a quiet night is served."""
    impatient = make_conninfo(lghard_database, options="-cidle_session_timeout=50")
    conninfos = iter([impatient, impatient])
    async with opened(pool_class, lambda: next(conninfos, lghard_database), 2) as pool:
        await eventually(lambda: readable(pool))
        error = await error_of(pool)
    upstream = pool_class is AsyncConnectionPool
    assert (psycopg.errors.IdleSessionTimeout if upstream else type(None)) is type(error)


@pytest.mark.parametrize("pool_class", [AsyncConnectionPool, ManagedPool])
async def test_those_who_died_with_a_borrowed_connection(
    lghard_postgres, lghard_database, monkeypatch, pool_class
):
    """Upstream keeps them for the next borrowers; here the first error is the last."""
    monkeypatch.setattr("lghard.postgres.pool._ROUND", 600)  # it is not the housekeeping
    async with opened(pool_class, lghard_database, 3) as pool:
        conn, others = await pool.getconn(), pids(pool)
        lghard_postgres.terminate_backends(database=lghard_database)
        with pytest.raises(psycopg.errors.AdminShutdown):
            await conn.execute("SELECT 1")
        await pool.putconn(conn)
        if pool_class is AsyncConnectionPool:
            assert others <= pids(pool)
            assert psycopg.errors.AdminShutdown is type(await error_of(pool))
        else:
            assert set() == others & pids(pool)
            assert {"broken in use": 1, "dead": 2} == pool.snapshot().evictions
            assert None is await error_of(pool)


async def test_upstreams_pool_is_replaced_under_its_users(lghard_postgres, lghard_database):
    """The control: a closed pool stays closed, and so does every saver that was made of it."""
    async with opened(AsyncConnectionPool, lghard_database, 2) as pool:
        saver = AsyncPostgresSaver(pool)
        lghard_postgres.terminate_backends(database=lghard_database)
        with pytest.raises(psycopg.OperationalError):
            await put(saver, "t")
        await pool.close()  # what applications do then, before they make another one
        with pytest.raises(psycopg.OperationalError, match="cannot be reused"):
            await pool.open()
        with pytest.raises(PoolClosed, match="already closed"):
            await put(saver, "t")


@pytest.mark.usefixtures("batching")
async def test_a_pool_is_mended_in_its_place(lghard_own_postgres):
    """Whoever was given it before the outage can use it afterwards."""
    server = lghard_own_postgres
    async with open_checkpointer(server.conninfo, min_size=2) as saver:
        pool = saver.conn
        await asyncio.to_thread(server.restart, "immediate")
        await put(saver, "t")
        assert saver.conn is pool
        assert not pool.closed
