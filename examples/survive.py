"""Forty LangGraph runs against a database that dies ten times a second, and restarts once.

    uv run examples/survive.py

A real Postgres is started; nothing is mocked. While the runs are under way, every connection to it
is terminated each 100 ms, and in the middle the server restarts. First with lghard's checkpointer,
then with LangGraph's own on a psycopg pool that checks its connections.
"""

import asyncio
import logging
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import psycopg
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from lghard import open_checkpointer
from lghard.testing import TemporaryPostgres, temporary_postgres

RUNS = 40
NODES = 6
MODEL_SECONDS = 0.3  # what a node waits for its pretended model
POOL_SIZE = 20
STORM_SECONDS = 4.0  # how long connections are being killed; without faults the runs take two
PATIENCE = 15.0  # seconds after which a run counts as lost

Builder = StateGraph[MessagesState, None, MessagesState, MessagesState]
Saver = Callable[[str], AbstractAsyncContextManager[AsyncPostgresSaver]]


def build_graph() -> Builder:
    """A chain of nodes; each asks a pretended model and appends its answer."""
    builder = StateGraph(MessagesState)
    for number in range(1, NODES + 1):
        builder.add_node(f"step {number}", answer)
        builder.add_edge(START if number == 1 else f"step {number - 1}", f"step {number}")
    builder.add_edge(f"step {NODES}", END)
    return builder


async def answer(state: MessagesState) -> dict[str, Any]:
    await asyncio.sleep(MODEL_SECONDS)
    return {"messages": [AIMessage(f"answer {len(state['messages'])}")]}


def expected(run: int) -> list[str]:
    return [f"question {run}", *(f"answer {number}" for number in range(1, NODES + 1))]


@asynccontextmanager
async def lghard(conninfo: str) -> AsyncIterator[AsyncPostgresSaver]:
    async with open_checkpointer(conninfo, max_size=POOL_SIZE) as checkpointer:
        yield checkpointer


@asynccontextmanager
async def upstream(conninfo: str) -> AsyncIterator[AsyncPostgresSaver]:
    async with AsyncConnectionPool[psycopg.AsyncConnection[DictRow]](
        conninfo,
        max_size=POOL_SIZE,
        kwargs={"autocommit": True, "row_factory": dict_row},
        check=AsyncConnectionPool.check_connection,
        open=False,
    ) as pool:
        checkpointer = AsyncPostgresSaver(pool)
        await checkpointer.setup()
        yield checkpointer


@dataclass
class Outcome:
    """What became of the runs of one saver."""

    name: str
    started_at: float = 0.0
    seconds: float = 0.0
    finished: int = 0
    verified: int = 0
    killed: int = 0
    restarts: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def lost(self) -> int:
        return self.errors.total()

    def column(self) -> list[str]:
        worst = self.errors.most_common(1)
        return [
            f"{self.finished} of {RUNS}",
            f"{self.verified} of {RUNS}",
            str(self.lost),
            f"{worst[0][1]} times: {worst[0][0]}" if worst else "none",
            str(self.killed),
            str(self.restarts),
            f"{self.seconds:.1f} s" if self.seconds else "",
        ]


async def survive(saver: Saver, server: TemporaryPostgres, outcome: Outcome) -> None:
    """All runs under fire; afterwards, in peace, what the database holds is compared."""
    conninfo = await asyncio.to_thread(server.create_database)
    async with saver(conninfo) as checkpointer:
        graph = build_graph().compile(checkpointer=checkpointer)
        outcome.started_at = monotonic()
        done = asyncio.Event()
        faults = asyncio.create_task(break_things(server, outcome, done))
        await asyncio.gather(*(one_run(graph, run, outcome) for run in range(RUNS)))
        outcome.seconds = monotonic() - outcome.started_at
        done.set()
        await faults
    # A saver that has never seen trouble reads what the other one has left.
    async with upstream(conninfo) as checkpointer:
        graph = build_graph().compile(checkpointer=checkpointer)
        for run in range(RUNS):
            state = await graph.aget_state(config_of(run))
            messages = [message.content for message in state.values.get("messages", [])]
            outcome.verified += messages == expected(run) and not state.next


async def one_run(graph: Any, run: int, outcome: Outcome) -> None:
    question = HumanMessage(f"question {run}")
    try:
        async with asyncio.timeout(PATIENCE):
            await graph.ainvoke({"messages": [question]}, config_of(run))
    except psycopg.Error as error:
        outcome.errors[f"{type(error).__name__}: {error}".splitlines()[0]] += 1
    except TimeoutError:
        outcome.errors[f"not finished after {PATIENCE:.0f} s"] += 1
    else:
        outcome.finished += 1


def config_of(run: int) -> RunnableConfig:
    return {"configurable": {"thread_id": str(run)}}


async def break_things(server: TemporaryPostgres, outcome: Outcome, done: asyncio.Event) -> None:
    """Terminate every backend each 100 ms; restart the server once, in the middle of the runs."""
    while not done.is_set() and monotonic() < outcome.started_at + STORM_SECONDS:
        if not outcome.restarts and monotonic() > outcome.started_at + NODES * MODEL_SECONDS / 2:
            await asyncio.to_thread(server.restart)
            outcome.restarts += 1
        outcome.killed += await asyncio.to_thread(server.terminate_backends)
        await asyncio.sleep(0.1)


def table(console: Console, outcomes: list[Outcome]) -> Table:
    title = f"{RUNS} concurrent runs of {NODES} nodes; every connection is killed each 100 ms"
    shown = Table("", *(outcome.name for outcome in outcomes), title=title)
    shown.box = box.ROUNDED if console.is_terminal else box.ASCII
    rows = ["runs finished", "state correct", "runs lost", "error", "killed", "restarts", "time"]
    for row in zip(rows, *(outcome.column() for outcome in outcomes), strict=True):
        shown.add_row(*row)
    return shown


async def main(console: Console) -> list[Outcome]:
    outcomes = [Outcome("lghard"), Outcome("AsyncPostgresSaver, check=")]
    savers: list[Saver] = [lghard, upstream]
    with temporary_postgres() as server, Live(console=console, transient=True) as live:
        for saver, outcome in zip(savers, outcomes, strict=True):
            if not console.is_terminal:
                console.print(f"{outcome.name}: {RUNS} runs under fire ...")
            job = asyncio.create_task(survive(saver, server, outcome))
            while not job.done():
                await asyncio.wait([job], timeout=0.1)
                live.update(table(console, outcomes) if console.is_terminal else "")
            await job
    return outcomes


if __name__ == "__main__":
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # it reports each connection that dies
    logging.getLogger("lghard").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it reports runs that are stopped
    console = Console()
    ours, theirs = asyncio.run(main(console))
    console.print(table(console, [ours, theirs]))
    sys.exit(0 if ours.verified == ours.finished == RUNS else 1)
