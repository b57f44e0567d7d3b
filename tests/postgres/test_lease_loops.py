"""The event loops of a process share their locks, in spite of loops that are blocked or end."""

import asyncio
import os
import random
import threading
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial

import pytest
from psycopg.conninfo import make_conninfo

from lghard import ThreadBusyError, ThreadLockLostError, open_checkpointer, open_pool, thread_lock
from lghard.postgres import lease_desk, lease_keeping
from lghard.postgres.lease_desk import Desk
from lghard.postgres.lease_line import Lines
from lghard.postgres.lease_rows import TABLE
from tests.postgres.cancelling import Strike, each_moment
from tests.postgres.checkpoints import eventually, execute, query
from tests.postgres.scripts import script
from tests.postgres.test_leases import Turns, lines_of, renew_now, rows, steal


class Loop:
    """An event loop in a thread of its own, with a pool or checkpointer of its own.

    Attributes:
        source: what it locks threads with.
    """

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self._stack = AsyncExitStack()

    def start(self, coroutine):
        """A task there."""
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self.loop))

    async def open(self, opening):
        self.source = await self.start(self._stack.enter_async_context(opening))
        self.desk = await self.start(self._desk())

    async def _desk(self):
        return Desk.of(self.source)

    @property
    def lines(self):
        return self.desk.lines

    async def enter(self, thread_id="t", **options):
        """A block that the loop is in until `leave`: its lease."""
        self.lock = thread_lock(self.source, thread_id, **options)
        return await self.start(hold(self.lock))

    async def stand(self, work):
        """A task there, as soon as it stands in line."""
        at = len(self.lines._lines["t"].turns)
        task = self.start(work)
        await eventually(lambda: len(self.lines._lines["t"].turns) > at)
        return task

    @contextmanager
    def blocked(self):
        """Nothing happens there inside this block."""
        begun, end = threading.Event(), threading.Event()

        def block():
            begun.set()
            end.wait(60)

        self.loop.call_soon_threadsafe(block)
        begun.wait()
        try:
            yield
        finally:
            end.set()

    def end(self):
        """It ends as it should not: who waits in it, or has a lock, is left behind."""
        asyncio.run_coroutine_threadsafe(cancel_all_but_ours(), self.loop).result(20)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def close(self):
        if not self.loop.is_closed():
            await self.start(self._stack.aclose())
            self.end()


