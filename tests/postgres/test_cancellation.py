"""Borrowers that are cancelled, wherever they are: it is honoured, and the pool is whole after."""

import asyncio
import gc
import random
import secrets
import select
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import cycle

import psutil
import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool, PoolClosed

from lghard import ManagedPool, open_pool
from lghard.postgres.liveness import Connection, abort
from lghard.postgres.statements import Statement, send
from tests.postgres.cancelling import (
    Moment,
    Strike,
    cancelled_at_each_step,
    each_moment,
    insistently,
)
from tests.postgres.checkpoints import eventually, query

CANCELS = 4000
SWALLOWS_CANCELLATION = sys.version_info < (3, 12)
"""asyncio.wait_for does, when it is cancelled as what it waits for is done."""

LONG = 20.0
"""Seconds for what must succeed, on machines under load."""


@asynccontextmanager
async def opened(kind, conninfo, size, **arguments):
    """A pool of `size` connections, all of them open and idle."""
    arguments = {"min_size": size, "max_size": size, "kwargs": {"autocommit": True}, **arguments}
    async with kind(conninfo, open=False, **arguments) as pool:
        await pool.wait(LONG)
        yield pool


@pytest.fixture
def whole(breakable_postgres, caplog):
    """Opens a pool which is as good as new at the end of the block, and leaves nothing behind."""

    @asynccontextmanager
    async def whole(size, *, logged=(), **arguments):
        before, name = asyncio.all_tasks(), secrets.token_hex(16)
        conninfo = make_conninfo(breakable_postgres.conninfo, application_name=name)
        async with opened(ManagedPool, conninfo, size, **arguments) as pool:
            yield pool
            await settled(pool)
            assert pool.max_size == len(await backends_of(breakable_postgres, name))
        await nothing_left(breakable_postgres, name, before)
        messages = [record.getMessage() for record in caplog.records]
        assert [] == [message for message in messages if not message.startswith(logged)]

    return whole


async def settled(pool):
    """Wait until all connections are back; then as many borrowers as ever are served at once."""
    await eventually(lambda: is_at_rest(pool.snapshot()))
    async with AsyncExitStack() as stack:
        for _ in range(pool.max_size):
            conn = await stack.enter_async_context(pool.connection(timeout=LONG))
            async with conn.transaction(), conn.cursor() as cur:
                assert [(1,)] == [row async for row in cur.stream("SELECT 1")]


def is_at_rest(pool):
    at_work = (pool.borrowed, pool.waiting, pool.asked, pool.missing)
    return not any(at_work) and pool.idle == pool.size


async def backends_of(server, name):
    sql = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
    return await query(server.conninfo, sql, name)


async def nothing_left(server, name, tasks):
    """Wait until there is no backend of this name, and no task but these."""

    async def is_clean():
        return asyncio.all_tasks() <= tasks and not await backends_of(server, name)

    await eventually(is_clean)


