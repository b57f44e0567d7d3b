"""Whose conversation is it? Two tenants, a forged session id, and twenty writers of one thread.

    uv run examples/multi_tenant.py

A real Postgres is started; nothing is mocked. First two tenants whose naive thread ids are the same
text talk to one graph, and one of them asks for the other's session. Then twenty tasks in four
processes take turns on one thread, five turns each: first without `thread_lock`, then with it.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lghard import (
    HardenedAsyncPostgresSaver,
    Principal,
    Role,
    ThreadAccess,
    ThreadAccessError,
    ThreadNamespace,
    open_checkpointer,
    thread_lock,
)
from lghard.testing import temporary_postgres

PROCESSES = 4
TASKS = 5  # in each process
TURNS = 5  # of each task
THINKING = 0.01  # seconds that a turn takes beside its checkpoints
ALL = PROCESSES * TASKS * TURNS

NAMESPACE = ThreadNamespace("tenant", "user", "session")
ACCESS = ThreadAccess(NAMESPACE, roles={"member": Role(own={"read", "write"})})

# Whom two tokens prove these to be; their sessions are what they say themselves.
ADA = Principal("acme-east", "ada", roles={"member"})
BOB = Principal("acme", "east-ada", roles={"member"})

Step = Callable[[], Any]


async def answer(state: MessagesState) -> dict[str, Any]:
    await asyncio.sleep(THINKING)
    return {"messages": [AIMessage(f"re: {state['messages'][-1].content}")]}


def build_graph(saver: BaseCheckpointSaver[str]) -> Any:
    builder = StateGraph(MessagesState).add_node("answer", answer)
    return builder.add_edge(START, "answer").add_edge("answer", END).compile(checkpointer=saver)


async def say(graph: Any, thread_id: str, text: str) -> None:
    await graph.ainvoke({"messages": [HumanMessage(text)]}, config_of(thread_id))


async def read(graph: Any, thread_id: str) -> list[str]:
    state = await graph.aget_state(config_of(thread_id))
    return [message.content for message in state.values.get("messages", [])]


def config_of(thread_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id}}


@dataclass
class Outcome:
    """What becomes of conversations, with lghard and without."""

    name: str
    tenants: str = ""
    forged: str = ""
    kept: int = 0
    in_order: bool = False
    seconds: float = 0.0

    def column(self) -> list[str]:
        return [
            self.tenants,
            self.forged,
            str(ALL),
            f"{self.kept} of {ALL}",
            "yes" if self.in_order else "no",
            f"{self.seconds:.1f} s",
        ]


# Two tenants


def naive_id(who: Principal, session: str) -> str:
    return f"{who.tenant}-{who.user}-{session}"


def safe_id(who: Principal, session: str) -> str:
    return NAMESPACE.id(tenant=who.tenant, user=who.user, session=session)


def checked(who: Principal, thread_id: str) -> str:
    return ACCESS.authorize(who, "read", thread_id)


async def share_a_graph(
    graph: Any,
    outcome: Outcome,
    id_of: Callable[[Principal, str], str],
    admit: Callable[[Principal, str], str],
) -> None:
    """Each says a word in a session of its own; then one of them asks for the other's."""
    for who, text in ((ADA, "my salary"), (BOB, "my holidays")):
        await say(graph, id_of(who, "1"), text)
    heard = await read(graph, id_of(BOB, "1"))
    outcome.tenants = "mixed up" if "my salary" in heard else "apart"
    try:
        heard = await read(graph, admit(BOB, id_of(ADA, "1")))  # the body of a forged request
    except ThreadAccessError:
        outcome.forged = "refused"
    else:
        outcome.forged = f"reads {len(heard)} messages"


# Twenty writers


async def write(
    saver: HardenedAsyncPostgresSaver, thread_id: str, name: str, *, locked: bool
) -> None:
    """Take turns, and print each, with the number of its lock."""
    graph = build_graph(saver)
    for turn in range(TURNS):
        text = f"{name}, turn {turn}"
        lock = thread_lock(saver, thread_id, timeout=90.0) if locked else nullcontext()
        async with lock as lease:
            await say(graph, thread_id, text)
        print(json.dumps([lease.epoch if lease else 0, text]), flush=True)


