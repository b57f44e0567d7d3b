"""Ten thousand threads locked in one process, and what the database has to do for it.

`uv run benchmarks/leases.py`; what it means stands in benchmarks/README.md.
"""

import argparse
import asyncio
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar

import psycopg
from measure import server
from report import Goal, keep, progress, show, table
from rich.table import Table

from lghard import open_pool, thread_lock
from lghard.postgres import lease_desk

T = TypeVar("T")

LOCKS = 10_000
TTL = 30.0
POOL_SIZE = 10
LOOPS = 11  # of a LangGraph server with BG_JOB_ISOLATED_LOOPS
OURS = ("thread_lock", f"thread_lock, {LOOPS} loops")
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


class Renewal(NamedTuple):
    """A renewal: how many leases it had, and how long it took."""

    leases: int
    seconds: float


@contextmanager
def renewals() -> Iterator[list[Renewal]]:
    """Those that are sent inside the block, as soon as they are done."""
    seen: list[Renewal] = []
    ask = lease_desk.Desk.ask

    async def noting(desk: Any, statements: Any, *args: float) -> Any:
        began = time.perf_counter()
        answer = await ask(desk, statements, *args)
        params = statements[-1].params
        if "epochs" in params:
            seen.append(Renewal(len(params["epochs"]), time.perf_counter() - began))
        return answer

    lease_desk.Desk.ask = noting  # type: ignore[assignment,method-assign]
    try:
        yield seen
    finally:
        lease_desk.Desk.ask = ask  # type: ignore[method-assign]


class Loop:
    """An event loop in a thread of its own, with a pool of its own, that holds locks."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self._locks = AsyncExitStack()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, done there."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))

    async def open(self, conninfo: str, size: int) -> None:
        """Have a pool."""
        opening = open_pool(conninfo, max_size=size)
        self.pool = await self._locks.enter_async_context(opening)

    async def lock(self, number: int) -> None:
        """Lock so many threads, 500 at a time."""
        for first in range(0, number, 500):
            names = [f"{self.name}, thread {n}" for n in range(first, min(first + 500, number))]
            locks = [thread_lock(self.pool, name, ttl=TTL) for name in names]
            await asyncio.gather(*map(self._locks.enter_async_context, locks))

    async def close(self) -> None:
        """Give them back, and close the pool."""
        await self._locks.aclose()

    def end(self) -> None:
        """End the loop."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


async def with_leases(conninfo: str, number: int, loops: int = 1) -> Held:
    """`thread_lock`, for two periods and a bit."""
    running = [Loop(f"loop {at}") for at in range(loops)]
    size = max(2, POOL_SIZE // loops)
    shares = [number // loops + (at < number % loops) for at in range(loops)]
    await asyncio.gather(*(loop.run(loop.open(conninfo, size)) for loop in running))
    began = time.perf_counter()
    pairs = zip(running, shares, strict=True)
    await asyncio.gather(*(loop.run(loop.lock(share)) for loop, share in pairs))
    acquired = number / (time.perf_counter() - began)
    with renewals() as seen:
        await asyncio.sleep(2.5 * TTL / 3)
        borrowed = sum(loop.pool.snapshot().borrowed for loop in running)
    assert {number} == {each.leases for each in seen}
    refused = await _one_more(conninfo)
    await asyncio.gather(*(loop.run(loop.close()) for loop in running))
    for loop in running:
        loop.end()
    longest = max(each.seconds for each in seen)
    return Held(number, acquired, round(len(seen) / 2.5), longest, borrowed, refused)


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
    ours = [held[name] for name in OURS]
    statements = [f"{each.statements:g}" for each in ours]
    longest = max(each.renewal for each in ours)
    connections = sum(each.connections for each in ours)
    refused = ", ".join(filter(None, (each.refused for each in ours)))
    return [
        Goal(
            f"{number} locks in one process, in one loop or {LOOPS}",
            " and ".join(str(each.locks) for each in ours),
            all(each.locks == number for each in ours),
        ),
        Goal(
            "one renewal statement a period",
            " and ".join(statements),
            all(each.statements == 1 for each in ours),
        ),
        Goal(
            "it takes at most a tenth of a period",
            f"{1000 * longest:.0f} ms of {1000 * TTL / 3:.0f}",
            longest <= TTL / 30,
        ),
        Goal("no connection is held", str(connections), connections == 0),
        Goal("others are not refused", refused or "nothing", not refused),
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
    with server() as postgres, progress(3) as step:
        conninfo = postgres.create_database()
        for name, loops in zip(OURS, (1, LOOPS), strict=True):
            step(name)
            held[name] = asyncio.run(with_leases(conninfo, number, loops))
            turn[name] = asyncio.run(turns(conninfo, locked=True))
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
