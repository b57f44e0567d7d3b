"""Behind a pooler: what is lost is declared void, and whatever comes of it late does nothing."""

import asyncio
import logging
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from lghard import ManagedPool, open_checkpointer, open_pool, open_store
from lghard.postgres import operating, voiding
from lghard.postgres.settling import Unprovable
from lghard.postgres.voiding import TABLE, Locking, Voidable, provide
from lghard.testing import FaultProxy, temporary_pgbouncer
from tests.postgres.checkpoints import (
    config_of,
    eventually,
    execute,
    put,
    query,
    waiting_backend,
)

REFUSED = f'unique constraint "{TABLE}_pkey"'
UPSERT = b"INSERT INTO checkpoints "


@pytest.fixture
async def way(lghard_postgres, lghard_database):
    """Client, network, PgBouncer, network, Postgres."""
    async with AsyncExitStack() as stack:
        back = await stack.enter_async_context(
            FaultProxy(lghard_postgres.host, lghard_postgres.port)
        )
        pooler = stack.enter_context(temporary_pgbouncer(back))
        front = await stack.enter_async_context(FaultProxy(pooler.host, pooler.port))
        yield Way(lghard_postgres, lghard_database, front, back)


class Way:
    def __init__(self, server, direct, front, back):
        self.server, self.direct, self.front, self.back = server, direct, front, back
        self.conninfo = front.conninfo(direct)

    def saver(self, **options):
        return open_checkpointer(self.conninfo, max_size=4, **options)

    @asynccontextmanager
    async def upstream(self):
        kwargs = {"autocommit": True, "prepare_threshold": None, "row_factory": dict_row}
        async with AsyncConnectionPool(
            self.conninfo, min_size=1, kwargs=kwargs, open=False
        ) as pool:
            await pool.wait()
            yield AsyncPostgresSaver(pool)

    def refusals(self):
        """How many late attempts the server has refused so far."""
        return self.server.log().count(REFUSED)

    async def write_newer(self):
        """Another replica, which has nothing to do with the pooler."""
        async with open_checkpointer(self.direct, setup=False) as replica:
            await put(replica, "t", text="newer")

    async def stands(self):
        ((text,),) = await query(
            self.direct, "SELECT checkpoint -> 'channel_values' ->> 'text' FROM checkpoints"
        )
        return text

    @asynccontextmanager
    async def late(self, saver):
        """A write of "old" whose message arrives after the block; its client has lost it."""
        await put(saver, "t", text="first")
        self.back.hold_requests(1, containing=UPSERT)
        writing = asyncio.create_task(put(saver, "t", text="old"))
        await eventually(lambda: self.back.held)
        self.front.reset()
        yield writing
        self.back.release()

    @asynccontextmanager
    async def stuck(self, operation):
        """That operation's backend is frozen in the middle, and its client has lost it."""
        async with await AsyncConnection.connect(self.direct) as conn:
            await conn.execute("SELECT FROM checkpoints FOR UPDATE")
            task = asyncio.ensure_future(operation)
            pid = await waiting_backend(self.direct)
            self.server.freeze_backend(pid)
            self.front.reset()
        try:
            yield task
        finally:
            self.server.thaw_backend(pid)
            await eventually(partial(self.gone, pid))

    async def gone(self, pid):
        return not await query(self.direct, "SELECT FROM pg_stat_activity WHERE pid = %s", pid)


def notes_of(error):
    return "".join(getattr(error, "__notes__", []))


# A message that arrives late


async def test_upstreams_late_message_overwrites_a_newer_value(way):
    """The control: the client and the pooler have given up, the network has not."""
    async with way.upstream() as saver:
        async with way.late(saver) as writing:
            with pytest.raises(psycopg.OperationalError):
                await writing
            await way.write_newer()
        await eventually(lambda: is_old(way))


async def is_old(way):
    return await way.stands() == "old"


async def test_without_the_table_a_late_message_overwrites_a_newer_value(way):
    """The second control: at least the caller has been told that it may."""
    async with way.saver(setup=False) as saver:
        async with way.late(saver) as writing:
            with pytest.raises(psycopg.OperationalError) as caught:
                await writing
            await way.write_newer()
        await eventually(lambda: is_old(way))
    assert "outcome of aput is unknown" in notes_of(caught.value)


