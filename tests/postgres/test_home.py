"""open_checkpointer in several event loops of one process, each in a thread of its own."""

import asyncio
import gc
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psutil
import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from lghard import PoolOpenError, open_checkpointer
from lghard.postgres import home as home_module
from lghard.postgres import io_thread, shared
from lghard.testing import FaultProxy, TemporaryPostgres
from tests.postgres.checkpoints import config_of, eventually, put, waiting_backend
from tests.postgres.scripts import script

LOOPS = 11  # of a LangGraph server with isolated loops: its own, and ten for runs
BUDGET = 3
TURNS = 20


@pytest.fixture
def conninfo(lghard_database: str) -> str:
    """The way to this test's database, with LangGraph's tables."""
    return lghard_database


@pytest.fixture
def backends(lghard_postgres: TemporaryPostgres, conninfo: str) -> Iterator[Callable[[], int]]:
    """A function that counts the backends of this test's database."""
    name = conninfo.rpartition("/")[2]
    with psycopg.connect(lghard_postgres.conninfo, autocommit=True) as admin:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
        yield lambda: admin.execute(query, [name]).fetchone()[0]


class Loop:
    """An event loop in a thread of its own, with a checkpointer."""

    def __init__(self, conninfo: str, **overrides: Any) -> None:
        self.conninfo = conninfo
        self.overrides = {"max_size": BUDGET, **overrides}
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def submit(self, coro: Any) -> "asyncio.Future[Any]":
        """Run a coroutine there."""
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coro, self.loop))

    async def enter(self) -> "Loop":
        """Open a checkpointer there, and never close it, as a LangGraph server does."""
        self.block = open_checkpointer(self.conninfo, **self.overrides)
        self.saver = await self.submit(self.block.__aenter__())
        return self

    async def leave(self) -> None:
        """Close the checkpointer there."""
        await self.submit(self.block.__aexit__(None, None, None))

    async def turns(self, thread_id: str, count: int = TURNS) -> int:
        """Write and read that many checkpoints of a thread; returns the last one's number."""
        return await self.submit(turns(self.saver, thread_id, count))

    def hang(self) -> threading.Event:
        """Block this loop until the event is set."""
        release, blocked = threading.Event(), threading.Event()
        self.loop.call_soon_threadsafe(lambda: (blocked.set(), release.wait(30)))
        blocked.wait()
        return release

    def close(self) -> None:
        """End the loop as asyncio.run does, without leaving the checkpointer."""
        if not self.loop.is_closed():
            asyncio.run_coroutine_threadsafe(cancel_all(), self.loop).result()
            self.close_abruptly()

    def close_abruptly(self) -> None:
        """End the loop, whatever it is doing."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


async def cancel_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def turns(saver: Any, thread_id: str, count: int) -> int:
    for number in range(1, count + 1):
        await put(saver, thread_id, number)
        found = await saver.aget_tuple(config_of(thread_id))
        assert f"message {number}" == found.checkpoint["channel_values"]["messages"][0].content
    return count


async def begin(saver: Any) -> "asyncio.Task[None]":
    """A task that writes for as long as its loop runs; it has done so once."""

    async def write() -> None:
        while True:
            await put(saver, "endless")

    await put(saver, "endless")
    return asyncio.create_task(write())


@contextmanager
def closing(loops: list[Loop]) -> Iterator[None]:
    try:
        yield
    finally:
        for loop in loops:
            loop.close()


@asynccontextmanager
async def entered(number: int, conninfo: str, **overrides: Any) -> AsyncIterator[list[Loop]]:
    """That many loops, each with a checkpointer, entered one after the other."""
    loops = [Loop(conninfo, **overrides) for _ in range(number)]
    with closing(loops):
        for loop in loops:
            await loop.enter()
        yield loops


# One budget


async def test_upstream_has_a_pool_for_each_loop(
    conninfo: str, backends: Callable[[], int]
) -> None:
    """Control: what a server does with upstream's saver, once per loop, multiplies connections."""
    loops = [Loop(conninfo) for _ in range(LOOPS)]

    async def enter() -> Any:
        pool = AsyncConnectionPool(
            conninfo, min_size=BUDGET, kwargs={"row_factory": dict_row}, open=False
        )
        await pool.open(wait=True)
        return pool, AsyncPostgresSaver(pool)

    with closing(loops):
        pools = [await loop.submit(enter()) for loop in loops]
        assert LOOPS * BUDGET == backends()
        for loop, (pool, _) in zip(loops, pools, strict=True):
            await loop.submit(pool.close())


