"""One writer per thread: who has the lock, who waits, who loses it, and what it costs."""

import asyncio
import contextvars
import gc
import logging
import secrets
import threading
import time
import weakref
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool

from lghard import (
    ForeignLoopError,
    HardenedAsyncPostgresSaver,
    LghardError,
    SchemaSetupError,
    ThreadBusyError,
    ThreadLockLostError,
    open_checkpointer,
    open_pool,
    thread_lock,
)
from lghard.postgres import lease_desk, lease_keeping, lease_line
from lghard.postgres.fencing import inside
from lghard.postgres.lease_desk import Desk
from lghard.postgres.lease_line import Lines
from lghard.postgres.lease_rows import TABLE
from lghard.testing import FaultProxy
from tests.postgres.cancelling import Strike, cancelled_at_each_step, each_moment
from tests.postgres.checkpoints import eventually, execute, query, waiting_backend


@pytest.fixture
async def pool(lghard_database):
    async with open_pool(lghard_database, max_size=4) as pool:
        yield pool


@pytest.fixture
async def stranger(lghard_database):
    """Another process, as far as anybody can tell."""
    async with open_pool(make_conninfo(lghard_database, application_name="stranger")) as pool:
        yield apart(pool)


def apart(pool):
    """A pool that knows of no other in this process, as in a process of its own."""
    Desk.of(pool).lines = Lines()
    return pool


def lines_of(source):
    """What this process knows of the locks in that database."""
    return getattr(Desk.of(source), "lines", None) or Lines()


async def rows(conninfo, columns="thread_id"):
    return await query(conninfo, f"SELECT {columns} FROM {TABLE} ORDER BY thread_id")


def elsewhere(coroutine):
    """A task that is not inside of the blocks that this one is inside of."""
    return asyncio.create_task(coroutine, context=contextvars.Context())


async def is_free(source, thread_id="t"):
    """Whether somebody else gets the lock at once."""

    async def attempt():
        try:
            async with thread_lock(source, thread_id, timeout=0):
                return True
        except ThreadBusyError:
            return False

    return await elsewhere(attempt())


@pytest.fixture
def sent(monkeypatch):
    """The statements of each message."""
    messages, fetch_all = [], lease_desk.fetch_all

    async def noting(conn, statements, **options):
        messages.append(" ".join(statement.query.split()[0] for statement in statements))
        return await fetch_all(conn, statements, **options)

    monkeypatch.setattr(lease_desk, "fetch_all", noting)
    return messages


# One at a time


class Turns:
    """Who is inside, and in which order they came."""

    def __init__(self):
        self.inside, self.most, self.order, self.epochs = 0, 0, [], []

    async def take(self, source, name, thread_id="t"):
        async with thread_lock(source, thread_id) as lease:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.order.append(name)
            self.epochs.append(lease.epoch)
            try:
                await asyncio.sleep(0)
            finally:
                self.inside -= 1


async def test_one_at_a_time_and_in_order(conninfo):
    """The tasks of an event loop are served as they came."""
    turns = Turns()
    async with open_pool(conninfo) as pool:
        await asyncio.gather(*(turns.take(pool, number) for number in range(20)))
    assert 1 == turns.most
    assert [*range(20)] == turns.order


async def test_one_at_a_time_of_several_pools(conninfo):
    """Each is a process of its own, as far as the database can tell; and the epoch only grows."""
    turns = Turns()
    async with open_pool(conninfo) as one, open_pool(conninfo) as other:
        await asyncio.gather(
            *(turns.take(pool, number) for pool in (one, apart(other)) for number in range(10))
        )
    assert (1, 20) == (turns.most, len(turns.order))
    assert sorted(set(turns.epochs)) == turns.epochs


async def test_several_event_loops(conninfo):
    """Each in a thread of its own, with checkpointers that share their connections."""
    turns, barrier = Turns(), threading.Barrier(3)

    async def loop():
        async with open_checkpointer(conninfo, max_size=3) as saver:
            barrier.wait()
            await asyncio.gather(*(turns.take(saver, number) for number in range(5)))

    async with open_checkpointer(conninfo, max_size=3):
        await asyncio.gather(*(asyncio.to_thread(asyncio.run, loop()) for _ in range(3)))
    assert (1, 15) == (turns.most, len(turns.order))


