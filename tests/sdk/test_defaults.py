"""Each call gets of the policy what applies to it, and nothing else; the caller's word wins."""

import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from langgraph_sdk.client import LangGraphClient, SyncLangGraphClient

import lghard
from lghard import RunPolicy, ThreadIdError, harden_client
from tests.sdk.clients import Client
from tests.sdk.wire import RUN, THREAD, Wire

FULL = RunPolicy(durability="sync", if_not_exists="create")
POLICY_KEYS = ("on_disconnect", "multitask_strategy", "durability", "if_not_exists")
Open = Callable[[RunPolicy], Client]


@dataclass(frozen=True)
class Named:
    """A thread id as a namespace makes them."""

    uuid: uuid.UUID
    metadata: dict[str, object]


NAMED = Named(uuid.UUID(THREAD), {"tenant": "acme"})


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
async def client(kind: str, wire: Wire) -> AsyncIterator[Open]:
    """A function that makes a client of this kind, whose requests go to the wire."""
    transport, base_url = httpx.MockTransport(wire.answer), "http://server"
    async with httpx.AsyncClient(transport=transport, base_url=base_url) as http:
        with httpx.Client(transport=transport, base_url=base_url) as sync_http:
            sdk = LangGraphClient(http) if kind == "async" else SyncLangGraphClient(sync_http)
            yield lambda policy: Client(harden_client(sdk, policy=policy))


async def send(client: Client, method: str, *args: Any, **options: Any) -> None:
    if method.endswith("stream"):
        await client.stream(*args, method=method, **options)
    else:
        await client.call(method, *args, **options)


def chosen(body: dict[str, Any]) -> dict[str, Any]:
    return {key: body[key] for key in POLICY_KEYS if key in body}


ALL = {
    "on_disconnect": "cancel",
    "multitask_strategy": "interrupt",
    "durability": "sync",
    "if_not_exists": "create",
}
STATELESS = {"on_disconnect": "cancel", "durability": "sync"}


@pytest.mark.parametrize(
    ("method", "args", "expected"),
    [
        ("runs.stream", (THREAD, "agent"), ALL),
        ("runs.wait", (THREAD, "agent"), ALL),
        ("runs.create", (THREAD, "agent"), {key: ALL[key] for key in ALL if key[:2] != "on"}),
        ("runs.stream", (None, "agent"), STATELESS),
        ("runs.wait", (None, "agent"), STATELESS),
        ("runs.create", (None, "agent"), {"durability": "sync"}),
        ("crons.create_for_thread", (THREAD, "agent"), {"durability": "sync"}),
        ("crons.create", ("agent",), {"durability": "sync"}),
    ],
)
async def test_call_gets_what_applies_to_it(
    client: Open, wire: Wire, method: str, args: tuple[Any, ...], expected: Any
) -> None:
    """A stateless run has nothing to interrupt, and a schedule interrupts nobody."""
    options = {"schedule": "* * * * *"} if method.startswith("crons") else {}
    await send(client(FULL), method, *args, **options)
    assert expected == chosen(wire.body())


@pytest.mark.parametrize("method", ["runs.stream", "runs.wait", "runs.create"])
async def test_explicit_argument_wins(client: Open, wire: Wire, method: str) -> None:
    """A value is sent as it is, and None leaves the choice to the server, as with the SDK."""
    options = {
        "multitask_strategy": "reject",
        "durability": None,
        "if_not_exists": None,
        "on_disconnect": None,
    }
    if method == "runs.create":
        del options["on_disconnect"]
    await send(client(FULL), method, THREAD, "agent", **options)
    assert {"multitask_strategy": "reject"} == chosen(wire.body())


async def test_batch_gets_the_durability(client: Open, wire: Wire) -> None:
    """Runs of a batch are stateless; one that says for itself is left alone."""
    payloads = [{"assistant_id": "a"}, {"assistant_id": "b", "durability": "exit"}]
    await client(FULL).call("runs.create_batch", payloads)
    assert ["sync", "exit"] == [run["durability"] for run in wire.body("/batch")]
    assert [{"assistant_id": "a"}] == payloads[:1]


@pytest.mark.parametrize("method", ["runs.join", "runs.join_stream"])
async def test_join_is_left_as_it_is(client: Open, wire: Wire, method: str) -> None:
    """Who joins a run does not own it: nothing is cancelled when he leaves."""
    await send(client(FULL), method, THREAD, RUN)
    cancels = wire.requests[0].url.params.get("cancel_on_disconnect")
    assert {"runs.join": None, "runs.join_stream": "false"}[method] == cancels


async def test_resumable_policy_has_the_server_keep_the_events(client: Open, wire: Wire) -> None:
    """The run goes on without a connection, and its events can be had again."""
    await send(client(RunPolicy.resumable()), "runs.stream", THREAD, "agent")
    body = wire.body("/stream")
    assert ("continue", True) == (body["on_disconnect"], body["stream_resumable"])


async def test_resumable_policy_cancels_what_cannot_be_taken_up(client: Open, wire: Wire) -> None:
    """A stateless run cannot be joined, and one that the caller wants cancelled is."""
    hardened = client(RunPolicy.resumable())
    await send(hardened, "runs.stream", None, "agent")
    await send(hardened, "runs.wait", THREAD, "agent", on_disconnect="cancel")
    for end in ("/runs/stream", "/runs/wait"):
        assert "cancel" == wire.body(end)["on_disconnect"]
        assert not wire.body(end).get("stream_resumable")


