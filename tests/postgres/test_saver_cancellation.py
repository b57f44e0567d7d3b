"""Operations of the checkpointer that are cancelled, wherever they wait: all of it, or nothing."""

import asyncio
import gc
import threading
from contextlib import asynccontextmanager
from functools import partial

import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool

from lghard import HardenedAsyncPostgresSaver, open_checkpointer
from lghard.postgres import liveness
from lghard.testing import FaultProxy
from tests.postgres.cancelling import (
    Moment,
    Strike,
    cancelled_at_each_step,
    each_moment,
    insistently,
)
from tests.postgres.checkpoints import (
    checkpoint,
    config_of,
    eventually,
    put,
    query,
    waiting_backend,
)

CONFIG = config_of("t", checkpoint(1)["id"])


async def listed(saver, thread_id="t"):
    return [found async for found in saver.alist(config_of(thread_id))]


OPERATIONS = {
    "aput": lambda saver: put(saver, "t", 2, a=[1], b=[2]),
    "aput_writes": lambda saver: saver.aput_writes(CONFIG, [("a", [1]), ("b", [2])], "new"),
    "aput_writes, special": lambda saver: saver.aput_writes(
        CONFIG, [("__interrupt__", [1]), ("__error__", "e")], "new"
    ),
    "aget_tuple": lambda saver: saver.aget_tuple(config_of("t")),
    "alist": listed,
    "adelete_thread": lambda saver: saver.adelete_thread("t"),
}

NOTHING = (1, 1, 2)
ALL = dict.fromkeys(OPERATIONS, NOTHING) | {
    "aput": (2, 3, 2),
    "aput_writes": (1, 1, 4),
    "aput_writes, special": (1, 1, 4),
    "adelete_thread": (0, 0, 0),
}
"""How many checkpoints, blobs and writes there are when an operation has done what it does."""


