"""What a hardened client costs: CPU for each event of a stream, and for each call.

    uv run benchmarks/sdk.py

A server of a few lines answers with the bytes a LangGraph server sends, from another process, so
that this one's CPU time is the client's. Both clients read the same streams in turn. The request
that asks how a run ended is part of a call; it is counted, and stated.
"""

import asyncio
import multiprocessing
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import langgraph_sdk
from langgraph_sdk.client import LangGraphClient, SyncLangGraphClient
from report import Goal, keep, progress, show, table

import lghard

EVENTS = 2_000
GAP = 0.0005  # seconds between two events, so that each arrives by itself, as a model's words do
CALLS = 50
ROUNDS = 7
PARTS = (  # what is measured: events of a call, calls, and events that arrive at once
    ("event", EVENTS, 1, 1),
    ("event of 100 at once", EVENTS, 1, 100),
    ("call", 1, CALLS, 1),
)
GOAL = 1.02
THREAD, RUN = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
_DATA = b'{"messages": [{"type": "ai", "content": "' + b"word " * 20 + b'"}]}'
_EVENT = b"event: values\r\ndata: " + _DATA + b"\r\n\r\n"
_PLACE = f"/threads/{THREAD}/runs/{RUN}"
_HEAD = (
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    f"Content-Location: {_PLACE}\r\n\r\n"
).encode()
_OUTCOME = b'{"run_id": "%b", "status": "success"}' % RUN.encode()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer as a LangGraph server does: each event is a chunk of its own."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    chunk = b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
            await reader.readexactly(int(lines.get(b"content-length", 0)))
            if head.startswith(b"POST"):
                events = int(lines[b"x-events"])
                writer.write(_HEAD)
                at_once = int(lines[b"x-at-once"])
                for _ in range(events // at_once):
                    writer.write(chunk * at_once)
                    await asyncio.sleep(GAP)
                writer.write(b"0\r\n\r\n")
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(_OUTCOME))
                writer.write(_OUTCOME)


def serve(sock: socket.socket) -> None:
    async def run() -> None:
        server = await asyncio.start_server(answer, sock=sock)
        await server.serve_forever()

    asyncio.run(run())


async def read(client: LangGraphClient, events: int, calls: int, at_once: int) -> float:
    """CPU seconds of so many calls with so many events."""
    headers = {"x-events": str(events), "x-at-once": str(at_once)}
    began = time.process_time()
    for _ in range(calls):
        async for _ in client.runs.stream(THREAD, "agent", headers=headers):
            pass
    return time.process_time() - began


def read_sync(client: SyncLangGraphClient, events: int, calls: int, at_once: int) -> float:
    headers = {"x-events": str(events), "x-at-once": str(at_once)}
    began = time.process_time()
    for _ in range(calls):
        for _ in client.runs.stream(THREAD, "agent", headers=headers):
            pass
    return time.process_time() - began


def measure(url: str, step: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """Microseconds of CPU, by kind of client, for each event and for each call."""
    found: dict[str, dict[str, float]] = {}
    runner = asyncio.Runner()

    def both(kind: str, events: int, calls: int, at_once: int) -> list[float]:
        if kind == "async":
            clients: list[Any] = [async_ours, async_theirs]
            return [runner.run(read(client, events, calls, at_once)) for client in clients]
        return [read_sync(client, events, calls, at_once) for client in (sync_ours, sync_theirs)]

    with runner:
        async_ours = lghard.get_client(url=url, api_key=None)
        async_theirs = langgraph_sdk.get_client(url=url, api_key=None)
        sync_ours = lghard.get_sync_client(url=url, api_key=None)
        sync_theirs = langgraph_sdk.get_sync_client(url=url, api_key=None)
        for kind in ("async", "sync"):
            for what, events, calls, at_once in PARTS:
                step(f"{kind}, per {what}")
                both(kind, events, calls, at_once)
                rounds = [both(kind, events, calls, at_once) for _ in range(ROUNDS)]
                ours, theirs = map(list, zip(*rounds, strict=True))
                found[f"{kind}, per {what}"] = {
                    "lghard": min(ours) / (events * calls) * 1e6,
                    "langgraph_sdk": min(theirs) / (events * calls) * 1e6,
                    "ratio": min(ours) / min(theirs),
                }
        runner.run(async_ours.aclose())
        runner.run(async_theirs.aclose())
        sync_ours.close()
        sync_theirs.close()
    return found


def main() -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    server = multiprocessing.get_context("fork").Process(target=serve, args=(sock,), daemon=True)
    server.start()
    try:
        with progress(2 * len(PARTS)) as step:
            found = measure(f"http://127.0.0.1:{sock.getsockname()[1]}", step)
    finally:
        server.terminate()
    shown = table("CPU, µs", "lghard", "langgraph_sdk", "ratio")
    for name, row in found.items():
        shown.add_row(
            name, f"{row['lghard']:.1f}", f"{row['langgraph_sdk']:.1f}", f"{row['ratio']:.3f}"
        )
    goals = [
        Goal(
            f"{kind}: at most {GOAL} x the SDK's CPU for each event",
            f"{ratio:.3f} x",
            ratio <= GOAL,
        )
        for kind in ("async", "sync")
        for ratio in [found[f"{kind}, per event"]["ratio"]]
    ]
    note = (
        "A call is a stream of one event; lghard's has a second request, which asks how it ended."
    )
    show(f"A stream of {EVENTS} events; the best of {ROUNDS} rounds each", shown, [note], goals)
    keep("sdk", None, {"cpu_us": found}, goals)


if __name__ == "__main__":
    main()