async def test_other_threads_are_not_waited_for(pool):
    """A lock is one thread's."""
    async with thread_lock(pool, "t"):
        assert await is_free(pool, "u")
        assert not await is_free(pool, "t")


async def test_nothing_is_left(pool, lghard_database):
    """Neither rows, nor anything in this process; and the next epoch is greater all the same."""
    epochs = []
    for _ in range(2):
        async with thread_lock(pool, "t") as lease:
            epochs.append(lease.epoch)
        assert [] == await rows(lghard_database)
    desk = Desk.of(pool)
    assert ({}, set(), set()) == (desk.lines._lines, desk.lines.keeper.held, desk._tasks)
    assert epochs[0] < epochs[1]


async def test_nothing_is_left_of_event_loops(conninfo):
    """Those that have ended, with their timers, while another one keeps the connections."""

    async def lock():
        async with open_checkpointer(conninfo, max_size=2) as saver:
            await enter(saver, "t")

    async with open_checkpointer(conninfo, max_size=2) as saver:
        for _ in range(4):
            await asyncio.to_thread(asyncio.run, lock())
        await enter(saver, "t")
        gc.collect()
        assert [asyncio.get_running_loop()] == [*vars(saver._place)[lease_desk._DESKS]]


async def test_nothing_is_left_of_event_loops_with_pools_of_their_own(pool, lghard_database):
    """Though another one has locked threads of the same database, and may again."""

    async def lock():
        async with open_pool(lghard_database) as own:
            await enter(own, "t")
            return weakref.ref(asyncio.get_running_loop())

    await enter(pool, "t")
    loops = [await asyncio.to_thread(asyncio.run, lock()) for _ in range(3)]
    with lines_of(pool).lock:
        lines_of(pool).keeper._come_by(0.0)
    await eventually(lambda: lines_of(pool).keeper._thread is None)
    gc.collect()
    assert [None] * 3 == [loop() for loop in loops]


async def test_no_connection_is_held(lghard_database):
    """A hundred locks on one connection."""
    async with AsyncExitStack() as stack, open_pool(lghard_database, max_size=1) as pool:
        for number in range(100):
            await stack.enter_async_context(thread_lock(pool, f"thread {number}"))
        assert 0 == pool.snapshot().borrowed
        assert 100 == len(await rows(lghard_database))


async def test_upstreams_pool_will_do(lghard_database):
    """Any pool of psycopg's, also one that is not in autocommit mode."""
    async with AsyncConnectionPool(lghard_database, min_size=1, open=False) as pool:
        await pool.wait()
        async with thread_lock(pool, "t"):
            assert not await is_free(pool)
        assert await is_free(pool)


async def test_two_threads_at_once(pool):
    """A block inside the block of another thread."""
    async with thread_lock(pool, "t") as outer, thread_lock(pool, "u") as inner:
        assert ("t", "u") == (outer.thread_id, inner.thread_id)


@pytest.mark.parametrize("inner", ["pool", "stranger"])
async def test_a_block_inside_its_own_is_refused(request, inner, pool):
    """At once, instead of waiting for itself; whichever pool it goes through."""
    other = request.getfixturevalue(inner) if inner == "pool" else pool
    async with thread_lock(pool, "t"):
        with pytest.raises(RuntimeError, match="would wait for itself"):
            async with thread_lock(other, "t"):
                pass
        assert not await is_free(pool)
    assert await is_free(pool)


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
async def test_every_isolation_level(lghard_database, isolation):
    """Who comes too late there gets an error of the database, and tries again."""
    turns = Turns()
    options = f"-cdefault_transaction_isolation={isolation.replace(' ', chr(92) + ' ')}"
    conninfo = make_conninfo(lghard_database, options=options)
    async with open_pool(conninfo) as one, open_pool(conninfo) as other:
        await asyncio.gather(
            *(turns.take(pool, number) for pool in (one, apart(other)) for number in range(5))
        )
    assert (1, 10) == (turns.most, len(turns.order))


async def test_somebody_else_was_faster(pool, lghard_database):
    """Where that is an error of the database, a single look says what it is."""
    conninfo = make_conninfo(
        lghard_database, options=r"-cdefault_transaction_isolation=repeatable\ read"
    )
    async with open_pool(conninfo) as other, thread_lock(pool, "t"):
        apart(other)
        await execute(lghard_database, f"UPDATE {TABLE} SET expires_at = now()")
        async with await psycopg.AsyncConnection.connect(lghard_database) as faster:
            await faster.execute(f"UPDATE {TABLE} SET expires_at = now() + interval '1 minute'")
            looking = elsewhere(enter(other, "t", timeout=0))
            await waiting_backend(lghard_database)
            await faster.commit()
        with pytest.raises(ThreadBusyError):
            await looking


