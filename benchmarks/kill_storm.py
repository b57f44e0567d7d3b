"""240 runs, once calm, and once while all connections are killed five times in two seconds.

`uv run benchmarks/kill_storm.py`; what it means stands in benchmarks/README.md.
"""

import argparse
import asyncio
import logging
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from contestants import (
    POOL_SIZE,
    Contestant,
    Graph,
    build_graph,
    count_wrong,
    lghard,
    new_thread,
    run,
    upstream,
    upstream_checked,
)
from measure import PATIENCE, Measurement, Referee, clock, server
from report import Goal, keep, progress, show, table
from rich.table import Table

from lghard.testing import TemporaryPostgres

CONTESTANTS: Mapping[str, Contestant] = {
    "upstream": upstream,
    "upstream, check": upstream_checked,
    "lghard": lghard,
}
RUNS = 240
CONCURRENT = 40
NODES = 4
WORK = 0.12
"""Seconds that each node waits, as for a model: 240 runs, 40 at a time, take three seconds."""

KILLS_AT = (0.4, 0.8, 1.2, 1.6, 2.0)
"""Seconds from the start; nobody can be done by then."""

GOAL = 1.3
"""With lghard, a storm takes at most so many times as long as calm."""
POOL_TIMEOUT = 5.0
"""Seconds, for everybody: with psycopg_pool's 30 a repetition would take minutes."""
HARD_LIMIT = 60.0
"""Seconds after which a run that still waits is lost."""


@dataclass
class Trial:
    """How the runs went."""

    seconds: float
    lost: dict[str, int]
    """How many runs failed, by what they failed with."""
    wrong: int
    """How many runs ended well, and left another state behind than they must."""
    killed: list[int]
    """How many connections each kill hit."""
    foreign_cores: float
    """What others took of the machine meanwhile."""


@dataclass
class Pair:
    """A calm and a stormy trial, one after the other."""

    calm: Trial
    storm: Trial

    @property
    def ratio(self) -> float:
        """How many times as long the storm took."""
        return self.storm.seconds / self.calm.seconds


Measured = dict[str, list[Pair]]


async def measure_all(
    postgres: TemporaryPostgres, referee: Referee, *, repeats: int, step: Callable[[str], None]
) -> Measured:
    """Every contestant once a round, calm and in the storm."""
    conninfos = {name: postgres.create_database() for name in CONTESTANTS}
    measured: Measured = {name: [] for name in CONTESTANTS}
    for _ in range(repeats):
        for name, contestant in CONTESTANTS.items():
            trials = []
            for weather, kills_at in {"calm": (), "storm": KILLS_AT}.items():
                step(f"{name}, {weather}")
                one = partial(trial, postgres, contestant, conninfos[name], kills_at)
                trials.append((await referee.undisturbed(one)).value)
            measured[name].append(Pair(*trials))
    return measured


async def trial(
    postgres: TemporaryPostgres, contestant: Contestant, conninfo: str, kills_at: Sequence[float]
) -> Measurement[Trial]:
    """All runs, on a pool that is warm, and then a look at what they left behind."""
    async with contestant(conninfo, pool_timeout=POOL_TIMEOUT) as saver:
        graph = build_graph(saver, nodes=NODES, work=WORK)
        await _run_all(graph, [new_thread() for _ in range(CONCURRENT)])
        thread_ids = [new_thread() for _ in range(RUNS)]
        with clock() as reading:
            storm = asyncio.create_task(_kill(postgres, conninfo, kills_at))
            endings = await _run_all(graph, thread_ids)
        killed = await storm
    lost = Counter(type(end).__name__ for end in endings if isinstance(end, BaseException))
    done = {t: end for t, end in zip(thread_ids, endings, strict=True) if isinstance(end, list)}
    wrong = await count_wrong(conninfo, done, nodes=NODES)
    outcome = Trial(reading.seconds, dict(lost), wrong, killed, reading.foreign_cores)
    return Measurement(outcome, reading.foreign_cores)


async def _kill(postgres: TemporaryPostgres, conninfo: str, kills_at: Sequence[float]) -> list[int]:
    loop = asyncio.get_running_loop()
    started = loop.time()
    killed = []
    for kill_at in kills_at:
        await asyncio.sleep(started + kill_at - loop.time())
        killed.append(await asyncio.to_thread(postgres.terminate_backends, database=conninfo))
    return killed


