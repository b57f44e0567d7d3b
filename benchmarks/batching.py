"""Runs per second where concurrent runs share round trips, on four connections.

`uv run benchmarks/batching.py`; what it means stands in benchmarks/README.md.
"""

import argparse
import asyncio
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from math import inf
from typing import Any, NamedTuple

from callers import (
    NODES,
    Throughput,
    measure_flush,
    measure_round_trip,
    rotated,
    throughput,
)
from contestants import Contestant, in_memory, lghard, upstream
from measure import PATIENCE, Measurement, Referee, server
from report import Goal, count_bytes, count_callers, keep, progress, show, table
from rich.console import Group

from lghard.testing import TemporaryPostgres, proxy_process

RIVAL, MANY, BATCHED, CEILING = "upstream, 4", "lock-free, 20", "batched, 4", "in memory"
CONTESTANTS: Mapping[str, Contestant] = {
    RIVAL: partial(upstream, pool_size=4),
    "lock-free, 4": partial(lghard, pool_size=4, batching=False),
    MANY: partial(lghard, pool_size=20, batching=False),
    BATCHED: partial(lghard, pool_size=4),
    CEILING: in_memory,
}
"""With the connections that each may have."""

SLOW_FLUSH = {"commit_delay": "2000", "commit_siblings": "0"}
"""Each flush to disk takes 2 ms longer, as on a disk that is a network away."""

MOST_BYTES = 50_000_000
"""Of states in one measurement. LangGraph stores a state five times in a run of two nodes."""


class Case(NamedTuple):
    """What a measurement is about. All but one of these are as they are here."""

    callers: int = 50
    round_trip: float = 0.002
    """Seconds; 0 is a server next door, without a proxy."""
    slow_flush: bool = False
    size: int = 0
    """Of the state, in bytes; 0 is a short message."""

    def __str__(self) -> str:
        text = f"{count_callers(self.callers)}, {1000 * self.round_trip:g} ms"
        text += ", slow flush" if self.slow_flush else ""
        return text + (f", {count_bytes(self.size)}" if self.size else "")


PARTS: Mapping[str, Sequence[Case]] = {
    "callers": [Case(callers) for callers in (1, 2, 5, 10, 20, 50, 100, 200)],
    "flush": [Case(callers, slow_flush=True) for callers in (1, 50)],
    "round-trip": [Case(round_trip=seconds) for seconds in (0.0, 0.001, 0.010)],
    # More callers with 5 MB would wait for a minute; their copies alone are a gigabyte.
    "state": [Case(size=1_000), Case(size=100_000), Case(callers=10, size=5_000_000)],
}


JUDGED = [Case(callers, slow_flush=slow) for slow in (False, True) for callers in (1, 50)]
"""Measured in every round; the others in the first only, or it would take half an hour."""

Measured = dict[Case, dict[str, list[Measurement[Throughput]]]]


class Sites:
    """Servers whose flush is free or slow, at any distance. Each starts when it is asked for."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.server = cache(self._start_server)
        self._moved = cache(self._start_proxy)

    def _start_server(self, slow_flush: bool) -> TemporaryPostgres:
        return self._stack.enter_context(server(**(SLOW_FLUSH if slow_flush else {})))

    def _start_proxy(self, slow_flush: bool, round_trip: float) -> Callable[[str], str]:
        there = self.server(slow_flush)
        proxy = proxy_process(there.host, there.port, latency=round_trip / 2)
        return self._stack.enter_context(proxy).conninfo

    def conninfo(self, case: Case, conninfo: str) -> str:
        """A database of the case's server, from as far away as the case says."""
        if not case.round_trip:
            return conninfo
        return self._moved(case.slow_flush, case.round_trip)(conninfo)

    @contextmanager
    def database(self, case: Case) -> Iterator[str]:
        """An empty one, so that nobody finds what others have left, nor has to keep it."""
        there = self.server(case.slow_flush)
        conninfo = there.create_database()
        yield self.conninfo(case, conninfo)
        there.drop_database(conninfo)


def choose(parts: Sequence[str], rounds: int) -> list[tuple[int, Case]]:
    """Which cases are measured in which round."""
    cases = [case for part in parts for case in PARTS[part]]
    return [(i, case) for i in range(rounds) for case in cases if case in JUDGED or not i]


async def measure_all(
    sites: Sites,
    referee: Referee,
    chosen: Sequence[tuple[int, Case]],
    *,
    seconds: float,
    step: Callable[[str], None],
) -> Measured:
    """Every contestant in every case, one right after the other, in an order that changes."""
    measured: Measured = {}
    for i, case in chosen:
        for name in rotated(list(CONTESTANTS), i):
            step(f"{name}: {case}")
            with sites.database(case) as conninfo:
                one = partial(measure, CONTESTANTS[name], conninfo, case, seconds)
                measurement = await referee.undisturbed(one)
            measured.setdefault(case, {}).setdefault(name, []).append(measurement)
    return measured


async def measure(
    contestant: Contestant, conninfo: str, case: Case, seconds: float
) -> Measurement[Throughput]:
    """One contestant in one case."""
    most = MOST_BYTES // case.size if case.size else inf
    return await throughput(
        contestant, conninfo, callers=case.callers, seconds=seconds, size=case.size, most=most
    )


