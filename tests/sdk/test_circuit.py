"""The circuit breaker: kept from a server that does not answer, and one request finds out."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import httpx
import langgraph_sdk
import pytest
from langgraph_sdk.errors import InternalServerError, NotFoundError

from lghard import (
    CircuitOpenError,
    LghardError,
    RunFailedError,
    RunPolicy,
    get_client,
    get_sync_client,
    harden_client,
    resilience,
)
from lghard.resilience import CircuitBreaker, RetryQuota
from lghard.sdk.circuit import breaker_of
from lghard.testing import FaultProxy, LangGraphServer
from tests.sdk.answering import Answering, answering

ID = str(uuid4())
ONCE = RunPolicy(retries=0)


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(resilience, "monotonic", clock)
    return clock


@pytest.fixture
def upstream() -> Iterator[Answering]:
    with answering() as server:
        yield server


def admitted(breaker: CircuitBreaker) -> int:
    admission = breaker.enter()
    assert admission is not None
    return admission


def broken(breaker: CircuitBreaker) -> CircuitBreaker:
    for _ in range(5):
        breaker.fail(admitted(breaker))
    return breaker


def test_opens_after_failures_in_a_row(clock: Clock) -> None:
    """Five, between which nothing succeeded."""
    breaker = CircuitBreaker()
    for outcome in (breaker.fail,) * 4 + (breaker.succeed,) + (breaker.fail,) * 4:
        outcome(admitted(breaker))
    assert not breaker.is_open
    breaker.fail(admitted(breaker))
    assert breaker.is_open


def test_nobody_goes_while_it_is_open(clock: Clock) -> None:
    """Until it has cooled down, which it tells."""
    breaker = broken(CircuitBreaker(cooldown=10.0))
    clock.now += 4.0
    assert (None, 6.0) == (breaker.enter(), breaker.retry_in)


def test_one_probe_at_a_time(clock: Clock) -> None:
    """Then one may go, and the others wait for what it finds."""
    breaker = broken(CircuitBreaker(cooldown=10.0))
    clock.now += 10.0
    probe = admitted(breaker)
    assert [None] * 3 == [breaker.enter() for _ in range(3)]
    breaker.succeed(probe)
    assert not breaker.is_open
    assert breaker.enter() is not None


def test_probe_that_fails(clock: Clock) -> None:
    """It is another cooldown until the next."""
    breaker = broken(CircuitBreaker(cooldown=10.0))
    clock.now += 10.0
    breaker.fail(admitted(breaker))
    assert (None, 10.0) == (breaker.enter(), breaker.retry_in)


def test_probe_that_is_given_up(clock: Clock) -> None:
    """Another may go at once."""
    breaker = broken(CircuitBreaker(cooldown=10.0))
    clock.now += 10.0
    breaker.leave(admitted(breaker))
    assert breaker.enter() is not None


def test_probe_of_which_nothing_is_heard(clock: Clock) -> None:
    """Another one may go, and a failure of which the first hears later does not count any more."""
    breaker = broken(CircuitBreaker(cooldown=10.0))
    clock.now += 10.0
    lost = admitted(breaker)
    clock.now += 10.0
    second = admitted(breaker)
    clock.now += 4.0
    breaker.fail(lost)
    assert (True, 6.0) == (breaker.is_open, breaker.retry_in)
    breaker.succeed(second)
    assert not breaker.is_open


def test_server_that_answers_after_more_than_a_cooldown(clock: Clock) -> None:
    """It answers: the circuit does not stay open because the next probe has gone by then."""
    breaker = broken(CircuitBreaker(cooldown=10.0))
    clock.now += 10.0
    slow = admitted(breaker)
    clock.now += 10.0
    later = admitted(breaker)
    clock.now += 1.0
    breaker.succeed(slow)
    assert not breaker.is_open
    breaker.fail(later)
    assert not breaker.is_open


@pytest.mark.parametrize("outcome", ["succeed", "fail", "leave"])
def test_what_was_under_way_when_it_opened(clock: Clock, outcome: str) -> None:
    """It says nothing about now."""
    breaker = CircuitBreaker(cooldown=10.0)
    earlier = admitted(breaker)
    broken(breaker)
    clock.now += 4.0
    getattr(breaker, outcome)(earlier)
    assert (True, 6.0) == (breaker.is_open, breaker.retry_in)


def test_threads_share_one_probe(clock: Clock) -> None:
    """However many want to go at the same moment."""
    breaker = broken(CircuitBreaker(cooldown=10.0))
    clock.now += 10.0
    ready, admissions = threading.Barrier(16), []

    def enter() -> None:
        ready.wait()
        admissions.append(breaker.enter())

    threads = [threading.Thread(target=enter) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 15 == admissions.count(None)


def test_quota(clock: Clock) -> None:
    """Ten at first, one for ten requests, and one a second."""
    quota = RetryQuota()
    assert [True] * 10 + [False] == [quota.take() for _ in range(11)]
    for _ in range(11):
        quota.begin()
    assert [True, False] == [quota.take() for _ in range(2)]
    clock.now += 1.0
    assert [True, False] == [quota.take() for _ in range(2)]


@pytest.fixture(params=["async", "sync"])
def get(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """A function that asks a server for a thread, with a client of its own for each request."""

    async def get(url: str, **options: Any) -> Any:
        options = {"policy": ONCE, **options}
        if request.param == "sync":
            with get_sync_client(url=url, api_key=None, **options) as client:
                return await asyncio.to_thread(client.threads.get, ID)
        async with get_client(url=url, api_key=None, **options) as client:
            return await client.threads.get(ID)

    return get


async def open_circuit(upstream: Answering, get: Callable[..., Any], status: int = 503) -> None:
    upstream.answers = [(status, {})]
    for _ in range(5):
        with pytest.raises(httpx.HTTPStatusError):
            await get(upstream.url)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_opens_for_all_clients_of_a_server(
    upstream: Answering, get: Callable[..., Any], status: int
) -> None:
    """It is kept for the base URL, while clients come and go."""
    await open_circuit(upstream, get, status)
    with pytest.raises(CircuitOpenError, match=r"may go in \d+\.\d s") as refused:
        await get(upstream.url)
    assert 5 == len(upstream.requests)
    assert 0.0 < refused.value.retry_in <= 10.0
    assert isinstance(refused.value, LghardError)
    assert isinstance(refused.value, httpx.ConnectError)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 500])
async def test_other_answers_do_not_open_it(
    upstream: Answering, get: Callable[..., Any], status: int
) -> None:
    """A server that says no is there."""
    upstream.answers = [(status, {})]
    for _ in range(8):
        with pytest.raises(httpx.HTTPStatusError):
            await get(upstream.url)
    assert 8 == len(upstream.requests)


async def test_closes_when_the_server_is_back(
    upstream: Answering, get: Callable[..., Any], clock: Clock
) -> None:
    """The first request after the cooldown finds it out, by itself."""
    await open_circuit(upstream, get)
    upstream.answers = [(200, {})]
    clock.now += 10.0
    for _ in range(3):
        assert 200 == (await get(upstream.url))["status"]


async def test_each_server_has_its_own(upstream: Answering, get: Callable[..., Any]) -> None:
    """One that does not answer says nothing about another."""
    await open_circuit(upstream, get)
    with answering() as other:
        assert 200 == (await get(other.url))["status"]


async def test_can_be_switched_off(upstream: Answering, get: Callable[..., Any]) -> None:
    """Then each request is sent."""
    upstream.answers = [(503, {})]
    for _ in range(8):
        with pytest.raises(InternalServerError):
            await get(upstream.url, policy=RunPolicy(circuit=False, retries=0))
    assert 8 == len(upstream.requests)


async def test_stock_client_is_left_alone(upstream: Answering, get: Callable[..., Any]) -> None:
    """Also the one whose connections a hardened one shares."""
    async with langgraph_sdk.get_client(url=upstream.url, api_key=None) as stock:
        hardened = harden_client(harden_client(stock, policy=ONCE), policy=ONCE)
        await open_circuit(upstream, get)
        with pytest.raises(CircuitOpenError):
            await hardened.threads.get(ID)
        with pytest.raises(InternalServerError):
            await stock.threads.get(ID)


async def test_refused_connections(
    server: LangGraphServer, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each counts once, however often the SDK's transport has tried."""
    monkeypatch.setattr(
        "httpcore._async.connection.exponential_backoff", lambda factor: iter([0.0] * 9)
    )
    proxy.refuse()
    breaker = breaker_of(httpx.URL(proxy.url(server.url)))
    async with get_client(url=proxy.url(server.url), api_key=None) as client:
        for n in range(5):
            assert not breaker.is_open, n
            with pytest.raises(httpx.ConnectError):
                await client.threads.get(ID)
    assert breaker.is_open


