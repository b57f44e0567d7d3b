"""Rolling runs back, copying threads: what goes, what comes along, and what must stay."""

import asyncio
from typing import Annotated

import psycopg
import pytest
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, StateGraph
from psycopg import AsyncConnection
from typing_extensions import TypedDict

from lghard import open_checkpointer, open_pool
from tests.postgres.checkpoints import (
    config_of,
    eventually,
    execute,
    put,
    query,
    waiting_backend,
    waiting_backends,
)

COPIED = {
    "checkpoints": [
        *("thread_id", "checkpoint_ns", "checkpoint_id", "parent_checkpoint_id"),
        *("type", "checkpoint", "metadata"),
    ],
    "checkpoint_blobs": ["thread_id", "checkpoint_ns", "channel", "version", "type", "blob"],
    "checkpoint_writes": [
        *("thread_id", "checkpoint_ns", "checkpoint_id", "task_id", "idx"),
        *("channel", "type", "blob", "task_path"),
    ],
}
"""The columns that a copy has."""


class Plain(TypedDict):
    words: Annotated[list[str], lambda old, new: [*old, *new]]
    fixed: dict[str, int]


class Delta(TypedDict):
    words: Annotated[list[str], DeltaChannel(lambda old, new: sum(new, old))]
    fixed: dict[str, int]


BOTH = pytest.mark.parametrize("schema", [Plain, Delta])


@pytest.fixture
async def saver(lghard_database):
    async with open_checkpointer(lghard_database, setup=False) as saver:
        yield saver


def graph_of(schema, saver):
    """Two nodes in a row, of which the second is a graph of its own."""

    def say(state):
        return {"words": [f"word {len(state['words'])}"]}

    inner = StateGraph(schema).add_node("say", say).add_edge(START, "say").add_edge("say", END)
    builder = StateGraph(schema).add_node("say", say).add_node("inner", inner.compile())
    builder.add_edge(START, "say").add_edge("say", "inner").add_edge("inner", END)
    return builder.compile(checkpointer=saver)


async def run(graph, run_id, *, thread_id="t"):
    """One turn, as a LangGraph server runs it: the run's id stands in the metadata."""
    config = {"configurable": {"thread_id": thread_id}, "metadata": {"run_id": run_id}}
    given = {"words": [run_id]} if run_id != "first" else {"words": [run_id], "fixed": {"a": 1}}
    return await graph.ainvoke(given, config)


async def values(graph, thread_id="t"):
    return (await graph.aget_state(config_of(thread_id))).values


async def rows(conninfo, thread_id="t"):
    """All that is stored of a thread, without its name."""
    return [
        await query(
            conninfo,
            f"SELECT to_jsonb(t) - 'thread_id' - 'metadata' FROM {table} AS t "
            "WHERE thread_id = %s ORDER BY 1",
            thread_id,
        )
        for table in COPIED
    ]


async def test_upstream_cannot_roll_back_or_copy(lghard_database):
    """The control: the server's rollback and copy end in an error."""
    async with open_pool(lghard_database) as pool:
        upstream = AsyncPostgresSaver(pool)
        with pytest.raises(NotImplementedError):
            await upstream.adelete_for_runs(["run"])
        with pytest.raises(NotImplementedError):
            await upstream.acopy_thread("a", "b")


@BOTH
async def test_a_run_is_rolled_back_without_a_trace(saver, lghard_database, schema):
    """The thread is, row by row, what it was before the run, with what both have in common."""
    graph = graph_of(schema, saver)
    before = await run(graph, "first")
    rows_before = await rows(lghard_database)
    await run(graph, "second")
    await saver.adelete_for_runs(["second"])
    assert before == await values(graph)
    assert rows_before == await rows(lghard_database)


@BOTH
async def test_a_thread_goes_on_after_a_rollback(saver, schema):
    """As if the run had never been."""
    graph = graph_of(schema, saver)
    before = await run(graph, "first")
    await run(graph, "second")
    await saver.adelete_for_runs(["second"])
    found = await run(graph, "third")
    assert [*before["words"], "third"] == found["words"][: len(before["words"]) + 1]
    assert {"a": 1} == found["fixed"]