async def test_without_looking_a_late_message_overwrites_a_newer_value(way, monkeypatch):
    """The third control: to declare an attempt void is nothing, if it does not look."""
    monkeypatch.setattr(voiding, "_REFUSE_VOIDED", "SELECT %s::bigint")
    async with way.saver() as saver:
        async with way.late(saver) as writing:
            await writing
            await way.write_newer()
        await eventually(lambda: is_old(way))


async def test_a_late_message_overwrites_nothing(way):
    """The write is repeated at once; what arrives of the first attempt later is refused."""
    refusals = way.refusals()
    async with way.saver() as saver:
        async with way.late(saver) as writing:
            await writing
            assert "old" == await way.stands()
            await way.write_newer()
        await eventually(lambda: way.refusals() > refusals)
        assert "newer" == await way.stands()


async def test_many_late_messages_overwrite_nothing(way):
    """However many attempts were lost, and in whichever order they arrive."""
    refusals, lost = way.refusals(), 8
    async with way.saver(attempt_timeout=0.2) as saver:
        for number in range(lost):
            way.back.hold_requests(1, containing=UPSERT)
            await put(saver, "t", text=f"value {number}")
            assert f"value {number}" == await way.stands()
        assert way.back.held >= lost
        way.back.release()
        await eventually(lambda: way.refusals() >= refusals + lost)
        assert f"value {lost - 1}" == await way.stands()


async def test_a_late_put_overwrites_nothing(way):
    """In a store, too."""
    refusals = way.refusals()
    async with open_store(way.conninfo) as store:
        way.back.hold_requests(1, containing=b"INSERT INTO store ")
        putting = asyncio.create_task(store.aput(("users",), "ada", {"likes": "figs"}))
        await eventually(lambda: way.back.held)
        way.front.reset()
        await putting
        await store.aput(("users",), "ada", {"likes": "dates"})
        way.back.release()
        await eventually(lambda: way.refusals() > refusals)
        assert {"likes": "dates"} == (await store.aget(("users",), "ada")).value


async def test_a_late_deletion_deletes_nothing(way):
    """A transaction of several messages, of which the first ones arrive late."""
    refusals = way.refusals()
    async with way.saver() as saver:
        await put(saver, "t", text="first")
        way.back.hold_requests(1, containing=b"pg_advisory_xact_lock_shared")
        deleting = asyncio.create_task(saver.adelete_thread("t"))
        await eventually(lambda: way.back.held)
        way.front.reset()
        await deleting
        await put(saver, "t", text="newer")
        way.back.release()
        await eventually(lambda: way.back.held == 0)
        assert "newer" == await way.stands()
    assert refusals == way.refusals()  # it never came to look: nobody has sent the rest


# A backend that is frozen in the middle: in company, it would not wait for a lock so long


async def test_upstreams_frozen_backend_overwrites_a_newer_value(way):
    """The control: it has the statement, and carries it out when it thaws."""
    async with way.upstream() as saver:
        await put(saver, "t", text="first")
        async with way.stuck(put(saver, "t", text="old")) as writing:
            with pytest.raises(psycopg.OperationalError):
                await writing
            await way.write_newer()
        assert "old" == await way.stands()


async def test_without_waiting_a_frozen_backend_overwrites_a_newer_value(way, monkeypatch):
    """The second control: who has looked already does not look again."""
    monkeypatch.setattr(voiding, "_TERMINATE", "SELECT %(token)s = 0 AS present")
    async with way.saver(batching=False) as saver:
        await put(saver, "t", text="first")
        async with way.stuck(put(saver, "t", text="old")) as writing:
            await writing
            await way.write_newer()
        assert "old" == await way.stands()


async def test_a_frozen_backend_overwrites_nothing(way):
    """It holds its lock, so the write is not repeated; told to stop, it ends when it thaws."""
    async with way.saver(deadline=2.0, batching=False) as saver:
        await put(saver, "t", text="first")
        async with way.stuck(put(saver, "t", text="old")) as writing:
            with pytest.raises(psycopg.OperationalError) as caught:
                await writing
            await way.write_newer()
        assert "newer" == await way.stands()
    assert "outcome of aput is unknown" in notes_of(caught.value)
    assert "what it had sent (token " in notes_of(caught.value)


