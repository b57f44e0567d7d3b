"""Behind a transaction pooler: no name and no setting may reach another client."""

import asyncio
import logging
import sys
from contextlib import AsyncExitStack, asynccontextmanager

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from lghard import open_checkpointer, open_pool
from lghard.postgres.statements import Segment, Statement, send_segments
from lghard.testing import FaultProxy, temporary_pgbouncer
from tests.postgres.checkpoints import config_of, eventually, put, query, waiting_backend

OPERATIONS = 200

# A process of its own: it writes the value of each line it reads, as an interrupt (an UPSERT) or
# as a message (DO NOTHING), and then says so.
REPLICA = """
import asyncio, sys
from lghard import open_checkpointer

async def main(conninfo):
    config = {"configurable": {"thread_id": "t", "checkpoint_ns": "", "checkpoint_id": "1"}}
    kwargs = {"prepare_threshold": 5}
    async with open_checkpointer(conninfo, setup=False, max_size=1, kwargs=kwargs) as saver:
        print("ready", flush=True)
        for line in sys.stdin:
            channel, value = line.split()
            await saver.aput_writes(config, [(channel, value)], "task")
            print("written", flush=True)

asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture
def pooled(lghard_database, lghard_pgbouncer):
    """The way to a database of its own, through PgBouncer."""
    return lghard_pgbouncer.conninfo(lghard_database)


async def failures(saver):
    """The errors of that many operations at once, reads and writes in turn."""
    results = await asyncio.gather(
        *(
            operation
            for number in range(OPERATIONS // 2)
            for operation in (put(saver, f"t{number}"), saver.aget_tuple(config_of("t")))
        ),
        return_exceptions=True,
    )
    return [result for result in results if isinstance(result, Exception)]


async def test_upstream_fails_behind_a_pooler(pooled):
    """The control: its prepared statements meet each other on the server's connections."""
    kwargs = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with AsyncConnectionPool(pooled, min_size=4, kwargs=kwargs, open=False) as pool:
        await pool.wait()
        errors = await failures(AsyncPostgresSaver(pool))
    assert {psycopg.errors.DuplicatePreparedStatement} <= set(map(type, errors))


@pytest.mark.usefixtures("batching")
async def test_a_pooler_needs_no_setting(pooled):
    """All operations succeed with nothing but the conninfo."""
    async with open_checkpointer(pooled) as saver:
        assert [] == await failures(saver)
        assert OPERATIONS // 2 == len([found async for found in saver.alist(None)])


async def test_a_pooler_is_found_out(pooled, lghard_database):
    """The process id of the handshake is not the server's own."""
    async with open_pool(pooled) as behind, open_pool(lghard_database) as direct:
        assert [True, False] == [behind.pooler, direct.pooler]


@pytest.mark.parametrize(("pooler", "expected"), [("transaction", True), ("none", False)])
async def test_a_pooler_can_be_told(lghard_database, pooler, expected):
    """Who knows it better is believed, and what follows is done."""
    async with open_pool(lghard_database, pooler=pooler) as pool, pool.connection() as conn:
        assert expected is pool.pooler
        assert expected is (conn.prepare_threshold is None)


@pytest.mark.usefixtures("batching")
async def test_a_restarted_pooler(lghard_postgres, lghard_database):
    """Idle connections are replaced, and an operation waits while it is away; upstream's fails."""
    with temporary_pgbouncer(lghard_postgres) as pooler:
        conninfo = pooler.conninfo(lghard_database)
        async with open_checkpointer(conninfo, setup=False) as saver, upstream(conninfo) as theirs:
            await put(saver, "t")
            await put(theirs, "t")
            await asyncio.to_thread(pooler.restart)
            with pytest.raises(psycopg.OperationalError):
                await put(theirs, "t", 2)
            await put(saver, "t", 2)
            await asyncio.to_thread(pooler.stop)
            reading = asyncio.create_task(saver.aget_tuple(config_of("t")))
            await eventually(lambda: saver.conn._reconnects.error)
            await asyncio.to_thread(pooler.start)
            assert await reading


@asynccontextmanager
async def upstream(conninfo):
    """Upstream's checkpointer as it has to be behind a pooler: it prepares nothing."""
    kwargs = {"autocommit": True, "prepare_threshold": None, "row_factory": dict_row}
    async with AsyncConnectionPool(conninfo, min_size=1, kwargs=kwargs, open=False) as pool:
        await pool.wait()
        yield AsyncPostgresSaver(pool)


async def timeout_of(pool):
    async with pool.connection() as conn:
        return (await (await conn.execute("SHOW statement_timeout")).fetchone())[
            "statement_timeout"
        ]


async def test_upstreams_settings_reach_strangers_behind_a_pooler(pooled):
    """The control: what one client sets stays with the server's connection."""

    async def configure(conn):
        await conn.execute("SET statement_timeout = '7s'")

    kwargs = {"autocommit": True, "row_factory": dict_row}
    async with AsyncConnectionPool(
        pooled, min_size=1, kwargs=kwargs, configure=configure, open=False
    ) as pool:
        await pool.wait()
        async with open_pool(pooled) as stranger:
            assert "7s" == await timeout_of(stranger)


