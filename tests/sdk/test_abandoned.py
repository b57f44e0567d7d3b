"""A run whose reader has gone away does nothing more; the SDK's own goes on to its end."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from langgraph_sdk.client import LangGraphClient

from lghard import RunPolicy, get_client
from lghard.testing import LangGraphServer
from tests.sdk.clients import Client
from tests.sdk.conftest import Connect, Effects

Until = Callable[[Callable[[], Any]], Awaitable[Any]]
Stopped = Callable[[str, str], Awaitable[None]]
STEPS, READ = 4, 1
POLICIES = pytest.mark.parametrize(
    "policy", [RunPolicy(), RunPolicy.resumable()], ids=["cancel", "resumable"]
)


def work(key: str, pause: float = 0.5) -> dict[str, Any]:
    """An input for a run that takes a while; a step is half a second away from the next."""
    return {"key": key, "steps": STEPS, "pause": pause}


@pytest.fixture(scope="module")
def ended(effects: Effects) -> Iterator[set[str]]:
    """The keys of runs that stopped after one step; when all tests are over, they still have."""
    keys: set[str] = set()
    yield keys
    assert {key: [0] for key in keys} == {key: effects.steps(key) for key in keys}


@pytest.fixture
def stopped(
    stock: LangGraphClient, effects: Effects, until: Until, ended: set[str]
) -> Callable[[str, str], Awaitable[None]]:
    """Wait until the thread's run is interrupted; by then, and ever after, one step is done."""

    async def stopped(thread_id: str, key: str) -> None:
        async def is_interrupted() -> bool:
            return [run["status"] for run in await stock.runs.list(thread_id)] == ["interrupted"]

        await until(is_interrupted)
        ended.add(key)
        assert [0] == effects.steps(key)

    return stopped


async def closes(client: Client, *args: Any, **options: Any) -> None:
    """Read an update, and close the stream."""
    await client.stream(*args, until=READ, **options)


async def breaks(client: Client, *args: Any, **options: Any) -> None:
    """Leave the loop, and have nothing refer to the stream any more."""

    async def read() -> None:
        count = 0
        async for part in client.sdk.runs.stream(*args, **options):
            count += part.event == "updates"
            if count == READ:
                break

    def read_sync() -> None:
        count = 0
        for part in client.sdk.runs.stream(*args, **options):
            count += part.event == "updates"
            if count == READ:
                break

    await (read() if client.is_async else asyncio.to_thread(read_sync))


async def fails(client: Client, *args: Any, **options: Any) -> None:
    """Raise an error in the loop that reads."""

    def fail(count: int) -> None:
        if count == READ:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await client.stream(*args, each=fail, **options)


@pytest.mark.parametrize(
    ("leave", "policy"),
    [
        (closes, RunPolicy()),
        (breaks, RunPolicy()),
        (fails, RunPolicy()),
        (breaks, RunPolicy.resumable()),
    ],
)
async def test_abandoned_stream_stops_the_run(
    connect: Connect,
    effects: Effects,
    stopped: Stopped,
    policy: RunPolicy,
    leave: Callable[..., Awaitable[None]],
) -> None:
    """No step is done after the reader has left, however he left."""
    client, key = await connect(policy=policy), effects.new_key()
    thread_id = await client.new_thread()
    await leave(client, thread_id, "slow", input=work(key), stream_mode="updates")
    await stopped(thread_id, key)


@pytest.mark.parametrize("leave", [closes, breaks])
async def test_upstream_abandoned_stream_leaves_the_run(
    connect: Connect, effects: Effects, until: Until, leave: Callable[..., Awaitable[None]]
) -> None:
    """The stock client's run does every step, for nobody."""
    client, key = await connect(stock=True), effects.new_key()
    thread_id = await client.new_thread()
    await leave(client, thread_id, "slow", input=work(key, 0.2), stream_mode="updates")
    await until(lambda: effects.steps(key) == [*range(STEPS)])


