"""Reads what a run tells, to its end: the asynchronous half; `sync_reading` is the other one."""

from asyncio import CancelledError, current_task, sleep
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from time import monotonic
from typing import Any, cast

import httpx
from langgraph_sdk.client import HttpClient
from langgraph_sdk.schema import StreamPart

from lghard.sdk.calls import RunCall
from lghard.sdk.deadlines import AsyncWatch
from lghard.sdk.performing import cancel, perform
from lghard.sdk.policy import RunPolicy
from lghard.sdk.typed_errors import typed

OnResponse = Callable[[httpx.Response], None] | None


class CallHttp(HttpClient):
    """What a method of the SDK sends one run's requests with.

    The method builds the request and takes the result apart, as it always does.
    """

    def __init__(self, http: HttpClient, call: RunCall, policy: RunPolicy) -> None:
        super().__init__(http.client)
        self._http = http
        self._call = call
        self._policy = policy

    async def stream(
        self, path: str, method: str, *, on_response: OnResponse = None, **request: Any
    ) -> AsyncGenerator[StreamPart, None]:
        """Yield the events of a run, and tell at the end how it ended."""
        call, ended = self._call, False
        request["on_response"] = call.notice(on_response)
        with AsyncWatch(self._policy, has_events=True) as watch:
            if not call.from_beginning:
                watch.begun()
            try:
                await perform(self._http, call.prepare(), call.headers)
                call.is_sent = True
                while not ended:
                    try:
                        async with aclosing(self._events(path, method, request)) as parts:
                            # Calls, or a generator of its own, would cost more than these lines.
                            async for part in parts:
                                watch.waiting = False
                                if part.id:
                                    call.last_event_id = part.id
                                if not call.is_fresh:
                                    watch.begun()
                                    call.is_fresh = True
                                if part.event == "error":
                                    call.see_error(part)
                                yield part
                                watch.task = current_task()
                                watch.since = monotonic()
                                watch.waiting = True
                                if watch.expired:
                                    raise call.deadline_error(watch)
                        await perform(self._http, call.settle(), call.headers)
                        ended = True
                    except httpx.HTTPError as error:
                        pause = call.pause_after(error)
                        await sleep(pause)
                        path, method, request = call.rejoining()
            except BaseException as error:  # whoever leaves, in whatever way, leaves no run behind
                await self._leave(error, watch)

    async def request_reconnect(
        self,
        path: str,
        method: str,
        *,
        on_response: OnResponse = None,
        reconnect_limit: int = 0,  # noqa: ARG002 - it is the call that knows when to try again
        **request: Any,
    ) -> Any:
        """Return a run's answer, if that is how it ended."""
        call = self._call
        request["on_response"] = call.notice(on_response)
        with AsyncWatch(self._policy, has_events=False) as watch:
            try:
                await perform(self._http, call.prepare(), call.headers)
                answer = await self._answer(path, method, request)
                call.see_answer(answer)
                await perform(self._http, call.settle(), call.headers)
            except BaseException as error:  # whoever leaves, in whatever way, leaves no run behind
                await self._leave(error, watch)
            return answer

    def _events(
        self, path: str, method: str, request: Mapping[str, Any]
    ) -> AsyncGenerator[StreamPart, None]:
        return cast("AsyncGenerator[StreamPart, None]", self._http.stream(path, method, **request))

    async def _answer(self, path: str, method: str, request: dict[str, Any]) -> Any:
        self._call.is_sent = True
        while True:
            try:
                return await self._http.request_reconnect(
                    path, method, reconnect_limit=0, **request
                )
            except httpx.HTTPError as error:
                await sleep(self._call.pause_after(error))
                path, method, request = self._call.joining()

    async def _leave(self, error: BaseException, watch: AsyncWatch) -> None:
        """Raise what has happened, once the server has heard that nobody waits any more."""
        call, failure = self._call, error
        if watch.caught() and isinstance(error, CancelledError | httpx.HTTPError):
            failure = call.deadline_error(watch)
        elif isinstance(error, httpx.HTTPStatusError):
            failure = typed(error)
        watch.stop()
        if call.must_cancel(failure):
            call.annotate(failure, await cancel(self._http, call))
        if failure is error:
            raise error
        raise failure from (None if isinstance(error, CancelledError) else error.__cause__)
