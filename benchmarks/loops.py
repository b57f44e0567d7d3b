"""Eleven event loops of one process, one of which is closed and another one blocked.

`uv run benchmarks/loops.py`; what it means stands in benchmarks/README.md.
"""

import argparse
import asyncio
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, NamedTuple

import psycopg
from contestants import build_graph, expected, new_thread, run
from contestants import lghard as lghard_saver
from contestants import upstream as upstream_saver
from measure import server
from report import Goal, keep, progress, show, table
from rich.table import Table

LOOPS = 11
"""A LangGraph server's own, and its ten for runs."""
CALLERS = 2
"""In each loop, so that every pool has something to do at once."""
BUDGET = 10
NODES = 2

Open = Callable[[str], AbstractAsyncContextManager[Any]]
CONTESTANTS: dict[str, Open] = {
    "upstream, a pool per loop": partial(upstream_saver, pool_size=BUDGET),
    "lghard": partial(lghard_saver, pool_size=BUDGET),
}


class Latencies(NamedTuple):
    """Seconds that runs took, and the most connections there were at once."""

    p50: float
    p99: float
    runs: int
    backends: int


class Worker:
    """An event loop in a thread of its own that runs a graph again and again."""

    def __init__(self, contestant: Open, conninfo: str) -> None:
        self.taken: list[tuple[float, float]] = []
        self.failed: list[BaseException] = []
        self._contestant, self._conninfo = contestant, conninfo
        self._entered, self._ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=[self._work()], daemon=True)

    def start(self) -> None:
        """Begin, and wait for the first run."""
        self._thread.start()
        self._entered.wait()

    def block(self, seconds: float) -> None:
        """Have the loop stand still, as synchronous code in a node does."""
        self._loop.call_soon_threadsafe(time.sleep, seconds)

    def end(self) -> None:
        """End the loop, and wait for it."""
        self._ending.set()
        self._thread.join()

    async def _work(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with self._contestant(self._conninfo) as saver:
            graph = build_graph(saver, nodes=NODES)
            await asyncio.gather(*(self._call(graph) for _ in range(CALLERS)))

    async def _call(self, graph: Any) -> None:
        while not self._ending.is_set():
            thread_id, began = new_thread(), time.perf_counter()
            try:
                state = await run(graph, thread_id)
                assert state == expected(thread_id, NODES)
            except Exception as error:
                self.failed.append(error)
            self.taken.append((began, time.perf_counter()))
            self._entered.set()


def measure(
    contestant: Open, conninfo: str, seconds: float
) -> tuple[Latencies, Latencies, list[BaseException]]:
    """Calm, and then with the first loop closed and the second one blocked all the time."""
    workers = [Worker(contestant, conninfo) for _ in range(LOOPS)]
    for worker in workers:
        worker.start()
    with psycopg.connect(conninfo, autocommit=True) as admin:
        calm = _phase(workers[2:], admin, seconds)
        workers[1].block(seconds + 1)
        workers[0].end()
        storm = _phase(workers[2:], admin, seconds)
    for worker in workers:
        worker.end()
    return calm, storm, [error for worker in workers for error in worker.failed]


def _phase(workers: list[Worker], admin: psycopg.Connection[Any], seconds: float) -> Latencies:
    began, most = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        most = max(most, _backends(admin))
        time.sleep(0.02)
    taken = [end - start for worker in workers for start, end in [*worker.taken] if start >= began]
    cuts = statistics.quantiles(taken, n=100)
    return Latencies(cuts[49], cuts[98], len(taken), most)


def _backends(admin: psycopg.Connection[Any]) -> int:
    row = admin.execute(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    ).fetchone()
    assert row
    return int(row[0])


Measured = dict[str, tuple[Latencies, Latencies, list[BaseException]]]


def tabulate(measured: Measured) -> Table:
    """Everybody's latencies."""
    results = table("", "p50 calm", "p99 calm", "p50", "p99", "runs", "failed", "connections")
    for name, (calm, storm, failed) in measured.items():
        seconds = (calm.p50, calm.p99, storm.p50, storm.p99)
        cells = (f"{1000 * value:.0f} ms" for value in seconds)
        connections = str(max(calm.backends, storm.backends))
        results.add_row(name, *cells, str(storm.runs), str(len(failed)), connections)
    return results


def judge(measured: Measured) -> list[Goal]:
    """Whether one loop's misfortune is its own."""
    calm, storm, failed = measured["lghard"]
    ratio, most = storm.p99 / calm.p99, max(calm.backends, storm.backends)
    return [
        Goal("the others' p99 is at most 2 x that of calm", f"{ratio:.2f} x", ratio <= 2),
        Goal(f"at most {BUDGET} connections", str(most), most <= BUDGET),
        Goal("no run fails", f"{len(failed)} failed", not failed),
    ]


def main() -> int:
    """Measure, show, keep; 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="calm, and as long in trouble")
    parser.add_argument("--quick", action="store_true", help="one second: does it work?")
    options = parser.parse_args()
    seconds = 1.0 if options.quick else options.seconds
    measured: Measured = {}
    with server(max_connections="200") as postgres, progress(len(CONTESTANTS)) as step:
        for name, contestant in CONTESTANTS.items():
            step(name)
            conninfo = postgres.create_database()
            measured[name] = measure(contestant, conninfo, seconds)
        goals = judge(measured)
        rows = [
            {"contestant": name, "calm": calm._asdict(), "trouble": storm._asdict()}
            for name, (calm, storm, _) in measured.items()
        ]
        keep("loops", conninfo, {"seconds": seconds, "rows": rows}, goals)
    title = f"{LOOPS} event loops, {BUDGET} connections; one loop is closed, one blocked"
    show(title, tabulate(measured), [], goals)
    return not all(goal.met for goal in goals)


if __name__ == "__main__":
    sys.exit(main())