async def cancel_all_but_ours():
    """What psycopg leaves behind complains."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    ours = {task for task in tasks if task.get_coro().__name__ == "enter"}
    for task in ours:
        task._log_destroy_pending = False
    for task in tasks - ours:
        task.cancel()
    await asyncio.wait([*(tasks - ours), asyncio.ensure_future(asyncio.sleep(0))])


async def hold(lock):
    return await lock.__aenter__()


async def leave(lock):
    await lock.__aexit__(None, None, None)


async def enter(source, **options):
    async with thread_lock(source, "t", **options) as lease:
        return lease.epoch


@asynccontextmanager
async def loops_of(*openings):
    loops = [Loop() for _ in openings]
    try:
        for loop, opening in zip(loops, openings, strict=True):
            await loop.open(opening)
            await loop.start(enter(loop.source))  # which database it is, it knows from now on
        yield loops
    finally:
        for loop in loops:
            await loop.close()


@pytest.fixture(params=["pools", "checkpointers"])
async def loops(request, lghard_database):
    """Three loops, each with a pool of its own, or all with what lghard has opened for them."""
    opening = {"pools": open_pool, "checkpointers": open_checkpointer}[request.param]
    async with loops_of(*(opening(lghard_database, max_size=3) for _ in range(3))) as loops:
        yield loops


@pytest.fixture
async def pools(lghard_database):
    async with loops_of(*(open_pool(lghard_database, max_size=2) for _ in range(3))) as loops:
        yield loops


async def know_only_themselves(loops):
    """As in processes of their own."""
    for loop in loops:
        loop.desk.lines = Lines()


@pytest.fixture
def impatient(monkeypatch):
    """Who is blocked is passed over soon."""
    monkeypatch.setattr(lease_keeping, "LOOK", 0.1)
    monkeypatch.setattr(lease_desk, "ABSENT", 0.3)


@pytest.fixture
def sent(monkeypatch):
    """The statements of each message."""
    messages, fetch_all = [], lease_desk.fetch_all

    async def noting(conn, statements, **options):
        messages.append(" ".join(statement.query.split()[0] for statement in statements))
        return await fetch_all(conn, statements, **options)

    monkeypatch.setattr(lease_desk, "fetch_all", noting)
    return messages


def claims(messages):
    return sum("INSERT" in message for message in messages)


# Order


async def test_they_share_their_lines(loops):
    """Whatever they lock threads with, if it is the same database."""
    assert 1 == len({loop.lines for loop in loops})


async def test_in_order_of_asking(loops, lghard_database, sent):
    """Whoever has asked first gets it first; the row is handed from loop to loop."""
    turns, tasks = Turns(), []
    await loops[0].enter()
    sent.clear()
    for number in range(9):
        loop = loops[number % 3]
        tasks.append(await loop.stand(turns.take(loop.source, number)))
    await loops[0].start(leave(loops[0].lock))
    await asyncio.gather(*tasks)
    assert (1, [*range(9)]) == (turns.most, turns.order)
    assert sorted(set(turns.epochs)) == turns.epochs
    assert ["SELECT UPDATE DELETE"] * 9 + ["SELECT DELETE"] == sent
    assert [] == await rows(lghard_database)


async def test_processes_have_no_order(pools, sent):
    """The control: those that know nothing of each other take and give back the row each time."""
    await know_only_themselves(pools)
    turns = Turns()
    sent.clear()
    await asyncio.gather(
        *(loop.start(turns.take(loop.source, n)) for n in range(3) for loop in pools)
    )
    assert (1, 9) == (turns.most, len(turns.order))
    assert claims(sent) >= 3


async def test_a_single_look_from_another_loop(loops):
    """It names whom the other loop's connections are seen as, and since when."""
    lease = await loops[0].enter()
    with pytest.raises(ThreadBusyError, match="locked by another writer") as caught:
        await loops[1].start(enter(loops[1].source, timeout=0))
    assert lease.since == caught.value.since
    await loops[0].start(leave(loops[0].lock))
    await loops[1].start(enter(loops[1].source, timeout=0))


async def test_the_holder_goes_by_its_own_name(lghard_database):
    """Also if another loop, which goes by another, has handed the lock over to it."""
    names = ("one", "other")
    openings = [open_pool(make_conninfo(lghard_database, application_name=n)) for n in names]
    async with loops_of(*openings) as (one, other):
        await one.enter()
        entering = asyncio.create_task(other.enter())
        await eventually(lambda: one.lines._lines["t"].turns)
        await one.start(leave(one.lock))
        await entering
        assert [("other",)] == await rows(lghard_database, "holder")
        with pytest.raises(ThreadBusyError) as caught:
            await one.start(enter(one.source, timeout=0))
        assert "other" == caught.value.holder
        await other.start(leave(other.lock))


async def test_through_a_pooler_and_past_it(lghard_database, lghard_pgbouncer):
    """It is the same database."""
    conninfos = lghard_database, lghard_pgbouncer.conninfo(lghard_database)
    async with loops_of(*map(open_pool, conninfos)) as (one, other):
        assert one.lines is other.lines


async def test_databases_are_not_mixed(lghard_database, lghard_empty_database):
    """Nor are schemas: each has its own thread of that name."""
    await execute(lghard_database, "CREATE SCHEMA other")
    elsewhere = make_conninfo(lghard_database, options="-csearch_path=other")
    conninfos = lghard_database, lghard_empty_database, elsewhere
    async with loops_of(*map(open_pool, conninfos)) as loops:
        assert 3 == len({loop.lines for loop in loops})
        for loop in loops:
            await loop.enter(timeout=0)
        for loop in loops:
            await loop.start(leave(loop.lock))