async def test_a_run_below_others_leaves_what_they_need(saver):
    """Blobs that a later run has taken over stay; its history starts with it."""
    graph = graph_of(Plain, saver)
    await run(graph, "first")
    after = await run(graph, "second")
    await saver.adelete_for_runs(["first"])
    assert after == await values(graph)
    history = [found async for found in graph.aget_state_history(config_of("t"))]
    ids = {found.config["configurable"]["checkpoint_id"] for found in history}
    parents = [found.parent_config for found in history]
    assert parents[-1] is None
    assert {parent["configurable"]["checkpoint_id"] for parent in parents[:-1]} <= ids


async def test_no_delta_channel_loses_its_ground(saver, lghard_database):
    """What a later run has built on stays whole, and the caller hears of it."""
    graph = graph_of(Delta, saver)
    await run(graph, "first")
    after = await run(graph, "second")
    rows_before = await rows(lghard_database)
    with pytest.raises(NotImplementedError, match="built on them in t"):
        await saver.adelete_for_runs(["first"])
    assert after == await values(graph)
    assert rows_before == await rows(lghard_database)


async def test_all_runs_of_a_delta_channel_may_go_at_once(saver, lghard_database):
    """Nothing is left that could miss them."""
    graph = graph_of(Delta, saver)
    await run(graph, "first")
    await run(graph, "second")
    await saver.adelete_for_runs(["first", "second"])
    assert [[], [], []] == await rows(lghard_database)


async def test_a_copy_is_not_the_work_of_the_run(saver):
    """Rolling back the original leaves the copy alone."""
    graph = graph_of(Plain, saver)
    after = await run(graph, "first")
    await saver.acopy_thread("t", "copy")
    await saver.adelete_for_runs(["first"])
    assert {} == await values(graph)
    assert after == await values(graph, "copy")


async def test_one_run_id_is_not_taken_for_many(saver):
    """A string is a sequence, too."""
    with pytest.raises(TypeError, match="not a str"):
        await saver.adelete_for_runs("run")


@BOTH
async def test_a_copy_has_everything_and_a_life_of_its_own(saver, lghard_database, schema):
    """Row by row the same; then each goes its own way."""
    graph = graph_of(schema, saver)
    await run(graph, "first")
    original = await run(graph, "second")
    await saver.acopy_thread("t", "copy")
    assert await rows(lghard_database) == await rows(lghard_database, "copy")
    await run(graph, "third", thread_id="copy")
    assert original == await values(graph)
    found = await values(graph, "copy")
    assert original["words"] == found["words"][: len(original["words"])]
    await saver.adelete_thread("t")
    assert found == await values(graph, "copy")


async def test_a_copy_says_where_it_comes_from(saver):
    """Metadata stay; the thread's own id in them, as a server puts it there, is the new one."""
    made = config_of("t")
    made["metadata"] = {"run_id": "first"}
    metadata = {"source": "loop", "step": 1, "parents": {}, "thread_id": "t"}
    await saver.aput(made, (await checkpoint_of(saver)), metadata, {})
    await saver.acopy_thread("t", "copy")
    found = await saver.aget_tuple(config_of("copy"))
    expected = {**metadata, "run_id": "first", "thread_id": "copy", "lghard_copied_from": "t"}
    assert expected == found.metadata


async def checkpoint_of(saver):
    await put(saver, "other")
    return (await saver.aget_tuple(config_of("other"))).checkpoint


async def test_a_second_copy_changes_nothing(saver, lghard_database):
    """What the target has stays, so that an attempt after a lost answer succeeds."""
    graph = graph_of(Plain, saver)
    await run(graph, "first")
    await saver.acopy_thread("t", "copy")
    await run(graph, "second", thread_id="copy")
    before = await rows(lghard_database, "copy")
    await saver.acopy_thread("t", "copy")
    assert before == await rows(lghard_database, "copy")


