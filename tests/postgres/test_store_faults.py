"""The store under fire: what is repeated, what is not, and who hears of it."""

import asyncio
import logging
import random
from contextlib import asynccontextmanager, contextmanager

import psycopg
import pytest
from langgraph.store.base import GetOp, PutOp
from langgraph.store.postgres import AsyncPostgresStore
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from lghard import open_store
from lghard.postgres import liveness
from lghard.postgres import store as store_module
from lghard.postgres.retries import LONG, RULES, Repeat
from lghard.testing import FaultProxy
from tests.postgres.checkpoints import eventually, query, waiting_backend, waiting_backends
from tests.postgres.stores import USER, VECTOR, Embedding, execute, stored, upstream_store

REPLICAS = 16


@pytest.fixture
async def conninfo(lghard_empty_database):
    """A database with the tables of a store."""
    async with open_store(lghard_empty_database) as store:
        await store.aput(USER, "likes", {"food": "figs"})
    return lghard_empty_database


@pytest.fixture
async def proxy(lghard_postgres):
    async with FaultProxy(lghard_postgres.host, lghard_postgres.port) as proxy:
        yield proxy


@pytest.fixture
async def store(conninfo, proxy):
    async with open_store(proxy.conninfo(conninfo), setup=False, max_size=4) as store:
        yield store


@pytest.fixture
async def upstream(conninfo, proxy):
    async with upstream_store(proxy.conninfo(conninfo)) as store:
        yield store


def notes_of(error):
    return "".join(getattr(error, "__notes__", []))


OPERATIONS = {
    "aget": lambda store: store.aget(USER, "likes"),
    "asearch": lambda store: store.asearch(USER),
    "alist_namespaces": lambda store: store.alist_namespaces(),
    "aput": lambda store: store.aput(USER, "likes", {"food": "dates"}),
    "adelete": lambda store: store.adelete(USER, "other"),
    "abatch": lambda store: store.abatch([GetOp(USER, "likes"), PutOp(USER, "b", {})]),
    "sweep_ttl": lambda store: store.sweep_ttl(),
    "setup": lambda store: store.setup(),
}


def test_reads_and_sweeps_are_repeated_freely():
    """The rows of promise 3 that are the store's."""
    rules = {name: rule for name, rule in RULES.items() if name.startswith("store ")}
    assert {
        "store read": Repeat.FREELY,
        "store sweep": Repeat.FREELY,
        "store put": Repeat.ONCE_GONE,
        "store setup": Repeat.ONCE_GONE,
    } == rules
    assert {"store setup", "store sweep"} == LONG & set(rules)


@pytest.mark.parametrize("name", OPERATIONS)
async def test_upstream_fails_when_a_response_is_lost(upstream, proxy, name):
    """The control: one lost response is one failed operation."""
    proxy.lose_responses()
    with pytest.raises(psycopg.OperationalError):
        await OPERATIONS[name](upstream)


@pytest.mark.parametrize("name", OPERATIONS)
async def test_a_lost_response_costs_nothing(store, proxy, name, caplog):
    """Every operation succeeds at the second attempt, and one line tells of the trouble."""
    proxy.lose_responses()
    with caplog.at_level(logging.INFO, "lghard.postgres"):
        await OPERATIONS[name](store)
    records = [record for record in caplog.records if record.name == "lghard.postgres"]
    assert ["WARNING", "INFO"] == [record.levelname for record in records]
    assert "lost the database" in records[0].getMessage()
    assert proxy.lost > 0


@pytest.mark.parametrize("name", OPERATIONS)
async def test_every_operation_survives_a_killed_backend(conninfo, name):
    """Killed while it waits for a lock, so that it is certainly at work."""
    async with open_store(conninfo, setup=False) as store:
        async with await AsyncConnection.connect(conninfo) as conn:
            await conn.execute("LOCK store, store_migrations")
            operation = asyncio.ensure_future(OPERATIONS[name](store))
            first = await waiting_backend(conninfo)
            await conn.execute("SELECT pg_terminate_backend(%s)", (first,))
            await eventually(lambda: waits_again(conninfo, first))
            await conn.rollback()
        await operation


