"""create_run_once: at most one run for a key, whatever the network does; async and sync."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid5

import httpx
import langgraph_sdk
import pytest
from langgraph_sdk.client import LangGraphClient, SyncLangGraphClient
from langgraph_sdk.errors import ConflictError, NotFoundError

from lghard import (
    RunCancelledError,
    RunKeyReusedError,
    RunOutcomeUnknownError,
    RunPolicy,
    ThreadIdError,
    create_run_once,
    forget_run_key,
    get_client,
)
from lghard.sdk.once import CLAIM, NAMESPACE, TOKEN
from lghard.testing import FaultProxy, LangGraphServer
from tests.sdk.answering import answering
from tests.sdk.conftest import Effects
from tests.sdk.interference import FAULTS, Interference

AT_ONCE = 40
"""Trials that are under way at the same time."""
CREATION = b"/runs HTTP"
"""What only the first line of a request ends with that creates a run."""
CLAIMING = b'"if_exists":"raise"'
IMPATIENCE = 1.0
"""Seconds after which some clients of these tests give an answer up."""

Client = LangGraphClient | SyncLangGraphClient
Connect = Callable[..., Client]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Make clients; sync ones live in threads, of which there are enough for all trials."""
    made: list[Client] = []
    pool = ThreadPoolExecutor(2 * AT_ONCE)
    asyncio.get_running_loop().set_default_executor(pool)

    def connect(kind: str, url: str, read: float = 20.0) -> Client:
        factory = {"async": langgraph_sdk.get_client, "sync": langgraph_sdk.get_sync_client}[kind]
        made.append(factory(url=url, api_key=None, timeout=httpx.Timeout(20.0, read=read)))
        return made[-1]

    yield connect
    for client in made:
        if isinstance(client, LangGraphClient):
            await client.aclose()
        else:
            client.close()


async def call(function: Callable[..., Any], client: Client, *args: Any, **options: Any) -> Any:
    """Call a function that takes either client."""
    if isinstance(client, LangGraphClient):
        return await function(client, *args, **options)
    return await asyncio.to_thread(function, client, *args, **options)


async def once(client: Client, key: str, thread_id: str | None = None, **options: Any) -> Any:
    """Have the graph leave a line for its key."""
    options = {"input": {"key": key}, **options}
    return await call(create_run_once, client, thread_id, "echo", key=key, **options)


async def outcome(attempt: Awaitable[Any]) -> Any:
    """What a call returns or raises."""
    return (await asyncio.gather(attempt, return_exceptions=True))[0]


async def in_each(trial: Callable[[str], Awaitable[Any]], keys: list[str]) -> list[Any]:
    """What many trials return, of which some are under way at the same time."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(key: str) -> Any:
        async with room:
            return await trial(key)

    return await asyncio.gather(*map(one, keys))


async def wait_until_quiet(stock: LangGraphClient) -> None:
    """Wait until no run is waiting or under way."""
    async with asyncio.timeout(60):
        while await stock.threads.search(status="busy", limit=1):
            await asyncio.sleep(0.05)


def executions(effects: Effects, keys: list[str]) -> list[int]:
    """How often each key's step was done."""
    return [len(effects.lines(key)) for key in keys]


def run_ids(runs: list[Any]) -> list[set[str]]:
    """The run of each trial that returned one."""
    return [{run["run_id"]} if isinstance(run, dict) else set() for run in runs]


@pytest.fixture
def broken_url(proxy: FaultProxy, server: LangGraphServer) -> str:
    """Where the server is to be found through the network that breaks."""
    return proxy.url(server.url)