@pytest.mark.parametrize("name", ["aput", "adelete_thread", "aprune", "acopy_thread"])
async def test_it_is_repeated_once_the_frozen_backend_is_gone(way, name):
    """As soon as the lock is free; each way of talking to the server has its turn."""
    operation = {
        "aput": lambda saver: put(saver, "t", text="old"),
        "adelete_thread": lambda saver: saver.adelete_thread("t"),
        "aprune": lambda saver: saver.aprune(["t"]),
        "acopy_thread": lambda saver: saver.acopy_thread("source", "t"),
    }[name]
    async with way.saver(batching=False) as saver:
        for number in (1, 2):
            await put(saver, "t", number, text="first")
            await put(saver, "source", number, text="source")
        async with AsyncExitStack() as stack:
            if name == "acopy_thread":
                await stack.enter_async_context(copies_wait(way.direct))
            writing = await stack.enter_async_context(way.stuck(operation(saver)))
            await eventually(lambda: saver._outage._since)
            assert not writing.done()
        await writing


@asynccontextmanager
async def copies_wait(conninfo):
    """What is copied waits for the rows that are there: it would do nothing to them."""
    await execute(
        conninfo,
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql "
        "AS $$ BEGIN PERFORM FROM checkpoints FOR UPDATE; RETURN new; END $$",
        "CREATE TRIGGER wait BEFORE INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION wait()",
    )
    yield


async def test_a_killed_backend_costs_nothing(way):
    """Killed while it waits for a lock, so that it is certainly at work."""
    async with way.saver() as saver:
        await put(saver, "t", text="first")
        async with await AsyncConnection.connect(way.direct) as conn:
            await conn.execute("SELECT FROM checkpoints FOR UPDATE")
            writing = asyncio.create_task(put(saver, "t", text="second"))
            pid = await waiting_backend(way.direct)
            await conn.execute("SELECT pg_terminate_backend(%s)", (pid,))
            await eventually(lambda: saver._outage._since)
        await writing
        assert "second" == await way.stands()


async def test_the_loss_of_a_commit_is_settled_first(way):
    """The deletion has happened; it is repeated once nobody holds its lock."""
    async with way.saver() as saver:
        await put(saver, "t")
        way.front.lose_responses(containing=b"COMMIT")
        way.front.hold_requests(containing=b"pg_locks")
        deleting = asyncio.create_task(saver.adelete_thread("t"))
        await eventually(lambda: way.front.held or deleting.done())
        assert [1, 1] == [way.front.lost, way.front.held]
        way.front.release()
        await deleting


async def test_what_is_lost_while_settling_is_no_attempt(way):
    """Nothing of the operation was sent: one attempt is void, and no more."""
    async with way.saver() as saver:
        await put(saver, "t")
        way.front.lose_responses(3, containing=TABLE.encode())
        await put(saver, "t", text="second")
        assert 3 == way.front.lost
        assert "second" == await way.stands()
    assert 1 == len(await query(way.direct, f"SELECT FROM {TABLE}"))


# What it costs


@pytest.fixture
def sent(monkeypatch):
    """How many statements are in each message."""
    sizes, send = [], operating.send

    async def counting(conn, statements):
        sizes.append(len(statements))
        return await send(conn, statements)

    monkeypatch.setattr(operating, "send", counting)
    return sizes


@pytest.mark.parametrize(("pooler", "expected"), [("transaction", [3, 1]), ("none", [1, 1])])
async def test_a_write_is_one_message(lghard_database, sent, pooler, expected):
    """Behind a pooler with two more statements, and only where it overwrites."""
    async with open_checkpointer(lghard_database, pooler=pooler, batching=False) as saver:
        await put(saver, "t", text="value")
        await saver.aput_writes(config_of("t", "1"), [("messages", [1])], "task")
    assert expected == sent


async def test_without_a_pooler_there_is_no_table(lghard_database):
    """It would be of no use."""
    async with open_checkpointer(lghard_database), open_store(lghard_database):
        pass
    assert [(None,)] == await query(lghard_database, "SELECT to_regclass(%s)", TABLE)


async def test_nothing_is_void_as_long_as_nothing_is_lost(way):
    """The table stays empty."""
    async with way.saver() as saver:
        await asyncio.gather(*(put(saver, f"t{number}") for number in range(20)))
    assert [] == await query(way.direct, f"SELECT FROM {TABLE}")


# Declaring void


@pytest.fixture
async def conns(lghard_database):
    """Two connections to a database with the table."""
    await execute(lghard_database, voiding._CREATE)
    async with (
        await AsyncConnection.connect(lghard_database, autocommit=True) as one,
        await AsyncConnection.connect(lghard_database, autocommit=True) as other,
    ):
        yield one, other


