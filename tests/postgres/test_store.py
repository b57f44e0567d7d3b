"""The store in calm weather: upstream's contract, kept, and what it does better."""

import asyncio
import inspect
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypedDict

import psycopg
import pytest
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime
from langgraph.store.base import GetOp, PutOp, SearchOp
from langgraph.store.postgres import AsyncPostgresStore
from langgraph_sdk import get_client
from psycopg import AsyncConnection
from psycopg_pool import PoolClosed

from lghard import (
    ForeignLoopError,
    ManagedPool,
    StatementRefusedError,
    open_checkpointer,
    open_pool,
    open_store,
)
from lghard.postgres import store as store_module
from lghard.postgres.store import HardenedAsyncPostgresStore
from lghard.testing import langgraph_server
from tests.postgres.checkpoints import eventually, put, query, waiting_backend
from tests.postgres.stores import USER, VECTOR, Embedding, execute, stored, upstream_store

TOO_MANY = 2**16
"""Parameters, of which a statement has 65,535 at most."""


@pytest.fixture
async def conninfo(lghard_empty_database):
    """A database with the tables of a store."""
    async with open_store(lghard_empty_database):
        pass
    return lghard_empty_database


@pytest.fixture
async def store(conninfo):
    async with open_store(conninfo, setup=False, max_size=4) as store:
        yield store


@pytest.fixture
async def upstream(conninfo):
    async with upstream_store(conninfo) as store:
        yield store


@pytest.fixture(params=["upstream", "lghard"])
def contestant(request, upstream, store):
    """The one, then the other."""
    return upstream if request.param == "upstream" else store


@asynccontextmanager
async def locked(conninfo, *keys):
    """Somebody else's transaction has these items, so that who writes them waits."""
    async with await AsyncConnection.connect(conninfo) as conn:
        await conn.execute("SELECT FROM store WHERE key = ANY(%s) FOR UPDATE", (list(keys),))
        yield conn


async def in_turn(*calls):
    """Begin these one after the other, each at a moment of its own."""
    tasks = []
    for call in calls:
        tasks.append(asyncio.create_task(call))
        for _ in range(5):
            await asyncio.sleep(0)
    return tasks


async def exactly(number, conninfo):
    """Wait until that many backends wait for a lock, and see that no more do."""

    async def waiting():
        ((count,),) = await query(
            conninfo,
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE wait_event_type = 'Lock' AND datname = current_database()",
        )
        assert count <= number
        return count == number

    await eventually(waiting)
    await asyncio.sleep(0.05)  # for one more, if there is one
    assert await waiting()


# Upstream's contract


def test_it_is_upstreams_store():
    """Isinstance tests and constructor signatures written for upstream hold."""
    ours = inspect.signature(HardenedAsyncPostgresStore).parameters
    theirs = inspect.signature(AsyncPostgresStore).parameters
    assert issubclass(HardenedAsyncPostgresStore, AsyncPostgresStore)
    assert list(theirs) == list(ours)[: len(theirs)]


async def test_a_single_connection_is_refused(conninfo):
    """The error says why, and what to use instead."""
    async with await AsyncConnection.connect(conninfo) as conn:
        with pytest.raises(TypeError, match=r"needs a pool.*lghard\.open_store"):
            HardenedAsyncPostgresStore(conn)


async def test_a_pipe_is_refused(conninfo):
    """A pipeline belongs to a single connection."""
    async with (
        await AsyncConnection.connect(conninfo, autocommit=True) as conn,
        conn.pipeline() as pipe,
    ):
        with pytest.raises(ValueError, match="leave pipe out"):
            HardenedAsyncPostgresStore(conn, pipe=pipe)


async def test_from_conn_string_opens_and_closes_a_pool(lghard_empty_database):
    """The entry point that everybody uses gives a store that can reconnect."""
    async with HardenedAsyncPostgresStore.from_conn_string(
        lghard_empty_database, pool_config={"min_size": 1, "max_size": 3}
    ) as store:
        await store.setup()
        await store.aput(USER, "likes", {"food": "figs"})
        assert isinstance(store.conn, ManagedPool)
        assert 3 == store.conn.max_size
    assert store.conn.closed


