"""The pooler of the test kit is a real one."""

import psycopg
import pytest

from lghard.testing import (
    PgBouncerNotFoundError,
    TemporaryPgBouncer,
    TemporaryPostgres,
    temporary_pgbouncer,
)


def test_it_pools_transactions(
    lghard_pgbouncer: TemporaryPgBouncer, lghard_postgres: TemporaryPostgres
) -> None:
    """Its clients see process ids that no backend has."""
    conninfo = lghard_pgbouncer.conninfo(lghard_postgres.conninfo)
    with psycopg.connect(conninfo, autocommit=True, prepare_threshold=None) as conn:
        row = conn.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        assert row[0] != conn.pgconn.backend_pid


def test_a_restart_loses_every_connection(lghard_postgres: TemporaryPostgres) -> None:
    """It listens on the same port again."""
    with temporary_pgbouncer(lghard_postgres, settings={"pool_mode": "session"}) as pooler:
        conninfo = pooler.conninfo(lghard_postgres.conninfo)
        with psycopg.connect(conninfo) as conn:
            pooler.restart()
            with pytest.raises(psycopg.OperationalError):
                conn.execute("SELECT 1")
        with psycopg.connect(conninfo) as conn:
            assert (1,) == conn.execute("SELECT 1").fetchone()
        assert "running" in repr(pooler)


def test_what_it_cannot_start_is_told(lghard_postgres: TemporaryPostgres) -> None:
    """A wrong setting is an error with PgBouncer's own words."""
    with (
        pytest.raises(RuntimeError, match="pool_mode"),
        temporary_pgbouncer(lghard_postgres, settings={"pool_mode": "nonsense"}),
    ):
        pass


def test_a_machine_without_it(
    lghard_postgres: TemporaryPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says how to get it."""
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with (
        pytest.raises(PgBouncerNotFoundError, match="apt-get install pgbouncer"),
        temporary_pgbouncer(lghard_postgres),
    ):
        pass
