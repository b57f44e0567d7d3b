"""shared_pool, called by real event loops in real threads, on a real Postgres."""

import asyncio
import gc
import os
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool, PoolClosed

from lghard import PoolOpenError, PoolSettings, close_shared_pools, shared_pool
from lghard.postgres.settings import CONNINFO_VARIABLES
from lghard.testing import TemporaryPostgres
from tests.postgres.scripts import script

Until = Callable[[Callable[[], object]], Awaitable[None]]
FACTORIES = 30


@pytest.fixture(autouse=True)
async def _clean(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Start without variables that say what a pool is, and end without a pool."""
    for name in [*os.environ]:
        if name in CONNINFO_VARIABLES or name.startswith(("PG", "LGHARD_POOL_")):
            monkeypatch.delenv(name)
    yield
    await close_shared_pools()


@pytest.fixture
def backends(
    lghard_postgres: TemporaryPostgres, lghard_empty_database: str
) -> Iterator[Callable[[], list[int]]]:
    """A function that tells the backends of this test's database."""
    name = lghard_empty_database.rpartition("/")[2]
    with psycopg.connect(lghard_postgres.conninfo, autocommit=True) as admin:
        query = "SELECT pid FROM pg_stat_activity WHERE datname = %s"
        yield lambda: [pid for (pid,) in admin.execute(query, [name])]


@pytest.fixture
def conninfo(lghard_empty_database: str) -> str:
    """The way to this test's database."""
    return lghard_empty_database


async def works(pool: AsyncConnectionPool[Any]) -> bool:
    """Whether a borrower gets a connection that a statement works on."""
    async with pool.connection() as conn:
        return bool(await (await conn.execute("SELECT 1")).fetchone())


@contextmanager
def loop_in_thread() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """A loop that runs in a thread of its own; the function runs a coroutine there."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield lambda coro: asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coro, loop))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def run_and_close(coro: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on a loop that is then closed, without the care that asyncio.run takes."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coro)
    finally:
        loop.close()


# One pool


async def test_upstream_in_graph_factories(
    conninfo: str, backends: Callable[[], list[int]]
) -> None:
    """The fault: a factory that opens a pool for each run needs as many backends as runs."""
    together = asyncio.Barrier(FACTORIES)
    peaks = []

    async def make_graph() -> None:
        async with AsyncConnectionPool(conninfo, min_size=2, open=False) as pool:
            await pool.wait()
            await together.wait()
            peaks.append(len(backends()))
            await together.wait()

    await asyncio.gather(*(make_graph() for _ in range(FACTORIES)))
    assert 2 * FACTORIES == max(peaks)


async def test_upstream_as_the_usual_singleton(
    conninfo: str, backends: Callable[[], list[int]], until: Until
) -> None:
    """The fault: while the first call waits for its pool, the second one opens another."""
    opened: list[AsyncConnectionPool[Any]] = []
    singleton: list[AsyncConnectionPool[Any]] = []

    async def get_pool() -> AsyncConnectionPool[Any]:
        if not singleton:
            opened.append(pool := AsyncConnectionPool(conninfo, min_size=2, open=False))
            await pool.open(wait=True)
            singleton[:] = [pool]
        return singleton[0]

    await asyncio.gather(*(get_pool() for _ in range(3)))
    await singleton[0].close()
    await until(lambda: 4 == len(backends()))
    for pool in opened:
        await pool.close()


async def test_a_thousand_concurrent_calls_open_one_pool(
    conninfo: str, backends: Callable[[], list[int]]
) -> None:
    """All that come before the first call has finished wait for its pool."""
    pools = await asyncio.gather(*(shared_pool(conninfo, min_size=2) for _ in range(1000)))
    assert 1 == len(set(pools))
    assert 2 == len(backends())
    assert await works(pools[0])


async def test_later_calls_get_the_same_pool(conninfo: str) -> None:
    """It stays open between the calls."""
    pool = await shared_pool(conninfo)
    assert await works(pool)
    assert pool is await shared_pool(conninfo)


async def test_a_pool_from_the_environment(monkeypatch: pytest.MonkeyPatch, conninfo: str) -> None:
    """Without an argument, as in a graph factory; a changed environment is noticed."""
    monkeypatch.setenv("POSTGRES_URI", conninfo)
    pool = await shared_pool()
    assert pool is await shared_pool()
    monkeypatch.setenv("POSTGRES_URI", f"{conninfo}?options=-csearch_path%3Da")
    assert pool is not await shared_pool()


async def test_one_database_in_two_spellings(conninfo: str) -> None:
    """A URI and key=value pairs name the same database."""
    pool = await shared_pool(conninfo)
    assert pool is await shared_pool(make_conninfo(conninfo))
    assert pool is await shared_pool(settings=PoolSettings(conninfo=conninfo))


async def test_a_database_that_is_left_out(lghard_postgres: TemporaryPostgres) -> None:
    """libpq takes the user's name for it."""
    pool = await shared_pool(lghard_postgres.conninfo)
    assert pool is await shared_pool(lghard_postgres.conninfo.removesuffix("/postgres"))


@pytest.mark.parametrize("change", [{"password": "b"}, {"options": "-csearch_path=b"}])
async def test_another_database(conninfo: str, change: dict[str, str]) -> None:
    """Whoever connects as somebody else, or to other tables, gets another pool."""
    pool = await shared_pool(make_conninfo(conninfo, password="a"))
    assert pool is not await shared_pool(make_conninfo(conninfo, **{"password": "a", **change}))


async def test_another_user(conninfo: str, lghard_postgres: TemporaryPostgres) -> None:
    """A pool is never lent to another user."""
    pool = await shared_pool(conninfo)
    with pytest.raises(PoolOpenError, match='role "somebody" does not exist'):
        await shared_pool(conninfo.replace("postgres@", "somebody@"))
    assert pool is await shared_pool(conninfo)


async def test_a_pool_that_a_caller_has_closed(conninfo: str) -> None:
    """`async with await shared_pool()` closes it for all; the next call opens another."""
    async with await shared_pool(conninfo) as pool:
        pass
    another = await shared_pool(conninfo)
    assert another is not pool
    assert await works(another)


async def test_the_first_callers_context_stays_its_own(conninfo: str) -> None:
    """What a run has in context variables does not live on in a pool's tasks."""
    run = ContextVar("run", default="none")
    seen = []

    async def configure(conn: AsyncConnection[Any]) -> None:
        seen.append(run.get())

    run.set("first")
    await shared_pool(conninfo, configure=configure)
    assert {"none"} == set(seen)


# Settings


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_size": 5}, "max_size was 4 and is 5"),
        ({"timeout": 7.0, "max_size": 5}, "max_size was 4 and is 5, timeout was 30.0 and is 7.0"),
        ({"kwargs": {"application_name": "s3cret"}}, "application_name of the connection"),
        ({"name": "other"}, "name is another object"),
    ],
)
async def test_other_settings_are_refused(
    conninfo: str, change: dict[str, Any], words: str
) -> None:
    """The second caller would not get what it asks for; values that may be secret are not told."""
    await shared_pool(conninfo, max_size=4)
    with pytest.raises(ValueError, match=words) as refused:
        await shared_pool(conninfo, **{"max_size": 4, **change})
    assert "s3cret" not in str(refused.value)


