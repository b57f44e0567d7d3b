"""The checkpointer under fire: what is repeated, what is not, and who hears of it."""

import asyncio
import logging
from contextlib import asynccontextmanager
from time import monotonic

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from lghard import HardenedAsyncPostgresSaver, open_checkpointer
from lghard.postgres.retries import (
    LONG,
    RULES,
    Operation,
    Outage,
    Repeat,
    current_operation,
)
from lghard.postgres.settling import Backend, Unprovable
from lghard.resilience import RetryBudget
from lghard.testing import FaultProxy
from tests.postgres.checkpoints import (
    checkpoint,
    config_of,
    eventually,
    put,
    query,
    waiting_backend,
)

pytestmark = pytest.mark.usefixtures("batching")


@pytest.fixture
async def proxy(lghard_postgres):
    async with FaultProxy(lghard_postgres.host, lghard_postgres.port) as proxy:
        yield proxy


@pytest.fixture
async def saver(lghard_database, proxy):
    conninfo = proxy.conninfo(lghard_database)
    async with open_checkpointer(conninfo, setup=False, max_size=4) as saver:
        yield saver


@pytest.fixture
async def upstream(lghard_database, proxy):
    async with AsyncConnectionPool(
        proxy.conninfo(lghard_database), kwargs={"autocommit": True}, open=False
    ) as pool:
        await pool.wait()
        yield AsyncPostgresSaver(pool)


OPERATIONS = {
    "aget_tuple": lambda saver: saver.aget_tuple(config_of("t")),
    "alist": lambda saver: anext(saver.alist(config_of("t"))),
    "aput": lambda saver: put(saver, "t", 2),
    "aput_writes, DO NOTHING": lambda saver: saver.aput_writes(
        config_of("t", "1"), [("messages", [1])], "task"
    ),
    "aput_writes, UPSERT": lambda saver: saver.aput_writes(
        config_of("t", "1"), [("__interrupt__", [1])], "task"
    ),
    "adelete_thread": lambda saver: saver.adelete_thread("other"),
    "adelete_for_runs": lambda saver: saver.adelete_for_runs(["run"]),
    "acopy_thread": lambda saver: saver.acopy_thread("t", "other"),
    "aprune": lambda saver: saver.aprune(["other"]),
    "aget_delta_channel_history": lambda saver: saver.aget_delta_channel_history(
        config=config_of("t"), channels=["messages"]
    ),
    "setup": lambda saver: saver.setup(),
}


def test_every_operation_has_its_test():
    """A new rule needs a new line here."""
    assert savers(RULES) == set(OPERATIONS)


def savers(names):
    """Those of the checkpointer; the store's have tests of their own."""
    return {name for name in names if not name.startswith("store ")}


@pytest.mark.parametrize("name", sorted(OPERATIONS.keys() - {"adelete_for_runs", "acopy_thread"}))
async def test_upstream_fails_when_a_response_is_lost(upstream, proxy, name):
    """The control: one lost response is one failed operation."""
    await put(upstream, "t")
    proxy.lose_responses()
    with pytest.raises(psycopg.OperationalError):
        await OPERATIONS[name](upstream)


@pytest.mark.parametrize("name", OPERATIONS)
async def test_a_lost_response_costs_nothing(saver, proxy, name, caplog):
    """Every operation succeeds at the second attempt, and one line tells of the trouble."""
    await put(saver, "t")
    proxy.lose_responses()
    with caplog.at_level(logging.INFO, "lghard.postgres"):
        await OPERATIONS[name](saver)
    records = [record for record in caplog.records if record.name == "lghard.postgres"]
    assert [record.levelname for record in records] == ["WARNING", "INFO"]
    assert f"{name} lost the database" in records[0].getMessage()
    assert proxy.lost > 0


