"""What goes together, what waits for what, and what is cancelled: without a database."""

import asyncio
from contextlib import suppress

import pytest
from langgraph.store.base import GetOp, PutOp, SearchOp
from psycopg_pool import PoolClosed

from lghard.postgres.collecting import Collector


class Store:
    """Puts and gets through a collector; each batch waits until the test lets it go."""

    def __init__(self, *, limit=100):
        self.collector = Collector(self.work, self.texts, limit)
        self.queue = asyncio.Queue()
        self.batches = []
        self.gates = []

    async def work(self, calls):
        gate = asyncio.Event()
        self.batches.append([call.op for call in calls])
        self.gates.append(gate)
        await gate.wait()
        for call in calls:
            call.succeed(call.op)

    def texts(self, op):
        key = getattr(op, "key", "")
        if key == "bad":
            raise ValueError(key)
        return [key] if key.startswith("text") else []

    def call(self, op):
        self.collector.expect(self.queue)
        future = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((future, op))
        return future

    def keys(self):
        """The keys of each batch that was begun."""
        return [[op.key for op in batch] for batch in self.batches]


def put(key, value=1):
    return PutOp(("n",), key, {"value": value})


def get(key):
    return GetOp(("n",), key)


async def turn():
    """Let everything that is due happen."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_moment_is_one_batch():
    """What is called before the loop goes round goes together."""
    store = Store()
    for key in "abc":
        store.call(get(key))
    await turn()
    assert [["a", "b", "c"]] == store.keys()


async def test_nothing_is_left_when_there_is_nothing_to_do():
    """There is no task, so none can be lost or destroyed."""
    store = Store()
    future = store.call(get("a"))
    await turn()
    store.gates[0].set()
    await future
    await turn()
    assert {asyncio.current_task()} == asyncio.all_tasks()


async def test_each_kind_goes_by_itself():
    """What is slow, or may not be repeated at once, does not hold up the rest."""
    store = Store()
    search = SearchOp(("n",))
    for op in (get("a"), put("b"), search, put("text"), get("c")):
        store.call(op)
    await turn()
    assert [[get("a"), get("c")], [put("b")], [search], [put("text")]] == store.batches


async def test_writes_to_one_key_are_done_one_after_the_other():
    """Whichever kind they are, and whatever else is under way."""
    store = Store()
    store.call(put("text-1", 1))
    await turn()
    for op in (put("text-1", 2), put("other"), put("text-1", 3)):
        store.call(op)
    await turn()
    assert [["text-1"], ["other"]] == store.keys()
    store.gates[0].set()
    await turn()
    assert [2, 3] == [op.value["value"] for op in store.batches[2]]


async def test_a_write_of_another_kind_keeps_its_place():
    """Put, delete, put: the last one stands, though the first and the last could go together."""
    store = Store()
    first, second, third = put("text-1", 1), PutOp(("n",), "text-1", None), put("text-1", 3)
    store.collector._texts = lambda op: ["text"] if op.value else []
    for op in (put("text-2"), first, second, third):
        store.call(op)
    await turn()
    assert [["text-2", "text-1"]] == store.keys()
    for number in (0, 1):
        store.gates[number].set()
        await turn()
    assert [[second], [third]] == store.batches[1:]


async def test_no_more_than_the_limit_are_at_work():
    """What comes meanwhile makes a larger batch."""
    store = Store(limit=1)
    for key in "abc":
        store.call(get(key))
        await turn()
    store.gates[0].set()
    await turn()
    assert [["a"], ["b", "c"]] == store.keys()


async def test_what_is_embedded_takes_nobodys_place():
    """It needs no connection yet, and may take long."""
    store = Store(limit=1)
    for op in (put("text-1"), get("a"), put("text-2"), get("b")):
        store.call(op)
        await turn()
    assert [["text-1"], ["a"], ["text-2"]] == store.keys()


async def test_a_call_that_makes_no_sense_fails_alone():
    """It never becomes part of a batch."""
    store = Store()
    bad, good = store.call(put("bad")), store.call(put("good"))
    await turn()
    store.gates[0].set()
    with pytest.raises(ValueError, match="bad"):
        await bad
    assert put("good") == await good


async def test_what_was_cancelled_before_it_began_is_not_done():
    """As upstream."""
    store = Store()
    future = store.call(put("a"))
    future.cancel()
    await turn()
    assert [] == store.batches


async def test_what_nobody_wants_any_more_is_cancelled():
    """When all of its callers are; and what waits for the same key is next."""
    store = Store()
    futures = [store.call(put("a")), store.call(put("b"))]
    await turn()
    later = store.call(put("a", 2))
    futures[0].cancel()
    await turn()
    assert 1 == len(store.batches)
    futures[1].cancel()
    await turn()
    assert [put("a", 2)] == store.batches[1]
    store.gates[1].set()
    await later


async def test_the_error_of_a_batch_reaches_all_of_it():
    """Whatever goes wrong in the work, nobody waits for ever."""
    store = Store()

    async def fail(calls):
        raise ZeroDivisionError

    store.collector._work = fail
    futures = [store.call(get("a")), store.call(get("b"))]
    errors = await asyncio.gather(*futures, return_exceptions=True)
    assert [ZeroDivisionError] * 2 == [type(error) for error in errors]


async def test_a_batch_that_is_cancelled_by_others_says_so():
    """Upstream's callers would wait for ever."""
    store = Store()
    future = store.call(put("a"))
    await turn()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    with pytest.raises(PoolClosed, match="may be done"):
        await future


async def test_closing_waits_for_what_is_under_way():
    """Also for what has not begun yet."""
    store = Store()
    futures = [store.call(put("a", 1))]
    await turn()
    futures.append(store.call(put("a", 2)))
    closing = asyncio.create_task(store.collector.close(60))
    for number in (0, 1):
        await turn()
        assert not closing.done()
        store.gates[number].set()
    await closing
    assert [put("a", 1), put("a", 2)] == [future.result() for future in futures]


async def test_closing_does_not_wait_for_ever():
    """After its time it cancels, and says what became of each."""
    store = Store()
    futures = [store.call(put("a", 1))]
    await turn()
    futures.append(store.call(put("a", 2)))
    await store.collector.close(0.01)
    with pytest.raises(PoolClosed, match="may be done"):
        await futures[0]
    with pytest.raises(PoolClosed, match="before this was begun"):
        await futures[1]


async def test_closing_that_is_cancelled_leaves_nothing():
    """Neither a task nor somebody who waits."""
    store = Store()
    future = store.call(put("a"))
    await turn()
    closing = asyncio.create_task(store.collector.close(60))
    await turn()
    closing.cancel()
    with suppress(asyncio.CancelledError):
        await closing
    assert isinstance(future.exception(), PoolClosed)
    assert {asyncio.current_task()} == asyncio.all_tasks()


async def test_what_comes_after_the_end_is_refused():
    """At once."""
    store = Store()
    await store.collector.close(1)
    with pytest.raises(PoolClosed, match="inside the block"):
        store.call(get("a"))