async def waits_again(conninfo, pid):
    """Whether another backend than that one waits for a lock."""
    return await query(
        conninfo,
        "SELECT FROM pg_stat_activity "
        "WHERE wait_event_type = 'Lock' AND datname = current_database() AND pid <> %s",
        pid,
    )


# The storm

USERS, TURNS = 30, 10


async def live(store, user):
    """Put, get and search, each answer verified; what became of it."""
    namespace = ("users", str(user))
    for turn in range(TURNS):
        await store.aput(namespace, str(turn), {"turn": turn})
        found = await store.aget(namespace, str(turn))
        assert {"turn": turn} == found.value
        assert turn + 1 == len(await store.asearch(namespace, limit=TURNS))
        await asyncio.sleep(0.02)


async def storm(store, server, conninfo):
    """What became of each user, while every backend is killed again and again."""
    database = conninfo.rpartition("/")[2]
    living = asyncio.gather(*(live(store, user) for user in range(USERS)), return_exceptions=True)
    killed = 0
    while not living.done():
        killed += await asyncio.to_thread(server.terminate_backends, database=database)
        await asyncio.sleep(0.05)
    assert killed > 2
    return [result for result in await living if result is not None]


@pytest.mark.parametrize("checked", [False, True])
async def test_upstream_loses_users_in_a_storm(lghard_postgres, conninfo, checked):
    """The control, without and with the pool's own check."""
    check = AsyncConnectionPool.check_connection if checked else None
    async with AsyncConnectionPool(
        conninfo, kwargs={"autocommit": True}, check=check, timeout=2, open=False
    ) as pool:
        await pool.wait()
        store = AsyncPostgresStore(pool)
        lost = await storm(store, lghard_postgres, conninfo)
        store._task.cancel()
    assert len(lost) > 0


async def test_nobody_is_lost_in_a_storm(lghard_postgres, conninfo):
    """Every value that was put is there, and every answer was right."""
    async with open_store(conninfo, setup=False, max_size=4) as store:
        assert [] == await storm(store, lghard_postgres, conninfo)
    expected = {str(turn): {"turn": turn} for turn in range(TURNS)}
    for user in range(USERS):
        assert expected == await stored(conninfo, ("users", str(user)))


async def test_a_plain_pool_does_as_well(conninfo, proxy):
    """Retries need nothing of ManagedPool, nor that its connections commit by themselves."""
    async with AsyncConnectionPool(proxy.conninfo(conninfo), open=False) as pool:
        await pool.wait()
        async with open_store(pool, setup=False) as store:
            for name in ("aput", "aget", "asearch", "abatch", "adelete"):
                proxy.lose_responses()
                await OPERATIONS[name](store)
    assert {"likes": {"food": "dates"}, "b": {}} == await stored(conninfo)


async def test_a_restarted_server_is_waited_for(lghard_own_postgres):
    """The operations span the outage; upstream's would fail at once."""
    server = lghard_own_postgres
    async with open_store(server.conninfo) as store:
        await asyncio.to_thread(server.stop, "immediate")
        operations = asyncio.gather(
            store.aput(USER, "likes", {"food": "figs"}), store.aget(USER, "other")
        )
        await eventually(lambda: store.conn._reconnects.error)
        assert not operations.done()
        await asyncio.to_thread(server.start)
        await operations
        assert {"food": "figs"} == (await store.aget(USER, "likes")).value


async def test_the_deadline_ends_it(lghard_own_postgres):
    """A server that stays away: the error is psycopg's own, and its notes tell what was tried."""
    server = lghard_own_postgres
    async with open_store(server.conninfo, deadline=1.0) as store:
        await asyncio.to_thread(server.stop, "immediate")
        with pytest.raises(psycopg.OperationalError) as caught:
            await store.aput(USER, "likes", {})
        await asyncio.to_thread(server.start)
        assert "store put was tried" in notes_of(caught.value)
        await store.aput(USER, "likes", {})


# Backends that are frozen, and come back


