"""What goes wrong beside the run hides neither its result nor what has happened to it."""

import asyncio
import pickle
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest
from langgraph_sdk.client import LangGraphClient, SyncLangGraphClient

from lghard import (
    CircuitOpenError,
    LghardError,
    PoolOpenError,
    RunCancelledError,
    RunDeadlineError,
    RunFailedError,
    RunPolicy,
    await_run,
    create_run_once,
    get_client,
    get_sync_client,
    harden_client,
)
from lghard.sdk import retrying
from lghard.sdk.deadlines import SyncWatch
from tests.sdk.clients import Client, open_client
from tests.sdk.heartbeats import heartbeats
from tests.sdk.wire import RUN, THREAD

Answer = Callable[[httpx.Request], httpx.Response]
PLACE = {"content-location": f"/threads/{THREAD}/runs/{RUN}"}
RESUMABLE = RunPolicy.resumable(circuit=False)


def open_on(kind: str, answer: Answer, policy: RunPolicy | None = None, **options: Any) -> Client:
    """A hardened client of a server that answers so."""
    options = {"transport": httpx.MockTransport(answer), "base_url": "http://server", **options}
    if kind == "async":
        return Client(harden_client(LangGraphClient(httpx.AsyncClient(**options)), policy=policy))
    return Client(harden_client(SyncLangGraphClient(httpx.Client(**options)), policy=policy))


def told(status: int = 200, *, run: Any = None, runs: Any = None, words: Any = None) -> Answer:
    """A server that answers a `wait`, and then what it is asked about the run."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(200, headers=PLACE, json={"text": "done"})
        tells = {f"/runs/{RUN}": run, "/runs": runs, "/join": words}
        (content,) = (tells[end] for end in tells if request.url.path.endswith(end))
        return httpx.Response(200 if content else status, json=content or {"detail": "no"})

    return answer


@pytest.mark.parametrize("status", [401, 403])
async def test_key_that_may_not_read_runs(
    kind: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The result is returned, as the SDK's own client does, and the log says what is not known."""
    assert {"text": "done"} == await open_on(kind, told(status)).call("runs.wait", THREAD, "agent")
    (record,) = caplog.records
    assert "may not be read" in record.getMessage()


@pytest.mark.parametrize("status", [403, 500])
async def test_reason_that_is_not_told(kind: str, status: int) -> None:
    """That the run was cancelled is known without it."""
    client = open_on(kind, told(status, run={"run_id": RUN, "status": "interrupted"}))
    with pytest.raises(RunCancelledError) as caught:
        await client.call("runs.wait", THREAD, "agent")
    assert "cancelled" == caught.value.reason


async def test_reason_of_a_server_that_keeps_no_times(kind: str) -> None:
    """A run that may be a newer one is no proof."""
    newer = [{"run_id": "other", "multitask_strategy": "interrupt"}]
    client = open_on(kind, told(run={"run_id": RUN, "status": "interrupted"}, runs=newer))
    with pytest.raises(RunCancelledError) as caught:
        await client.call("runs.wait", THREAD, "agent")
    assert "cancelled" == caught.value.reason


async def test_words_that_are_not_told(kind: str) -> None:
    """That the graph failed is known without them."""
    client = open_on(kind, told(500, run={"run_id": RUN, "status": "error"}))
    with pytest.raises(RunFailedError, match="the graph failed"):
        await client.call("runs.wait", THREAD, "agent")


class Expired(httpx.Auth):
    """It can sign no cancellation."""

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:
        if request.url.path.endswith("/cancel"):
            raise LookupError("the token has expired")
        yield request


def two_events(request: httpx.Request) -> httpx.Response:
    media = {"content-type": "text/event-stream"}
    return httpx.Response(200, headers=PLACE | media, content=b"event: values\ndata: {}\n\n" * 2)