@pytest.mark.usefixtures("batching")
async def test_many_loops_stay_within_one_budget(
    conninfo: str, backends: Callable[[], int]
) -> None:
    """Eleven loops at work at once, and never more connections than max_size."""
    peak = 0
    async with entered(LOOPS, conninfo) as loops:
        working = asyncio.gather(*(loop.turns(f"t{n}") for n, loop in enumerate(loops)))
        while not working.done():
            peak = max(peak, backends())
            await asyncio.sleep(0.005)
        assert [TURNS] * LOOPS == await working
    assert 1 < peak <= BUDGET


async def test_a_single_loop_has_no_thread(conninfo: str) -> None:
    """As long as there is one loop, its connections are its own: a thread would cost time."""
    before = set(threading.enumerate())
    async with open_checkpointer(conninfo) as saver:
        await turns(saver, "t", 1)
        await asyncio.to_thread(lambda: None)  # of asyncio's own
        new = {thread.name for thread in set(threading.enumerate()) - before}
    assert not any(name.startswith("lghard") for name in new)


async def test_one_loop_opens_one_pool(conninfo: str) -> None:
    """A server may enter a checkpointer several times in one loop; they share, to the last."""
    async with open_checkpointer(conninfo) as one:
        async with open_checkpointer(conninfo) as other:
            assert one.conn is other.conn
        assert 1 == await turns(one, "t", 1)
    assert one.conn.closed


async def test_other_settings_are_another_pool(conninfo: str) -> None:
    """What is asked for is what one gets."""
    async with (
        open_checkpointer(conninfo, max_size=2) as one,
        open_checkpointer(conninfo, max_size=3) as other,
    ):
        assert (2, 3) == (one.conn.max_size, other.conn.max_size)


async def test_the_last_who_leaves_closes(conninfo: str, backends: Callable[[], int]) -> None:
    """In whatever order loops leave, nothing is left when all have."""
    async with entered(3, conninfo) as loops:
        await loops[0].leave()
        assert 1 == await loops[1].turns("t", 1)
        await loops[2].leave()
        assert 1 == await loops[1].turns("t", 1)
        await loops[1].leave()
        await eventually(lambda: not backends())
        with pytest.raises(PoolClosed):
            await loops[1].turns("t", 1)


async def test_who_enters_while_the_last_one_leaves_waits(
    conninfo: str, backends: Callable[[], int]
) -> None:
    """Until its connections are closed: both together would exceed the budget."""
    async with entered(1, conninfo, min_size=BUDGET) as [old]:
        native = old.saver.conn
        lent = await old.submit(native.getconn())
        leaving = asyncio.create_task(old.leave())
        await eventually(lambda: native._draining)
        new = Loop(conninfo, min_size=BUDGET)
        with closing([new]):
            entering = asyncio.create_task(new.enter())
            await old.submit(asyncio.sleep(0.1))
            assert not entering.done()
            await old.submit(native.putconn(lent))
            await asyncio.gather(leaving, entering)
            assert 1 == await new.turns("t", 1)
            await eventually(lambda: backends() <= BUDGET)


async def test_who_is_cancelled_while_leaving_leaves_no_thread(conninfo: str) -> None:
    """The last one would wait for a connection that is in use."""
    async with entered(2, conninfo) as loops:
        home = loops[0].saver._place
        borrowing = asyncio.run_coroutine_threadsafe(home.pool.getconn(), home._thread.loop)
        await asyncio.wrap_future(borrowing)
        await loops[0].leave()
        leaving = asyncio.create_task(loops[1].leave())
        await eventually(lambda: home.pool._draining)
        leaving.cancel()
        await eventually(lambda: not home._thread.is_alive())


async def test_a_pool_that_was_closed_by_mistake_is_not_shared(conninfo: str) -> None:
    """Somebody who never leaves would otherwise keep everybody else from ever opening another."""
    async with open_checkpointer(conninfo) as one:
        await one.conn.close()
        async with open_checkpointer(conninfo) as other:
            assert 1 == await turns(other, "t", 1)


async def test_opened_again_after_all_have_left(conninfo: str) -> None:
    """A home is not for life."""
    for _ in range(2):
        async with entered(2, conninfo) as loops:
            assert 1 == await loops[0].turns("t", 1)
            await asyncio.gather(*(loop.leave() for loop in loops))


