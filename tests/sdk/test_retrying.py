"""Reads and idempotent writes are tried again, and nothing else is; async and sync."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from uuid import uuid4

import httpx
import langgraph_sdk
import pytest
from langgraph_sdk.client import LangGraphClient, SyncLangGraphClient
from langgraph_sdk.errors import (
    ConflictError,
    InternalServerError,
    NotFoundError,
    RateLimitError,
    UnprocessableEntityError,
)

from lghard import RunPolicy, get_client, get_sync_client
from lghard.sdk import retrying
from lghard.sdk.methods import METHODS, Repeat
from lghard.sdk.outcomes import retry_after
from lghard.testing import FaultProxy, LangGraphServer
from tests.sdk.answering import Answering, answering

Client = LangGraphClient | SyncLangGraphClient
Call = Callable[..., Any]
POLICY = RunPolicy(retries=2, circuit=False)
FACTORIES = {"async": get_client, "sync": get_sync_client}
STOCK = {"async": langgraph_sdk.get_client, "sync": langgraph_sdk.get_sync_client}
ID = str(uuid4())


@pytest.fixture
def upstream() -> Iterator[Answering]:
    with answering() as server:
        yield server


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No time passes between attempts; the seconds that would have."""
    seconds: list[float] = []
    own = retrying._pause

    def pause(state: Any) -> float:
        seconds.append(own(state))
        return 0.0 if seconds[-1] <= retrying.LONGEST_PAUSE else seconds[-1]

    monkeypatch.setattr(retrying, "_pause", pause)
    return seconds


@pytest.fixture(params=["async", "sync"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def connect(kind: str) -> AsyncIterator[Callable[..., Client]]:
    """Make clients of one kind."""
    made: list[Client] = []

    def connect(
        url: str, *, stock: bool = False, policy: RunPolicy = POLICY, **options: Any
    ) -> Any:
        factory = STOCK[kind] if stock else FACTORIES[kind]
        own = {} if stock else {"policy": policy}
        made.append(factory(url=url, api_key=None, **own, **options))
        return made[-1]

    yield connect
    for client in made:
        await client.aclose() if isinstance(client, LangGraphClient) else client.close()


async def call(method: Call, *args: Any, **options: Any) -> Any:
    """Call a method of either client, to its end."""
    if inspect.iscoroutinefunction(method):
        result = await method(*args, **options)
    else:
        result = await asyncio.to_thread(method, *args, **options)
    if hasattr(result, "__anext__"):
        return [part async for part in result]
    return list(result) if inspect.isgenerator(result) else result


async def test_read_is_tried_again(upstream: Answering, connect: Call, paused: list[float]) -> None:
    """Until it succeeds."""
    upstream.answers = [(503, {}), (502, {}), (200, {})]
    assert 200 == (await call(connect(upstream.url).threads.get, ID))["status"]
    assert 2 == len(paused)


async def test_stock_client_gives_up_at_once(upstream: Answering, connect: Call) -> None:
    """Control: one answer of a gateway that restarts fails a read."""
    upstream.answers = [(503, {}), (200, {})]
    with pytest.raises(InternalServerError):
        await call(connect(upstream.url, stock=True).threads.get, ID)


async def test_last_answer_is_what_the_caller_hears(
    upstream: Answering, connect: Call, paused: list[float]
) -> None:
    """As the SDK's own error, with a note of how often it was tried."""
    upstream.answers = [(503, {})]
    with pytest.raises(InternalServerError) as failure:
        await call(connect(upstream.url).threads.get, ID)
    assert ["lghard: tried 3 times"] == failure.value.__notes__
    assert 3 == len(upstream.requests)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, NotFoundError),
        (409, ConflictError),
        (422, UnprocessableEntityError),
        (500, InternalServerError),
    ],
)
async def test_answers_that_stay_the_same(
    upstream: Answering, connect: Call, status: int, error: type[Exception]
) -> None:
    """They are not asked for twice."""
    upstream.answers = [(status, {})]
    with pytest.raises(error):
        await call(connect(upstream.url).threads.get, ID)
    assert 1 == len(upstream.requests)