async def test_the_same_settings_in_two_spellings(conninfo: str) -> None:
    """What counts is the outcome."""
    pool = await shared_pool(conninfo, max_size=4)
    settings = PoolSettings(conninfo=conninfo, max_size=4)
    assert pool is await shared_pool(settings=settings)


async def test_no_repr_has_the_password(conninfo: str) -> None:
    """Neither what the registry holds nor what it says shows a password."""
    pool = await shared_pool(make_conninfo(conninfo, password="s3cret"), max_size=4)
    from lghard.postgres.shared import _registry  # noqa: PLC0415 - what it holds, not what it is

    (share,) = _registry._shares
    shown = [pool, share, share.call, share.asked, share.asked.database, vars(share)]
    assert [thing for thing in shown if "s3cret" in repr(thing)] == []


# A failed or a cancelled opening


async def test_all_who_wait_get_the_same_error(
    lghard_postgres: TemporaryPostgres, conninfo: str
) -> None:
    """One attempt fails all of them, is forgotten, and the next call tries again."""
    missing = f"{conninfo}_missing"
    waiting = (shared_pool(missing) for _ in range(20))
    errors = await asyncio.gather(*waiting, return_exceptions=True)
    assert 1 == len({id(error) for error in errors})
    assert isinstance(errors[0], PoolOpenError)
    name = missing.rpartition("/")[2]
    with psycopg.connect(lghard_postgres.conninfo, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    assert await works(await shared_pool(missing))
    await close_shared_pools()
    lghard_postgres.drop_database(missing)


async def test_an_error_that_nobody_waits_for(
    caplog: pytest.LogCaptureFixture, until: Until, conninfo: str
) -> None:
    """asyncio does not report it as never retrieved."""
    first = asyncio.create_task(shared_pool(f"{conninfo}_missing"))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    await until(lambda: 1 == len(asyncio.all_tasks()))
    gc.collect()
    assert [] == [record for record in caplog.records if record.name == "asyncio"]


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
async def test_a_cancelled_first_caller_fails_nobody_else(conninfo: str, steps: int) -> None:
    """The opening is not the first caller's."""
    first = asyncio.create_task(shared_pool(conninfo))
    others = [asyncio.create_task(shared_pool(conninfo)) for _ in range(3)]
    for _ in range(steps):
        await asyncio.sleep(0)
    first.cancel()
    pools = await asyncio.gather(*others)
    assert 1 == len(set(pools))
    assert await works(pools[0])
    with pytest.raises(asyncio.CancelledError):
        await first


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
async def test_closed_while_it_is_opened(
    conninfo: str, backends: Callable[[], list[int]], until: Until, steps: int
) -> None:
    """Who waits hears of it, and no connection stays behind, nor one that was just being made."""
    opening = asyncio.create_task(shared_pool(conninfo))
    for _ in range(steps):
        await asyncio.sleep(0)
    await close_shared_pools()
    with pytest.raises(PoolClosed, match="closed while this one was being opened"):
        await opening
    await until(lambda: not backends())


async def test_closed_while_a_callback_swallows_the_cancellation(
    conninfo: str, until: Until
) -> None:
    """So does asyncio.wait_for of Python 3.11 now and then."""
    configuring = []

    async def configure(conn: AsyncConnection[Any]) -> None:
        configuring.append(conn)
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60 if len(configuring) == 1 else 0)

    opening = asyncio.create_task(shared_pool(conninfo, configure=configure))
    await until(lambda: configuring)
    async with asyncio.timeout(20):
        await close_shared_pools()
    with pytest.raises(PoolClosed):
        await opening