@pytest.mark.parametrize("name", OPERATIONS)
async def test_every_operation_survives_a_killed_backend(lghard_database, name):
    """Killed while it waits for a lock, so that it is certainly at work."""
    async with open_checkpointer(lghard_database, setup=False) as saver:
        await put(saver, "t")
        async with await AsyncConnection.connect(lghard_database) as conn:
            await conn.execute(
                "LOCK checkpoints, checkpoint_blobs, checkpoint_writes, checkpoint_migrations"
            )
            operation = asyncio.ensure_future(OPERATIONS[name](saver))
            pid = await waiting_backend(lghard_database)
            await conn.execute("SELECT pg_terminate_backend(%s)", (pid,))
            second = await eventually_another(lghard_database, pid)
            await conn.rollback()
        await operation
    assert pid != second


async def eventually_another(conninfo, pid):
    async def ask():
        found = await query(
            conninfo,
            "SELECT pid FROM pg_stat_activity "
            "WHERE wait_event_type = 'Lock' AND datname = current_database() AND pid <> %s",
            pid,
        )
        return found[0][0] if found else None

    return await eventually(ask)


async def test_a_restarted_server_is_waited_for(lghard_own_postgres):
    """The operation spans the outage; upstream's would fail at once."""
    server = lghard_own_postgres
    async with open_checkpointer(server.conninfo) as saver:
        await put(saver, "t")
        await asyncio.to_thread(server.stop, "immediate")
        writing = asyncio.create_task(put(saver, "t", 2))
        await eventually(lambda: saver.conn._reconnects.error)
        assert not writing.done()
        await asyncio.to_thread(server.start)
        await writing
        found = await saver.aget_tuple(config_of("t"))
    assert checkpoint(2)["id"] == found.checkpoint["id"]


async def test_the_deadline_ends_it(lghard_own_postgres):
    """A server that stays away: the error is psycopg's own, and its notes tell what was tried."""
    server = lghard_own_postgres
    async with open_checkpointer(server.conninfo, deadline=1.0) as saver:
        await asyncio.to_thread(server.stop, "immediate")
        with pytest.raises(psycopg.OperationalError) as caught:
            await put(saver, "t")
        await asyncio.to_thread(server.start)
        assert any("aput was tried" in note for note in notes_of(caught.value))
        await put(saver, "t")


def notes_of(error):
    return getattr(error, "__notes__", [])


async def test_an_exhausted_pool_is_not_an_outage(lghard_database):
    """Waiting longer would only make the queue longer: the caller hears of it at once."""
    async with open_checkpointer(lghard_database, max_size=1, timeout=0.2) as saver:
        async with saver.conn.connection():
            with pytest.raises(PoolTimeout) as caught:
                await put(saver, "t")
        assert any("raise max_size" in note for note in notes_of(caught.value))


async def test_errors_of_the_statement_are_not_repeated(saver, caplog):
    """They would only fail again."""
    with pytest.raises(psycopg.errors.UntranslatableCharacter):
        await put(saver, "t", text="a\x00b")
    assert [] == [record for record in caplog.records if record.name == "lghard.postgres"]


async def test_without_tables_the_next_step_is_told(lghard_empty_database):
    """Upstream's error is the server's: relation "checkpoints" does not exist."""
    async with open_checkpointer(lghard_empty_database, setup=False) as saver:
        for operation in (put(saver, "t"), saver.aget_tuple(config_of("t"))):
            with pytest.raises(psycopg.errors.UndefinedTable) as caught:
                await operation
            assert any("call setup() once" in note for note in notes_of(caught.value))
        await saver.setup()
        await put(saver, "t")


@asynccontextmanager
async def hot_thread(conninfo, saver):
    """A thread, one of whose rows somebody else has locked."""
    await put(saver, "t")
    async with await AsyncConnection.connect(conninfo) as conn:
        await conn.execute("SELECT FROM checkpoints FOR UPDATE")
        yield


async def test_upstream_waits_for_a_lock_without_end(lghard_database, upstream):
    """The control: it sets no limit, and the server has none."""
    async with hot_thread(lghard_database, upstream):
        writing = asyncio.create_task(put(upstream, "t"))
        pid = await waiting_backend(lghard_database)
        assert await eventually(lambda: waiting_for_long(lghard_database, pid))
        assert not writing.done()
    await writing


