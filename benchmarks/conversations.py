"""Ten thousand open conversations in one process, on four connections.

`uv run benchmarks/conversations.py`; what it means stands in benchmarks/README.md.
"""

import argparse
import asyncio
import gc
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import accumulate
from multiprocessing.connection import Connection
from typing import Any

import psutil  # type: ignore[import-untyped, unused-ignore]
from callers import measure_round_trip, p99, throughput
from contestants import (
    Contestant,
    Graph,
    build_graph,
    count_wrong,
    lghard,
    new_thread,
    run,
    upstream,
)
from measure import PATIENCE, Measurement, Referee, clock, server, time_operations
from report import Goal, keep, progress, show, table
from rich.table import Table

from lghard.testing import proxy_process

POOL_SIZE = 4
BATCHED, RIVAL = "lghard, batched", "upstream"
CONTESTANTS: Mapping[str, Contestant] = {
    BATCHED: partial(lghard, pool_size=POOL_SIZE),
    RIVAL: partial(upstream, pool_size=POOL_SIZE),
}
STEADY, AT_ONCE = "steadily", "at once"
ONE_WAY = 0.001
"""Seconds from here to the server, and as many back."""

PEAK_CALLERS = 200
LOAD = 0.8
"""Of the peak rate, at which conversations arrive."""

SLOWEST = 0.25
"""Seconds that 99 of 100 operations take at most."""

_GLANCE = 0.1


@dataclass(frozen=True)
class Task:
    """What there is to do for somebody, in a process of its own."""

    contestant: str
    conninfo: str
    nodes: int
    wait: float
    arrivals: Sequence[float]
    """When each conversation begins, in seconds."""
    limit: float | None
    """Seconds after which it is over, whoever still waits."""
    tuned: bool
    """Whether Python collects garbage less often than by itself."""


@dataclass
class Trial:
    """How the conversations went."""

    done: dict[str, list[str]]
    """The final states, by thread."""
    failed: dict[str, int]
    """How many failed, by what they failed with."""
    unfinished: int
    seconds: float
    """From the first beginning to the last end, or to the limit."""
    most_open: int
    bytes_each: float
    """How much larger the process became, for each of those that were open at most."""
    operation_p50: float
    operation_p99: float
    operation_max: float
    cpu_seconds: float
    pauses: list[float]
    """Seconds of each collection of garbage, which nothing else goes on beside."""
    wrong: int = 0
    foreign_cores: float = 0.0


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