async def begin(conn, attempt):
    for statement in attempt.opening:
        await conn.execute(statement.query, statement.params)


@pytest.mark.parametrize("kind", [Locking, Voidable])
@pytest.mark.parametrize("token", [0, 1, 2**31, 2**32 - 1, 2**32, 2**62 + 5, 2**63 - 1])
async def test_an_attempt_at_work_is_told_to_stop(conns, token, kind):
    """Whatever its token, its lock is found, and it is over when that is free."""
    one, other = conns
    attempt = kind(token)
    async with other.transaction(force_rollback=True):
        await begin(other, attempt)
        assert await attempt.is_over(one) is False
        with pytest.raises(psycopg.errors.AdminShutdown):
            await other.execute("SELECT 1")
    await eventually(lambda: attempt.is_over(one))


async def test_other_attempts_go_on(conns):
    """Only the one that was lost is told to stop."""
    one, other = conns
    async with other.transaction():
        await begin(other, Voidable(7 << 32 | 1))
        for token in (7, 1, 7 << 32, 1 << 32 | 7, 7 << 32 | 2):
            assert await Voidable(token).is_over(one) is True


async def test_locks_of_others_are_left_alone(conns):
    """Two keys that look like one are another lock: the fence's, or somebody else's."""
    one, other = conns
    async with other.transaction():
        await other.execute("SELECT pg_advisory_xact_lock_shared(7, 1)")
        assert await Voidable(7 << 32 | 1).is_over(one) is True


async def test_a_void_attempt_cannot_begin(conns):
    """It fails before its own statements."""
    one, other = conns
    assert await Voidable(7).is_over(one) is True
    async with other.transaction():
        await begin(other, Voidable(8))
    with pytest.raises(psycopg.errors.UniqueViolation, match=REFUSED):
        await begin(other, Voidable(7))


async def test_several_may_declare_the_same_attempt_void(conns):
    """At the same moment, and again: none of them is in the way of another."""
    attempt = Voidable(7)
    answers = await asyncio.gather(*(attempt.is_over(conn) for conn in conns * 10))
    assert [True] * 20 == answers


async def test_an_attempt_that_waits_for_its_lock_sees_what_has_happened(conns):
    """Its second snapshot is younger than the lock."""
    one, other = conns
    attempt = Voidable(7)
    async with one.transaction():
        await one.execute("SELECT pg_advisory_xact_lock(7)")
        beginning = asyncio.create_task(begin_and_end(other, attempt))
        await eventually(lambda: waits(one))
        await one.execute(f"INSERT INTO {TABLE} VALUES (7, now())")
    with pytest.raises(psycopg.errors.UniqueViolation):
        await beginning


async def begin_and_end(conn, attempt):
    async with conn.transaction():
        await begin(conn, attempt)


async def waits(conn):
    cursor = await conn.execute("SELECT FROM pg_locks WHERE NOT granted AND locktype = 'advisory'")
    return await cursor.fetchone() is not None


async def test_what_is_void_for_a_day_is_forgotten(conns):
    """By whoever declares another one void, and not while somebody is asking about it."""
    one, _ = conns
    await one.execute(
        f"INSERT INTO {TABLE} SELECT token, now() - token * interval '1 hour' "
        "FROM unnest(ARRAY[1, 23, 25, 26, 1000]) AS token"
    )
    assert await Voidable(26).is_over(one) is True
    cursor = await one.execute(f"SELECT token FROM {TABLE} ORDER BY token")
    assert [(1,), (23,), (26,)] == await cursor.fetchall()


async def test_a_standby_settles_nothing(lghard_own_postgres):
    """It knows of no lock of the primary."""
    primary = lghard_own_postgres
    with primary.standby() as standby:
        async with await AsyncConnection.connect(standby.conninfo, autocommit=True) as conn:
            cursor = await conn.execute(voiding._TERMINATE, {"token": 7})
            present, _ = await cursor.fetchone()
    assert present is True


# Where it is not possible


@pytest.fixture
async def pooled(lghard_database, lghard_pgbouncer):
    """PgBouncer in front of a database without our table, and the network before it."""
    async with FaultProxy(lghard_pgbouncer.host, lghard_pgbouncer.port) as proxy:
        yield proxy.conninfo(lghard_database), proxy


async def loses_a_write(saver, proxy):
    """The notes of a write whose answer was lost; none, if it was repeated."""
    proxy.lose_responses(containing=b"INSERT INTO checkpoints ")
    try:
        await put(saver, "t", text="value")
    except psycopg.OperationalError as error:
        return notes_of(error)
    return ""