# A budget for all loops


async def test_the_budget_is_divided_among_the_loops(conninfo: str) -> None:
    """Two loops in two threads have two pools, of half the size."""
    ours = await shared_pool(conninfo, max_size=9, loops=2)
    with loop_in_thread() as run:
        theirs = await run(shared_pool(conninfo, max_size=9, loops=2))
        assert (4, 4) == (ours.max_size, theirs.max_size)
        assert ours is not theirs
        assert await run(works(theirs))


async def test_many_loops_stay_within_the_budget(
    conninfo: str, backends: Callable[[], list[int]]
) -> None:
    """However many borrow at once, in however many loops."""
    borrowed = threading.Barrier(4, timeout=20)
    peaks = []

    async def borrow_all() -> None:
        pool = await shared_pool(conninfo, max_size=8, min_size=0, loops=4)
        conns = [await pool.getconn() for _ in range(pool.max_size)]
        await asyncio.to_thread(borrowed.wait)
        peaks.append(len(backends()))
        await asyncio.to_thread(borrowed.wait)
        for conn in conns:
            await pool.putconn(conn)

    await asyncio.gather(*(asyncio.to_thread(asyncio.run, borrow_all()) for _ in range(4)))
    assert 8 == max(peaks)


async def test_one_loop_too_many_is_refused_with_the_numbers(conninfo: str) -> None:
    """Rather than exceed what the process may have."""
    pool = await shared_pool(conninfo, max_size=9)
    expected = (
        r"1 event loops of this process have 9 connections each to .*, and this is one more: set "
        r"loops \(LGHARD_POOL_LOOPS, now 1\) to at least 2, which leaves 4 of max_size=9 for each"
    )
    with loop_in_thread() as run, pytest.raises(ValueError, match=expected):
        await run(shared_pool(conninfo, max_size=9))
    assert await works(pool)


async def test_more_loops_than_connections_are_refused_with_the_numbers(
    monkeypatch: pytest.MonkeyPatch, conninfo: str
) -> None:
    """As on a LangGraph server with isolated loops, and the default size."""
    monkeypatch.setenv("BG_JOB_ISOLATED_LOOPS", "true")
    monkeypatch.setenv("N_JOBS_PER_WORKER", "10")
    expected = r"max_size=10 .* loops=11: raise max_size \(LGHARD_POOL_MAX_SIZE\) to at least 11"
    with pytest.raises(ValueError, match=expected):
        await shared_pool(conninfo)


@pytest.mark.parametrize("change", [{"max_size": 9}, {"loops": 3}])
async def test_loops_that_disagree_about_the_budget(conninfo: str, change: dict[str, int]) -> None:
    """There is one budget for the process."""
    await shared_pool(conninfo, max_size=8, loops=2)
    with loop_in_thread() as run, pytest.raises(ValueError, match="the budget is one for all"):
        await run(shared_pool(conninfo, **{"max_size": 8, "loops": 2, **change}))


