"""Rolling runs back, copying threads: what goes, what comes along, and what must stay."""

import asyncio
from typing import Annotated

import pytest
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from lghard import open_checkpointer, open_pool
from tests.postgres.checkpoints import config_of, put, query

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
