"""What the pool's watchfulness costs, and what it saves: borrows, checks, the first read after.

`uv run benchmarks/pool.py`; what it means stands in benchmarks/README.md.
"""

import argparse
import asyncio
import logging
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any

import psycopg
from measure import PATIENCE, Measurement, Referee, clock, server
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from report import Goal, keep, progress, show, table
from rich.table import Table

from lghard import ManagedPool
from lghard.testing import TemporaryPostgres

Pool = AsyncConnectionPool[AsyncConnection[Any]]

KINDS = "upstream", "upstream, check", "lghard"
BLOCKS = 40
BLOCK = 250
DEAD = (1, 2, 6, 10, 50)
POOL_TIMEOUT = 5.0
"""Seconds, for everybody: with psycopg_pool's 30 a repetition would take minutes."""


def make(kind: str, conninfo: str, size: int) -> Pool:
    """One of the contestants, not yet open."""
    classes: dict[str, Callable[..., Pool]] = {"lghard": ManagedPool}
    return classes.get(kind, AsyncConnectionPool)(
        conninfo,
        min_size=size,
        kwargs={"autocommit": True},
        check=AsyncConnectionPool.check_connection if kind == "upstream, check" else None,
        timeout=POOL_TIMEOUT,
        open=False,
    )


async def costs(conninfo: str, *, query: str | None) -> Measurement[dict[str, float]]:
    """Microseconds to borrow a connection, ask one short question or none, and return it.

    The contestants take turns in short blocks, so that a neighbour disturbs them alike.
    """
    async with AsyncExitStack() as stack:
        pools = [await stack.enter_async_context(make(kind, conninfo, 4)) for kind in KINDS]
        for pool in pools:
            await pool.wait()
        taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
        with clock() as reading:
            for _ in range(BLOCKS):
                for kind, pool in zip(KINDS, pools, strict=True):
                    taken[kind].append(await _block(pool, query))
    medians = {kind: statistics.median(values) for kind, values in taken.items()}
    return Measurement(medians, reading.foreign_cores)


async def _block(pool: Pool, query: str | None) -> float:
    began = time.perf_counter()
    for _ in range(BLOCK):
        async with pool.connection() as conn:
            if query:
                await conn.execute(query)
    return (time.perf_counter() - began) / BLOCK * 1e6


async def first_read(kind: str, postgres: TemporaryPostgres, conninfo: str, dead: int) -> float:
    """Milliseconds to the first answer after all idle connections were killed; inf if none came.

    The pool's housekeeping, which would have replaced them within a second, gets no chance.
    """
    async with make(kind, conninfo, dead) as pool:
        await pool.wait()
        await asyncio.to_thread(postgres.terminate_backends, database=conninfo)
        began = time.perf_counter()
        with suppress(psycopg.OperationalError):
            async with pool.connection() as conn:
                await conn.execute("SELECT 1")
            return (time.perf_counter() - began) * 1000
    return float("inf")


async def after_restart(kind: str, postgres: TemporaryPostgres, conninfo: str) -> float:
    """Milliseconds from the moment a restarted server accepts connections to the first answer."""
    async with make(kind, conninfo, 4) as pool:
        await pool.wait()
        await asyncio.to_thread(postgres.stop)
        waiting = asyncio.create_task(_insist(pool))
        await asyncio.sleep(1.0)  # so that attempts have backed off
        await asyncio.to_thread(postgres.start)
        accepts = time.perf_counter()
        answered = await waiting
    return (answered - accepts) * 1000


async def _insist(pool: Pool) -> float:
    """When the first answer came, for somebody who does not give up."""
    while True:
        try:
            async with pool.connection() as conn:
                await conn.execute("SELECT 1")
        except (psycopg.OperationalError, PoolTimeout):
            await asyncio.sleep(0)
        else:
            return time.perf_counter()


Results = dict[str, dict[str, float]]


async def measure_all(
    postgres: TemporaryPostgres, referee: Referee, *, repeats: int, step: Callable[[str], None]
) -> Results:
    """Every contestant in turn, several times; the medians."""
    conninfo = postgres.create_database()
    taken: dict[str, dict[str, list[float]]] = {}

    def note(row: str, kind: str, value: float) -> None:
        taken.setdefault(row, {}).setdefault(kind, []).append(value)

    for _ in range(repeats):
        step("borrows and reads")
        for row, query in {
            "borrow and return, us": None,
            "borrow and read, us": "SELECT 1",
        }.items():
            measured = await referee.undisturbed(partial(costs, conninfo, query=query))
            for kind, value in measured.value.items():
                note(row, kind, value)
        step("first read after connections died")
        for dead in DEAD:
            for kind in ("upstream, check", "lghard"):
                took = await first_read(kind, postgres, conninfo, dead)
                note(f"first read, {dead} dead, ms", kind, took)
        step("first read after a restart")
        for kind in ("upstream, check", "lghard"):
            note(
                "first read after a restart, ms",
                kind,
                await after_restart(kind, postgres, conninfo),
            )
    return {
        row: {kind: statistics.median(values) for kind, values in kinds.items()}
        for row, kinds in taken.items()
    }


def judge(results: Results) -> list[Goal]:
    """What issue and documentation promise."""
    borrow, read = results["borrow and return, us"], results["borrow and read, us"]
    rate = borrow["upstream"] / borrow["lghard"]
    cost = read["lghard"] / read["upstream"]
    slowest = max(results[f"first read, {dead} dead, ms"]["lghard"] for dead in DEAD)
    restart = results["first read after a restart, ms"]["lghard"]
    return [
        Goal("borrows per second, at least 0.95 x upstream's", f"{rate:.2f} x", rate >= 0.95),
        Goal("health checks, at most 1.03 x the time of none", f"{cost:.2f} x", cost <= 1.03),
        Goal("first read after 1 to 50 died, at most 50 ms", f"{slowest:.0f} ms", slowest <= 50),
        Goal("first read after a restart, at most 100 ms", f"{restart:.0f} ms", restart <= 100),
    ]


def tabulate(results: Results) -> Table:
    """A line for each question, a column for each contestant."""
    shown = table("", *KINDS)
    for row, values in results.items():
        cells = [f"{values[kind]:.1f}" if kind in values else "" for kind in KINDS]
        shown.add_row(row, *("none" if cell == "inf" else cell for cell in cells))
    return shown


def main() -> int:
    """Measure, show, keep; 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--patience", type=float, default=PATIENCE, help="seconds to wait for quiet"
    )
    parser.add_argument("--quick", action="store_true", help="one repetition: does it work?")
    options = parser.parse_args()
    repeats = 1 if options.quick else options.repeats
    referee = Referee(0.0 if options.quick else options.patience)
    logging.basicConfig(handlers=[logging.NullHandler()])
    with server() as postgres, progress(repeats * 3) as step:
        results = asyncio.run(measure_all(postgres, referee, repeats=repeats, step=step))
        goals = judge(results)
        keep("pool", postgres.conninfo, {"pool_timeout": POOL_TIMEOUT, "rows": results}, goals)
    title = f"The pool; medians of {repeats}. A pool timeout of {POOL_TIMEOUT:.0f} s for everybody"
    show(title, tabulate(results), [referee.verdict()], goals)
    return not all(goal.met for goal in goals)


if __name__ == "__main__":
    sys.exit(main())