@pytest.mark.parametrize("name", ["aput", "adelete_thread", "aprune"])
async def test_a_lock_is_waited_for_as_long_as_said(lghard_database, name, caplog):
    """Once, with a note on whom to look for; then the pool is as good as before."""
    operation = {
        "aput": lambda saver: put(saver, "t"),
        "adelete_thread": lambda saver: saver.adelete_thread("t"),
        "aprune": lambda saver: saver.aprune(["t"], strategy="delete"),
    }[name]
    async with open_checkpointer(
        lghard_database, setup=False, max_size=1, lock_timeout=0.1
    ) as saver:
        async with hot_thread(lghard_database, saver):
            with pytest.raises(psycopg.errors.LockNotAvailable) as caught:
                await operation(saver)
        assert any("two runs that write to one thread" in note for note in notes_of(caught.value))
        assert [] == lines(caplog)
        await operation(saver)


async def test_a_frozen_backend_is_left_behind_by_a_read(lghard_postgres, lghard_database):
    """A read is simply repeated on another connection."""
    async with open_checkpointer(lghard_database, max_size=2, attempt_timeout=0.5) as saver:
        await put(saver, "t")
        async with frozen(lghard_postgres, lghard_database, saver):
            found = await saver.aget_tuple(config_of("t"))
    assert checkpoint()["id"] == found.checkpoint["id"]


class frozen:  # noqa: N801 - reads as a verb where it is used
    """The only idle backend of the saver does not answer in this block."""

    def __init__(self, server, conninfo, saver):
        self.server, self.conninfo, self.saver = server, conninfo, saver

    async def __aenter__(self):
        (conn,) = self.saver.conn._pool
        self.pid = conn.pgconn.backend_pid
        self.server.freeze_backend(self.pid)
        return self.pid

    async def __aexit__(self, *_):
        self.server.thaw_backend(self.pid)


async def test_a_write_to_a_frozen_backend_has_an_unknown_outcome(lghard_postgres, lghard_database):
    """It is not repeated, because the old backend may come back; the error says so."""
    async with open_checkpointer(
        lghard_database, max_size=2, attempt_timeout=0.3, deadline=2.0
    ) as saver:
        await put(saver, "t")
        async with frozen(lghard_postgres, lghard_database, saver) as pid:
            with pytest.raises(psycopg.OperationalError) as caught:
                await put(saver, "t", text="old")
    assert "outcome of aput is unknown" in "".join(notes_of(caught.value))
    assert f"its backend ({pid})" in "".join(notes_of(caught.value))


async def test_a_write_is_repeated_once_the_frozen_backend_is_gone(
    lghard_postgres, lghard_database
):
    """The lost backend is told to stop; as soon as it has, the write goes through."""
    async with open_checkpointer(lghard_database, max_size=2, attempt_timeout=0.3) as saver:
        await put(saver, "t")
        async with frozen(lghard_postgres, lghard_database, saver) as pid:
            writing = asyncio.create_task(put(saver, "t", text="new"))
            await eventually(lambda: saver._outage._since)
        await writing
        gone = await query(lghard_database, "SELECT FROM pg_stat_activity WHERE pid = %s", pid)
        found = await saver.aget_tuple(config_of("t"))
    assert [] == gone
    assert {"text": "new"} == found.checkpoint["channel_values"]


async def stuck_write(saver, server, conninfo, proxy):
    """An UPSERT whose backend is frozen in the middle, and whose client has lost it."""
    await put(saver, "t", text="first")
    async with await AsyncConnection.connect(conninfo) as conn:
        await conn.execute("SELECT FROM checkpoints FOR UPDATE")
        writing = asyncio.create_task(put(saver, "t", text="old"))
        pid = await waiting_backend(conninfo)
        server.freeze_backend(pid)
        proxy.reset()
    return pid, writing


