"""Statements as one message: their rows, what is prepared, and what an error leaves behind."""

import asyncio

import psycopg
import pytest
from psycopg import AsyncConnection

from lghard import open_checkpointer, open_pool
from lghard.postgres.statements import (
    Segment,
    Statement,
    StatementRefusedError,
    fetch,
    rows_of,
    send,
    send_segments,
)
from lghard.resilience import is_transient
from lghard.testing import FaultProxy
from tests.postgres.checkpoints import config_of, put, query

PREPARED = "SELECT count(*) AS number FROM pg_prepared_statements WHERE name LIKE '%lghard%'"
TOO_MANY = 2**16
"""Parameters, of which a statement has 65535 at most: libpq refuses it before it is sent."""

DEFERRED = (
    "CREATE SEQUENCE attempts",
    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql "
    "AS $$ BEGIN PERFORM nextval('attempts'); RAISE 'refused at the commit'; END $$",
    "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON checkpoints "
    "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()",
)


@pytest.fixture
async def refusing_database(lghard_database):
    """A database that refuses checkpoints, but only at the commit, and counts them."""
    async with await AsyncConnection.connect(lghard_database, autocommit=True) as conn:
        for statement in DEFERRED:
            await conn.execute(statement)
    return lghard_database


@pytest.mark.parametrize("prepare_threshold", [5, None])
async def test_an_error_at_the_commit_is_raised_once(refusing_database, prepare_threshold):
    """It comes behind the answers to all statements, and it is the server's own."""
    kwargs = {"prepare_threshold": prepare_threshold}
    async with open_checkpointer(refusing_database, setup=False, kwargs=kwargs) as saver:
        with pytest.raises(psycopg.errors.RaiseException, match="refused at the commit"):
            await put(saver, "t")
    assert [(1,)] == await query(refusing_database, "SELECT last_value FROM attempts")
    assert [] == await query(refusing_database, "SELECT FROM checkpoint_blobs")


async def test_many_writes_of_one_query_prepare_one_statement(lghard_database):
    """Each prepared statement takes memory of the server for as long as the connection lives."""
    writes = [("messages", number) for number in range(1000)]
    alone = open_checkpointer(lghard_database, setup=False, max_size=1, batching=False)
    async with alone as saver:
        await saver.aput_writes(config_of("t", "1"), writes, "task")
        async with saver.conn.connection() as conn:
            found = await (await conn.execute(PREPARED)).fetchone()
    assert {"number": 1} == found
    assert [(1000,)] == await query(lghard_database, "SELECT count(*) FROM checkpoint_writes")


@pytest.mark.parametrize("prepare_threshold", [5, None])
async def test_what_libpq_refuses_leaves_no_open_pipeline(lghard_database, prepare_threshold):
    """The connection is closed, and the next borrower gets another one."""
    query = f"SELECT {', '.join(['%s'] * TOO_MANY)}"
    kwargs = {"prepare_threshold": prepare_threshold}
    async with open_pool(lghard_database, max_size=1, kwargs=kwargs) as pool:
        async with pool.connection() as conn:
            with pytest.raises(StatementRefusedError, match="number of parameters"):
                await send(conn, [Statement(query, range(TOO_MANY))])
            assert conn.closed
        async with pool.connection() as conn:
            found = await (await conn.execute("SELECT 1 AS one")).fetchone()
    assert {"one": 1} == found


async def test_the_times_of_a_channel_are_kept_once(lghard_database):
    """However often, and in whatever numbers, a graph writes to it."""
    async with open_checkpointer(lghard_database, setup=False) as saver:
        for number in range(1, 20):
            writes = [("__pregel_tasks", value) for value in range(number)]
            await saver.aput_writes(config_of("t", "1"), writes, f"task {number}")
        assert [frozenset({"__pregel_tasks"})] == list(saver._serialize._seconds)


async def test_an_error_is_its_own_operations_alone(lghard_database):
    """Of operations at the same time, the one that fails hears so and leaves nothing."""
    texts = {"good": "a", "bad": "a\x00b", "better": "b", "best": "c"}
    async with open_checkpointer(lghard_database, setup=False) as saver:
        writing = (put(saver, thread, text=text, blob=[1]) for thread, text in texts.items())
        results = await asyncio.gather(*writing, return_exceptions=True)
        failed = [isinstance(result, psycopg.errors.UntranslatableCharacter) for result in results]
        assert [False, True, False, False] == failed
        assert saver.conn.snapshot().evictions == {}
    for table in ("checkpoints", "checkpoint_blobs"):
        found = await query(lghard_database, f"SELECT thread_id FROM {table} ORDER BY thread_id")
        assert [("best",), ("better",), ("good",)] == found