@pytest.fixture
def no_garbage_collection():
    """What is only dropped, and not closed, stays open to the end of the test."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def is_asked(conn):
    """Whether a statement is under way on a connection."""
    return conn.info.transaction_status is TransactionStatus.ACTIVE


def is_readable(conn):
    """Whether something has arrived on an idle connection: a notification, or its end."""
    return bool(select.select([conn.fileno()], [], [], 0)[0])


@asynccontextmanager
async def frozen(server, *conns):
    """The backends of these connections do not answer in this block."""
    pids = [conn.info.backend_pid for conn in conns]
    for pid in pids:
        server.freeze_backend(pid)
    try:
        yield
    finally:
        for pid in pids:
            server.thaw_backend(pid)


async def borrow_and_return(pool):
    await pool.putconn(await pool.getconn(timeout=LONG))


# Cancelled while it is being served


async def struck_while_it_is_served(pool, iterations):
    """A borrower of an exhausted pool, and whether it could be cancelled.

    Args:
        pool: of one connection, which is handed to the borrower.
        iterations: of the event loop between the hand-over and the cancellation. With 0, what the
            borrower waits for is done, and it does not know yet; with None, it is cancelled first.
    """
    conn = await pool.getconn()
    borrowing = asyncio.create_task(pool.getconn())
    while not pool.get_stats()["requests_waiting"]:
        await asyncio.sleep(0)
    struck = iterations is None and borrowing.cancel()
    await pool.putconn(conn)
    for _ in range(iterations or 0):
        await asyncio.sleep(0)
    struck = struck or borrowing.cancel()
    await asyncio.wait({borrowing})
    return borrowing, struck


async def swallowed(pool, cancels):
    """How many of so many cancellations, each of a borrower that is just being served, get lost."""
    count = lost = 0
    moments = cycle([None, 0, 1, 2, 3])
    while count < cancels:
        borrowing, struck = await struck_while_it_is_served(pool, next(moments))
        count += struck
        if not borrowing.cancelled():
            lost += struck
            await pool.putconn(borrowing.result())
    return lost


async def test_upstream_swallows_cancellations(breakable_postgres):
    """The control: on Python 3.11, most of the cancelled borrowers live on with a connection."""
    async with opened(AsyncConnectionPool, breakable_postgres.conninfo, 1) as pool:
        lost = await swallowed(pool, CANCELS)
    if SWALLOWS_CANCELLATION:
        assert lost > CANCELS / 2
    else:
        assert 0 == lost


async def test_cancelled_while_it_is_served(whole):
    """A cancellation that meets the connection it waited for wins, and the connection stays."""
    async with whole(1) as pool:
        assert 0 == await swallowed(pool, CANCELS)


async def hold(pool, iterations):
    async with pool.connection(timeout=LONG):
        for _ in range(iterations):
            await asyncio.sleep(0)


async def test_a_crowd_is_cancelled_at_random(whole):
    """Many borrowers of few connections: who is cancelled ends, and nobody else does."""
    dice = random.Random(28)
    async with whole(2) as pool:
        crowd, victims = [], set()
        while len(victims) < CANCELS / 4:
            crowd.append(asyncio.create_task(hold(pool, dice.randrange(4))))
            for _ in range(dice.randrange(4)):
                await asyncio.sleep(0)
            victim = dice.choice(crowd[-5:])
            if victim.cancel():
                victims.add(victim)
        await asyncio.wait(crowd)
    assert victims == {task for task in crowd if task.cancelled()}


# Cancelled on the way to a connection


async def survive(pool, work, moment, *, insistent=False):
    """Cancel `work()` at each of its suspension points; the pool is whole after each."""
    steps = [-1]
    async for step in cancelled_at_each_step(work, moment, insistent=insistent):
        await settled(pool)
        steps.append(step)
    assert len(steps) > 1


@each_moment
@insistently
async def test_cancelled_during_a_ping(whole, moment, insistent):
    """A connection that was being asked goes back to the pool."""
    async with whole(2) as pool:
        pool.ping_after = 0
        await survive(pool, partial(borrow_and_return, pool), moment, insistent=insistent)


async def test_cancelled_during_a_ping_that_is_not_answered(breakable_postgres, whole):
    """Who is cancelled does not wait for the server, and the connection is used once it answers."""
    async with whole(1) as pool:
        pool.ping_after, pool.ping_timeout = 0, 60
        (conn,) = pool._pool
        async with frozen(breakable_postgres, conn):
            borrowing = asyncio.create_task(pool.getconn())
            await eventually(lambda: is_asked(conn))
            borrowing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await borrowing
        await eventually(lambda: [conn] == [*pool._pool])


async def test_cancelled_insistently_while_another_uses_the_pool(breakable_postgres, whole):
    """The connection is not lost where its way back has to wait."""
    async with whole(1) as pool:
        pool.ping_after, pool.ping_timeout = 0, 60
        (conn,) = pool._pool
        async with pool._lock:
            async with frozen(breakable_postgres, conn):
                borrowing = asyncio.create_task(pool.getconn())
                await eventually(lambda: is_asked(conn))
                borrowing.cancel()
            await eventually(lambda: not is_asked(conn))
            for _ in range(5):
                await asyncio.sleep(0)
                borrowing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await borrowing


@each_moment
@insistently
async def test_cancelled_in_a_check(whole, moment, insistent):
    """A check of one's own may wait for whatever it likes."""

    async def check(conn):
        for _ in range(3):
            await asyncio.sleep(0)

    async with whole(2, check=check) as pool:
        await survive(pool, partial(borrow_and_return, pool), moment, insistent=insistent)


@each_moment
@insistently
async def test_cancelled_in_a_sweep(whole, moment, insistent):
    """Who finds the pool dead may be cancelled: it is mended all the same."""
    async with whole(3) as pool:

        async def borrow_from_the_dead():
            for conn in pool._pool:
                abort(conn)
            await borrow_and_return(pool)

        await survive(pool, borrow_from_the_dead, moment, insistent=insistent)


