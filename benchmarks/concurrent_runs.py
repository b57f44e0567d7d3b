"""Runs per second of a two-node graph through a 2 ms round trip, at 1, 20 and 50 callers.

`uv run benchmarks/concurrent_runs.py`; what it means stands in benchmarks/README.md.
"""

import argparse
import asyncio
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any

from callers import NODES, Throughput, measure_round_trip, rotated, throughput
from contestants import (
    POOL_SIZE,
    Contestant,
    in_memory,
    lghard,
    upstream,
    upstream_checked,
)
from measure import PATIENCE, Measurement, Referee, server
from report import Goal, count_callers, keep, progress, show, table
from rich.table import Table

from lghard.testing import proxy_process

CONTESTANTS: Mapping[str, Contestant] = {
    "upstream": upstream,
    "upstream, check": upstream_checked,
    "lghard": lghard,
    "in memory": in_memory,
}
RIVAL = "upstream"
CALLERS = (1, 20, 50)
GOALS = {1: 1.0, 50: 6.0}
"""With so many callers, lghard gets at least so many times upstream's runs done."""
ONE_WAY = 0.001
"""Seconds from here to the server, and as many back."""


Measured = dict[tuple[str, int], list[Measurement[Throughput]]]


async def measure_all(
    conninfos: Mapping[str, str],
    referee: Referee,
    *,
    rounds: int,
    seconds: float,
    step: Callable[[str], None],
) -> Measured:
    """Every contestant with every number of callers, once a round.

    Those that are compared are measured right after each other, so that what the machine does
    meanwhile happens to all of them, and every round starts with another one.
    """
    measured: Measured = {}
    for i, callers in product(range(rounds), CALLERS):
        for name in rotated(list(CONTESTANTS), i):
            step(f"{name}, {count_callers(callers)}")
            contestant, conninfo = CONTESTANTS[name], conninfos[name]
            measurement = await referee.undisturbed(
                partial(throughput, contestant, conninfo, callers=callers, seconds=seconds)
            )
            measured.setdefault((name, callers), []).append(measurement)
    return measured


def median_rate(measured: Measured, name: str, callers: int) -> float:
    """The median of the rounds: on a shared machine the mean belongs to the neighbours."""
    return statistics.median(m.value.runs_per_second for m in measured[name, callers])


def median_ratio(measured: Measured, name: str, callers: int) -> float:
    """The median of the ratios to upstream, each taken within one round."""
    pairs = zip(measured[name, callers], measured[RIVAL, callers], strict=True)
    return statistics.median(m.value.runs_per_second / r.value.runs_per_second for m, r in pairs)


def judge(measured: Measured) -> list[Goal]:
    """Whether lghard is as fast as it is meant to be."""
    return [
        Goal(
            f"{count_callers(callers)}, at least {goal:g} x upstream's runs per second",
            f"{(ratio := median_ratio(measured, 'lghard', callers)):.2f} x",
            ratio >= goal,
        )
        for callers, goal in GOALS.items()
    ]


def title(round_trip: float, rounds: int) -> str:
    """What was measured."""
    return (
        f"Runs per second of {NODES} nodes, {1000 * round_trip:.1f} ms from Postgres, "
        f"{POOL_SIZE} connections; median of {rounds}"
    )


def tabulate(measured: Measured) -> Table:
    """Runs per second, and how many times upstream's that is."""
    columns = map(count_callers, CALLERS)
    results = table("", *columns, f"CPU per run, {CALLERS[-1]}")
    for name in CONTESTANTS:
        cells = (
            f"{median_rate(measured, name, n):.0f}  {median_ratio(measured, name, n):5.2f} x"
            for n in CALLERS
        )
        cpu = statistics.median(m.value.cpu_ms_per_run for m in measured[name, CALLERS[-1]])
        results.add_row(name, *cells, f"{cpu:.1f} ms")
    return results


def rows(measured: Measured) -> list[dict[str, Any]]:
    """The same for JSON, with every single measurement."""
    return [
        {
            "contestant": name,
            "callers": callers,
            "runs_per_second": median_rate(measured, name, callers),
            "ratio_to_upstream": median_ratio(measured, name, callers),
            "rounds": [m.value._asdict() | {"foreign_cores": m.foreign_cores} for m in rounds],
        }
        for (name, callers), rounds in measured.items()
    ]


@contextmanager
def databases() -> Iterator[dict[str, str]]:
    """A database for each contestant on one server, all behind the same round trip."""
    with (
        server() as postgres,
        proxy_process(postgres.host, postgres.port, latency=ONE_WAY) as proxy,
    ):
        yield {name: proxy.conninfo(postgres.create_database()) for name in CONTESTANTS}


def main() -> int:
    """Measure, show, keep; 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="for each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--patience", type=float, default=PATIENCE, help="seconds to wait for quiet"
    )
    parser.add_argument("--quick", action="store_true", help="one short round: does it work?")
    options = parser.parse_args()
    rounds, seconds = (1, 1.0) if options.quick else (options.rounds, options.seconds)
    referee = Referee(0.0 if options.quick else options.patience)
    with databases() as conninfos, progress(rounds * len(CALLERS) * len(CONTESTANTS)) as step:
        round_trip = measure_round_trip(conninfos[RIVAL])
        measured = asyncio.run(
            measure_all(conninfos, referee, rounds=rounds, seconds=seconds, step=step)
        )
        goals = judge(measured)
        result = {"round_trip": round_trip, "seconds": seconds, "rows": rows(measured)}
        keep("concurrent_runs", conninfos[RIVAL], result, goals)
    show(title(round_trip, rounds), tabulate(measured), [referee.verdict()], goals)
    return not all(goal.met for goal in goals)


if __name__ == "__main__":
    sys.exit(main())