# Who waits


async def test_busy_names_the_holder(pool, stranger):
    """By its application_name, with since when and what to do; it is a TimeoutError as well."""
    async with thread_lock(stranger, "t") as lease:
        with pytest.raises(
            ThreadBusyError, match=r"locked by another writer: 'stranger'"
        ) as caught:
            await elsewhere(enter(pool, "t", timeout=0.05))
    error = caught.value
    assert isinstance(error, TimeoutError)
    assert isinstance(error, LghardError)
    assert ("t", "stranger", lease.since) == (error.thread_id, error.holder, error.since)
    assert str(lease.since) in str(error)
    assert "Next step: " in str(error)


async def enter(source, thread_id, **options):
    async with thread_lock(source, thread_id, **options):
        pass


async def locked(source, work, thread_id="t", **options):
    """Await `work` inside the lock."""
    async with thread_lock(source, thread_id, **options):
        return await work


async def test_busy_within_the_process(pool):
    """Who waits in line hears the same of its neighbour."""
    async with thread_lock(pool, "t"):
        with pytest.raises(ThreadBusyError, match=r"'lghard .* has had it since 20") as caught:
            await elsewhere(enter(pool, "t", timeout=0.05))
    assert caught.value.process


async def test_a_hostile_application_name(pool, lghard_database):
    """It is quoted: no new lines, no escape sequences."""
    name = "a' or 1=1\n\x1b[2J\u202ename\\"
    conninfo = make_conninfo(lghard_database, application_name=name)
    async with open_pool(conninfo) as hostile, thread_lock(hostile, "t"):
        with pytest.raises(ThreadBusyError) as caught:
            await elsewhere(enter(pool, "t", timeout=0))
    assert str(caught.value).isprintable()
    assert "or 1=1" in caught.value.holder


async def test_a_release_is_one_round_trip(pool, sent):
    """And to hand it over to the next in line is the same one."""
    await enter(pool, "t")
    sent.clear()
    async with thread_lock(pool, "t"):
        waiting = elsewhere(enter(pool, "t"))
        await eventually(lambda: lines_of(pool)._lines["t"].turns)
        assert 1 == len(sent)
    await waiting
    assert ["SELECT INSERT UPDATE SELECT", "SELECT UPDATE DELETE", "SELECT DELETE"] == sent


async def test_another_process_gets_its_turn(pool, stranger):
    """However many wait in line here: who looks in vain leaves word."""
    leave = asyncio.Event()

    async def again_and_again():
        while not leave.is_set():
            await enter(pool, "t")

    here = [elsewhere(again_and_again()) for _ in range(3)]
    await enter(stranger, "t")
    leave.set()
    await asyncio.gather(*here)


async def test_a_single_task_leaves_others_their_turn(pool, stranger, lghard_database):
    """Nobody is in line here when it gives the lock back; it comes again at once, all the same."""
    turns = Turns()

    async def somebody_waits():
        return await query(lghard_database, f"SELECT FROM {TABLE} WHERE wanted_at IS NOT NULL")

    async with thread_lock(pool, "t"):
        other = elsewhere(turns.take(stranger, "other"))
        await eventually(somebody_waits)
    await turns.take(pool, "again")
    await other
    assert ["other", "again"] == turns.order
    await eventually(lambda: not lines_of(pool)._lines)


async def test_nothing_is_left_to_those_who_want_nothing(pool, monkeypatch):
    """Who comes while the lock is being given back has it at once."""
    monkeypatch.setattr(lease_line, "POLL", 60.0)
    fetch_all, coming = lease_desk.fetch_all, []

    async def fetch(conn, statements, **options):
        if not coming:
            coming.append(elsewhere(enter(pool, "t", timeout=5)))
            await eventually(lambda: lines_of(pool)._lines["t"].turns)
        return await fetch_all(conn, statements, **options)

    async with thread_lock(pool, "t"):
        monkeypatch.setattr(lease_desk, "fetch_all", fetch)
    (came,) = coming
    async with asyncio.timeout(4):
        await came


