"""A hundred users of LangGraph's store, while every connection to its database dies all the time.

    uv run examples/remember.py

A real Postgres is started; nothing is mocked. Each user puts twenty memories, one after the other,
reads each one back and searches for all so far. Meanwhile every connection is terminated each
100 ms. First with lghard's store, then with LangGraph's own on a psycopg pool that checks its
connections.
"""

import asyncio
import logging
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic

import psycopg
from langgraph.store.postgres import AsyncPostgresStore
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool
from rich import box
from rich.console import Console
from rich.table import Table

from lghard import open_store
from lghard.testing import TemporaryPostgres, temporary_postgres

USERS = 100
MEMORIES = 20  # of each user
THINKING = 0.1  # seconds between two of them
POOL_SIZE = 10

Store = Callable[[str], AbstractAsyncContextManager[AsyncPostgresStore]]


@asynccontextmanager
async def lghard(conninfo: str) -> AsyncIterator[AsyncPostgresStore]:
    async with open_store(conninfo, max_size=POOL_SIZE) as store:
        yield store


@asynccontextmanager
async def upstream(conninfo: str) -> AsyncIterator[AsyncPostgresStore]:
    async with AsyncConnectionPool[psycopg.AsyncConnection[DictRow]](
        conninfo,
        max_size=POOL_SIZE,
        kwargs={"autocommit": True, "row_factory": dict_row},
        check=AsyncConnectionPool.check_connection,
        timeout=5,
        open=False,
    ) as pool:
        store = AsyncPostgresStore(pool)
        await store.setup()
        yield store
        if store._task:  # or it is destroyed while it waits, as asyncio says at some time
            store._task.cancel()
            await asyncio.wait({store._task})


@dataclass
class Outcome:
    """What became of the users of one store."""

    name: str
    served: int = 0
    remembered: int = 0
    killed: int = 0
    seconds: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)

    def column(self) -> list[str]:
        worst = self.errors.most_common(1)
        return [
            f"{self.served} of {USERS}",
            f"{self.remembered} of {USERS * MEMORIES}",
            str(self.errors.total()),
            f"{worst[0][1]} times: {worst[0][0]}" if worst else "none",
            str(self.killed),
            f"{self.seconds:.1f} s",
        ]


async def remember(open_one: Store, server: TemporaryPostgres, outcome: Outcome) -> None:
    """All users under fire; afterwards, in peace, what the database holds is counted."""
    conninfo = await asyncio.to_thread(server.create_database)
    async with open_one(conninfo) as store:
        began = monotonic()
        serving = asyncio.gather(*(one_user(store, str(user), outcome) for user in range(USERS)))
        while not serving.done():
            outcome.killed += await asyncio.to_thread(server.terminate_backends)
            await asyncio.wait({serving}, timeout=0.1)
        outcome.seconds = monotonic() - began
    # A store that has never seen trouble reads what the other one has left.
    async with upstream(conninfo) as store:
        for user in range(USERS):
            found = await store.asearch(("users", str(user)), limit=MEMORIES)
            outcome.remembered += sum(item.value == {"number": int(item.key)} for item in found)


async def one_user(store: AsyncPostgresStore, user: str, outcome: Outcome) -> None:
    namespace = ("users", user)
    try:
        for number in range(MEMORIES):
            await store.aput(namespace, str(number), {"number": number})
            read = await store.aget(namespace, str(number))
            found = await store.asearch(namespace, limit=MEMORIES)
            assert read is not None
            assert (read.value, len(found)) == ({"number": number}, number + 1)
            await asyncio.sleep(THINKING)
    except (psycopg.Error, AssertionError) as error:
        outcome.errors[f"{type(error).__name__}: {error}".splitlines()[0]] += 1
    else:
        outcome.served += 1


def table(console: Console, outcomes: list[Outcome]) -> Table:
    title = f"{USERS} users put, get and search; every connection is killed each 100 ms"
    shown = Table("", *(outcome.name for outcome in outcomes), title=title)
    shown.box = box.ROUNDED if console.is_terminal else box.ASCII
    rows = ["users served", "memories kept", "users lost", "error", "killed", "time"]
    for row in zip(rows, *(outcome.column() for outcome in outcomes), strict=True):
        shown.add_row(*row)
    return shown


async def main(console: Console) -> list[Outcome]:
    outcomes = [Outcome("lghard"), Outcome("AsyncPostgresStore, check=")]
    stores: list[Store] = [lghard, upstream]
    with temporary_postgres() as server:
        for open_one, outcome in zip(stores, outcomes, strict=True):
            console.print(f"{outcome.name}: {USERS} users under fire ...")
            await remember(open_one, server, outcome)
    return outcomes


if __name__ == "__main__":
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)  # it reports each connection that dies
    logging.getLogger("lghard").setLevel(logging.ERROR)
    console = Console()
    ours, theirs = asyncio.run(main(console))
    console.print(table(console, [ours, theirs]))
    sys.exit(0 if ours.served == USERS and ours.remembered == USERS * MEMORIES else 1)
