"""The runs of a client: its policy where the caller says nothing."""

import sys
import warnings
from collections.abc import Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any

import httpx
from langgraph_sdk.client import HttpClient, RunsClient, SyncHttpClient, SyncRunsClient

from lghard.sdk.calls import RunCall
from lghard.sdk.ids import checks_thread_ids, server_id, thread_metadata
from lghard.sdk.performing import perform, perform_sync
from lghard.sdk.policy import RunPolicy
from lghard.sdk.reading import CallHttp
from lghard.sdk.sync_reading import SyncCallHttp

_TRUE = {"true", "yes", "1"}


def started(
    policy: RunPolicy, thread_id: object, options: dict[str, Any], base_url: httpx.URL
) -> RunCall:
    """Fill in the policy's defaults for a `stream` or `wait`, and tell what that means.

    Args:
        policy: The client's.
        thread_id: As the caller gave it; None for a stateless run.
        options: The caller's keyword arguments; what he did not say is added.
        base_url: The server.
    """
    is_ours = policy.reconnect and thread_id is not None and "on_disconnect" not in options
    if is_ours:
        options["on_disconnect"] = "continue"
    options.setdefault("on_disconnect", policy.on_disconnect)
    add_defaults(policy, thread_id, options)
    is_cancelled = options["on_disconnect"] == "cancel"
    return RunCall(
        thread_id=None if thread_id is None else server_id(thread_id),
        base_url=base_url,
        metadata=thread_metadata(thread_id),
        headers=options.get("headers"),
        cancelled_by_us=is_ours and policy.on_disconnect == "cancel",
        cancelled_when_late=is_cancelled or (is_ours and policy.on_disconnect == "cancel"),
        resumable=not is_cancelled,
        raises=options.get("raise_error", True),
    )


def streamed(
    policy: RunPolicy, thread_id: object, options: dict[str, Any], base_url: httpx.URL
) -> RunCall:
    """Do the same for a `stream`, which can be taken up only if the server keeps its events."""
    is_ours = policy.reconnect and thread_id is not None and "on_disconnect" not in options
    if is_ours:
        options.setdefault("stream_resumable", True)
    call = started(policy, thread_id, options, base_url)
    call.resumable = call.resumable and bool(options.get("stream_resumable"))
    return call


def joined(
    policy: RunPolicy,
    thread_id: object,
    run_id: object,
    options: Mapping[str, Any],
    base_url: httpx.URL,
) -> RunCall:
    """Tell what a `join` or `join_stream` means for a run that somebody else may own.

    Nothing is added to it: that one of its readers leaves is no reason to end a run. That it is
    late is one, unless the caller or the policy says that runs go on.
    """
    params = options.get("params") or {}
    asked = options.get("cancel_on_disconnect", params.get("cancel_on_disconnect"))
    is_cancelled = str(asked).lower() in _TRUE
    return RunCall(
        thread_id=server_id(thread_id),
        run_id=str(run_id),
        base_url=base_url,
        headers=options.get("headers"),
        cancelled_when_late=is_cancelled or (asked is None and policy.on_disconnect == "cancel"),
        resumable=not is_cancelled,
        stream_mode=options.get("stream_mode"),
        last_event_id=options.get("last_event_id"),
    )


def created(
    policy: RunPolicy, thread_id: object, options: dict[str, Any], base_url: httpx.URL
) -> RunCall:
    """Fill in the policy's defaults for a `create`, which waits for nothing."""
    add_defaults(policy, thread_id, options)
    return RunCall(
        thread_id=None if thread_id is None else server_id(thread_id),
        base_url=base_url,
        metadata=thread_metadata(thread_id),
        headers=options.get("headers"),
    )


def stopping(
    thread_id: object, run_id: object, options: Mapping[str, Any], base_url: httpx.URL
) -> RunCall:
    """Tell what a `cancel` that waits means: it may be taken up, and the run ends as it ends."""
    return RunCall(
        thread_id=server_id(thread_id),
        run_id=str(run_id),
        base_url=base_url,
        headers=options.get("headers"),
        resumable=True,
        settles=False,
    )


def add_defaults(policy: RunPolicy, thread_id: object, options: dict[str, Any]) -> None:
    """Fill in what applies to every new run; `None` from the caller stays `None`."""
    options.setdefault("durability", policy.durability)
    if thread_id is None:
        return
    options.setdefault("if_not_exists", policy.if_not_exists)
    if "multitask_strategy" in options:
        return
    if not options.get("after_seconds"):
        options["multitask_strategy"] = policy.multitask_strategy
    elif policy.multitask_strategy in {"interrupt", "rollback"}:
        warnings.warn(
            f"a run with after_seconds waits on its thread, where the next message cancels it"
            f" (multitask_strategy={policy.multitask_strategy!r} of the RunPolicy): give it a"
            " thread of its own or none, or pass a multitask_strategy to say that this is meant",
            RuntimeWarning,
            stacklevel=_level_of_caller(),
        )