async def test_who_waits_in_vain_disturbs_nobody(pool, stranger, lghard_database):
    """The line goes on without them."""
    async with thread_lock(stranger, "t"):
        first = elsewhere(enter(pool, "t", timeout=0.3))
        second = elsewhere(enter(pool, "t", timeout=0.1))
        third = elsewhere(enter(pool, "t"))
        for task in (first, second):
            with pytest.raises(ThreadBusyError):
                await task
    await third
    assert [] == await rows(lghard_database)


@each_moment
@pytest.mark.usefixtures("busy_loop")
async def test_a_cancellation_leaves_nothing(pool, lghard_database, moment):
    """Wherever it strikes, on the way in or out: soon somebody else has the lock."""
    await enter(pool, "t")
    async for _ in cancelled_at_each_step(lambda: enter(pool, "t"), moment):
        await eventually(lambda: is_free(pool))
        await eventually(lambda: not Desk.of(pool)._tasks)
        assert [] == await rows(lghard_database)
        assert {} == lines_of(pool)._lines


def is_in_line_or_over(pool, task):
    return lines_of(pool)._lines["t"].turns or task.done()


@each_moment
async def test_a_cancellation_in_line(pool, lghard_database, moment):
    """While it waits for its neighbour, or is just being handed the lock."""
    for step in range(8):
        async with thread_lock(pool, "t"):
            strike = Strike(step, moment)
            struck = elsewhere(strike.against(enter(pool, "t")))
            await eventually(partial(is_in_line_or_over, pool, struck))
            behind = elsewhere(enter(pool, "t", timeout=10))
        await struck
        await behind
        await eventually(lambda: not Desk.of(pool)._tasks)
        assert [] == await rows(lghard_database)


@pytest.mark.parametrize(
    "argument", [{"timeout": -1}, {"timeout": float("nan")}, {"ttl": 0}, {"timeout": float("inf")}]
)
async def test_a_bad_duration(pool, argument):
    """It is refused at once."""
    with pytest.raises(ValueError, match="seconds"):
        thread_lock(pool, "t", **argument)


@pytest.mark.parametrize("thread_id", ["", "a\0b", "\ud83d"])
async def test_what_postgres_cannot_store(pool, thread_id):
    """No such thread could have a checkpoint."""
    with pytest.raises(ValueError, match="Postgres stores no thread id like"):
        thread_lock(pool, thread_id)


@pytest.mark.parametrize("thread_id", [None, 7, b"t"])
async def test_what_is_no_text(pool, thread_id):
    """Nor is it made one by guessing."""
    with pytest.raises(TypeError, match="a thread id is a str"):
        thread_lock(pool, thread_id)


@pytest.mark.parametrize("thread_id", ["x" * 10_000, "%s'; --", "ünï\u202e\n", "👩‍👩‍👧"])
async def test_strange_thread_ids(pool, thread_id):
    """Whatever Postgres can store."""
    async with thread_lock(pool, thread_id):
        assert not await is_free(pool, thread_id)


async def test_a_thread_id_that_is_too_long(pool):
    """Postgres says so, as it would of the thread's checkpoints; nothing is left waiting."""
    with pytest.raises(psycopg.errors.ProgramLimitExceeded) as caught:
        await enter(pool, secrets.token_hex(5_000))
    assert "thread_lock() was trying" in "".join(caught.value.__notes__)
    assert {} == lines_of(pool)._lines


async def test_neither_pool_nor_checkpointer(lghard_database):
    """The error says what to pass."""
    with pytest.raises(TypeError, match="needs a pool, or a checkpointer"):
        await enter(lghard_database, "t")


async def test_a_pool_of_another_event_loop(pool):
    """It is told apart, as everywhere."""
    with pytest.raises(ForeignLoopError):
        await asyncio.to_thread(asyncio.run, enter(pool, "t"))


async def test_a_lock_is_used_once(pool):
    """What `thread_lock` returns is one block's."""
    lock = thread_lock(pool, "t")
    async with lock:
        pass
    with pytest.raises(RuntimeError, match="call thread_lock"):
        async with lock:
            pass


async def test_a_lock_is_one_blocks(pool):
    """Also while that one still waits for it."""
    lock = thread_lock(pool, "t")

    async def use():
        async with lock:
            pass

    async with thread_lock(pool, "t"):
        first = elsewhere(use())
        await eventually(lambda: lines_of(pool)._lines["t"].turns)
        with pytest.raises(RuntimeError, match="call thread_lock"):
            await elsewhere(use())
    await first