@asynccontextmanager
async def stuck(operation, server, conninfo, proxy):
    """That operation's backend is frozen in the middle, and its client has lost it."""
    async with await AsyncConnection.connect(conninfo) as conn:
        await conn.execute("SELECT FROM store FOR UPDATE")
        task = asyncio.ensure_future(operation)
        pid = await waiting_backend(conninfo)
        server.freeze_backend(pid)
        proxy.reset()
    try:
        yield task
    finally:
        server.thaw_backend(pid)
        await eventually(lambda: is_gone(conninfo, pid))


async def is_gone(conninfo, pid):
    return not await query(conninfo, "SELECT FROM pg_stat_activity WHERE pid = %s", pid)


async def replica_puts(conninfo, value, **options):
    async with open_store(conninfo, setup=False) as replica:
        await replica.aput(USER, "likes", value, **options)


async def test_upstreams_late_put_overwrites_a_newer_one(
    upstream, lghard_postgres, conninfo, proxy
):
    """The control: the client has given up, the backend has not."""
    putting = upstream.aput(USER, "likes", {"food": "old"})
    async with stuck(putting, lghard_postgres, conninfo, proxy) as task:
        with pytest.raises(psycopg.OperationalError):
            await task
        await replica_puts(conninfo, {"food": "newer"})
    assert {"likes": {"food": "old"}} == await stored(conninfo)


async def test_a_late_put_overwrites_nothing(lghard_postgres, conninfo, proxy):
    """Promise 3: the newer value stands, and whoever put the old one knows that he does not."""
    async with open_store(proxy.conninfo(conninfo), setup=False, deadline=2.0) as store:
        putting = store.aput(USER, "likes", {"food": "old"})
        async with stuck(putting, lghard_postgres, conninfo, proxy) as task:
            with pytest.raises(psycopg.OperationalError) as caught:
                await task
            await replica_puts(conninfo, {"food": "newer"})
    assert {"likes": {"food": "newer"}} == await stored(conninfo)
    assert "outcome of store put is unknown" in notes_of(caught.value)


async def test_a_put_is_repeated_once_the_frozen_backend_is_gone(lghard_postgres, conninfo, proxy):
    """The lost backend is told to stop; as soon as it has, the put goes through."""
    async with open_store(proxy.conninfo(conninfo), setup=False) as store:
        putting = store.aput(USER, "likes", {"food": "dates"})
        async with stuck(putting, lghard_postgres, conninfo, proxy) as task:
            await eventually(lambda: store._outage._since)
        await task
    assert {"likes": {"food": "dates"}} == await stored(conninfo)


async def test_others_go_on_while_a_put_is_stuck(lghard_postgres, conninfo, proxy):
    """Only what is put under the same key waits for it, and then stands."""
    async with open_store(proxy.conninfo(conninfo), setup=False) as store:
        putting = store.aput(USER, "likes", {"food": "old"})
        async with stuck(putting, lghard_postgres, conninfo, proxy) as task:
            newer = asyncio.create_task(store.aput(USER, "likes", {"food": "newer"}))
            await store.aput(USER, "other", {})
            assert {"food": "figs"} == (await store.aget(USER, "likes")).value
            assert [False, False] == [task.done(), newer.done()]
        await asyncio.gather(task, newer)
    assert {"likes": {"food": "newer"}, "other": {}} == await stored(conninfo)


async def lives_for(conninfo):
    """Minutes until the item expires."""
    ((minutes,),) = await query(
        conninfo, "SELECT extract(epoch FROM expires_at - now())::float / 60 FROM store"
    )
    return minutes


async def late_read(store, server, conninfo, proxy):
    """A read that was lost an hour ago comes to its end; the item has been put anew since."""
    await replica_puts(conninfo, {"food": "figs"}, ttl=10)
    async with stuck(store.aget(USER, "likes"), server, conninfo, proxy) as task:
        results = await asyncio.gather(task, return_exceptions=True)
        await execute(conninfo, "UPDATE store SET expires_at = now() + interval '60 minutes'")
    return results


@pytest.fixture(params=[store_module._PROLONG, store_module._NEVER_SHORTEN])
def refresh(request, monkeypatch):
    """What a read does to an item's life: upstream's statement, then ours."""
    monkeypatch.setattr(store_module, "_NEVER_SHORTEN", request.param)
    return request.param


