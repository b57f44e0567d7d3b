"""start_run and await_run: a run that needs nobody to stay; async and sync."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import langgraph_sdk
import pytest
from langgraph_sdk.client import LangGraphClient, SyncLangGraphClient
from langgraph_sdk.errors import AuthenticationError

from lghard import (
    RunCancelledError,
    RunDeadlineError,
    RunFailedError,
    await_run,
    get_client,
    start_run,
)
from lghard.testing import FaultProxy, LangGraphServer
from tests.sdk.answering import answering
from tests.sdk.conftest import Effects
from tests.sdk.wire import RUN, THREAD

Client = LangGraphClient | SyncLangGraphClient


@pytest.fixture(params=["async", "sync"])
async def client(
    request: pytest.FixtureRequest, server: LangGraphServer, proxy: FaultProxy
) -> AsyncIterator[Client]:
    """The SDK's own client of either kind, through a network that may break."""
    options = {"url": proxy.url(server.url), "api_key": None}
    if request.param == "async":
        async with langgraph_sdk.get_client(**options) as client:
            yield client
    else:
        with langgraph_sdk.get_sync_client(**options) as client:
            yield client


async def call(function: Callable[..., Any], client: Client, *args: Any, **options: Any) -> Any:
    if isinstance(client, LangGraphClient):
        return await function(client, *args, **options)
    return await asyncio.to_thread(function, client, *args, **options)


async def test_starts_now_and_fetches_later(client: Client, effects: Effects) -> None:
    """It returns before the run has done anything; and the result is the run's."""
    key = effects.new_key()
    handle = await call(start_run, client, None, "slow", input={"key": key, "pause": 1.0})
    assert [] == effects.steps(key)
    result = await call(await_run, client, json.loads(json.dumps(handle)))
    assert ("success", [0]) == (result.status, result.values["done"])
    assert handle == {"thread_id": result.thread_id, "run_id": result.run_id}
    result.raise_for_status()


async def test_result_is_the_runs_own(client: Client, stock: LangGraphClient) -> None:
    """Also when later runs have gone on; joining gives what they left (the control)."""
    thread_id = (await stock.threads.create())["thread_id"]
    handle = await call(start_run, client, thread_id, "echo", input={"text": "first"})
    await stock.runs.wait(thread_id, "echo", input={"text": "second"})
    assert "second!" == (await stock.runs.join(**handle))["text"]
    assert "first!" == (await call(await_run, client, handle)).values["text"]


async def test_survives_a_restart_of_the_caller(
    server: LangGraphServer, client: Client, effects: Effects
) -> None:
    """Another process fetches what one that was killed has started."""
    key = effects.new_key()
    program = (
        "import json, os, langgraph_sdk, lghard\n"
        f"client = langgraph_sdk.get_sync_client(url={server.url!r}, api_key=None)\n"
        f"task = {{'key': {key!r}, 'steps': 3, 'pause': 0.1}}\n"
        "print(json.dumps(lghard.start_run(client, None, 'slow', input=task)), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    killed = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], capture_output=True, check=False
    )
    assert -9 == killed.returncode, killed.stderr
    result = await call(await_run, client, json.loads(killed.stdout))
    assert [0, 1, 2] == result.values["done"] == effects.steps(key)


async def test_survives_a_network_that_breaks(
    client: Client, proxy: FaultProxy, effects: Effects
) -> None:
    """Each connection of the first seconds is lost."""
    key = effects.new_key()
    slow = {"key": key, "steps": 4, "pause": 0.3}
    handle = await call(start_run, client, None, "slow", input=slow)
    waiting = asyncio.create_task(call(await_run, client, handle))
    while len(effects.steps(key)) < 4:
        proxy.lose_responses(1)
        await asyncio.sleep(0.01)
    proxy.lose_responses(0)
    assert [0, 1, 2, 3] == (await waiting).values["done"]
    assert proxy.lost >= 2


async def test_failed_run(client: Client, stock: LangGraphClient) -> None:
    """The graph's own words, also when later runs have gone on."""
    thread_id = (await stock.threads.create())["thread_id"]
    handle = await call(start_run, client, thread_id, "fail", input={"text": "boom"})
    await stock.runs.wait(thread_id, "echo", input={"text": "later"})
    result = await call(await_run, client, handle)
    assert ("error", "RuntimeError('boom')") == (result.status, result.error)
    with pytest.raises(RunFailedError, match="boom") as failure:
        result.raise_for_status()
    assert "RuntimeError" == failure.value.error


async def test_run_that_failed_before_it_stored_anything(client: Client) -> None:
    """Its words are on its thread."""
    arguments = {"input": {"text": "boom"}, "durability": "exit"}
    handle = await call(start_run, client, None, "fail", **arguments)
    result = await call(await_run, client, handle)
    assert "error" == result.status
    assert "boom" in str(result.error)


