"""The mechanism under every fault: connections whose chunks pass gates, one lane per direction.

A lane is a queue. What arrives at one socket enters it with the time of its arrival, and leaves it
in order, each item as soon as every gate lets it pass. That the connection opens and that a side
ends its stream are items too, so they are late, held or lost by the same rule as bytes.
"""

import asyncio
import enum
import socket
import struct
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal, Protocol, cast

Direction = Literal["up", "down"]


class Mark(enum.Enum):
    """What travels through a lane beside bytes."""

    OPEN = "the client connected"
    SHUT = "this side will send no more"


Item = bytes | Mark


class Gate(Protocol):
    """Decides when an item may pass."""

    def when(self, lane: "Lane", item: Item, arrived: float) -> float:
        """Return the loop time from which `item` may pass; infinity: not before a `flush`."""
        ...


class Trap(Protocol):
    """Sees each chunk once, as it passes."""

    def spring(self, lane: "Lane", chunk: bytes) -> bytes:
        """Return what of `chunk` is still to be sent, perhaps after ending the connection."""
        ...


# A lane stops reading its source above this much, as a network stops taking bytes. Large enough
# that latency alone does not limit throughput: 4 MiB in flight over 50 ms are 80 MiB/s.
_HIGH_WATER = 4 * 1024 * 1024
_LOW_WATER = _HIGH_WATER // 2

# struct linger: on, for zero seconds. Closing then sends RST instead of FIN.
_LINGER_ZERO = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


class Relay:
    """All connections to one server, with the gates and traps they share."""

    def __init__(self, host: str, port: int, gates: Sequence[Gate], traps: Sequence[Trap]) -> None:
        self.host = host
        self.port = port
        self.gates = gates
        self.traps = traps
        self.connections: set[Connection] = set()
        self.accepted = 0
        self.forwarded: dict[Direction, int] = {"up": 0, "down": 0}
        self.closed = False

    def accept(self) -> asyncio.Protocol:
        """Return the protocol of a new client; this is the listening socket's factory."""
        return Connection(self).client

    def flush(self) -> None:
        """Ask the gates again, everywhere: one of them has changed its mind."""
        for connection in list(self.connections):
            connection.up.flush()
            connection.down.flush()

    def end_all(self, *, reset: bool) -> None:
        """End every connection now, with RST or with FIN."""
        for connection in list(self.connections):
            connection.end(reset=reset)

    async def close(self) -> None:
        """Abort everything and wait until no socket and no task is left."""
        self.closed = True
        connections = list(self.connections)
        for connection in connections:
            connection.abort()
        for connection in connections:
            await connection.wait_closed()


class Connection:
    """A client, the server it is connected to, and the two lanes between them."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.client = Socket(self)
        self.server = Socket(self)
        self.up = Lane("up", self, source=self.client, sink=self.server)
        self.down = Lane("down", self, source=self.server, sink=self.client)
        self.ended = False
        self._connecting: asyncio.Task[None] | None = None

    @property
    def has_client(self) -> bool:
        """Whether the client is still there: it neither closed nor was cut off."""
        return self.client.is_open and not self.up.is_shut and not self.ended

    def connect(self) -> None:
        """Connect to the server, in the background."""
        self._connecting = asyncio.get_running_loop().create_task(self._connect())
        self._connecting.add_done_callback(lambda _: self.forget())

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: self.server, self.relay.host, self.relay.port
            )
        except OSError:
            # The client is connected already, so this is as near to "refused" as it gets.
            self.end(reset=True)

    def end(self, *, reset: bool) -> None:
        """End both sides now, with RST or with FIN; what the lanes still hold is lost."""
        self.ended = True
        if self._connecting is not None:
            self._connecting.cancel()
        for lane in (self.up, self.down):
            lane.clear()
        for side in (self.client, self.server):
            side.end(reset=reset)

    def abort(self) -> None:
        """End both sides without waiting for anything that is still to be written."""
        self.end(reset=False)
        for side in (self.client, self.server):
            if side.transport is not None:
                side.transport.abort()

    async def wait_closed(self) -> None:
        """Wait until both sockets are closed, and until nothing tries to connect."""
        if self._connecting is not None:
            await asyncio.wait([self._connecting])
        for side in (self.client, self.server):
            if side.transport is not None:
                await side.lost.wait()

    def forget(self) -> None:
        """Leave the relay once neither socket is open nor about to be."""
        connecting = self._connecting is not None and not self._connecting.done()
        if not (connecting or self.client.is_open or self.server.is_open):
            self.relay.connections.discard(self)
            self.end(reset=False)


class Socket(asyncio.Protocol):
    """One end of a connection: feeds its inbound lane, sends what its outbound lane delivers.

    Asyncio's own transports already set TCP_NODELAY.
    """

    inbound: "Lane"
    outbound: "Lane"

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.transport: asyncio.Transport | None = None
        self.lost = asyncio.Event()

    @property
    def is_open(self) -> bool:
        """Whether the socket is connected and not closed."""
        return self.transport is not None and not self.lost.is_set()

    @property
    def takes_bytes(self) -> bool:
        """Whether something written now can still arrive."""
        return self.transport is not None and not self.transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the connection (client), or let its requests through (server)."""
        self.transport = cast("asyncio.Transport", transport)
        relay, connection = self.connection.relay, self.connection
        if relay.closed or connection.ended:
            self.transport.abort()
        elif self is connection.client:
            relay.accepted += 1
            relay.connections.add(connection)
            self.inbound.feed(Mark.OPEN)
        else:
            self.outbound.resume()

    def data_received(self, data: bytes) -> None:
        """Pass a chunk on."""
        self.inbound.feed(data)

    def eof_received(self) -> bool:
        """Pass the end of this side's stream on, and stay open for the other side's."""
        self.inbound.feed(Mark.SHUT)
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Tell the other side, behind everything that is still on its way there."""
        self.lost.set()
        self.inbound.feed(Mark.SHUT)
        # Nobody resumes the writing of a closed socket, and what waits for it must drain.
        self.outbound.resume()
        self.connection.forget()

    def pause_writing(self) -> None:
        """Stop the lane: this socket's peer does not keep up."""
        self.outbound.pause()

    def resume_writing(self) -> None:
        """Let the lane run again."""
        self.outbound.resume()

    def end(self, *, reset: bool) -> None:
        """Close this socket, with RST or (behind what is already written) with FIN."""
        if self.transport is None or not self.takes_bytes:
            return
        if reset:
            sock = cast("socket.socket", self.transport.get_extra_info("socket"))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
            self.transport.abort()
        else:
            self.transport.close()