async def what_stands(server, conninfo, pid):
    """Another replica writes a newer value; then the old backend thaws and goes on."""
    async with open_checkpointer(conninfo, setup=False) as replica:
        await put(replica, "t", text="newer")
        server.thaw_backend(pid)
        await backend_gone(conninfo, pid)
        found = await replica.aget_tuple(config_of("t"))
    return found.checkpoint["channel_values"]["text"]


async def backend_gone(conninfo, pid):

    async def gone():
        return not await query(conninfo, "SELECT FROM pg_stat_activity WHERE pid = %s", pid)

    await eventually(gone)


async def test_upstreams_late_write_overwrites_a_newer_one(
    upstream, lghard_postgres, lghard_database, proxy
):
    """The control: the client has given up, the backend has not."""
    pid, writing = await stuck_write(upstream, lghard_postgres, lghard_database, proxy)
    with pytest.raises(psycopg.OperationalError):
        await writing
    assert "old" == await what_stands(lghard_postgres, lghard_database, pid)


async def test_a_late_write_overwrites_nothing(lghard_postgres, lghard_database, proxy):
    """Promise 3: the newer value stands, and whoever wrote the old one knows that he does not."""
    conninfo = proxy.conninfo(lghard_database)
    async with open_checkpointer(conninfo, max_size=4, deadline=2.0) as saver:
        pid, writing = await stuck_write(saver, lghard_postgres, lghard_database, proxy)
        with pytest.raises(psycopg.OperationalError) as caught:
            await writing
        assert "newer" == await what_stands(lghard_postgres, lghard_database, pid)
    assert "outcome of aput is unknown" in "".join(notes_of(caught.value))


async def test_cancelled_between_two_attempts(lghard_own_postgres):
    """A run that is cancelled during an outage ends then, and leaves nothing behind."""
    server = lghard_own_postgres
    async with open_checkpointer(server.conninfo) as saver:
        await asyncio.to_thread(server.stop, "immediate")
        writing = asyncio.create_task(put(saver, "t"))
        await eventually(lambda: saver.conn._reconnects.error)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        await asyncio.to_thread(server.start)
        await put(saver, "t")
        await eventually(
            lambda: saver.conn.get_stats()["pool_size"] == saver.conn.get_stats()["pool_available"]
        )


async def test_a_plain_pool_does_as_well(lghard_database, proxy):
    """The saver's retries need nothing of ManagedPool."""
    async with AsyncConnectionPool(
        proxy.conninfo(lghard_database), kwargs={"autocommit": True}, open=False
    ) as pool:
        await pool.wait()
        saver = HardenedAsyncPostgresSaver(pool)
        await put(saver, "t")
        proxy.lose_responses()
        await put(saver, "t", 2)
        found = await saver.aget_tuple(config_of("t"))
    assert checkpoint(2)["id"] == found.checkpoint["id"]


def test_only_what_may_run_twice_is_repeated_freely():
    """The table of promise 3, spelled out."""
    freely = {name for name in savers(RULES) if RULES[name] is Repeat.FREELY}
    reads = {"aget_tuple", "alist", "aget_delta_channel_history"}
    assert {*reads, "aput_writes, DO NOTHING"} == freely


@pytest.fixture
async def pooled(lghard_database, lghard_pgbouncer):
    """A saver behind a transaction pooler, and the network between them."""
    async with FaultProxy(lghard_pgbouncer.host, lghard_pgbouncer.port) as proxy:
        kwargs = {"prepare_threshold": None}
        async with open_checkpointer(
            proxy.conninfo(lghard_database), setup=False, max_size=4, kwargs=kwargs
        ) as saver:
            yield saver, proxy


async def test_behind_a_pooler_reads_are_repeated(pooled):
    """What is repeated freely needs to know no backend."""
    saver, proxy = pooled
    await asyncio.gather(*(put(saver, f"t{number}") for number in range(20)))
    proxy.lose_responses()
    found = await saver.aget_tuple(config_of("t7"))
    assert checkpoint()["id"] == found.checkpoint["id"]