async def test_a_copy_has_all_columns(lghard_database):
    """A column that upstream adds is copied as well, or this says that it is not."""
    for table, columns in COPIED.items():
        found = await query(
            lghard_database,
            "SELECT column_name FROM information_schema.columns WHERE table_name = %s",
            table,
        )
        assert sorted(columns) == sorted(name for (name,) in found)


async def test_both_from_another_thread(saver):
    """The synchronous methods wait for the saver's event loop, and not inside of it."""
    await put(saver, "t")
    await asyncio.to_thread(saver.copy_thread, "t", "copy")
    assert await saver.aget_tuple(config_of("copy"))
    await asyncio.to_thread(saver.delete_for_runs, ["run"])
    with pytest.raises(asyncio.InvalidStateError):
        saver.copy_thread("t", "copy")
    with pytest.raises(asyncio.InvalidStateError):
        saver.delete_for_runs(["run"])


@pytest.fixture
async def upstream(lghard_database):
    async with open_pool(lghard_database) as pool:
        yield AsyncPostgresSaver(pool)


@pytest.mark.parametrize("strategy", ["delete", "delete_all"])
async def test_threads_are_pruned_away(saver, lghard_database, strategy):
    """By upstream's name for it, and by the one that a LangGraph server's engine sends."""
    for thread_id in ("t", "u", "v"):
        await put(saver, thread_id)
        await saver.aput_writes(config_of(thread_id, "1"), [("messages", [1])], "task")
    await saver.aprune(["t", "u"], strategy=strategy)
    assert [[], [], []] == await rows(lghard_database, "t")
    assert [[], [], []] == await rows(lghard_database, "u")
    assert [1, 1, 1] == [len(table) for table in await rows(lghard_database, "v")]


async def test_upstream_does_not_know_the_servers_strategy(upstream):
    """The control: what the server sends to delete threads is an error."""
    with pytest.raises(ValueError, match="delete_all"):
        await upstream.aprune(["t"], strategy="delete_all")


async def test_an_unknown_strategy(saver):
    """It says which there are."""
    with pytest.raises(ValueError, match="'keep_latest', 'delete', 'delete_all'"):
        await saver.aprune(["t"], strategy="keep_some")
    with pytest.raises(TypeError, match="not a str"):
        await saver.aprune("t")
    assert await saver.aprune([], strategy="delete") is None


async def test_the_latest_is_kept(saver):
    """As upstream, in each thread."""
    for thread_id in ("t", "u"):
        for number in (1, 2, 3):
            await put(saver, thread_id, number)
    await saver.aprune(["t", "u"])
    assert 2 == len([found async for found in saver.alist(None)])


async def test_no_thread_is_pruned_if_one_must_not_be(saver):
    """As upstream, which looks at all of them first."""
    await put(saver, "t", 1)
    await put(saver, "t", 2)
    await run(graph_of(Delta, saver), "first", thread_id="u")
    with pytest.raises(NotImplementedError, match="u"):
        await saver.aprune(["t", "u"])
    assert 2 == len([found async for found in saver.alist(config_of("t"))])


async def prune_under_a_writer(saver, conninfo):
    """Prune a thread, one of whose checkpoints is being written by somebody else."""
    for number in (1, 2, 3):
        await put(saver, "t", number)
    async with await AsyncConnection.connect(conninfo) as writer:
        await writer.execute("UPDATE checkpoints SET metadata = metadata")
        pruning = asyncio.create_task(saver.aprune(["t"]))
        await waiting_backend(conninfo)
        await writer.commit()
    await pruning
    return [found.checkpoint["id"][-1] async for found in saver.alist(None)]


async def test_upstreams_prune_fails_under_a_writer(upstream, lghard_database):
    """The control: it leaves the retry to the caller."""
    with pytest.raises(psycopg.errors.SerializationFailure):
        await prune_under_a_writer(upstream, lghard_database)


