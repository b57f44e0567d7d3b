"""How a run ended is told: nothing that was cut short looks like a result."""

import asyncio
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from langgraph_sdk.client import LangGraphClient
from langgraph_sdk.errors import NotFoundError

from lghard import RunCancelledError, RunFailedError, RunPolicy
from lghard.testing import FaultProxy
from tests.sdk.conftest import Connect, Effects

Until = Callable[[Callable[[], Any]], Awaitable[Any]]
UNKNOWN = "00000000-0000-4000-8000-000000000000"


def work(key: str, steps: int = 8, pause: float = 0.1) -> dict[str, Any]:
    return {"key": key, "steps": steps, "pause": pause}


async def test_reset_in_mid_stream_raises(
    connect: Connect, proxy: FaultProxy, effects: Effects
) -> None:
    """A stream whose connection is reset is no stream that came to its end."""
    client, parts = await connect(proxy), []
    with pytest.raises(httpx.TransportError):
        await client.stream(
            await client.new_thread(),
            "slow",
            input=work(effects.new_key()),
            stream_mode="updates",
            into=parts,
            each=lambda count: proxy.reset() if count == 2 else None,
        )
    assert 2 == len(parts)


async def test_upstream_reset_ends_the_stream_as_if_it_were_done(
    connect: Connect, proxy: FaultProxy, effects: Effects
) -> None:
    """The stock client, told to cancel, yields two of eight updates and says nothing."""
    client = await connect(proxy, stock=True)
    thread_id = await client.new_thread()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has no Last-Event-ID, which is all it says
        parts = await client.stream(
            thread_id,
            "slow",
            input=work(effects.new_key()),
            stream_mode="updates",
            on_disconnect="cancel",
            each=lambda count: proxy.reset() if count == 2 else None,
        )
    assert 2 == len([part for part in parts if "step" in part])


async def test_reset_wait_raises(
    connect: Connect, proxy: FaultProxy, effects: Effects, until: Until
) -> None:
    """`wait` does not return the state of a run that was cancelled with its connection."""
    client, key = await connect(proxy), effects.new_key()
    thread_id = await client.new_thread()
    waiting = asyncio.create_task(client.call("runs.wait", thread_id, "slow", input=work(key)))
    await until(lambda: len(effects.steps(key)) == 2)
    proxy.reset()
    with pytest.raises(httpx.TransportError):
        await waiting


