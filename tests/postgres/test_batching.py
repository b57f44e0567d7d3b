"""Operations of many runs in one round trip: what each of them may expect all the same."""

import asyncio
import gc
import math
import sys
import threading
from contextlib import asynccontextmanager
from contextvars import ContextVar

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from lghard import (
    ForeignLoopError,
    HardenedAsyncPostgresSaver,
    ManagedPool,
    open_checkpointer,
    open_pool,
)
from lghard.postgres import batching
from lghard.postgres.batch import execute as execute_batch
from lghard.testing import FaultProxy
from tests.postgres.checkpoints import (
    checkpoint,
    config_of,
    eventually,
    execute,
    put,
    query,
    waiting_backends,
)

LARGE = "x" * 2_000_000


@pytest.fixture
async def proxy(lghard_postgres):
    async with FaultProxy(lghard_postgres.host, lghard_postgres.port) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Whoever writes the same channels for the second time serializes them here, not in a thread.

    So what is put at once comes at once, also on a busy machine.
    """
    monkeypatch.setattr("lghard.postgres.serializing._QUICK", math.inf)


@asynccontextmanager
async def opened(conninfo, **options):
    """A saver that has written once."""
    async with open_checkpointer(conninfo, min_size=1, **options) as saver:
        await put(saver, "first")
        await put(saver, "first", text="")
        await saver.adelete_thread("first")
        yield saver


@pytest.fixture
async def saver(lghard_database, proxy):
    """Its operations travel together, through a network that may fail."""
    async with opened(proxy.conninfo(lghard_database), batching=True) as saver:
        yield saver


@pytest.fixture
async def apart(lghard_database, proxy):
    """The control: each operation has a connection of its own."""
    async with opened(proxy.conninfo(lghard_database), batching=False) as saver:
        yield saver


async def put_many(saver, number, **channels):
    """Checkpoints of that many threads, all at once."""
    await asyncio.gather(*(put(saver, f"t{at}", **channels) for at in range(number)))


NAMES = dict.fromkeys([f"t{at}" for at in range(20)], "")


async def failures(saver, texts):
    """What is raised when all of them are put at once, by thread."""
    puts = (put(saver, thread, text=text) for thread, text in texts.items())
    results = await asyncio.gather(*puts, return_exceptions=True)
    return {
        thread: type(result)
        for thread, result in zip(texts, results, strict=True)
        if isinstance(result, Exception)
    }


async def transactions(conninfo):
    """How many it took to write the checkpoints."""
    return (await query(conninfo, "SELECT count(DISTINCT xmin::text) FROM checkpoints"))[0][0]


async def threads(conninfo):
    return {thread for (thread,) in await query(conninfo, "SELECT thread_id FROM checkpoints")}


# Together


async def test_apart_each_operation_is_a_transaction(apart, lghard_database):
    """The control: as many commits, and flushes to disk, as operations."""
    await put_many(apart, 64)
    assert 64 == await transactions(lghard_database)


async def test_what_comes_at_once_is_one_transaction(saver, lghard_database):
    """One round trip and one commit."""
    await put_many(saver, 64)
    assert 1 == await transactions(lghard_database)


async def test_what_comes_meanwhile_waits_for_the_next_one(saver, proxy, lghard_database):
    """While a connection is under way, operations gather for the next."""
    proxy.hold_requests(containing=b"hold this")
    held = []
    for at in range(batching.CONNECTIONS):
        held.append(asyncio.create_task(put(saver, f"t{at}", text="hold this")))
        await eventually(lambda: proxy.held == len(held))
    waiting = [asyncio.create_task(put(saver, f"u{at}")) for at in range(20)]
    await asyncio.sleep(0)
    proxy.release()
    await asyncio.gather(*held, *waiting)
    assert len(held) + 1 == await transactions(lghard_database)


async def test_reads_ride_along(saver, proxy, lghard_database):
    """Everybody gets his own rows, in one round trip."""
    await put_many(saver, 20)
    names = [*(f"t{at}" for at in range(20)), "missing"]
    await asyncio.gather(*(saver.aget_tuple(config_of(name)) for name in names))
    proxy.hold_requests(containing=b"channel_values")
    reads = [saver.aget_tuple(config_of(name)) for name in names]
    reading = asyncio.gather(put(saver, "u"), *reads)
    await eventually(lambda: proxy.held)
    assert 1 == proxy.held
    proxy.release()
    _, *found, nothing = await reading
    assert nothing is None
    assert names[:20] == [each.config["configurable"]["thread_id"] for each in found]


async def test_a_batch_has_an_end(saver, lghard_database):
    """No more than 64 operations."""
    await put_many(saver, 100)
    assert 2 == await transactions(lghard_database)


async def test_four_connections_are_enough(lghard_database):
    """However large the pool is, and however many operations there are."""
    async with opened(lghard_database, batching=True) as saver:
        for _ in range(10):
            await put_many(saver, 200)
        assert saver.conn.snapshot().size <= batching.CONNECTIONS


async def test_one_connection_is_enough(lghard_database):
    """What goes alone and what goes in company take turns."""
    async with opened(lghard_database, batching=True, max_size=1, timeout=5) as saver:
        async with saver.conn.connection():
            small = asyncio.create_task(put(saver, "t", text=""))
            large = asyncio.create_task(put(saver, "u", text=LARGE))
            await eventually(lambda: saver.conn.snapshot().waiting == 2)
        await asyncio.gather(small, large)
    assert {"t", "u"} == await threads(lghard_database)


# Each for itself


async def test_who_fails_fails_alone(saver, lghard_database):
    """What the server refuses, and what cannot even be sent, harms nobody else."""
    texts = {**NAMES, "t7": "a\x00b", "t\x0011": "", "t\ud800": ""}
    failed = await failures(saver, texts)
    assert {
        "t7": psycopg.errors.UntranslatableCharacter,
        "t\x0011": psycopg.DataError,
        "t\ud800": UnicodeEncodeError,
    } == failed
    assert {*NAMES} - {"t7"} == await threads(lghard_database)


async def test_what_cannot_be_converted_fails_alone(saver, lghard_database):
    """Neither JSON nor UTF-8 has it, and psycopg does not call that an error of its own."""
    made = checkpoint()
    results = await asyncio.gather(
        put(saver, "t0", text=""),
        put(saver, "t1", huge=10**5000),
        put(saver, "t\ud800", text=""),
        saver.aput(config_of("t3"), made, {"source": object()}, made["channel_versions"]),
        put(saver, "t4", text=""),
        return_exceptions=True,
    )
    errors = [type(each) for each in results if isinstance(each, Exception)]
    assert [ValueError, UnicodeEncodeError, TypeError] == errors
    assert {"t0", "t4"} == await threads(lghard_database)


async def test_who_is_left_out_does_not_have_the_others_done_twice(saver, lghard_database):
    """What is repeated for nothing may undo what somebody else has written since."""
    failed = await failures(saver, {**NAMES, "t\x00": ""})
    assert {"t\x00": psycopg.DataError} == failed
    assert 1 == await transactions(lghard_database)


async def test_what_cannot_be_loaded_fails_alone(saver, lghard_database):
    """It has been written by somebody else, in a language with larger numbers."""
    await put_many(saver, 3)
    await execute(
        lghard_database,
        "UPDATE checkpoints SET metadata = jsonb_build_object('step', repeat('9', 5000)::numeric) "
        "WHERE thread_id = 't1'",
    )
    reads = [saver.aget_tuple(config_of(f"t{at}")) for at in range(3)]
    before, error, after = await asyncio.gather(*reads, return_exceptions=True)
    assert isinstance(error, ValueError)
    assert before
    assert after


async def test_who_fails_has_no_effect(saver, lghard_database):
    """Its blobs came before what was refused."""
    with pytest.raises(psycopg.errors.UntranslatableCharacter):
        await asyncio.gather(put(saver, "t", text="a\x00b", more=[1]), put(saver, "u"))
    await eventually(lambda: not saver.conn.snapshot().borrowed)
    found = await query(lghard_database, "SELECT DISTINCT thread_id FROM checkpoint_blobs")
    assert [("u",)] == found


async def test_what_cannot_be_sent_costs_the_others_nothing(saver, lghard_database):
    """They are executed once, and together."""
    assert ["t\x0011"] == [*await failures(saver, {**NAMES, "t\x0011": ""})]
    assert 1 == await transactions(lghard_database)


async def test_who_waits_for_a_lock_waits_alone(saver, lghard_database):
    """Its neighbours of the same batch, and those that come later, do not wait with it."""
    await put(saver, "t3")
    async with await AsyncConnection.connect(lghard_database) as other:
        await other.execute("SELECT FROM checkpoints WHERE thread_id = 't3' FOR UPDATE")
        writing = [asyncio.create_task(put(saver, f"t{at}")) for at in range(10)]
        blocked = writing.pop(3)
        await asyncio.gather(*writing)
        await put_many(saver, 3)
        await waiting_backends(lghard_database, 1)
        assert not blocked.done()
    await blocked


async def test_who_waits_for_a_lock_from_the_start(lghard_database):
    """As many of them as there are connections for batches, and still others are sent."""
    async with open_checkpointer(lghard_database, batching=True, min_size=1) as saver:
        names = [f"locked {at}" for at in range(batching.CONNECTIONS)]
        for name in names:
            await put(saver, name)
        async with await AsyncConnection.connect(lghard_database) as other:
            await other.execute("SELECT FROM checkpoints FOR UPDATE")
            blocked = []
            for name in names:
                blocked.append(asyncio.create_task(put(saver, name)))
                await waiting_backends(lghard_database, len(blocked))
            await put(saver, "t")
            assert not any(each.done() for each in blocked)
        await asyncio.gather(*blocked)


async def test_what_is_large_goes_alone(saver, proxy):
    """Small ones do not wait until it has passed."""
    await put(saver, "t")
    proxy.hold_requests(containing=b"x" * 1000)
    large = asyncio.create_task(put(saver, "large", text=LARGE))
    await eventually(lambda: proxy.held)
    await put_many(saver, 20)
    assert not large.done()
    proxy.release()
    await large


async def test_what_is_large_leaves_a_connection(lghard_database, proxy, monkeypatch):
    """However many there are, and however long they take."""
    monkeypatch.setattr(batching, "_SLOW", 0.0)
    async with opened(proxy.conninfo(lghard_database), batching=True, max_size=3) as saver:
        proxy.hold_requests(containing=b"x" * 1000)
        large = [asyncio.create_task(put(saver, f"t{at}", text=LARGE)) for at in range(4)]
        await eventually(lambda: proxy.held >= 2)
        await asyncio.gather(*(put(saver, f"u{at}", text="") for at in range(10)))
        assert not any(each.done() for each in large)
        proxy.release()
        await asyncio.gather(*large)


async def test_what_was_large_is_read_alone(saver, proxy):
    """A thread that was large is expected to be so again."""
    await put(saver, "large", text=LARGE)
    await put(saver, "t")
    proxy.hold_requests(containing=b"channel_values")
    reads = [saver.aget_tuple(config_of(thread)) for thread in ("t", "large", "u")]
    reading = asyncio.gather(*reads)
    await eventually(lambda: proxy.held == 2)
    proxy.release()
    assert LARGE == (await reading)[1].checkpoint["channel_values"]["text"]


async def large_threads(conninfo, number):
    """Write so many, in another process as it were, of 2 MB each; whichever way they are large."""
    async with open_checkpointer(conninfo, max_size=2) as other:
        for at in range(0, number, 3):
            await put(other, f"t{at}", blob=[LARGE])
            await put(other, f"t{at + 1}", text=LARGE)
            config = await put(other, f"t{at + 2}")
            await other.aput_writes(config, [("messages", LARGE)], "task")


@pytest.fixture
def weights(monkeypatch):
    """What the operations of each batch have found, in bytes."""
    found = []

    async def execute_and_weigh(conn, jobs, pool):
        await execute_batch(conn, jobs, pool)
        found.append([job.found for job in jobs])

    monkeypatch.setattr(batching, "execute", execute_and_weigh)
    return found


async def test_what_is_found_to_be_large_is_read_alone(saver, lghard_database, weights):
    """Who reads a thread for the first time, in company, is told first how large it is."""
    await large_threads(lghard_database, 6)
    await put(saver, "small")
    weights.clear()
    names = ["small", *(f"t{at}" for at in range(6)), "nobody"]
    read = await asyncio.gather(*(saver.aget_tuple(config_of(name)) for name in names))
    assert [True] * 7 + [False] == [each is not None for each in read]
    assert [1] * 6 == [len(batch) for batch in weights if max(batch) >= len(LARGE)]


async def test_what_is_known_to_be_small_is_not_weighed(saver, weights):
    """From the second time on it is one round trip."""
    names = [f"t{at}" for at in range(8)]
    for _ in range(2):
        weights.clear()
        await asyncio.gather(*(saver.aget_tuple(config_of(name)) for name in names))
    assert [8] == [len(batch) for batch in weights]


# In order


@asynccontextmanager
async def first_on_its_way(saver, proxy):
    """In this block the first of two writers of a thread is on its way, and the second follows."""
    await put(saver, "t", value=["before"])
    proxy.hold_requests(1, containing=b"first")
    first = asyncio.create_task(put(saver, "t", value=["first"]))
    await eventually(lambda: proxy.held)
    second = asyncio.create_task(put(saver, "t", value=["second"]))
    yield second
    proxy.release()
    await asyncio.gather(first, second)


async def test_apart_the_second_may_overtake_the_first(apart, proxy):
    """The control: each has a connection."""
    async with first_on_its_way(apart, proxy) as second:
        await eventually(second.done)


async def test_the_second_does_not_overtake_the_first(saver, proxy):
    """Those of one thread are sent in order, and never on two connections."""
    async with first_on_its_way(saver, proxy) as second:
        await put(saver, "u")
        assert not second.done()


async def test_nor_when_the_first_has_to_be_repeated(saver, proxy, lghard_database):
    """The last one to come is the one that stands."""
    await put(saver, "t")
    proxy.lose_responses(1, containing=b"first")
    proxy.hold_requests(1, containing=b"pg_terminate_backend")
    first = asyncio.create_task(put(saver, "t", text="first"))
    await eventually(lambda: proxy.held)
    second = asyncio.create_task(put(saver, "t", text="second"))
    neighbour = asyncio.create_task(put(saver, "u"))
    await neighbour
    assert not second.done()
    proxy.release()
    await asyncio.gather(first, second)
    found = await saver.aget_tuple(config_of("t"))
    assert "second" == found.checkpoint["channel_values"]["text"]


async def in_the_way_of_the_first(conninfo, what):
    """Before a checkpoint with the text "first" is updated, `what` is done."""
    await execute(
        conninfo,
        "CREATE SEQUENCE attempts",
        "CREATE FUNCTION obstacle() RETURNS trigger LANGUAGE plpgsql AS $$ "
        f"BEGIN {what}; RETURN NEW; END $$",
        "CREATE TRIGGER obstacle BEFORE UPDATE ON checkpoints "
        "FOR EACH ROW WHEN (NEW.checkpoint ->> 'channel_values' LIKE '%first%') "
        "EXECUTE FUNCTION obstacle()",
    )


async def test_nor_when_the_first_waits_for_a_lock(saver, lghard_database):
    """The second one does not need it."""
    await put(saver, "t")
    await in_the_way_of_the_first(lghard_database, "PERFORM pg_advisory_xact_lock(1)")
    async with await AsyncConnection.connect(lghard_database) as other:
        await other.execute("SELECT pg_advisory_xact_lock(1)")
        first = asyncio.create_task(put(saver, "t", text="first"))
        second = asyncio.create_task(put(saver, "t", text="second"))
        await put(saver, "u", text="")
        await waiting_backends(lghard_database, 1)
        assert not second.done()
    await asyncio.gather(first, second)
    found = await saver.aget_tuple(config_of("t"))
    assert "second" == found.checkpoint["channel_values"]["text"]


async def test_nor_when_the_first_meets_a_conflict(saver, lghard_database):
    """It is repeated, and the second one would have gone through."""
    await put(saver, "t")
    await in_the_way_of_the_first(
        lghard_database,
        "IF nextval('attempts') <= 2 THEN RAISE serialization_failure; END IF",
    )
    await asyncio.gather(*(put(saver, "t", text=text) for text in ("zeroth", "first", "second")))
    assert [(3,)] == await query(lghard_database, "SELECT last_value FROM attempts")
    found = await saver.aget_tuple(config_of("t"))
    assert "second" == found.checkpoint["channel_values"]["text"]


async def test_nor_when_the_first_may_be_at_work_still(lghard_database, proxy):
    """Its first backend has to go before it is repeated; what would be sent with it waits, too."""
    conninfo = proxy.conninfo(lghard_database)
    async with opened(conninfo, batching=True, attempt_timeout=0.2) as saver:
        await put(saver, "t")
        proxy.hold_requests(1, containing=b"first")
        first = asyncio.create_task(put(saver, "t", text="first"))
        await eventually(lambda: proxy.held)
        second = asyncio.create_task(saver.aget_tuple(config_of("t")))
        await asyncio.gather(first, second)
        proxy.release()
    assert "first" == second.result().checkpoint["channel_values"]["text"]


async def test_a_deletion_has_its_turn(saver, proxy, lghard_database):
    """It is no part of a batch, and yet comes behind what was there before, and before the rest."""
    await put(saver, "t")
    proxy.hold_requests(1, containing=b"hold this")
    first = asyncio.create_task(put(saver, "t", text="hold this"))
    await eventually(lambda: proxy.held)
    deletion = asyncio.create_task(saver.adelete_thread("t"))
    second = asyncio.create_task(put(saver, "t", 2))
    await asyncio.wait({deletion, second}, timeout=0.3)
    assert not any(each.done() for each in (deletion, second))
    proxy.release()
    await asyncio.gather(first, deletion, second)
    found = await query(lghard_database, "SELECT checkpoint_id FROM checkpoints")
    assert [(checkpoint(2)["id"],)] == found


async def listed(saver, thread):
    """The numbers of its checkpoints."""
    return [found.config["configurable"]["checkpoint_id"] async for found in saver.alist(thread)]


async def history(saver, thread):
    channels = ["text"]
    return await saver.aget_delta_channel_history(config=thread, channels=channels)


BY_ITSELF = {
    "alist": lambda saver: listed(saver, config_of("t")),
    "aget_delta_channel_history": lambda saver: history(saver, config_of("t")),
    "acopy_thread": lambda saver: saver.acopy_thread("source", "t"),
    "aprune": lambda saver: saver.aprune(["t"], strategy="keep_latest"),
}


@pytest.mark.parametrize("name", sorted(BY_ITSELF.keys() - {"aprune"}))
async def test_what_has_a_connection_of_its_own_waits_for_what_was_before(saver, proxy, name):
    """As upstream, where everything waits for everything."""
    proxy.hold_requests(1, containing=b"hold this")
    first = asyncio.create_task(put(saver, "t", text="hold this"))
    await eventually(lambda: proxy.held)
    second = asyncio.create_task(BY_ITSELF[name](saver))
    await asyncio.wait({second}, timeout=0.3)
    assert not second.done()
    proxy.release()
    await asyncio.gather(first, second)


async def test_pruning_keeps_what_was_put_before(saver, proxy):
    """The latest one is the one that is still under way."""
    await put(saver, "t")
    proxy.hold_requests(1, containing=b"hold this")
    first = asyncio.create_task(put(saver, "t", 2, text="hold this"))
    await eventually(lambda: proxy.held)
    pruning = asyncio.create_task(BY_ITSELF["aprune"](saver))
    await asyncio.wait({pruning}, timeout=0.3)
    proxy.release()
    await asyncio.gather(first, pruning)
    assert [checkpoint(2)["id"]] == await listed(saver, config_of("t"))


async def test_nobody_waits_for_who_lists(saver, proxy):
    """A long history is no reason for a run to stand still."""
    await put(saver, "t", text="history")
    proxy.hold_requests(1, containing=b"ORDER BY checkpoint_id DESC")
    listing = asyncio.create_task(listed(saver, config_of("t")))
    await eventually(lambda: proxy.held)
    await put(saver, "t", 2)
    assert not listing.done()
    proxy.release()
    await listing


async def test_a_deletion_whose_turn_does_not_come(saver, proxy):
    """It ends at its deadline, and those behind it have theirs."""
    proxy.hold_requests(1, containing=b"hold this")
    first = asyncio.create_task(put(saver, "t", text="hold this"))
    await eventually(lambda: proxy.held)
    impatient = HardenedAsyncPostgresSaver(saver.conn, batching=True, deadline=0.1)
    with pytest.raises(PoolTimeout, match="its turn did not come"):
        await impatient.adelete_thread("t")
    second = asyncio.create_task(put(saver, "t", 2))
    proxy.release()
    await asyncio.gather(first, second)


async def test_who_is_let_in_comes_before_who_comes_then(lghard_database, monkeypatch):
    """Who waits outside keeps his place."""
    monkeypatch.setattr(batching, "QUEUE", 1)
    async with opened(lghard_database, batching=True) as saver:

        async def first_and_third():
            await put(saver, "t", text="first")
            await put(saver, "t", text="third")

        await asyncio.gather(first_and_third(), put(saver, "t", text="second"))
        found = await saver.aget_tuple(config_of("t"))
    assert "third" == found.checkpoint["channel_values"]["text"]


# When the connection is lost


async def test_a_lost_batch_is_sent_again(saver, proxy, lghard_database, caplog):
    """All of it, and it is done once."""
    await put(saver, "u")
    proxy.lose_responses()
    await put_many(saver, 50)
    assert 51 == len(await threads(lghard_database))
    assert 1 == sum("lost the database" in each.getMessage() for each in caplog.records)


async def test_a_batch_that_was_cut_is_sent_again(saver, proxy, lghard_database):
    """In the middle of what goes up."""
    await put(saver, "u")
    proxy.cut_after(5_000, "up")
    await put_many(saver, 50)
    assert 51 == len(await threads(lghard_database))


async def test_what_failed_alone_is_not_lost_with_the_others(saver, lghard_database):
    """A batch fails, is sent again in parts, and half of those are lost."""
    await execute(
        lghard_database,
        "CREATE SEQUENCE attempts",
        "CREATE FUNCTION end_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF nextval('attempts') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; "
        "RETURN NEW; END $$",
        "CREATE TRIGGER end_it BEFORE INSERT ON checkpoints "
        "FOR EACH ROW WHEN (NEW.thread_id = 't12') EXECUTE FUNCTION end_it()",
    )
    failed = await failures(saver, {**NAMES, "t7": "a\x00b"})
    assert {"t7": psycopg.errors.UntranslatableCharacter} == failed
    assert {*NAMES} - {"t7"} == await threads(lghard_database)
    attempts = await query(lghard_database, "SELECT last_value FROM attempts")
    # Once more if the answer to t7, which came before, was lost with the connection.
    assert attempts[0][0] in (2, 3)


async def test_what_is_done_is_committed(lghard_database, proxy):
    """Also on a pool that is not in autocommit mode, where asking for a lost backend begins one."""
    async with AsyncConnectionPool(proxy.conninfo(lghard_database), open=False) as pool:
        await pool.wait()
        saver = HardenedAsyncPostgresSaver(pool, batching=True)
        await put(saver, "t")
        proxy.hold_requests(containing=b"COMMIT")
        proxy.lose_responses()
        writing = asyncio.create_task(put(saver, "u"))
        await eventually(lambda: proxy.held)
        await asyncio.wait({writing}, timeout=0.1)
        assert not writing.done()
        proxy.release()
        await writing


async def test_what_has_become_a_standby_is_left(lghard_database):
    """The pool hears of it, replaces the connection, and the batch is sent again."""
    async with opened(lghard_database, batching=True, max_size=1) as saver:
        async with saver.conn.connection() as conn:
            await conn.execute("SET default_transaction_read_only = on")
        await put_many(saver, 20)
        assert {"read-only": 1} == saver.conn.snapshot().evictions
    assert {*NAMES} == await threads(lghard_database)


async def test_without_a_connection_all_are_told(lghard_database):
    """After the pool's timeout, and what to do about it."""
    async with (
        open_checkpointer(lghard_database, batching=True, max_size=1, timeout=0.2) as saver,
        saver.conn.connection(),
    ):
        results = await asyncio.gather(
            *(put(saver, f"t{at}") for at in range(5)), return_exceptions=True
        )
    assert [PoolTimeout] * 5 == [type(each) for each in results]
    assert all(any("raise max_size" in note for note in each.__notes__) for each in results)