async def test_open_store_sets_up_and_closes(lghard_empty_database, monkeypatch):
    """With no argument at all it finds the database, makes its tables and closes its pool."""
    monkeypatch.setenv("LGHARD_DATABASE_URI", lghard_empty_database)
    async with open_store() as store:
        await store.aput(USER, "likes", {"food": "figs"})
        assert {"food": "figs"} == (await store.aget(USER, "likes")).value
    assert store.conn.closed


async def test_a_pool_that_was_passed_in_stays_open(conninfo):
    """Whoever opened it closes it."""
    async with open_pool(conninfo) as pool:
        async with open_store(pool):
            pass
        assert not pool.closed


async def test_pool_settings_for_an_open_pool_are_refused(conninfo):
    """They would have no effect, silently."""
    async with open_pool(conninfo) as pool:
        with pytest.raises(TypeError, match=r"max_size.*open already"):
            async with open_store(pool, max_size=3):
                pass


OPERATIONS = [
    lambda store: store.aput(USER, "likes", {"food": "figs", "list": [1, None, {"a": "ä"}]}),
    lambda store: store.aput((*USER, "notes"), "1", {"text": "one", "number": 1}),
    lambda store: store.aput((*USER, "notes"), "2", {"text": "two", "number": 2}),
    lambda store: store.aput(("others",), "x", {"text": "x"}),
    lambda store: store.aget(USER, "likes"),
    lambda store: store.aget(USER, "nothing"),
    lambda store: store.asearch(USER),
    lambda store: store.asearch((*USER, "notes"), filter={"number": {"$gte": 2}}),
    lambda store: store.asearch(USER, limit=1, offset=1),
    lambda store: store.alist_namespaces(),
    lambda store: store.alist_namespaces(prefix=("users", "*"), max_depth=2),
    lambda store: store.adelete(USER, "likes"),
    lambda store: store.aget(USER, "likes"),
    lambda store: store.abatch(
        [
            PutOp(USER, "likes", {"food": "dates"}),
            GetOp(USER, "likes"),
            PutOp((*USER, "notes"), "1", None),
            SearchOp((*USER, "notes")),
            PutOp(USER, "likes", {"food": "olives"}),
        ]
    ),
    lambda store: store.asearch(USER),
]


async def test_it_answers_as_upstream(lghard_postgres):
    """The same operations, the same answers, but for the time of day."""
    answers = []
    for open_one in (upstream_store, open_store):
        conninfo = lghard_postgres.create_database()
        async with open_one(conninfo) as store:
            await store.setup()
            answers.append([plain(await operation(store)) for operation in OPERATIONS])
        lghard_postgres.drop_database(conninfo)
    assert answers[0] == answers[1]


def plain(answer):
    """An answer without times."""
    if isinstance(answer, list):
        return sorted(map(plain, answer), key=repr)
    return (answer.namespace, answer.key, answer.value) if hasattr(answer, "value") else answer


async def test_a_graph_remembers(store):
    """What one run puts, another one gets, in whichever thread."""

    class State(TypedDict):
        said: str

    async def node(state: State, runtime: Runtime):
        known = await runtime.store.aget(USER, "said")
        await runtime.store.aput(USER, "said", {"text": state["said"]})
        return {"said": known.value["text"] if known else "nothing"}

    builder = StateGraph(State)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    graph = builder.compile(store=store)
    assert {"said": "nothing"} == await graph.ainvoke({"said": "hello"})
    assert {"said": "hello"} == await graph.ainvoke({"said": "again"})


async def test_the_synchronous_interface_works_from_another_thread(store):
    """As in a node that is no coroutine."""
    await asyncio.to_thread(store.put, USER, "likes", {"food": "figs"})
    found = await asyncio.to_thread(store.get, USER, "likes")
    assert {"food": "figs"} == found.value
    with pytest.raises(asyncio.InvalidStateError, match="aget"):
        store.get(USER, "likes")


async def test_it_lives_on_a_langgraph_server(conninfo):
    """The path in langgraph.json is all that it takes."""
    with langgraph_server(
        {"echo": "./echo_graph.py:graph"},
        directory=Path(__file__).parents[1] / "testing",
        env={"LGHARD_DATABASE_URI": conninfo},
        store="lghard.postgres.open_store",
    ) as server:
        async with get_client(url=server.url) as client:
            await client.store.put_item(list(USER), key="likes", value={"food": "figs"})
            found = await client.store.get_item(list(USER), key="likes")
    assert {"food": "figs"} == found["value"]
    assert {"likes": {"food": "figs"}} == await stored(conninfo)