def warnings(caplog):
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "lghard.postgres" and TABLE in record.getMessage()
    ]


async def test_without_the_table_the_next_step_is_told(pooled, caplog):
    """Nothing fails for want of it; after setup() what is lost is repeated."""
    conninfo, proxy = pooled
    async with open_checkpointer(conninfo, setup=False) as saver:
        await put(saver, "t")
        await saver.adelete_thread("t")
        notes = await loses_a_write(saver, proxy)
        assert "outcome of aput is unknown" in notes
        assert f"call setup() once through the pooler, as a role that may create {TABLE}" in notes
        await saver.setup()
        assert "" == await loses_a_write(saver, proxy)
    assert [] == warnings(caplog)


@pytest.mark.parametrize("name", ["aput", "adelete_thread", "adelete_for_runs", "aprune"])
async def test_without_the_table_nothing_fails(pooled, name):
    """Whichever operation finds it out."""
    operation = {
        "aput": lambda saver: put(saver, "t"),
        "adelete_thread": lambda saver: saver.adelete_thread("t"),
        "adelete_for_runs": lambda saver: saver.adelete_for_runs(["run"]),
        "aprune": lambda saver: saver.aprune(["t"]),
    }[name]
    conninfo, _ = pooled
    async with open_checkpointer(conninfo, setup=False) as saver:
        await operation(saver)


async def test_what_takes_several_messages_needs_no_table(pooled):
    """Its lock is proof enough: whatever may yet be committed holds it."""
    conninfo, proxy = pooled
    async with open_checkpointer(conninfo, setup=False) as saver:
        await put(saver, "t")
        proxy.lose_responses(containing=b"COMMIT")
        await saver.adelete_thread("t")
        assert 1 == proxy.lost
        proxy.lose_responses(containing=b"COMMIT")
        await saver.aprune(["t"])
        assert 2 == proxy.lost


async def test_a_missing_table_is_remembered(pooled, sent):
    """One message goes twice, and no other."""
    conninfo, _ = pooled
    async with open_checkpointer(conninfo, setup=False, batching=False) as saver:
        for _ in range(3):
            await put(saver, "t", text="value")
    assert [3, 1, 1, 1] == sent


async def test_it_is_looked_for_again(pooled):
    """Somebody else may have created it since."""
    conninfo, proxy = pooled
    async with open_checkpointer(conninfo, setup=False) as saver:
        await put(saver, "t")
        saver.conn._unvoidable_until -= voiding._LOOK_AGAIN
        async with open_checkpointer(conninfo, max_size=2):
            pass
        assert "" == await loses_a_write(saver, proxy)


async def test_a_table_that_is_dropped_in_between(pooled, lghard_database):
    """What was lost before stays unknown, and the next write goes through."""
    conninfo, proxy = pooled
    async with open_checkpointer(conninfo) as saver:
        await put(saver, "t")
        proxy.lose_responses()
        proxy.hold_requests(containing=TABLE.encode() + b" (token, voided_at) VALUES")
        writing = asyncio.create_task(put(saver, "t", text="value"))
        await eventually(lambda: proxy.held)
        await execute(lghard_database, f"DROP TABLE {TABLE}")
        proxy.release()
        with pytest.raises(psycopg.OperationalError) as caught:
            await writing
        await put(saver, "t", text="value")
    assert "outcome of aput is unknown" in notes_of(caught.value)


@asynccontextmanager
async def limited(conninfo):
    """Whoever connects to this database may use its tables, and create none."""
    with psycopg.connect(conninfo, autocommit=True) as admin:
        role = f"limited_{admin.info.dbname}"
        admin.execute(f"CREATE ROLE {role}")
        admin.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
        admin.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        admin.execute(f"ALTER DATABASE {admin.info.dbname} SET role = {role}")
        try:
            yield admin, role
        finally:
            admin.execute(f"DROP OWNED BY {role}")
            admin.execute(f"ALTER DATABASE {admin.info.dbname} RESET role")
            admin.execute(f"DROP ROLE {role}")