@pytest.mark.parametrize("name", sorted(OPERATIONS.keys() - {"setup"}))
async def test_behind_a_pooler_a_lost_response_costs_nothing(pooled, name):
    """What overwrites or deletes is declared void first; see test_voiding.py."""
    saver, proxy = pooled
    await saver.setup()
    await put(saver, "t")
    proxy.lose_responses()
    await OPERATIONS[name](saver)
    assert 1 == proxy.lost


async def test_behind_a_pooler_a_lost_write_has_an_unknown_outcome_without_setup(pooled):
    """Nobody can tell which backend was at work, and none is told to stop."""
    saver, proxy = pooled
    await put(saver, "t")
    proxy.lose_responses()
    with pytest.raises(psycopg.OperationalError) as caught:
        await put(saver, "t", text="new")
    assert "outcome of aput is unknown" in "".join(notes_of(caught.value))
    assert "tried 2 times" in "".join(notes_of(caught.value))
    await put(saver, "t", 2)


IN_FLIGHT = ["aget_tuple", "aput", "adelete_thread"]
"""An operation for each way of talking to the server: one statement, one message, a transaction."""


@pytest.mark.alone("together with others, what has been sent is waited for")
@pytest.mark.parametrize("name", IN_FLIGHT)
async def test_cancelled_while_the_network_is_silent(saver, proxy, name):
    """It ends soon; psycopg would ask an unreachable server for ten seconds to cancel."""
    await OPERATIONS[name](saver)
    proxy.blackhole()
    task = asyncio.ensure_future(OPERATIONS[name](saver))
    await eventually(lambda: saver.conn.snapshot().borrowed)
    task.cancel()
    await asyncio.wait({task}, timeout=5)
    assert task.done()
    assert task.cancelled()
    await eventually(lambda: saver.conn.snapshot().borrowed == 0)
    proxy.restore(lose=True)


async def slow_down_checkpoints(conninfo, seconds):
    """Let the server take its time for each checkpoint."""
    async with await AsyncConnection.connect(conninfo, autocommit=True) as conn:
        await conn.execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql "
            f"AS $$ BEGIN PERFORM pg_sleep({seconds}); RETURN new; END $$"
        )
        await conn.execute(
            "CREATE TRIGGER slow BEFORE INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION slow()"
        )


async def test_a_large_task_gets_more_time_at_the_next_attempt(lghard_database):
    """Perhaps it was not the server; cut off after the same time, it would never succeed."""
    await slow_down_checkpoints(lghard_database, 0.5)
    async with open_checkpointer(
        lghard_database, setup=False, attempt_timeout=0.2, deadline=5.0
    ) as saver:
        await put(saver, "t")
        assert await saver.aget_tuple(config_of("t"))


@pytest.mark.alone("it is never sent together with others")
@pytest.mark.parametrize("name", sorted(savers(LONG)))
async def test_long_work_is_not_cut_off(lghard_database, name, caplog):
    """How long it takes depends on how much there is, and attempt_timeout does not know that."""
    async with open_checkpointer(lghard_database, setup=False, attempt_timeout=0.1) as saver:
        async with await AsyncConnection.connect(lghard_database) as conn:
            await conn.execute("LOCK checkpoints, checkpoint_migrations")
            task = asyncio.ensure_future(OPERATIONS[name](saver))
            pid = await waiting_backend(lghard_database)
            await eventually(lambda: waiting_for_long(lghard_database, pid))
        await task
    assert [] == [record for record in caplog.records if record.name == "lghard.postgres"]


async def waiting_for_long(conninfo, pid):
    """Whether that backend has waited for several attempt timeouts."""
    return await query(
        conninfo,
        "SELECT FROM pg_stat_activity "
        "WHERE pid = %s AND clock_timestamp() - query_start > interval '0.5 s'",
        pid,
    )