async def test_a_server_that_starts_again(breakable_postgres):
    """Who comes afterwards finds the others all the same."""
    conninfo = breakable_postgres.create_database()
    async with open_pool(conninfo) as before:
        async with thread_lock(before, "t"):
            pass
        await asyncio.to_thread(breakable_postgres.restart)
        async with open_pool(conninfo) as after, thread_lock(after, "t"):
            assert lines_of(before) is lines_of(after)


@pytest.mark.usefixtures("impatient")
async def test_many_at_once(loops, lghard_database):
    """Whatever they do to each other, also leave: one at a time, and nothing stays."""
    names = [f"thread {number}" for number in range(3)]
    turns = {name: Turns() for name in names}
    dice = random.Random(7)

    async def visit(loop, name):
        timeout = dice.choice([0.0, 0.01, 0.05, 60.0])
        try:
            async with asyncio.timeout(timeout):
                await turns[name].take(loop.source, loop, name)
        except TimeoutError:
            return 60.0 == timeout
        return False

    tasks = [loop.start(visit(loop, name)) for _ in range(25) for name in names for loop in loops]
    for loop in (*loops, *loops):
        with loop.blocked():
            await asyncio.sleep(dice.uniform(0.1, 0.6))
    assert not any(await asyncio.gather(*tasks))
    assert [1] * 3 == [turns[name].most for name in names]
    await eventually(lambda: not (loops[0].lines._lines or any(loop.desk._tasks for loop in loops)))
    assert set() == loops[0].lines.keeper.held
    assert [] == await rows(lghard_database)


@each_moment
async def test_a_cancellation_in_line(pools, lghard_database, moment):
    """While it waits for another loop, or is just being handed the lock by that."""
    async with open_pool(lghard_database) as pool:
        await enter(pool)
        for step in range(7):
            await pools[0].enter()
            strike = Strike(step, moment)
            struck = asyncio.create_task(strike.against(enter(pool)))
            await eventually(lambda done=struck.done: pools[0].lines._lines["t"].turns or done())
            behind = pools[1].start(enter(pools[1].source, timeout=20))
            await pools[0].start(leave(pools[0].lock))
            await asyncio.gather(struck, behind)
            await eventually(lambda: not (Desk.of(pool)._tasks or lines_of(pool)._lines))
            assert [] == await rows(lghard_database)


# Renewals


@pytest.fixture
def renewals(monkeypatch):
    """How many leases each renewal has, and which thread it was sent from."""
    seen, renew = [], lease_keeping.renew

    def noting(leases):
        seen.append((len(leases), threading.current_thread()))
        return renew(leases)

    monkeypatch.setattr(lease_keeping, "renew", noting)
    return seen


async def hold_some(loops, number, ttl):
    """So many locks in each."""
    stacks = []
    for at, loop in enumerate(loops):
        stacks.append(AsyncExitStack())
        for n in range(number):
            lock = thread_lock(loop.source, f"thread {n} of loop {at}", ttl=ttl)
            await loop.start(stacks[-1].enter_async_context(lock))
    return stacks


async def let_go(loops, stacks):
    for loop, stack in zip(loops, stacks, strict=True):
        await loop.start(stack.aclose())


async def test_one_statement_renews_all(loops, lghard_database, renewals):
    """Those of all loops, once a period."""
    stacks = await hold_some(loops, 5, ttl=3.0)
    renewals.clear()
    before = await rows(lghard_database, "expires_at")
    await eventually(lambda: len(renewals) == 2)
    await eventually(partial(all_later, lghard_database, before))
    assert {15} == {size for size, _ in renewals}
    await let_go(loops, stacks)


async def all_later(conninfo, before):
    after = await rows(conninfo, "expires_at")
    return all(new > old for new, old in zip(after, before, strict=True))