async def test_cancelled_while_suspects_are_asked(breakable_postgres, proxy):
    """What a sweep has begun goes on without the borrower that began it."""
    conninfo = proxy.conninfo(breakable_postgres.conninfo)
    async with opened(ManagedPool, conninfo, 2) as pool:
        pool.ping_timeout = 60
        dead, suspect = pool._pool
        await suspect.execute("LISTEN lghard")
        await query(breakable_postgres.conninfo, "SELECT pg_notify('lghard', '')")
        await eventually(lambda: is_readable(suspect))
        proxy.refuse()
        abort(dead)
        async with frozen(breakable_postgres, suspect):
            borrowing = asyncio.create_task(pool.getconn())
            await eventually(lambda: pool.snapshot().waiting)
            borrowing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await borrowing
        proxy.accept()
        await settled(pool)
        assert suspect in pool._pool


@each_moment
async def test_cancelled_while_the_pool_grows(whole, moment):
    """The connection that was made for it is for others."""
    async with whole(1, max_size=2) as pool, pool.connection():
        borrow = partial(borrow_and_return, pool)
        assert [0] == [step async for step in cancelled_at_each_step(borrow, moment)]


# Cancelled with a connection


async def execute(conn):
    await conn.execute("SELECT 1")


async def take_time(conn):
    await conn.execute("SELECT pg_sleep(0.01)")


async def transact(conn):
    async with conn.transaction(), conn.transaction():
        await conn.execute("SELECT 1")


async def pipeline(conn):
    async with conn.pipeline(), conn.transaction():
        await conn.execute("SELECT 1")
        await conn.execute("SELECT 2")


async def use(pool, what):
    async with pool.connection(timeout=LONG) as conn:
        await what(conn)


statements = pytest.mark.parametrize("what", [execute, take_time, transact])

# psycopg's pipeline drops a generator, which complains when it finds its connection closed.
dropped_pipelines = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CLOSED = ("query cancellation interrupted", "discarding closed connection")
"""What psycopg and its pool say of a connection that they do not use again."""


NOT_BEGUN = "error ignored in rollback"
"""What psycopg says of a transaction within another that was cancelled before it had begun."""


@each_moment
@statements
@pytest.mark.parametrize("autocommit", [True, False], ids=["autocommit", "transactions"])
async def test_cancelled_with_a_connection(whole, moment, what, autocommit, busy_loop):
    """The server stops, and the same connection can be used for everything again."""
    async with whole(1, logged=(NOT_BEGUN,), kwargs={"autocommit": autocommit}) as pool:
        conns = {*pool._pool}
        await survive(pool, partial(use, pool, what), moment)
        assert conns == {*pool._pool}


@each_moment
@statements
async def test_cancelled_insistently_with_a_connection(whole, moment, what):
    """psycopg closes a connection whose query it cannot cancel in peace; it is replaced."""
    async with whole(1, logged=CLOSED) as pool:
        await survive(pool, partial(use, pool, what), moment, insistent=True)


@dropped_pipelines
async def test_upstream_passes_on_a_pipeline_that_was_cancelled(breakable_postgres, busy_loop):
    """The control: psycopg does not leave it, and the next borrower is in it without knowing."""
    async with opened(AsyncConnectionPool, breakable_postgres.conninfo, 1) as pool:
        await Strike(0, Moment.BEGUN).against(use(pool, pipeline))
        async with pool.connection() as conn:
            with pytest.raises(psycopg.ProgrammingError, match="in pipeline mode"):
                await anext(conn.cursor().stream("SELECT 1"))
    gc.collect()


@dropped_pipelines
@each_moment
async def test_cancelled_in_a_pipeline(whole, moment, busy_loop):
    """A connection that is still in it is not used again."""
    async with whole(1, logged=CLOSED) as pool:
        await survive(pool, partial(use, pool, pipeline), moment)
    gc.collect()


@each_moment
@insistently
async def test_cancelled_on_the_way_back(whole, moment, insistent):
    """What is left to do there, such as a rollback, goes on without the borrower."""

    async def forget_to_commit():
        conn = await pool.getconn()
        try:
            await conn.execute("SELECT 1")
        finally:
            await pool.putconn(conn)

    logged = ("rolling back returned connection", *CLOSED)
    async with whole(1, kwargs={}, logged=logged) as pool:
        await survive(pool, forget_to_commit, moment, insistent=insistent)


