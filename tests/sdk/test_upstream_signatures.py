"""The clients are the SDK's own: types, signatures, and whatever a later SDK adds."""

import asyncio
import inspect
from pathlib import Path
from typing import Any

import httpx
import langgraph_sdk
import pytest
from langchain_protocol import RunStartParams, SubscribeParams
from langgraph_sdk.client import LangGraphClient, SyncLangGraphClient

from lghard import RunPolicy, get_client, get_sync_client, harden_client
from tests.sdk.methods import ARGUMENTS, table

ROOMS = ("runs", "threads", "crons", "assistants", "store")
DOCS = Path(__file__).parents[2] / "docs" / "reference" / "sdk.md"
URL = "http://127.0.0.1:1"
CLIENTS = [
    (langgraph_sdk.get_client(url=URL), get_client(url=URL)),
    (langgraph_sdk.get_sync_client(url=URL), get_sync_client(url=URL)),
]
PAIRS = pytest.mark.parametrize(("stock", "hardened"), CLIENTS, ids=["async", "sync"])


def methods(client: Any) -> dict[str, Any]:
    """The public methods of a client's rooms."""
    return {
        f"{room}.{name}": method
        for room in ROOMS
        for name, method in inspect.getmembers(getattr(client, room), inspect.ismethod)
        if not name.startswith("_")
    }


@PAIRS
def test_signatures_are_the_sdks(stock: Any, hardened: Any) -> None:
    """Each method has the arguments, the hints and the kind of the SDK's own."""
    for name, method in methods(hardened).items():
        own = methods(stock)[name]
        assert inspect.signature(own) == inspect.signature(method), name
        assert inspect.iscoroutinefunction(own) == inspect.iscoroutinefunction(method), name
        assert own.__doc__ == method.__doc__


@PAIRS
def test_rooms_are_the_sdks(stock: Any, hardened: Any) -> None:
    """`isinstance` holds for the client, and for each of its rooms."""
    assert isinstance(hardened, type(stock))
    for room in (*ROOMS, "http"):
        assert isinstance(getattr(hardened, room), type(getattr(stock, room))), room


@PAIRS
def test_every_method_and_argument_is_decided_about(stock: Any, hardened: Any) -> None:
    """One that a later SDK adds fails here, until it is decided about."""
    undecided = {
        name: set(inspect.signature(method).parameters) - ARGUMENTS.get(name, set())
        for name, method in methods(stock).items()
    }
    assert {} == {name: arguments for name, arguments in undecided.items() if arguments}
    assert set(methods(stock)) <= set(ARGUMENTS)


def test_rooms_are_all() -> None:
    """A client has no other rooms than those above."""
    for stock, _ in CLIENTS:
        assert {*ROOMS, "http"} == {name for name in vars(stock) if not name.startswith("_")}


def test_documentation_has_the_table() -> None:
    """What is decided is what the reference says."""
    assert table() in DOCS.read_text()


@pytest.mark.parametrize(
    ("own", "ours"),
    [
        (langgraph_sdk.get_client, get_client),
        (langgraph_sdk.get_sync_client, get_sync_client),
    ],
)
def test_factories_have_the_sdks_arguments_and_a_policy(own: Any, ours: Any) -> None:
    """And pass on whatever a later SDK takes."""
    expected = [*inspect.signature(own).parameters.values()]
    parameters = [*inspect.signature(ours).parameters.values()]
    assert (expected, "policy") == (parameters[:-1], parameters[-1].name)
    with pytest.raises(TypeError, match="no_such_argument"):
        ours(no_such_argument=True)


async def test_client_that_exists_keeps_its_connections() -> None:
    """Hardening takes over what there is: headers, timeouts, and an in-process server."""
    async with langgraph_sdk.get_client(url=None, headers={"x-mine": "1"}, timeout=7) as stock:
        hardened = harden_client(stock, policy=RunPolicy(deadline=1.0))
        assert ("1", 7) == (
            hardened.http.client.headers["x-mine"],
            hardened.http.client.timeout.read,
        )
        assert RunPolicy(deadline=1.0) == hardened.policy
        assert RunPolicy() == harden_client(hardened).policy
        assert "http://api" in repr(hardened)


def test_harden_client_takes_clients_only() -> None:
    """The error says what it got."""
    with pytest.raises(TypeError, match="not AsyncClient"):
        harden_client(httpx.AsyncClient())


async def test_closing_closes_the_connections() -> None:
    """`async with` and `with` end as the SDK's own do."""
    async with get_client(url=URL) as client:
        assert not client.http.client.is_closed
    assert client.http.client.is_closed
    with get_sync_client(url=URL) as sync_client:
        assert not sync_client.http.client.is_closed
    assert sync_client.http.client.is_closed


def test_v3_wire_has_no_disconnect_option() -> None:
    """When it learns one, sessions of a thread can be protected, and the docs be corrected."""
    for params in (RunStartParams, SubscribeParams):
        assert "disconnect" not in " ".join(params.__annotations__)
    for stock in (LangGraphClient, SyncLangGraphClient):
        client = stock(httpx.AsyncClient() if stock is LangGraphClient else httpx.Client())
        stream = client.threads.stream(assistant_id="agent")
        for method in (client.threads.stream, stream.run.start, stream.run.respond):
            names = " ".join(inspect.signature(method).parameters)
            assert "disconnect" not in names
            assert "multitask" not in names
    assert asyncio.iscoroutinefunction(get_client(url=URL).runs.wait)