async def test_a_role_that_may_not_create_it(pooled, lghard_database, caplog):
    """setup() goes on and says so once; then all is as without it."""
    conninfo, proxy = pooled
    async with open_store(lghard_database):
        pass
    async with (
        limited(lghard_database),
        open_checkpointer(conninfo) as saver,
        open_store(conninfo) as store,
    ):
        assert store.conn is saver.conn
        await put(saver, "t")
        notes = await loses_a_write(saver, proxy)
    assert "outcome of aput is unknown" in notes
    (warning,) = warnings(caplog)
    assert "could not be created: permission denied for schema public" in warning
    assert "next step: call setup() once through the pooler" in warning


async def test_a_role_that_may_not_use_it(pooled, lghard_database):
    """The table was created by another role, which has granted nothing."""
    conninfo, proxy = pooled
    async with limited(lghard_database) as (admin, _):
        admin.execute(voiding._CREATE)
        async with open_checkpointer(conninfo) as saver:
            await put(saver, "t")
            notes = await loses_a_write(saver, proxy)
    assert f"GRANT SELECT, INSERT, UPDATE, DELETE ON {TABLE}" in notes


async def test_a_role_that_may_not_declare_void(pooled, lghard_database):
    """It may look, and no more: what is lost stays unknown, and the write before it was none."""
    conninfo, proxy = pooled
    async with limited(lghard_database) as (admin, role):
        admin.execute(voiding._CREATE)
        admin.execute(f"GRANT SELECT, INSERT ON {TABLE} TO {role}")
        async with open_checkpointer(conninfo) as saver:
            notes = await loses_a_write(saver, proxy)
    assert "outcome of aput is unknown" in notes


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_a_snapshot_that_may_be_older_than_the_lock(pooled, lghard_database, level):
    """There the fence would have a gap, so there is none, and the note tells what it takes."""
    conninfo, proxy = pooled
    with psycopg.connect(lghard_database, autocommit=True) as admin:
        admin.execute(
            f"ALTER DATABASE {admin.info.dbname} SET default_transaction_isolation = '{level}'"
        )
    async with open_checkpointer(conninfo) as saver:
        await put(saver, "t")
        notes = await loses_a_write(saver, proxy)
    assert "outcome of aput is unknown" in notes
    assert "READ COMMITTED as the default isolation level" in notes


async def test_a_lost_setup_has_an_unknown_outcome(pooled):
    """It is not fenced: its indexes are built outside of transactions."""
    conninfo, proxy = pooled
    async with open_checkpointer(conninfo) as saver:
        proxy.lose_responses()
        with pytest.raises(psycopg.OperationalError) as caught:
            await saver.setup()
    assert "outcome of setup is unknown" in notes_of(caught.value)


# setup()


async def test_any_number_of_replicas_may_create_it(lghard_database, lghard_pgbouncer, caplog):
    """One is first, and no other hears of it."""
    conninfo = lghard_pgbouncer.conninfo(lghard_database)

    async def replica():
        async with open_pool(conninfo, min_size=1) as pool, pool.connection() as conn:
            ready.release()
            await everybody.wait()
            await provide(conn, pool)

    ready, everybody = asyncio.Semaphore(0), asyncio.Event()
    replicas = [asyncio.create_task(replica()) for _ in range(12)]
    for _ in replicas:
        await ready.acquire()
    everybody.set()
    await asyncio.gather(*replicas)
    assert [] == warnings(caplog)
    assert [] == await query(lghard_database, f"SELECT FROM {TABLE}")


async def test_a_pool_of_ones_own_finds_out_in_setup(pooled):
    """Nobody has asked before whether there is a pooler."""
    conninfo, proxy = pooled
    kwargs = {"autocommit": True, "prepare_threshold": None, "row_factory": dict_row}
    async with (
        ManagedPool(conninfo, kwargs=kwargs, min_size=1, open=False) as pool,
        open_checkpointer(pool) as saver,
    ):
        assert pool.pooler is True
        assert "" == await loses_a_write(saver, proxy)


async def test_who_cannot_tell_says_so(lghard_database):
    """The table went away between the attempt and its retry."""
    async with await AsyncConnection.connect(lghard_database, autocommit=True) as conn:
        with pytest.raises(Unprovable):
            await Voidable(7).is_over(conn)


async def test_an_outage_is_two_lines(way, caplog):
    """As without a pooler."""
    caplog.set_level(logging.INFO, "lghard.postgres")
    async with way.saver() as saver:
        await put(saver, "t")
        caplog.clear()
        way.front.lose_responses()
        await put(saver, "t", text="value")
    lines = [record.levelname for record in caplog.records if record.name == "lghard.postgres"]
    assert ["WARNING", "INFO"] == lines