async def test_whose_deadline_comes_while_another_is_settled(lghard_database, proxy, caplog):
    """It has not been sent yet, and is not sent any more; the other one is."""
    conninfo = proxy.conninfo(lghard_database)
    async with opened(conninfo, batching=True, max_size=1) as saver:
        ready = batching.Batches.of(saver.conn)._in_company._ready
        impatient = HardenedAsyncPostgresSaver(saver.conn, batching=True, deadline=1.0)
        await put(impatient, "t", text="")
        proxy.hold_requests(1, containing=b"lost")
        proxy.lose_responses(1, containing=b"lost")
        lost = asyncio.create_task(put(saver, "lost", text="lost"))
        await eventually(lambda: proxy.held)
        late = asyncio.create_task(put(impatient, "late", text=""))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.05, proxy.release)
        async with saver.conn.connection():
            await eventually(lambda: [line.thread for line in ready] == ["late", "lost"])
            proxy.hold_requests(1, containing=b"pg_terminate_backend")
        with pytest.raises(psycopg.OperationalError):
            await late
        assert proxy.held
        proxy.release()
        await lost
    assert {"t", "lost"} == await threads(lghard_database)
    gc.collect()
    assert "never retrieved" not in caplog.text  # as asyncio says of a task that has failed


# When a caller goes


