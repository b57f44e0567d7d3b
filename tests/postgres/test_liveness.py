"""Is this connection still good? Asked of real connections, plain and over TLS, in every state."""

import asyncio
import os
import select
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import psutil
import psycopg
import pytest
from psycopg import AsyncConnection, Notify
from psycopg.conninfo import make_conninfo
from psycopg.pq import ConnStatus
from psycopg_pool import AsyncConnectionPool

from lghard.postgres.liveness import Connection, Pulse, abort, abort_after, look, ping
from lghard.testing import FaultProxy, TemporaryPostgres

Until = Callable[[Callable[[], object]], Awaitable[None]]
Kill = Callable[..., Awaitable[None]]
Connect = Callable[..., Awaitable[AsyncConnection[Any]]]

FOR_EVER = 600.0


@pytest.fixture(params=["breakable_postgres", "tls_postgres"], ids=["plain", "tls"])
def server(request: pytest.FixtureRequest) -> TemporaryPostgres:
    """A server to break: one that is spoken to in plain text, and one over TLS."""
    found: TemporaryPostgres = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def conninfo(server: TemporaryPostgres, request: pytest.FixtureRequest) -> str:
    """The way to the server, in plain text or over TLS."""
    tls = request.node.callspec.params["server"] == "tls_postgres"
    return make_conninfo(server.conninfo, sslmode="require" if tls else "disable")


@pytest.fixture
async def proxy(server: TemporaryPostgres) -> AsyncIterator[FaultProxy]:
    """A network to the server."""
    async with FaultProxy(server.host, server.port) as proxy:
        yield proxy


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Connect with autocommit; whatever is still open at the end is closed."""
    made: list[AsyncConnection[Any]] = []

    async def connect(conninfo: str, *, autocommit: bool = True) -> AsyncConnection[Any]:
        made.append(await AsyncConnection.connect(conninfo, autocommit=autocommit))
        return made[-1]

    yield connect
    for conn in made:
        await conn.close()


def readable(conn: AsyncConnection[Any]) -> bool:
    """Whether something has arrived on the connection's socket."""
    return bool(select.select([conn.fileno()], [], [], 0)[0])


async def answers(conn: AsyncConnection[Any]) -> bool:
    """Whether a statement on the connection has its result."""
    return await (await conn.execute("SELECT 42")).fetchone() == (42,)


async def test_quiet_connection_is_alive(connect: Connect, conninfo: str) -> None:
    """A connection that the server has nothing to say on is alive."""
    conn = await connect(conninfo)
    await answers(conn)
    assert look(conn) is Pulse.ALIVE
    assert await answers(conn)


async def test_half_of_these_tests_use_tls(connect: Connect, conninfo: str) -> None:
    """The tests over TLS would say nothing if they went in plain text."""
    conn = await connect(conninfo)
    assert conn.pgconn.ssl_in_use is ("require" in conninfo)


async def test_a_look_sends_nothing(connect: Connect, proxy: FaultProxy, conninfo: str) -> None:
    """A look costs no round trip."""
    conn = await connect(proxy.conninfo(conninfo))
    sent = proxy.bytes_up
    assert [look(conn) for _ in range(100)] == [Pulse.ALIVE] * 100
    assert await answers(conn)
    question = proxy.bytes_up - sent
    await answers(conn)
    assert proxy.bytes_up - sent == 2 * question


async def test_one_read_of_a_killed_backend_is_not_enough(
    connect: Connect, kill: Kill, server: TemporaryPostgres, conninfo: str
) -> None:
    """Control: after one read, libpq has the last words of a dead backend and thinks it alive."""
    conn = await connect(conninfo)
    await kill(server, conn.info.backend_pid)
    conn.pgconn.consume_input()
    assert conn.pgconn.status == ConnStatus.OK


async def test_killed_backend_is_dead(
    connect: Connect, kill: Kill, server: TemporaryPostgres, conninfo: str
) -> None:
    """The first look at a connection whose backend was terminated says so."""
    conn = await connect(conninfo)
    await kill(server, conn.info.backend_pid)
    assert look(conn) is Pulse.DEAD


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_restarted_server(
    connect: Connect, server: TemporaryPostgres, conninfo: str, mode: str
) -> None:
    """No connection to a server outlives its restart."""
    conn = await connect(conninfo)
    await asyncio.to_thread(server.restart, mode)
    assert look(conn) is Pulse.DEAD


@pytest.mark.parametrize("fault", ["drop", "reset"])
async def test_connection_closed_on_the_way(
    connect: Connect, proxy: FaultProxy, until: Until, conninfo: str, fault: str
) -> None:
    """A FIN or an RST from a middlebox is the end of a connection."""
    conn = await connect(proxy.conninfo(conninfo))
    getattr(proxy, fault)()
    await until(lambda: readable(conn))
    await until(lambda: look(conn) is not Pulse.SUSPECT)
    assert look(conn) is Pulse.DEAD


