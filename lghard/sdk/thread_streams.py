"""The v3 streaming session of a thread, with the limits of a policy.

Its wire has no disconnect option, so a reader who leaves early leaves a run behind. What can be
had is an end to waiting: the `with` block is cut when a limit has passed, and the runs that it
started are cancelled.
"""

from asyncio import CancelledError
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from copy import copy
from functools import wraps
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

import httpx
from langgraph_sdk._async.stream import AsyncThreadStream
from langgraph_sdk._sync.stream import SyncThreadStream
from langgraph_sdk.client import HttpClient, SyncHttpClient

from lghard.errors import RunDeadlineError
from lghard.sdk.calls import RunCall
from lghard.sdk.deadlines import AsyncWatch, SyncWatch, Watch
from lghard.sdk.performing import cancel, cancel_sync, perform, perform_sync
from lghard.sdk.policy import RunPolicy

H = TypeVar("H", HttpClient, SyncHttpClient)


class Session(Generic[H]):
    """What is known of the runs of one session, in either kind of client.

    Silence counts from `run.start` or `run.respond` on, until the run is done or asks for
    something.
    """

    def __init__(self, http: H, policy: RunPolicy) -> None:
        self.http: H = http
        self.policy = policy
        self.run_ids: list[str] = []
        self.is_started = False

    def is_working(self, stream: AsyncThreadStream | SyncThreadStream) -> bool:
        """Whether the server owes an event."""
        done = stream._run_done
        return self.is_started and not stream.interrupted and not (done and done.done())

    def notice(self, result: Any) -> None:
        """Take note of a run that was started."""
        if isinstance(result, dict) and result.get("run_id"):
            self.run_ids.append(str(result["run_id"]))

    def opening(self, thread_id: str, metadata: dict[str, object] | None) -> RunCall:
        """Return what the session begins with: its thread is created, if its id says with what."""
        return RunCall(thread_id=thread_id, base_url=self.http.client.base_url, metadata=metadata)

    def calls(self, thread_id: str, headers: Mapping[str, str] | None) -> list[RunCall]:
        """Return the session's runs as what can be cancelled."""
        is_cancelled = self.policy.on_disconnect == "cancel"
        return [
            RunCall(
                thread_id=thread_id,
                run_id=run_id,
                base_url=self.http.client.base_url,
                headers=headers,
                cancelled_when_late=is_cancelled,
            )
            for run_id in (*self.run_ids,) or (None,)
        ]


class _AsyncSessionWatch(AsyncWatch):
    owes: Callable[[], bool] = staticmethod(lambda: False)

    def _is_silent(self) -> bool:
        return super()._is_silent() and self.owes()


class _SyncSessionWatch(SyncWatch):
    owes: Callable[[], bool] = staticmethod(lambda: False)
    close: Callable[[], None] = staticmethod(lambda: None)

    def _is_silent(self) -> bool:
        return super()._is_silent() and self.owes()

    def _wake(self) -> None:
        self.close()