async def test_cancelled_before_it_is_sent(lghard_database):
    """Nothing is sent."""
    async with open_checkpointer(lghard_database, batching=True, max_size=1) as saver:
        async with saver.conn.connection():
            puts = [asyncio.create_task(put(saver, f"t{at}")) for at in range(3)]
            await eventually(lambda: batching.Batches.of(saver.conn)._count == 3)
            puts[1].cancel()
            await asyncio.wait({puts[1]})
        await asyncio.gather(puts[0], puts[2])
    assert {"t0", "t2"} == await threads(lghard_database)


async def test_cancelled_under_way(saver, proxy, lghard_database):
    """It is done all the same, and its neighbours notice nothing."""
    proxy.hold_requests(containing=b"hold this")
    puts = [asyncio.create_task(put(saver, f"t{at}", text="hold this")) for at in range(3)]
    await eventually(lambda: proxy.held)
    puts[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await puts[1]
    proxy.release()
    await asyncio.gather(puts[0], puts[2])
    assert {"t0", "t1", "t2"} == await threads(lghard_database)


async def test_who_follows_one_that_was_cancelled_under_way_waits_for_it(saver, proxy):
    """Or the value that nobody wanted any more might be the last."""
    await put(saver, "t")
    proxy.hold_requests(1, containing=b"first")
    first = asyncio.create_task(put(saver, "t", text="first"))
    await eventually(lambda: proxy.held)
    first.cancel()
    await asyncio.wait({first})
    second = asyncio.create_task(put(saver, "t", text="second"))
    await put(saver, "u")
    assert not second.done()
    proxy.release()
    await second
    found = await saver.aget_tuple(config_of("t"))
    assert "second" == found.checkpoint["channel_values"]["text"]


async def test_what_was_cancelled_under_way_is_not_late(lghard_database, proxy):
    """Its connection is lost, and what it carried arrives all the same: before the next one."""
    conninfo = proxy.conninfo(lghard_database)
    async with opened(conninfo, batching=True, attempt_timeout=0.3) as saver:
        await put(saver, "t")
        proxy.hold_requests(1, containing=b"first")
        first = asyncio.create_task(put(saver, "t", text="first"))
        await eventually(lambda: proxy.held)
        backend = await query(lghard_database, BACKENDS)
        first.cancel()
        await asyncio.wait({first})
        await put(saver, "t", text="second")
        proxy.release()
        await eventually(lambda: gone(lghard_database, backend))
        found = await saver.aget_tuple(config_of("t"))
    assert "second" == found.checkpoint["channel_values"]["text"]


BACKENDS = (
    "SELECT pid FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


async def gone(conninfo, backends):
    return not {*backends} & {*await query(conninfo, BACKENDS)}


async def test_closing_waits_for_what_is_under_way(lghard_database, proxy):
    """Also where its caller has gone."""
    conninfo = proxy.conninfo(lghard_database)
    async with opened(conninfo, batching=True) as saver:
        proxy.hold_requests(containing=b"hold this")
        writing = asyncio.create_task(put(saver, "t", text="hold this"))
        await eventually(lambda: proxy.held)
        writing.cancel()
        await asyncio.wait({writing})
        asyncio.get_running_loop().call_later(0.1, proxy.release)
    assert {"t"} == await threads(lghard_database)


async def test_after_closing_all_are_refused(lghard_database):
    """As without batches."""
    async with open_checkpointer(lghard_database, batching=True) as saver:
        pass
    with pytest.raises(PoolClosed):
        await put(saver, "t")


async def test_who_cancels_the_senders_loses_nothing(saver, proxy, lghard_database):
    """As `asyncio.run` does at the end, but here the callers go on."""
    proxy.hold_requests(1, containing=b"hold this")
    puts = [asyncio.create_task(put(saver, f"t{at}", text="hold this")) for at in range(3)]
    await eventually(lambda: proxy.held)
    senders = [task for task in asyncio.all_tasks() if task.get_name() == "lghard-batches"]
    assert senders
    for task in senders:
        task.cancel()
    await asyncio.wait(senders)
    proxy.release()
    await asyncio.gather(*puts)
    assert {"t0", "t1", "t2"} == await threads(lghard_database)


# Who has to wait because there are many


async def begin(saver, number, text=""):
    """So many operations, whose threads all differ, and what they do when they are one by one."""
    return [asyncio.create_task(put(saver, f"t{at}", text=text)) for at in range(number)]


@pytest.fixture
def one_by_one(monkeypatch):
    """No batches: an operation at a time."""
    monkeypatch.setattr(batching, "_MOST", 1)
    monkeypatch.setattr(batching, "CONNECTIONS", 1)


@asynccontextmanager
async def impatient(conninfo, **options):
    """A saver whose operations have less time than many of them take, one after the other."""
    connections = {"max_size": 2, "timeout": 0.5, **options}
    async with opened(conninfo, batching=True, deadline=0.5, **connections) as saver:
        yield saver


async def test_who_stands_in_a_line_that_moves_waits_on(lghard_database, proxy, one_by_one):
    """For much longer than for a connection, or than its deadline: others are served before it."""
    async with impatient(proxy.conninfo(lghard_database)) as saver:
        proxy.latency = 0.05
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*await begin(saver, 30))
        assert asyncio.get_running_loop().time() - began > 1.0  # one by one they cannot be faster
    assert 30 == len(await threads(lghard_database))


async def test_who_stands_in_a_line_that_does_not_move_has_a_deadline(
    lghard_database, proxy, one_by_one
):
    """It counts from the last answer to somebody before it."""
    async with impatient(proxy.conninfo(lghard_database)) as saver:
        proxy.latency = 0.05
        puts = await begin(saver, 30)
        await asyncio.wait(puts[:8])
        proxy.blackhole()
        results = await asyncio.gather(*puts, return_exceptions=True)
        proxy.restore()
    assert 8 <= sum(not isinstance(each, Exception) for each in results) < 20
    assert "PoolTimeout" in {type(each).__name__ for each in results}


async def test_even_a_line_that_moves_has_an_end(lghard_database, proxy, one_by_one, monkeypatch):
    """After ten deadlines, or as many as it says."""
    monkeypatch.setattr("lghard.postgres.retries._LONGEST_LINE", 1)
    async with impatient(proxy.conninfo(lghard_database)) as saver:
        proxy.latency = 0.05
        results = await asyncio.gather(*await begin(saver, 60), return_exceptions=True)
    failed = [each for each in results if isinstance(each, PoolTimeout)]
    assert 0 < len(failed) < 55
    assert "it could not be sent" in str(failed[-1])


async def test_who_stands_behind_what_is_stuck_does_not_wait_on(lghard_database, proxy, one_by_one):
    """Others are served, but not before it."""
    async with impatient(proxy.conninfo(lghard_database), max_size=4) as saver:
        proxy.hold_requests(1, containing=b"hold this")
        patient = HardenedAsyncPostgresSaver(saver.conn, batching=True)
        first = asyncio.create_task(put(patient, "t", text="hold this"))
        await eventually(lambda: proxy.held)
        second = asyncio.create_task(put(saver, "t", 2))
        while not second.done():
            await put(saver, "u", text="")
        with pytest.raises(PoolTimeout, match="it could not be sent"):
            await second
        proxy.release()
        await first


async def test_who_waits_outside_of_what_moves_waits_on(
    lghard_database, proxy, one_by_one, monkeypatch
):
    """There will be room for it."""
    monkeypatch.setattr(batching, "QUEUE", 2)
    async with impatient(proxy.conninfo(lghard_database)) as saver:
        proxy.latency = 0.05
        await asyncio.gather(*await begin(saver, 30))
    assert 30 == len(await threads(lghard_database))


async def test_whose_turn_comes_in_a_line_that_moves_waits_on(lghard_database, proxy, one_by_one):
    """What takes a connection of its own when its turn has come."""
    async with impatient(proxy.conninfo(lghard_database)) as saver:
        proxy.latency = 0.05
        puts = [asyncio.create_task(put(saver, "t", at, text="")) for at in range(15)]
        await asyncio.sleep(0)
        await saver.adelete_thread("t")
        await asyncio.gather(*puts)
    assert set() == await threads(lghard_database)


async def refuse(conninfo, when):
    """Have the server report a conflict for what is written `when` this holds."""
    await execute(
        conninfo,
        "CREATE SEQUENCE times",
        f"""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
            IF {when} THEN RAISE EXCEPTION 'no' USING ERRCODE = 'serialization_failure'; END IF;
            RETURN NEW;
        END$$
        """,
        "CREATE TRIGGER refuse BEFORE INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION refuse()",
    )


async def test_who_has_to_be_tried_again_in_a_line_that_moves_has_time_for_it(
    lghard_database, proxy, one_by_one
):
    """Also if its deadline would have been over, had nobody been served before it."""
    async with impatient(proxy.conninfo(lghard_database)) as saver:
        await refuse(lghard_database, "NEW.thread_id = 'unlucky' AND nextval('times') <= 2")
        proxy.latency = 0.05
        unlucky = asyncio.create_task(put(saver, "unlucky", text=""))
        await asyncio.gather(unlucky, *await begin(saver, 30))
    assert 31 == len(await threads(lghard_database))


async def all_fail_within(seconds, puts):
    """They are late, every one of them, but no later than that."""
    async with asyncio.timeout(seconds):
        results = await asyncio.gather(*puts, return_exceptions=True)
    assert all(isinstance(each, psycopg.OperationalError) for each in results)


PATIENCE = {"deadline": 1.0, "timeout": 1.0, "attempt_timeout": 0.1}


async def test_what_is_sent_but_not_answered_is_no_movement(lghard_database, proxy):
    """Who stands behind it has no more time than it."""
    async with opened(proxy.conninfo(lghard_database), **PATIENCE, max_size=4) as saver:
        proxy.hold_requests(containing=b"xxxxxxxxxxx")
        await all_fail_within(3.5, [put(saver, "t", at, text=LARGE) for at in range(20)])
        proxy.release()


async def test_what_is_put_off_is_no_movement(lghard_database):
    """Who stands behind what is refused again and again has no more time than it."""
    async with opened(lghard_database, **PATIENCE) as saver:
        await refuse(lghard_database, "true")
        await all_fail_within(3.5, [put(saver, "t", at, text="") for at in range(40)])


async def test_nor_is_it_while_others_are_served(lghard_database):
    """The time of those behind it goes on, but for what it waits for others itself."""
    async with opened(lghard_database, **PATIENCE) as saver:
        await refuse(lghard_database, "NEW.thread_id = 't'")

        async def others():
            while True:
                await asyncio.gather(*(put(saver, f"u{at}", text="") for at in range(10)))

        busy = asyncio.create_task(others())
        try:
            await all_fail_within(3.5, [put(saver, "t", at, text="") for at in range(40)])
        finally:
            busy.cancel()


async def test_whose_head_was_sent_a_moment_ago_waits_for_the_answer(
    lghard_database, proxy, one_by_one
):
    """What the head has waited for others is not counted for those behind it either."""
    async with impatient(proxy.conninfo(lghard_database)) as saver:
        proxy.latency = 0.05
        others = await begin(saver, 12)
        pair = [asyncio.create_task(put(saver, "pair", at, text="")) for at in range(2)]
        await asyncio.gather(*others, *pair)


def two_loops(pool, first, second):
    """Use `pool` in an event loop, and in another one when that has gone."""
    asyncio.run(first(pool))
    asyncio.run(second(pool))
    assert 1 == len(vars(pool)[batching._BATCHES])  # nothing is kept of the first one


async def without_a_connection(pool):
    """Nobody is served, for longer than there is time for it."""
    saver = HardenedAsyncPostgresSaver(pool, batching=True, deadline=0.5)
    await saver.setup()
    await put(saver, "t")
    async with asyncio.timeout(10.0), pool.connection(), pool.connection():
        with pytest.raises(PoolTimeout, match="it could not be sent"):
            await put(saver, "u")


POOL = {"min_size": 2, "max_size": 2, "timeout": 0.5, "open": False}


def test_there_is_a_deadline_in_the_second_event_loop_of_a_pool(lghard_database):
    """Although the first one has taken its timer with it."""

    async def first(pool):
        await pool.open(wait=True)
        await put(HardenedAsyncPostgresSaver(pool, batching=True), "t")

    kwargs = {"autocommit": True, "row_factory": dict_row}
    asyncio.run(set_up(lghard_database))
    two_loops(
        AsyncConnectionPool(lghard_database, kwargs=kwargs, **POOL), first, without_a_connection
    )


async def set_up(conninfo):
    async with open_checkpointer(conninfo) as saver:
        await saver.setup()


def test_there_is_a_deadline_after_a_pool_was_used_before_it_was_open(lghard_database):
    """In another event loop."""

    async def too_early(pool):
        with pytest.raises(PoolClosed):
            await put(HardenedAsyncPostgresSaver(pool, batching=True), "t")

    async def later(pool):
        async with pool:
            await without_a_connection(pool)

    two_loops(ManagedPool(lghard_database, **POOL), too_early, later)


async def test_from_another_event_loop_a_line_that_moves_is_waited_for(
    lghard_database, proxy, one_by_one, monkeypatch
):
    """Beyond the deadline, and what its own loop grants the other one in addition."""
    monkeypatch.setattr("lghard.postgres.io_thread.GRACE", 0.05)
    async with impatient(proxy.conninfo(lghard_database)) as saver:

        async def put_30():
            async with impatient(proxy.conninfo(lghard_database)) as other:
                await asyncio.gather(*await begin(other, 30))

        proxy.latency = 0.05
        await asyncio.to_thread(asyncio.run, put_30())
        assert saver
    assert 30 == len(await threads(lghard_database))


# Bounds


async def test_there_is_room_for_so_many_operations(lghard_database, monkeypatch):
    """The others wait outside, and come in when there is room."""
    monkeypatch.setattr(batching, "QUEUE", 10)
    async with open_checkpointer(lghard_database, batching=True, max_size=1) as saver:
        async with saver.conn.connection() as conn:
            puts = [asyncio.create_task(put(saver, f"t{at}")) for at in range(30)]
            lines = batching.Batches.of(saver.conn)
            await eventually(lambda: len(lines._outside) == 20)
            assert 10 == lines._count
            assert conn
        await asyncio.gather(*puts)
        assert [0, 0, 0] == [lines._count, lines._bytes, len(lines._lines)]
    assert 30 == len(await threads(lghard_database))


async def test_no_more_come_in_than_there_is_room_for(lghard_database, monkeypatch):
    """Those who come in take their room before the next one is asked."""
    monkeypatch.setattr(batching, "QUEUE", 10)
    async with opened(lghard_database, batching=True, max_size=1) as saver:
        lines = batching.Batches.of(saver.conn)
        async with saver.conn.connection():
            puts = [asyncio.create_task(put(saver, f"t{at}", text="")) for at in range(100)]
            await eventually(lambda: len(lines._outside) == 90)
        inside = []
        for each in puts:
            each.add_done_callback(lambda _: inside.append(lines._count))
        await asyncio.gather(*puts)
    assert 10 == max(inside)


async def test_who_goes_as_it_comes_in_makes_room(lghard_database, monkeypatch):
    """For the one behind it."""
    monkeypatch.setattr(batching, "QUEUE", 1)
    async with opened(lghard_database, batching=True, max_size=1) as saver:
        lines = batching.Batches.of(saver.conn)
        async with saver.conn.connection():
            puts = [asyncio.create_task(put(saver, f"t{at}", text="")) for at in range(3)]
            await eventually(lambda: len(lines._outside) == 2)
            admitted = next(iter(lines._outside.values()))[1]
            admitted.add_done_callback(lambda _: puts[1].cancel())
            puts[0].cancel()
            await asyncio.wait(puts[:2])
        await puts[2]
        assert [0, 0, 0] == [lines._count, lines._bytes, len(lines._lines)]
    assert {"t2"} == await threads(lghard_database)


async def test_what_is_no_thread_id_leaves_nothing_behind(saver):
    """Nobody can look for it in a dictionary, and it takes no room afterwards."""
    assert await saver.aget_tuple(config_of(["t"])) is None
    assert 0 == batching.Batches.of(saver.conn)._count


async def test_there_is_room_for_so_many_bytes(lghard_database, monkeypatch):
    """The last one in may exceed it."""
    monkeypatch.setattr(batching, "QUEUE_BYTES", 3_000_000)
    async with opened(lghard_database, batching=True, max_size=1) as saver:
        impatient = HardenedAsyncPostgresSaver(saver.conn, batching=True, deadline=0.1)
        async with saver.conn.connection():
            first = [asyncio.create_task(put(saver, f"t{at}", text=LARGE)) for at in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(PoolTimeout, match=r"no room .* 2 operations with 4.0 MB"):
                await put(impatient, "u")
        await asyncio.gather(*first)


async def test_an_outage_leaves_no_lines_behind(lghard_database):
    """However many threads have given up meanwhile."""
    async with (
        open_checkpointer(lghard_database, batching=True, max_size=1, timeout=0.1) as saver,
        saver.conn.connection(),
    ):
        lines = batching.Batches.of(saver.conn)
        puts = (put(saver, f"t{at}") for at in range(100))
        results = await asyncio.gather(*puts, return_exceptions=True)
        assert {PoolTimeout} == {type(each) for each in results}
        await eventually(lambda: not lines._lines)


async def test_nobodys_context_is_kept(saver, monkeypatch):
    """What a run has in its context variables is not seen, nor held, by what serves all."""
    variable = ContextVar("variable", default="nobody's")
    seen = []
    send = batching.execute

    async def looking(*args):
        seen.append(variable.get())
        await send(*args)

    monkeypatch.setattr(batching, "execute", looking)
    variable.set("mine")
    await put(saver, "t", text="")
    assert ["nobody's"] == seen


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there are none before Python 3.12")
async def test_with_eager_tasks(lghard_database, proxy, monkeypatch):
    """A task that has begun before anybody knows it counts as slow, all the same."""
    monkeypatch.setattr(asyncio.get_running_loop(), "_task_factory", asyncio.eager_task_factory)
    conninfo = proxy.conninfo(lghard_database)
    async with opened(conninfo, batching=True) as saver:
        proxy.hold_requests(1, containing=b"hold this")
        held = asyncio.create_task(put(saver, "t", text="hold this"))
        await eventually(lambda: proxy.held)
        await put(saver, "u", text="")
        proxy.release()
        await held


# Everywhere


async def test_without_autocommit(lghard_database, proxy):
    """What is done is committed, also where a lost attempt had to be settled first."""
    async with opened(lghard_database):
        pass
    conninfo = proxy.conninfo(lghard_database)
    async with AsyncConnectionPool(conninfo, min_size=1, kwargs={"row_factory": dict_row}) as pool:
        saver = HardenedAsyncPostgresSaver(pool, batching=True)
        await put(saver, "t", text="")
        proxy.lose_responses(1, containing=b"lost")
        proxy.hold_requests(1, containing=b"lost")
        first = asyncio.create_task(put(saver, "t", text="lost"))
        await eventually(lambda: proxy.held)
        second = asyncio.create_task(put(saver, "t", text="a\x00b"))
        await asyncio.sleep(0)
        proxy.release()
        await first
        with pytest.raises(psycopg.errors.UntranslatableCharacter):
            await second
    found = await query(
        lghard_database, "SELECT checkpoint -> 'channel_values' ->> 'text' FROM checkpoints"
    )
    assert [("lost",)] == found


async def test_behind_a_pooler(lghard_database, lghard_pgbouncer):
    """In transaction mode, nothing is prepared."""
    conninfo = lghard_pgbouncer.conninfo(lghard_database)
    async with open_checkpointer(conninfo, batching=True) as saver:
        await put_many(saver, 100)
        found = await asyncio.gather(*(saver.aget_tuple(config_of(f"t{at}")) for at in range(100)))
    assert all(found)
    assert await transactions(lghard_database) < 10


@asynccontextmanager
async def as_if_pooled(conninfo, **options):
    """A saver that voids its attempts, as behind a pooler."""
    options = {"batching": True, "setup": False, "max_size": 1, **options}
    async with open_checkpointer(conninfo, **options) as saver:
        saver.conn.pooler = True
        await saver.setup()
        await put(saver, "t", text="")
        yield saver


async def test_behind_a_pooler_after_a_failover(lghard_database, caplog):
    """What opens the attempt is refused by a standby, and its connection is not used again."""
    async with as_if_pooled(lghard_database) as saver:
        async with saver.conn.connection() as conn:
            await conn.execute("SET default_transaction_read_only = on")
        await put(saver, "t", text="")
    assert "trying again: cannot execute INSERT in a read-only transaction" in caplog.text


async def test_what_was_not_sent_is_not_lost(lghard_database, proxy):
    """Where another one of the batch could not be settled, the outcome of this one is known."""
    name = psycopg.conninfo.conninfo_to_dict(lghard_database)["dbname"]
    async with as_if_pooled(proxy.conninfo(lghard_database), deadline=3.0) as saver:
        ready = batching.Batches.of(saver.conn)._in_company._ready
        proxy.hold_requests(1, containing=b"lost")
        proxy.lose_responses(1, containing=b"lost")
        lost = asyncio.create_task(put(saver, "lost", text="lost"))
        await eventually(lambda: proxy.held)
        await execute(
            lghard_database, f"ALTER DATABASE {name} SET default_transaction_read_only=on"
        )
        unsent = asyncio.create_task(put(saver, "unsent", text=""))
        asyncio.get_running_loop().call_later(0.05, proxy.release)
        async with saver.conn.connection():
            await eventually(lambda: len(ready) == 2)
        for operation in (lost, unsent):
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                await operation
    notes = [" ".join(each.exception().__notes__) for each in (lost, unsent)]
    assert [True, False] == ["outcome of aput is unknown" in each for each in notes]


async def test_from_another_event_loop(lghard_database):
    """Their operations travel together, too."""

    async def in_a_loop_of_its_own(name):
        async with open_checkpointer(lghard_database, batching=True, min_size=1) as saver:
            await asyncio.gather(*(put(saver, f"{name} {at}") for at in range(20)))

    loops = [
        threading.Thread(target=asyncio.run, args=(in_a_loop_of_its_own(name),)) for name in "abc"
    ]
    for loop in loops:
        loop.start()
    for loop in loops:
        await asyncio.to_thread(loop.join)
    assert 60 == len(await threads(lghard_database))


async def test_in_an_event_loop_that_is_not_the_pools(lghard_database):
    """It is refused at once, and nothing stays in line."""
    async with open_pool(lghard_database, min_size=1) as pool:

        async def elsewhere():
            await put(HardenedAsyncPostgresSaver(pool, batching=True), "t")

        with pytest.raises(ForeignLoopError):
            await asyncio.to_thread(asyncio.run, elsewhere())
        assert batching._BATCHES not in vars(pool)


async def test_a_pool_that_fails_in_its_own_way(saver, monkeypatch):
    """Whoever waits for a connection is told."""

    def connection():
        raise LookupError("there is no such database")

    monkeypatch.setattr(saver.conn, "connection", connection)
    results = await asyncio.gather(
        *(put(saver, f"t{at}") for at in range(3)), return_exceptions=True
    )
    assert [LookupError] * 3 == [type(each) for each in results]


async def test_without_pipelines(lghard_database, monkeypatch):
    """An old libpq sends one operation at a time."""
    monkeypatch.setattr("psycopg.Capabilities.has_pipeline", lambda self: False)
    async with opened(lghard_database, batching=True) as saver:
        assert not saver.batching
        await put_many(saver, 10)
    assert 10 == await transactions(lghard_database)


WRITER = """
import asyncio, sys
from lghard import open_checkpointer
from tests.postgres.checkpoints import put

async def main():
    async with open_checkpointer(sys.argv[1], setup=False, batching=True, min_size=1) as saver:
        for number in range(1, 10_000):
            puts = (put(saver, f"t{at}", number, a=[number], b=[number]) for at in range(50))
            await asyncio.gather(*puts)
            print(number, flush=True)

asyncio.run(main())
"""


async def test_a_crash_leaves_whole_operations(lghard_database):
    """Every checkpoint has its blobs, and every blob its checkpoint."""
    writer = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WRITER, lghard_database), stdout=asyncio.subprocess.PIPE
    )
    while int(await writer.stdout.readline()) < 5:
        pass
    writer.kill()
    await writer.communicate()
    counted = await query(
        lghard_database,
        "SELECT (SELECT count(*) FROM checkpoints), (SELECT count(*) FROM checkpoint_blobs), "
        "count(*) FROM checkpoints AS c JOIN checkpoint_blobs AS b USING (thread_id) "
        "WHERE c.checkpoint -> 'channel_versions' ->> b.channel = b.version",
    )
    (checkpoints, blobs, matching) = counted[0]
    assert checkpoints >= 250
    assert (2 * checkpoints, 2 * checkpoints) == (blobs, matching)