async def test_closed_connection_is_dead(connect: Connect, conninfo: str) -> None:
    """A connection that this side has closed has no socket to look at, and is dead."""
    conn = await connect(conninfo)
    await conn.close()
    assert look(conn) is Pulse.DEAD


async def test_notification_makes_a_suspect_that_a_ping_clears(
    connect: Connect, until: Until, conninfo: str
) -> None:
    """A healthy connection that was sent a notification stays, and the notification too."""
    conn, other = await connect(conninfo), await connect(conninfo)
    heard: list[Notify] = []
    conn.add_notify_handler(heard.append)
    await conn.execute("LISTEN lghard")
    await other.execute("NOTIFY lghard, 'payload'")
    await until(lambda: readable(conn))
    assert look(conn) is Pulse.SUSPECT
    assert await ping(conn, FOR_EVER) is True
    assert [notify.payload for notify in heard] == ["payload"]
    assert look(conn) is Pulse.ALIVE


async def test_notified_and_killed_is_dead(
    connect: Connect, kill: Kill, server: TemporaryPostgres, conninfo: str
) -> None:
    """What a backend sent before it died does not hide that it died."""
    conn, other = await connect(conninfo), await connect(conninfo)
    await conn.execute("LISTEN lghard")
    for number in range(50):
        await other.execute("SELECT pg_notify('lghard', %s)", [str(number) * 1000])
    await kill(server, conn.info.backend_pid)
    assert look(conn) is Pulse.DEAD


async def test_ping_of_a_quiet_connection(connect: Connect, conninfo: str) -> None:
    """A server that answers is alive, and its connection is as it was."""
    conn = await connect(conninfo)
    assert await ping(conn, FOR_EVER) is True
    assert await answers(conn)


async def test_ping_leaves_a_transactional_connection_as_it_was(
    connect: Connect, conninfo: str
) -> None:
    """Without autocommit, a ping begins no transaction and changes no setting."""
    conn = await connect(conninfo, autocommit=False)
    assert await ping(conn, FOR_EVER) is True
    assert (conn.autocommit, conn.info.transaction_status.name) == (False, "IDLE")


async def test_ping_of_a_killed_backend(
    connect: Connect, kill: Kill, server: TemporaryPostgres, conninfo: str
) -> None:
    """A dead connection fails the ping, and is closed by it."""
    conn = await connect(conninfo)
    await kill(server, conn.info.backend_pid)
    assert await ping(conn, FOR_EVER) is False
    assert conn.closed


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


async def test_ping_of_a_frozen_backend(
    connect: Connect, server: TemporaryPostgres, conninfo: str
) -> None:
    """A ping gives up after its time, while upstream's check still waits for the same server."""
    conn, other = await connect(conninfo), await connect(conninfo)
    async with frozen(server, conn.info.backend_pid, other.info.backend_pid):
        check = asyncio.create_task(AsyncConnectionPool.check_connection(other))
        async with asyncio.timeout(20):
            assert await ping(conn, 0.05) is False
        assert (conn.closed, check.done()) == (True, False)
    await check


async def test_ping_through_a_blackhole(connect: Connect, proxy: FaultProxy, conninfo: str) -> None:
    """A ping gives up on a network that swallows everything, while upstream's check still waits."""
    way = proxy.conninfo(conninfo)
    conn, other = await connect(way), await connect(way)
    proxy.blackhole()
    check = asyncio.create_task(AsyncConnectionPool.check_connection(other))
    async with asyncio.timeout(20):
        assert await ping(conn, 0.05) is False
    assert (conn.closed, check.done()) == (True, False)
    proxy.restore()
    await check


async def test_ping_tells_the_truth_when_answer_and_deadline_meet(
    connect: Connect, conninfo: str
) -> None:
    """A loop that was blocked past the deadline finds both at once; yes must mean a usable one."""
    conn = await connect(conninfo)
    pinging = asyncio.create_task(ping(conn, 0.05))
    await asyncio.sleep(0)
    time.sleep(0.1)  # noqa: ASYNC251 - blocking the loop is the fault
    assert await pinging is (look(conn) is Pulse.ALIVE)


async def test_cancelled_ping_of_a_slow_server(
    connect: Connect, server: TemporaryPostgres, until: Until, conninfo: str
) -> None:
    """Cancellation is honoured, and the connection is then usable or closed, nothing between."""
    conn = await connect(conninfo)
    async with frozen(server, conn.info.backend_pid):
        pinging = asyncio.create_task(ping(conn, FOR_EVER))
        await until(lambda: conn.info.transaction_status.name == "ACTIVE")
        pinging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pinging
    assert conn.closed or await answers(conn)