async def test_upstream_reset_wait_returns_a_part(
    connect: Connect, proxy: FaultProxy, effects: Effects, until: Until
) -> None:
    """The stock client returns the steps done so far, as if they were all, or what they left."""
    client, key = await connect(proxy, stock=True), effects.new_key()
    thread_id = await client.new_thread()
    options = {"input": work(key), "on_disconnect": "cancel"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        waiting = asyncio.create_task(client.call("runs.wait", thread_id, "slow", **options))
        await until(lambda: len(effects.steps(key)) == 2)
        proxy.reset()
        try:
            result = await waiting
        except Exception:  # the oldest SDK fails to reconnect, which does not say so, either
            result = {"done": []}
        assert len(result["done"]) < 8


@pytest.mark.parametrize("method", ["runs.stream", "runs.wait"])
async def test_second_message_tells_the_first_caller(
    connect: Connect, effects: Effects, until: Until, method: str
) -> None:
    """A newer run on the thread interrupts the one before it, whose caller hears of it."""
    client, key = await connect(), effects.new_key()
    thread_id = await client.new_thread()
    call = client.stream if method == "runs.stream" else client.call
    first = asyncio.create_task(
        client.stream(thread_id, "slow", input=work(key), stream_mode="updates")
        if call == client.stream
        else client.call(method, thread_id, "slow", input=work(key))
    )
    await until(lambda: len(effects.steps(key)) == 2)
    second = await client.call("runs.wait", thread_id, "echo", input={"text": "hello"})
    with pytest.raises(RunCancelledError, match="was superseded by a newer run") as caught:
        await first
    assert "hello!" == second["text"]
    assert ("superseded", thread_id) == (caught.value.reason, caught.value.thread_id)
    assert {caught.value.run_id} < effects.runs(key)


async def test_upstream_second_message_waits_for_the_first(
    connect: Connect, effects: Effects, until: Until
) -> None:
    """The server's default is to queue it, and the first run does all its steps."""
    client, key = await connect(stock=True), effects.new_key()
    thread_id = await client.new_thread()
    first = asyncio.create_task(client.call("runs.wait", thread_id, "slow", input=work(key)))
    await until(lambda: len(effects.steps(key)) == 2)
    second = await client.call("runs.wait", thread_id, "echo", input={"text": "hello"})
    assert [*range(8), 0] == second["done"]
    assert [*range(8)] == (await first)["done"]


@pytest.mark.parametrize("action", ["interrupt", "rollback"])
async def test_cancelled_run_says_so(
    connect: Connect, stock: LangGraphClient, effects: Effects, until: Until, action: str
) -> None:
    """Whoever cancels it from elsewhere: a run that is cut short has no result."""
    client, key = await connect(), effects.new_key()
    thread_id = await client.new_thread()
    reading = asyncio.create_task(
        client.stream(thread_id, "slow", input=work(key), stream_mode="updates")
    )
    await until(lambda: len(effects.steps(key)) == 2)
    (run,) = await stock.runs.list(thread_id)
    await stock.runs.cancel(thread_id, run["run_id"], action=action)
    with pytest.raises(RunCancelledError) as caught:
        await reading
    assert {"interrupt": "cancelled", "rollback": "rolled back"}[action] == caught.value.reason


@pytest.mark.parametrize("thread", [True, False], ids=["thread", "stateless"])
@pytest.mark.parametrize("method", ["runs.stream", "runs.wait"])
async def test_error_of_the_graph_is_raised(
    connect: Connect, effects: Effects, method: str, thread: bool
) -> None:
    """It carries the server's words, and where they are said."""
    client = await connect()
    thread_id = await client.new_thread() if thread else None
    call = client.stream if method == "runs.stream" else client.call
    args = (thread_id, "fail") if method == "runs.stream" else (method, thread_id, "fail")
    with pytest.raises(RunFailedError, match=r"^RuntimeError: no such luck$") as caught:
        await call(*args, input={"text": "no such luck"})
    assert ("RuntimeError", "no such luck") == (caught.value.error, caught.value.message)
    assert thread_id == caught.value.thread_id


async def test_error_event_comes_before_the_error(connect: Connect) -> None:
    """Code that looks for `error` events still finds them."""
    client, seen = await connect(), []
    stream = client.sdk.runs.stream(None, "fail", input={})

    async def read() -> None:
        async for part in stream:
            seen.append(part.event)

    def read_sync() -> None:
        for part in stream:
            seen.append(part.event)

    with pytest.raises(RunFailedError):
        await (read() if client.is_async else asyncio.to_thread(read_sync))
    assert "error" == seen[-1]


async def test_raise_error_false_returns_the_error(connect: Connect) -> None:
    """A caller who does not want the exception gets what the SDK gives him."""
    client = await connect()
    result = await client.call("runs.wait", None, "fail", input={"text": "no"}, raise_error=False)
    assert {"__error__": {"error": "RuntimeError", "message": "no"}} == result


async def test_interrupt_of_the_graph_is_a_result(connect: Connect) -> None:
    """A graph that asks a question has not failed, and goes on with `resume`."""
    client = await connect()
    thread_id = await client.new_thread()
    asked = await client.call("runs.wait", thread_id, "ask", input={"text": "really?"})
    assert {"question": "really?"} == asked["__interrupt__"][0]["value"]
    (update,) = await client.stream(thread_id, "ask", input={}, stream_mode="updates")
    assert "__interrupt__" in update
    answered = await client.call("runs.wait", thread_id, "ask", command={"resume": "yes"})
    assert "yes" == answered["text"]


async def test_join_tells_how_the_run_ended(connect: Connect) -> None:
    """A run that failed, and one that is not there, are no results of `join`."""
    client = await connect()
    thread_id = await client.new_thread()
    run = await client.call("runs.create", thread_id, "fail", input={"text": "no"})
    with pytest.raises(RunFailedError, match="RuntimeError: no"):
        await client.call("runs.join", thread_id, run["run_id"])
    with pytest.raises(NotFoundError):
        await client.call("runs.join", thread_id, UNKNOWN)
    with pytest.raises((NotFoundError, RunCancelledError)):
        await client.stream(thread_id, UNKNOWN, method="runs.join_stream")


async def test_upstream_join_of_no_run_returns(connect: Connect) -> None:
    """The stock client returns the error as if it were the state."""
    client = await connect(stock=True)
    result = await client.call("runs.join", await client.new_thread(), UNKNOWN)
    assert "404: Run not found" == result["__error__"]["message"]


@pytest.mark.parametrize("method", ["runs.wait", "runs.join", "runs.cancel"])
async def test_http_errors_are_typed(connect: Connect, method: str) -> None:
    """What these raise is what the other calls raise, and still what it was."""
    client = await connect()
    args = {
        "runs.wait": (UNKNOWN, "echo"),
        "runs.join": (UNKNOWN, UNKNOWN),
        "runs.cancel": (await client.new_thread(), UNKNOWN),
    }[method]
    with pytest.raises(NotFoundError) as caught:
        await client.call(method, *args, **({"wait": True} if method == "runs.cancel" else {}))
    assert isinstance(caught.value, httpx.HTTPStatusError)
    assert 404 == caught.value.response.status_code


@pytest.mark.parametrize("method", ["runs.wait", "runs.cancel"])
async def test_upstream_http_errors_are_not(connect: Connect, method: str) -> None:
    """The stock client's are httpx's own, unlike those of its other calls."""
    client = await connect(stock=True)
    args = {
        "runs.wait": (UNKNOWN, "echo"),
        "runs.cancel": (await client.new_thread(), UNKNOWN),
    }[method]
    with pytest.raises(httpx.HTTPStatusError) as caught:
        await client.call(method, *args, **({"wait": True} if method == "runs.cancel" else {}))
    assert httpx.HTTPStatusError is type(caught.value)


async def test_storm_of_resets_loses_and_doubles_nothing(
    connect: Connect, proxy: FaultProxy, effects: Effects
) -> None:
    """A resumable stream goes on after the last event that arrived, however often it is cut."""
    client, key = await connect(proxy, RunPolicy.resumable()), effects.new_key()
    thread_id = await client.new_thread()
    parts = await client.stream(
        thread_id,
        "slow",
        input=work(key, steps=12, pause=0.1),
        stream_mode="updates",
        each=lambda count: proxy.reset(),
    )
    assert [{"step": {"done": [step]}} for step in range(12)] == parts
    assert ([*range(12)], 1) == (effects.steps(key), len(effects.runs(key)))


async def test_upstream_reset_loses_updates(
    connect: Connect, proxy: FaultProxy, effects: Effects
) -> None:
    """The stock client goes on as well, without what it missed, and says so in a warning only."""
    client, loop = await connect(proxy, stock=True), asyncio.get_running_loop()

    def interrupt_network(count: int) -> None:
        if count == 2:
            proxy.refuse()
            proxy.reset()
            loop.call_later(0.4, proxy.accept)

    thread_id = await client.new_thread()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = await client.stream(
            thread_id,
            "slow",
            input=work(effects.new_key()),
            stream_mode="updates",
            each=interrupt_network,
        )
    assert len(parts) < 8


async def test_resumable_wait_survives_a_reset(
    connect: Connect, proxy: FaultProxy, effects: Effects, until: Until
) -> None:
    """`wait` takes the run up again, which has gone on."""
    client, key = await connect(proxy, RunPolicy.resumable()), effects.new_key()
    thread_id = await client.new_thread()
    waiting = asyncio.create_task(client.call("runs.wait", thread_id, "slow", input=work(key)))
    await until(lambda: len(effects.steps(key)) == 2)
    proxy.reset()
    assert [*range(8)] == (await waiting)["done"]
