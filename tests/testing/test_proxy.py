"""FaultProxy, between clients and a plain echo server, and between psycopg and Postgres."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import LiteralString

import psutil
import psycopg
import pytest

from lghard.testing import FaultProxy, TemporaryPostgres, proxy_process
from lghard.testing.proxy.fault_proxy import Endpoint

CONNECTIONS: LiteralString = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
)


@dataclass
class EchoServer:
    """Sends every byte back, and remembers what it was sent."""

    port: int = 0
    received: bytes = b""
    connections: int = 0
    answering: bool = True
    ended: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while chunk := await reader.read(65536):
                self.received += chunk
                if self.answering:
                    writer.write(chunk)
            self.ended.append("FIN")
        except ConnectionResetError:
            self.ended.append("RST")
        finally:
            self.connections -= 1
            writer.close()


@dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, request: bytes) -> bytes:
        self.writer.write(request)
        return await asyncio.wait_for(self.reader.readexactly(len(request)), 5)

    async def read_to_end(self) -> bytes:
        return await asyncio.wait_for(self.reader.read(), 5)


@pytest.fixture
async def echo() -> AsyncIterator[EchoServer]:
    """An echo server; at the end, nothing may be connected to it any more."""
    server = EchoServer()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    yield server
    listening.close()
    await until(lambda: server.connections == 0)


@pytest.fixture
async def proxy(echo: EchoServer) -> AsyncIterator[FaultProxy]:
    """A proxy to the echo server."""
    async with FaultProxy("127.0.0.1", echo.port) as proxy:
        yield proxy


@asynccontextmanager
async def connected(to: Endpoint) -> AsyncIterator[Client]:
    """Connect a client, and abort it at the end."""
    reader, writer = await asyncio.open_connection(to.host, to.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


async def until(condition: Callable[[], object]) -> None:
    """Poll until the condition holds; five seconds are for machines under load."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def is_silent(client: Client, proxy: FaultProxy) -> bool:
    """Whether an answer is missing that a second, untouched path through the loop would bring.

    Nothing marks the absence of bytes, so this waits far longer than an echo takes.
    """
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.reader.read(1), 0.1)
    return True


async def test_relays_both_ways_and_counts(echo: EchoServer, proxy: FaultProxy) -> None:
    """Without a fault, every byte arrives, and the counters say how many."""
    async with connected(proxy) as client:
        assert await client.ask(b"hello") == b"hello"
        assert (proxy.connections, proxy.accepted) == (1, 1)
        assert (proxy.bytes_up, proxy.bytes_down) == (5, 5)
    await until(lambda: proxy.connections == 0)
    assert proxy.accepted == 1


async def test_large_transfer_is_unchanged(echo: EchoServer, proxy: FaultProxy) -> None:
    """More than any buffer holds passes in order, through backpressure on both sides."""
    sent = b"".join(i.to_bytes(4, "big") for i in range(4_000_000))
    async with connected(proxy) as client:
        client.writer.write(sent)
        await until(lambda: proxy.bytes_up > 0)
        assert await asyncio.wait_for(client.reader.readexactly(len(sent)), 20) == sent


async def test_end_of_stream_follows_what_was_sent(echo: EchoServer, proxy: FaultProxy) -> None:
    """A client that half-closes still gets the whole answer, then the end."""
    proxy.latency = 0.01
    async with connected(proxy) as client:
        client.writer.write(b"last words")
        client.writer.write_eof()
        assert await client.read_to_end() == b"last words"


async def test_latency_delays_and_keeps_order(echo: EchoServer) -> None:
    """A round trip takes at least twice the one-way delay, and nothing overtakes anything."""
    async with (
        FaultProxy("127.0.0.1", echo.port, latency=0.02) as proxy,
        connected(proxy) as client,
    ):
        began = time.monotonic()
        assert await client.ask(b"one") == b"one"
        assert time.monotonic() - began >= 0.04
        for i in range(100):
            client.writer.write(b"%02d" % i)
            await asyncio.sleep(0)
        answer = await asyncio.wait_for(client.reader.readexactly(200), 5)
        assert answer == b"".join(b"%02d" % i for i in range(100))