# Keeping it


@pytest.fixture
def renewals(monkeypatch):
    """How many leases each renewal has."""
    sizes, renew = [], lease_keeping.renew

    def noting(leases):
        sizes.append(len(leases))
        return renew(leases)

    monkeypatch.setattr(lease_keeping, "renew", noting)
    return sizes


async def test_one_statement_renews_all(pool, renewals, sent, lghard_database):
    """However many there are, and nothing else is sent."""
    async with AsyncExitStack() as stack:
        for number in range(50):
            await stack.enter_async_context(thread_lock(pool, f"thread {number}", ttl=1.5))
        renewals.clear()
        sent.clear()
        before = await rows(lghard_database, "expires_at")
        await eventually(lambda: len(sent) >= 2)
        after = await rows(lghard_database, "expires_at")
        assert all(new > old for new, old in zip(after, before, strict=True))
        assert [50] * len(sent) == renewals
        assert {"DELETE WITH"} == {*sent}


async def test_it_outlives_its_ttl(conninfo, renewals):
    """As long as its process is well."""
    async with open_pool(conninfo) as pool, thread_lock(pool, "t", ttl=0.6):
        await eventually(lambda: len(renewals) > 4)
        assert not await is_free(pool)


async def test_a_write_under_way_is_not_waited_for(pool, lghard_database, renewals):
    """A renewal is in no write's way, nor a write in a renewal's."""
    async with thread_lock(pool, "t", ttl=0.6) as lease:
        async with await psycopg.AsyncConnection.connect(lghard_database) as writer:
            await writer.execute(f"SELECT FROM {TABLE} FOR KEY SHARE")
            renewals.clear()
            await eventually(lambda: len(renewals) > 3)
        assert not lease._over


async def test_a_row_that_somebody_locks_holds_up_no_other(pool, lghard_database):
    """A backend that is frozen in the middle of a takeover costs one lease, and no other."""

    async def freeze():
        async with await psycopg.AsyncConnection.connect(lghard_database) as frozen:
            await frozen.execute(f"SELECT FROM {TABLE} WHERE thread_id = 't' FOR UPDATE")
            await asyncio.sleep(60)

    async with thread_lock(pool, "u", ttl=1.2) as other:
        with pytest.raises(ThreadLockLostError, match=r"was not renewed for 1\.2 s"):
            await locked(pool, freeze(), ttl=1.2)
        assert not other._over


# An answer that is lost


@pytest.fixture
async def network(lghard_postgres, lghard_database):
    """A pool, and the network to the database, which loses answers."""
    async with (
        FaultProxy(lghard_postgres.host, lghard_postgres.port) as network,
        open_pool(
            network.conninfo(lghard_database), max_size=4, kwargs={"prepare_threshold": None}
        ) as pool,
    ):
        await enter(pool, "t")
        yield pool, network


async def test_a_claim_whose_answer_is_lost(network, lghard_database):
    """It looks again, and finds that it has the lock."""
    pool, proxy = network
    proxy.lose_responses(containing=b"SET epoch = DEFAULT")
    async with thread_lock(pool, "t"):
        assert 1 == proxy.lost
        assert not await is_free(pool)
    assert [] == await rows(lghard_database)


async def test_a_release_whose_answer_is_lost(network, lghard_database):
    """It is repeated; that there was nothing to give back then, is no loss."""
    pool, proxy = network
    async with thread_lock(pool, "t"):
        proxy.lose_responses(containing=b"DELETE FROM")
    assert 1 == proxy.lost
    assert [] == await rows(lghard_database)


async def test_a_handover_whose_answer_is_lost(network, lghard_database):
    """The next one looks, and finds that it has the lock."""
    pool, proxy = network
    async with thread_lock(pool, "t"):
        waiting = elsewhere(enter(pool, "t", timeout=10))
        await eventually(lambda: lines_of(pool)._lines["t"].turns)
        proxy.lose_responses(containing=b"DELETE FROM")
    await waiting
    assert 1 == proxy.lost
    assert [] == await rows(lghard_database)


