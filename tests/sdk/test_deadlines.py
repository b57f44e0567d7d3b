"""Nothing is waited for without end, however alive the server looks."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import langgraph_sdk
import pytest
from langgraph_sdk.client import LangGraphClient

from lghard import RunDeadlineError, RunPolicy
from lghard.testing import FaultProxy
from tests.sdk.clients import Client, open_client
from tests.sdk.conftest import Connect, Effects
from tests.sdk.heartbeats import RUN, THREAD, Heartbeats, heartbeats

Until = Callable[[Callable[[], Any]], Awaitable[Any]]
ENOUGH = 0.3
CANCELLED = [f"/threads/{THREAD}/runs/{RUN}/cancel"]


@pytest.fixture
async def beating() -> AsyncIterator[Heartbeats]:
    """A server that sends heartbeats, and nothing else."""
    async with heartbeats() as server:
        yield server


def only(limit: str) -> RunPolicy:
    """A policy with one limit."""
    none = {"deadline": None, "first_event_timeout": None, "idle_timeout": None}
    return RunPolicy(**{**none, limit: ENOUGH})


async def call(client: Client, method: str) -> Any:
    """Call a method that waits."""
    if method == "runs.stream":
        return await client.stream(THREAD, "agent", input={})
    if method == "runs.join_stream":
        return await client.stream(THREAD, RUN, method=method)
    args = (THREAD, RUN) if method == "runs.join" else (THREAD, "agent")
    return await client.call(method, *args)


METHODS = ["runs.stream", "runs.wait", "runs.join", "runs.join_stream"]


@pytest.mark.parametrize("method", METHODS)
async def test_deadline_holds_against_heartbeats(
    kind: str, beating: Heartbeats, until: Until, method: str
) -> None:
    """The call ends, its connection is closed, and the run is cancelled."""
    async with asynccontextmanager(open_client)(kind, beating.url, only("deadline")) as client:
        with pytest.raises(RunDeadlineError, match=r"is not done after 0\.3 s") as caught:
            await call(client, method)
        await until(lambda: beating.open == 0)
    assert ("deadline", ENOUGH) == (caught.value.limit, caught.value.seconds)
    assert CANCELLED == beating.cancelled
    assert beating.beats > 1


@pytest.mark.parametrize("limit", ["first_event_timeout", "idle_timeout"])
async def test_heartbeats_are_no_events(
    kind: str, beating: Heartbeats, until: Until, limit: str
) -> None:
    """A stream that has shown no event for too long ends, before the first and after it."""
    beating.shows_event = limit == "idle_timeout"
    async with asynccontextmanager(open_client)(kind, beating.url, only(limit)) as client:
        with pytest.raises(RunDeadlineError) as caught:
            await call(client, "runs.stream")
        await until(lambda: beating.open == 0)
    assert limit == caught.value.limit
    assert CANCELLED == beating.cancelled


async def test_upstream_heartbeats_defeat_the_read_timeout(
    kind: str, beating: Heartbeats, until: Until
) -> None:
    """The stock client's read timeout is no limit: it goes on for as long as the server beats."""
    timeout = httpx.Timeout(5, read=ENOUGH)
    if kind == "async":
        client = Client(langgraph_sdk.get_client(url=beating.url, api_key=None, timeout=timeout))
    else:
        client = Client(
            langgraph_sdk.get_sync_client(url=beating.url, api_key=None, timeout=timeout)
        )
    waiting = asyncio.create_task(call(client, "runs.wait"))
    await until(lambda: beating.beats > 60)  # at least 0.6 s
    assert not waiting.done()
    waiting.cancel()
    if kind == "async":
        await client.sdk.aclose()
    else:
        client.sdk.close()


@pytest.mark.parametrize("method", METHODS)
async def test_frozen_server_is_given_up(kind: str, beating: Heartbeats, method: str) -> None:
    """A server that takes the request and says nothing at all is not waited for, either."""
    beating.freezes = True
    async with asynccontextmanager(open_client)(kind, beating.url, only("deadline")) as client:
        with pytest.raises(RunDeadlineError):
            await call(client, method)


