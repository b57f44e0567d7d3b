"""Thread ids as Postgres, a checkpointer and a graph see them."""

import psycopg
import pytest
from langgraph.checkpoint.postgres import PostgresSaver

from lghard import ThreadNamespace, open_checkpointer
from lghard.threads.parts import MAX_LENGTH
from tests.threads.graphs import build_nested
from tests.threads.hostile import HOSTILE

threads = ThreadNamespace("tenant", "user", "session")


@pytest.fixture
def conn(lghard_database):
    with psycopg.connect(lghard_database, autocommit=True) as conn:
        yield conn


@pytest.mark.parametrize("placeholder", ["%s", "%t", "%b"])
def test_psycopg_takes_it_as_text(conn, placeholder):
    """In all formats, alone and in an array; and it comes back as plain text."""
    thread_id = threads.id(tenant="a_c%", user="é", session="7")
    query = f"SELECT {placeholder}::text, {placeholder} = ANY({placeholder}::text[])"
    found = conn.execute(query, [thread_id, thread_id, [thread_id]]).fetchone()
    assert (str(thread_id), True, str) == (*found, type(found[0]))


def test_psycopg_copies_it(conn):
    """Also in COPY."""
    conn.execute("CREATE TEMPORARY TABLE mine (id text)")
    thread_id = threads.id(tenant="acme", user="ada", session="\t\\N\n")
    with conn.cursor().copy("COPY mine FROM STDIN") as copy:
        copy.write_row([thread_id])
    assert [(str(thread_id),)] == conn.execute("SELECT id FROM mine").fetchall()


def test_prefix_finds_the_tenant_and_no_other(conn):
    """The server's LIKE: hostile tenants, and those whose names begin alike."""
    tenants = [*HOSTILE.values(), "acme", "acme2", "acm", "acme:", "ACME", "%", "_", "a_c", "abc"]
    # What is canonically the same is the same tenant.
    ids = {threads.id(tenant=t, user=u, session=s) for t in tenants for u in "ab" for s in "xy"}
    conn.execute("CREATE TEMPORARY TABLE mine (id text)")
    conn.cursor().executemany("INSERT INTO mine VALUES (%s)", [[id_] for id_ in ids])
    for tenant in tenants:
        found = conn.execute(
            "SELECT id FROM mine WHERE id LIKE %s", [threads.prefix(tenant=tenant)]
        ).fetchall()
        assert {threads.id(tenant=tenant, user=u, session=s) for u in "ab" for s in "xy"} == {
            id_ for (id_,) in found
        }
        found = conn.execute(
            "SELECT id FROM mine WHERE id LIKE %s", [threads.prefix(tenant=tenant, user="a")]
        ).fetchall()
        assert {threads.id(tenant=tenant, user="a", session=s) for s in "xy"} == {
            id_ for (id_,) in found
        }


def test_order_of_sessions(conn):
    """Postgres sorts new sessions by time, too, whatever its collation."""
    sessions = [threads.new_session() for _ in range(100)]
    found = conn.execute("SELECT id FROM unnest(%s::text[]) AS id ORDER BY id DESC", [sessions])
    assert sessions[::-1] == [session for (session,) in found]


async def test_hostile_ids_are_conversations_of_their_own(lghard_database):
    """Each session remembers what was said in it, and nothing else."""
    async with open_checkpointer(lghard_database, setup=False) as saver:
        graph = build_nested(saver, "question")
        configs = {
            text: threads.config(tenant="acme", user="ada", session=text)
            for text in HOSTILE.values()
        }
        for text, config in configs.items():
            await graph.ainvoke({"log": [repr(text)]}, config)
        for text, config in configs.items():
            state = await graph.aget_state(config)
            assert [repr(text)] == state.values["log"]
            assert str(config["configurable"]["thread_id"]) == str(
                state.config["configurable"]["thread_id"]
            )


@pytest.mark.parametrize("length", [MAX_LENGTH, 2700])
def test_longest_id_fits_into_every_index(lghard_database, conn, length):
    """With subgraphs in subgraphs, and nothing that Postgres could compress.

    The control: a longer one, of whoever builds ids by hand, fails when the run is under way.
    """
    thread_id = incompressible(length)
    config = {"configurable": {"thread_id": thread_id}}
    with PostgresSaver.from_conn_string(lghard_database) as saver:
        graph = build_nested(saver, "question")
        if length > MAX_LENGTH:
            with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="maximum 2704"):
                graph.invoke({"log": []}, config)
            return
        assert threads.parse(thread_id)
        graph.invoke({"log": []}, config)
        assert 1 == len(graph.get_state(config).interrupts)
    (width,) = conn.execute("SELECT max(length(checkpoint_ns)) FROM checkpoints").fetchone()
    assert width > 70


def incompressible(length):
    """An id of a namespace, of random text."""
    session = "".join(threads.new_session().replace("-", "")[12:] for _ in range(length // 20 + 1))
    return f"acme:ada:{session}"[:length]


def test_room_for_the_rest_of_the_index(conn):
    """Beside the longest id, there are 1500 bytes for checkpoint_ns: 20 subgraphs deep."""
    query = "INSERT INTO checkpoints VALUES (%s, %s, %s, NULL, 'json', '{}', '{}')"
    longest = incompressible(MAX_LENGTH)
    conn.execute(query, [longest, incompressible(1500), threads.new_session()])
    with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="maximum 2704"):
        conn.execute(query, [longest, incompressible(1700), threads.new_session()])