async def test_latency_is_a_delay_line(echo: EchoServer) -> None:
    """Chunks sent one by one overlap: 50 of them do not take 50 times the delay."""
    async with FaultProxy("127.0.0.1", echo.port, latency=0.1) as proxy, connected(proxy) as client:
        began = time.monotonic()
        for _ in range(50):
            client.writer.write(b"x")
            await asyncio.sleep(0.001)
        await asyncio.wait_for(client.reader.readexactly(50), 20)
        assert proxy.bytes_down == 50
        assert time.monotonic() - began < 50 * 0.1


async def test_lowering_latency_frees_what_is_under_way(echo: EchoServer) -> None:
    """The delay can be changed at any time, also for chunks that already wait."""
    async with (
        FaultProxy("127.0.0.1", echo.port, latency=3600) as proxy,
        connected(proxy) as client,
    ):
        client.writer.write(b"late")
        await until(lambda: proxy.connections == 1)
        proxy.latency = 0
        assert await asyncio.wait_for(client.reader.readexactly(4), 5) == b"late"


async def test_drop_ends_the_stream_cleanly(echo: EchoServer, proxy: FaultProxy) -> None:
    """The client reads an end of file, and so does the server."""
    async with connected(proxy) as client:
        await client.ask(b"hello")
        proxy.drop()
        assert await client.read_to_end() == b""
        await until(lambda: echo.ended == ["FIN"])
    assert proxy.connections == 0


async def test_reset_resets_both_sides(echo: EchoServer, proxy: FaultProxy) -> None:
    """The client gets ECONNRESET, and so does the server."""
    async with connected(proxy) as client:
        await client.ask(b"hello")
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await client.read_to_end()
        await until(lambda: echo.ended == ["RST"])


async def test_blackhole_is_silent_and_heals(echo: EchoServer, proxy: FaultProxy) -> None:
    """Nothing passes, new connections get no answer either; afterwards all of it arrives."""
    async with connected(proxy) as old:
        await old.ask(b"hello")
        proxy.blackhole()
        async with connected(proxy) as new:
            old.writer.write(b"old")
            new.writer.write(b"new")
            assert await is_silent(old, proxy)
            assert await is_silent(new, proxy)
            assert (proxy.connections, echo.connections, proxy.bytes_up) == (2, 1, 5)
            proxy.restore()
            assert await asyncio.wait_for(old.reader.readexactly(3), 5) == b"old"
            assert await asyncio.wait_for(new.reader.readexactly(3), 5) == b"new"


async def test_blackhole_swallows_answers(echo: EchoServer, proxy: FaultProxy) -> None:
    """The direction to the client is dead as well."""
    async with connected(proxy) as client:
        proxy.latency = 0.05
        client.writer.write(b"hello")
        await until(lambda: echo.received == b"hello")
        proxy.blackhole()
        assert await is_silent(client, proxy)
        assert proxy.bytes_down == 0
        proxy.restore()


async def test_blackhole_may_lose_what_it_swallowed(echo: EchoServer, proxy: FaultProxy) -> None:
    """With `lose`, what was sent meanwhile never arrives; untouched connections live on."""
    async with connected(proxy) as talker, connected(proxy) as quiet:
        await talker.ask(b"1")
        await quiet.ask(b"2")
        proxy.blackhole()
        talker.writer.write(b"never")
        await is_silent(talker, proxy)
        proxy.restore(lose=True)
        with pytest.raises(ConnectionResetError):
            await talker.read_to_end()
        assert await quiet.ask(b"3") == b"3"
    assert echo.received == b"123"


async def test_refuse_and_accept_on_the_same_port(echo: EchoServer, proxy: FaultProxy) -> None:
    """Connects are refused while open connections work; later the same port accepts."""
    port = proxy.port
    async with connected(proxy) as client:
        await client.ask(b"hello")
        for _ in range(3):
            proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(proxy.host, port)
            assert await client.ask(b"still here") == b"still here"
            proxy.accept()
            async with connected(proxy) as other:
                assert await other.ask(b"back") == b"back"
    assert proxy.port == port