async def test_no_retries(upstream: Answering, connect: Call) -> None:
    """A policy may do without."""
    upstream.answers = [(503, {})]
    client = connect(upstream.url, policy=RunPolicy(retries=0, circuit=False))
    with pytest.raises(InternalServerError):
        await call(client.threads.get, ID)
    assert 1 == len(upstream.requests)


@pytest.mark.parametrize(("asked", "least"), [("7", 7.0), ("0", 0.0)])
async def test_heeds_retry_after(
    upstream: Answering, connect: Call, paused: list[float], asked: str, least: float
) -> None:
    """It waits as long as the server asks for, and up to a tenth longer, so that not all return."""
    upstream.answers = [(429, {"retry-after": asked}), (200, {})]
    await call(connect(upstream.url).threads.get, ID)
    assert least <= paused[0] <= 1.1 * least


async def test_asked_to_come_much_later(
    upstream: Answering, connect: Call, paused: list[float]
) -> None:
    """The caller hears it, rather than being made to wait."""
    upstream.answers = [(429, {"retry-after": "3600"}), (200, {})]
    with pytest.raises(RateLimitError):
        await call(connect(upstream.url).threads.get, ID)
    assert 1 == len(upstream.requests)


@pytest.mark.parametrize("clock", [timedelta(0), timedelta(days=-365)])
def test_retry_after_as_a_date(clock: timedelta) -> None:
    """It is read by the clock of the server that wrote it, wherever that stands."""
    now = datetime.now(UTC).replace(microsecond=0) + clock
    headers = {
        "date": format_datetime(now, usegmt=True),
        "retry-after": format_datetime(now + timedelta(seconds=20), usegmt=True),
    }
    assert 20.0 == retry_after(refusal(headers))


@pytest.mark.parametrize("value", ["", "soon", "-1", "1e400", "Fri, 99 Foo 2026 25:00:00 GMT"])
def test_retry_after_that_says_nothing(value: str) -> None:
    """What cannot be understood is as if it were not there."""
    assert retry_after(refusal({"retry-after": value})) is None


def test_retry_after_in_the_past() -> None:
    """Now is as good as any time."""
    assert 0.0 == retry_after(refusal({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}))


def refusal(headers: dict[str, str]) -> httpx.HTTPStatusError:
    request = httpx.Request("GET", "http://server")
    response = httpx.Response(429, headers=headers, request=request)
    return httpx.HTTPStatusError("429", request=request, response=response)


async def test_quota(upstream: Answering, connect: Call, paused: list[float]) -> None:
    """In an outage, a server sees ten retries, and then a tenth more requests than are made."""
    upstream.answers = [(503, {})]
    client = connect(upstream.url)
    for _ in range(40):
        with pytest.raises(InternalServerError):
            await call(client.threads.get, ID)
    assert 50 <= len(upstream.requests) <= 60


async def test_lost_connection(
    server: LangGraphServer, proxy: FaultProxy, connect: Call, stock: LangGraphClient
) -> None:
    """A read, and a write that may be done twice, survive it."""
    client = connect(proxy.url(server.url))
    proxy.lose_responses(1)
    thread = await call(client.threads.create, thread_id=str(uuid4()), if_exists="do_nothing")
    proxy.lose_responses(1)
    await call(client.threads.update, thread["thread_id"], metadata={"seen": True})
    proxy.lose_responses(1)
    read = await call(client.threads.get, thread["thread_id"])
    assert {"seen": True} == read["metadata"]
    assert 3 == proxy.lost


async def test_deletion_whose_answer_is_lost(
    server: LangGraphServer, proxy: FaultProxy, connect: Call, stock: LangGraphClient
) -> None:
    """That it is gone at the second attempt is a success; gone at the first, it is not."""
    client = connect(proxy.url(server.url))
    thread_id = (await stock.threads.create())["thread_id"]
    proxy.lose_responses(1)
    await call(client.threads.delete, thread_id)
    with pytest.raises(NotFoundError):
        await call(client.threads.delete, thread_id)


