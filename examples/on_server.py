"""Thirty runs on a LangGraph server whose database dies ten times a second, and restarts once.

    uv run examples/on_server.py

A real Postgres and a real `langgraph dev` are started, with isolated loops; nothing is mocked. The
server is configured by `examples/server/langgraph.json`: first with lghard's checkpointer, then
with LangGraph's own on a psycopg pool. Four connections are allowed to the process.
"""

import asyncio
import json
import logging
import sys
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import psycopg
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient
from rich import box
from rich.console import Console
from rich.table import Table

from lghard.testing import LangGraphServer, TemporaryPostgres, langgraph_server, temporary_postgres

FOLDER = Path(__file__).parent / "server"
RUNS = 30
JOBS = 10  # on which the server works at the same time, each in an event loop of its own
BUDGET = 4
NODES = 4
STORM_SECONDS = 5.0  # how long connections are being killed; without faults the runs take four
PATIENCE = 10.0  # seconds after which a run counts as lost
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "question"}]}
EXPECTED = ["question", *(f"answer {number}" for number in range(1, NODES + 1))]


@dataclass
class Outcome:
    """What became of the runs with one checkpointer."""

    name: str
    checkpointer: str
    finished: int = 0
    correct: int = 0
    peak: int = 0
    killed: int = 0
    restarts: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def column(self) -> list[str]:
        errors = [f"{count} times: {text}" for text, count in self.errors.most_common(1)]
        return [
            f"{self.finished} of {RUNS}",
            f"{self.correct} of {RUNS}",
            *(errors or ["none"]),
            f"{self.peak} of {BUDGET}",
            str(self.killed),
            str(self.restarts),
        ]


async def measure(outcome: Outcome, postgres: TemporaryPostgres) -> None:
    """Serve all runs under fire; afterwards, in peace, look at what the database holds."""
    conninfo = await asyncio.to_thread(postgres.create_database)
    with serving(outcome.checkpointer, conninfo) as server:
        threads = await ask(server, postgres, conninfo, outcome)
    with PostgresSaver.from_conn_string(conninfo) as saver:
        for thread in threads:
            found = saver.get_tuple({"configurable": {"thread_id": thread}})
            messages = found.checkpoint["channel_values"].get("messages", []) if found else []
            outcome.correct += [message.content for message in messages] == EXPECTED


def serving(checkpointer: str, conninfo: str) -> AbstractContextManager[LangGraphServer]:
    config = json.loads((FOLDER / "langgraph.json").read_text())
    env = {
        "LGHARD_DATABASE_URI": conninfo,
        "LGHARD_POOL_MAX_SIZE": str(BUDGET),
        "BG_JOB_ISOLATED_LOOPS": "true",
    }
    return langgraph_server(
        config["graphs"],
        directory=FOLDER,
        env=env,
        checkpointer=checkpointer or config["checkpointer"]["path"],
        jobs=JOBS,
    )


async def ask(
    server: LangGraphServer, postgres: TemporaryPostgres, conninfo: str, outcome: Outcome
) -> list[str]:
    async with get_client(url=server.url) as client:
        threads = [(await client.threads.create())["thread_id"] for _ in range(RUNS)]
        done = asyncio.Event()
        faults = asyncio.create_task(break_things(postgres, conninfo, outcome, done))
        await asyncio.gather(*(one_run(client, thread, outcome) for thread in threads))
        done.set()
        await faults
    return threads


async def one_run(client: LangGraphClient, thread: str, outcome: Outcome) -> None:
    try:
        async with asyncio.timeout(PATIENCE):
            state = await client.runs.wait(thread, "agent", input=QUESTION, raise_error=False)
    except TimeoutError:
        outcome.errors[f"not finished after {PATIENCE:.0f} s"] += 1
    else:
        assert isinstance(state, dict)
        if "__error__" in state:
            outcome.errors[state["__error__"]["error"]] += 1
        else:
            outcome.finished += 1


async def break_things(
    postgres: TemporaryPostgres, conninfo: str, outcome: Outcome, done: asyncio.Event
) -> None:
    """Terminate every backend each 100 ms; restart the database once, in the middle of the runs."""
    began = monotonic()
    while not done.is_set() and monotonic() < began + STORM_SECONDS:
        if not outcome.restarts and monotonic() > began + STORM_SECONDS / 2:
            await asyncio.to_thread(postgres.restart)
            outcome.restarts += 1
        outcome.peak = max(outcome.peak, await asyncio.to_thread(backends, conninfo))
        outcome.killed += await asyncio.to_thread(postgres.terminate_backends, database=conninfo)
        await asyncio.sleep(0.1)


def backends(conninfo: str) -> int:
    """How many connections to the database there are, besides the one that asks."""
    query = "SELECT count(*) - 1 FROM pg_stat_activity WHERE datname = current_database()"
    with psycopg.connect(conninfo) as conn:
        (count,) = conn.execute(query).fetchone() or (0,)
        return int(count)


def table(console: Console, outcomes: list[Outcome]) -> Table:
    title = f"{RUNS} runs on a server whose connections are killed each 100 ms"
    shown = Table("", *(outcome.name for outcome in outcomes), title=title)
    shown.box = box.ROUNDED if console.is_terminal else box.ASCII
    rows = ["runs finished", "state correct", "error", "peak backends", "killed", "restarts"]
    for row in zip(rows, *(outcome.column() for outcome in outcomes), strict=True):
        shown.add_row(*row)
    return shown


async def main(console: Console) -> list[Outcome]:
    outcomes = [
        Outcome("lghard", ""),
        Outcome("AsyncPostgresSaver, check=", "./upstream.py:checkpointer"),
    ]
    with temporary_postgres() as postgres:
        for outcome in outcomes:
            console.print(f"{outcome.name}: {RUNS} runs under fire ...")
            await measure(outcome, postgres)
    return outcomes


if __name__ == "__main__":
    logging.getLogger("httpx").setLevel(logging.ERROR)
    console = Console()
    ours, theirs = asyncio.run(main(console))
    console.print(table(console, [ours, theirs]))
    sys.exit(0 if ours.finished == ours.correct == RUNS and ours.peak <= BUDGET else 1)
