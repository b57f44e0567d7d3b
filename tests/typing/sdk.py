"""What type checkers see of the SDK's clients: nothing but the SDK's own."""

from collections.abc import AsyncIterator, Iterator
from typing import assert_type

import langgraph_sdk
from langgraph_sdk.client import (
    LangGraphClient,
    RunsClient,
    SyncLangGraphClient,
    SyncRunsClient,
)
from langgraph_sdk.schema import Run, StreamPart, StreamPartV2

from lghard import RunCancelledError, RunPolicy, get_client, get_sync_client, harden_client


async def clients(thread_id: str) -> None:
    """They are the SDK's, and so are their overloads."""
    client = get_client(url="http://server", policy=RunPolicy(deadline=60))
    assert_type(client, LangGraphClient)
    assert_type(client.runs, RunsClient)
    assert_type(harden_client(langgraph_sdk.get_client()), LangGraphClient)
    assert_type(client.runs.stream(thread_id, "agent"), AsyncIterator[StreamPart])
    assert_type(client.runs.stream(None, "agent", version="v2"), AsyncIterator[StreamPartV2])
    assert_type(await client.runs.create(None, "agent"), Run)
    async with client as entered:
        assert_type(entered, LangGraphClient)


def sync_clients(thread_id: str) -> None:
    """So are the synchronous ones."""
    client = get_sync_client(url="http://server", timeout=(5, 300, 300, 5), policy=RunPolicy())
    assert_type(client, SyncLangGraphClient)
    assert_type(client.runs, SyncRunsClient)
    assert_type(harden_client(langgraph_sdk.get_sync_client()), SyncLangGraphClient)
    assert_type(client.runs.stream(thread_id, "agent"), Iterator[StreamPart])


def mistakes(thread_id: str) -> None:
    """What the SDK's hints refuse is refused."""
    client = get_client()
    client.runs.stream(thread_id, "agent", on_disconnect="stop")  # type: ignore[call-overload]
    client.runs.stream(None, "agent", multitask_strategy="reject")  # type: ignore[call-overload]
    client.runs.stream(thread_id, "agent", no_such_argument=1)  # type: ignore[call-overload]
    get_client(url=1)  # type: ignore[arg-type]
    RunPolicy(on_disconnect="stop")  # type: ignore[arg-type]


def policies(error: RunCancelledError) -> None:
    """A policy is a value, and an error says which run it is about."""
    assert_type(RunPolicy.resumable(deadline=5.0), RunPolicy)
    assert_type((error.reason, error.run_id), tuple[str, str | None])