async def test_cancelled_on_the_way_back_while_another_uses_the_pool(whole):
    """The connection returns all the same."""
    async with whole(1, kwargs={}, logged="rolling back returned connection") as pool:
        conn = await pool.getconn()
        await conn.execute("SELECT 1")
        async with pool._lock:
            returning = asyncio.create_task(pool.putconn(conn))
            await eventually(lambda: pool._returning)
            await eventually(lambda: not is_asked(conn))
            returning.cancel()
            with pytest.raises(asyncio.CancelledError):
                await returning


@each_moment
@pytest.mark.parametrize("what", ["check", "health"])
async def test_cancelled_while_it_looks_after_the_pool(whole, moment, what):
    """No connection is lost to who wanted to know how the pool is."""
    async with whole(2) as pool:
        await survive(pool, getattr(pool, what), moment)


# Cancelled while the pool is opened


def sockets_to(proxy):
    """How many connections this process has to the proxy."""
    return sum(
        conn.raddr[1:] == (proxy.port,)
        for conn in psutil.Process().net_connections("tcp")
        if conn.raddr
    )


async def cancelled_in_the_handshake(kind, breakable_postgres, proxy):
    """The error of an attempt to connect to a server that does not answer."""
    proxy.blackhole()
    connecting = asyncio.create_task(kind.connect(proxy.conninfo(breakable_postgres.conninfo)))
    await eventually(lambda: proxy.connections)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await connecting
    return cancelled


async def test_psycopg_leaves_a_half_open_connection(breakable_postgres, proxy):
    """The control: its socket stays open for as long as somebody keeps the error."""
    kept = await cancelled_in_the_handshake(AsyncConnection, breakable_postgres, proxy)
    assert 1 == sockets_to(proxy)
    assert kept


async def test_cancelled_in_the_handshake(breakable_postgres, proxy, no_garbage_collection):
    """The socket is closed at once, even while somebody keeps the error."""
    kept = await cancelled_in_the_handshake(Connection, breakable_postgres, proxy)
    assert 0 == sockets_to(proxy)
    assert kept


async def test_cancelled_insistently_in_a_query(breakable_postgres, proxy, no_garbage_collection):
    """The socket of the cancel request is closed as well."""
    conninfo = proxy.conninfo(breakable_postgres.conninfo)
    async with await Connection.connect(conninfo, autocommit=True) as conn:
        sleep = send(conn, [Statement("SELECT pg_sleep(60)", ())])
        task = await Strike(0, Moment.BEGUN, insistent=True).against(sleep)
        with pytest.raises(asyncio.CancelledError) as kept:
            await task
        assert (True, 0) == (conn.closed, sockets_to(proxy))
        assert kept


async def open_and_use(conninfo):
    async with open_pool(conninfo, min_size=2, max_size=2, pooler="auto") as pool:
        await use(pool, execute)


@each_moment
async def test_cancelled_while_it_opens_a_pool(
    breakable_postgres, proxy, moment, busy_loop, no_garbage_collection
):
    """Wherever it is, from the first handshake to the close, it leaves no socket and no task."""
    before, name = asyncio.all_tasks(), secrets.token_hex(16)
    conninfo = make_conninfo(breakable_postgres.conninfo, application_name=name)
    work = partial(open_and_use, proxy.conninfo(conninfo))
    left_open = {}
    async for step in cancelled_at_each_step(work, moment):
        left_open[step] = sockets_to(proxy)
        await nothing_left(breakable_postgres, name, before)
    assert len(left_open) > 4
    assert dict.fromkeys(left_open, 0) == left_open


async def test_upstream_swallows_the_cancellation_of_a_wait(breakable_postgres):
    """The control: on Python 3.11, one that strikes as the pool is full has no effect."""
    async with AsyncConnectionPool(breakable_postgres.conninfo, min_size=1, open=False) as pool:
        waiting = await Strike(0, Moment.DONE).against(pool.wait())
    assert SWALLOWS_CANCELLATION is not waiting.cancelled()


@each_moment
async def test_cancelled_while_it_waits_for_a_full_pool(breakable_postgres, moment):
    """It is honoured, and whoever waits next waits as if nothing had been."""
    async with ManagedPool(breakable_postgres.conninfo, min_size=2, open=False) as pool:
        assert [0] == [step async for step in cancelled_at_each_step(pool.wait, moment)]


async def test_cancelled_while_it_waits_for_a_silent_server(breakable_postgres, proxy):
    """It leaves no task, however long the server takes."""
    before = asyncio.all_tasks()
    proxy.blackhole()
    opening = asyncio.create_task(open_and_use(proxy.conninfo(breakable_postgres.conninfo)))
    await eventually(lambda: proxy.connections)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    proxy.restore(lose=True)
    await eventually(lambda: asyncio.all_tasks() == before)