class Lane:
    """One direction of one connection: items in, in order, through the gates, out."""

    def __init__(
        self, direction: Direction, connection: Connection, *, source: Socket, sink: Socket
    ) -> None:
        self.direction: Direction = direction
        self.connection = connection
        self.is_shut = False
        self._source = source
        self._sink = sink
        self._relay = connection.relay
        self._queue: deque[tuple[float, Item]] = deque()
        self._size = 0
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        source.inbound = sink.outbound = self

    def feed(self, item: Item) -> None:
        """Take what arrived at the source."""
        if self.is_shut or self.connection.ended:
            return
        self.is_shut = item is Mark.SHUT
        self._queue.append((self._loop.time(), item))
        if isinstance(item, bytes):
            self._size += len(item)
        self.flush()

    def flush(self) -> None:
        """Deliver everything that may pass now, and come back when the next item may."""
        while self._queue and not self._paused:
            arrived, item = self._queue[0]
            when = self._when(item, arrived)
            if when > self._loop.time():
                self._wake_at(when)
                break
            self._queue.popleft()
            self._deliver(item)
        self._throttle()

    def pause(self) -> None:
        """Deliver nothing until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Deliver again."""
        self._paused = False
        self.flush()

    def clear(self) -> None:
        """Lose everything that is on its way."""
        self._queue.clear()
        self._size = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def send(self, chunk: bytes) -> None:
        """Write to the sink, past all gates; to a sink that is gone, write nothing."""
        if chunk and self._sink.transport is not None and self._sink.takes_bytes:
            self._relay.forwarded[self.direction] += len(chunk)
            self._sink.transport.write(chunk)

    def _when(self, item: Item, arrived: float) -> float:
        """Return the time at which the last of the gates opens.

        A gate is asked only about items that all gates before it let pass.
        """
        now = self._loop.time()
        for gate in self._relay.gates:
            when = gate.when(self, item, arrived)
            if when > now:
                return when
        return now

    def _wake_at(self, when: float) -> None:
        if self._timer is not None:
            if self._timer.when() == when:
                return
            self._timer.cancel()
            self._timer = None
        if when != float("inf"):
            self._timer = self._loop.call_at(when, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.flush()

    def _deliver(self, item: Item) -> None:
        if item is Mark.OPEN:
            self.pause()  # until the server's socket is there
            self.connection.connect()
        elif item is Mark.SHUT:
            self._shut_sink()
        elif isinstance(item, bytes):
            self._size -= len(item)
            for trap in self._relay.traps:
                item = trap.spring(self, item)
            self.send(item)

    def _shut_sink(self) -> None:
        """End the stream at the sink.

        A client that closes still gets the server's last answer, and the server reads what was
        sent before; a server that closes will answer nothing any more, so it takes the client
        with it.
        """
        if self.direction == "down":
            self.connection.end(reset=False)
        elif self._sink.transport is not None and self._sink.takes_bytes:
            with suppress(OSError):  # the other side was faster
                self._sink.transport.write_eof()

    def _throttle(self) -> None:
        transport = self._source.transport
        if transport is None:
            return
        if self._size > _HIGH_WATER:
            transport.pause_reading()
        elif self._size < _LOW_WATER:
            transport.resume_reading()