async def test_time_of_the_reader_is_no_silence(kind: str, beating: Heartbeats) -> None:
    """Only the wait for an event counts, and not what is done with the last one."""
    beating.shows_event = True
    policy = RunPolicy(deadline=None, first_event_timeout=5.0, idle_timeout=ENOUGH)
    async with asynccontextmanager(open_client)(kind, beating.url, policy) as client:
        stream = client.sdk.runs.stream(THREAD, "agent")
        await (anext(stream) if client.is_async else asyncio.to_thread(next, stream))
        await asyncio.sleep(2 * ENOUGH)
        with pytest.raises(RunDeadlineError, match="has been silent"):
            await (anext(stream) if client.is_async else asyncio.to_thread(next, stream))


async def test_deadline_passes_while_the_reader_is_busy(kind: str, beating: Heartbeats) -> None:
    """The next event that is asked for is not waited for any more."""
    beating.shows_event = True
    async with asynccontextmanager(open_client)(kind, beating.url, only("deadline")) as client:
        stream = client.sdk.runs.stream(THREAD, "agent")
        await (anext(stream) if client.is_async else asyncio.to_thread(next, stream))
        await asyncio.sleep(2 * ENOUGH)
        with pytest.raises(RunDeadlineError, match="is not done"):
            await (anext(stream) if client.is_async else asyncio.to_thread(next, stream))


@pytest.mark.parametrize("explicit", [True, False])
async def test_run_that_is_to_go_on_goes_on(kind: str, beating: Heartbeats, explicit: bool) -> None:
    """The call is given up, and the run is not: the caller, or the policy, has said so."""
    mode = None if explicit else "continue"
    policy = RunPolicy(deadline=ENOUGH, on_disconnect=mode or "cancel")
    options = {"on_disconnect": "continue"} if explicit else {}
    async with asynccontextmanager(open_client)(kind, beating.url, policy) as client:
        with pytest.raises(RunDeadlineError):
            await client.call("runs.wait", THREAD, "agent", **options)
    assert [] == beating.cancelled


async def test_late_run_is_stopped(
    connect: Connect, stock: LangGraphClient, effects: Effects
) -> None:
    """On a real server, the run that was too late is interrupted, and does nothing more."""
    client, key = await connect(policy=RunPolicy(deadline=2.0)), effects.new_key()
    thread_id = await client.new_thread()
    with pytest.raises(RunDeadlineError) as caught:
        await client.call("runs.wait", thread_id, "slow", input={"key": key, "pause": 30.0})
    assert caught.value.run_id is not None
    assert "interrupted" == (await stock.runs.get(thread_id, caught.value.run_id))["status"]
    assert [] == effects.steps(key)


async def test_partition_ends_a_resumable_stream(
    connect: Connect, proxy: FaultProxy, effects: Effects
) -> None:
    """A stream that can be taken up again is not taken up for ever."""
    policy = RunPolicy.resumable(deadline=None, first_event_timeout=None, idle_timeout=0.5)
    client = await connect(proxy, policy)
    thread_id = await client.new_thread()
    with pytest.raises(RunDeadlineError) as caught:
        await client.stream(
            thread_id,
            "slow",
            input={"key": effects.new_key(), "steps": 20, "pause": 0.2},
            stream_mode="updates",
            each=lambda count: (proxy.blackhole(), proxy.reset()) if count == 1 else None,
        )
    (note,) = caught.value.__notes__
    assert "may be going on, since it could not be cancelled" in note


async def test_cancellation_from_outside_is_not_a_deadline(beating: Heartbeats) -> None:
    """Whoever cancels the task hears of his own cancellation, also when the time is up, too."""
    async with asynccontextmanager(open_client)("async", beating.url, only("deadline")) as client:
        task = asyncio.create_task(call(client, "runs.wait"))
        loop = asyncio.get_running_loop()
        for late in (-0.01, 0.0, 0.01):
            loop.call_later(ENOUGH + late, task.cancel)
        with pytest.raises((asyncio.CancelledError, RunDeadlineError)):
            await task
        assert 0 == asyncio.current_task().cancelling()


async def test_deadline_leaves_no_cancellation_behind(beating: Heartbeats) -> None:
    """The task that was woken can go on, and be cancelled as before."""
    async with asynccontextmanager(open_client)("async", beating.url, only("deadline")) as client:
        with pytest.raises(RunDeadlineError):
            await call(client, "runs.stream")
        assert 0 == asyncio.current_task().cancelling()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await call(client, "runs.wait")
