"""Reads what a run tells, to its end: the synchronous half; `reading` is the other one."""

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from copy import copy
from time import monotonic
from typing import Any, cast

import httpx
from langgraph_sdk.client import SyncHttpClient
from langgraph_sdk.schema import StreamPart

from lghard.sdk.calls import RunCall
from lghard.sdk.deadlines import SyncWatch
from lghard.sdk.performing import cancel_sync, perform_sync
from lghard.sdk.policy import RunPolicy
from lghard.sdk.retrying import RetryingSyncHttp
from lghard.sdk.typed_errors import typed

OnResponse = Callable[[httpx.Response], None] | None


class SyncCallHttp(SyncHttpClient):
    """What a method of the SDK sends one run's requests with.

    The method builds the request and takes the result apart, as it always does.
    """

    def __init__(self, http: SyncHttpClient, call: RunCall, policy: RunPolicy) -> None:
        super().__init__(http.client)
        self._http = http
        self._call = call
        self._policy = policy

    def stream(
        self, path: str, method: str, *, on_response: OnResponse = None, **request: Any
    ) -> Generator[StreamPart, None, None]:
        """Yield the events of a run, and tell at the end how it ended."""
        call, ended = self._call, False
        with SyncWatch(self._policy, has_events=True) as watch:
            if not call.from_beginning:
                watch.begun()
            http = self._timed(watch)
            request["on_response"] = self._looking(on_response, watch)
            try:
                perform_sync(http, call.prepare(), call.headers, watch)
                call.is_sent = True
                while not ended:
                    try:
                        with closing(_events(http, path, method, request)) as parts:
                            for part in parts:
                                watch.waiting = False
                                if part.id:
                                    call.last_event_id = part.id
                                if not call.is_fresh:
                                    watch.begun()
                                    call.is_fresh = True
                                if part.event == "error":
                                    call.see_error(part)
                                yield part
                                watch.since = monotonic()
                                watch.waiting = True
                                if watch.expired:
                                    raise call.deadline_error(watch)
                        watch.rests()
                        perform_sync(http, call.settle(), call.headers, watch)
                        ended = True
                    except httpx.HTTPError as error:
                        watch.rests()
                        if watch.is_late():
                            raise
                        watch.sleep(call.pause_after(error))
                        path, method, request = call.rejoining()
                        request["on_response"] = self._looking(None, watch)
            except BaseException as error:  # whoever leaves, in whatever way, leaves no run behind
                self._leave(error, watch)

    def request_reconnect(
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
        with SyncWatch(self._policy, has_events=False) as watch:
            http = self._timed(watch)
            request["on_response"] = self._looking(on_response, watch)
            try:
                perform_sync(http, call.prepare(), call.headers, watch)
                answer = self._answer(http, path, method, request, watch)
                call.see_answer(answer)
                perform_sync(http, call.settle(), call.headers, watch)
            except BaseException as error:  # whoever leaves, in whatever way, leaves no run behind
                self._leave(error, watch)
            return answer

    def _answer(
        self,
        http: SyncHttpClient,
        path: str,
        method: str,
        request: dict[str, Any],
        watch: SyncWatch,
    ) -> Any:
        self._call.is_sent = True
        while True:
            try:
                return http.request_reconnect(path, method, reconnect_limit=0, **request)
            except httpx.HTTPError as error:
                watch.rests()
                if watch.is_late():
                    raise
                watch.sleep(self._call.pause_after(error))
                path, method, request = self._call.joining()
                request["on_response"] = self._looking(None, watch)
            finally:
                watch.rests()

    def _timed(self, watch: SyncWatch) -> SyncHttpClient:
        """Return the client's way to the server, with timeouts that end with the limits."""
        http = copy(self._http)
        http.client = cast("httpx.Client", _TimedClient(self._http.client, watch))
        if isinstance(http, RetryingSyncHttp):
            http.sleep = watch.sleep
        return http

    def _looking(
        self, on_response: OnResponse, watch: SyncWatch
    ) -> Callable[[httpx.Response], None]:
        notice = self._call.notice(on_response)
        read = self.client.timeout.read

        def look(response: httpx.Response) -> None:
            # The headers are there. From here on the watch wakes who waits for too long, and a
            # server that is alive shows it by its heartbeats.
            timeout = response.request.extensions.get("timeout")
            if isinstance(timeout, dict):
                timeout["read"] = read
            watch.reads(response)
            notice(response)

        return look

    def _leave(self, error: BaseException, watch: SyncWatch) -> None:
        """Raise what has happened, once the server has heard that nobody waits any more."""
        call, failure = self._call, error
        if isinstance(error, httpx.HTTPError) and watch.is_late():
            failure = call.deadline_error(watch)
        elif isinstance(error, httpx.HTTPStatusError):
            failure = typed(error)
        watch.stop()
        if call.must_cancel(failure):
            call.annotate(failure, cancel_sync(self._http, call))
        if failure is error:
            raise error
        raise failure from error.__cause__


class _TimedClient:
    """An httpx client whose timeouts end with the limits of a call."""

    def __init__(self, client: httpx.Client, watch: SyncWatch) -> None:
        self._client = client
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def get(self, url: str, **request: Any) -> httpx.Response:
        return self._client.get(url, timeout=self._watch.timeout(self._client.timeout), **request)

    def post(self, url: str, **request: Any) -> httpx.Response:
        return self._client.post(url, timeout=self._watch.timeout(self._client.timeout), **request)

    def stream(self, method: str, url: str, **request: Any) -> Any:
        return self._client.stream(
            method, url, timeout=self._watch.timeout(self._client.timeout), **request
        )


def _events(
    http: SyncHttpClient, path: str, method: str, request: Mapping[str, Any]
) -> Generator[StreamPart, None, None]:
    return cast("Generator[StreamPart, None, None]", http.stream(path, method, **request))