async def test_a_late_read_shortens_no_items_life(store, lghard_postgres, conninfo, proxy, refresh):
    """So it may be repeated at once; upstream's statement would set back when the item expires."""
    (found,) = await late_read(store, lghard_postgres, conninfo, proxy)
    assert {"food": "figs"} == found.value
    assert (await lives_for(conninfo) < 11) == (refresh == store_module._PROLONG)


async def test_upstreams_reads_shorten_a_life_of_less_than_a_minute(upstream, store, conninfo):
    """The control: it counts in whole minutes, and thirty seconds are none."""
    await store.aput(USER, "likes", {}, ttl=0.5)
    await upstream.aget(USER, "likes")
    assert await lives_for(conninfo) < 0


async def test_a_read_shortens_no_life(store, conninfo):
    """Not even one of less than a minute."""
    await store.aput(USER, "likes", {}, ttl=0.5)
    await store.aget(USER, "likes")
    await store.asearch(USER)
    assert await lives_for(conninfo) > 0


# Behind a pooler


@pytest.fixture
async def pooled(conninfo, lghard_pgbouncer):
    """A store behind a transaction pooler, and the network between them."""
    async with (
        FaultProxy(lghard_pgbouncer.host, lghard_pgbouncer.port) as proxy,
        open_store(proxy.conninfo(conninfo), setup=False) as store,
    ):
        yield store, proxy


async def test_behind_a_pooler_reads_are_repeated(pooled):
    """What is repeated freely needs to know no backend."""
    store, proxy = pooled
    proxy.lose_responses()
    assert {"food": "figs"} == (await store.aget(USER, "likes")).value


@pytest.mark.parametrize("name", sorted(OPERATIONS.keys() - {"setup"}))
async def test_behind_a_pooler_a_lost_response_costs_nothing(pooled, name):
    """A put is declared void first, and then repeated; see test_voiding.py."""
    store, proxy = pooled
    await store.setup()
    proxy.lose_responses()
    await OPERATIONS[name](store)
    assert 1 == proxy.lost


async def test_behind_a_pooler_a_lost_put_has_an_unknown_outcome_without_setup(pooled):
    """Nobody can tell which backend was at work, and none is told to stop."""
    store, proxy = pooled
    await store.aput(USER, "likes", {"food": "dates"})
    proxy.lose_responses()
    with pytest.raises(psycopg.OperationalError) as caught:
        await store.aput(USER, "likes", {"food": "olives"})
    assert "outcome of store put is unknown" in notes_of(caught.value)


# Cancellation


async def test_a_cancelled_put_is_stopped(store, conninfo):
    """In the server, too; the connection is free again, and the key as well."""
    async with await AsyncConnection.connect(conninfo) as conn:
        await conn.execute("SELECT FROM store FOR UPDATE")
        putting = asyncio.create_task(store.aput(USER, "likes", {"food": "cancelled"}))
        pid = await waiting_backend(conninfo)
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        await eventually(lambda: no_longer_waits(conninfo, pid))
    await store.aput(USER, "other", {})
    assert {"likes": {"food": "figs"}, "other": {}} == await stored(conninfo)
    await eventually(lambda: store.conn.snapshot().borrowed == 0)


async def no_longer_waits(conninfo, pid):
    """Whether that backend waits for no lock any more."""
    waits = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
    return not await query(conninfo, waits, pid)


async def test_a_cancelled_put_comes_to_nothing_later(store, lghard_postgres, conninfo):
    """Its backend is frozen, and hears of the cancellation when it thaws."""
    async with await AsyncConnection.connect(conninfo) as conn:
        await conn.execute("SELECT FROM store FOR UPDATE")
        putting = asyncio.create_task(store.aput(USER, "likes", {"food": "cancelled"}))
        pid = await waiting_backend(conninfo)
        lghard_postgres.freeze_backend(pid)
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
    await store.aput(USER, "likes", {"food": "newer"})
    lghard_postgres.thaw_backend(pid)
    await eventually(lambda: is_gone(conninfo, pid))
    assert {"likes": {"food": "newer"}} == await stored(conninfo)


