"""The circuit breaker of a server: one for each base URL, below everything that talks to it.

Kept libraries were looked at first. None keeps all but one request back while it finds out whether
the server is back, for threads and event loops alike: pybreaker 1.4 holds a lock during a call, so
that requests queue up, and is asynchronous only in Tornado; aiobreaker 1.2, purgatory 3.0 and
circuitbreaker 2.1 let everybody go in the half-open state and have no locks; and all but the last
count on a wall clock, which may be put back.
"""

import copy
from collections.abc import Callable
from threading import Lock
from typing import Any, TypeVar

import httpx

from lghard.resilience import CircuitBreaker
from lghard.sdk.outcomes import UNAVAILABLE, CircuitOpenError, is_unavailability

C = TypeVar("C", httpx.AsyncClient, httpx.Client)

# Clients come and go, often one for each request; what is known of a server must not go with them.
_breakers: dict[str, CircuitBreaker] = {}
_lock = Lock()


def breaker_of(url: httpx.URL) -> CircuitBreaker:
    """The breaker of all clients in this process that talk to this base URL."""
    key = str(url.copy_with(userinfo=b"", query=None, fragment=None)).rstrip("/")
    with _lock:
        return _breakers.setdefault(key, CircuitBreaker())


def guarded(client: C) -> C:
    """A client over the same connections, which heeds the circuit breaker of its server.

    The given one stays what it was.
    """
    breaker = breaker_of(client.base_url)
    guard = AsyncGuard if isinstance(client, httpx.AsyncClient) else Guard
    return _over(client, lambda transport: guard(_bare(transport), breaker))


def unguarded(client: C) -> C:
    """A client over the same connections, which heeds none."""
    return _over(client, _bare)


def _over(client: C, change: Callable[[Any], Any]) -> C:
    """A copy of a client on other transports, for all that httpx or the user have set on it."""
    changed = copy.copy(client)
    changed._transport = change(client._transport)
    changed._mounts = {
        pattern: None if transport is None else change(transport)
        for pattern, transport in client._mounts.items()
    }
    return changed


def _bare(transport: Any) -> Any:
    return transport.inner if isinstance(transport, AsyncGuard | Guard) else transport


class _Passage:
    """One request that may go, until it is known what that says about the server."""

    def __init__(self, breaker: CircuitBreaker, request: httpx.Request) -> None:
        admission = breaker.enter()
        if admission is None:
            raise _refusal(breaker, request)
        self._breaker = breaker
        self._admission = admission

    def answered(self, status: int) -> None:
        """It was answered, or the answer has begun."""
        if status in UNAVAILABLE:
            self._breaker.fail(self._admission)
        else:
            self._breaker.succeed(self._admission)

    def failed(self, error: BaseException) -> None:
        """It ended with an error, or was cancelled."""
        if is_unavailability(error):
            self._breaker.fail(self._admission)
        else:
            self._breaker.leave(self._admission)


def _refusal(breaker: CircuitBreaker, request: httpx.Request) -> CircuitOpenError:
    seconds = breaker.retry_in
    url = request.url
    return CircuitOpenError(
        f"{url.scheme}://{url.netloc.decode()} did not answer the last requests, so this one was"
        f" not sent. One that finds out whether it is back may go in {seconds:.1f} s: look at the"
        " server, or switch this off with RunPolicy(circuit=False).",
        retry_in=seconds,
        request=request,
    )


class AsyncGuard(httpx.AsyncBaseTransport):
    """A transport that asks the breaker before each request, and tells it what came of it.

    Attributes:
        inner: The transport that sends the request.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport, breaker: CircuitBreaker) -> None:
        self.inner = inner
        self._breaker = breaker

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, if it may go."""
        passage = _Passage(self._breaker, request)
        try:
            response = await self.inner.handle_async_request(request)
        except BaseException as error:  # a cancellation, too: a probe must be given back
            passage.failed(error)
            raise
        passage.answered(response.status_code)
        return response

    async def aclose(self) -> None:
        """Close the connections."""
        await self.inner.aclose()


class Guard(httpx.BaseTransport):
    """The same for the sync client.

    Attributes:
        inner: The transport that sends the request.
    """

    def __init__(self, inner: httpx.BaseTransport, breaker: CircuitBreaker) -> None:
        self.inner = inner
        self._breaker = breaker

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, if it may go."""
        passage = _Passage(self._breaker, request)
        try:
            response = self.inner.handle_request(request)
        except BaseException as error:  # a cancellation, too: a probe must be given back
            passage.failed(error)
            raise
        passage.answered(response.status_code)
        return response

    def close(self) -> None:
        """Close the connections."""
        self.inner.close()