async def test_a_claim_that_gives_up(network, lghard_database):
    """Its answer is lost, and there is no time to look: what it may have, it gives back."""
    pool, proxy = network
    proxy.lose_responses(containing=b"SET epoch = DEFAULT")
    with pytest.raises(psycopg.OperationalError) as caught:
        await enter(pool, "t", timeout=0)
    assert "thread_lock() was trying to lock 't'" in "".join(caught.value.__notes__)
    await eventually(lambda: not Desk.of(pool)._tasks)
    assert [] == await rows(lghard_database)


# Losing it


async def steal(conninfo, thread_id="t"):
    """What somebody else does whose claim comes after the expiry."""
    await execute(
        conninfo,
        f"UPDATE {TABLE} SET epoch = DEFAULT, owner = gen_random_uuid(), holder = 'thief' "
        f"WHERE thread_id = '{thread_id}'",
    )


async def stolen(conninfo, then=lambda: asyncio.sleep(60)):
    await steal(conninfo)
    await then()


async def test_whoever_has_lost_it_is_cancelled(pool, lghard_database):
    """And hears why, from the end of the block."""
    with pytest.raises(ThreadLockLostError, match="somebody else has taken it over") as caught:
        await locked(pool, stolen(lghard_database), ttl=0.6)
    assert "t" == caught.value.thread_id
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert 0 == asyncio.current_task().cancelling()
    await asyncio.sleep(0)  # nothing is left of the cancellation
    assert [("thief",)] == await rows(lghard_database, "holder")


async def test_whoever_lost_it_before_the_end(pool, lghard_database):
    """Nobody has told it before it ended well: somebody else may have been at work beside."""
    with pytest.raises(ThreadLockLostError, match="somebody else has taken it over"):
        await locked(pool, steal(lghard_database))


async def test_an_error_of_the_block_stands(pool, lghard_database):
    """What ended the block is not hidden."""

    async def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await locked(pool, stolen(lghard_database, fail))


async def test_an_error_on_the_way_out_stands(pool, lghard_database):
    """The cancellation is taken back all the same."""

    async def fail_when_cancelled():
        try:
            await asyncio.sleep(60)
        finally:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await locked(pool, stolen(lghard_database, fail_when_cancelled), ttl=0.6)
    assert 0 == asyncio.current_task().cancelling()


async def test_somebody_elses_cancellation_goes_on(pool, lghard_database):
    """The task was cancelled from outside as well: that is what its caller waits for."""

    async def lose():
        async with thread_lock(pool, "t", ttl=0.6):
            try:
                await asyncio.sleep(60)
            finally:
                asyncio.current_task().cancel()

    losing = asyncio.create_task(lose())
    await eventually(lambda: lines_of(pool).keeper.held)
    await steal(lghard_database)
    await asyncio.wait({losing})
    assert losing.cancelled()


async def test_a_timeout_around_it_is_a_timeout(pool, lghard_database):
    """`asyncio.timeout` outside, and a loss inside: each knows its own."""

    async def within(seconds, work):
        async with asyncio.timeout(seconds):
            await locked(pool, work, ttl=0.6)

    with pytest.raises(TimeoutError) as caught:
        await within(0.2, asyncio.sleep(60))
    assert not isinstance(caught.value, ThreadBusyError)
    with pytest.raises(ThreadLockLostError):
        await within(60, stolen(lghard_database))


async def test_a_task_group_inside(pool, lghard_database):
    """Its tasks are cancelled with it."""
    tasks = []

    async def work():
        async with asyncio.TaskGroup() as group:
            tasks.extend(group.create_task(asyncio.sleep(60)) for _ in range(3))
            await steal(lghard_database)

    with pytest.raises(ThreadLockLostError):
        await locked(pool, work(), ttl=0.6)
    assert all(task.cancelled() for task in tasks)


async def test_all_tasks_are_cancelled_as_it_ends(pool, lghard_database):
    """As some do who shut down, also the one that is to give the lock back: then it expires."""
    lock = thread_lock(pool, "t", ttl=1.0)
    await lock.__aenter__()
    leaving = asyncio.create_task(lock.__aexit__(None, None, None))
    await asyncio.sleep(0)
    for task in Desk.of(pool)._tasks:
        task.cancel()
    await leaving
    await elsewhere(enter(pool, "t", timeout=10))
    assert [] == await rows(lghard_database)