def median(measured: Measured, case: Case, name: str, field: str) -> float:
    """The median of the rounds."""
    return statistics.median(_values(measured, case, name, field))


def ratio(measured: Measured, case: Case, field: str, *, of: str, to: str) -> float:
    """The median of the rounds' ratios."""
    ours, theirs = (_values(measured, case, name, field) for name in (of, to))
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _values(measured: Measured, case: Case, name: str, field: str) -> list[float]:
    return [getattr(measurement.value, field) for measurement in measured[case][name]]


def judge(measured: Measured) -> list[Goal]:
    """Whether batching is as fast as it is meant to be, with what has been measured."""
    return [goal for case in JUDGED if case in measured for goal in _judge(measured, case)]


def _judge(measured: Measured, case: Case) -> Iterator[Goal]:
    def at_least(least: float, rival: str) -> Goal:
        value = ratio(measured, case, "runs_per_second", of=BATCHED, to=rival)
        text = f"{case}: batched, at least {least:g} x the runs of {rival}"
        return Goal(text, f"{value:.2f} x", value >= least)

    if case.callers == 1:
        yield at_least(1.0, RIVAL)
        return
    yield at_least(12.0, RIVAL)
    yield at_least(0.5, CEILING)
    yield at_least(1.0, MANY)
    tail = ratio(measured, case, "run_p99", of=BATCHED, to=RIVAL)
    yield Goal(f"{case}: p99 of a run, at most 0.1 x that of {RIVAL}", f"{tail:.3f} x", tail <= 0.1)


def tabulate(measured: Measured) -> Group:
    """Runs per second, how many times upstream's that is, and the slowest in a hundred."""
    rates, tails = table("Runs per second", *CONTESTANTS), table("p99, run/operation", *CONTESTANTS)
    for case in measured:
        rates.add_row(str(case), *(_rate(measured, case, name) for name in CONTESTANTS))
        tails.add_row(str(case), *(_tail(measured, case, name) for name in CONTESTANTS))
    return Group(rates, tails)


def _rate(measured: Measured, case: Case, name: str) -> str:
    times = ratio(measured, case, "runs_per_second", of=name, to=RIVAL)
    rate = median(measured, case, name, "runs_per_second")
    return f"{rate:.{0 if rate >= 10 else 1}f} {times:5.1f} x"


def _tail(measured: Measured, case: Case, name: str) -> str:
    run, operation = (median(measured, case, name, f"{of}_p99") for of in ("run", "operation"))
    return f"{1000 * run:.0f}/{1000 * operation:.0f} ms"


def rows(measured: Measured) -> list[dict[str, Any]]:
    """The same for JSON, with every single measurement."""
    return [
        {
            "contestant": name,
            **case._asdict(),
            **{field: median(measured, case, name, field) for field in Throughput._fields},
            "ratio_to_upstream": ratio(measured, case, "runs_per_second", of=name, to=RIVAL),
            "rounds": [m.value._asdict() | {"foreign_cores": m.foreign_cores} for m in rounds],
        }
        for case, contestants in measured.items()
        for name, rounds in contestants.items()
    ]


def look_at(sites: Sites, cases: Sequence[Case]) -> dict[str, dict[str, float]]:
    """What round trips and flushes take in fact, in seconds, by what they are called here."""
    trips = {case.round_trip: case for case in cases}
    flushes = {case.slow_flush: case for case in cases}
    return {
        "round_trips": {
            f"{1000 * trip:g} ms": measure_round_trip(_conninfo(sites, case))
            for trip, case in sorted(trips.items())
        },
        "flushes": {
            "slow" if slow else "free": measure_flush(_conninfo(sites, case))
            for slow, case in sorted(flushes.items())
        },
    }


def _conninfo(sites: Sites, case: Case) -> str:
    return sites.conninfo(case, sites.server(case.slow_flush).conninfo)


def notes(seen: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """What the tables do not say."""
    for name, values in seen.items():
        taken = (f"{key}: {1000 * seconds:.1f} ms" for key, seconds in values.items())
        yield f"{name.replace('_', ' ').capitalize()} in fact: {', '.join(taken)}."


def main() -> int:
    """Measure, show, keep; 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.5, help="for each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of what there are goals for")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--patience", type=float, default=PATIENCE, help="seconds to wait for quiet"
    )
    parser.add_argument("--quick", action="store_true", help="one short round: does it work?")
    options = parser.parse_args()
    rounds, seconds = (1, 0.5) if options.quick else (options.rounds, options.seconds)
    referee = Referee(0.0 if options.quick else options.patience)
    chosen = choose(options.parts, rounds)
    with ExitStack() as stack, progress(len(chosen) * len(CONTESTANTS)) as step:
        sites = Sites(stack)
        seen = look_at(sites, [case for _, case in chosen])
        measured = asyncio.run(measure_all(sites, referee, chosen, seconds=seconds, step=step))
        goals = judge(measured)
        result = {"seconds": seconds, **seen, "rows": rows(measured)}
        keep("batching", sites.server(chosen[0][1].slow_flush).conninfo, result, goals)
    title = f"Runs of {NODES} nodes; goals: median of {rounds}, else one measurement"
    show(title, tabulate(measured), [*notes(seen), referee.verdict()], goals)
    return not all(goal.met for goal in goals)


if __name__ == "__main__":
    sys.exit(main())