@pytest.fixture
async def committing(lghard_database, proxy):
    """A saver on a pool that is not in autocommit mode."""
    async with AsyncConnectionPool(proxy.conninfo(lghard_database), open=False) as pool:
        await pool.wait()
        saver = HardenedAsyncPostgresSaver(pool, attempt_timeout=0.2, deadline=1.0)
        await put(saver, "t")
        yield saver


@pytest.mark.alone("what is sent together needs no COMMIT")
async def test_a_commit_is_bounded(committing, proxy):
    """It is a part of the attempt, so a server that does not answer it is given up, too."""
    proxy.hold_requests(containing=b"COMMIT")
    task = asyncio.ensure_future(committing.aget_tuple(config_of("t")))
    await asyncio.wait({task}, timeout=30)
    proxy.release()
    with pytest.raises(psycopg.OperationalError):
        await task


async def test_the_loss_of_a_commit_is_settled_first(committing, proxy):
    """A delete is repeated only when the backend that was to commit it is gone."""
    proxy.lose_responses(containing=b"COMMIT")
    proxy.hold_requests(containing=b"pg_terminate_backend")
    task = asyncio.ensure_future(committing.adelete_thread("t"))
    await eventually(lambda: proxy.held or task.done())
    assert [1, 1] == [proxy.lost, proxy.held]
    proxy.release()
    await task


async def test_a_failure_after_a_loss_says_that_the_outcome_is_unknown(
    saver, proxy, lghard_database
):
    """The lost attempt may have committed, whatever has kept the next one from it."""
    await OPERATIONS["aput_writes, UPSERT"](saver)
    proxy.lose_responses()
    proxy.hold_requests(containing=b"pg_terminate_backend")
    task = asyncio.ensure_future(OPERATIONS["aput_writes, UPSERT"](saver))
    await eventually(lambda: proxy.held)
    async with await AsyncConnection.connect(lghard_database, autocommit=True) as conn:
        await conn.execute("ALTER TABLE checkpoint_writes RENAME TO gone")
    proxy.release()
    with pytest.raises(psycopg.errors.UndefinedTable) as caught:
        await task
    assert "outcome of aput_writes, UPSERT is unknown" in "".join(notes_of(caught.value))


async def test_no_error_is_its_own_cause(saver, proxy):
    """Lost at once, then held until the deadline: what is raised at the end tells of both."""
    saver.deadline, saver.attempt_timeout = 1.0, 30.0
    proxy.hold_requests(containing=b"INSERT INTO checkpoint")
    task = asyncio.ensure_future(put(saver, "t"))
    await eventually(lambda: proxy.held)
    proxy.reset()
    with pytest.raises(psycopg.OperationalError) as caught:
        await task
    chain = list(causes_of(caught.value))
    assert len(set(map(id, chain))) == len(chain)


def causes_of(error):
    """The error, its cause, that one's cause, …; no more than anybody would read."""
    for _ in range(20):
        if error is None:
            return
        yield error
        error = error.__cause__


def lines(caplog):
    """The levels of what the saver has logged."""
    return [record.levelname for record in caplog.records if record.name == "lghard.postgres"]


async def test_an_outage_that_outlives_an_operation_hides_no_later_one(saver, proxy, caplog):
    """The operation has given up; the next outage has its two lines again."""
    caplog.set_level(logging.INFO, "lghard.postgres")
    saver.deadline = 0.2
    proxy.refuse()
    proxy.reset()
    with pytest.raises(psycopg.OperationalError):
        await put(saver, "t")
    proxy.accept()
    saver.deadline = 60.0
    await put(saver, "t")
    assert ["WARNING"] == lines(caplog)
    await eventually(lambda: saver.conn.snapshot().size == saver.conn.snapshot().idle)
    proxy.lose_responses()
    await put(saver, "t", 2)
    assert ["WARNING", "WARNING", "INFO"] == lines(caplog)