async def test_processes_renew_their_own(pools, renewals):
    """The control: who knows nothing of the others renews nothing of theirs."""
    await know_only_themselves(pools)
    stacks = await hold_some(pools, 5, ttl=3.0)
    renewals.clear()
    await eventually(lambda: len(renewals) >= 6)
    assert {5} == {size for size, _ in renewals}
    await let_go(pools, stacks)


async def test_the_one_that_renews_is_blocked(loops, renewals):
    """For longer than leases last: another one renews them all, its own as well."""
    stacks = await hold_some(loops, 2, ttl=1.5)
    await eventually(lambda: renewals)
    blocked = next(loop for loop in loops if loop.thread is renewals[-1][1])
    with blocked.blocked():
        renewals.clear()
        await eventually(lambda: len(renewals) > 5)
        assert blocked.thread not in {thread for _, thread in renewals}
        assert 6 == len(loops[0].lines.keeper.held)
    await let_go(loops, stacks)


async def test_the_one_that_renews_ends(loops, renewals):
    """The others go on; what it had is nobody's."""
    stacks = await hold_some(loops, 2, ttl=1.5)
    await eventually(lambda: renewals)
    ended = next(loop for loop in loops if loop.thread is renewals[-1][1])
    ended.end()
    await eventually(lambda: len(loops[0].lines.keeper.held) == 4)
    renewals.clear()
    await eventually(lambda: len(renewals) > 5)
    assert {4} == {size for size, _ in renewals}
    left = [(loop, stack) for loop, stack in zip(loops, stacks, strict=True) if loop is not ended]
    await let_go(*zip(*left, strict=True))


async def test_one_that_has_locked_nothing_for_long_renews(pools, renewals):
    """What has been locked before is forgotten, but not who may renew."""
    keeper = pools[0].lines.keeper
    renew_now_in(pools[0].lines)
    await eventually(lambda: keeper._thread is None)
    lease = await pools[0].enter(ttl=1.5)
    with pools[0].blocked():
        renewals.clear()
        await eventually(lambda: len(renewals) > 5)
    assert "" == lease._over
    await pools[0].start(leave(pools[0].lock))


async def test_all_are_blocked(loops):
    """Then the leases expire: nobody has shown a sign of life. Each is told in its own loop."""
    told = []

    async def block(loop, name):
        async with thread_lock(loop.source, name, ttl=1.0) as lease:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                told.append((threading.current_thread(), lease._over))
                raise

    tasks = [loop.start(block(loop, f"thread {at}")) for at, loop in enumerate(loops)]
    held = loops[0].lines.keeper.held
    await eventually(lambda: len(held) == 3)
    with loops[0].blocked(), loops[1].blocked(), loops[2].blocked():
        await eventually(lambda: not held)
    for task in tasks:
        with pytest.raises(ThreadLockLostError, match=r"was not renewed for 1 s"):
            await task
    assert {loop.thread for loop in loops} == {thread for thread, _ in told}


async def test_a_process_that_is_blocked_alone(pools):
    """The control for the two before: without the others, its lease is lost."""
    await know_only_themselves(pools)
    lease = await pools[0].enter(ttl=1.0)
    with pools[0].blocked():
        await eventually(lambda: lease._over)
    with pytest.raises(ThreadLockLostError, match="its event loop was blocked"):
        await pools[0].start(leave(pools[0].lock))


async def test_whoever_has_lost_it_is_cancelled_in_its_own_loop(loops, lghard_database, renewals):
    """Whichever loop it is that finds it out."""

    async def lose(loop):
        async with thread_lock(loop.source, "t"):
            await steal(lghard_database)
            try:
                await asyncio.sleep(60)
            finally:
                told.append(threading.current_thread())

    for blocked in loops:
        told = []
        with blocked.blocked():
            others = [loop for loop in loops if loop is not blocked]
            losing = others[0].start(lose(others[0]))
            stacks = await hold_some(others[1:], 1, ttl=30.0)
            await eventually(
                lambda: query(lghard_database, f"SELECT FROM {TABLE} WHERE holder = 'thief'")
            )
            await others[0].start(in_loop(renew_now, others[0].source))
            with pytest.raises(ThreadLockLostError, match="somebody else has taken it over"):
                await losing
            await let_go(others[1:], stacks)
        assert [others[0].thread] == told
        await execute(lghard_database, f"DELETE FROM {TABLE}")


