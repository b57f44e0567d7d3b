"""Before an overwriting write is repeated: is the backend of the lost attempt really gone?"""

import asyncio
from contextlib import asynccontextmanager
from time import monotonic

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo

from lghard import open_checkpointer
from lghard.postgres.settling import Backend
from lghard.testing import FaultProxy
from tests.postgres.checkpoints import eventually, put, waiting_backend


@asynccontextmanager
async def two_connections(conninfo, options=""):
    """One whose backend may be at work still, and one to ask on."""
    asking = make_conninfo(conninfo, options=options)
    async with (
        await AsyncConnection.connect(conninfo, autocommit=True) as lost,
        await AsyncConnection.connect(asking, autocommit=True) as conn,
    ):
        yield lost, conn


async def backend_of(conn, *, age="interval '0'"):
    """What the saver knows of the backend of `conn`, had it been connected for `age` seconds."""
    pid = conn.pgconn.backend_pid
    cursor = await conn.execute(
        f"SELECT extract(epoch FROM {age})::float FROM pg_stat_activity WHERE pid = %s", (pid,)
    )
    (seconds,) = await cursor.fetchone()
    return Backend(pid, monotonic() - seconds)


@pytest.mark.usefixtures("batching")
async def test_an_answer_from_a_standby_does_not_settle_a_write(lghard_own_postgres):
    """A standby knows no backend of the primary; the old write must not be repeated there."""
    primary = lghard_own_postgres
    async with open_checkpointer(primary.conninfo) as saver:
        await put(saver, "t", text="first")
    with primary.standby() as standby:
        async with FaultProxy(primary.host, primary.port) as proxy:
            conninfo = make_conninfo(
                primary.conninfo,
                host=f"{proxy.host},{standby.host}",
                port=f"{proxy.port},{standby.port}",
                target_session_attrs="any",
            )
            async with open_checkpointer(conninfo, setup=False, max_size=1, deadline=3.0) as saver:
                pid, writing = await stuck_write(saver, primary, proxy)
                await eventually(lambda: saver.conn.snapshot().evictions.get("read-only"))
                proxy.accept()
                with pytest.raises(psycopg.OperationalError) as caught:
                    await writing
            primary.thaw_backend(pid)
    assert "outcome of aput is unknown" in "".join(caught.value.__notes__)


async def stuck_write(saver, primary, proxy):
    """A write whose backend is frozen in the middle, while only the standby can be reached."""
    async with await AsyncConnection.connect(primary.conninfo) as conn:
        await conn.execute("SELECT FROM checkpoints FOR UPDATE")
        writing = asyncio.create_task(put(saver, "t", text="old"))
        pid = await waiting_backend(primary.conninfo)
        primary.freeze_backend(pid)
        proxy.refuse()
        proxy.reset()
    return pid, writing


@pytest.mark.parametrize("set_back", [0.05, 0.5])
async def test_a_clock_that_was_set_back_hides_no_backend(lghard_database, set_back):
    """By the server's clock, the backend is a little younger than our connection to it."""
    async with two_connections(lghard_database) as (lost, conn):
        age = f"clock_timestamp() - backend_start + interval '{set_back} s'"
        assert await (await backend_of(lost, age=age)).is_over(conn) is False


@pytest.mark.parametrize("set_back", [0.05, 0.5])
async def test_a_clock_that_was_set_back_restarts_no_server(lghard_database, set_back):
    """Nor has the server started since, if it is only a little younger than the connection."""
    async with two_connections(lghard_database) as (lost, conn):
        age = f"clock_timestamp() - pg_postmaster_start_time() + interval '{set_back} s'"
        backend = await backend_of(lost, age=age)
        await conn.execute("SET ROLE pg_signal_backend")  # which is not told when a backend started
        assert await backend.is_over(conn) is False


async def test_a_server_that_was_started_since_has_no_old_backends(lghard_database):
    """Whatever has that process id now, and whether or not it may be told when that started."""
    async with two_connections(lghard_database) as (stranger, conn):
        age = "clock_timestamp() - pg_postmaster_start_time() + interval '5 s'"
        backend = await backend_of(stranger, age=age)
        await conn.execute("SET ROLE pg_signal_backend")
        assert await backend.is_over(conn) is True


async def test_a_stranger_with_the_same_process_id_is_left_alone(lghard_database):
    """It is younger than the connection that was lost."""
    async with two_connections(lghard_database) as (stranger, conn):
        backend = await backend_of(
            stranger, age="clock_timestamp() - backend_start + interval '1.5 s'"
        )
        assert await backend.is_over(conn) is True
        await stranger.execute("SELECT 1")


async def test_our_own_backend_is_not_terminated(lghard_database):
    """In a container that restarts, the next connection soon has the same process id."""
    async with two_connections(lghard_database) as (_, conn):
        assert await (await backend_of(conn)).is_over(conn) is True
        await conn.execute("SELECT 1")


async def test_a_table_named_like_the_view_hides_no_backend(lghard_database):
    """Where search_path names pg_catalog behind the schema of that table."""
    async with two_connections(lghard_database, "-csearch_path=public,pg_catalog") as (lost, conn):
        backend = await backend_of(lost)
        await conn.execute(
            "CREATE TABLE public.pg_stat_activity (LIKE pg_catalog.pg_stat_activity)"
        )
        assert await backend.is_over(conn) is False


async def test_a_role_without_the_right_to_terminate_waits(lghard_database):
    """After SET ROLE, the backend is there until it goes by itself, and that is no error."""
    async with two_connections(lghard_database) as (lost, conn):
        backend = await backend_of(lost)
        await conn.execute("SET ROLE pg_read_all_stats")
        assert await backend.is_over(conn) is False
        await lost.close()
        await eventually(lambda: backend.is_over(conn))