class HardenedThreadStream(AsyncThreadStream):
    """An `AsyncThreadStream` whose block ends when a limit of the policy has passed.

    Raises:
        RunDeadlineError: On leaving the block.
    """

    thread_metadata: dict[str, object] | None = None
    _session: Session[HttpClient]
    _watch: _AsyncSessionWatch

    @classmethod
    def of(
        cls, http: HttpClient, policy: RunPolicy, transport: str, make: Callable[..., Any]
    ) -> Self:
        """Return the session that `make` makes of a client, as one with limits."""
        watch = _AsyncSessionWatch(policy, has_events=transport == "sse")
        watched = copy(http)
        watched.client = cast("httpx.AsyncClient", _WatchedClient(http.client, watch))
        stream = make(watched)
        stream.__class__ = cls  # so that every argument of the SDK arrives, today's and tomorrow's
        stream._session, stream._watch = Session(http, policy), watch
        watch.owes = lambda: stream._session.is_working(stream)
        for name in ("start", "respond"):
            setattr(stream.run, name, stream._noticing(getattr(stream.run, name)))
        return cast("Self", stream)

    if not TYPE_CHECKING:

        async def __aenter__(self):
            self._watch.__enter__()
            try:
                call = self._session.opening(self.thread_id, self.thread_metadata)
                await perform(self._session.http, call.prepare(), self._headers)
                return await super().__aenter__()
            except BaseException as error:  # a cancellation, too: may be the watch's own
                await self._leave(error)
                raise

        async def __aexit__(self, exc_type, exc, tb):
            try:
                await super().__aexit__(exc_type, exc, tb)
            finally:
                await self._leave(exc)

    async def _leave(self, error: BaseException | None) -> None:
        is_late = self._watch.caught() and isinstance(error, CancelledError)
        self._watch.stop()
        if not is_late:
            return
        calls = self._session.calls(self.thread_id, self._headers)
        failure = calls[-1].deadline_error(self._watch)
        for call in calls:
            if call.must_cancel(failure):
                call.annotate(failure, await cancel(self._session.http, call))
        raise failure from None

    def _noticing(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        async def noticing(*args: Any, **options: Any) -> Any:
            self._session.is_started = True
            self._watch.begins()
            result = await method(*args, **options)
            self._session.notice(result)
            return result

        return noticing


class HardenedSyncThreadStream(SyncThreadStream):
    """A `SyncThreadStream` whose block ends when a limit of the policy has passed.

    Raises:
        RunDeadlineError: On leaving the block.
    """

    thread_metadata: dict[str, object] | None = None
    _session: Session[SyncHttpClient]
    _watch: _SyncSessionWatch

    @classmethod
    def of(
        cls, http: SyncHttpClient, policy: RunPolicy, transport: str, make: Callable[..., Any]
    ) -> Self:
        """Return the session that `make` makes of a client, as one with limits."""
        watch = _SyncSessionWatch(policy, has_events=transport == "sse")
        watched = copy(http)
        watched.client = cast("httpx.Client", _WatchedSyncClient(http.client, watch))
        stream = make(watched)
        stream.__class__ = cls  # so that every argument of the SDK arrives, today's and tomorrow's
        stream._session, stream._watch = Session(http, policy), watch
        watch.owes = lambda: stream._session.is_working(stream)
        watch.close = stream.close
        for name in ("start", "respond"):
            setattr(stream.run, name, stream._noticing(getattr(stream.run, name)))
        return cast("Self", stream)

    if not TYPE_CHECKING:

        def __enter__(self):
            self._watch.__enter__()
            try:
                call = self._session.opening(self.thread_id, self.thread_metadata)
                perform_sync(self._session.http, call.prepare(), self._headers)
                return super().__enter__()
            except BaseException:  # whatever it is, the watch has a thread to end
                self._watch.stop()
                raise

        def __exit__(self, exc_type, exc, tb):
            is_late = self._watch.expired is not None
            self._watch.stop()
            super().__exit__(exc_type, exc, tb)
            if is_late and (exc is None or isinstance(exc, Exception)):
                raise self._late() from exc

    def _late(self) -> RunDeadlineError:
        calls = self._session.calls(self.thread_id, self._headers)
        failure = calls[-1].deadline_error(self._watch)
        for call in calls:
            if call.must_cancel(failure):
                call.annotate(failure, cancel_sync(self._session.http, call))
        return failure

    def _noticing(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def noticing(*args: Any, **options: Any) -> Any:
            self._session.is_started = True
            self._watch.begins()
            result = method(*args, **options)
            self._session.notice(result)
            return result

        return noticing


class _WatchedClient:
    """An httpx client that tells a watch of the events it receives."""

    def __init__(self, client: httpx.AsyncClient, watch: Watch) -> None:
        self._client = client
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    @asynccontextmanager
    async def stream(self, *args: Any, **options: Any) -> AsyncIterator[httpx.Response]:
        async with self._client.stream(*args, **options) as response:
            response.stream = _WatchedBytes(
                cast("httpx.AsyncByteStream", response.stream), self._watch
            )
            yield response


class _WatchedSyncClient:
    """The same for the synchronous client, and a command waits no longer than the limits."""

    def __init__(self, client: httpx.Client, watch: Watch) -> None:
        self._client = client
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def post(self, *args: Any, **options: Any) -> httpx.Response:
        return self._client.post(
            *args, **{"timeout": self._watch.timeout(self._client.timeout), **options}
        )

    def send(self, *args: Any, **options: Any) -> httpx.Response:
        response = self._client.send(*args, **options)
        if options.get("stream"):
            stream = cast("httpx.SyncByteStream", response.stream)
            response.stream = _WatchedSyncBytes(stream, self._watch)
        return response


class _WatchedBytes(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, watch: Watch) -> None:
        self._stream = stream
        self._watch = watch

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            if _is_event(chunk):
                self._watch.progress()
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


class _WatchedSyncBytes(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, watch: Watch) -> None:
        self._stream = stream
        self._watch = watch

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            if _is_event(chunk):
                self._watch.progress()
            yield chunk

    def close(self) -> None:
        self._stream.close()


def _is_event(chunk: bytes) -> bool:
    """Whether these bytes are more than a heartbeat, which is a comment."""
    return not chunk.lstrip().startswith(b":") or b"data:" in chunk