def _level_of_caller() -> int:
    """How far up the stack, for who calls this, the code is that called lghard."""
    level, frame = 0, sys._getframe(1)
    while frame.f_back and str(frame.f_globals.get("__name__")).startswith("lghard."):
        level, frame = level + 1, frame.f_back
    return level + 1


def add_batch_defaults(policy: RunPolicy, payloads: list[Any]) -> list[Any]:
    """Fill in what applies to the stateless runs of a batch."""
    if policy.durability is None:
        return payloads
    return [{"durability": policy.durability, **payload} for payload in payloads]


@checks_thread_ids
class HardenedRunsClient(RunsClient):
    """A `RunsClient` under a policy."""

    def __init__(self, http: HttpClient, policy: RunPolicy) -> None:
        super().__init__(http)
        self._policy = policy

    def _calling(self, call: RunCall) -> RunsClient:
        return RunsClient(CallHttp(self.http, call, self._policy))

    if not TYPE_CHECKING:
        # Hidden, so that overloads, hints and arguments of today and tomorrow are the SDK's own.

        @wraps(RunsClient.stream)
        def stream(self, thread_id, *args, **options):
            call = streamed(self._policy, thread_id, options, self.http.client.base_url)
            return self._calling(call).stream(call.thread_id, *args, **options)

        @wraps(RunsClient.wait)
        async def wait(self, thread_id, *args, **options):
            call = started(self._policy, thread_id, options, self.http.client.base_url)
            return await self._calling(call).wait(call.thread_id, *args, **options)

        @wraps(RunsClient.create)
        async def create(self, thread_id, *args, **options):
            call = created(self._policy, thread_id, options, self.http.client.base_url)
            await perform(self.http, call.prepare(), call.headers)
            return await super().create(call.thread_id, *args, **options)

        @wraps(RunsClient.create_batch)
        async def create_batch(self, payloads, **options):
            return await super().create_batch(add_batch_defaults(self._policy, payloads), **options)

        @wraps(RunsClient.join)
        async def join(self, thread_id, run_id, **options):
            call = joined(self._policy, thread_id, run_id, options, self.http.client.base_url)
            return await self._calling(call).join(call.thread_id, run_id, **options)

        @wraps(RunsClient.join_stream)
        def join_stream(self, thread_id, run_id, **options):
            call = joined(self._policy, thread_id, run_id, options, self.http.client.base_url)
            call.from_beginning = False
            return self._calling(call).join_stream(call.thread_id, run_id, **options)

        @wraps(RunsClient.cancel)
        async def cancel(self, thread_id, run_id, **options):
            if not options.get("wait"):
                return await super().cancel(server_id(thread_id), run_id, **options)
            call = stopping(thread_id, run_id, options, self.http.client.base_url)
            return await self._calling(call).cancel(call.thread_id, run_id, **options)


@checks_thread_ids
class HardenedSyncRunsClient(SyncRunsClient):
    """A `SyncRunsClient` under a policy."""

    def __init__(self, http: SyncHttpClient, policy: RunPolicy) -> None:
        super().__init__(http)
        self._policy = policy

    def _calling(self, call: RunCall) -> SyncRunsClient:
        return SyncRunsClient(SyncCallHttp(self.http, call, self._policy))

    if not TYPE_CHECKING:
        # Hidden, so that overloads, hints and arguments of today and tomorrow are the SDK's own.

        @wraps(SyncRunsClient.stream)
        def stream(self, thread_id, *args, **options):
            call = streamed(self._policy, thread_id, options, self.http.client.base_url)
            return self._calling(call).stream(call.thread_id, *args, **options)

        @wraps(SyncRunsClient.wait)
        def wait(self, thread_id, *args, **options):
            call = started(self._policy, thread_id, options, self.http.client.base_url)
            return self._calling(call).wait(call.thread_id, *args, **options)

        @wraps(SyncRunsClient.create)
        def create(self, thread_id, *args, **options):
            call = created(self._policy, thread_id, options, self.http.client.base_url)
            perform_sync(self.http, call.prepare(), call.headers)
            return super().create(call.thread_id, *args, **options)

        @wraps(SyncRunsClient.create_batch)
        def create_batch(self, payloads, **options):
            return super().create_batch(add_batch_defaults(self._policy, payloads), **options)

        @wraps(SyncRunsClient.join)
        def join(self, thread_id, run_id, **options):
            call = joined(self._policy, thread_id, run_id, options, self.http.client.base_url)
            return self._calling(call).join(call.thread_id, run_id, **options)

        @wraps(SyncRunsClient.join_stream)
        def join_stream(self, thread_id, run_id, **options):
            call = joined(self._policy, thread_id, run_id, options, self.http.client.base_url)
            call.from_beginning = False
            return self._calling(call).join_stream(call.thread_id, run_id, **options)

        @wraps(SyncRunsClient.cancel)
        def cancel(self, thread_id, run_id, **options):
            if not options.get("wait"):
                return super().cancel(server_id(thread_id), run_id, **options)
            call = stopping(thread_id, run_id, options, self.http.client.base_url)
            return self._calling(call).cancel(call.thread_id, run_id, **options)