async def test_delayed_run_interrupts_nobody_and_is_warned_about(client: Open, wire: Wire) -> None:
    """It would interrupt now what it means to follow, and the next message cancels it."""
    with pytest.warns(RuntimeWarning, match="the next message cancels it") as warned:
        await client(RunPolicy()).call("runs.create", THREAD, "agent", after_seconds=60)
    assert {} == chosen(wire.body())
    assert not Path(warned[0].filename).is_relative_to(Path(lghard.__file__).parent)


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ((None, "agent"), {"after_seconds": 60}),
        ((THREAD, "agent"), {"after_seconds": 60, "multitask_strategy": "enqueue"}),
    ],
)
async def test_delayed_run_that_nothing_interrupts_is_no_matter(
    client: Open, args: Any, options: Any
) -> None:
    """Without a thread, or with the caller's word, there is no warning."""
    await client(RunPolicy()).call("runs.create", *args, **options)


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("runs.stream", ("agent",)),
        ("runs.wait", ("agent",)),
        ("runs.create", ("agent",)),
        ("runs.get", (RUN,)),
        ("runs.join", (RUN,)),
        ("runs.join_stream", (RUN,)),
        ("runs.cancel", (RUN,)),
        ("threads.get", ()),
        ("threads.get_state", ()),
        ("threads.update_state", ({},)),
        ("threads.delete", ()),
        ("crons.create_for_thread", ("agent",)),
    ],
)
@pytest.mark.parametrize("thread_id", ["", "user-42", f"{THREAD}/..", " "])
async def test_bad_thread_id_is_not_sent(
    client: Open, wire: Wire, method: str, args: Any, thread_id: str
) -> None:
    """An id that a server would refuse, or mistake for none, does not leave the process."""
    options = {"schedule": "* * * * *"} if method.startswith("crons") else {}
    with pytest.raises(ThreadIdError):
        await send(client(FULL), method, thread_id, *args, **options)
    assert [] == wire.sent


@pytest.mark.parametrize("method", ["threads.create", "runs.cancel_many", "threads.stream"])
async def test_bad_thread_id_by_name_is_not_sent(client: Open, wire: Wire, method: str) -> None:
    """Where the SDK drops an empty id silently, too."""
    options = {"assistant_id": "agent"} if method == "threads.stream" else {}
    opened = client(FULL)
    with pytest.raises(ThreadIdError):
        await opened.call(method, thread_id="", **options)
    assert [] == wire.sent


@pytest.mark.parametrize("thread_id", [THREAD, uuid.UUID(THREAD), THREAD.upper()])
async def test_uuid_is_sent_as_it_is(client: Open, wire: Wire, thread_id: Any) -> None:
    """In whatever form."""
    await client(FULL).call("threads.get", thread_id)
    assert [("GET", f"/threads/{thread_id}")] == wire.sent


@pytest.mark.parametrize(
    "method", ["runs.stream", "runs.wait", "runs.create", "crons.create_for_thread"]
)
async def test_thread_of_a_namespace_is_created_with_what_it_stands_for(
    client: Open, wire: Wire, method: str
) -> None:
    """Before its run, unless it exists: or the run's metadata would become the thread's."""
    options = {"schedule": "* * * * *"} if method.startswith("crons") else {}
    await send(client(FULL), method, NAMED, "agent", **options)
    expected = {"thread_id": THREAD, "metadata": NAMED.metadata, "if_exists": "do_nothing"}
    assert expected == wire.body("/threads")
    assert wire.sent[1][1].startswith(f"/threads/{THREAD}/runs")


async def test_thread_of_a_namespace_is_created_for_a_session(client: Open, wire: Wire) -> None:
    """Before anything else is sent."""
    opened = client(FULL)
    stream = opened.sdk.threads.stream(NAMED, assistant_id="agent")
    if opened.is_async:
        async with stream:
            pass
    else:
        with stream:
            pass
    assert ("POST", "/threads") == wire.sent[0]
    assert NAMED.metadata == wire.body("/threads")["metadata"]


async def test_thread_of_a_namespace_is_its_uuid(client: Open, wire: Wire) -> None:
    """In every other call; a thread that is created gets its metadata, and the caller's."""
    opened = client(FULL)
    await opened.call("threads.get", NAMED)
    await opened.call("threads.create", thread_id=NAMED, metadata={"title": "x"})
    assert f"/threads/{THREAD}" == wire.sent[0][1]
    assert {"tenant": "acme", "title": "x"} == wire.body("/threads")["metadata"]


async def test_outcome_costs_one_request(client: Open, wire: Wire) -> None:
    """A run on a thread is asked for once at its end; a stateless one cannot be, and is not."""
    opened = client(RunPolicy())
    await send(opened, "runs.stream", THREAD, "agent")
    assert [
        ("POST", f"/threads/{THREAD}/runs/stream"),
        ("GET", f"/threads/{THREAD}/runs/{RUN}"),
    ] == (wire.sent)
    wire.requests.clear()
    await send(opened, "runs.stream", None, "agent")
    assert [("POST", "/runs/stream")] == wire.sent