async def in_loop(function, *arguments):
    return function(*arguments)


# Loops that are blocked


@pytest.mark.usefixtures("impatient")
async def test_whoever_is_blocked_is_passed_over(loops, lghard_database):
    """It has been handed the lock; the others do not wait for it, and then it is the first."""
    turns = Turns()
    holder, blocked, other = loops
    await holder.enter()
    first = await blocked.stand(turns.take(blocked.source, "blocked"))
    second = await other.stand(turns.take(other.source, "other"))
    with blocked.blocked():
        await holder.start(leave(holder.lock))
        await second
        await holder.enter()
    await blocked.start(asyncio.sleep(0))
    last = await other.stand(turns.take(other.source, "last"))
    await holder.start(leave(holder.lock))
    await asyncio.gather(first, last)
    assert ["other", "blocked", "last"] == turns.order
    assert sorted(set(turns.epochs)) == turns.epochs
    assert [] == await rows(lghard_database)


@contextmanager
def blocking(loop, monkeypatch, word, *, early=False):
    """The loop stands still, once, when the database has done what it was asked to, or before."""
    fetch_all = lease_desk.fetch_all
    begun, end, answered = threading.Event(), threading.Event(), threading.Event()

    async def fetch(conn, statements, **options):
        is_it = any(word in statement.query for statement in statements)
        is_it = is_it and asyncio.get_running_loop() is loop.loop and not begun.is_set()
        found = None if early and is_it else await fetch_all(conn, statements, **options)
        if is_it:
            begun.set()
            end.wait(60)
        found = found or await fetch_all(conn, statements, **options)
        if is_it:
            answered.set()
        return found

    monkeypatch.setattr(lease_desk, "fetch_all", fetch)
    try:
        yield begun, answered
    finally:
        end.set()


@pytest.mark.usefixtures("impatient")
async def test_blocked_while_it_takes_the_lock(pools, monkeypatch, lghard_database):
    """The row is its own, and it does not know: the next one takes it from there."""
    turns = Turns()
    with blocking(pools[0], monkeypatch, "expires_at <= clock_timestamp()") as (begun, _):
        first = pools[0].start(turns.take(pools[0].source, "blocked"))
        await eventually(begun.is_set)
        await pools[1].start(turns.take(pools[1].source, "other"))
    await first
    assert ["other", "blocked"] == turns.order
    assert [] == await rows(lghard_database)


@pytest.mark.usefixtures("impatient")
async def test_a_claim_that_comes_late(pools, monkeypatch, lghard_database):
    """Its loop was blocked before it was sent: whoever has the lock now, keeps it."""
    turns = Turns()
    with blocking(pools[0], monkeypatch, "expires_at <= clock_timestamp()", early=True) as (
        begun,
        answered,
    ):
        first = pools[0].start(turns.take(pools[0].source, "blocked"))
        await eventually(begun.is_set)
        lease = await pools[1].enter()
    await eventually(answered.is_set)
    assert [(lease.epoch,)] == await rows(lghard_database, "epoch")
    await pools[1].start(leave(pools[1].lock))
    await first
    assert ["blocked"] == turns.order
    assert [] == await rows(lghard_database)