async def test_cancelled_ping_through_a_blackhole_does_not_wait(
    connect: Connect, proxy: FaultProxy, until: Until, conninfo: str
) -> None:
    """Who cancels does not have to wait until a request to cancel has got no answer either."""
    conn = await connect(proxy.conninfo(conninfo))
    proxy.blackhole()
    pinging = asyncio.create_task(ping(conn, 0.1))
    await until(lambda: conn.info.transaction_status.name == "ACTIVE")
    pinging.cancel()
    done, _ = await asyncio.wait({pinging}, timeout=2)
    proxy.restore(lose=True)
    with pytest.raises(asyncio.CancelledError):
        await pinging
    assert done == {pinging}


@pytest.mark.parametrize("steps", range(8))
async def test_ping_cancelled_at_any_step(connect: Connect, conninfo: str, steps: int) -> None:
    """Wherever the cancellation strikes, the ping ends, and its connection is whole or closed."""
    conn = await connect(conninfo)
    pinging = asyncio.create_task(ping(conn, FOR_EVER))
    for _ in range(steps):
        await asyncio.sleep(0)
    cancelled = pinging.cancel()
    await asyncio.wait({pinging})
    assert pinging.cancelled() is cancelled
    assert conn.closed or await answers(conn)


async def test_cancelled_query_through_a_blackhole(
    proxy: FaultProxy, until: Until, conninfo: str
) -> None:
    """It ends soon, while psycopg's own connection still asks the server to cancel it."""
    way = proxy.conninfo(conninfo)
    ours, theirs = await Connection.connect(way), await AsyncConnection.connect(way)
    proxy.blackhole()
    asked, waiting = (asyncio.create_task(conn.execute("SELECT 1")) for conn in (ours, theirs))
    for conn in (ours, theirs):
        await until(lambda conn=conn: conn.info.transaction_status.name == "ACTIVE")
    asked.cancel()
    waiting.cancel()
    await asyncio.wait({asked}, timeout=4)  # psycopg waits for five seconds, and five more
    assert (asked.cancelled(), ours.closed, waiting.done()) == (True, True, False)
    proxy.restore(lose=True)
    await asyncio.wait({waiting})
    await theirs.close()


async def test_abort_after_wakes_a_hanging_statement(connect: Connect, conninfo: str) -> None:
    """Who waits for a statement fails at the deadline as if the connection had been lost."""
    conn = await connect(conninfo)
    with pytest.raises(psycopg.OperationalError) as lost, abort_after(conn, 0.05):
        await conn.execute("SELECT pg_sleep(600)")
    assert (lost.value.sqlstate, conn.closed) == (None, True)


async def test_abort_after_spares_what_was_in_time(connect: Connect, conninfo: str) -> None:
    """The deadline ends with its block."""
    conn = await connect(conninfo)
    with abort_after(conn, 0.05):
        pass
    await conn.execute("SELECT pg_sleep(0.1)")
    assert look(conn) is Pulse.ALIVE


async def test_abort_after_ends_with_an_error_of_the_block(connect: Connect, conninfo: str) -> None:
    """An error of the block passes through, and takes the deadline with it."""
    conn = await connect(conninfo)
    with pytest.raises(ZeroDivisionError), abort_after(conn, 0.05):
        1 / 0  # noqa: B018
    await conn.execute("SELECT pg_sleep(0.1)")
    assert look(conn) is Pulse.ALIVE


async def test_abort_closes_no_descriptor(connect: Connect, conninfo: str) -> None:
    """The descriptor stays libpq's: closed here, it could become somebody else's socket."""
    conn = await connect(conninfo)
    before = os.fstat(conn.fileno())
    abort(conn)
    after = os.fstat(conn.pgconn.socket)
    assert (after.st_dev, after.st_ino) == (before.st_dev, before.st_ino)
    assert look(conn) is Pulse.DEAD


@pytest.mark.parametrize("times", [1, 2])
async def test_abort_of_what_is_over(
    connect: Connect, proxy: FaultProxy, until: Until, conninfo: str, times: int
) -> None:
    """A connection can be aborted after its peer has reset it, and more than once."""
    conn = await connect(proxy.conninfo(conninfo))
    proxy.reset()
    await until(lambda: readable(conn))
    for _ in range(times):
        abort(conn)
    assert look(conn) is Pulse.DEAD


async def test_abort_of_a_closed_connection(connect: Connect, conninfo: str) -> None:
    """There is nothing to abort, and nothing happens."""
    conn = await connect(conninfo)
    await conn.close()
    abort(conn)
    assert conn.closed


async def test_the_server_notices_an_abort(connect: Connect, until: Until, conninfo: str) -> None:
    """An aborted connection does not keep a backend of the server."""
    conn = await connect(conninfo)
    pid = conn.info.backend_pid
    abort(conn)
    await until(lambda: not psutil.pid_exists(pid))
    assert look(conn) is Pulse.DEAD