async def test_write_that_hangs_is_not_repeated(
    server: LangGraphServer, proxy: FaultProxy, connect: Call, stock: LangGraphClient
) -> None:
    """The first attempt comes late, and finds what it would have overwritten as it was."""
    client = connect(proxy.url(server.url), timeout=0.3)
    thread_id = (await stock.threads.create())["thread_id"]
    proxy.hold_requests(containing=b"PATCH")
    with pytest.raises(httpx.ReadTimeout):
        await call(client.threads.update, thread_id, metadata={"seen": True})
    assert 1 == proxy.held


async def test_refused_connection_is_not_multiplied(
    server: LangGraphServer, proxy: FaultProxy, connect: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK's transport has tried six times by then, in 7.5 s: nobody waits 22."""
    pauses: list[float] = []
    monkeypatch.setattr("httpcore._async.connection.exponential_backoff", _no_pause(pauses))
    monkeypatch.setattr("httpcore._sync.connection.exponential_backoff", _no_pause(pauses))
    proxy.refuse()
    with pytest.raises(httpx.ConnectError):
        await call(connect(proxy.url(server.url)).threads.get, ID)
    assert 5 == len(pauses)


def _no_pause(pauses: list[float]) -> Callable[..., Iterator[float]]:
    def backoff(factor: float) -> Iterator[float]:
        while True:
            pauses.append(factor)
            yield 0.0

    return backoff


# What each method is called with, apart from thread_id, run_id and the like.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "assistants.create": {"graph_id": "g", "assistant_id": ID},
    "assistants.create, assistant_id and if_exists='do_nothing'": {
        "graph_id": "g",
        "assistant_id": ID,
        "if_exists": "do_nothing",
    },
    "runs.cancel, wait=True": {"wait": True},
    "runs.cancel_many": {"status": "all"},
    "runs.cancel_many, run_ids": {"thread_id": ID, "run_ids": [ID]},
    "runs.create_batch": {"payloads": []},
    "threads.create": {"thread_id": ID},
    "threads.create, thread_id and if_exists='do_nothing'": {
        "thread_id": ID,
        "if_exists": "do_nothing",
    },
    "threads.prune": {"thread_ids": [ID]},
}
REQUIRED: dict[str, Any] = {
    "assistant_id": ID,
    "thread_id": ID,
    "run_id": ID,
    "cron_id": ID,
    "namespace": ["a"],
    "namespace_prefix": ["a"],
    "key": "k",
    "value": {},
    "values": {},
    "schedule": "* * * * *",
    "version": 1,
    "metadata": {},
}
ROOMS = ("assistants", "threads", "runs", "crons", "store")


def test_every_method_is_decided_about(kind: str) -> None:
    """A method that a new SDK brings has no place in the table until somebody gives it one."""
    client = STOCK[kind](url="http://server", api_key=None)
    methods = {
        f"{room}.{name}"
        for room in ROOMS
        for name, _ in inspect.getmembers(getattr(client, room), inspect.isroutine)
        if not name.startswith("_")
    }
    assert methods == {method.partition(",")[0] for method in METHODS}


def needed(method: Call, given: dict[str, Any]) -> list[Any]:
    """What goes before the keywords; and keywords that have no default are put among the given."""
    positional = []
    for parameter in inspect.signature(method).parameters.values():
        if parameter.default is parameter.empty and parameter.name not in given:
            if parameter.kind is parameter.KEYWORD_ONLY:
                given[parameter.name] = REQUIRED[parameter.name]
            else:
                positional.append(REQUIRED[parameter.name])
    return positional


@pytest.mark.parametrize("method", [m for m in sorted(METHODS) if m != "threads.stream"])
async def test_does_what_the_table_says(
    upstream: Answering, connect: Call, paused: list[float], method: str
) -> None:
    """Two answers of a gateway that restarts, and then one of the server."""
    upstream.answers = [(503, {}), (503, {}), (200, {})]
    room, _, name = method.partition(",")[0].partition(".")
    bound = getattr(getattr(connect(upstream.url), room), name)
    given = dict(ARGUMENTS.get(method, {}))
    attempt = call(bound, *needed(bound, given), **given)
    repeated = METHODS[method] in {Repeat.FREELY, Repeat.WRITE, Repeat.ENDING}
    if repeated:
        await attempt
    else:
        with pytest.raises(httpx.HTTPStatusError):
            await attempt
    assert (3 if repeated else 1) == len(upstream.requests)