@pytest.mark.usefixtures("impatient")
async def test_blocked_while_it_gives_the_lock(pools, monkeypatch, lghard_database):
    """The row is somebody's who has not been told: that one finds it when it looks."""
    turns = Turns()
    await pools[0].enter()
    waiting = [await loop.stand(turns.take(loop.source, at)) for at, loop in enumerate(pools)]
    with blocking(pools[0], monkeypatch, "owner = %(heir)s") as (begun, _):
        leaving = pools[0].start(leave(pools[0].lock))
        await eventually(begun.is_set)
        await asyncio.gather(*waiting[1:])
    await asyncio.gather(leaving, waiting[0])
    assert [1, 2, 0] == turns.order
    assert [] == await rows(lghard_database)


@pytest.mark.usefixtures("impatient")
async def test_a_holder_that_is_known_to_be_blocked(pools, monkeypatch):
    """It keeps its lock all the same, which the others renew: it is at work inside of its block."""
    holder, other, _ = pools
    lease = await holder.enter()
    with blocking(holder, monkeypatch, "expires_at <= clock_timestamp()"):
        taking = holder.start(Turns().take(holder.source, "it", "u"))
        await eventually(lambda: not holder.desk.is_present())
        with pytest.raises(ThreadBusyError):
            await other.start(enter(other.source, timeout=1))
    await taking
    assert "" == lease._over
    await holder.start(leave(holder.lock))


@pytest.mark.usefixtures("impatient")
async def test_blocked_while_it_gives_the_lock_to_one_that_leaves(
    pools, monkeypatch, lghard_database
):
    """Nobody is there who could find the row: the one that gives it takes it back."""
    holder, other, _ = pools
    await holder.enter(ttl=300.0)
    waiting = await other.stand(enter(other.source, ttl=300.0))
    with blocking(holder, monkeypatch, "owner = %(heir)s", early=True) as (begun, _):
        leaving = holder.start(leave(holder.lock))
        await eventually(begun.is_set)
        waiting.cancel()
        await eventually(lambda: not (other.desk._tasks or other.lines._lines))
    await leaving
    assert [] == await rows(lghard_database)


@pytest.mark.usefixtures("impatient")
async def test_whoever_does_not_leave_when_it_has_lost(pools, lghard_database):
    """The others do not wait for the end of its block."""
    end = asyncio.Event()

    async def stay():
        async with thread_lock(pools[0].source, "t", ttl=1.0):
            while not end.is_set():
                try:
                    await end.wait()
                except asyncio.CancelledError:
                    continue

    staying = pools[0].start(stay())
    await eventually(lambda: pools[0].lines.keeper.held)
    await steal(lghard_database)
    waiting = await pools[1].stand(enter(pools[1].source, timeout=30))
    await eventually(lambda: pools[0].lines._lines["t"].current.desk is pools[1].desk)
    await execute(lghard_database, f"DELETE FROM {TABLE}")
    await waiting
    pools[0].loop.call_soon_threadsafe(end.set)
    with pytest.raises(ThreadLockLostError):
        await staying


# Loops that end


async def test_a_loop_ends_inside_of_its_block(loops, lghard_database):
    """Its lock is given back by another one, long before it expires."""
    await loops[0].enter("u", ttl=300.0)
    await loops[1].enter("t", ttl=300.0)
    loops[1].end()
    await loops[0].start(in_loop(renew_now, loops[0].source))
    await eventually(partial(only, lghard_database, [("u",)]))
    await loops[0].start(leave(loops[0].lock))


async def only(conninfo, expected):
    return expected == await rows(conninfo)


async def test_a_loop_ends_with_those_who_wait_in_it(loops, lghard_database):
    """And with the one that has the lock: the next one who asks has it at once."""
    ended, other, _ = loops
    await ended.enter("t", ttl=300.0)
    await ended.stand(enter(ended.source))
    waiting = await other.stand(enter(other.source, timeout=30))
    ended.end()
    await asyncio.gather(waiting, other.start(enter(other.source, timeout=30)))
    assert [] == await rows(lghard_database)