async def test_all_tasks_are_cancelled_as_it_is_renewed(pool, renewals):
    """Also the one that is just about to renew: the next one does."""
    async with thread_lock(pool, "t", ttl=1.5):
        renewals.clear()
        desk = Desk.of(pool)
        while not desk._tasks:
            await asyncio.sleep(0)
        for task in desk._tasks:
            task.cancel()
        assert not renewals
        await eventually(lambda: renewals)


async def test_an_event_loop_that_was_blocked(pool):
    """Longer than its lease lasts: it is over, whether or not somebody has taken it."""

    async def block():
        time.sleep(0.4)  # noqa: ASYNC251 - that is the point
        await asyncio.sleep(60)

    with pytest.raises(ThreadLockLostError, match="its event loop was blocked"):
        await locked(pool, block(), ttl=0.3)
    await eventually(lambda: is_free(pool))


async def test_an_epoch_that_comes_again(pool, lghard_database):
    """After a failover, or where somebody has emptied the table: each lease is its own."""
    epochs = []

    async def lock_another():
        (old,) = inside.get()
        await execute(lghard_database, f"TRUNCATE {TABLE} RESTART IDENTITY")
        async with thread_lock(pool, "u") as new:
            epochs.extend([old.epoch, new.epoch])
            await asyncio.sleep(60)

    with pytest.raises(ThreadLockLostError, match="thread 't' is not held"):
        await locked(pool, lock_another(), ttl=0.6)
    assert epochs[0] == epochs[1]


async def test_whoever_was_refused_by_itself_is_told(pool):
    """A task of the block has found the lease expired, just before it was renewed after all."""

    async def refused():
        (lease,) = inside.get()
        lease._end("expired")
        await asyncio.sleep(5)

    with pytest.raises(ThreadLockLostError, match="expired") as caught:
        await locked(pool, refused(), ttl=0.6)
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)


class Failing(logging.Filter):
    """An application's own, that looks for what there is in its requests only."""

    def filter(self, record):
        raise LookupError(record)


async def test_a_log_that_fails(pool, renewals):
    """Whoever cannot be told that a lock is lost, does not take the others with it."""

    async def lose():
        inside.get()[0]._end("expired")
        await asyncio.sleep(60)

    failing = Failing()
    lease_keeping.logger.addFilter(failing)
    try:
        with pytest.raises(ThreadLockLostError, match="expired"):
            await locked(pool, lose(), ttl=0.6)
    finally:
        lease_keeping.logger.removeFilter(failing)
    async with thread_lock(pool, "u", ttl=1.5):
        renewals.clear()
        await eventually(lambda: renewals)


async def test_a_lock_for_ages(pool, renewals):
    """No timer of Python's goes as far; the others are renewed all the same."""
    async with thread_lock(pool, "t", ttl=1e11):
        renew_now(pool)
        await eventually(lambda: renewals and lines_of(pool).keeper._wakes_at > 1e10)
        async with thread_lock(pool, "u", ttl=1.5):
            renewals.clear()
            await eventually(lambda: renewals)


def renew_now(pool):
    keeper = lines_of(pool).keeper
    with lines_of(pool).lock:
        keeper._renew_at = 0.0
        keeper._come_by(0.0)


async def test_a_short_outage_costs_nothing(breakable_postgres, renewals):
    """It is renewed again as soon as the database is back."""
    conninfo = breakable_postgres.create_database()
    async with open_pool(conninfo) as pool, thread_lock(pool, "t", ttl=20.0) as lease:
        await asyncio.to_thread(breakable_postgres.restart)
        before = lease._ends_at
        renew_now(pool)
        await eventually(lambda: lease._ends_at > before)


@pytest.mark.parametrize(("outage", "end"), [("freeze", "thaw"), ("stop", "start")])
async def test_a_long_outage_loses_it(breakable_postgres, outage, end):
    """No later than its lease lasts, whether the database answers or not."""
    conninfo = breakable_postgres.create_database()
    async with open_pool(conninfo, timeout=1.0, drain_timeout=0.0) as pool:
        away = partial(asyncio.to_thread, getattr(breakable_postgres, outage))
        try:
            with pytest.raises(ThreadLockLostError, match="the database was away"):
                await locked(pool, goes_away(away), ttl=1.0)
        finally:
            await asyncio.to_thread(getattr(breakable_postgres, end))
        await eventually(lambda: not Desk.of(pool)._tasks)


async def goes_away(away):
    await away()
    await asyncio.sleep(60)


