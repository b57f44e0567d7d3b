"""A graph factory, as a LangGraph server calls it: for every run, concurrently, on two loops.

    uv run examples/shared_pool.py

A real Postgres is started; nothing is mocked. Two event loops in two threads each call the factory
for thirty runs at once: first one that asks lghard for the loop's shared pool, then one that opens
a pool each time.
"""

import asyncio
import logging
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool
from rich import box
from rich.console import Console
from rich.table import Table

from lghard import HardenedAsyncPostgresSaver, open_checkpointer, shared_pool
from lghard.testing import temporary_postgres

LOOPS = 2
RUNS = 30  # at once, in each loop
MODEL_SECONDS = 0.5  # what a run waits for its pretended model
MAX_CONNECTIONS = 100  # Postgres' own default
BUDGET = 8  # connections of this process
PATIENCE = 5.0  # seconds that a run may wait for a connection

Graph = CompiledStateGraph[MessagesState, None, MessagesState, MessagesState]
Factory = Callable[[str], AbstractAsyncContextManager[Graph]]


async def answer(state: MessagesState) -> dict[str, Any]:
    await asyncio.sleep(MODEL_SECONDS)
    return {"messages": [AIMessage(f"You said: {state['messages'][-1].content}")]}


builder = StateGraph(MessagesState)
builder.add_node("agent", answer)
builder.add_edge(START, "agent")
builder.add_edge("agent", END)


@asynccontextmanager
async def pool_per_call(conninfo: str) -> AsyncIterator[Graph]:
    kwargs = {"autocommit": True, "row_factory": dict_row}
    async with AsyncConnectionPool[psycopg.AsyncConnection[DictRow]](
        conninfo, kwargs=kwargs, open=False, timeout=PATIENCE
    ) as pool:
        yield builder.compile(checkpointer=AsyncPostgresSaver(pool))


@asynccontextmanager
async def lghard(conninfo: str) -> AsyncIterator[Graph]:
    pool = await shared_pool(conninfo, max_size=BUDGET, loops=LOOPS)
    yield builder.compile(checkpointer=HardenedAsyncPostgresSaver(pool))


@dataclass
class Outcome:
    """What became of the runs of one factory, and what it took."""

    name: str
    finished: int = 0
    peak: int = 0
    refused: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def column(self) -> list[str]:
        errors = [f"{count} times: {text}" for text, count in self.errors.most_common(1)]
        return [
            f"{self.finished} of {LOOPS * RUNS}",
            f"{self.peak} of {MAX_CONNECTIONS}",
            f"{self.refused} times",
            *(errors or ["none"]),
        ]


async def serve(factory: Factory, conninfo: str, loop: int, outcome: Outcome) -> None:
    """One loop of the server: all of its runs at once."""
    await asyncio.gather(
        *(one_run(factory, conninfo, f"{loop}-{run}", outcome) for run in range(RUNS))
    )


async def one_run(factory: Factory, conninfo: str, thread_id: str, outcome: Outcome) -> None:
    try:
        async with factory(conninfo) as graph:
            await graph.ainvoke(
                {"messages": [HumanMessage("Hello")]}, {"configurable": {"thread_id": thread_id}}
            )
    except psycopg.Error as error:
        outcome.errors[f"{type(error).__name__}: {error}".splitlines()[0]] += 1
    else:
        outcome.finished += 1


def watch(conninfo: str, outcome: Outcome, done: threading.Event) -> None:
    """Note how many backends there are at most, besides the one that asks."""
    query = "SELECT count(*) - 1 FROM pg_stat_activity WHERE backend_type = 'client backend'"
    with psycopg.connect(conninfo, autocommit=True) as conn:
        while not done.wait(0.01):
            (backends,) = conn.execute(query).fetchone() or (0,)
            outcome.peak = max(outcome.peak, backends)


def measure(name: str, factory: Factory) -> Outcome:
    """Call a factory from `LOOPS` loops in as many threads, on a server of its own."""
    outcome, done = Outcome(name), threading.Event()
    settings = {"max_connections": str(MAX_CONNECTIONS)}
    with temporary_postgres(settings=settings) as server:
        asyncio.run(create_tables(server.conninfo))
        watching = threading.Thread(target=watch, args=(server.conninfo, outcome, done))
        watching.start()
        serving = [
            threading.Thread(
                target=asyncio.run, args=[serve(factory, server.conninfo, loop, outcome)]
            )
            for loop in range(LOOPS)
        ]
        for thread in serving:
            thread.start()
        for thread in serving:
            thread.join()
        done.set()
        watching.join()
        log = (server.directory / "server.log").read_text(errors="replace")
        outcome.refused = log.count("too many clients") + log.count("remaining connection slots")
    return outcome


async def create_tables(conninfo: str) -> None:
    async with open_checkpointer(conninfo):
        pass


def table(console: Console, outcomes: list[Outcome]) -> Table:
    title = f"{LOOPS} event loops with {RUNS} runs each; a factory that ..."
    shown = Table("", *(outcome.name for outcome in outcomes), title=title)
    shown.box = box.ROUNDED if console.is_terminal else box.ASCII
    columns = [outcome.column() for outcome in outcomes]
    for row in zip(["runs finished", "peak backends", "refused", "error"], *columns, strict=True):
        shown.add_row(*row)
    return shown


if __name__ == "__main__":
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)  # it reports each refused connection
    console = Console()
    ours = measure("shares a pool: lghard", lghard)
    theirs = measure("opens a pool each time", pool_per_call)
    console.print(table(console, [ours, theirs]))
    sys.exit(0 if ours.finished == LOOPS * RUNS and ours.peak <= BUDGET else 1)
