"""Fifty orders, each asked for twice, over a network that loses answers: none is charged twice.

    uv run examples/run_once.py

A real LangGraph server is started, offline; nothing is mocked. Each order is charged for by a run.
Two replicas got the message that asks for it, and each tries until it has an answer; the first
fifty answers to requests that create runs are lost. First with lghard's `create_run_once`, then
with the SDK's `runs.create` in a retry loop. What was charged is counted in the ledger that the
graph writes.
"""

import asyncio
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

import httpx
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient
from langgraph_sdk.schema import Run
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lghard import await_run, create_run_once
from lghard.testing import FaultProxy, langgraph_server

HERE = Path(__file__).parent
ORDERS = 50
CREATING_A_RUN = b"/runs HTTP"  # how the first line of such a request ends

Ask = Callable[[LangGraphClient, str], Awaitable[Run]]


async def lghard(client: LangGraphClient, order: str) -> Run:
    return await create_run_once(client, None, "orders", key=order, input={"order": order})


async def upstream(client: LangGraphClient, order: str) -> Run:
    thread = await client.threads.create()
    while True:
        with suppress(httpx.TransportError):
            return await client.runs.create(thread["thread_id"], "orders", input={"order": order})


@dataclass
class Outcome:
    """What became of the orders that were asked for in one way."""

    name: str
    charged: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    lost: int = 0
    seconds: float = 0.0

    def column(self) -> list[str]:
        often = sum(times > 1 for times in self.charged.values())
        return [
            f"{len(self.charged)} of {ORDERS}",
            str(often),
            str(self.charged.total()),
            f"{self.answered} of {2 * ORDERS}",
            str(self.lost),
            f"{self.seconds:.1f} s",
        ]


async def charge_all(url: str, ask: Ask, outcome: Outcome, ledger: Path, show: Progress) -> None:
    task = show.add_task(outcome.name, total=2 * ORDERS)
    parts = urlsplit(url)
    began = monotonic()
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(FaultProxy(parts.hostname or "", parts.port or 0))
        proxy.lose_responses(ORDERS, containing=CREATING_A_RUN)
        replicas = [get_client(url=proxy.url(url), api_key=None) for _ in range(2)]
        for replica in replicas:
            await stack.enter_async_context(replica)
        room = asyncio.Semaphore(20)

        async def one(replica: LangGraphClient, order: str) -> None:
            async with room:
                run = await ask(replica, order)
                result = await await_run(replica, run)
            outcome.answered += result.values["receipt"] == f"receipt of {order}"
            show.advance(task)

        orders = [f"{outcome.name} {number}" for number in range(ORDERS)]
        await asyncio.gather(*(one(replica, order) for order in orders for replica in replicas))
        outcome.lost = proxy.lost
        outcome.seconds = monotonic() - began
        while await replicas[0].threads.search(status="busy", limit=1):  # noqa: ASYNC110
            await asyncio.sleep(0.1)  # for the runs that nobody waits for
    lines = (await asyncio.to_thread(ledger.read_text)).splitlines()
    outcome.charged = Counter(line for line in lines if line.startswith(f"{outcome.name} "))


def table(console: Console, outcomes: list[Outcome]) -> Table:
    title = f"{ORDERS} orders, each asked for by 2 replicas; {ORDERS} answers are lost"
    shown = Table("", *(outcome.name for outcome in outcomes), title=title)
    shown.box = box.ROUNDED if console.is_terminal else box.ASCII
    rows = ["orders charged", "more than once", "charges", "answered", "answers lost", "time"]
    for row in zip(rows, *(outcome.column() for outcome in outcomes), strict=True):
        shown.add_row(*row)
    return shown


def main(console: Console, folder: str) -> list[Outcome]:
    ledger = Path(folder) / "ledger"
    ledger.touch()
    outcomes = [Outcome("create_run_once"), Outcome("runs.create, retried")]
    graphs, env = {"orders": "./server/orders.py:graph"}, {"CHARGED": str(ledger)}
    with (
        langgraph_server(graphs, directory=HERE, env=env, allow_blocking=True) as server,
        Progress(console=console, disable=not console.is_terminal) as show,
    ):
        for ask, outcome in zip([lghard, upstream], outcomes, strict=True):
            asyncio.run(charge_all(server.url, ask, outcome, ledger, show))
    return outcomes


if __name__ == "__main__":
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = main(console, folder)
    console.print(table(console, [ours, theirs]))
    sys.exit(0 if set(ours.charged.values()) == {1} and len(ours.charged) == ORDERS else 1)