@pytest.mark.alone("it counts attempts, and those of one thread stand in line")
async def test_one_outage_is_two_lines(saver, proxy, caplog):
    """However many operations are in it."""
    caplog.set_level(logging.INFO, "lghard.postgres")
    await asyncio.gather(*(put(saver, f"t{number}") for number in range(4)))
    proxy.hold_requests(containing=b"checkpoint_ns")
    tasks = [asyncio.create_task(saver.aget_tuple(config_of("t0"))) for _ in range(4)]
    await eventually(lambda: proxy.held == 4)
    proxy.reset()
    proxy.release()
    assert all(await asyncio.gather(*tasks))
    assert ["WARNING", "INFO"] == lines(caplog)


async def test_a_task_started_inside_an_operation_is_not_in_it():
    """It may outlive the operation, its deadline and its rule."""

    async def ask():
        return current_operation()

    async def call():
        return await ask(), await asyncio.create_task(ask())

    operation = Operation("aput", deadline=60.0, attempt_timeout=60.0)
    pool = AsyncConnectionPool("", open=False)
    assert (operation, None) == await operation.run(call, Outage(), pool)


CROWD = 200


async def outage(saver, proxy, is_over):
    """How many attempts of a crowd of operations get lost until `is_over`; then all succeed."""
    await put(saver, "t")
    proxy.lose_responses(1_000_000, containing=b"checkpoint")
    crowd = [asyncio.create_task(saver.aget_tuple(config_of("t"))) for _ in range(CROWD)]
    await eventually(lambda: proxy.lost > CROWD and is_over())
    lost = proxy.lost
    proxy.lose_responses(0)
    found = await asyncio.gather(*crowd)
    assert [checkpoint()["id"]] * CROWD == [each.checkpoint["id"] for each in found]
    return lost


@pytest.mark.alone("it counts attempts, and those of one thread stand in line")
async def test_without_a_budget_an_outage_is_made_worse(saver, proxy, monkeypatch):
    """The control: with nothing but a back-off, every operation tries again and again."""
    monkeypatch.setattr(saver._outage.budget, "_take", lambda: 0.0)
    await outage(saver, proxy, lambda: proxy.lost > 1.5 * CROWD)


@pytest.mark.alone("it counts attempts, and those of one thread stand in line")
async def test_an_outage_is_not_made_worse(saver, proxy):
    """A tenth more attempts than operations, at most, and all succeed when it is over."""
    ends_at = monotonic() + 2.0
    lost = await outage(saver, proxy, lambda: monotonic() >= ends_at)
    assert CROWD < lost <= 1.1 * CROWD


@pytest.mark.alone("it counts attempts, and those of one thread stand in line")
async def test_the_end_of_an_outage_lets_everybody_go(saver, proxy):
    """One operation finds it, and none is left waiting for its turn."""
    await outage(saver, proxy, lambda: True)
    assert not saver._outage.budget._waiting


async def test_a_conflict_is_no_outage(caplog):
    """The server is there: nobody has to wait for a turn, and no line says otherwise."""
    conflicts = 5

    async def call():
        nonlocal conflicts
        conflicts -= 1
        if conflicts:
            raise psycopg.errors.SerializationFailure
        return "done"

    outage = Outage()
    outage.budget = RetryBudget(per_second=1e-9)
    operation = Operation("aprune", deadline=60.0, attempt_timeout=60.0)
    assert "done" == await operation.run(call, outage, AsyncConnectionPool("", open=False))
    assert [] == lines(caplog)


async def test_a_pooler_that_is_found_after_a_move_is_not_what_the_caller_hears():
    """An operation that is run again, with another pool, ends with what it has lost."""
    loss = psycopg.OperationalError("lost")
    errors = [loss, PoolClosed(), Unprovable()]

    async def call():
        operation._loss = operation._loss or loss
        operation._lost = [Backend(1, 0.0)]
        raise errors.pop(0)

    operation = Operation("aput", deadline=60.0, attempt_timeout=60.0)
    pool = AsyncConnectionPool("", open=False)
    with pytest.raises(PoolClosed):
        await operation.run(call, Outage(), pool)
    with pytest.raises(psycopg.OperationalError, match="lost"):
        await operation.run(call, Outage(), pool)