# Moving


@pytest.mark.usefixtures("batching")
async def test_nothing_is_lost_by_moving(conninfo: str) -> None:
    """The first loop is in the middle of its work when the second one comes."""
    loops = [Loop(conninfo), Loop(conninfo)]
    with closing(loops):
        await loops[0].enter()
        working = asyncio.gather(*(loops[0].turns(f"t{n}") for n in range(8)))
        await asyncio.sleep(0)
        await loops[1].enter()
        assert TURNS == await loops[1].turns("other")
        assert [TURNS] * 8 == await working
        assert loops[0].saver.conn is loops[1].saver.conn


async def test_a_second_loop_comes_while_the_first_is_blocked(
    conninfo: str, backends: Callable[[], int]
) -> None:
    """Idle connections of a loop that does not answer are closed from outside."""
    loops = [Loop(conninfo, min_size=BUDGET), Loop(conninfo, min_size=BUDGET)]
    with closing(loops):
        await loops[0].enter()
        release = loops[0].hang()
        await loops[1].enter()
        assert TURNS == await loops[1].turns("other")
        assert BUDGET >= backends()
        release.set()
        assert TURNS == await loops[0].turns("t")


async def test_a_loop_is_blocked_while_it_connects(
    conninfo: str, backends: Callable[[], int]
) -> None:
    """What it has begun to connect is its part of the budget, too."""
    release, blocked = threading.Event(), threading.Event()
    connected = []

    async def configure(conn: object) -> None:
        connected.append(conn)
        if len(connected) == 2:  # the first one of the pool, while the others are on their way
            blocked.set()
            release.wait(30)

    overrides = {"min_size": BUDGET, "configure": configure}
    loops = [Loop(conninfo, **overrides), Loop(conninfo, **overrides)]
    with closing(loops):
        entering = [asyncio.create_task(loops[0].enter())]
        await asyncio.to_thread(blocked.wait)
        native = next(iter(home_module._homes._homes))._share
        entering.append(asyncio.create_task(loops[1].enter()))
        await eventually(lambda: native.pool._connecting == BUDGET)
        counted = native.open_connections()
        release.set()
        await asyncio.gather(*entering)
        assert BUDGET <= counted
        await eventually(lambda: backends() <= BUDGET)


async def test_a_blocked_loop_keeps_what_it_has_borrowed(
    conninfo: str, backends: Callable[[], int]
) -> None:
    """Its part of the budget comes back when it does."""
    loops = [Loop(conninfo), Loop(conninfo)]
    with closing(loops):
        await loops[0].enter()
        lent = await loops[0].submit(loops[0].saver.conn.getconn())
        native = loops[0].saver.conn
        release = loops[0].hang()
        await loops[1].enter()
        assert (TURNS, BUDGET - 1) == (await loops[1].turns("t"), loops[1].saver.conn.max_size)
        release.set()
        await loops[0].submit(native.putconn(lent))
        await eventually(lambda: loops[1].saver.conn.max_size == BUDGET)
        assert BUDGET >= backends()


async def test_a_loop_that_was_blocked_makes_no_new_connections(conninfo: str) -> None:
    """Who waits there is served with what comes back: the rest of the budget is elsewhere."""
    loops = [Loop(conninfo), Loop(conninfo)]
    with closing(loops):
        await loops[0].enter()
        native = loops[0].saver.conn
        lent = await loops[0].submit(native.getconn())
        release = loops[0].hang()
        second = loops[0].submit(native.getconn())
        await loops[1].enter()
        release.set()
        await eventually(lambda: native._draining)
        await loops[0].submit(asyncio.sleep(0.1))
        await loops[0].submit(native.putconn(lent))
        assert lent is await second
        await loops[0].submit(native.putconn(lent))


