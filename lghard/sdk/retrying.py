"""Reads and idempotent writes, tried again when a failure may pass by itself."""

import time
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from random import uniform
from typing import Any, TypeVar

import httpx
from langgraph_sdk.client import HttpClient, SyncHttpClient
from langgraph_sdk.errors import NotFoundError
from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_exception

from lghard.resilience import RetryQuota, backoff
from lghard.sdk.methods import Repeat, repeat_of
from lghard.sdk.outcomes import is_worth_a_retry, retry_after, status_of

T = TypeVar("T")

LONGEST_PAUSE = 30.0
"""Seconds of `Retry-After` up to which a caller is made to wait; beyond, he hears the answer."""
_BACKOFF = backoff(first=0.1, longest=2.0)
_REPEATABLE = frozenset({Repeat.FREELY, Repeat.WRITE, Repeat.ENDING})


class Retries:
    """How often the requests of one client are tried again, for any number of threads and loops.

    Args:
        most: How often one request is.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._quota = RetryQuota()

    async def run(self, repeat: Repeat, request: Callable[[], Awaitable[T]]) -> T | None:
        """The answer to a request, repeated as far as `repeat` allows."""
        self._quota.begin()
        try:
            return await request()
        except httpx.HTTPError as error:
            if not self._may_repeat(repeat, error):
                raise
            first: list[httpx.HTTPError] = [error]

        async def attempt() -> T:
            _raise_first(first)
            return await request()

        try:
            return await AsyncRetrying(**self._options(repeat))(attempt)
        except NotFoundError:
            if repeat is not Repeat.ENDING:
                raise
            return None  # an earlier attempt has ended what this one did not find any more

    def run_sync(
        self, repeat: Repeat, request: Callable[[], T], sleep: Callable[[float], None]
    ) -> T | None:
        """The same for a sync client, which nobody can wake but `sleep`."""
        self._quota.begin()
        try:
            return request()
        except httpx.HTTPError as error:
            if not self._may_repeat(repeat, error):
                raise
            first: list[httpx.HTTPError] = [error]

        def attempt() -> T:
            _raise_first(first)
            return request()

        try:
            return Retrying(**self._options(repeat), sleep=sleep)(attempt)
        except NotFoundError:
            if repeat is not Repeat.ENDING:
                raise
            return None  # an earlier attempt has ended what this one did not find any more

    def _options(self, repeat: Repeat) -> dict[str, Any]:
        return {
            "stop": self._must_stop,
            "wait": _pause,
            "retry": retry_if_exception(partial(self._may_repeat, repeat)),
            "reraise": True,
        }

    def _may_repeat(self, repeat: Repeat, error: BaseException) -> bool:
        if not self._most or repeat not in _REPEATABLE or not is_worth_a_retry(error):
            return False
        return repeat is Repeat.FREELY or not _may_be_under_way(error)

    def _must_stop(self, state: RetryCallState) -> bool:
        if (
            state.attempt_number <= self._most
            and state.upcoming_sleep <= LONGEST_PAUSE
            and self._quota.take()
        ):
            return False
        if error := state.outcome and state.outcome.exception():
            error.add_note(f"lghard: tried {state.attempt_number} times")
        return True


def _raise_first(first: list[httpx.HTTPError]) -> None:
    """The first attempt was made before, without what repeating costs."""
    if first:
        raise first.pop()


def _may_be_under_way(error: BaseException) -> bool:
    is_timeout = isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout)
    return is_timeout or status_of(error) == HTTPStatus.GATEWAY_TIMEOUT


def _pause(state: RetryCallState) -> float:
    """As long as the server asks for, and a little more for each to come at another time."""
    error = state.outcome.exception() if state.outcome else None
    asked = retry_after(error)
    drawn = _BACKOFF(state)
    return drawn if asked is None else asked + uniform(0.0, 0.1 * asked)  # noqa: S311


class RetryingHttp(HttpClient):
    """An `HttpClient` that repeats what may be repeated."""

    def __init__(self, client: httpx.AsyncClient, retries: Retries) -> None:
        super().__init__(client)
        self._retries = retries

    async def get(self, path: str, **request: Any) -> Any:
        """Send a `GET` request."""
        return await self._retries.run(Repeat.FREELY, partial(super().get, path, **request))

    async def post(self, path: str, *, json: Any, **request: Any) -> Any:
        """Send a `POST` request."""
        return await self._retries.run(
            repeat_of("POST", path, json), partial(super().post, path, json=json, **request)
        )

    async def put(self, path: str, **request: Any) -> Any:
        """Send a `PUT` request."""
        return await self._retries.run(
            repeat_of("PUT", path), partial(super().put, path, **request)
        )

    async def patch(self, path: str, **request: Any) -> Any:
        """Send a `PATCH` request."""
        return await self._retries.run(
            repeat_of("PATCH", path), partial(super().patch, path, **request)
        )

    async def delete(self, path: str, **request: Any) -> None:
        """Send a `DELETE` request."""
        await self._retries.run(repeat_of("DELETE", path), partial(super().delete, path, **request))


class RetryingSyncHttp(SyncHttpClient):
    """A `SyncHttpClient` that repeats what may be repeated.

    Attributes:
        sleep: What waits between two attempts.
    """

    def __init__(self, client: httpx.Client, retries: Retries) -> None:
        super().__init__(client)
        self._retries = retries
        self.sleep: Callable[[float], None] = time.sleep

    def _run(self, repeat: Repeat, request: Callable[[], Any]) -> Any:
        return self._retries.run_sync(repeat, request, self.sleep)

    def get(self, path: str, **request: Any) -> Any:
        """Send a `GET` request."""
        return self._run(Repeat.FREELY, partial(super().get, path, **request))

    def post(self, path: str, *, json: Any, **request: Any) -> Any:
        """Send a `POST` request."""
        return self._run(
            repeat_of("POST", path, json), partial(super().post, path, json=json, **request)
        )

    def put(self, path: str, **request: Any) -> Any:
        """Send a `PUT` request."""
        return self._run(repeat_of("PUT", path), partial(super().put, path, **request))

    def patch(self, path: str, **request: Any) -> Any:
        """Send a `PATCH` request."""
        return self._run(repeat_of("PATCH", path), partial(super().patch, path, **request))

    def delete(self, path: str, **request: Any) -> None:
        """Send a `DELETE` request."""
        self._run(repeat_of("DELETE", path), partial(super().delete, path, **request))
