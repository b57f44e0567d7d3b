"""Callers of a graph: each starts the next run as soon as one ends."""

import asyncio
import statistics
import time
from collections.abc import Sequence
from math import ceil, inf
from typing import NamedTuple

import psycopg
from contestants import Contestant, Graph, build_graph, expected, new_thread, run
from measure import Measurement, clock, time_operations

NODES = 2


class Throughput(NamedTuple):
    """What callers got done, what a run cost the process they are in, and how long they waited."""

    runs_per_second: float
    cpu_ms_per_run: float
    run_p99: float
    """Seconds, as below."""
    operation_p99: float
    """Of the checkpointer's operations."""


class _Run(NamedTuple):
    thread_id: str
    state: list[str]
    seconds: float


async def throughput(
    contestant: Contestant,
    conninfo: str,
    *,
    callers: int,
    seconds: float,
    nodes: int = NODES,
    size: int = 0,
    most: float = inf,
) -> Measurement[Throughput]:
    """Runs per second that `callers` get done.

    Args:
        contestant: whose checkpointer they use.
        conninfo: its database.
        callers: how many of them.
        seconds: how long they start new runs.
        nodes: of the graph.
        size: of the state, in bytes, over the few of a short message.
        most: how many runs they start at most.
    """
    async with contestant(conninfo) as saver:
        operations = time_operations(saver)
        graph = build_graph(saver, nodes=nodes)
        await _call(graph, callers, seconds / 4)  # until all connections are open and warm
        operations.clear()
        with clock() as reading:
            done = await _call(graph, callers, seconds, size=size, most=most)
    wrong = [each for each in done if each.state != expected(each.thread_id, nodes, size=size)]
    assert not wrong, f"{len(wrong)} runs ended in a wrong state, as did {wrong[0].thread_id}"
    value = Throughput(
        len(done) / reading.seconds,
        1000 * reading.cpu_seconds / len(done),
        p99([each.seconds for each in done]),
        p99(operations),
    )
    return Measurement(value, reading.foreign_cores)


async def _call(
    graph: Graph, callers: int, seconds: float, *, size: int = 0, most: float = inf
) -> list[_Run]:
    done: list[_Run] = []
    ends_at = time.perf_counter() + seconds
    started = 0

    async def caller() -> None:
        nonlocal started
        while (began := time.perf_counter()) < ends_at and started < most:
            started += 1
            thread_id = new_thread()
            state = await run(graph, thread_id, size=size)
            done.append(_Run(thread_id, state, time.perf_counter() - began))

    await asyncio.gather(*(caller() for _ in range(callers)))
    return done


def p99(values: Sequence[float]) -> float:
    """The smallest of `values` that at most one in a hundred exceeds."""
    return sorted(values)[ceil(0.99 * len(values)) - 1]


def rotated(names: Sequence[str], by: int) -> list[str]:
    """The same names, beginning with another one."""
    by %= len(names)
    return [*names[by:], *names[:by]]


def measure_round_trip(conninfo: str) -> float:
    """Seconds for the shortest question: a proxy's delay, with everything that comes on top."""
    return _median_time(conninfo, "SELECT 1")


def measure_flush(conninfo: str) -> float:
    """Seconds that a commit takes on top of the round trip, when nobody else commits."""
    commit = _median_time(conninfo, "SELECT pg_logical_emit_message(true, 'flush', '')")
    return commit - measure_round_trip(conninfo)


def _median_time(conninfo: str, query: str) -> float:
    with psycopg.connect(conninfo, autocommit=True) as conn:
        seconds = []
        for _ in range(200):
            started = time.perf_counter()
            conn.execute(query.encode())
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