async def test_the_databases_clock_alone_counts(pool, stranger, monkeypatch):
    """This machine's clock says nothing about who may have the lock."""
    monkeypatch.setattr(time, "time", lambda: 0.0)
    async with thread_lock(pool, "t"):
        assert not await is_free(stranger)


async def test_a_pool_that_is_closed_meanwhile(lghard_database):
    """The lock cannot be given back; nothing hangs, and it expires."""
    async with open_pool(lghard_database) as other:
        async with open_pool(lghard_database) as pool:
            await locked(pool, pool.close(), ttl=0.5)
        await eventually(lambda: is_free(other))


async def test_an_event_loop_that_ends(lghard_database):
    """`asyncio.run` cancels the block, which gives the lock back."""
    inside = []

    async def hold():
        async with open_pool(lghard_database) as pool, thread_lock(pool, "t") as lease:
            inside.append(lease)
            await asyncio.sleep(60)

    async def leave_it():
        inside.append(asyncio.create_task(hold()))
        await eventually(lambda: len(inside) == 2)

    await asyncio.to_thread(asyncio.run, leave_it())
    assert [] == await rows(lghard_database)


# The table


async def test_what_killed_processes_left_is_forgotten(pool, stranger, lghard_database):
    """A day later, by whoever locks something first; what may yet be held, is not."""
    left = [thread_lock(pool, name) for name in ("long ago", "just now", "held")]
    for lock in left:
        await lock.__aenter__()
    for name, age in (("long ago", "25 hours"), ("just now", "1 hour")):
        await execute(
            lghard_database,
            f"UPDATE {TABLE} SET expires_at = now() - interval '{age}' WHERE thread_id = '{name}'",
        )
    await elsewhere(enter(stranger, "t"))
    assert [("held",), ("just now",)] == await rows(lghard_database)


async def test_setup_creates_it(lghard_database):
    """Where the role may."""
    async with open_checkpointer(lghard_database):
        assert [] == await rows(lghard_database)


async def test_a_single_look_creates_it(lghard_empty_database):
    """Nobody has the lock, so it is not busy."""
    async with open_pool(lghard_empty_database) as pool:
        await enter(pool, "t", timeout=0)


async def test_any_number_of_replicas_may_create_it(conninfo):
    """The first ones to lock something do, at once."""

    async def replica(number):
        async with open_pool(conninfo, min_size=1) as pool:
            await enter(apart(pool), f"thread {number}")

    assert [None] * 8 == await asyncio.gather(*(replica(number) for number in range(8)))


@asynccontextmanager
async def limited(conninfo):
    """The conninfo of a role that may read and write LangGraph's rows, and no more."""
    with psycopg.connect(conninfo, autocommit=True) as admin:
        role = f"limited_{admin.info.dbname}"
        admin.execute(f"CREATE ROLE {role}")
        admin.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
        admin.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        try:
            yield make_conninfo(conninfo, options=f"-crole={role}"), role, admin
        finally:
            admin.execute(f"DROP OWNED BY {role}")
            admin.execute(f"DROP ROLE {role}")


async def test_a_role_that_may_not_create_it(lghard_database, caplog):
    """Its checkpointer opens as before; its locks say which GRANT helps, and so does its log."""
    caplog.set_level("INFO", logger="lghard.postgres")
    async with (
        limited(lghard_database) as (conninfo, role, _),
        open_checkpointer(conninfo) as saver,
    ):
        assert f"thread_lock() has no table here: the table {TABLE}" in caplog.text
        assert f"GRANT CREATE ON SCHEMA public TO {role}" in caplog.text
        with pytest.raises(SchemaSetupError, match=f"GRANT CREATE ON SCHEMA public TO {role}"):
            await enter(saver, "t")


async def test_a_role_that_may_not_use_it(lghard_database):
    """Somebody else has created it, and granted nothing."""
    async with limited(lghard_database) as (conninfo, role, admin):
        async with open_checkpointer(lghard_database):
            pass
        async with open_pool(conninfo) as pool:
            with pytest.raises(SchemaSetupError, match="GRANT SELECT, INSERT, UPDATE, DELETE ON"):
                await enter(pool, "t")
            admin.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {TABLE} TO {role}")
            await enter(pool, "t")


async def test_a_saver_of_ones_own(pool):
    """Whatever its pool is, its locks are there."""
    async with thread_lock(HardenedAsyncPostgresSaver(pool), "t"):
        assert not await is_free(pool)