async def _run_all(graph: Graph, thread_ids: Sequence[str]) -> list[list[str] | BaseException]:
    """The final state of each run, or what it failed with."""
    slots = asyncio.Semaphore(CONCURRENT)

    async def one(thread_id: str) -> list[str]:
        async with slots:
            return await run(graph, thread_id)

    tasks = [asyncio.create_task(one(thread_id)) for thread_id in thread_ids]
    _, late = await asyncio.wait(tasks, timeout=HARD_LIMIT)
    for task in late:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)


def lost_in(pairs: Sequence[Pair]) -> Counter[str]:
    """What was lost in all storms."""
    return sum((Counter(pair.storm.lost) for pair in pairs), Counter())


def median_ratio(pairs: Sequence[Pair]) -> float:
    """The median of the repetitions' ratios."""
    return statistics.median(pair.ratio for pair in pairs)


def judge(measured: Measured) -> list[Goal]:
    """Whether lghard loses nothing, and how much time it takes."""
    pairs = measured["lghard"]
    lost, ratio = lost_in(pairs).total(), median_ratio(pairs)
    wrong = sum(pair.storm.wrong + pair.calm.wrong for pair in pairs)
    runs = RUNS * len(pairs)
    return [
        Goal("lghard loses no run", f"{lost} of {runs} lost", lost == 0),
        Goal("and leaves no wrong state", f"{wrong} of {2 * runs} wrong", wrong == 0),
        Goal(f"in at most {GOAL} x the time of calm", f"{ratio:.2f} x", ratio <= GOAL),
    ]


def title(repeats: int) -> str:
    """What was measured."""
    return (
        f"{RUNS} runs of {NODES} nodes, {CONCURRENT} at a time, up to {POOL_SIZE} connections, all "
        f"killed {len(KILLS_AT)} times; {repeats} x"
    )


def tabulate(measured: Measured, repeats: int) -> Table:
    """What was lost, and what it took."""
    results = table("", "runs lost", "wrong states", "calm", "storm", "storm / calm")
    for name, pairs in measured.items():
        results.add_row(
            name,
            f"{lost_in(pairs).total()} of {RUNS * repeats}",
            str(sum(pair.storm.wrong for pair in pairs)),
            f"{statistics.median(pair.calm.seconds for pair in pairs):.2f} s",
            f"{statistics.median(pair.storm.seconds for pair in pairs):.2f} s",
            f"{median_ratio(pairs):.2f} x",
        )
    return results


def notes(measured: Measured) -> Iterator[str]:
    """What the table does not say."""
    yield (
        f"Everybody's pool timeout is {POOL_TIMEOUT:g} s (psycopg_pool's default: 30 s); a run "
        f"that is not done after {HARD_LIMIT:g} s is lost."
    )
    for name, pairs in measured.items():
        if lost := lost_in(pairs):
            failures = (f"{n} to {error}" for error, n in lost.most_common())
            yield f"{name} lost {', '.join(failures)}."


def rows(measured: Measured) -> list[dict[str, Any]]:
    """The same for JSON, with every single trial."""
    return [
        {
            "contestant": name,
            "runs": RUNS * len(pairs),
            "lost": lost_in(pairs).total(),
            "calm_seconds": statistics.median(pair.calm.seconds for pair in pairs),
            "storm_seconds": statistics.median(pair.storm.seconds for pair in pairs),
            "ratio": median_ratio(pairs),
            "repetitions": [asdict(pair) for pair in pairs],
        }
        for name, pairs in measured.items()
    ]


def main() -> int:
    """Measure, show, keep; 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--patience", type=float, default=PATIENCE, help="seconds to wait for quiet"
    )
    parser.add_argument("--quick", action="store_true", help="one repetition: does it work?")
    options = parser.parse_args()
    repeats = 1 if options.quick else options.repeats
    referee = Referee(0.0 if options.quick else options.patience)
    # Every lost connection is a warning of the pool's; they are made, but they are not shown.
    logging.basicConfig(handlers=[logging.NullHandler()])
    with server() as postgres, progress(repeats * len(CONTESTANTS) * 2) as step:
        measured = asyncio.run(measure_all(postgres, referee, repeats=repeats, step=step))
        goals = judge(measured)
        result = {"runs": RUNS, "pool_timeout": POOL_TIMEOUT, "rows": rows(measured)}
        keep("kill_storm", postgres.conninfo, result, goals)
    show(title(repeats), tabulate(measured, repeats), [*notes(measured), referee.verdict()], goals)
    return not all(goal.met for goal in goals)


if __name__ == "__main__":
    sys.exit(main())
