"""The sessions of a thread (v3) end with the limits of the policy; nothing else would end them."""

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from langgraph_sdk.client import LangGraphClient

from lghard import RunDeadlineError, RunPolicy
from tests.sdk.clients import Client, open_client
from tests.sdk.conftest import Connect, Effects
from tests.sdk.heartbeats import THREAD, heartbeats

NONE = {"deadline": None, "first_event_timeout": None, "idle_timeout": None}


async def session(client: Client, graph: str, run_input: Any, then: str, **options: Any) -> Any:
    """Start a run in a session, and wait for its output or read its values."""
    stream = client.sdk.threads.stream(assistant_id=graph, **options)
    if client.is_async:
        async with stream as thread:
            await thread.run.start(input=run_input)
            return await thread.output if then == "output" else [v async for v in thread.values]

    def run() -> Any:
        with stream as thread:
            thread.run.start(input=run_input)
            return thread.output if then == "output" else list(thread.values)

    return await asyncio.to_thread(run)


async def test_session_is_the_sdks(connect: Connect) -> None:
    """A run that is in time ends as ever."""
    client = await connect(policy=RunPolicy(deadline=60.0, idle_timeout=30.0))
    assert "hi!" == (await session(client, "echo", {"text": "hi"}, "output"))["text"]


@pytest.mark.parametrize("transport", ["sse", "websocket"])
@pytest.mark.parametrize("then", ["output", "values"])
async def test_session_that_is_late_ends(
    connect: Connect, stock: LangGraphClient, effects: Effects, then: str, transport: str
) -> None:
    """Whatever is waited for in the block; the run that it started is cancelled."""
    client, key = await connect(policy=RunPolicy(deadline=1.5)), effects.new_key()
    with pytest.raises(RunDeadlineError, match=r"is not done after 1\.5 s") as caught:
        await session(client, "slow", {"key": key, "pause": 30.0}, then, transport=transport)
    run = await stock.runs.get(caught.value.thread_id, caught.value.run_id)
    assert "interrupted" == run["status"]
    assert [] == effects.steps(key)


async def test_silence_after_an_event_ends_a_session(connect: Connect) -> None:
    """A run that says nothing more for too long is given up."""
    client = await connect(policy=RunPolicy(**{**NONE, "idle_timeout": 1.0}))
    with pytest.raises(RunDeadlineError, match="has been silent for 1 s"):
        await session(client, "slow", {"key": "-", "pause": 30.0}, "values")


async def test_heartbeats_of_a_session_are_no_events(kind: str) -> None:
    """Silence after `run.start` is noticed below the event decoder."""
    policy = RunPolicy(**{**NONE, "first_event_timeout": 0.3})
    async with (
        heartbeats() as beating,
        asynccontextmanager(open_client)(kind, beating.url, policy) as client,
    ):
        with pytest.raises(RunDeadlineError, match=r"has shown no event within 0\.3 s"):
            await session(client, "agent", {}, "values", thread_id=THREAD)
        assert 1 == len(beating.cancelled)


async def test_session_that_waits_for_a_person_is_not_silent(connect: Connect) -> None:
    """A run that has asked a question owes no event until it is answered."""
    client = await connect(policy=RunPolicy(**{**NONE, "idle_timeout": 1.0}))
    stream = client.sdk.threads.stream(assistant_id="ask")
    if client.is_async:
        async with stream as thread:
            await thread.run.start(input={"text": "well?"})
            async for _ in thread.values:
                pass
            await asyncio.sleep(1.5)
            await thread.run.respond("yes")
            assert "yes" == (await thread.output)["text"]
        return

    def run(sleep: Callable[[], None]) -> Any:
        with stream as thread:
            thread.run.start(input={"text": "well?"})
            list(thread.values)
            sleep()
            thread.run.respond("yes")
            return thread.output

    loop = asyncio.get_running_loop()
    pause = lambda: asyncio.run_coroutine_threadsafe(asyncio.sleep(1.5), loop).result()  # noqa: E731
    assert "yes" == (await asyncio.to_thread(run, pause))["text"]


async def test_upstream_session_waits_for_ever() -> None:
    """The stock client waits for a server that only sends heartbeats."""
    async with (
        heartbeats() as beating,
        asynccontextmanager(open_client)("async", beating.url, stock=True) as client,
    ):
        waiting = asyncio.create_task(session(client, "agent", {}, "values", thread_id=THREAD))
        while beating.beats < 60:
            await asyncio.sleep(0.01)
        assert not waiting.done()
        waiting.cancel()


async def test_cancellation_from_outside_stays_one(server: Any) -> None:
    """Who cancels a block hears `CancelledError`, and not of a deadline."""
    async with asynccontextmanager(open_client)("async", server.url, RunPolicy()) as client:
        waiting = asyncio.create_task(session(client, "slow", {"pause": 30.0}, "output"))
        await asyncio.sleep(0.5)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
