"""A `RemoteGraph` over a hardened client is protected as the client is; one by URL is not."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from langgraph.pregel.remote import RemoteException, RemoteGraph
from langgraph_sdk.client import LangGraphClient

from lghard import RunCancelledError, get_client, get_sync_client, harden_client
from lghard.testing import LangGraphServer
from tests.sdk.conftest import Effects

Until = Callable[[Callable[[], Any]], Awaitable[Any]]
STEPS = 6


def graph_of(server: LangGraphServer, how: str) -> RemoteGraph:
    if how == "client":
        clients = {
            "client": get_client(url=server.url, api_key=None),
            "sync_client": get_sync_client(url=server.url, api_key=None),
        }
        return RemoteGraph("slow", **clients)
    graph = RemoteGraph("slow", url=server.url)
    if how == "url, hardened":
        graph.client = harden_client(graph.client)
        graph.sync_client = harden_client(graph.sync_client)
    return graph


async def leave(graph: RemoteGraph, kind: str, run_input: Any, config: Any) -> None:
    """Read two updates, and leave."""

    def read() -> None:
        for count, _ in enumerate(graph.stream(run_input, config, stream_mode="updates"), 1):
            if count == 2:
                return

    if kind == "sync":
        await asyncio.to_thread(read)
        return
    count = 0
    async for _ in graph.astream(run_input, config, stream_mode="updates"):
        count += 1
        if count == 2:
            break


@pytest.mark.parametrize("how", ["client", "url, hardened", "url"])
async def test_abandoned_remote_graph(
    server: LangGraphServer, stock: LangGraphClient, effects: Effects, kind: str, how: str
) -> None:
    """Its run stops with its reader, unless it was made with a URL and left at that."""
    key, thread_id = effects.new_key(), (await stock.threads.create())["thread_id"]
    graph = graph_of(server, how)
    run_input = {"key": key, "steps": STEPS, "pause": 0.3}
    await leave(graph, kind, run_input, {"configurable": {"thread_id": thread_id}})
    await graph.client.aclose()
    graph.sync_client.close()
    (run,) = await stock.runs.list(thread_id)
    await stock.runs.join(thread_id, run["run_id"])
    expected = [*range(STEPS)] if how == "url" else [0, 1]
    assert expected == effects.steps(key)


async def test_remote_graph_tells_that_it_was_superseded(
    server: LangGraphServer, stock: LangGraphClient, effects: Effects, until: Until
) -> None:
    """What `ainvoke` returns is the end of the run, or nothing."""
    key, thread_id = effects.new_key(), (await stock.threads.create())["thread_id"]
    graph, config = graph_of(server, "client"), {"configurable": {"thread_id": thread_id}}
    first = asyncio.create_task(graph.ainvoke({"key": key, "steps": STEPS, "pause": 0.3}, config))
    await until(lambda: effects.steps(key) == [0, 1])
    await stock.runs.wait(thread_id, "echo", input={}, multitask_strategy="interrupt")
    # Servers before 0.16 send an event about it, of which `RemoteGraph` makes an error of its own.
    with pytest.raises((RunCancelledError, RemoteException)):
        await first
    await graph.client.aclose()
    graph.sync_client.close()