class Trial:
    """A saver whose operations are cancelled, and a look at its database from the outside."""

    def __init__(self, saver, proxy, observer):
        self.saver = saver
        self.proxy = proxy
        self.observer = observer

    async def outcomes(self, name, *, latency=0.0, insistent=False):
        """What there is in the database after each cancellation of an operation.

        It is cancelled at each of its suspension points; after each the saver is used again.
        """
        operation = partial(OPERATIONS[name], self.saver)
        for moment in Moment:
            await self.begin(latency)
            async for _ in cancelled_at_each_step(operation, moment, insistent=insistent):
                await self.at_rest()
                yield await self.rows()
                await self.begin(latency)
            await self.at_rest()

    async def begin(self, latency):
        """Write the thread as it is before the operation, and move the server that far away."""
        self.proxy.latency = 0.0
        await self.saver.adelete_thread("t")
        await put(self.saver, "t")
        await self.saver.aput_writes(CONFIG, [("a", [1]), ("b", [2])], "old")
        self.proxy.latency = latency

    async def at_rest(self):
        """Wait until nothing is left of the operation, neither here nor in the server."""
        self.proxy.latency = 0.0

        async def is_at_rest():
            pool = self.saver.conn.snapshot()
            is_idle = pool.borrowed + pool.waiting == 0 and pool.idle == pool.max_size
            return is_idle and await self.backends() == pool.max_size

        await eventually(is_at_rest)

    async def rows(self):
        return await self.ask(
            "SELECT (SELECT count(*) FROM checkpoints), (SELECT count(*) FROM checkpoint_blobs), "
            "(SELECT count(*) FROM checkpoint_writes)"
        )

    async def backends(self):
        (count,) = await self.ask(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return count

    async def ask(self, question):
        """One row of the answer, as a stranger to the saver gets it."""
        return await (await self.observer.execute(question)).fetchone()


@pytest.fixture
async def trial(lghard_postgres, lghard_database, busy_loop):
    async with (
        FaultProxy(lghard_postgres.host, lghard_postgres.port) as proxy,
        open_checkpointer(
            proxy.conninfo(lghard_database), setup=False, min_size=2, max_size=2
        ) as saver,
        await AsyncConnection.connect(lghard_database, autocommit=True) as observer,
    ):
        yield Trial(saver, proxy, observer)


# psycopg's pipeline drops a generator, which complains when it finds its connection closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_upstream_deletes_half_a_thread(trial):
    """The control: its pipeline commits what has been sent, and the blobs and writes stay."""
    upstream = Trial(AsyncPostgresSaver(trial.saver.conn), trial.proxy, trial.observer)
    outcomes = [rows async for rows in upstream.outcomes("adelete_thread")]
    assert (0, 1, 2) in outcomes
    gc.collect()


@pytest.mark.usefixtures("batching")
@pytest.mark.parametrize("latency", [0.0, 0.003], ids=["fast", "slow"])
@pytest.mark.parametrize("name", OPERATIONS)
async def test_cancelled(trial, caplog, name, latency):
    """It ends, has done everything or nothing, leaves nothing behind, and the next one works."""
    tasks = asyncio.all_tasks()
    outcomes = [rows async for rows in trial.outcomes(name, latency=latency)]
    assert outcomes
    assert {NOTHING, ALL[name]} >= {*outcomes}
    await eventually(lambda: len(asyncio.all_tasks()) <= len(tasks))
    assert [] == caplog.records


@pytest.mark.usefixtures("batching")
@pytest.mark.parametrize("name", OPERATIONS)
async def test_cancelled_insistently(trial, name):
    """The same, though psycopg closes the connection in its haste, and the pool replaces it."""
    outcomes = [rows async for rows in trial.outcomes(name, insistent=True)]
    assert outcomes
    assert {NOTHING, ALL[name]} >= {*outcomes}


# Cancelled while its backend is frozen, but the server answers; together, what is sent is finished


@asynccontextmanager
async def on_a_plain_pool(kind, conninfo):
    kwargs = {"autocommit": True}
    async with AsyncConnectionPool(
        conninfo, min_size=1, max_size=1, kwargs=kwargs, open=False
    ) as pool:
        await pool.wait()
        yield kind(pool)


SAVERS = {
    "its own pool": partial(open_checkpointer, setup=False, max_size=1, batching=False),
    "a plain pool": partial(on_a_plain_pool, partial(HardenedAsyncPostgresSaver, batching=False)),
}
OF_A_THREAD = {
    "aput": lambda saver, thread_id: put(saver, thread_id, 2, a=[1], b=[2]),
    "aget_tuple": lambda saver, thread_id: saver.aget_tuple(config_of(thread_id)),
    "alist": listed,
    "adelete_thread": lambda saver, thread_id: saver.adelete_thread(thread_id),
}
ROWS = (
    "SELECT (SELECT count(*) FROM checkpoints WHERE thread_id = 't'), "
    "(SELECT count(*) FROM checkpoint_blobs WHERE thread_id = 't'), "
    "(SELECT count(*) FROM checkpoint_writes WHERE thread_id = 't')"
)


class Stuck:
    """A saver and upstream's, each with one connection, whose backend is frozen."""

    def __init__(self, server, ours, upstream):
        self.server, self.ours, self.upstream = server, ours, upstream
        self.conns = [saver.conn._pool[0] for saver in (ours, upstream)]
        self.pid = self.conns[0].info.backend_pid
        self.frozen = set()

    def freeze(self):
        for conn in self.conns:
            self.server.freeze_backend(conn.info.backend_pid)
            self.frozen.add(conn.info.backend_pid)

    async def under_way(self):
        """Wait until an operation of each waits for its backend."""

        def is_asked(conn):
            return conn.info.transaction_status is TransactionStatus.ACTIVE

        await eventually(lambda: all(map(is_asked, self.conns)))

    def thaw(self):
        while self.frozen:
            self.server.thaw_backend(self.frozen.pop())


@pytest.fixture(params=SAVERS)
async def stuck(request, lghard_postgres, lghard_database, monkeypatch):
    monkeypatch.setattr(liveness, "CANCEL_TIMEOUT", 0.2)  # upstream waits for five seconds
    async with (
        SAVERS[request.param](lghard_database) as ours,
        on_a_plain_pool(AsyncPostgresSaver, lghard_database) as upstream,
    ):
        await put(ours, "t")
        await ours.aput_writes(CONFIG, [("a", [1]), ("b", [2])], "old")
        found = Stuck(lghard_postgres, ours, upstream)
        try:
            found.freeze()
            yield found
        finally:
            found.thaw()


@pytest.mark.parametrize("name", OF_A_THREAD)
async def test_cancelled_under_a_frozen_backend(stuck, lghard_database, name):
    """It ends while upstream's still waits; the saver works, and all rows are there, or none."""
    tasks = lasting_tasks()
    operation = OF_A_THREAD[name]
    ours = asyncio.create_task(operation(stuck.ours, "t"))
    theirs = asyncio.create_task(operation(stuck.upstream, "u"))
    await stuck.under_way()
    theirs.cancel()
    ours.cancel()
    done, _ = await asyncio.wait({ours, theirs}, return_when=asyncio.FIRST_COMPLETED)
    assert ({ours}, True) == (done, ours.cancelled())
    await put(stuck.ours, "other")
    stuck.thaw()
    with pytest.raises(asyncio.CancelledError):
        await theirs
    await eventually(partial(gone, lghard_database, stuck.pid))
    (rows,) = await query(lghard_database, ROWS)
    assert rows in (NOTHING, ALL[name])
    await operation(stuck.ours, "t")
    assert [ALL[name]] == await query(lghard_database, ROWS)
    await eventually(lambda: lasting_tasks() <= tasks)


def lasting_tasks():
    """Without those of a pool's scheduler, which on Python 3.11 has another one every second."""
    return {task for task in asyncio.all_tasks() if "Event.wait" not in repr(task.get_coro())}


async def gone(conninfo, pid):
    return not await query(conninfo, "SELECT FROM pg_stat_activity WHERE pid = %s", pid)


async def timed_out(operation):
    async with asyncio.timeout(0.2):
        await operation


@pytest.mark.parametrize(
    "limit",
    [timed_out, partial(asyncio.wait_for, timeout=0.2)],
    ids=["asyncio.timeout", "asyncio.wait_for"],
)
async def test_timed_out_under_a_frozen_backend(stuck, limit):
    """A timeout is a cancellation, too."""
    theirs, ours = (
        asyncio.create_task(limit(put(saver, "t", 2))) for saver in (stuck.upstream, stuck.ours)
    )
    done, _ = await asyncio.wait({ours, theirs}, return_when=asyncio.FIRST_COMPLETED)
    assert {ours} == done
    assert isinstance(ours.exception(), TimeoutError)
    await put(stuck.ours, "other")
    stuck.thaw()
    with pytest.raises(TimeoutError):
        await theirs


@pytest.mark.parametrize("kind", SAVERS)
async def test_a_healthy_backend_keeps_its_connection(lghard_database, kind):
    """It confirms the cancellation in time."""
    async with SAVERS[kind](lghard_database) as saver:
        await put(saver, "t")
        async with await AsyncConnection.connect(lghard_database) as conn:
            await conn.execute("SELECT FROM checkpoints FOR UPDATE")
            before = [*saver.conn._pool]
            writing = asyncio.create_task(put(saver, "t"))
            await waiting_backend(lghard_database)
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
            await eventually(lambda: before == [*saver.conn._pool])
        await put(saver, "t")
        assert before == [*saver.conn._pool]


FORGET = "DELETE FROM checkpoint_migrations WHERE v = 9 RETURNING v"
LOCKS = (
    "SELECT pid FROM pg_locks WHERE locktype = 'advisory' "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


@each_moment
async def test_cancelled_in_setup(lghard_database, moment, busy_loop):
    """No connection goes back that has the lock of the migrations, or has lost its timeouts."""
    steps = 0
    async with open_checkpointer(lghard_database, max_size=1, statement_timeout=7.0) as saver:
        await query(lghard_database, FORGET)
        async for _ in cancelled_at_each_step(saver.setup, moment):
            assert [] == await query(lghard_database, LOCKS)
            async with saver.conn.connection() as conn:
                cursor = await conn.execute("SHOW statement_timeout")
                assert {"statement_timeout": "7s"} == await cursor.fetchone()
            await query(lghard_database, FORGET)
            steps += 1
    assert steps > 10


@each_moment
async def test_cancelled_in_setup_behind_a_pooler(
    lghard_database, lghard_pgbouncer, moment, busy_loop
):
    """The connection that has the lock is closed."""
    steps = 0

    async def free():
        return not await query(lghard_database, LOCKS)

    conninfo = lghard_pgbouncer.conninfo(lghard_database)
    async with open_checkpointer(conninfo, max_size=1) as saver:
        await query(lghard_database, FORGET)
        async for _ in cancelled_at_each_step(saver.setup, moment):
            await eventually(free)
            await query(lghard_database, FORGET)
            steps += 1
    assert steps > 10


async def open_and_put(conninfo):
    async with open_checkpointer(conninfo, setup=False) as saver:
        await put(saver, "t")


async def clients_of(conninfo):
    others = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    return await query(conninfo, f"{others} AND pid <> pg_backend_pid()")


@each_moment
async def test_cancelled_while_it_opens_a_checkpointer(lghard_database, caplog, moment, busy_loop):
    """It leaves no task, no connection, and nothing for asyncio to report."""
    tasks = asyncio.all_tasks()
    steps = 0

    async def nothing_left():
        return asyncio.all_tasks() == tasks and not await clients_of(lghard_database)

    async for _ in cancelled_at_each_step(partial(open_and_put, lghard_database), moment):
        await eventually(nothing_left)
        steps += 1
    gc.collect()
    assert [] == caplog.records
    assert steps > 2


@pytest.mark.usefixtures("batching")
@each_moment
@insistently
async def test_cancelled_in_the_last_loop_that_leaves(lghard_database, moment, insistent):
    """The thread that had the connections of all event loops ends, and they with it."""
    stay = open_checkpointer(lghard_database, setup=False)
    saver = await stay.__aenter__()
    await asyncio.to_thread(asyncio.run, open_and_put(lghard_database))
    await put(saver, "t")
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "lghard-io"]
    leaving = await Strike(0, moment, insistent=insistent).against(stay.__aexit__(None, None, None))
    assert leaving.cancelled()

    async def nothing_left():
        return not thread.is_alive() and not await clients_of(lghard_database)

    await eventually(nothing_left)