ROWS = """
SELECT number, number::text || 'ä' AS text, '{"a": [1, null]}'::jsonb AS json, now() AS time,
    NULL AS nothing, ARRAY['x', 'y'] AS list
FROM generate_series(1, %s) AS number
"""


@pytest.mark.parametrize("prepare", [True, False])
async def test_rows_are_as_psycopgs(lghard_empty_database, prepare):
    """Those of each statement, whichever types they have; none for a statement without any."""
    async with open_pool(lghard_empty_database) as pool, pool.connection() as conn:
        numbers = [Statement(ROWS, [number], prepare=prepare) for number in (3, 0, 1)]
        table = Statement("CREATE TEMPORARY TABLE t (x int)", [], prepare=prepare)
        three, none, one, empty = await fetch(conn, [*numbers, table])
        expected = await (await conn.execute(ROWS, [3], binary=True)).fetchall()
    for row in expected:
        row["time"] = three[0]["time"]
    assert (expected, [], expected[:1], []) == (three, none, one, empty)


async def test_a_statement_that_does_not_come_again_is_not_prepared(lghard_empty_database):
    """Whatever is prepared, stays so."""
    statements = [Statement(f"SELECT {number}", [], prepare=number % 2 == 0) for number in range(6)]
    async with open_pool(lghard_empty_database) as pool, pool.connection() as conn:
        await send(conn, statements)
        found = await (await conn.execute(PREPARED)).fetchone()
    assert {"number": 3} == found


async def test_a_failure_takes_no_prepared_statement_from_others(lghard_empty_database):
    """What was to prepare it fails before it gets there, and so does whoever is next to do so."""
    first, second, third = (Statement(query, []) for query in ("SELECT 1/0", "SELECT 2/0", TOP))
    async with open_pool(lghard_empty_database) as pool, pool.connection() as conn:
        await send(conn, [Statement("SELECT 0", [])])
        segments = [
            Segment(each) for each in ([first, second, third], [second, third], [third], [third])
        ]
        await send_segments(conn, [[segment] for segment in segments])
        failed = [type(segment.error) for segment in segments]
        assert [psycopg.errors.DivisionByZero] * 2 + [type(None)] * 2 == failed
        assert [{"top": 3}] == rows_of(conn, segments[-1].results[-1])
        assert {"number": 2} == await (await conn.execute(PREPARED)).fetchone()
        await send(conn, [third])
        assert {"number": 3} == await (await conn.execute(PREPARED)).fetchone()


async def test_what_is_prepared_behind_a_statement_that_is_gone(lghard_empty_database):
    """Each transaction is done all the same, and the connection goes on."""
    known, new = Statement("SELECT 1 AS number", []), Statement("SELECT 2 AS number", [])
    async with open_pool(lghard_empty_database) as pool, pool.connection() as conn:
        await send(conn, [known])
        await conn.execute("DEALLOCATE ALL")
        segments = [Segment([known]), Segment([new])]
        await send_segments(conn, [[segment] for segment in segments])
        rows = [rows_of(conn, segment.results[-1]) for segment in segments]
        assert [[{"number": 1}], [{"number": 2}]] == rows
        assert [[{"number": 2}]] == await fetch(conn, [new])


READY = 6
"""Bytes of the message in which the server says that a transaction is over."""


async def test_an_error_of_one_operation_is_not_that_of_a_lost_connection(
    lghard_postgres, lghard_database
):
    """What was lost behind it is lost, and would be done by another attempt."""
    good, bad = Statement("SELECT 1", [], prepare=False), Statement("SELECT 1/0", [], prepare=False)
    async with (
        FaultProxy(lghard_postgres.host, lghard_postgres.port) as proxy,
        open_pool(proxy.conninfo(lghard_database), max_size=1) as pool,
        pool.connection() as conn,
    ):
        before = proxy.bytes_down
        await send_segments(conn, [[Segment([bad])]])
        proxy.cut_after(proxy.bytes_down - before - READY, reset=False)
        segments = [Segment([bad]), Segment([good])]
        with pytest.raises(psycopg.OperationalError) as caught:
            await send_segments(conn, [segments])
    assert is_transient(caught.value)
    assert isinstance(segments[0].error, psycopg.errors.DivisionByZero)


TOP = "SELECT 3 AS top"