# What is called at the same moment


@pytest.mark.parametrize(
    "value", [{"text": "a\x00b"}, {"text": object()}], ids=["server", "client"]
)
async def test_a_bad_value_fails_nobody_elses(contestant, upstream, value):
    """Whatever is called at the same moment goes together; upstream then fails all of it."""
    await contestant.aput(USER, "old", {"text": "old"})
    *others, bad = await asyncio.gather(
        *(contestant.aput(USER, key, {"text": key}) for key in "abcde"),
        contestant.aget(USER, "old"),
        contestant.aput(USER, "bad", value),
        return_exceptions=True,
    )
    assert isinstance(bad, psycopg.errors.UntranslatableCharacter | TypeError)
    failed = [other for other in others if isinstance(other, Exception)]
    assert len(failed) == (6 if contestant is upstream else 0)


async def test_a_slow_operation_does_not_hold_up_the_others(contestant, upstream, conninfo):
    """Upstream does one batch after the other."""
    await contestant.aput(USER, "slow", {})
    async with locked(conninfo, "slow"):
        slow = asyncio.create_task(contestant.aput(USER, "slow", {"text": "new"}))
        await waiting_backend(conninfo)
        others = asyncio.gather(contestant.aget(USER, "slow"), contestant.aput(USER, "quick", {}))
        if contestant is upstream:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(others, 1)
        else:
            await asyncio.wait_for(others, 30)
            assert not slow.done()
    await slow


async def test_slow_operations_leave_half_of_the_pool_to_others(conninfo):
    """A checkpointer that shares it goes on."""
    keys = ["a", "b", "c", "d"]
    async with (
        open_checkpointer(conninfo, max_size=4) as checkpointer,
        open_store(conninfo, max_size=4) as store,
    ):
        await asyncio.gather(*(store.aput(USER, key, {}) for key in keys))
        async with locked(conninfo, *keys):
            slow = await in_turn(*(store.aput(USER, key, {"text": key}) for key in keys))
            await exactly(2, conninfo)
            await put(checkpointer, "t")
        await asyncio.gather(*slow)
    assert {key: {"text": key} for key in keys} == await stored(conninfo)


async def test_of_two_puts_the_later_one_stands(store, conninfo):
    """Also when nobody waits for the first, and though batches are done side by side."""
    tasks = []
    for number in range(100):
        tasks.append(asyncio.create_task(store.aput(USER, "number", {"number": number})))
        if number % 7 == 0:
            await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert {"number": {"number": 99}} == await stored(conninfo)


async def test_who_reads_the_same_item_may_change_it(contestant, upstream):
    """Upstream gives both callers the same object."""
    await contestant.aput(USER, "likes", {"food": ["figs"]})
    got, found = await asyncio.gather(
        asyncio.gather(*(contestant.aget(USER, "likes") for _ in range(2))),
        asyncio.gather(*(contestant.asearch(USER) for _ in range(2))),
    )
    got[0].value["food"].append("changed")
    found[0][0].value["food"].append("changed")
    seen = [got[1].value["food"], found[1][0].value["food"]]
    changed = contestant is upstream
    assert [["figs", "changed"] if changed else ["figs"]] * 2 == seen


async def test_the_same_question_is_asked_once(store, conninfo):
    """However many ask it at the same moment."""
    fetched = []
    original = store._fetch

    async def fetch(reads):
        fetched.append(len(reads))
        return await original(reads)

    store._fetch = fetch
    await asyncio.gather(*(store.asearch(USER, filter={"a": {"$eq": 1}}) for _ in range(50)))
    assert [1] == fetched


async def test_more_items_than_a_statement_has_parameters(contestant, upstream, conninfo):
    """A statement of Postgres' takes 65,535 of them; upstream's has four or five for an item."""
    ops = [PutOp(USER, str(number), {"number": number}) for number in range(16_500)]
    if contestant is upstream:
        with pytest.raises(psycopg.OperationalError, match="65535"):
            await contestant.abatch(ops)
    else:
        await contestant.abatch(ops)
        assert {str(number): {"number": number} for number in range(16_500)} == await stored(
            conninfo
        )