async def test_settings_of_the_session_are_set(lghard_database, caplog):
    """On every connection, in whatever unit the server shows them."""
    async with open_pool(lghard_database, statement_timeout=7.0) as pool:
        assert "7s" == await timeout_of(pool)
    assert [] == messages(caplog)


async def test_settings_of_the_session_reach_nobody_behind_a_pooler(pooled, caplog):
    """They would stay with the server's connection, so they are not set, and a line says that."""
    async with open_pool(pooled, statement_timeout=7.0) as pool:
        assert "0" == await timeout_of(pool)
    (message,) = messages(caplog)
    assert message.startswith("statement_timeout not set: behind a transaction pooler")


def messages(caplog):
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "lghard.postgres" and record.levelno >= logging.WARNING
    ]


@asynccontextmanager
async def replica(conninfo):
    """Another process with a saver of its own; call it with a channel and a value to write."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", REPLICA, conninfo),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )

    async def write(channel, value):
        process.stdin.write(f"{channel} {value}\n".encode())
        assert b"written\n" == await process.stdout.readline()

    try:
        assert b"ready\n" == await process.stdout.readline()
        yield write
    finally:
        process.stdin.close()
        await process.wait()


class Server:
    """One of the pooler's connections to the server, that nobody else may use once taken."""

    def __init__(self, conn):
        self.conn = conn
        self.pid = None

    async def take(self):
        """Take the one that is free."""
        cursor = await self.conn.execute("SELECT pg_backend_pid()")
        (pid,) = await cursor.fetchone()
        assert self.pid in (None, pid)
        self.pid = pid

    async def give_back(self):
        await self.conn.rollback()


async def test_no_process_runs_a_statement_of_another(lghard_postgres, lghard_database):
    """Not even where preparing is forced: an UPSERT would become a DO NOTHING without a word."""
    settings = {"default_pool_size": "2"}
    with temporary_pgbouncer(lghard_postgres, settings=settings) as pooler:
        conninfo = pooler.conninfo(lghard_database)
        async with AsyncExitStack() as stack:
            first, second = await asyncio.gather(
                *(stack.enter_async_context(replica(conninfo)) for _ in range(2))
            )
            x, y = [
                Server(
                    await stack.enter_async_context(
                        await AsyncConnection.connect(conninfo, prepare_threshold=None)
                    )
                )
                for _ in range(2)
            ]
            await x.take()
            await first("messages", "prepared-on-y")
            await y.take()
            await x.give_back()
            await second("__interrupt__", "prepared-on-x")
            await x.take()
            await y.give_back()
            await second("__interrupt__", "on-y")
            await x.give_back()
    async with open_checkpointer(lghard_database, setup=False) as saver:
        (row,) = await query(
            lghard_database,
            "SELECT type, blob FROM checkpoint_writes WHERE channel = '__interrupt__'",
        )
        assert "on-y" == saver.serde.loads_typed(row)


# Somebody leaves between two answers

THEIRS = ("SELECT 'theirs'", "SELECT pg_advisory_xact_lock(1)", "SELECT 'theirs, too'")


async def answers_after_another(lghard_postgres, database, *, prepare_threshold):
    """What a client hears whose session was another's, who left after the first of its answers."""
    async with AsyncExitStack() as stack:
        back = await stack.enter_async_context(
            FaultProxy(lghard_postgres.host, lghard_postgres.port)
        )
        pooler = stack.enter_context(temporary_pgbouncer(back, settings={"default_pool_size": "1"}))
        front = await stack.enter_async_context(FaultProxy(pooler.host, pooler.port))
        locker = await stack.enter_async_context(await AsyncConnection.connect(database))
        await locker.execute("SELECT pg_advisory_xact_lock(1)")

        segments = [Segment([Statement(query, [], prepare=False)]) for query in THEIRS]
        conn = await AsyncConnection.connect(
            front.conninfo(database), autocommit=True, prepare_threshold=prepare_threshold
        )
        sending = asyncio.create_task(send_segments(conn, [[each] for each in segments]))
        await waiting_backend(database)
        await eventually(lambda: segments[0].is_done)
        front.reset()
        with pytest.raises(psycopg.OperationalError):
            await sending

        back.hold_requests(1, containing=b"mine")
        asking = asyncio.create_task(query(pooler.conninfo(database), "SELECT 'mine'"))
        await eventually(lambda: back.held)
        await locker.rollback()
        back.release()
        return await asking


async def test_two_syncs_in_a_message_answer_the_next_client(lghard_postgres, lghard_database):
    """The control, in which nobody knows of the pooler: one reads what another has asked."""
    answers = await answers_after_another(lghard_postgres, lghard_database, prepare_threshold=5)
    assert [("mine",)] != answers


async def test_nobody_hears_the_answers_of_another(lghard_postgres, lghard_database):
    """What lghard has sent is answered, or ends with the session."""
    answers = await answers_after_another(lghard_postgres, lghard_database, prepare_threshold=None)
    assert [("mine",)] == answers