async def test_cancellation_that_cannot_be_signed(kind: str) -> None:
    """What the reader raised is what he gets, and a note says that the run may be going on."""
    client = open_on(kind, two_events, RESUMABLE, auth=Expired())
    stream = client.sdk.runs.stream(THREAD, "agent")
    await (anext(stream) if client.is_async else asyncio.to_thread(next, stream))
    error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError) as caught:
        await (stream.athrow(error) if client.is_async else asyncio.to_thread(stream.throw, error))
    (note,) = caught.value.__notes__
    assert note.endswith("since it could not be cancelled: LookupError('the token has expired')")


def refuse(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


async def test_run_that_was_never_asked_for(kind: str) -> None:
    """Of a refused connection nobody says that its run may be going on."""
    with pytest.raises(httpx.ConnectError) as caught:
        await open_on(kind, refuse, RESUMABLE).call("runs.wait", THREAD, "agent")
    assert not hasattr(caught.value, "__notes__")


async def test_gateway_that_gave_up(kind: str) -> None:
    """It may have passed the request on."""
    client = open_on(kind, lambda request: httpx.Response(504, json={}), RESUMABLE)
    with pytest.raises(httpx.HTTPStatusError) as caught:
        await client.call("runs.wait", THREAD, "agent")
    assert "the server has not told which run it is" in caught.value.__notes__[-1]


def test_retry_after_does_not_outlast_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that waits for another attempt is woken for its own limit."""
    monkeypatch.setattr(retrying, "LONGEST_PAUSE", 3600.0)

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(200, headers=PLACE, json={})
        return httpx.Response(429, headers={"retry-after": "3000"}, json={})

    client = open_on("sync", answer, RunPolicy(deadline=0.2, circuit=False))
    with pytest.raises(RunDeadlineError):
        client.sdk.runs.wait(THREAD, "agent")


async def test_limit_beyond_all_clocks(kind: str) -> None:
    """It is one, and nothing that watches it fails."""
    client = open_on(kind, told(run={"run_id": RUN, "status": "success"}), RunPolicy(deadline=1e15))
    assert {"text": "done"} == await client.call("runs.wait", THREAD, "agent")


@pytest.mark.parametrize("is_closed", [True, False])
def test_connection_that_may_be_somebody_elses_is_left_alone(is_closed: bool) -> None:
    """One whose response was read to its end has gone back to the pool, for other threads."""
    looked_at = []

    class Connection:
        def get_extra_info(self, name: str) -> None:
            looked_at.append(name)

    response = httpx.Response(200, extensions={"network_stream": Connection()})
    response.is_closed = is_closed
    watch = SyncWatch(RunPolicy(), has_events=True)
    watch.reads(response)
    watch._wake()
    assert ([] if is_closed else ["socket"]) == looked_at


async def test_join_stream_has_no_first_event(kind: str) -> None:
    """Who comes in the middle of a long step is no reason to end the run."""
    policy = RunPolicy(deadline=None, first_event_timeout=0.1, idle_timeout=0.4)
    async with (
        heartbeats() as beating,
        asynccontextmanager(open_client)(kind, beating.url, policy) as client,
    ):
        with pytest.raises(RunDeadlineError, match=r"silent for 0\.4 s"):
            await client.stream(THREAD, RUN, method="runs.join_stream")


async def test_stream_of_the_second_version_is_closed(until: Any) -> None:
    """It is a generator around ours, which ends with it."""
    async with heartbeats() as beating:
        beating.shows_event = True
        async with get_client(url=beating.url, api_key=None) as client:
            stream = client.runs.stream(THREAD, "agent", version="v2")
            await anext(stream)
            await stream.aclose()
            del stream
            await until(lambda: beating.open == 0)


async def test_explicit_if_not_exists_wins(kind: str) -> None:
    """`None` is the server's own choice, whatever the policy says, and creates no thread."""
    created = []

    def answer(request: httpx.Request) -> httpx.Response:
        if b'"if_exists":"do_nothing"' in request.content:
            created.append(request)
        return httpx.Response(422, json={"detail": "no"})

    client = open_on(kind, answer, RunPolicy(if_not_exists="create"))
    create = partial(create_run_once, client.sdk, THREAD, "agent", key="key", timeout=0.0)
    with pytest.raises(httpx.HTTPStatusError):
        await (
            create(if_not_exists=None)
            if client.is_async
            else asyncio.to_thread(create, if_not_exists=None)
        )
    assert [] == created


@pytest.mark.parametrize("make", [get_client, get_sync_client])
def test_password_of_a_url_is_not_shown(make: Callable[..., Any]) -> None:
    """A client ends up in logs and tracebacks."""
    client = make(url="https://user:hunter2@server/api", api_key="key-17")
    assert "server/api" in repr(client)
    assert [] == [secret for secret in ("hunter2", "key-17") if secret in repr(client)]


async def test_session_is_cancelled_as_its_caller(kind: str) -> None:
    """The headers that it was opened with go with the request that ends its run."""
    policy = RunPolicy(deadline=0.3)
    async with (
        heartbeats() as beating,
        asynccontextmanager(open_client)(kind, beating.url, policy) as client,
    ):
        stream = client.sdk.threads.stream(
            THREAD, assistant_id="agent", headers={"authorization": "Bearer mary"}
        )
        with pytest.raises(RunDeadlineError):
            await session(client, stream)
        (head,) = (head for head in beating.heads if b"/cancel" in head)
    assert b"\r\nauthorization: bearer mary\r\n" in head.lower()


async def test_session_that_is_late_tells_what_its_block_raised() -> None:
    """Both are known: that it was late, and what came of that."""
    async with (
        heartbeats() as beating,
        asynccontextmanager(open_client)("sync", beating.url, RunPolicy(deadline=0.3)) as client,
    ):

        def fail(thread: Any) -> None:
            list(thread.values)
            raise ZeroDivisionError

        stream = client.sdk.threads.stream(THREAD, assistant_id="agent")
        with pytest.raises(RunDeadlineError) as caught:
            await session(client, stream, fail)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def session(client: Client, stream: Any, then: Callable[[Any], Any] | None = None) -> None:
    """Start a run, and wait for its values."""
    if client.is_async:
        async with stream as thread:
            await thread.run.start(input={})
            async for _ in thread.values:
                pass
        return

    def run() -> None:
        with stream as thread:
            thread.run.start(input={})
            (then or (lambda thread: list(thread.values)))(thread)

    await asyncio.to_thread(run)


@pytest.mark.parametrize(
    "handle",
    [
        {"thread_id": "", "run_id": RUN},
        {"thread_id": None, "run_id": RUN},
        {"thread_id": "../store", "run_id": RUN},
        {"thread_id": THREAD, "run_id": ""},
        {"thread_id": THREAD, "run_id": f"../../{RUN}/runs/{RUN}"},
    ],
)
async def test_handle_that_leads_elsewhere(handle: dict[str, Any]) -> None:
    """What is no handle is not sent, so that it does not look like a run that is gone."""
    requests = []
    async with httpx.AsyncClient(
        transport=httpx.MockTransport(requests.append), base_url="http://server"
    ) as client:
        with pytest.raises(ValueError, match=r"UUID|thread id is empty"):
            await await_run(LangGraphClient(client), handle)
    assert [] == requests


IDS = {"thread_id": THREAD, "run_id": RUN}


@pytest.mark.parametrize(
    "error",
    [
        RunCancelledError("gone", reason="superseded", **IDS),
        RunDeadlineError("late", limit="deadline", seconds=2.0, **IDS),
        RunFailedError("ValueError", "no", **IDS),
        CircuitOpenError("no", retry_in=2.0, request=httpx.Request("GET", "http://server")),
        PoolOpenError("no pool"),
    ],
)
def test_errors_come_out_of_worker_processes(error: LghardError) -> None:
    """Task queues and process pools pickle what a job raises."""
    error.add_note("lghard: a note")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(error), str(error), error.args) == (type(copy), str(copy), copy.args)
    assert {**vars(error), "_request": None} == {**vars(copy), "_request": None}