async def test_those_who_wait_in_a_loop_that_has_ended_are_left_out(loops, lghard_database):
    """Nobody hands the lock to them."""
    holder, ended, other = loops
    await holder.enter(ttl=300.0)
    await ended.stand(enter(ended.source))
    waiting = await other.stand(enter(other.source, timeout=30))
    ended.end()
    await holder.start(leave(holder.lock))
    await waiting
    assert [] == await rows(lghard_database)


async def test_a_pool_that_is_closed_while_others_are_open(pools, renewals):
    """The lock is renewed through another one; and then it is the next one's, at once."""
    closed, other, _ = pools
    stacks = await hold_some([other], 1, ttl=1.5)
    lease = await closed.enter(ttl=1.5)
    await closed.start(closed.source.close())
    renewals.clear()
    await eventually(lambda: len(renewals) > 5)
    assert {2} == {size for size, _ in renewals}
    assert closed.thread not in {thread for _, thread in renewals}
    assert not lease._over
    waiting = await other.stand(enter(other.source, ttl=300.0, timeout=20))
    await closed.start(leave(closed.lock))
    assert await waiting > lease.epoch
    await let_go([other], stacks)


async def test_nothing_runs_when_nothing_is_locked(pools):
    """The thread ends that has watched the locks."""
    keeper = pools[0].lines.keeper
    await pools[0].enter()
    assert keeper._thread.is_alive()
    await pools[0].start(leave(pools[0].lock))
    renew_now_in(pools[0].lines)
    await eventually(lambda: keeper._thread is None)


def renew_now_in(lines):
    with lines.lock:
        lines.keeper._come_by(0.0)


# A process that forks

FORK = """
import asyncio, os, sys
from lghard import ThreadBusyError, ThreadLockLostError, open_checkpointer, open_pool, thread_lock
from tests.postgres.checkpoints import put

async def lock():
    async with open_pool(sys.argv[1], kwargs={"application_name": "child"}) as pool:
        try:
            async with thread_lock(pool, "t", timeout=0):
                return "had it"
        except ThreadBusyError as error:
            return f"{error.holder} has it"

async def write():
    async with open_checkpointer(sys.argv[1], setup=False) as saver:
        try:
            await put(saver, "t")
        except ThreadLockLostError as error:
            return "refused" if "forked inside the block" in str(error) else error
        return "wrote"

def child():
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)
    print("child:", asyncio.run(lock()), asyncio.run(write()), flush=True)
    os._exit(0)

async def main():
    async with open_checkpointer(sys.argv[1], kwargs={"application_name": "parent"}) as saver:
        async with thread_lock(saver, "t"):
            await asyncio.to_thread(child)
            await put(saver, "t")
            print("parent: wrote", flush=True)

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
async def test_a_process_that_forks_inside_of_a_block(lghard_database):
    """The lock stays the parent's: the child has to wait for it, and writes nothing."""
    done = await asyncio.to_thread(script, FORK, lghard_database)
    assert ("", "child: parent has it refused\nparent: wrote\n") == (done.stderr, done.stdout)


FORK_BESIDE = """
import asyncio, os, signal, sys, threading
from lghard import open_pool, thread_lock
from lghard.postgres.lease_desk import Desk

async def lock():
    async with open_pool(sys.argv[1]) as pool, thread_lock(pool, "t"):
        pass

begin, begun, end = Desk.__init__, threading.Event(), threading.Event()

def wait(desk, place):
    if threading.current_thread() is thread:
        begun.set()
        end.wait()
    begin(desk, place)

Desk.__init__ = wait
thread = threading.Thread(target=lambda: asyncio.run(lock()))
thread.start()
begun.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(10)
    asyncio.run(lock())
    os._exit(0)
print(os.waitpid(pid, 0)[1])
end.set()
thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
async def test_a_process_that_forks_while_a_thread_begins(lghard_database):
    """Nobody is left in the child who would end that."""
    done = await asyncio.to_thread(script, FORK_BESIDE, lghard_database)
    assert ("", "0\n") == (done.stderr, done.stdout)