@POLICIES
async def test_cancelled_reader_stops_the_run(
    server: LangGraphServer, effects: Effects, until: Until, stopped: Stopped, policy: RunPolicy
) -> None:
    """A task that is cancelled while it waits for an update takes the run with it."""
    key, parts = effects.new_key(), []
    async with get_client(url=server.url, api_key=None, policy=policy) as sdk:
        thread_id = (await sdk.threads.create())["thread_id"]
        reading = Client(sdk).stream(
            thread_id, "slow", input=work(key), stream_mode="updates", into=parts
        )
        task = asyncio.create_task(reading)
        await until(lambda: len(parts) == READ)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await stopped(thread_id, key)


@POLICIES
async def test_cancelled_wait_stops_the_run(
    server: LangGraphServer, effects: Effects, until: Until, stopped: Stopped, policy: RunPolicy
) -> None:
    """So does one that is cancelled in `wait`, by `wait_for`."""
    key = effects.new_key()
    async with get_client(url=server.url, api_key=None, policy=policy) as sdk:
        thread_id = (await sdk.threads.create())["thread_id"]
        task = asyncio.create_task(
            asyncio.wait_for(sdk.runs.wait(thread_id, "slow", input=work(key)), 60)
        )
        await until(lambda: effects.steps(key) == [0])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await stopped(thread_id, key)


async def test_stateless_run_stops_with_its_reader(
    connect: Connect, stock: LangGraphClient, effects: Effects, ended: set[str]
) -> None:
    """A run without a thread, which nobody could cancel by name, is cancelled all the same."""
    client, key = await connect(policy=RunPolicy.resumable()), effects.new_key()
    await closes(client, None, "slow", input=work(key), stream_mode="updates")
    await stock.runs.wait(None, "echo", input={})
    ended.add(key)
    assert [0] == effects.steps(key)


@pytest.mark.parametrize("make", ["get_client", "get_sync_client"])
async def test_killed_process_stops_the_run(
    server: LangGraphServer, effects: Effects, until: Until, stopped: Stopped, make: str
) -> None:
    """The kernel closes the connection of a process that is killed, and that is enough."""
    key = effects.new_key()
    async with get_client(url=server.url, api_key=None) as client:
        thread_id = (await client.threads.create())["thread_id"]
    script = (
        "import asyncio, lghard\n"
        f"client = lghard.{make}(url={server.url!r}, api_key=None)\n"
        f"stream = client.runs.stream({thread_id!r}, 'slow', input={work(key)!r})\n"
        "async def read():\n"
        "    async for part in stream: pass\n"
        "if hasattr(stream, 'aclose'): asyncio.run(read())\n"
        "for part in stream: pass\n"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as process:  # noqa: ASYNC220
        await until(lambda: effects.steps(key) == [0])
        process.kill()
    await stopped(thread_id, key)


async def test_stream_that_is_kept_but_not_read_goes_on(
    connect: Connect, effects: Effects, until: Until
) -> None:
    """Nobody has left while the stream is open: the connection is there, and so is the run."""
    client, key = await connect(), effects.new_key()
    thread_id = await client.new_thread()
    stream = client.sdk.runs.stream(thread_id, "slow", input=work(key, 0.2), stream_mode="updates")
    if client.is_async:
        await anext(stream)
    else:
        await asyncio.to_thread(next, stream)
    await until(lambda: effects.steps(key) == [*range(STEPS)])
    if client.is_async:
        await stream.aclose()
    else:
        stream.close()


async def test_stream_that_is_never_read_sends_nothing(connect: Connect) -> None:
    """As with the SDK's own, the request goes out with the first event that is asked for."""
    client = await connect()
    thread_id = await client.new_thread()
    stream = client.sdk.runs.stream(thread_id, "slow", input={})
    del stream
    assert [] == await client.call("runs.list", thread_id)


async def test_explicit_continue_leaves_the_run(
    connect: Connect, effects: Effects, until: Until
) -> None:
    """A caller who says that the run is to go on has it go on, under either policy."""
    client, key = await connect(policy=RunPolicy.resumable()), effects.new_key()
    thread_id = await client.new_thread()
    await closes(
        client,
        thread_id,
        "slow",
        input=work(key, 0.2),
        stream_mode="updates",
        on_disconnect="continue",
    )
    await until(lambda: effects.steps(key) == [*range(STEPS)])