@pytest.mark.usefixtures("batching")
@pytest.mark.parametrize("borrowed", [BUDGET - 1, BUDGET])
async def test_a_loop_ends_while_its_connections_move(
    borrowed: int, conninfo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had borrowed, and will never give back, is part of the budget again."""
    monkeypatch.setattr(home_module, "_RETIRE", 0.05)
    loops = [Loop(conninfo), Loop(conninfo)]
    with closing(loops):
        await loops[0].enter()
        native = loops[0].saver.conn
        lent = [await loops[0].submit(native.getconn()) for _ in range(borrowed)]
        entering = asyncio.create_task(loops[1].enter())
        await eventually(lambda: native._draining)
        if borrowed < BUDGET:
            await entering
        loops[0].close_abruptly()
        await entering
        await eventually(lambda: loops[1].saver.conn.max_size == BUDGET)
        assert all(conn.closed for conn in lent)
        assert 1 == await loops[1].turns("t", 1)


async def test_a_thread_that_cannot_start_changes_nothing(
    conninfo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second loop hears of it, and may try again; the first one goes on."""

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    loops = [Loop(conninfo), Loop(conninfo)]
    with closing(loops):
        await loops[0].enter()
        with monkeypatch.context() as patch:
            patch.setattr(io_thread.IOThread, "start", refuse)
            with pytest.raises(RuntimeError, match="new thread"):
                await loops[1].enter()
        assert 1 == await loops[0].turns("t", 1)
        await loops[1].enter()
        assert 1 == await loops[1].turns("t", 1)


async def test_a_thread_without_a_loop_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process has only so many files; whoever starts the thread hears of it."""

    def refuse() -> None:
        raise OSError("too many open files")

    monkeypatch.setattr(asyncio, "SelectorEventLoop", refuse)
    with pytest.raises(RuntimeError, match="ulimit"):
        io_thread.IOThread().start()


async def test_the_database_is_away_when_a_second_loop_comes(
    proxy: FaultProxy, breakable_postgres: TemporaryPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits is served when it is back, though it was away for longer than an opening may take.

    On a server with isolated loops, that is the first run.
    """
    monkeypatch.setattr(home_module, "_MARGIN", 0.0)
    conninfo = proxy.conninfo(breakable_postgres.create_database())
    loops = [Loop(conninfo, open_timeout=1), Loop(conninfo, open_timeout=1)]
    with closing(loops):
        await loops[0].enter()
        proxy.refuse()
        proxy.reset()
        entering = asyncio.create_task(loops[1].enter())
        home = loops[0].saver._place
        failure = await eventually(lambda: home._obstacle)
        await eventually(lambda: home._obstacle is not failure)
        proxy.accept()
        await entering
        assert (1, 1) == (await loops[0].turns("t", 1), await loops[1].turns("o", 1))


async def test_a_callback_that_fails_while_connections_move_breaks_nobody(conninfo: str) -> None:
    """It is called again, as for any connection; the first loop was well before."""
    errors: list[Exception] = []

    async def configure(_: object) -> None:
        if errors:
            raise errors.pop()

    loops = [Loop(conninfo, configure=configure), Loop(conninfo, configure=configure)]
    with closing(loops):
        await loops[0].enter()
        errors.append(RuntimeError("a hiccup"))
        await loops[1].enter()
        assert (1, 1) == (await loops[0].turns("t", 1), await loops[1].turns("o", 1))


async def test_all_who_open_hear_why_it_failed(proxy: FaultProxy, conninfo: str) -> None:
    """And the next one tries again."""
    proxy.refuse()
    away = proxy.conninfo(conninfo)
    loops = [Loop(away, open_timeout=0.2, deadline=1.0) for _ in range(2)]
    with closing(loops):
        results = await asyncio.gather(*(loop.enter() for loop in loops), return_exceptions=True)
        assert all(isinstance(error, psycopg.OperationalError) for error in results)
    with pytest.raises(PoolOpenError, match="refused"):
        async with open_checkpointer(away, max_size=BUDGET, open_timeout=0.2):
            pass


async def test_a_server_that_does_not_answer_is_named(proxy: FaultProxy, conninfo: str) -> None:
    """The wait for an opening does not end before the opening itself, which knows why."""
    proxy.blackhole()
    with pytest.raises(PoolOpenError, match=f"{proxy.port}.*next step"):
        async with open_checkpointer(proxy.conninfo(conninfo), open_timeout=0.3):
            pass


@asynccontextmanager
async def moving(
    proxy: FaultProxy, server: TemporaryPostgres, **overrides: Any
) -> AsyncIterator[tuple[list[Loop], "asyncio.Task[Loop]"]]:
    """Two loops; the second is entering, and no connection can move: there is no server."""
    conninfo = proxy.conninfo(server.create_database())
    loops = [Loop(conninfo, **overrides), Loop(conninfo, **overrides)]
    with closing(loops):
        await loops[0].enter()
        proxy.refuse()
        proxy.reset()
        entering = asyncio.create_task(loops[1].enter())
        await eventually(lambda: loops[0].saver._place._thread)
        yield loops, entering
        proxy.accept()


async def test_who_cannot_open_while_connections_move_hears_why(
    proxy: FaultProxy, breakable_postgres: TemporaryPostgres
) -> None:
    """It is the error of any opening."""
    timeouts = {"open_timeout": 0.2, "deadline": 0.2}
    async with moving(proxy, breakable_postgres, **timeouts) as (_, entering):
        with pytest.raises(PoolOpenError) as caught:
            await entering
    assert "refused" in str(caught.value.__cause__)


@pytest.mark.usefixtures("batching")
@pytest.mark.parametrize("operation", ["aget_tuple", "adelete_thread"])
async def test_nothing_waits_for_connections_that_move_beyond_its_deadline(
    operation: str, proxy: FaultProxy, breakable_postgres: TemporaryPostgres
) -> None:
    """Not even an operation that may take an hour once it has begun."""
    async with moving(proxy, breakable_postgres) as (loops, entering):
        saver = loops[0].saver
        saver.deadline = 0.1
        argument = config_of("t") if operation == "aget_tuple" else "t"
        with pytest.raises(PoolTimeout):
            await loops[0].submit(getattr(saver, operation)(argument))
        proxy.accept()
        await entering


@pytest.fixture
async def shaky(lghard_postgres: TemporaryPostgres) -> AsyncIterator[FaultProxy]:
    """A network to the server of this test's database."""
    async with FaultProxy(lghard_postgres.host, lghard_postgres.port) as proxy:
        yield proxy


@pytest.mark.usefixtures("batching")
@pytest.mark.parametrize(("arrives", "stands"), [(True, {"newer"}), (False, {"old", "newer"})])
async def test_a_write_that_moves_remembers_what_it_has_lost(
    arrives: bool,
    stands: set[str],
    conninfo: str,
    shaky: FaultProxy,
    lghard_postgres: TemporaryPostgres,
) -> None:
    """It is not repeated while its backend is frozen, and if that cannot be stopped, he is told."""
    away = shaky.conninfo(conninfo)
    loops = [Loop(away, deadline=1.5), Loop(away, deadline=1.5)]
    with closing(loops):
        await loops[0].enter()
        await loops[0].submit(put(loops[0].saver, "t", text="first"))
        async with await psycopg.AsyncConnection.connect(conninfo) as locking:
            await locking.execute("SELECT FROM checkpoints FOR UPDATE")
            writing = loops[0].submit(put(loops[0].saver, "t", text="old"))
            pid = await waiting_backend(conninfo)
            lghard_postgres.freeze_backend(pid)
            if not arrives:
                shaky.refuse()
            shaky.reset()
        entering = asyncio.create_task(loops[1].enter())
        with pytest.raises(psycopg.OperationalError) as caught:
            await writing
        shaky.accept()
        await entering
        await loops[1].submit(put(loops[1].saver, "t", text="newer"))
        lghard_postgres.thaw_backend(pid)
        await eventually(lambda: not psutil.pid_exists(pid))
        found = await loops[1].submit(loops[1].saver.aget_tuple(config_of("t")))
    assert "outcome of aput is unknown" in "".join(caught.value.__notes__)
    assert found.checkpoint["channel_values"]["text"] in stands


@pytest.mark.alone("it counts connections: what travels together needs one")
@pytest.mark.usefixtures("batching")
async def test_one_outage_is_two_lines_for_all_loops(
    conninfo: str, shaky: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Its retry budget is one, too: more loops are not more load on a server that comes back."""
    caplog.set_level(logging.INFO, "lghard.postgres")
    async with entered(BUDGET, shaky.conninfo(conninfo), min_size=BUDGET) as loops:
        shaky.hold_requests(containing=b"checkpoint_ns")
        reading = [loop.submit(loop.saver.aget_tuple(config_of("t"))) for loop in loops]
        await eventually(lambda: shaky.held == BUDGET)
        shaky.reset()
        shaky.release()
        await asyncio.gather(*reading)
    assert ["WARNING", "INFO"] == [
        record.levelname for record in caplog.records if "the database" in record.message
    ]


async def test_a_failed_opening_is_not_reported_again(
    proxy: FaultProxy, conninfo: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Who opens hears of it; asyncio has nothing left to complain about."""
    proxy.refuse()
    with pytest.raises(PoolOpenError):
        async with open_checkpointer(proxy.conninfo(conninfo), open_timeout=0.1):
            pass
    gc.collect()
    assert [] == [record.message for record in caplog.records if record.name == "asyncio"]


async def test_what_is_closed_keeps_nobody_who_asks(conninfo: str) -> None:
    """Each one's error is his own: it does not grow by the frames of those before."""
    async with open_checkpointer(conninfo) as saver:
        pass
    lengths = [await length_of_refusal(saver) for _ in range(3)]
    assert [lengths[0]] * 3 == lengths


async def length_of_refusal(saver: Any) -> int:
    with pytest.raises(PoolClosed) as caught:
        await saver.aget_tuple(config_of("t"))
    return len(caught.traceback)


# Loops that block or end


@pytest.mark.usefixtures("batching")
async def test_a_blocked_loop_stalls_nobody(conninfo: str) -> None:
    """While it is blocked, all others do all of their work."""
    async with entered(LOOPS, conninfo) as loops:
        release = loops[0].hang()
        others = (loop.turns(f"t{n}") for n, loop in enumerate(loops[1:]))
        assert [TURNS] * (LOOPS - 1) == await asyncio.gather(*others)
        release.set()
        assert TURNS == await loops[0].turns("t")


async def test_nobody_waits_to_hear_whether_it_is_closed(conninfo: str) -> None:
    """Its connections begin to move at that very moment."""

    class Moving(home_module.Where):
        def done(self) -> bool:
            home._where = moved
            return True

    async with open_checkpointer(conninfo) as saver:
        home, moved = saver._place, home_module.Where()
        share, home._where = home._where.result(), Moving()
        Moving.set_result(home._where, share)
        asking = asyncio.create_task(asyncio.to_thread(home.is_closed))
        try:
            assert {asking} == (await asyncio.wait({asking}, timeout=5))[0]
        finally:
            home._where = moved
            moved.set_result(share)
        assert not await asking


@pytest.mark.usefixtures("batching")
async def test_the_first_loop_ends_while_others_go_on(conninfo: str) -> None:
    """It is closed in the middle of its work, without leaving, and breaks nobody's."""
    async with entered(LOOPS, conninfo) as loops:
        task = await loops[0].submit(begin(loops[0].saver))
        others = asyncio.gather(*(loop.turns(f"t{n}") for n, loop in enumerate(loops[1:])))
        await asyncio.sleep(0)
        loops[0].close_abruptly()
        task._log_destroy_pending = False  # it is meant to be destroyed like that
        assert [TURNS] * (LOOPS - 1) == await others


async def test_loops_that_are_closed_do_not_count(
    conninfo: str, backends: Callable[[], int]
) -> None:
    """What only closed loops have used is closed when the next one comes."""
    async with entered(2, conninfo) as loops:
        left = loops[0].saver.conn
    async with open_checkpointer(conninfo, max_size=BUDGET) as saver:
        await eventually(lambda: left.closed)
        assert 1 == await turns(saver, "t", 1)
        await eventually(lambda: backends() == saver.conn.snapshot().size)


async def test_nothing_is_kept_of_a_loop_that_was_closed(conninfo: str) -> None:
    """A process may open and close any number of them."""
    left = Loop(conninfo)
    await left.enter()
    left.close_abruptly()
    async with open_checkpointer(conninfo, max_size=BUDGET):
        assert left.loop not in [share.loop for share in shared._registry._shares]


# Cancellation and deadlines of calls to the thread


@pytest.mark.alone("together with others, what has been sent is done")
@pytest.mark.usefixtures("batching")
async def test_a_cancelled_call_stops_in_the_thread(
    conninfo: str, lghard_postgres: TemporaryPostgres
) -> None:
    """It is honoured, its statement is cancelled in the server, and the saver stays usable."""
    async with entered(2, conninfo) as loops:
        await loops[1].turns("t", 1)
        with psycopg.connect(conninfo) as locking:
            locking.execute("LOCK checkpoints")
            putting = loops[1].submit(put(loops[1].saver, "t", 2))
            await eventually(lambda: waiting(lghard_postgres, conninfo))
            putting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await putting
            await eventually(lambda: not waiting(lghard_postgres, conninfo))
        found = await loops[1].submit(loops[1].saver.aget_tuple(config_of("t")))
        assert checkpoint_number(found) == 1
        assert 2 == await loops[1].turns("t", 2)


def waiting(server: TemporaryPostgres, conninfo: str) -> int:
    """Backends of this database that wait for a lock."""
    with psycopg.connect(server.conninfo, autocommit=True) as admin:
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
        )
        return admin.execute(query, [conninfo.rpartition("/")[2]]).fetchone()[0]


def checkpoint_number(found: Any) -> int:
    return int(found.checkpoint["id"][-12:])


@pytest.mark.usefixtures("batching")
async def test_cancellation_does_not_wait_for_a_thread_that_hangs(
    conninfo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop that does the work may be gone; the caller's own cancellation holds."""
    monkeypatch.setattr(io_thread, "STOP_TIMEOUT", 0.05)
    async with entered(2, conninfo) as loops:
        with hanging(loops[0].saver._place._thread.loop):
            putting = loops[1].submit(put(loops[1].saver, "t"))
            await asyncio.sleep(0.01)
            putting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await putting


@pytest.mark.usefixtures("batching")
async def test_a_deadline_holds_though_the_thread_hangs(
    conninfo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the error says what did not answer."""
    monkeypatch.setattr(io_thread, "STOP_TIMEOUT", 0.05)
    monkeypatch.setattr(io_thread, "GRACE", 0.05)
    async with entered(2, conninfo) as loops:
        loops[1].saver.deadline = 0.05
        with (
            hanging(loops[0].saver._place._thread.loop),
            pytest.raises(psycopg.OperationalError, match="thread that does lghard's I/O"),
        ):
            await loops[1].turns("t", 1)
        loops[1].saver.deadline = 60.0
        assert 1 == await loops[1].turns("t", 1)


@contextmanager
def hanging(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Block an event loop for the length of this block."""
    release = threading.Event()
    loop.call_soon_threadsafe(lambda: release.wait(30) and None)
    try:
        yield
    finally:
        release.set()


async def test_a_thread_that_has_ended_says_so(conninfo: str) -> None:
    """Nobody waits for it."""
    async with entered(2, conninfo) as loops:
        thread = loops[0].saver._place._thread
        thread.stop()
        thread.join()
        with pytest.raises(PoolClosed, match="I/O is closed"):
            await loops[1].turns("t", 1)


# The end of the process, and its children

AT_EXIT = """
import asyncio, sys, threading
from lghard import open_checkpointer

async def main(entered):
    block = open_checkpointer(sys.argv[1], max_size=2, setup=False)
    saver = await block.__aenter__()
    await saver.aget_tuple({"configurable": {"thread_id": "t"}})
    entered.set()
    await asyncio.Event().wait()

for _ in range(4):
    entered = threading.Event()
    threading.Thread(target=asyncio.run, args=[main(entered)], daemon=True).start()
    entered.wait()
print("entered", flush=True)
"""


async def test_nothing_is_left_of_a_process(conninfo: str, backends: Callable[[], int]) -> None:
    """It ends with four loops that nobody has closed: quietly, and without a backend."""
    done = await asyncio.to_thread(script, AT_EXIT, conninfo)
    assert (0, "entered\n", "") == (done.returncode, done.stdout, done.stderr)
    await eventually(lambda: not backends())


FORK = """
import asyncio, os, sys
from psycopg_pool import PoolClosed
from lghard import open_checkpointer

CONFIG = {"configurable": {"thread_id": "t"}}

block = open_checkpointer(sys.argv[1], setup=False)

async def ask(saver):
    try:
        return await saver.aget_tuple(CONFIG)
    except PoolClosed as error:
        return "open one in the child" in str(error)

async def own():
    async with open_checkpointer(sys.argv[1], setup=False) as saver:
        return await ask(saver)

loop = asyncio.new_event_loop()
saver = loop.run_until_complete(block.__aenter__())
pid = os.fork()
if pid == 0:
    print("inherited:", asyncio.run(ask(saver)), "own:", asyncio.run(own()), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
print("parent:", loop.run_until_complete(ask(saver)), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
async def test_a_forked_child_opens_its_own(conninfo: str) -> None:
    """The inherited one says so at once, and the parent's is left alone."""
    done = await asyncio.to_thread(script, FORK, conninfo)
    assert "inherited: True own: None\nparent: None\n" == done.stdout