@pytest.fixture
def impatient(monkeypatch):
    """Upstream gives a server five seconds to end a cancelled query."""
    monkeypatch.setattr(liveness, "CANCEL_TIMEOUT", 0.2)


BATCHES = {"read": [GetOp(USER, "likes")], "put": [PutOp(USER, "likes", {"food": "cancelled"})]}


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.usefixtures("impatient")
async def test_cancelled_under_a_frozen_backend(store, upstream, lghard_postgres, conninfo, kind):
    """It ends while upstream's still waits, and its connection is not missing."""
    async with await AsyncConnection.connect(conninfo) as conn:
        await conn.execute("LOCK store")
        ours, theirs = (
            asyncio.create_task(each.abatch(BATCHES[kind])) for each in (store, upstream)
        )
        with frozen(lghard_postgres, await waiting_backends(conninfo, 2)):
            theirs.cancel()
            ours.cancel()
            done, _ = await asyncio.wait({ours, theirs}, return_when=asyncio.FIRST_COMPLETED)
            assert ({ours}, True) == (done, ours.cancelled())
        with pytest.raises(asyncio.CancelledError):
            await theirs
    await store.aput(USER, "other", {})
    assert {"likes": {"food": "figs"}, "other": {}} == await stored(conninfo)
    await eventually(lambda: store.conn.snapshot().borrowed == 0)


@contextmanager
def frozen(server, pids):
    """These backends do not answer in this block."""
    for pid in pids:
        server.freeze_backend(pid)
    try:
        yield
    finally:
        for pid in pids:
            server.thaw_backend(pid)


@pytest.mark.parametrize("seed", [1, 2])
async def test_cancelled_at_any_moment(store, lghard_postgres, conninfo, seed):
    """Neither a connection is missing afterwards, nor is a key held, nor does anybody wait."""
    chance = random.Random(seed)
    calls = [OPERATIONS[name] for name in ("aget", "asearch", "aput", "adelete", "abatch")]
    tasks = []
    for number in range(600):
        tasks.append(asyncio.ensure_future(chance.choice(calls)(store)))
        if chance.random() < 0.5:
            await asyncio.sleep(chance.choice([0, 0, 0.0005, 0.002]))
        if chance.random() < 0.5:
            chance.choice(tasks[-5:]).cancel()
        if number == 300:
            database = conninfo.rpartition("/")[2]
            await asyncio.to_thread(lghard_postgres.terminate_backends, database=database)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {asyncio.CancelledError} == {
        type(result) for result in results if isinstance(result, BaseException)
    }
    await eventually(lambda: store.conn.snapshot().borrowed == 0)
    await store.aput(USER, "likes", {"food": "olives"})
    assert {"food": "olives"} == (await store.aget(USER, "likes")).value


async def test_who_shares_a_batch_with_a_cancelled_one_loses_nothing(store, conninfo):
    """One of two callers goes; the other gets what it has asked for."""
    async with await AsyncConnection.connect(conninfo) as conn:
        await conn.execute("SELECT FROM store FOR UPDATE")
        putting = [
            asyncio.create_task(store.aput(USER, key, {"food": "dates"})) for key in ("likes", "x")
        ]
        await waiting_backend(conninfo)
        putting[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting[1]
    await putting[0]
    assert {"food": "dates"} == (await stored(conninfo))["likes"]


async def test_cancelled_while_the_network_is_silent(store, proxy):
    """The caller is free at once, and the connection soon."""
    await store.aget(USER, "likes")
    proxy.blackhole()
    task = asyncio.create_task(store.aget(USER, "likes"))
    await eventually(lambda: store.conn.snapshot().borrowed)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: store.conn.snapshot().borrowed == 0)
    proxy.restore(lose=True)


# What was embedded


async def test_a_repeated_put_is_not_embedded_again(lghard_empty_database, proxy):
    """It costs money, and time."""
    await execute(lghard_empty_database, VECTOR)
    embedding = Embedding()
    async with open_store(proxy.conninfo(lghard_empty_database), index=embedding.index) as store:
        proxy.lose_responses()
        await store.aput(USER, "likes", {"text": "figs"})
        assert ["figs"] == embedding.texts
        (found,) = await store.asearch(USER, query="figs")
    assert 1 == found.score


