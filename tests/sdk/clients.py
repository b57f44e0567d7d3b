"""Either kind of client, spoken to in one way: the synchronous one works in a thread."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, closing
from typing import Any

import langgraph_sdk
from langgraph_sdk.client import LangGraphClient, SyncLangGraphClient

from lghard import RunPolicy, harden_client


class Client:
    """A client of `langgraph_sdk`, hardened or not.

    Attributes:
        sdk: The client itself.
    """

    def __init__(self, sdk: LangGraphClient | SyncLangGraphClient) -> None:
        self.sdk = sdk

    @property
    def is_async(self) -> bool:
        return isinstance(self.sdk, LangGraphClient)

    async def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method like "runs.wait"."""
        bound = self._method(method)
        if self.is_async:
            return await bound(*args, **options)
        return await asyncio.to_thread(bound, *args, **options)

    async def new_thread(self) -> str:
        return (await self.call("threads.create"))["thread_id"]

    async def stream(
        self,
        *args: Any,
        method: str = "runs.stream",
        each: Callable[[int], Any] | None = None,
        until: int | None = None,
        into: list[Any] | None = None,
        **options: Any,
    ) -> list[Any]:
        """Read a stream to its end, or close it after `until` updates.

        Args:
            *args: The stream's.
            method: Which stream.
            each: Called in the event loop with the number of updates so far, at each of them.
            until: How many updates to read.
            into: Where the updates go, so that they are there when the stream raises.
            **options: The stream's.
        """
        parts = [] if into is None else into
        stream = self._method(method)(*args, **options)
        if self.is_async:
            async with aclosing(stream):
                async for part in stream:
                    _take(part, parts, each)
                    if until is not None and len(parts) >= until:
                        break
            return parts
        loop = asyncio.get_running_loop()

        def in_loop(count: int) -> None:
            async def call() -> None:
                each(count)

            asyncio.run_coroutine_threadsafe(call(), loop).result(10)

        def read() -> None:
            with closing(stream):
                for part in stream:
                    _take(part, parts, in_loop if each else None)
                    if until is not None and len(parts) >= until:
                        break

        await asyncio.to_thread(read)
        return parts

    def _method(self, name: str) -> Callable[..., Any]:
        room, _, method = name.partition(".")
        return getattr(getattr(self.sdk, room), method)


async def open_client(
    kind: str, url: str, policy: RunPolicy | None = None, *, stock: bool = False
) -> AsyncIterator[Client]:
    """Open a client of either kind, and close it in the end."""
    if kind == "async":
        sdk = langgraph_sdk.get_client(url=url, api_key=None)
        async with sdk:
            yield Client(sdk if stock else harden_client(sdk, policy=policy))
    else:
        sync_sdk = langgraph_sdk.get_sync_client(url=url, api_key=None)
        with sync_sdk:
            yield Client(sync_sdk if stock else harden_client(sync_sdk, policy=policy))


def _take(part: Any, parts: list[Any], each: Callable[[int], Any] | None) -> None:
    if part.event == "updates":
        parts.append(part.data)
        if each is not None:
            each(len(parts))
