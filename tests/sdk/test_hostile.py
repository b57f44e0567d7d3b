"""What else can go wrong: cancellation at every await, cuts at every byte, threads, redirects."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx
import pytest
from langgraph_sdk.client import LangGraphClient, SyncLangGraphClient
from langgraph_sdk.errors import APIStatusError

from lghard import RunDeadlineError, RunPolicy, get_client, get_sync_client, harden_client
from lghard.testing import FaultProxy
from tests.sdk.clients import Client, open_client
from tests.sdk.conftest import Connect
from tests.sdk.heartbeats import THREAD, Heartbeats, heartbeats
from tests.sdk.wire import RUN

Until = Callable[[Callable[[], Any]], Awaitable[Any]]


@pytest.fixture
async def beating() -> AsyncIterator[Heartbeats]:
    async with heartbeats() as server:
        server.shows_event = True
        yield server


@pytest.mark.parametrize("method", ["runs.stream", "runs.wait"])
@pytest.mark.parametrize("policy", [RunPolicy(), RunPolicy.resumable()])
async def test_cancellation_at_every_await(
    beating: Heartbeats, until: Until, method: str, policy: RunPolicy
) -> None:
    """Wherever it strikes: it is heard of, and no connection and no task stays behind."""
    async with asynccontextmanager(open_client)("async", beating.url, policy) as client:
        for turns in range(0, 60, 3):
            call = client.stream if method == "runs.stream" else client.call
            args = () if method == "runs.stream" else (method,)
            task = asyncio.create_task(call(*args, THREAD, "agent"))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: beating.open == 0)
        # What is left are this test, and the server's tasks for connections that are kept alive.
        left = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}
        assert left <= {"test_cancellation_at_every_await", "Heartbeats.answer"}


async def test_cut_at_any_byte_is_no_end(connect: Connect, proxy: FaultProxy) -> None:
    """Wherever the answer is cut: either all of it is there, or there is an exception."""
    client = await connect(proxy)
    thread_id = await client.new_thread()
    run_input = {"steps": 2, "pause": 0.02}
    complete = await client.stream(thread_id, "slow", input=run_input, stream_mode="updates")
    assert 2 == len(complete)
    for size in (0, 1, 200, 420, 480, 540, 600):
        thread_id, parts = await client.new_thread(), []
        proxy.cut_after(size, reset=False)
        try:
            await client.stream(
                thread_id, "slow", input=run_input, stream_mode="updates", into=parts
            )
        except httpx.TransportError:
            assert len(parts) <= 2
        else:
            assert complete == parts
        proxy.cut_after(0, n=0)


async def test_cut_at_any_byte_loses_nothing_of_a_resumable_stream(
    connect: Connect, proxy: FaultProxy
) -> None:
    """As soon as the run is known, it does not matter where the connection ends."""
    client = await connect(proxy, RunPolicy.resumable())
    run_input, options = {"steps": 3, "pause": 0.02}, {"stream_mode": "updates"}
    for size in (1, 420, 520, 560, 600, 700):
        thread_id, parts = await client.new_thread(), []
        proxy.cut_after(size)
        try:
            await client.stream(thread_id, "slow", input=run_input, into=parts, **options)
        except httpx.TransportError as error:
            assert [] == parts
            assert "the server has not told which run it is" in error.__notes__[0]  # noqa: PT017
            assert size < 600  # so much has the response's head
        else:
            assert [{"step": {"done": [step]}} for step in range(3)] == parts
        proxy.cut_after(0, n=0)


async def test_waiting_for_one_event_at_a_time(beating: Heartbeats, until: Until) -> None:
    """`wait_for` around each event reads in tasks of its own; the limits wake the right one."""
    policy = RunPolicy(deadline=None, idle_timeout=0.2)
    async with asynccontextmanager(open_client)("async", beating.url, policy) as client:
        stream = client.sdk.runs.stream(THREAD, "agent")
        assert "metadata" == (await asyncio.wait_for(anext(stream), 10)).event
        with pytest.raises(RunDeadlineError, match="has been silent"):
            await asyncio.wait_for(anext(stream), 10)
        stream = client.sdk.runs.stream(THREAD, "agent")
        await anext(stream)
        with pytest.raises(TimeoutError) as caught:
            await asyncio.wait_for(anext(stream), 0.05)
        assert TimeoutError is type(caught.value)
        await until(lambda: beating.open == 0)


async def test_stream_in_a_cycle_is_closed(beating: Heartbeats, until: Until) -> None:
    """A stream that only the garbage collector finds ends when it does."""
    async with asynccontextmanager(open_client)("async", beating.url) as client:

        async def read() -> None:
            cycle: list[Any] = [client.sdk.runs.stream(THREAD, "agent")]
            cycle.append(cycle)
            await anext(cycle[0])

        await read()
        gc.collect()
        await until(lambda: beating.open == 0)


async def test_reader_that_throws_into_the_stream(beating: Heartbeats, until: Until) -> None:
    """`athrow` gets its own error back, and the connection is closed."""
    async with asynccontextmanager(open_client)("async", beating.url) as client:
        stream = client.sdk.runs.stream(THREAD, "agent")
        await anext(stream)
        with pytest.raises(ZeroDivisionError):
            await stream.athrow(ZeroDivisionError())
        await until(lambda: beating.open == 0)


async def test_threads_share_a_client(beating: Heartbeats, until: Until) -> None:
    """Each thread is woken for its own limits, and none for another's."""
    limits = [0.1, 0.2, 0.3, 0.4] * 2

    with get_sync_client(url=beating.url, api_key=None) as sdk:

        def wait(seconds: float) -> float:
            client = harden_client(sdk, policy=RunPolicy(deadline=seconds))
            with pytest.raises(RunDeadlineError) as caught:
                client.runs.wait(THREAD, "agent")
            return caught.value.seconds

        with ThreadPoolExecutor(len(limits)) as pool:
            loop = asyncio.get_running_loop()
            waiting = [loop.run_in_executor(pool, wait, seconds) for seconds in limits]
            assert limits == await asyncio.gather(*waiting)
        await until(lambda: beating.open == 0)