async def test_a_prune_is_repeated_under_a_writer(saver, lghard_database):
    """The second attempt sees what the writer has done."""
    assert ["3"] == await prune_under_a_writer(saver, lghard_database)


async def delete_into_a_deadlock(saver, conninfo):
    """Delete a thread, while somebody locks its rows in the opposite order.

    Who waits last finds the deadlock. A third one holds the delete between two tables until the
    other waits, so that it is the delete.
    """
    await put(saver, "t")
    await saver.aput_writes(config_of("t", "1"), [("messages", [1])], "task")
    connect = AsyncConnection.connect
    async with await connect(conninfo) as other, await connect(conninfo) as third:
        await other.execute("SET deadlock_timeout = '1h'")
        await other.execute("SELECT FROM checkpoint_writes FOR UPDATE")
        await third.execute("SELECT FROM checkpoint_blobs FOR UPDATE")
        deleting = asyncio.create_task(saver.adelete_thread("t"))
        await waiting_backends(conninfo, 1)
        locking = asyncio.create_task(other.execute("SELECT FROM checkpoints FOR UPDATE"))
        await waiting_backends(conninfo, 2)
        await third.rollback()
        await locking
        await other.rollback()
    await deleting


async def test_upstreams_delete_fails_in_a_deadlock(upstream, lghard_database):
    """The control: the victim is told, and has to try again itself."""
    with pytest.raises(psycopg.errors.DeadlockDetected):
        await delete_into_a_deadlock(upstream, lghard_database)


async def test_a_delete_is_repeated_after_a_deadlock(saver, lghard_database):
    """The other one goes first."""
    await delete_into_a_deadlock(saver, lghard_database)
    assert [[], [], []] == await rows(lghard_database)


@pytest.fixture
async def counted(lghard_database):
    """A huge thread, in a database that notes how many rows each statement deletes."""
    await execute(
        lghard_database,
        "CREATE TABLE deleted (rows integer)",
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql "
        "AS $$ BEGIN INSERT INTO deleted SELECT count(*) FROM gone; RETURN NULL; END $$",
        "CREATE TRIGGER note AFTER DELETE ON checkpoint_writes REFERENCING OLD TABLE AS gone "
        "FOR EACH STATEMENT EXECUTE FUNCTION note()",
        "INSERT INTO checkpoint_writes (thread_id, checkpoint_id, task_id, idx, channel, blob) "
        "SELECT 't', '1', 'task', number, 'c', '' FROM generate_series(1, 25000) AS number",
    )
    return lghard_database


DELETES = pytest.mark.parametrize(
    "delete",
    [
        lambda saver: saver.adelete_thread("t"),
        lambda saver: saver.aprune(["t"], strategy="delete"),
    ],
    ids=["adelete_thread", "aprune"],
)


@DELETES
async def test_upstream_deletes_a_huge_thread_at_once(counted, upstream, delete):
    """The control: one statement for all rows, whatever statement_timeout says."""
    await delete(upstream)
    assert [(25_000,)] == await query(counted, "SELECT rows FROM deleted WHERE rows > 0")


@DELETES
async def test_a_huge_thread_is_deleted_in_parts(counted, saver, delete):
    """No statement deletes more than ten thousand rows."""
    await delete(saver)
    found = await query(counted, "SELECT rows FROM deleted WHERE rows > 0 ORDER BY rows")
    assert [(5_000,), (10_000,), (10_000,)] == found


async def test_a_huge_thread_is_deleted_as_a_whole(counted, saver):
    """In parts, but in one transaction: who is cancelled in the middle leaves all of it."""
    async with await AsyncConnection.connect(counted) as other:
        await other.execute("SELECT FROM checkpoint_writes WHERE idx = 25000 FOR UPDATE")
        deleting = asyncio.create_task(saver.adelete_thread("t"))
        await waiting_backend(counted)
        deleting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await deleting
    await eventually(lambda: saver.conn.snapshot().borrowed == 0)
    assert [(25_000,)] == await query(counted, "SELECT count(*) FROM checkpoint_writes")
