"""A LangGraph server for all tests of the SDK's clients, and what its graphs did."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import langgraph_sdk
import pytest
from langgraph_sdk.client import LangGraphClient, SyncLangGraphClient

from lghard import RunPolicy
from lghard.sdk import circuit
from lghard.testing import FaultProxy, LangGraphServer
from tests.sdk.clients import Client, open_client

HERE = Path(__file__).parent
Connect = Callable[..., Awaitable[Client]]
GRAPHS = ("slow", "sync", "stubborn", "fail", "ask", "echo")


@pytest.fixture(autouse=True)
def _closed_circuits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port may have been that of another server, which did not answer in a test before."""
    monkeypatch.setattr(circuit, "_breakers", {})


@dataclass(frozen=True)
class Effects:
    """What the steps of the graphs did: one line of a file each, with the key of their input."""

    path: Path

    def new_key(self) -> str:
        """A key for the input of one test."""
        return uuid.uuid4().hex

    def lines(self, key: str) -> list[dict[str, Any]]:
        """The lines of all runs whose input had this key."""
        every = map(json.loads, self.path.read_bytes().splitlines())
        return [line for line in every if line["key"] == key]

    def steps(self, key: str) -> list[int]:
        """The numbers of the steps done."""
        return [line["step"] for line in self.lines(key)]

    def runs(self, key: str) -> set[str]:
        """The runs that did something."""
        return {line["run_id"] for line in self.lines(key)}


@pytest.fixture(scope="session")
def effects(tmp_path_factory: pytest.TempPathFactory) -> Effects:
    path = tmp_path_factory.mktemp("effects") / "effects.jsonl"
    path.touch()
    return Effects(path)


@pytest.fixture(scope="session")
def server(
    lghard_langgraph_server: Callable[..., LangGraphServer], effects: Effects
) -> LangGraphServer:
    """One server for the session, with the graphs slow, sync, stubborn, fail, ask and echo."""
    return lghard_langgraph_server(
        {name: f"./graphs.py:{name}" for name in GRAPHS},
        directory=HERE,
        env={"LGHARD_TEST_EFFECTS": str(effects.path)},
        allow_blocking=True,
    )


@pytest.fixture
async def proxy(server: LangGraphServer) -> AsyncIterator[FaultProxy]:
    """A network to the server, to be broken."""
    parts = urlsplit(server.url)
    async with FaultProxy(parts.hostname, parts.port) as proxy:
        yield proxy


@pytest.fixture
async def stock(server: LangGraphServer) -> AsyncIterator[LangGraphClient]:
    """The SDK's own client, straight to the server."""
    async with langgraph_sdk.get_client(url=server.url, api_key=None) as client:
        yield client


@pytest.fixture
def sync_stock(server: LangGraphServer) -> Iterator[SyncLangGraphClient]:
    """The SDK's own synchronous client, straight to the server."""
    with langgraph_sdk.get_sync_client(url=server.url, api_key=None) as client:
        yield client


@pytest.fixture(params=["async", "sync"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which half of the SDK is used."""
    return request.param


@pytest.fixture
async def connect(kind: str, server: LangGraphServer) -> AsyncIterator[Connect]:
    """A function that opens a client of this kind, straight to the server or through a proxy."""
    async with AsyncExitStack() as stack:

        async def connect(
            proxy: FaultProxy | None = None, policy: RunPolicy | None = None, *, stock: bool = False
        ) -> Client:
            url = server.url if proxy is None else proxy.url(server.url)
            client = asynccontextmanager(open_client)(kind, url, policy, stock=stock)
            return await stack.enter_async_context(client)

        yield connect


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Awaitable[Any]]:
    """Poll until a condition holds, awaited if need be; thirty seconds are for busy machines."""

    async def until(condition: Callable[[], Any]) -> Any:
        async with asyncio.timeout(30):
            while True:
                value = condition()
                value = await value if isinstance(value, Awaitable) else value
                if value:
                    return value
                await asyncio.sleep(0.01)

    return until