async def test_switching_twice_changes_nothing(echo: EchoServer, proxy: FaultProxy) -> None:
    """`refuse` and `accept` are states, so saying them again is harmless."""
    proxy.accept()
    proxy.refuse()
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(proxy.host, proxy.port)
    proxy.accept()
    proxy.refuse()
    proxy.accept()
    async with connected(proxy) as client:
        assert await client.ask(b"hello") == b"hello"


async def test_lost_response_was_delivered(echo: EchoServer, proxy: FaultProxy) -> None:
    """The server got the request, the client a reset; the next response arrives again."""
    async with connected(proxy) as client:
        await client.ask(b"first")
        proxy.lose_responses()
        with pytest.raises(ConnectionResetError):
            await client.ask(b"second")
        assert (echo.received, proxy.lost) == (b"firstsecond", 1)
        await until(lambda: echo.ended == ["FIN"])
    async with connected(proxy) as client:
        assert await client.ask(b"third") == b"third"


async def test_lost_response_to_one_kind_of_request(echo: EchoServer, proxy: FaultProxy) -> None:
    """With `containing`, other requests are answered; a request may come in several chunks."""
    proxy.lose_responses(2, containing=b"INSERT INTO t")
    for _ in range(2):
        async with connected(proxy) as client:
            assert await client.ask(b"SELECT 1") == b"SELECT 1"
            echo.answering = False
            client.writer.write(b"INSERT ")
            await until(lambda: echo.received.endswith(b"INSERT "))
            echo.answering = True
            with pytest.raises(ConnectionResetError):
                await client.ask(b"INTO t")
    async with connected(proxy) as client:
        assert await client.ask(b"INSERT INTO t") == b"INSERT INTO t"
    assert proxy.lost == 2


async def test_lost_response_of_a_request_under_way(echo: EchoServer, proxy: FaultProxy) -> None:
    """A request that is already being worked on loses its response too."""
    proxy.latency = 0.05
    async with connected(proxy) as client:
        client.writer.write(b"hello")
        await until(lambda: echo.received == b"hello")
        proxy.lose_responses()
        with pytest.raises(ConnectionResetError):
            await client.read_to_end()


async def test_held_request_is_delivered_after_its_client_left(
    echo: EchoServer, proxy: FaultProxy
) -> None:
    """The late write: the client gave up, its retry was faster, then the request arrives."""
    proxy.hold_requests(1, containing=b"INSERT")
    async with connected(proxy) as client:
        assert await client.ask(b"SELECT,") == b"SELECT,"
        client.writer.write(b"INSERT old,")
        await until(lambda: proxy.held == 1)
    await until(lambda: proxy.connections == 0)
    async with connected(proxy) as client:
        assert await client.ask(b"INSERT new,") == b"INSERT new,"
    proxy.release()
    await until(lambda: echo.received == b"SELECT,INSERT new,INSERT old,")
    assert proxy.held == 0


async def test_hold_ends_with_release(echo: EchoServer, proxy: FaultProxy) -> None:
    """Without a number all requests are held, in order; `release` also holds no new ones."""
    proxy.hold_requests()
    async with connected(proxy) as client, connected(proxy) as other:
        client.writer.write(b"1")
        await until(lambda: proxy.held == 1)
        client.writer.write(b"2")
        other.writer.write(b"3")
        await until(lambda: proxy.held == 2)
        assert echo.received == b""
        proxy.release()
        assert await asyncio.wait_for(client.reader.readexactly(2), 5) == b"12"
        assert await asyncio.wait_for(other.reader.readexactly(1), 5) == b"3"
        assert await other.ask(b"4") == b"4"


async def test_delayed_delivery_needs_no_release(echo: EchoServer, proxy: FaultProxy) -> None:
    """The request arrives by itself, later, though its client has gone away."""
    proxy.delay_delivery(0.1, 1)
    async with connected(proxy) as client:
        client.writer.write(b"late,")
        await until(lambda: proxy.held == 1)
    async with connected(proxy) as client:
        assert await client.ask(b"early,") == b"early,"
    await until(lambda: echo.received == b"early,late,")