# Cancelled while it closes the pool


each_step_of_close = pytest.mark.parametrize(
    ("drain_timeout", "step"),
    [(0.0, 0), (0.05, 0), (0.05, 1)],
    ids=["closing", "draining", "closing after draining"],
)


@each_moment
@insistently
@each_step_of_close
async def test_cancelled_while_it_closes_the_pool(
    breakable_postgres, moment, insistent, drain_timeout, step
):
    """Waiting borrowers hear of it, and connections that come back later are closed."""
    before, name = asyncio.all_tasks(), secrets.token_hex(16)
    conninfo = make_conninfo(breakable_postgres.conninfo, application_name=name)
    async with opened(ManagedPool, conninfo, 2) as pool:
        borrowed = [await pool.getconn(), await pool.getconn()]
        waiting = asyncio.create_task(pool.getconn(timeout=LONG))
        await asyncio.sleep(0)
        strike = Strike(step, moment, insistent=insistent)
        closing = await strike.against(pool.close(drain_timeout=drain_timeout))
        assert strike.hits
        assert closing.cancelled()
        with pytest.raises(PoolClosed):
            await waiting
        for conn in borrowed:
            await pool.putconn(conn)
    await nothing_left(breakable_postgres, name, before)


async def cancelled_in_close(kind, conninfo, moment):
    """The task that closed a pool of two idle connections, and these."""
    async with opened(kind, conninfo, 2) as pool:
        idle = [*pool._pool]
        return await Strike(0, moment).against(pool.close()), idle


@each_moment
async def test_upstream_forgets_idle_connections(breakable_postgres, moment):
    """The control: they stay open, or, on Python 3.11, the cancellation is swallowed."""
    task, idle = await cancelled_in_close(AsyncConnectionPool, breakable_postgres.conninfo, moment)
    swallowed = SWALLOWS_CANCELLATION and moment is Moment.DONE
    assert swallowed is not task.cancelled()
    assert [swallowed] * 2 == [conn.closed for conn in idle]
    for conn in idle:
        await conn.close()


@each_moment
async def test_cancelled_while_it_closes_idle_connections(breakable_postgres, moment):
    """They are closed when the cancellation is heard, and not some time later."""
    task, idle = await cancelled_in_close(ManagedPool, breakable_postgres.conninfo, moment)
    assert task.cancelled()
    assert [True] * 2 == [conn.closed for conn in idle]


async def test_cancelled_while_it_closes_a_pool_that_cannot_connect(breakable_postgres, proxy):
    """Borrowers hear of the close, however long the server takes to hear of anything."""
    before = asyncio.all_tasks()
    proxy.blackhole()
    conninfo = proxy.conninfo(breakable_postgres.conninfo)
    async with ManagedPool(conninfo, min_size=0, max_size=1, open=False) as pool:
        waiting = asyncio.create_task(pool.getconn(timeout=LONG))
        await eventually(lambda: proxy.connections)
        closing = asyncio.create_task(pool.close(timeout=LONG))
        with pytest.raises(PoolClosed):
            await waiting
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        proxy.restore(lose=True)
    await eventually(lambda: asyncio.all_tasks() <= before)


def idle_when_the_loop_ends(kind, conninfo):
    """Connections of a pool that is opened by a task which lives as long as its event loop."""
    idle = []

    async def serve():
        async with opened(kind, conninfo, 2) as pool:
            idle.extend(pool._pool)
            await asyncio.Event().wait()

    async def main():
        serving = asyncio.create_task(serve())
        await eventually(lambda: idle)
        return serving

    asyncio.run(main())
    return idle


def test_upstream_forgets_connections_when_the_loop_ends(breakable_postgres):
    """The control: its workers are cancelled with all else, and its close() fails with them."""
    idle = idle_when_the_loop_ends(AsyncConnectionPool, breakable_postgres.conninfo)
    assert [False] * 2 == [conn.closed for conn in idle]
    for conn in idle:
        conn.pgconn.finish()


def test_connections_are_closed_when_the_loop_ends(breakable_postgres):
    """A pool in a background task is closed, although its own tasks are cancelled as well."""
    idle = idle_when_the_loop_ends(ManagedPool, breakable_postgres.conninfo)
    assert [True] * 2 == [conn.closed for conn in idle]