@dataclass
class Gauge:
    """How many conversations are open, and how large that has made the process."""

    open: int = 0
    most_open: int = 0
    most_bytes: int = 0
    empty: int = field(default_factory=_resident)

    async def watch(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            self.most_open = max(self.most_open, self.open)
            self.most_bytes = max(self.most_bytes, _resident() - self.empty)
            await asyncio.sleep(_GLANCE)


@contextmanager
def noting_pauses() -> Iterator[list[float]]:
    """How long each collection of garbage took: the more is open, the longer."""
    pauses: list[float] = []
    began = 0.0

    def note(phase: str, _: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = time.perf_counter()
        else:
            pauses.append(time.perf_counter() - began)

    gc.callbacks.append(note)
    try:
        yield pauses
    finally:
        gc.callbacks.remove(note)


async def converse(task: Task, report: Callable[[Trial], None]) -> None:
    """Hold all conversations of the task, and report before anything is closed.

    What is still waiting at the limit would take minutes to end.
    """
    async with CONTESTANTS[task.contestant](task.conninfo) as saver:
        operations = time_operations(saver)
        warm = build_graph(saver, nodes=task.nodes)
        await asyncio.gather(*(run(warm, new_thread()) for _ in range(10 * POOL_SIZE)))
        operations.clear()
        gc.collect()
        gauge, graph = Gauge(), build_graph(saver, nodes=task.nodes, work=task.wait)
        watching = asyncio.create_task(gauge.watch())
        cpu, began = time.process_time(), time.perf_counter()
        with noting_pauses() as pauses:
            ends = await _hold_all(task, graph, gauge)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        watching.cancel()
        report(_trial(ends, operations, gauge, pauses, seconds=seconds, cpu_seconds=cpu))


Ends = dict[str, list[str] | BaseException | None]
"""By thread: the final state, or what the conversation failed with, or None if it goes on."""


async def _hold_all(task: Task, graph: Graph, gauge: Gauge) -> Ends:
    loop = asyncio.get_running_loop()
    began = loop.time()
    ends: Ends = {new_thread(): None for _ in task.arrivals}

    async def hold(thread_id: str) -> None:
        gauge.open += 1
        try:
            ends[thread_id] = await run(graph, thread_id)
        except Exception as error:
            ends[thread_id] = error
        gauge.open -= 1

    async def arrive() -> None:
        for arrival, thread_id in zip(task.arrivals, ends, strict=True):
            if (early := began + arrival - loop.time()) > 0:
                await asyncio.sleep(early)
            conversations.add(asyncio.create_task(hold(thread_id)))
        await asyncio.wait(conversations)

    conversations: set[asyncio.Task[None]] = set()
    await asyncio.wait({asyncio.create_task(arrive())}, timeout=task.limit)
    return dict(ends)


def _trial(
    ends: Ends,
    operations: Sequence[float],
    gauge: Gauge,
    pauses: list[float],
    *,
    seconds: float,
    cpu_seconds: float,
) -> Trial:
    errors = (type(end).__name__ for end in ends.values() if isinstance(end, BaseException))
    return Trial(
        {thread_id: end for thread_id, end in ends.items() if isinstance(end, list)},
        dict(Counter(errors)),
        sum(end is None for end in ends.values()),
        seconds,
        gauge.most_open,
        gauge.most_bytes / gauge.most_open,
        sorted(operations)[len(operations) // 2],
        p99(operations),
        max(operations),
        cpu_seconds,
        pauses,
    )


def in_process(task: Task) -> Trial:
    """The task, in a process of its own: its memory holds nothing else, and never has."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(task, sender))
    process.start()
    sender.close()
    try:
        trial: Trial = receiver.recv()  # EOFError: its error stands above
    finally:
        process.kill()
        process.join()
    return trial


def _work(task: Task, sender: Connection) -> None:
    if task.tuned:
        spare_garbage_collection()
    asyncio.run(converse(task, sender.send))


def spare_garbage_collection() -> None:
    """As docs/how-to/batching.md advises: all that is open is not looked at again and again."""
    gc.freeze()
    gc.set_threshold(100_000, 100, 10)


async def trial(task: Task, direct: str) -> Measurement[Trial]:
    """The task in its process, and then a look at what it has left behind."""
    with clock() as reading:
        outcome = await asyncio.to_thread(in_process, task)
    outcome.wrong = await count_wrong(direct, outcome.done, nodes=task.nodes)
    outcome.foreign_cores = reading.foreign_cores
    return Measurement(outcome, reading.foreign_cores)


Measured = dict[tuple[str, str], Trial]


@dataclass(frozen=True)
class Plan:
    """How many conversations, of what kind."""

    conversations: int
    nodes: int
    wait: float
    limit: float
    seconds: float
    """How long the peak rate is measured."""
    tuned: bool = True
    """Whether Python collects garbage less often than by itself."""


async def measure_all(
    plan: Plan,
    conninfos: Mapping[str, tuple[str, str]],
    referee: Referee,
    step: Callable[[str], None],
) -> tuple[float, Measured]:
    """The peak rate, and everybody with both kinds of arrivals.

    Args:
        plan: what to do.
        conninfos: of everybody's database, through the proxy and without it.
        referee: waits for quiet.
        step: told what is being measured.
    """
    step("peak rate")
    peak = (await referee.undisturbed(partial(measure_peak, plan, conninfos[BATCHED][0]))).value
    arrivals = {
        STEADY: _spread(plan.conversations, LOAD * peak),
        AT_ONCE: [0.0] * plan.conversations,
    }
    measured: Measured = {}
    for name in CONTESTANTS:
        for kind, begins in arrivals.items():
            step(f"{name}, {kind}")
            there, direct = conninfos[name]
            limit = plan.limit if name == RIVAL else None
            task = Task(name, there, plan.nodes, plan.wait, begins, limit, plan.tuned)
            measured[name, kind] = (await referee.undisturbed(partial(trial, task, direct))).value
    return peak, measured


async def measure_peak(plan: Plan, conninfo: str) -> Measurement[float]:
    """Runs per second of callers who wait for nothing but the checkpointer."""
    measured = await throughput(
        CONTESTANTS[BATCHED],
        conninfo,
        callers=PEAK_CALLERS,
        seconds=plan.seconds,
        nodes=plan.nodes,
    )
    return Measurement(measured.value.runs_per_second, measured.foreign_cores)


def _spread(number: int, rate: float) -> list[float]:
    """Arrivals that know nothing of each other, `rate` in a second; the same ones each time."""
    chance = random.Random(1)
    return list(accumulate(chance.expovariate(rate) for _ in range(number)))


def judge(measured: Measured) -> list[Goal]:
    """Whether all conversations come to a good end, and soon enough."""
    steady, at_once = (measured[BATCHED, kind] for kind in (STEADY, AT_ONCE))
    return [
        _none_fails(STEADY, steady),
        Goal(
            f"{STEADY}: p99 of an operation, at most {1000 * SLOWEST:.0f} ms",
            f"{1000 * steady.operation_p99:.0f} ms",
            steady.operation_p99 <= SLOWEST,
        ),
        _none_fails(AT_ONCE, at_once),
    ]


def _none_fails(kind: str, outcome: Trial) -> Goal:
    lost = sum(outcome.failed.values()) + outcome.unfinished
    text = f"{lost} failed, {outcome.wrong} wrong"
    return Goal(f"{kind}: none fails and no state is wrong", text, not lost and not outcome.wrong)


def tabulate(measured: Measured) -> Table:
    """How everybody's conversations went."""
    columns = "done", "failed", "wrong", "open", "took", "p50/p99/slowest", "CPU", "each"
    results = table("", *columns)
    for (name, kind), each in measured.items():
        moments = each.operation_p50, each.operation_p99, each.operation_max
        results.add_row(
            f"{name}, {kind}",
            *map(str, (len(each.done), sum(each.failed.values()), each.wrong, each.most_open)),
            f"{each.seconds:.0f} s",
            "/".join(f"{1000 * seconds:.0f}" for seconds in moments) + " ms",
            f"{each.cpu_seconds / each.seconds:.0%}",
            f"{each.bytes_each / 1000:.0f} kB",
        )
    return results


def notes(plan: Plan, peak: float, measured: Measured) -> Iterator[str]:
    """What the table does not say."""
    yield (
        f"Peak rate: {peak:.0f} conversations a second, with {PEAK_CALLERS} callers that wait for "
        f"nothing else; {LOAD:.0%} of that arrive steadily."
    )
    yield "p50/p99/slowest: of the checkpointer's operations, as far as they came to an end."
    yield "Open: at most. Each: memory for each of those that were open."
    yield f"{BATCHED}: those that came at once were done in {_drained(measured):.1f} s."
    for (name, kind), each in measured.items():
        if each.pauses:
            longest = f"the longest {1000 * max(each.pauses):.0f} ms"
            yield f"{name}, {kind}: garbage took {sum(each.pauses):.1f} s, {longest}."
        if each.unfinished:
            yield f"{name}, {kind}: {each.unfinished} not done after {plan.limit:g} s."
        for error, number in each.failed.items():
            yield f"{name}, {kind}: {number} failed with {error}."


def _drained(measured: Measured) -> float:
    return measured[BATCHED, AT_ONCE].seconds


def rows(measured: Measured) -> list[dict[str, Any]]:
    """The same for JSON."""
    return [
        {"contestant": name, "arrivals": kind, **asdict(each), "done": len(each.done)}
        for (name, kind), each in measured.items()
    ]


def main() -> int:
    """Measure, show, keep; 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--conversations", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=5, help="of each conversation")
    parser.add_argument("--wait", type=float, default=10.0, help="seconds, in each node")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds, for upstream")
    parser.add_argument("--seconds", type=float, default=5.0, help="for the peak rate")
    parser.add_argument(
        "--patience", type=float, default=PATIENCE, help="seconds to wait for quiet"
    )
    parser.add_argument(
        "--python-gc", action="store_true", help="collect garbage as Python does by itself"
    )
    parser.add_argument("--quick", action="store_true", help="few and short: does it work?")
    options = parser.parse_args()
    plan = Plan(
        options.conversations,
        options.nodes,
        options.wait,
        options.limit,
        options.seconds,
        tuned=not options.python_gc,
    )
    if options.quick:
        plan = Plan(conversations=200, nodes=2, wait=0.5, limit=5.0, seconds=0.5)
    # A trial takes minutes: a disturbed one is marked, and not repeated.
    referee = Referee(0.0 if options.quick else options.patience, attempts=1)
    with (
        server() as postgres,
        proxy_process(postgres.host, postgres.port, latency=ONE_WAY) as proxy,
        progress(1 + 2 * len(CONTESTANTS)) as step,
    ):
        direct = {name: postgres.create_database() for name in CONTESTANTS}
        conninfos = {name: (proxy.conninfo(there), there) for name, there in direct.items()}
        round_trip = measure_round_trip(conninfos[BATCHED][0])
        peak, measured = asyncio.run(measure_all(plan, conninfos, referee, step))
        goals = judge(measured)
        result = {**asdict(plan), "round_trip": round_trip, "peak": peak, "rows": rows(measured)}
        keep("conversations", direct[BATCHED], result, goals)
    title = (
        f"{plan.conversations} conversations of {plan.nodes} nodes that wait {plan.wait:g} s each, "
        f"{1000 * round_trip:.1f} ms from Postgres, {POOL_SIZE} connections"
    )
    show(title, tabulate(measured), [*notes(plan, peak, measured), referee.verdict()], goals)
    return not all(goal.met for goal in goals)


if __name__ == "__main__":
    sys.exit(main())