async def test_min_size_is_no_more_than_the_share(conninfo: str) -> None:
    """A loop does not keep more connections than it may have."""
    pool = await shared_pool(conninfo, min_size=5, max_size=8, loops=4)
    assert (2, 2) == (pool.min_size, pool.max_size)


async def test_the_server_is_compared_once(caplog: pytest.LogCaptureFixture, conninfo: str) -> None:
    """Not once for each loop."""
    asked = {"max_size": 100_000, "loops": 2}
    await shared_pool(conninfo, **asked)
    with loop_in_thread() as run:
        await run(shared_pool(conninfo, **asked))
    (warning,) = [record for record in caplog.records if record.name == "lghard.postgres"]
    assert "max_size=50000 * 2 event loops (LGHARD_POOL_LOOPS)" in warning.getMessage()


# Closing


async def test_close_closes_the_pools_of_all_loops(
    conninfo: str, backends: Callable[[], list[int]], until: Until
) -> None:
    """Each in its own loop; a later call opens another."""
    ours = await shared_pool(conninfo, loops=2)
    with loop_in_thread() as run:
        theirs = await run(shared_pool(conninfo, loops=2))
        await close_shared_pools()
        assert (True, True) == (ours.closed, theirs.closed)
        await until(lambda: not backends())
        assert await works(await shared_pool(conninfo, loops=2))


async def test_close_waits_for_borrowers(conninfo: str, until: Until) -> None:
    """A run that is writing its last checkpoint finishes it, in whichever loop."""
    with loop_in_thread() as run:
        pool = await run(shared_pool(conninfo))
        conn = await run(pool.getconn())
        closing = asyncio.create_task(close_shared_pools())
        await until(lambda: pool._draining)
        await run(conn.execute("SELECT 1"))
        assert not closing.done()
        await run(pool.putconn(conn))
        await closing
    assert conn.closed


async def test_asyncio_run_waits_for_no_borrower(conninfo: str) -> None:
    """Where the loop ends, whoever had a connection has been cancelled or has forgotten it."""

    async def forget() -> AsyncConnection[Any]:
        return await (await shared_pool(conninfo, drain_timeout=600)).getconn()

    async with asyncio.timeout(20):
        await asyncio.to_thread(asyncio.run, forget())


async def test_closing_nothing() -> None:
    """It is safe at the end of any lifespan."""
    await close_shared_pools()
    await close_shared_pools()


async def test_a_loop_between_two_runs(
    conninfo: str, backends: Callable[[], list[int]], until: Until
) -> None:
    """A worker's loop only runs while it has a job; its pool can be closed meanwhile."""
    with ThreadPoolExecutor(1) as worker:
        loop = worker.submit(asyncio.new_event_loop).result()

        async def job() -> bool:
            return await works(await shared_pool(conninfo))

        run = lambda: worker.submit(lambda: loop.run_until_complete(job())).result()  # noqa: E731
        assert run()
        await close_shared_pools()
        await until(lambda: not backends())
        assert run()
        worker.submit(loop.close).result()


# Loops that end


async def test_upstream_outlives_its_loop(conninfo: str, backends: Callable[[], list[int]]) -> None:
    """The fault: a pool that nobody closes keeps its connections until the process ends."""

    async def open_pool() -> AsyncConnectionPool[Any]:
        pool = AsyncConnectionPool(conninfo, min_size=3, open=False)
        await pool.open(wait=True)
        return pool

    pool = await asyncio.to_thread(asyncio.run, open_pool())
    assert 3 == len(backends())
    for conn in pool._pool:
        conn.pgconn.finish()


async def test_asyncio_run_closes_its_pool(
    conninfo: str, backends: Callable[[], list[int]], until: Until
) -> None:
    """The pool ends with its loop, without a call."""
    await asyncio.to_thread(asyncio.run, shared_pool(conninfo, min_size=3))
    await until(lambda: not backends())


async def test_the_pool_of_a_closed_loop_is_finished_by_the_next_call(
    conninfo: str, backends: Callable[[], list[int]], until: Until
) -> None:
    """Lent connections included, and its share is free for another loop."""

    async def borrow() -> AsyncConnection[Any]:
        return await (await shared_pool(conninfo, min_size=2)).getconn()

    lent = await asyncio.to_thread(run_and_close, borrow())
    left = backends()
    assert 2 == len(left)
    assert await works(await shared_pool(conninfo, min_size=2))
    assert lent.closed
    await until(lambda: not {*left} & {*backends()})


