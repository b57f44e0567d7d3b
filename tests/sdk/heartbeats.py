"""A server that is alive, and does nothing but say so: what a deployment without workers does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

THREAD, RUN = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
_HEARTBEAT = {"stream": b": heartbeat\r\n\r\n", "wait": b"\n", "join": b"\n", "events": b": .\n\n"}
_EVENT = b'event: metadata\r\ndata: {"run_id": "x"}\r\n\r\n'

_BODIES = {
    "commands": b'{"id": 1, "result": {"run_id": "%b"}}' % RUN.encode(),
    "state": b'{"values": {}, "next": ["step"], "tasks": [{}]}',
}


@dataclass
class Heartbeats:
    """Answers each stream and wait with a heartbeat every 10 ms, for ever.

    Attributes:
        url: Where it is.
        shows_event: Whether a stream has a first event.
        freezes: Whether it takes requests, and is silent.
        cancelled: The paths of cancellations it was asked for.
        heads: The first lines and headers of all requests.
        open: How many responses are under way.
        beats: How many heartbeats it has sent.
    """

    url: str = ""
    shows_event: bool = False
    freezes: bool = False
    cancelled: list[str] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    open: int = 0
    beats: int = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.heads.append(head)
                length = next(
                    (
                        int(line[15:])
                        for line in head.split(b"\r\n")
                        if line.lower().startswith(b"content-length:")
                    ),
                    0,
                )
                await reader.readexactly(length)
                if not await self._respond(head.split()[1].decode().partition("?")[0], writer):
                    return
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            return
        finally:
            writer.close()

    async def _respond(self, path: str, writer: asyncio.StreamWriter) -> bool:
        kind = path.rpartition("/")[2]
        if kind in _HEARTBEAT:
            await self._beat(kind, writer)
            return False
        if kind == "cancel":
            self.cancelled.append(path)
        body = _BODIES.get(kind, b"")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        return True

    async def _beat(self, kind: str, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while self.freezes:
                await asyncio.sleep(0.01)
            media = "application/json" if kind in {"wait", "join"} else "text/event-stream"
            writer.write(
                f"HTTP/1.1 200 OK\r\nContent-Type: {media}\r\nTransfer-Encoding: chunked\r\n"
                f"Location: /threads/{THREAD}/runs/{RUN}/{kind}\r\n"
                f"Content-Location: /threads/{THREAD}/runs/{RUN}\r\n\r\n".encode()
            )
            if self.shows_event and kind == "stream":
                writer.write(_chunk(_EVENT))
            while not writer.is_closing():
                writer.write(_chunk(_HEARTBEAT[kind]))
                self.beats += 1
                await writer.drain()
                await asyncio.sleep(0.01)
        finally:
            self.open -= 1


@asynccontextmanager
async def heartbeats() -> AsyncIterator[Heartbeats]:
    """Run such a server on a free port."""
    beating = Heartbeats()
    server = await asyncio.start_server(beating.answer, "127.0.0.1", 0)
    beating.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield beating
    finally:
        beating.freezes = False
        server.close()


def _chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)
