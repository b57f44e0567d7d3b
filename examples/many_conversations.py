"""Five hundred conversations at once on four connections, with a network between.

    uv run examples/many_conversations.py

A real Postgres is started, two milliseconds away; nothing is mocked. Each conversation goes through
three nodes that think for a second, as if they asked a model, and the checkpointer has four
connections. First with lghard, then with LangGraph's own checkpointer on a
psycopg pool of the same size, which is stopped after ten seconds.
"""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from operator import add
from time import monotonic
from typing import Annotated, Any, TypedDict

import psycopg
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lghard import open_checkpointer
from lghard.testing import proxy_process, temporary_postgres

CONVERSATIONS = 500
NODES = 3
THINKING = 1.0  # seconds in each node
CONNECTIONS = 4
ONE_WAY = 0.001  # seconds to the server, and as many back

Saver = BaseCheckpointSaver[str]
OpenSaver = Callable[[str], AbstractAsyncContextManager[Saver]]


@asynccontextmanager
async def lghard(conninfo: str) -> AsyncIterator[Saver]:
    async with open_checkpointer(conninfo, max_size=CONNECTIONS, timeout=60) as saver:
        yield saver


@asynccontextmanager
async def upstream(conninfo: str) -> AsyncIterator[Saver]:
    async with AsyncConnectionPool[psycopg.AsyncConnection[DictRow]](
        conninfo,
        max_size=CONNECTIONS,
        kwargs={"autocommit": True, "row_factory": dict_row, "prepare_threshold": 0},
        open=False,
    ) as pool:
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        yield saver


class State(TypedDict):
    """What a conversation remembers."""

    said: Annotated[list[str], add]


async def think(state: State, number: int) -> State:
    await asyncio.sleep(THINKING)
    return {"said": [f"{number} after {len(state['said'])}"]}


def build_graph(saver: Saver) -> CompiledStateGraph[State]:
    builder = StateGraph(State)
    names = [f"node {number}" for number in range(NODES)]
    for number, name in enumerate(names):
        builder.add_node(name, partial(think, number=number))
    for before, after in zip([START, *names], names, strict=False):
        builder.add_edge(before, after)
    return builder.compile(checkpointer=saver)


@dataclass
class Outcome:
    """What became of the conversations of one checkpointer.

    Attributes:
        patience: seconds until those are stopped that have not finished.
    """

    name: str
    patience: float
    finished: int = 0
    correct: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    errors: set[str] = field(default_factory=set)

    def column(self) -> list[str]:
        return [
            f"{self.finished} of {CONVERSATIONS}",
            f"{self.correct} of {CONVERSATIONS}",
            f"{self.longest:.1f} s" if self.finished else "none finished",
            f"{self.seconds:.1f} s",
            ", ".join(sorted(self.errors)) or "none",
        ]


async def converse(
    open_saver: OpenSaver, conninfo: str, outcome: Outcome, step: Callable[[], Any]
) -> None:
    """All conversations at once."""
    async with open_saver(conninfo) as saver:
        graph = build_graph(saver)
        began = monotonic()
        talks = [
            asyncio.create_task(one_conversation(graph, f"thread {number}", outcome, step))
            for number in range(CONVERSATIONS)
        ]
        _, pending = await asyncio.wait(talks, timeout=outcome.patience)
        outcome.seconds = monotonic() - began
        for talk in pending:
            talk.cancel()
            outcome.errors.add(f"not finished after {outcome.patience:.0f} s")
        await asyncio.gather(*talks, return_exceptions=True)


async def one_conversation(
    graph: CompiledStateGraph[State], thread_id: str, outcome: Outcome, step: Callable[[], Any]
) -> None:
    began = monotonic()
    try:
        state = await graph.ainvoke(
            {"said": [thread_id]}, {"configurable": {"thread_id": thread_id}}
        )
    except psycopg.Error as error:
        outcome.errors.add(f"{type(error).__name__}: {error}".splitlines()[0])
        return
    outcome.finished += 1
    outcome.correct += state["said"] == [thread_id, *(f"{n} after {n + 1}" for n in range(NODES))]
    outcome.longest = max(outcome.longest, monotonic() - began)
    step()


def table(console: Console, outcomes: list[Outcome]) -> Table:
    title = (
        f"{CONVERSATIONS} conversations of {NODES} nodes, each thinking for {THINKING:.0f} s, on "
        f"{CONNECTIONS} connections"
    )
    shown = Table("", *(outcome.name for outcome in outcomes), title=title)
    shown.box = box.ROUNDED if console.is_terminal else box.ASCII
    rows = ["finished", "state correct", "longest of them", "time", "error"]
    for row in zip(rows, *(outcome.column() for outcome in outcomes), strict=True):
        shown.add_row(*row)
    return shown


async def main(console: Console) -> list[Outcome]:
    outcomes = [Outcome("lghard", 60.0), Outcome("AsyncPostgresSaver", 10.0)]
    savers: list[OpenSaver] = [lghard, upstream]
    with (
        temporary_postgres() as server,
        proxy_process(server.host, server.port, latency=ONE_WAY) as proxy,
        Progress(console=console, disable=not console.is_terminal) as progress,
    ):
        for open_saver, outcome in zip(savers, outcomes, strict=True):
            if not console.is_terminal:
                console.print(f"{outcome.name}: {CONVERSATIONS} conversations ...")
            bar = progress.add_task(outcome.name, total=CONVERSATIONS)
            conninfo = proxy.conninfo(await asyncio.to_thread(server.create_database))
            await converse(open_saver, conninfo, outcome, partial(progress.advance, bar))
    return outcomes


if __name__ == "__main__":
    for name in ("psycopg", "asyncio"):  # they report whatever is stopped in the middle
        logging.getLogger(name).setLevel(logging.CRITICAL)
    console = Console()
    ours, theirs = asyncio.run(main(console))
    console.print(table(console, [ours, theirs]))
    sys.exit(ours.correct != CONVERSATIONS)