# setup()


async def set_up_at_once(open_one, conninfo):
    """What became of each replica's setup(), when all of them called it at the same moment."""

    async def replica(ready, everybody):
        async with open_one(conninfo) as store:
            ready.release()
            await everybody.wait()
            await store.setup()

    ready, everybody = asyncio.Semaphore(0), asyncio.Event()
    replicas = [asyncio.create_task(replica(ready, everybody)) for _ in range(REPLICAS)]
    for _ in replicas:
        await ready.acquire()
    everybody.set()
    return await asyncio.gather(*replicas, return_exceptions=True)


@asynccontextmanager
async def ours(conninfo):
    """Our class on a pool of upstream's with one connection, so that nothing else differs."""
    async with AsyncConnectionPool(
        conninfo, min_size=1, max_size=1, kwargs={"autocommit": True}, open=False
    ) as pool:
        await pool.wait()
        async with open_store(pool, setup=False) as store:
            yield store


@asynccontextmanager
async def theirs(conninfo):
    """Upstream's in the same way."""
    async with AsyncPostgresStore.from_conn_string(conninfo) as store:
        yield store
        store._task.cancel()


async def test_upstreams_setup_fails_when_replicas_call_it_at_once(lghard_empty_database):
    """The control: of replicas that start together, most do not."""
    results = await set_up_at_once(theirs, lghard_empty_database)
    assert REPLICAS / 2 < len([result for result in results if result is not None])


async def test_any_number_of_replicas_may_set_up_at_once(lghard_postgres):
    """All of them succeed on a fresh database, and what they leave is whole."""
    for _ in range(3):
        conninfo = lghard_postgres.create_database()
        assert [None] * REPLICAS == await set_up_at_once(ours, conninfo)
        assert [(3,)] == await query(conninfo, "SELECT max(v) FROM store_migrations")
        assert {"store_prefix_idx": True} == await indexes(conninfo)
        lghard_postgres.drop_database(conninfo)


async def indexes(conninfo):
    """Whether the index that is created concurrently is valid."""
    return dict(
        await query(
            conninfo,
            "SELECT relname, indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid "
            "WHERE relname = 'store_prefix_idx'",
        )
    )


@pytest.mark.parametrize("open_one", [theirs, ours])
async def test_an_invalid_index_is_rebuilt(conninfo, open_one):
    """Upstream takes it for granted: an index of that name is there."""
    await execute(conninfo, "DROP INDEX store_prefix_idx")
    async with await AsyncConnection.connect(conninfo) as conn:
        await conn.execute("LOCK store IN ROW EXCLUSIVE MODE")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await execute(
                conninfo,
                "SET lock_timeout = '10ms'",
                "CREATE INDEX CONCURRENTLY store_prefix_idx ON store (prefix text_pattern_ops)",
            )
    assert {"store_prefix_idx": False} == await indexes(conninfo)
    async with open_one(conninfo) as store:
        await store.setup()
    assert {"store_prefix_idx": open_one is ours} == await indexes(conninfo)


async def test_no_ddl_when_current(conninfo):
    """A role that may only read and write rows can call it."""
    await execute(
        conninfo,
        "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql "
        "AS $$ BEGIN RAISE 'no DDL here'; END $$",
        "CREATE EVENT TRIGGER no_ddl ON ddl_command_start EXECUTE FUNCTION refuse()",
    )
    async with open_store(conninfo) as store:
        assert {"food": "figs"} == (await store.aget(USER, "likes")).value


async def test_upstream_may_have_set_up_before(lghard_empty_database):
    """And may afterwards: the tables and their versions are the same."""
    for open_one in (theirs, ours, theirs):
        async with open_one(lghard_empty_database) as store:
            await store.setup()
            await store.aput(USER, "likes", {})
    versions = await query(lghard_empty_database, "SELECT v FROM store_migrations ORDER BY v")
    assert [(0,), (1,), (2,), (3,)] == versions