async def test_cut_after_bytes_down(echo: EchoServer, proxy: FaultProxy) -> None:
    """The client gets exactly the first bytes of the answer; the next connection is whole."""
    proxy.cut_after(7, reset=False)
    async with connected(proxy) as client:
        assert await client.ask(b"12345") == b"12345"
        client.writer.write(b"67890")
        assert await client.read_to_end() == b"67"
    async with connected(proxy) as client:
        assert await client.ask(b"1234567890") == b"1234567890"


async def test_cut_after_bytes_up(echo: EchoServer, proxy: FaultProxy) -> None:
    """The server gets exactly the first bytes of the request; the client is reset."""
    async with connected(proxy) as client:
        await client.ask(b"hello")
        proxy.cut_after(3, "up")
        client.writer.write(b"12345")
        with pytest.raises(ConnectionResetError):
            await client.read_to_end()
        await until(lambda: echo.ended)
    assert echo.received == b"hello123"


async def test_server_that_closes_takes_the_client_along(proxy: FaultProxy) -> None:
    """When no server listens behind the proxy, the client's connection ends at once."""

    async def bye(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.close()

    server = await asyncio.start_server(bye, "127.0.0.1", 0)
    async with server, FaultProxy("127.0.0.1", server.sockets[0].getsockname()[1]) as polite:
        async with connected(polite) as client:
            assert await client.read_to_end() == b"bye"
        server.close()
        async with connected(polite) as client:
            with pytest.raises(ConnectionResetError):
                await client.read_to_end()
        await until(lambda: polite.connections == 0)


@pytest.mark.parametrize("fault", ["none", "blackhole", "hold", "latency", "stuck"])
async def test_close_leaves_nothing(echo: EchoServer, fault: str) -> None:
    """Closing ends at once whatever is under way, and leaves no task and no socket."""
    tasks, sockets = len(asyncio.all_tasks()), open_sockets()
    async with FaultProxy("127.0.0.1", echo.port) as proxy:
        _, writer = await asyncio.open_connection(proxy.host, proxy.port)
        if fault == "blackhole":
            proxy.blackhole()
        elif fault == "hold":
            proxy.hold_requests()
        elif fault == "latency":
            proxy.latency = 3600
        writer.write(b"x" * (8_000_000 if fault == "stuck" else 8))
        await until(lambda: proxy.accepted == 1)
    writer.transport.abort()
    await until(lambda: (len(asyncio.all_tasks()), open_sockets()) == (tasks, sockets))
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(proxy.host, proxy.port)


def open_sockets() -> int:
    """Count this process' TCP sockets."""
    return len(psutil.Process().net_connections("tcp"))


async def test_repr_says_what_is_switched_on(echo: EchoServer, proxy: FaultProxy) -> None:
    """The repr answers: where from, where to, how many, which fault."""
    route = f"127.0.0.1:{proxy.port} to 127.0.0.1:{echo.port}"
    assert repr(proxy) == f"<FaultProxy {route}, 0 connections>"
    proxy.blackhole()
    proxy.refuse()
    assert repr(proxy) == f"<FaultProxy {route}, 0 connections, blackholed, refusing>"


async def test_conninfo_and_url_lead_through_the_proxy(proxy: FaultProxy) -> None:
    """User, password, database, options and path stay; only the address changes."""
    conninfo = proxy.conninfo("postgresql://u:p@db.example:5432/app?hostaddr=10.0.0.1")
    assert conninfo == f"user=u password=p dbname=app host=127.0.0.1 port={proxy.port}"
    url = proxy.url("http://u:p@server.example:8123/runs?x=1")
    assert url == f"http://u:p@127.0.0.1:{proxy.port}/runs?x=1"
    assert proxy.url("http://server.example") == f"http://127.0.0.1:{proxy.port}"


async def test_must_be_entered(echo: EchoServer) -> None:
    """The error for a proxy that nobody opened says how to open it."""
    with pytest.raises(RuntimeError, match="enter it with `async with` first"):
        FaultProxy("127.0.0.1", echo.port).accept()


async def test_is_entered_once(proxy: FaultProxy) -> None:
    """One that is open or closed is not opened again; closing it again is harmless."""
    for _ in range(2):
        with pytest.raises(RuntimeError, match="make a new one"):
            async with proxy:
                pass
        await proxy.close()


@pytest.mark.parametrize("seconds", [-1, -0.001])
async def test_negative_delays_are_refused(proxy: FaultProxy, seconds: float) -> None:
    """No delay is below zero."""
    with pytest.raises(ValueError, match="at least 0 seconds"):
        proxy.latency = seconds
    with pytest.raises(ValueError, match="at least 0 seconds"):
        proxy.delay_delivery(seconds)


async def test_proxy_process_delays_and_ends(echo: EchoServer) -> None:
    """The separate process relays with its delay, and is gone after the block."""
    with proxy_process("127.0.0.1", echo.port, latency=0.01) as proxy:
        async with connected(proxy) as client:
            began = time.monotonic()
            assert await client.ask(b"hello") == b"hello"
            assert time.monotonic() - began >= 0.02
        assert proxy.conninfo("host=db") == f"host=127.0.0.1 port={proxy.port}"
        process = psutil.Process(proxy.pid)
    assert not process.is_running()


def test_proxy_process_ends_with_a_killed_parent() -> None:
    """A SIGKILL of the process that started it ends its input, and so the proxy."""
    script = (
        "from lghard.testing import proxy_process\n"
        "with proxy_process('127.0.0.1', 9) as proxy: print(proxy.pid, flush=True); input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout
        process = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    psutil.wait_procs([process], timeout=5)
    assert not process.is_running()


def test_proxy_process_that_does_not_start_says_so() -> None:
    """A port that is no number: the process' own message stands above, and an error is raised."""
    with (
        pytest.raises(RuntimeError, match="did not start"),
        proxy_process("127.0.0.1", "no port"),  # type: ignore[arg-type]
    ):
        pass


async def test_lost_response_of_postgres(
    lghard_postgres: TemporaryPostgres, lghard_empty_database: str
) -> None:
    """The client is told that the connection broke, while the row is there."""
    server = lghard_postgres
    async with (
        FaultProxy(server.host, server.port) as proxy,
        await connect(lghard_empty_database) as witness,
        await connect(proxy.conninfo(lghard_empty_database)) as conn,
    ):
        await conn.execute("CREATE TABLE t (i int)")
        proxy.lose_responses(containing=b"INSERT INTO t")
        with pytest.raises(psycopg.OperationalError):
            await conn.execute("INSERT INTO t VALUES (%s)", [1])
        await becomes(witness, "SELECT i FROM t", [(1,)])
        await becomes(witness, CONNECTIONS, [(1,)])


async def test_late_request_to_postgres(
    lghard_postgres: TemporaryPostgres, lghard_empty_database: str
) -> None:
    """A write that its client gave up executes after the write that replaced it."""
    server = lghard_postgres
    async with (
        FaultProxy(server.host, server.port) as proxy,
        await connect(lghard_empty_database) as witness,
    ):
        await witness.execute("CREATE TABLE t (i int)")
        proxy.hold_requests(1, containing=b"INSERT INTO t")
        conn = await connect(proxy.conninfo(lghard_empty_database))
        writing = asyncio.create_task(conn.execute("INSERT INTO t VALUES (%s)", [1]))
        await until(lambda: proxy.held == 1)
        conn.pgconn.finish()
        writing.cancel()
        with pytest.raises((asyncio.CancelledError, psycopg.OperationalError)):
            await writing
        await witness.execute("INSERT INTO t VALUES (2)")
        proxy.release()
        await becomes(witness, "SELECT i FROM t", [(2,), (1,)])
        await becomes(witness, CONNECTIONS, [(1,)])


async def connect(conninfo: str) -> psycopg.AsyncConnection[tuple[object, ...]]:
    """Connect in autocommit, so that nothing but the statement itself travels."""
    return await psycopg.AsyncConnection.connect(conninfo, autocommit=True)


async def becomes(
    conn: psycopg.AsyncConnection[tuple[object, ...]],
    query: LiteralString,
    rows: list[tuple[object, ...]],
) -> None:
    """Poll until the query returns these rows, in this order."""
    async with asyncio.timeout(5):
        while await (await conn.execute(query)).fetchall() != rows:
            await asyncio.sleep(0.005)
