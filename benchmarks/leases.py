"""Ten thousand threads locked in one process, and what the database has to do for it.

`uv run benchmarks/leases.py`; what it means stands in benchmarks/README.md.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, NamedTuple

import psycopg
from measure import server
from report import Goal, keep, progress, show, table
from rich.table import Table

from lghard import ManagedPool, open_pool, thread_lock
from lghard.postgres import leases as leasing

LOCKS = 10_000
TTL = 30.0
POOL_SIZE = 10
TURNS = 500


class Held(NamedTuple):
    """What it took to hold so many locks.

    Attributes:
        locks: how many there were in the end.
        acquired: locks a second.
        statements: sent in each period, to keep them.
        renewal: seconds that one of these took; the longest.
        connections: held for as long as the locks are.
        refused: the error of who asked for one more, on a connection of its own.
    """

    locks: int
    acquired: float
    statements: float
    renewal: float
    connections: int
    refused: str


@contextmanager
def renewals() -> Iterator[list[tuple[int, float]]]:
    """How many leases each renewal had, and when it was begun."""
    seen: list[tuple[int, float]] = []
    renew = leasing.renew  # type: ignore[attr-defined]

    def noting(leases: Any) -> Any:
        seen.append((len(leases), time.perf_counter()))
        return renew(leases)

    leasing.renew = noting  # type: ignore[attr-defined]
    try:
        yield seen
    finally:
        leasing.renew = renew  # type: ignore[attr-defined]


async def with_leases(conninfo: str, number: int) -> Held:
    """`thread_lock`, for two periods."""
    async with open_pool(conninfo, max_size=POOL_SIZE) as pool, AsyncExitStack() as stack:
        began = time.perf_counter()
        for first in range(0, number, 500):
            locks = [thread_lock(pool, f"thread {n}", ttl=TTL) for n in range(first, first + 500)]
            await asyncio.gather(*map(stack.enter_async_context, locks))
        acquired = number / (time.perf_counter() - began)
        with renewals() as seen:
            longest = await _watch(pool, seen, number)
            borrowed = pool.snapshot().borrowed
        return Held(number, acquired, 1.0, longest, borrowed, await _one_more(conninfo))


async def _watch(pool: ManagedPool[Any], seen: list[tuple[int, float]], number: int) -> float:
    """Seconds that the longest of two renewals took; each must have had all of them."""
    longest = 0.0
    leases = leasing.Leases.of(pool)
    for already in range(2):
        while len(seen) <= already or leases._renewing is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        longest = max(longest, time.perf_counter() - seen[already][1])
    assert [number, number] == [each for each, _ in seen]
    return longest


# Five hundred in a statement: for want of a round trip each, it is faster than it could be.
_LOCK_SOME = "SELECT pg_advisory_lock(n) FROM generate_series(%s::int, %s) AS n"


async def with_advisory_locks(conninfo: str) -> Held:
    """`pg_advisory_lock`, as many as there may be, in a session that may not go back to a pool."""
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as conn:
        began, seconds = time.perf_counter(), 0.0
        try:
            for first in range(0, 100 * LOCKS, 500):
                await conn.execute(_LOCK_SOME, (first, first + 499))
                seconds = time.perf_counter() - began
        except psycopg.errors.OutOfMemory:
            pass  # those before the one that failed are held
        cursor = await conn.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        (locks,) = await cursor.fetchone() or (0,)
        acquired = locks / seconds
        return Held(locks, acquired, 0.0, 0.0, 1, await _one_more(conninfo))


async def _one_more(conninfo: str) -> str:
    """What somebody else hears who has nothing to do with these locks, and locks a thing or two."""
    try:
        async with await psycopg.AsyncConnection.connect(conninfo) as conn:
            await conn.execute("SELECT pg_advisory_xact_lock(-n) FROM generate_series(1, 50) AS n")
    except psycopg.Error as error:
        return type(error).__name__
    return ""


async def turns(conninfo: str, *, locked: bool) -> float:
    """Milliseconds for a turn that does nothing else, one after the other."""
    async with open_pool(conninfo, max_size=POOL_SIZE) as pool:
        began = time.perf_counter()
        for number in range(TURNS):
            if locked:
                async with thread_lock(pool, f"thread {number}"):
                    pass
            else:
                async with pool.connection() as conn, conn.transaction():
                    await conn.execute("SELECT pg_advisory_xact_lock(%s)", (number,))
        return 1000 * (time.perf_counter() - began) / TURNS


def tabulate(held: dict[str, Held], turn: dict[str, float]) -> Table:
    """Both, side by side."""
    results = table("", *held)
    rows = {
        "locks held": [f"{each.locks}" for each in held.values()],
        "acquired per second": [f"{each.acquired:.0f}" for each in held.values()],
        "statements per period": [f"{each.statements:.0f}" for each in held.values()],
        "renewal of all": [f"{1000 * each.renewal:.0f} ms" for each in held.values()],
        "connections held": [str(each.connections) for each in held.values()],
        "others hear": [each.refused or "nothing" for each in held.values()],
        "lock and unlock, alone": [f"{turn[name]:.2f} ms" for name in held],
    }
    for name, cells in rows.items():
        results.add_row(name, *cells)
    return results


def judge(held: dict[str, Held], number: int) -> list[Goal]:
    """Whether so many can be held."""
    ours = held["thread_lock"]
    return [
        Goal(f"{number} locks in one process", str(ours.locks), ours.locks == number),
        Goal("one renewal statement a period", f"{ours.statements:.0f}", ours.statements == 1),
        Goal(
            "it takes at most a tenth of a period",
            f"{1000 * ours.renewal:.0f} ms of {1000 * TTL / 3:.0f}",
            ours.renewal <= TTL / 30,
        ),
        Goal("no connection is held", str(ours.connections), ours.connections == 0),
        Goal("others are not refused", ours.refused or "nothing", not ours.refused),
    ]


def main() -> int:
    """Measure, show, keep; 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--locks", type=int, default=LOCKS, help="a multiple of 500")
    parser.add_argument("--quick", action="store_true", help="1,000 locks: does it work?")
    options = parser.parse_args()
    number = 1_000 if options.quick else options.locks
    held: dict[str, Held] = {}
    turn: dict[str, float] = {}
    with server() as postgres, progress(2) as step:
        conninfo = postgres.create_database()
        step("thread_lock")
        held["thread_lock"] = asyncio.run(with_leases(conninfo, number))
        turn["thread_lock"] = asyncio.run(turns(conninfo, locked=True))
        step("advisory locks")
        held["advisory locks"] = asyncio.run(with_advisory_locks(conninfo))
        turn["advisory locks"] = asyncio.run(turns(conninfo, locked=False))
        goals = judge(held, number)
        rows = {name: {**each._asdict(), "turn_ms": turn[name]} for name, each in held.items()}
        keep("leases", conninfo, {"locks": number, "ttl": TTL, "rows": rows}, goals)
    title = f"{number} threads locked at once; the server's settings are Postgres' own"
    show(title, tabulate(held, turn), [], goals)
    return not all(goal.met for goal in goals)


if __name__ == "__main__":
    sys.exit(main())
