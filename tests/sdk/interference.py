"""Faults between two requests of one client, at exactly the n-th: on real connections."""

import asyncio

import httpx
from langgraph_sdk.client import LangGraphClient


class Interference(httpx.AsyncBaseTransport):
    """A transport that does something else at its n-th request.

    Attributes:
        requests: What was asked for, as "POST /threads".
        late: The requests that are still on their way.
    """

    def __init__(self, faults: dict[int, str] | None = None) -> None:
        self._inner = httpx.AsyncHTTPTransport(verify=False)  # it reads no certificates
        self._faults = faults or {}
        self.requests: list[str] = []
        self.late: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        fault = self._faults.get(len(self.requests))
        self.requests.append(f"{request.method} {request.url.path}")
        if fault is None:
            return await self._inner.handle_async_request(request)
        await request.aread()
        return await getattr(self, fault)(request)

    async def refused(self, request: httpx.Request) -> httpx.Response:
        """It never left this machine."""
        raise httpx.ConnectError("All connection attempts failed", request=request)

    async def lost(self, request: httpx.Request) -> httpx.Response:
        """It was answered, and the answer was lost."""
        await self._deliver(request)
        raise httpx.ReadError("", request=request)

    async def delayed(self, request: httpx.Request) -> httpx.Response:
        """It arrives when `deliver` is called."""
        self.late.append(request)
        raise httpx.ReadTimeout("", request=request)

    async def failed(self, request: httpx.Request) -> httpx.Response:
        """It was done, and then the gateway failed."""
        await self._deliver(request)
        return httpx.Response(502, request=request)

    async def garbled(self, request: httpx.Request) -> httpx.Response:
        """It was done, and somebody else answered."""
        await self._deliver(request)
        return httpx.Response(200, text="<html>", request=request)

    async def cancelled(self, request: httpx.Request) -> httpx.Response:
        """Its caller is cancelled while it waits for the answer."""
        await self._deliver(request)
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        await asyncio.sleep(60)
        raise AssertionError

    async def deliver(self) -> None:
        """Let all arrive that are late."""
        while self.late:
            request = self.late.pop(0)
            await self._deliver(request)

    async def _deliver(self, request: httpx.Request) -> None:
        try:
            response = await self._inner.handle_async_request(request)
        except httpx.RemoteProtocolError:  # the server has just closed the idle connection
            response = await self._inner.handle_async_request(request)
        await response.aread()
        await response.aclose()

    async def aclose(self) -> None:
        await self._inner.aclose()

    def client(self, url: str) -> LangGraphClient:
        """The SDK's own client on this transport."""
        return LangGraphClient(httpx.AsyncClient(base_url=url, transport=self, timeout=20.0))


FAULTS = ("refused", "lost", "delayed", "failed", "garbled", "cancelled")
