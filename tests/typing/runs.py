"""What type checkers see of runs that are created once, and of runs in the background."""

from typing import assert_type

import langgraph_sdk
from langgraph_sdk.schema import Run

from lghard import (
    RunHandle,
    RunResult,
    await_run,
    create_run_once,
    forget_run_key,
    start_run,
)


async def with_async_client() -> None:
    """Each is awaited."""
    client = langgraph_sdk.get_client()
    run = await create_run_once(client, None, "agent", key="k", input={}, ttl=60)
    assert_type(run, Run)
    assert_type(await forget_run_key(client, "k"), None)
    handle = await start_run(client, "id", "agent", webhook="https://example.com")
    assert_type(handle, RunHandle)
    assert_type(handle["run_id"], str)
    assert_type(await await_run(client, handle, timeout=None), RunResult)
    assert_type(await await_run(client, run), RunResult)
    create_run_once(client, None, "agent")  # pyright: ignore[reportCallIssue]


def with_sync_client() -> None:
    """None is."""
    client = langgraph_sdk.get_sync_client()
    run = create_run_once(client, None, "agent", key="k", input={})
    assert_type(run, Run)
    assert_type(forget_run_key(client, "k"), None)
    handle = start_run(client, "id", "agent", key="k")
    assert_type(handle, RunHandle)
    assert_type(await_run(client, handle), RunResult)
    assert_type(await_run(client, run).status, str)