async def work(conninfo: str, process: str) -> None:
    """A process: writes to the threads that its standard input names, and says when it is done."""
    async with open_checkpointer(conninfo, max_size=TASKS) as saver:
        print("null", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            thread_id, locked = json.loads(line)
            names = [f"process {process}, task {task}" for task in range(TASKS)]
            await asyncio.gather(*(write(saver, thread_id, name, locked=locked) for name in names))
            print("null", flush=True)


@asynccontextmanager
async def workers(conninfo: str) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    pipe = asyncio.subprocess.PIPE
    started = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, conninfo, str(number)), stdin=pipe, stdout=pipe
        )
        for number in range(PROCESSES)
    ]
    try:
        await asyncio.gather(*(listen(process) for process in started))
        yield started
    finally:
        await asyncio.gather(*(process.communicate(b"") for process in started))


async def listen(process: asyncio.subprocess.Process, step: Step = int) -> list[tuple[int, str]]:
    """The turns that a process has made, until it is done."""
    assert process.stdout
    turns = []
    while turn := json.loads(await process.stdout.readline()):
        turns.append((turn[0], turn[1]))
        step()
    return turns


async def hammer(
    processes: list[asyncio.subprocess.Process], thread_id: str, *, locked: bool, step: Step
) -> list[str]:
    """All turns that were made, in the order of their locks."""
    for process in processes:
        assert process.stdin
        process.stdin.write(f"{json.dumps([thread_id, locked])}\n".encode())
    made = await asyncio.gather(*(listen(process, step) for process in processes))
    return [text for _, text in sorted(turn for turns in made for turn in turns)]


async def compare(
    graph: Any,
    processes: list[asyncio.subprocess.Process],
    outcome: Outcome,
    *,
    locked: bool,
    step: Step,
) -> None:
    thread_id = NAMESPACE.id(tenant="acme", user="everybody", session=outcome.name)
    began = monotonic()
    made = await hammer(processes, thread_id, locked=locked, step=step)
    outcome.seconds = monotonic() - began
    messages = await read(graph, thread_id)
    outcome.kept = sum(text in messages for text in made)
    outcome.in_order = messages == [said for text in made for said in (text, f"re: {text}")]


def table(console: Console, outcomes: list[Outcome]) -> Table:
    title = f"{PROCESSES * TASKS} tasks in {PROCESSES} processes on one thread; and two tenants"
    shown = Table("", *(outcome.name for outcome in outcomes), title=title)
    shown.box = box.ROUNDED if console.is_terminal else box.ASCII
    rows = ["two tenants", "forged session", "turns made", "turns kept", "in order", "time"]
    for row in zip(rows, *(outcome.column() for outcome in outcomes), strict=True):
        shown.add_row(*row)
    return shown


async def main(console: Console) -> list[Outcome]:
    ours, theirs = Outcome("lghard"), Outcome("f-strings, no lock")
    with (
        temporary_postgres() as server,
        Progress(console=console, disable=not console.is_terminal) as progress,
    ):
        conninfo = server.create_database()
        async with open_checkpointer(conninfo, max_size=TASKS) as saver:
            graph = build_graph(saver)
            await share_a_graph(graph, theirs, naive_id, lambda _, thread_id: thread_id)
            await share_a_graph(graph, ours, safe_id, checked)
            async with workers(conninfo) as processes:
                for outcome in (theirs, ours):
                    if not console.is_terminal:
                        console.print(f"{outcome.name}: {ALL} turns on one thread ...")
                    bar = progress.add_task(outcome.name, total=ALL)
                    await compare(
                        graph,
                        processes,
                        outcome,
                        locked=outcome is ours,
                        step=partial(progress.advance, bar),
                    )
    return [ours, theirs]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(work(*sys.argv[1:]))
    else:
        console = Console()
        outcomes = asyncio.run(main(console))
        console.print(table(console, outcomes))
        ours, theirs = outcomes
        sys.exit(not (ours.in_order and ours.kept == ALL))