async def test_a_search_that_cannot_be_sent_fails_alone(contestant, upstream, caplog):
    """It is not repeated, and who searches at the same time finds what there is."""
    await contestant.aput(USER, "likes", {"food": "figs"})
    conditions = {str(number): number for number in range(TOO_MANY // 2)}
    refused, found = await asyncio.gather(
        contestant.asearch(USER, filter=conditions),
        contestant.asearch(USER),
        return_exceptions=True,
    )
    assert isinstance(refused, psycopg.OperationalError)
    assert isinstance(refused, StatementRefusedError) is (contestant is not upstream)
    assert isinstance(found, psycopg.OperationalError) is (contestant is upstream)
    assert [] == [record for record in caplog.records if record.name == "lghard.postgres"]


async def test_a_batch_is_one_transaction(store, conninfo):
    """All of its puts are there, or none."""
    with pytest.raises(psycopg.errors.UntranslatableCharacter):
        await store.abatch([PutOp(USER, "a", {}), PutOp(USER, "b", {"text": "\x00"})])
    assert {} == await stored(conninfo)


# Texts that are embedded


@pytest.fixture
def embedding():
    return Embedding()


@pytest.fixture
async def vectors(lghard_empty_database):
    """A database with a stand-in for pgvector."""
    await execute(lghard_empty_database, VECTOR)
    return lghard_empty_database


async def test_upstreams_setup_fails_without_an_index(vectors, embedding):
    """The control: kind="flat" says that no index is wanted."""
    async with upstream_store(vectors, index=embedding.index) as store:
        with pytest.raises(ValueError, match="flat"):
            await store.setup()


async def test_search_by_meaning(vectors, embedding):
    """What is put is embedded, and found by what is like it."""
    async with open_store(vectors, index=embedding.index) as store:
        for key in ("aaa", "eee", "iii"):
            await store.aput(USER, key, {"text": key})
        await store.aput(USER, "hidden", {"text": "eeee"}, index=False)
        found = await store.asearch(USER, query="e", limit=1)
        await store.setup()
    assert ["eee"] == [item.key for item in found]
    assert sorted(["aaa", "eee", "iii", "e"]) == sorted(embedding.texts)


@pytest.mark.parametrize("open_one", [upstream_store, open_store])
async def test_more_vectors_than_a_statement_has_parameters(vectors, embedding, open_one):
    """An item may have many texts. Upstream fails, and items stay that no search will find."""
    value = {"chunks": ["a"] * 170}
    ops = [PutOp(USER, str(number), value, ["chunks[*]"]) for number in range(100)]
    async with open_store(vectors, index=embedding.index):
        pass
    async with open_one(vectors, index=embedding.index) as store:
        if open_one is upstream_store:
            with pytest.raises(psycopg.OperationalError, match="65535"):
                await store.abatch(ops)
        else:
            await store.abatch(ops)
    counted = "SELECT (SELECT count(*) FROM store), (SELECT count(*) FROM store_vectors)"
    expected = (100, 0) if open_one is upstream_store else (100, 17_000)
    assert [expected] == await query(vectors, counted)


async def test_an_item_with_too_many_vectors_is_refused(vectors, embedding, caplog):
    """At once, with what to do; and it is known that nothing was done."""
    async with open_store(vectors, index=embedding.index, max_size=1) as store:
        with pytest.raises(StatementRefusedError, match="less in one item") as caught:
            await store.aput(USER, "book", {"chunks": ["a"] * (TOO_MANY // 4)}, ["chunks[*]"])
        await store.aput(USER, "page", {"chunks": ["a"]}, ["chunks[*]"])
        assert {"broken in use": 1} == store.conn.snapshot().evictions
    assert [] == getattr(caught.value, "__notes__", [])
    assert [] == [record for record in caplog.records if record.name == "lghard.postgres"]
    assert {"page": {"chunks": ["a"]}} == await stored(vectors)


async def test_no_connection_is_held_while_embedding(vectors, embedding):
    """Nor is anybody held up who has nothing to embed."""
    async with open_store(vectors, index=embedding.index, max_size=1) as store:
        begun, gate = asyncio.Event(), asyncio.Event()

        async def wait():
            begun.set()
            await gate.wait()

        await store.aput(USER, "plain", {"number": 1})
        embedding.gate = wait
        putting = asyncio.create_task(store.aput(USER, "likes", {"text": "figs"}))
        await begun.wait()
        assert {"number": 1} == (await store.aget(USER, "plain")).value
        assert not putting.done()
        gate.set()
        await putting
        assert {"text": "figs"} == (await store.aget(USER, "likes")).value


async def test_many_who_embed_leave_half_of_the_pool_to_others(vectors, embedding):
    """Also when all of them are done at the same time."""
    async with open_store(vectors, index=embedding.index, max_size=4) as store:
        gate = asyncio.Event()
        embedding.gate = gate.wait
        async with await AsyncConnection.connect(vectors) as conn:
            await conn.execute("LOCK store_vectors")
            putting = await in_turn(
                *(store.aput(USER, str(number), {"text": "x"}) for number in range(4))
            )
            gate.set()
            await exactly(2, vectors)
            async with store.conn.connection():
                pass
        await asyncio.gather(*putting)


async def test_what_cannot_be_embedded_is_told_to_who_wanted_it(vectors, embedding):
    """The error is the provider's own; what needs no embedding is done."""
    async with open_store(vectors, index=embedding.index) as store:

        async def fail():
            raise ConnectionError("no provider")

        embedding.gate = fail
        plain, text = await asyncio.gather(
            store.aput(USER, "plain", {"number": 1}),
            store.aput(USER, "text", {"text": "figs"}),
            return_exceptions=True,
        )
        assert (None, "ConnectionError('no provider')") == (plain, repr(text))
    assert {"plain": {"number": 1}} == await stored(vectors)


async def test_an_unknown_kind_of_vector_is_refused(vectors, embedding):
    """Its name would become a part of a statement."""
    index = {**embedding.index, "ann_index_config": {"kind": "flat", "vector_type": "x; DROP"}}
    with pytest.raises(ValueError, match="vector_type"):
        async with open_store(vectors, index=index):
            pass


# The end


async def test_closing_waits_for_what_is_under_way(conninfo):
    """A put that nobody waits for is done, though the block ends."""
    async with open_store(conninfo) as store:
        putting = asyncio.create_task(store.aput(USER, "late", {"text": "late"}))
        await asyncio.sleep(0)
    await putting
    assert {"late": {"text": "late"}} == await stored(conninfo)


async def test_closing_does_not_wait_for_ever(conninfo, monkeypatch):
    """What does not come to its end is cancelled, and its caller told."""
    monkeypatch.setattr(store_module, "DRAIN_TIMEOUT", 0.1)
    async with open_pool(conninfo) as pool:
        async with open_store(pool) as store:
            await store.aput(USER, "slow", {})
            async with locked(conninfo, "slow"):
                slow = asyncio.create_task(store.aput(USER, "slow", {"text": "new"}))
                await waiting_backend(conninfo)
                await store.__aexit__(None, None, None)
                with pytest.raises(PoolClosed, match="may be done"):
                    await slow
        await eventually(lambda: pool.snapshot().borrowed == 0)


async def test_who_waits_for_what_was_cancelled_hears_of_it(contestant, upstream, conninfo):
    """Upstream's callers wait for ever when its task is cancelled, as all are when a loop ends."""
    await contestant.aput(USER, "slow", {})
    async with locked(conninfo, "slow"):
        slow = asyncio.create_task(contestant.aput(USER, "slow", {"text": "new"}))
        await waiting_backend(conninfo)
        ours = () if contestant is upstream else contestant._collector._tasks
        for task in ours or [upstream._task]:
            task.cancel()
        with pytest.raises(TimeoutError if contestant is upstream else PoolClosed):
            await asyncio.wait_for(slow, 1 if contestant is upstream else 30)


async def test_after_its_block_it_refuses(conninfo):
    """Also on a pool that is still open."""
    async with open_pool(conninfo) as pool:
        async with open_store(pool) as store:
            pass
        with pytest.raises(PoolClosed, match="inside the block"):
            await store.aget(USER, "likes")


LEFT_BEHIND = """
import asyncio, gc, sys
from langgraph.store.postgres import AsyncPostgresStore
from lghard import open_store

kept = []  # as by a graph that was compiled with it

async def main(open_one):
    async with open_one(sys.argv[1]) as store:
        kept.append(store)
        await store.aget(("users",), "likes")

loop = asyncio.new_event_loop()
loop.run_until_complete(main(eval(sys.argv[2])))
loop.close()
kept.clear()
gc.collect()
"""


@pytest.mark.parametrize("open_one", ["AsyncPostgresStore.from_conn_string", "open_store"])
async def test_nothing_is_left_behind(conninfo, open_one):
    """Upstream's task is destroyed while it is pending, when its loop is closed."""
    command = [sys.executable, "-W", "ignore", "-c", LEFT_BEHIND, conninfo, open_one]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=60, check=True
    )
    assert ("Task was destroyed" in done.stderr) == (open_one != "open_store")


async def test_the_sweeper_ends_with_the_block(conninfo):
    """Nobody needs to stop it."""
    async with open_store(conninfo, ttl={"sweep_interval_minutes": 60}) as store:
        sweeping = await store.start_ttl_sweeper()
        await asyncio.sleep(0)
        assert not sweeping.done()
    assert sweeping.done()


async def test_the_sweeper_sweeps(conninfo):
    """What has expired, and nothing else."""
    async with open_store(conninfo, ttl={"default_ttl": 60}) as store:
        await store.aput(USER, "gone", {}, ttl=0.0001)
        await store.aput(USER, "here", {})
        await eventually(store.sweep_ttl)
    assert {"here": {}} == await stored(conninfo)


# Connections, and event loops


async def test_a_store_and_a_checkpointer_share_one_pool(conninfo):
    """The same database and settings are the same connections."""
    async with (
        open_checkpointer(conninfo, max_size=3) as checkpointer,
        open_store(conninfo, max_size=3) as store,
        open_store(conninfo, max_size=4) as other,
    ):
        assert store.conn is checkpointer.conn
        assert other.conn is not checkpointer.conn
    assert store.conn.closed


async def test_behind_a_pooler(lghard_empty_database, lghard_pgbouncer):
    """Nothing is prepared there, and nothing is mixed up."""
    async with open_store(lghard_pgbouncer.conninfo(lghard_empty_database)) as store:

        async def turns(user):
            for number in range(10):
                await store.aput(("users", user), "number", {"number": number})
                found = await store.aget(("users", user), "number")
                assert {"number": number} == found.value

        await asyncio.gather(*(turns(str(user)) for user in range(20)))
        assert 20 == len(await store.alist_namespaces(prefix=("users",)))


class Loop:
    """An event loop in a thread of its own, with a store that is never closed."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def submit(self, coro):
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coro, self.loop))

    async def enter(self, conninfo):
        self.block = open_store(conninfo, max_size=3)
        self.store = await self.submit(self.block.__aenter__())
        return self

    async def turns(self, user):
        for number in range(20):
            await self.store.aput(("users", user), "number", {"number": number})
            found = await self.store.aget(("users", user), "number")
            assert {"number": number} == found.value

    def close(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@asynccontextmanager
async def loops(number, conninfo):
    entered = [Loop() for _ in range(number)]
    try:
        for loop in entered:
            await loop.enter(conninfo)
        yield entered
    finally:
        for loop in entered:
            await loop.submit(loop.block.__aexit__(None, None, None))
            loop.close()


async def test_many_loops_stay_within_one_budget(conninfo, lghard_postgres):
    """Each with a store of its own, all at work at once, on three connections."""
    peak = 0
    backends = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
    async with (
        loops(5, conninfo) as entered,
        await AsyncConnection.connect(lghard_postgres.conninfo, autocommit=True) as admin,
    ):
        users = enumerate(entered)
        working = asyncio.gather(*(loop.submit(loop.turns(str(user))) for user, loop in users))
        while not working.done():
            row = await (await admin.execute(backends, [conninfo.rpartition("/")[2]])).fetchone()
            peak = max(peak, *row)
        await working
        assert 1 == len({id(loop.store.conn) for loop in entered})
    assert 1 <= peak <= 3


async def test_the_store_of_another_loop_says_so(conninfo, store):
    """Upstream's fails at a distance."""
    loop = Loop()
    try:
        with pytest.raises(ForeignLoopError, match=r"open one in this loop.*open_store"):
            await loop.submit(store.aget(USER, "likes"))
    finally:
        loop.close()


async def test_the_statements_of_many_users_are_prepared_once(conninfo):
    """However many there are, and however many items in each."""
    async with open_store(conninfo, max_size=1) as store:
        for number in range(1, 20):
            await asyncio.gather(
                *(store.aput(("users", str(user)), "k", {}) for user in range(number))
            )
        async with store.conn.connection() as conn:
            rows = await (await conn.execute("SELECT name FROM pg_prepared_statements")).fetchall()
    assert 1 == len(rows)