@pytest.fixture(params=["async", "sync"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def keys(effects: Effects, kind: str) -> list[str]:
    """One key for each trial. Both kinds of client take the same steps, so one takes fewer."""
    return [effects.new_key() for _ in range({"async": 200, "sync": 20}[kind])]


async def test_naive_retry_runs_twice(
    connect: Connect,
    stock: LangGraphClient,
    proxy: FaultProxy,
    broken_url: str,
    effects: Effects,
) -> None:
    """Control: a request is repeated because its answer was lost, and the server does it again."""
    key, client = effects.new_key(), connect("async", broken_url)
    thread = await stock.threads.create()
    proxy.lose_responses(1, containing=CREATION)
    with pytest.raises(httpx.TransportError):
        await client.runs.create(thread["thread_id"], "echo", input={"key": key})
    await client.runs.create(thread["thread_id"], "echo", input={"key": key})
    await wait_until_quiet(stock)
    assert [2] == executions(effects, [key])


async def test_lost_responses(
    connect: Connect,
    stock: LangGraphClient,
    proxy: FaultProxy,
    broken_url: str,
    effects: Effects,
    keys: list[str],
    kind: str,
) -> None:
    """Each run is executed once, and is what the call returns."""
    client = connect(kind, broken_url)
    proxy.lose_responses(len(keys), containing=CREATION)
    runs = await in_each(lambda key: once(client, key), keys)
    await wait_until_quiet(stock)
    assert len(keys) == proxy.lost
    assert [1] * len(keys) == executions(effects, keys)
    assert [effects.runs(key) for key in keys] == run_ids(runs)


async def test_requests_that_arrive_after_the_look(
    connect: Connect,
    stock: LangGraphClient,
    proxy: FaultProxy,
    broken_url: str,
    effects: Effects,
    keys: list[str],
    kind: str,
) -> None:
    """The caller is told that the outcome is unknown; asked again, it is the run that arrived.

    Not every request that is delivered is executed: the server may notice before that nobody waits
    for the answer any more.
    """
    client = connect(kind, broken_url, read=IMPATIENCE)
    proxy.hold_requests(containing=CREATION)
    unknown = await in_each(lambda key: outcome(once(client, key, timeout=0.5)), keys)
    assert [0] * len(keys) == executions(effects, keys)
    proxy.release()
    async with asyncio.timeout(20):
        while proxy.connections:
            await asyncio.sleep(0.02)
    runs = await in_each(lambda key: outcome(once(stock, key, timeout=0.0)), keys)
    await wait_until_quiet(stock)
    assert {RunOutcomeUnknownError} == set(map(type, unknown))
    assert 1 == max(executions(effects, keys))
    assert [effects.runs(key) for key in keys] == run_ids(runs)


async def test_two_replicas_at_once(
    connect: Connect,
    stock: LangGraphClient,
    server: LangGraphServer,
    effects: Effects,
    keys: list[str],
    kind: str,
) -> None:
    """One of them creates the run, and both return it."""
    here, there = connect(kind, server.url), connect(kind, server.url)
    pairs = await in_each(lambda key: asyncio.gather(once(here, key), once(there, key)), keys)
    await wait_until_quiet(stock)
    assert [1] * len(keys) == executions(effects, keys)
    expected = [effects.runs(key) for key in keys]
    assert [expected, expected] == [run_ids(list(runs)) for runs in zip(*pairs, strict=True)]


async def test_any_fault_at_any_request(
    stock: LangGraphClient, server: LangGraphServer, effects: Effects
) -> None:
    """Whatever two requests of one replica end in, beside another replica: at most one run."""
    single = [{place: fault} for place in range(5) for fault in FAULTS]
    double = [
        {1: first, place: second} for place in (2, 3) for first in FAULTS for second in FAULTS
    ]
    trials = {effects.new_key(): faults for faults in (*single, *double)}

    async def trial(key: str) -> None:
        faulty = Interference(trials[key])
        async with faulty.client(server.url) as client:
            calls = (once(client, key, timeout=0.1), once(stock, key, timeout=0.1))
            await asyncio.gather(*map(asyncio.create_task, calls), return_exceptions=True)
            await faulty.deliver()

    await in_each(trial, list(trials))
    await wait_until_quiet(stock)
    assert {0, 1} >= set(executions(effects, list(trials)))


@pytest.mark.parametrize("fault", FAULTS)
async def test_one_fault_before_the_run_is_asked_for(
    server: LangGraphServer, stock: LangGraphClient, effects: Effects, fault: str
) -> None:
    """Until then nothing is lost by trying again, unless the caller itself goes away."""
    key = effects.new_key()
    for place in range(2):
        faulty = Interference({place: fault})
        async with faulty.client(server.url) as client:
            attempt = asyncio.create_task(once(client, f"{key}{place}", input={"key": key}))
            result = await outcome(attempt)
            await faulty.deliver()
        expected = asyncio.CancelledError if fault == "cancelled" else dict
        assert isinstance(result, expected)


async def test_what_was_never_sent_is_sent_again(
    server: LangGraphServer, stock: LangGraphClient, effects: Effects
) -> None:
    """A refused connection has created nothing."""
    key, faulty = effects.new_key(), Interference({2: "refused", 3: "refused"})
    async with faulty.client(server.url) as client:
        run = await once(client, key)
    posts = [request for request in faulty.requests if request.endswith("/runs")]
    await wait_until_quiet(stock)
    assert [f"POST /threads/{run['thread_id']}/runs"] * 3 == posts
    assert [1] == executions(effects, [key])


async def test_what_cannot_be_sent_leaves_the_key_free(
    server: LangGraphServer, stock: LangGraphClient, effects: Effects
) -> None:
    """The call ends in the error of the connection, and the next one creates the run."""
    key, faulty = effects.new_key(), Interference({2: "refused"})
    async with faulty.client(server.url) as client:
        with pytest.raises(httpx.ConnectError) as refused:
            await once(client, key, timeout=0.0)
    assert ["lghard: no run was created, and the key may be used again."] == refused.value.__notes__
    assert isinstance(await once(stock, key), dict)


async def test_costs_one_request_more_than_creating_a_run(
    server: LangGraphServer, stock: LangGraphClient, effects: Effects
) -> None:
    """And another one for a thread."""
    key, counting = effects.new_key(), Interference()
    thread_id = (await stock.threads.create())["thread_id"]
    async with counting.client(server.url) as client:
        await once(client, key, thread_id)
        await once(client, f"{key}, own thread")
    own_thread = uuid5(uuid5(NAMESPACE, f"{key}, own thread"), "thread")
    assert [
        "POST /threads",
        f"POST /threads/{thread_id}/runs",
        "POST /threads",
        "POST /threads",
        f"POST /threads/{own_thread}/runs",
    ] == counting.requests


async def test_same_key_is_the_same_run(
    kind: str, connect: Connect, server: LangGraphServer, effects: Effects
) -> None:
    """Now and later, also in another process: nothing but the server knows."""
    key, told = effects.new_key(), []
    first = await once(connect(kind, server.url), key)
    again = await once(connect(kind, server.url), key, on_run_created=told.append)
    assert first["run_id"] == again["run_id"]
    assert [{"run_id": first["run_id"], "thread_id": first["thread_id"]}] == told


async def test_another_key_is_another_run(stock: LangGraphClient, effects: Effects) -> None:
    """Also with the same arguments on the same thread."""
    key = effects.new_key()
    thread_id = (await stock.threads.create())["thread_id"]
    runs = [await once(stock, f"{key}{n}", thread_id, input={}) for n in range(2)]
    assert 2 == len({run["run_id"] for run in runs})


@pytest.mark.parametrize(
    "changed", [{"input": {"text": "other"}}, {"durability": "sync"}, {"thread_id": "new"}]
)
async def test_key_with_other_arguments(
    stock: LangGraphClient, effects: Effects, changed: dict[str, Any]
) -> None:
    """Two different runs under one key are a mistake, and neither is taken for the other."""
    key = effects.new_key()
    await once(stock, key)
    if "thread_id" in changed:
        changed = {"thread_id": (await stock.threads.create())["thread_id"]}
    with pytest.raises(RunKeyReusedError, match="with other arguments"):
        await once(stock, key, **changed)


async def test_what_says_nothing_about_the_run_may_differ(
    stock: LangGraphClient, effects: Effects
) -> None:
    """Such as metadata with a number of the attempt, or headers of a trace."""
    key = effects.new_key()
    runs = [
        await once(stock, key, metadata={"attempt": n}, headers={"x-attempt": str(n)})
        for n in range(2)
    ]
    assert runs[0]["run_id"] == runs[1]["run_id"]


async def test_refused_run_leaves_the_key_free(
    kind: str, connect: Connect, server: LangGraphServer, stock: LangGraphClient, effects: Effects
) -> None:
    """A thread that is not there yet, or busy: the same key works once that has changed."""
    key, client = effects.new_key(), connect(kind, server.url)
    thread_id = str(uuid5(NAMESPACE, f"{key} thread"))
    with pytest.raises(NotFoundError):
        await once(client, key, thread_id)
    await stock.threads.create(thread_id=thread_id)
    blocking = await stock.runs.create(thread_id, "slow", input={"key": key, "pause": 60.0})
    with pytest.raises(ConflictError):
        await once(client, key, thread_id, multitask_strategy="reject")
    await stock.runs.cancel(thread_id, blocking["run_id"], wait=True)
    run = await once(client, key, thread_id, multitask_strategy="reject")
    again = await once(client, key, thread_id, multitask_strategy="reject")
    assert run["run_id"] == again["run_id"]


async def test_claim_whose_owner_died(
    kind: str, connect: Connect, server: LangGraphServer, effects: Effects
) -> None:
    """Others are told, as its request may be on its way; and how to go on."""
    key, faulty, client = effects.new_key(), Interference({2: "delayed"}), connect(kind, server.url)
    async with faulty.client(server.url) as dying:
        await outcome(once(dying, key, timeout=0.0))
    with pytest.raises(RunOutcomeUnknownError, match="another call has claimed") as unknown:
        await once(client, key, timeout=0.1)
    assert "forget_run_key(client, key)" in str(unknown.value)
    await call(forget_run_key, client, key)
    assert isinstance(await once(client, key), dict)


async def test_thread_that_is_no_claim(stock: LangGraphClient, effects: Effects) -> None:
    """Somebody else has created the thread that stands for the key: no run is created."""
    key = effects.new_key()
    await stock.threads.create(thread_id=str(uuid5(NAMESPACE, key)))
    with pytest.raises(RunOutcomeUnknownError, match="says nothing of it"):
        await once(stock, key)


async def test_forgetting_a_key_leaves_nothing_of_it(
    kind: str, connect: Connect, server: LangGraphServer, stock: LangGraphClient, effects: Effects
) -> None:
    """Of a key that was refused twice, three records."""
    key, client = effects.new_key(), connect(kind, server.url)
    thread_id = str(uuid5(NAMESPACE, f"{key} thread"))
    for _ in range(2):
        with pytest.raises(NotFoundError):
            await once(client, key, thread_id)
    await once(client, key, thread_id, if_not_exists="create")
    mine = {CLAIM: str(uuid5(NAMESPACE, key))}
    assert 3 == len(await stock.threads.search(metadata=mine))
    await call(forget_run_key, client, key)
    await call(forget_run_key, client, key)
    assert [] == await stock.threads.search(metadata=mine)


async def test_run_that_was_deleted(stock: LangGraphClient, effects: Effects) -> None:
    """It was created once, and once is all there is."""
    key = effects.new_key()
    run = await once(stock, key)
    await wait_until_quiet(stock)
    await stock.runs.delete(run["thread_id"], run["run_id"])
    with pytest.raises(RunOutcomeUnknownError, match="deleted"):
        await once(stock, key, timeout=0.1)


async def test_thread_that_was_deleted(stock: LangGraphClient, effects: Effects) -> None:
    """So it is when the whole thread is gone."""
    key = effects.new_key()
    thread_id = (await stock.threads.create())["thread_id"]
    await once(stock, key, thread_id)
    await wait_until_quiet(stock)
    await stock.threads.delete(thread_id)
    with pytest.raises(RunOutcomeUnknownError, match="Was the thread deleted"):
        await once(stock, key, thread_id)


async def test_run_among_many(stock: LangGraphClient, effects: Effects) -> None:
    """It is found on a thread of more runs than fit a page."""
    key = effects.new_key()
    thread_id = (await stock.threads.create())["thread_id"]
    run = await once(stock, key, thread_id)
    for _ in range(101):
        await stock.runs.create(thread_id, "echo", after_seconds=3600)
    assert run["run_id"] == (await once(stock, key, thread_id))["run_id"]
    await stock.threads.delete(thread_id)


async def test_token_does_not_leak_into_later_runs(
    stock: LangGraphClient, effects: Effects
) -> None:
    """A run that creates its thread leaves it its metadata, for all later ones (the control)."""
    thread_ids = [str(uuid5(NAMESPACE, effects.new_key())) for _ in range(2)]
    create = {"if_not_exists": "create"}
    first = await once(stock, effects.new_key(), thread_ids[0], **create)
    await stock.runs.create(thread_ids[1], "echo", metadata={TOKEN: "token"}, **create)
    own = await once(stock, effects.new_key())
    later = [
        await stock.runs.create(thread_id, "echo", input={})
        for thread_id in (*thread_ids, own["thread_id"])
    ]
    assert TOKEN in first["metadata"]
    assert [False, True, False] == [TOKEN in run["metadata"] for run in later]


async def test_key_itself_is_not_sent(stock: LangGraphClient, effects: Effects) -> None:
    """It may name a customer; the server stores a hash."""
    key = f"mary@example.com {effects.new_key()}"
    run = await once(stock, key, input={})
    claims = await stock.threads.search(metadata={CLAIM: str(uuid5(NAMESPACE, key))})
    assert 1 == len(claims)
    assert "mary" not in f"{run}{claims}"


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"key": ""}, ValueError, "key must be a string"),
        ({"key": 7}, ValueError, "key must be a string"),
        ({"thread_id": ""}, ThreadIdError, "the thread id is empty"),
        ({"thread_id": "mary"}, ThreadIdError, "knows threads by UUID"),
        ({"on_completion": "delete"}, ValueError, "keeps the thread"),
        ({"inputs": {}}, TypeError, "unexpected keyword argument 'inputs'"),
        ({"on_disconnect": "cancel"}, TypeError, "unexpected keyword argument 'on_disconnect'"),
        ({"input": {"text": object()}}, TypeError, "not JSON serializable"),
    ],
)
async def test_wrong_arguments(
    server: LangGraphServer, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    """Nothing is sent, and so no key is spent."""
    counting = Interference()
    arguments = {"thread_id": None, "key": "key", **arguments}
    async with counting.client(server.url) as client:
        with pytest.raises(error, match=words):
            await create_run_once(client, arguments.pop("thread_id"), "echo", **arguments)
    assert [] == counting.requests


async def test_policy_of_a_hardened_client_holds(server: LangGraphServer, effects: Effects) -> None:
    """A second run interrupts the first, as any run of that client does."""
    key = effects.new_key()
    async with get_client(url=server.url, api_key=None) as client:
        thread_id = (await client.threads.create())["thread_id"]
        slow = {"key": key, "pause": 60.0}
        first = await create_run_once(client, thread_id, "slow", key=f"{key}1", input=slow)
        await once(client, f"{key}2", thread_id, input={})
        with pytest.raises(RunCancelledError, match="superseded"):
            await client.runs.join(thread_id, first["run_id"])


async def test_hardened_client_repeats_no_creation(
    broken_url: str, proxy: FaultProxy, stock: LangGraphClient, effects: Effects
) -> None:
    """Its retries are for what may be repeated."""
    key = effects.new_key()
    proxy.lose_responses(1, containing=CREATION)
    async with get_client(url=broken_url, api_key=None) as client:
        await once(client, key)
    await wait_until_quiet(stock)
    assert (1, [1]) == (proxy.lost, executions(effects, [key]))


async def test_key_of_somebody_else() -> None:
    """A record that exists and may not be read: no run is created, and the error says why."""
    with answering() as upstream:
        upstream.answers = [(200, {}), *[(409, {}), (404, {})] * 50]
        async with langgraph_sdk.get_client(url=upstream.url, api_key=None) as client:
            with pytest.raises(RunOutcomeUnknownError, match="another user's"):
                await once(client, "key", timeout=0.1)
    assert {"POST /threads"} == {line for line in upstream.requests if line.startswith("POST")}


async def test_client_that_creates_threads_by_policy(
    server: LangGraphServer, effects: Effects
) -> None:
    """The thread is there before the run, so that the run does not leave it its token."""
    thread_id = str(uuid5(NAMESPACE, effects.new_key()))
    policy = RunPolicy(if_not_exists="create")
    async with get_client(url=server.url, api_key=None, policy=policy) as client:
        await once(client, effects.new_key(), thread_id)
        assert TOKEN not in (await client.threads.get(thread_id))["metadata"]


async def test_thread_id_that_has_a_uuid(stock: LangGraphClient, effects: Effects) -> None:
    """Its thread is created with what the id stands for."""
    thread_id = NamedThread(uuid5(NAMESPACE, effects.new_key()))
    run = await once(stock, effects.new_key(), thread_id)
    assert str(thread_id.uuid) == run["thread_id"]
    thread = await stock.threads.get(run["thread_id"])
    assert "mary" == thread["metadata"]["user"]


@dataclass
class NamedThread:
    uuid: UUID
    metadata: dict[str, str] = field(default_factory=lambda: {"user": "mary"})


def test_is_async_or_sync_as_its_client(server: LangGraphServer, sync_stock: SyncLangGraphClient):
    """A coroutine for the one, a run for the other."""
    pending = create_run_once(langgraph_sdk.get_client(url=server.url), None, "echo", key="key")
    assert inspect.iscoroutine(pending)
    pending.close()
    run = create_run_once(sync_stock, None, "echo", key="sync", input={})
    assert UUID(run["run_id"])
