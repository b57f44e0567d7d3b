"""The threads and schedules of a client, under a policy."""

from functools import wraps
from typing import TYPE_CHECKING, Any

from langgraph_sdk.client import (
    CronClient,
    HttpClient,
    SyncCronClient,
    SyncHttpClient,
    SyncThreadsClient,
    ThreadsClient,
)

from lghard.sdk.ids import checks_thread_ids, server_id, thread_metadata
from lghard.sdk.performing import perform, perform_sync
from lghard.sdk.policy import RunPolicy
from lghard.sdk.runs import created
from lghard.sdk.thread_streams import HardenedSyncThreadStream, HardenedThreadStream


def named(options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `threads.create`, with what the thread's id stands for."""
    thread_id = options.get("thread_id")
    if thread_id is None:
        return options
    options = {**options, "thread_id": server_id(thread_id)}
    metadata = thread_metadata(thread_id)
    if metadata is not None:
        options["metadata"] = {**metadata, **(options.get("metadata") or {})}
    return options


def scheduled(policy: RunPolicy, options: dict[str, Any]) -> dict[str, Any]:
    """Fill in what applies to the runs of a schedule.

    Nobody reads them, and they do not interrupt what a user has going.
    """
    return {"durability": policy.durability, **options}


@checks_thread_ids
class HardenedThreadsClient(ThreadsClient):
    """A `ThreadsClient` that knows what a thread id is."""

    def __init__(self, http: HttpClient, policy: RunPolicy) -> None:
        super().__init__(http)
        self._policy = policy

    if not TYPE_CHECKING:

        @wraps(ThreadsClient.create)
        async def create(self, **options):
            return await super().create(**named(options))

        @wraps(ThreadsClient.stream)
        def stream(self, thread_id=None, **options):
            name = None if thread_id is None else server_id(thread_id)
            stream = HardenedThreadStream.of(
                self.http,
                self._policy,
                options.get("transport", "sse"),
                lambda http: ThreadsClient(http).stream(name, **options),
            )
            stream.thread_metadata = thread_metadata(thread_id)
            return stream


@checks_thread_ids
class HardenedSyncThreadsClient(SyncThreadsClient):
    """A `SyncThreadsClient` that knows what a thread id is."""

    def __init__(self, http: SyncHttpClient, policy: RunPolicy) -> None:
        super().__init__(http)
        self._policy = policy

    if not TYPE_CHECKING:

        @wraps(SyncThreadsClient.create)
        def create(self, **options):
            return super().create(**named(options))

        @wraps(SyncThreadsClient.stream)
        def stream(self, thread_id=None, **options):
            name = None if thread_id is None else server_id(thread_id)
            stream = HardenedSyncThreadStream.of(
                self.http,
                self._policy,
                options.get("transport", "sse"),
                lambda http: SyncThreadsClient(http).stream(name, **options),
            )
            stream.thread_metadata = thread_metadata(thread_id)
            return stream


@checks_thread_ids
class HardenedCronClient(CronClient):
    """A `CronClient` under a policy."""

    def __init__(self, http: HttpClient, policy: RunPolicy) -> None:
        super().__init__(http)
        self._policy = policy

    if not TYPE_CHECKING:

        @wraps(CronClient.create)
        async def create(self, *args, **options):
            return await super().create(*args, **scheduled(self._policy, options))

        @wraps(CronClient.create_for_thread)
        async def create_for_thread(self, thread_id, *args, **options):
            call = created(RunPolicy(), thread_id, {**options}, self.http.client.base_url)
            await perform(self.http, call.prepare(), call.headers)
            return await super().create_for_thread(
                call.thread_id, *args, **scheduled(self._policy, options)
            )


@checks_thread_ids
class HardenedSyncCronClient(SyncCronClient):
    """A `SyncCronClient` under a policy."""

    def __init__(self, http: SyncHttpClient, policy: RunPolicy) -> None:
        super().__init__(http)
        self._policy = policy

    if not TYPE_CHECKING:

        @wraps(SyncCronClient.create)
        def create(self, *args, **options):
            return super().create(*args, **scheduled(self._policy, options))

        @wraps(SyncCronClient.create_for_thread)
        def create_for_thread(self, thread_id, *args, **options):
            call = created(RunPolicy(), thread_id, {**options}, self.http.client.base_url)
            perform_sync(self.http, call.prepare(), call.headers)
            return super().create_for_thread(
                call.thread_id, *args, **scheduled(self._policy, options)
            )