@pytest.mark.parametrize("method", ["runs.stream", "runs.wait"])
async def test_redirect_is_no_answer(kind: str, method: str) -> None:
    """As with the SDK's own client, it is not followed, and not taken for the run."""

    def redirect(request: httpx.Request) -> httpx.Response:
        return httpx.Response(307, headers={"location": "http://elsewhere/runs"})

    options = {"transport": httpx.MockTransport(redirect), "base_url": "http://server"}
    if kind == "async":
        client = Client(harden_client(LangGraphClient(httpx.AsyncClient(**options))))
    else:
        client = Client(harden_client(SyncLangGraphClient(httpx.Client(**options))))
    call = client.stream if method == "runs.stream" else client.call
    args = () if method == "runs.stream" else (method,)
    with pytest.raises((APIStatusError, httpx.TransportError)):
        await call(*args, THREAD, "agent")


async def test_buffering_proxy_that_ends_the_stream_early(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A response that ends well while the run goes on is a proxy's doing, and no end."""
    monkeypatch.setattr("lghard.sdk.calls._PAUSES", (0.0, 0.01))

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"run_id": RUN, "status": "running"})
        place = {"content-location": f"/threads/{THREAD}/runs/{RUN}"}
        media = {"content-type": "text/event-stream"}
        return httpx.Response(200, headers=place | media, content=b"event: values\ndata: {}\n\n")

    options = {"transport": httpx.MockTransport(answer), "base_url": "http://server"}
    if kind == "async":
        client = Client(harden_client(LangGraphClient(httpx.AsyncClient(**options))))
    else:
        client = Client(harden_client(SyncLangGraphClient(httpx.Client(**options))))
    with pytest.raises(httpx.RemoteProtocolError, match="which runs on"):
        await client.stream(THREAD, "agent")


async def test_closed_client_says_so(beating: Heartbeats) -> None:
    """A stream that outlives its client ends with an error, not with a hang."""
    client = get_client(url=beating.url, api_key=None, policy=RunPolicy.resumable())
    async with aclosing(client.runs.stream(THREAD, "agent")) as stream:
        await anext(stream)
        await client.aclose()
        with pytest.raises((httpx.HTTPError, RuntimeError)):
            await asyncio.wait_for(anext(stream), 10)
