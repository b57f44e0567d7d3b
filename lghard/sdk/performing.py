"""Asks a server what a `RunCall` wants to know, in either kind of client."""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import httpx
from langgraph_sdk.client import HttpClient, SyncHttpClient

from lghard.sdk.calls import Ask, RunCall, Sleep, Steps
from lghard.sdk.deadlines import SyncWatch
from lghard.sdk.outcomes import FAILURES

CANCEL_TIMEOUT = 2.0
"""Seconds that somebody who has given up waits for the server to hear of it."""
_NO_ANSWER = f"no answer within {CANCEL_TIMEOUT:g} s"
_DONE_ALREADY = {404, 409}
_CLIENT_ERROR = 400


async def perform(http: HttpClient, steps: Steps, headers: Mapping[str, str] | None) -> None:
    """Do what the steps ask for."""
    advance: Callable[[], Ask | Sleep] = partial(next, steps)
    while (step := _next(advance)) is not None:
        try:
            answer = await _answer(http, step, headers)
        except FAILURES as error:
            advance = partial(steps.throw, error)
        else:
            advance = partial(steps.send, answer)


def perform_sync(
    http: SyncHttpClient,
    steps: Steps,
    headers: Mapping[str, str] | None,
    watch: SyncWatch | None = None,
) -> None:
    """Do what the steps ask for."""
    advance: Callable[[], Ask | Sleep] = partial(next, steps)
    while (step := _next(advance)) is not None:
        try:
            answer = _sync_answer(http, step, headers, watch)
        except FAILURES as error:
            advance = partial(steps.throw, error)
        else:
            advance = partial(steps.send, answer)


async def cancel(http: HttpClient, call: RunCall) -> str | None:
    """Have the run cancelled; return why that failed, if it did.

    The request goes on when the caller is cancelled, or has waited long enough.
    """
    if call.path is None:
        return call.unnamed
    request = asyncio.create_task(_cancel(http, call))
    done, _ = await asyncio.wait({request}, timeout=CANCEL_TIMEOUT)
    return request.result() if done else _NO_ANSWER


def cancel_sync(http: SyncHttpClient, call: RunCall) -> str | None:
    """Have the run cancelled; return why that failed, if it did."""
    if call.path is None:
        return call.unnamed
    problems: list[str | None] = []
    # In a thread, since a transport may try to connect for longer than anybody should wait.
    request = threading.Thread(
        target=lambda: problems.append(_cancel_sync(http, call)), name="lghard-cancel", daemon=True
    )
    try:
        request.start()
    except RuntimeError as error:  # the interpreter is shutting down
        return repr(error)
    request.join(CANCEL_TIMEOUT)
    return problems[0] if problems else _NO_ANSWER


async def _cancel(http: HttpClient, call: RunCall) -> str | None:
    try:
        return _verdict(await http.client.post(f"{call.path}/cancel", **_cancelling(call)))
    except Exception as error:  # also the caller's own, of his `auth` or hooks: it hides no other
        return repr(error)


def _cancel_sync(http: SyncHttpClient, call: RunCall) -> str | None:
    try:
        return _verdict(http.client.post(f"{call.path}/cancel", **_cancelling(call)))
    except Exception as error:  # as above
        return repr(error)


def _cancelling(call: RunCall) -> dict[str, Any]:
    params = {"wait": 0, "action": "interrupt"}
    return {"params": params, "headers": call.headers, "timeout": CANCEL_TIMEOUT}


def _verdict(response: httpx.Response) -> str | None:
    if response.status_code < _CLIENT_ERROR or response.status_code in _DONE_ALREADY:
        return None
    return f"{response.status_code} {response.reason_phrase}"


def _next(advance: Callable[[], Ask | Sleep]) -> Ask | Sleep | None:
    try:
        return advance()
    except StopIteration:
        return None


async def _answer(http: HttpClient, step: Ask | Sleep, headers: Mapping[str, str] | None) -> Any:
    if isinstance(step, Sleep):
        return await asyncio.sleep(step.seconds)
    if step.method == "GET":
        return await http.get(step.path, params=step.params, headers=headers)
    return await http.post(step.path, json=step.json, params=step.params, headers=headers)


def _sync_answer(
    http: SyncHttpClient,
    step: Ask | Sleep,
    headers: Mapping[str, str] | None,
    watch: SyncWatch | None,
) -> Any:
    if isinstance(step, Sleep):
        return (watch.sleep if watch is not None else time.sleep)(step.seconds)
    if step.method == "GET":
        return http.get(step.path, params=step.params, headers=headers)
    return http.post(step.path, json=step.json, params=step.params, headers=headers)