async def test_timeouts(server: LangGraphServer, proxy: FaultProxy) -> None:
    """A server that takes requests and is silent is not there."""
    url = proxy.url(server.url)
    proxy.blackhole()
    async with get_client(url=url, api_key=None, timeout=0.1, policy=ONCE) as client:
        for _ in range(5):
            with pytest.raises(httpx.ReadTimeout):
                await client.threads.get(ID)
        with pytest.raises(CircuitOpenError):
            await client.threads.get(ID)


async def test_failing_graphs_and_cancellations(server: LangGraphServer, proxy: FaultProxy) -> None:
    """They are none of the server's failures."""
    url = proxy.url(server.url)
    async with get_client(url=url, api_key=None) as client:
        failing = [client.runs.wait(None, "fail", input={"key": "none"}) for _ in range(6)]
        failures = await asyncio.gather(*failing, return_exceptions=True)
        assert {RunFailedError} == set(map(type, failures))
        proxy.hold_requests()
        waiting = [asyncio.create_task(client.threads.get(ID)) for _ in range(6)]
        while proxy.held < 6:
            await asyncio.sleep(0.01)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        proxy.release()
        with pytest.raises(NotFoundError):
            await client.threads.get(ID)


async def test_keeps_streams_back_as_well(upstream: Answering, get: Callable[..., Any]) -> None:
    """Whatever goes over the connections of the client, also v3's threads.stream."""
    await open_circuit(upstream, get)
    async with get_client(url=upstream.url, api_key=None) as client:
        with pytest.raises(CircuitOpenError):
            [part async for part in client.runs.stream(None, "echo")]
        with pytest.raises(CircuitOpenError):
            async with client.threads.stream(ID, assistant_id="echo") as thread:
                await thread.run.start(input={})
    assert 5 == len(upstream.requests)
