"""The proxy users hold: a listening socket, and one switch for each fault."""

import asyncio
import math
import os
import socket
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from lghard.testing.proxy.gates import Blackhole, Cut, Hold, Latency, LostResponses
from lghard.testing.proxy.relay import Direction, Relay

LOOPBACK = "127.0.0.1"
_BACKLOG = 128


class Endpoint:
    """Where a proxy listens, in the forms that clients ask for."""

    host: str
    port: int

    def conninfo(self, conninfo: str = "") -> str:
        """Return a libpq connection string or URI, rewritten to lead through the proxy.

        Args:
            conninfo: The string that leads to the server itself. It keeps its user, password,
                database and options; only host, hostaddr and port change.
        """
        from psycopg.conninfo import conninfo_to_dict, make_conninfo  # noqa: PLC0415

        params = conninfo_to_dict(conninfo)
        params.pop("hostaddr", None)
        return make_conninfo("", **params | {"host": self.host, "port": self.port})

    def url(self, url: str) -> str:
        """Return an HTTP URL, rewritten to lead through the proxy."""
        parts = urlsplit(url)
        userinfo, at, _ = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{userinfo}{at}{self.host}:{self.port}").geturl()


class FaultProxy(Endpoint):
    """A TCP proxy that breaks connections on demand, to show what survives.

    It stands between a client and a real server, on a free port of the loopback interface. Every
    fault is a switch that acts at once, also on connections that are already open. The proxy
    lives in the event loop that entered it; `proxy_process` is the one for benchmarks.

    Faults that are limited to requests `containing` some bytes look at what the client sends, so
    a statement that Postgres has already prepared shows only its name.

    Args:
        host: Where the server listens.
        port: Its port.
        latency: One-way delay in seconds; a round trip takes twice as long. It delays, and does
            not throttle: chunks that follow each other closely stay as close.

    Example:
        ```python
        async with FaultProxy("127.0.0.1", 5432) as proxy:
            conninfo = proxy.conninfo("postgresql://app@127.0.0.1/app")
            proxy.blackhole()
            ...  # what your application does now is what it does in a network partition
            proxy.restore()
        ```
    """

    def __init__(self, host: str, port: int, *, latency: float = 0.0) -> None:
        self.host = LOOPBACK
        self.port = 0
        self._latency = Latency(_not_negative(latency))
        self._blackhole = Blackhole()
        self._hold = Hold()
        self._lost = LostResponses()
        self._cut = Cut()
        gates = (self._latency, self._blackhole, self._hold)
        self._relay = Relay(host, port, gates, (self._lost, self._cut))
        self._listener: socket.socket | None = None
        self._starting: asyncio.Task[None] | None = None
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        if self._listener is not None or self._relay.closed:
            raise RuntimeError("FaultProxy can be entered only once: make a new one")
        self._listener = _bind(0)
        self.port = self._listener.getsockname()[1]
        self.accept()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop listening and close every connection; leaving `async with` does this."""
        starting = self._starting
        self._stop_listening()
        if starting is not None:
            await asyncio.wait([starting])
        await self._relay.close()

    def __repr__(self) -> str:
        relay = self._relay
        faults = ", blackholed" * self._blackhole.active + ", refusing" * (not self._is_listening)
        return (
            f"<FaultProxy {self.host}:{self.port} to {relay.host}:{relay.port},"
            f" {self.connections} connections{faults}>"
        )

    @property
    def connections(self) -> int:
        """The connections that clients have open now."""
        return sum(connection.has_client for connection in self._relay.connections)

    @property
    def accepted(self) -> int:
        """The connections accepted since the start."""
        return self._relay.accepted

    @property
    def bytes_up(self) -> int:
        """The bytes delivered to the server since the start."""
        return self._relay.forwarded["up"]

    @property
    def bytes_down(self) -> int:
        """The bytes delivered to clients since the start."""
        return self._relay.forwarded["down"]

    @property
    def held(self) -> int:
        """The connections on which a request is held back now."""
        return self._hold.held

    @property
    def lost(self) -> int:
        """The responses lost since the start."""
        return self._lost.lost

    @property
    def latency(self) -> float:
        """The one-way delay in seconds; may be set at any time."""
        return self._latency.seconds

    @latency.setter
    def latency(self, seconds: float) -> None:
        self._latency.seconds = _not_negative(seconds)
        self._relay.flush()

    def drop(self) -> None:
        """Close every connection with FIN, on both sides, as a server that shuts down does."""
        self._relay.end_all(reset=False)

    def reset(self) -> None:
        """Close every connection with RST, on both sides, as a failing middlebox does."""
        self._relay.end_all(reset=True)

    def blackhole(self) -> None:
        """Let nothing through any more, in either direction, without telling anybody.

        Connections stay open, new ones are accepted, and nothing is ever answered: the network
        partition, or the firewall that forgot a connection.
        """
        self._blackhole.active = True

    def restore(self, *, lose: bool = False) -> None:
        """End a blackhole.

        Args:
            lose: By default the network has healed, and TCP delivers late what was sent in the
                meantime, in order, also from clients that have given up. With `lose` that is
                lost, and the connections it was sent on are reset.
        """
        struck = self._blackhole.restore()
        if lose:
            for connection in struck:
                connection.end(reset=True)
        self._relay.flush()

    def refuse(self) -> None:
        """Refuse new connections, as if no server were running. Open ones are left alone."""
        if self._is_listening:
            self._stop_listening()
            # Bound but not listening: the port refuses, and nobody else gets it.
            self._listener = _bind(self.port)

    def accept(self) -> None:
        """Accept connections again, on the same port."""
        if self._listener is None:
            raise RuntimeError("FaultProxy is not open: enter it with `async with` first")
        if not self._is_listening:
            self._listener.listen(_BACKLOG)
            self._starting = asyncio.create_task(self._serve(self._listener))

    def lose_responses(self, n: int = 1, *, containing: bytes = b"") -> None:
        """Lose the next `n` responses: the server has done it, and the client never hears.

        When a response comes back from the server, the client's connection is reset instead.
        The server's side is left to finish what it was asked to do.

        Args:
            n: How many responses, each costing its connection; 0 ends the fault.
            containing: Only responses to requests in which these bytes occur.
        """
        self._lost.arm(n, containing)

    def hold_requests(self, n: int | None = None, *, containing: bytes = b"") -> None:
        """Hold the next `n` requests back until `release`.

        A held request is delivered even when its client has gone away by then: the late write
        that overtakes its own retry.

        Args:
            n: How many; None: all.
            containing: Only requests in which these bytes occur.
        """
        self._hold.arm(math.inf if n is None else n, containing, math.inf)

    def delay_delivery(
        self, seconds: float, n: int | None = None, *, containing: bytes = b""
    ) -> None:
        """Deliver the next `n` requests `seconds` late, even when their client has gone away.

        Args:
            seconds: How late; `release` delivers them earlier.
            n: How many; None: all.
            containing: Only requests in which these bytes occur.
        """
        self._hold.arm(math.inf if n is None else n, containing, _not_negative(seconds))

    def release(self) -> None:
        """Deliver what `hold_requests` and `delay_delivery` hold back, and hold nothing more."""
        self._hold.release()
        self._relay.flush()

    def cut_after(
        self, size: int, direction: Direction = "down", *, n: int = 1, reset: bool = True
    ) -> None:
        """Cut the next `n` connections in the middle of a message.

        Args:
            size: The bytes that still pass on a connection, counted from now; the one after
                them costs it both sides.
            direction: "up", to the server, or "down", to the client.
            n: How many connections; 0 ends the fault.
            reset: Cut with RST; otherwise with FIN.
        """
        self._cut.arm(size, direction, n, reset=reset)

    @property
    def _is_listening(self) -> bool:
        return self._starting is not None

    async def _serve(self, listener: socket.socket) -> None:
        # Up to here nothing in asyncio waits, so whoever cancels this finds the server or does
        # not find it begun; `start_serving=True` would lose a server that is already listening.
        self._server = await asyncio.get_running_loop().create_server(
            self._relay.accept, sock=listener, start_serving=False
        )
        await self._server.start_serving()

    def _stop_listening(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
        if self._server is not None:
            self._server.close()
        elif self._listener is not None:
            self._listener.close()
        self._starting = self._server = self._listener = None


def _bind(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if os.name == "posix":
        # Connections accepted earlier may still be using the port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((LOOPBACK, port))
    return sock


def _not_negative(seconds: float) -> float:
    if seconds < 0:
        raise ValueError(f"a delay is at least 0 seconds, not {seconds}")
    return seconds