async def test_run_that_asks(client: Client) -> None:
    """A question is a success, and stands in the result."""
    handle = await call(start_run, client, None, "ask", input={"text": "sure?"})
    result = await call(await_run, client, handle)
    assert "success" == result.status
    assert [{"question": "sure?"}] == [asked["value"] for asked in result.interrupts]


async def test_cancelled_run(client: Client, stock: LangGraphClient) -> None:
    """What it left is a part."""
    handle = await call(start_run, client, None, "slow", input={"steps": 9, "pause": 60.0})
    await stock.runs.cancel(**handle, wait=True)
    result = await call(await_run, client, handle)
    assert "interrupted" == result.status
    with pytest.raises(RunCancelledError, match="was cancelled"):
        result.raise_for_status()


async def test_run_that_was_rolled_back(client: Client, stock: LangGraphClient) -> None:
    """There is no such run any more."""
    thread_id = (await stock.threads.create())["thread_id"]
    handle = await call(start_run, client, thread_id, "slow", input={"steps": 9, "pause": 60.0})
    await stock.runs.wait(thread_id, "echo", input={}, multitask_strategy="rollback")
    result = await call(await_run, client, handle)
    assert ("gone", None) == (result.status, result.values)
    with pytest.raises(RunCancelledError, match="rolled back or deleted"):
        result.raise_for_status()


async def test_stock_stateless_run_leaves_nothing(client: Client, stock: LangGraphClient) -> None:
    """Control: its thread is deleted with it, and so is the result; `start_run` keeps it."""
    run = await stock.runs.create(None, "echo", input={"text": "hi"})
    assert "gone" == (await call(await_run, client, run)).status
    with pytest.raises(ValueError, match="keeps the thread"):
        await call(start_run, client, None, "echo", on_completion="delete")


@pytest.mark.parametrize("timeout", [0.0, 0.3])
async def test_run_that_takes_longer(
    client: Client, stock: LangGraphClient, timeout: float
) -> None:
    """Who gives up waiting does not end it, and may wait again."""
    handle = await call(start_run, client, None, "slow", input={"steps": 1, "pause": 1.0})
    with pytest.raises(RunDeadlineError, match="await it again") as late:
        await call(await_run, client, handle, timeout=timeout)
    assert isinstance(late.value, TimeoutError)
    assert "success" == (await call(await_run, client, handle)).status


async def test_server_that_cannot_be_reached(
    client: Client, proxy: FaultProxy, effects: Effects
) -> None:
    """The error says so, and keeps the cause."""
    handle = await call(start_run, client, None, "echo", input={"key": effects.new_key()})
    proxy.lose_responses(10**6)
    with pytest.raises(RunDeadlineError, match="cannot be reached") as late:
        await call(await_run, client, handle, timeout=0.2)
    assert late.value.__cause__ is not None


async def test_server_that_refuses_to_tell() -> None:
    """It is not asked again."""
    with answering() as upstream:
        upstream.answers = [(401, {})]
        async with langgraph_sdk.get_client(url=upstream.url, api_key=None) as client:
            with pytest.raises(AuthenticationError):
                await await_run(client, {"thread_id": THREAD, "run_id": RUN})
        assert 1 == len(upstream.requests)


async def test_key_makes_it_one_run(client: Client, effects: Effects) -> None:
    """Of a message that is delivered twice."""
    key = effects.new_key()
    handles = [
        await call(start_run, client, None, "echo", key=key, input={"key": key}) for _ in range(2)
    ]
    await call(await_run, client, handles[0])
    assert handles[0] == handles[1]
    assert [0] == effects.steps(key)


async def test_await_can_be_cancelled(stock: LangGraphClient, effects: Effects) -> None:
    """The run goes on, also under a policy that cancels what nobody reads."""
    key = effects.new_key()
    url = str(stock.http.client.base_url)
    async with get_client(url=url, api_key=None) as client:
        handle = await start_run(client, None, "slow", input={"key": key, "pause": 0.5})
        waiting = asyncio.create_task(await_run(client, handle))
        await asyncio.sleep(0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert "success" == (await await_run(client, handle)).status


async def test_webhook_reaches_the_server() -> None:
    """As every argument of `runs.create` does."""
    with answering() as upstream:
        async with langgraph_sdk.get_client(url=upstream.url, api_key=None) as client:
            handle = await start_run(client, None, "agent", webhook="https://my.app/done")
    assert {"thread_id": "t", "run_id": "r"} == handle
    assert b'"webhook":"https://my.app/done"' in upstream.bodies[-1]