async def test_a_loop_that_its_thread_has_left(
    conninfo: str, backends: Callable[[], list[int]], until: Until
) -> None:
    """LangGraph's worker loops are never closed: their threads end."""
    with ThreadPoolExecutor(1) as worker:
        loop = worker.submit(asyncio.new_event_loop).result()
        worker.submit(lambda: loop.run_until_complete(shared_pool(conninfo))).result()
    assert 1 == len(backends())
    await close_shared_pools()
    await until(lambda: not backends())
    loop.close()


async def test_the_pool_of_a_finished_loop_says_so(conninfo: str) -> None:
    """Whoever has kept it can see that it is closed."""
    pool = await asyncio.to_thread(run_and_close, shared_pool(conninfo))
    await close_shared_pools()
    assert pool.closed


QUIET = """
import asyncio, gc, sys
from psycopg_pool import AsyncConnectionPool
from lghard import shared_pool

async def upstream(conninfo):
    global pool
    pool = AsyncConnectionPool(conninfo, open=False)
    await pool.open(wait=True)

async def lghard(conninfo):
    await shared_pool(conninfo, loops=10)

for _ in range(3):
    loop = asyncio.new_event_loop()
    loop.run_until_complete(globals()[sys.argv[1]](sys.argv[2]))
    loop.close()
"""

AT_EXIT = """
import asyncio, atexit, sys, threading
from lghard import shared_pool

conns = []
atexit.register(lambda: print([conn.closed for conn in conns]))  # runs after lghard's

async def connect():
    pool = await shared_pool(sys.argv[1], loops=2)
    conns.extend(pool._pool)

def serve(opened):
    loop = asyncio.new_event_loop()
    loop.run_until_complete(connect())
    opened.set()
    loop.run_forever()

opened = threading.Event()
threading.Thread(target=serve, args=[opened], daemon=True).start()
opened.wait()
loop = asyncio.new_event_loop()
loop.run_until_complete(connect())
"""


def test_upstream_is_noisy_about_a_closed_loop(conninfo: str) -> None:
    """The fault: tasks that nobody can end any more are reported when they are dropped."""
    assert "Task was destroyed but it is pending" in script(QUIET, "upstream", conninfo).stderr


def test_closed_loops_are_quiet(conninfo: str) -> None:
    """Nothing is reported, neither on the next call nor at exit."""
    done = script(QUIET, "lghard", conninfo)
    assert (0, "") == (done.returncode, done.stderr)


def test_exit_with_open_loops(conninfo: str) -> None:
    """One loop still runs in a daemon thread, another one was never closed; nothing is reported."""
    done = script(AT_EXIT, conninfo)
    assert (0, "[True, True]\n", "") == (done.returncode, done.stdout, done.stderr)


# Forked children

FORK = """
import asyncio, os, sys
import psycopg
from psycopg_pool import AsyncConnectionPool
from lghard import shared_pool

def ask(conn):
    try:
        result = conn.pgconn.exec_(b"SELECT pg_backend_pid()")
        return result.get_value(0, 0).decode() if result.ntuples else "lost"
    except psycopg.Error:
        return "lost"

async def upstream(conninfo):
    pool = AsyncConnectionPool(conninfo, min_size=1, open=False)
    await pool.open(wait=True)
    return pool

async def lghard(conninfo):
    return await shared_pool(conninfo)

async def child_pid(conninfo):
    async with (await lghard(conninfo)).connection() as conn:
        return conn.info.backend_pid

loop = asyncio.new_event_loop()
pool = loop.run_until_complete(globals()[sys.argv[1]](sys.argv[2]))
conn = pool._pool[0]
mine = ask(conn)
pid = os.fork()
if pid == 0:
    inherited = ask(conn)
    new = str(asyncio.run(child_pid(sys.argv[2])))
    print("inherited:", inherited == mine, "new:", new != mine, flush=True)
    sys.exit(0)
os.waitpid(pid, 0)
print("parent:", ask(conn) == mine, flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_upstream_in_a_forked_child(conninfo: str) -> None:
    """The fault: a child talks on its parent's connection, and so into its parent's protocol."""
    assert "inherited: True" in script(FORK, "upstream", conninfo).stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_has_connections_of_its_own(conninfo: str) -> None:
    """It finds the inherited one lost, opens another pool, and leaves its parent's alone."""
    done = script(FORK, "lghard", conninfo)
    assert "inherited: False new: True\nparent: True\n" == done.stdout
    assert "" == done.stderr


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are of Python 3.12")
def test_eager_tasks(conninfo: str) -> None:
    """A task that starts before create_task returns finds everything in place."""

    async def main() -> bool:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore
        return await works(await shared_pool(conninfo))

    assert asyncio.run(main())
