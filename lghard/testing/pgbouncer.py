"""A real PgBouncer in front of a real Postgres, because a pooler changes what a connection is."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lghard.testing.binaries import server_account, temporary_parent
from lghard.testing.cluster import poll
from lghard.testing.postgres import TemporaryPostgres
from lghard.testing.proxy.fault_proxy import LOOPBACK, Endpoint
from lghard.testing.reaper import ReapedDirectory, reaped_directory

__all__ = ["PgBouncerNotFoundError", "TemporaryPgBouncer", "temporary_pgbouncer"]

_TIMEOUT = 30.0
"""Seconds for PgBouncer to start or to stop."""

_SETTINGS = {
    "listen_addr": LOOPBACK,
    "unix_socket_dir": "",
    "auth_type": "trust",
    "pool_mode": "transaction",
    "default_pool_size": "20",
    "max_client_conn": "500",
    # Without this it refuses clients that name options it does not track, as libpq's do.
    "ignore_startup_parameters": "extra_float_digits,options",
}


class PgBouncerNotFoundError(RuntimeError):
    """This machine has no PgBouncer; the message says how to get it."""


class TemporaryPgBouncer(Endpoint):
    """A running PgBouncer; made by `temporary_pgbouncer`.

    Attributes:
        host: Where it listens.
        port: Its port, which stays the same over a restart.
    """

    def __init__(self, directory: ReapedDirectory, program: str, port: int) -> None:
        self.host = LOOPBACK
        self.port = port
        self._directory = directory
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        state = "running" if self._process else "stopped"
        return f"<TemporaryPgBouncer on port {self.port}: {state}>"

    def start(self) -> None:
        """Start it, and return once it accepts connections."""
        user, group = server_account() or (None, None)
        with self._log.open("ab") as output:
            self._process = self._directory.popen(
                [self._program, self._directory.path / "pgbouncer.ini"],
                stdout=output,
                stderr=subprocess.STDOUT,
                user=user,
                group=group,
                extra_groups=None if user is None else [],
            )
        if not poll(self._ready, time.monotonic() + _TIMEOUT):
            raise TimeoutError(f"PgBouncer does not accept connections: {self.log()[-2000:]}")

    def stop(self) -> None:
        """End it; every connection through it is lost."""
        if self._process is not None:
            self._directory.end(self._process)
            self._process = None

    def restart(self) -> None:
        """Stop and start it, as for an upgrade; every connection through it is lost."""
        self.stop()
        self.start()

    def log(self) -> str:
        """Everything it has logged so far."""
        return self._log.read_text(errors="replace")

    @property
    def _log(self) -> Path:
        return self._directory.path / "pgbouncer.log"

    def _ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"PgBouncer ended: {self.log()[-2000:]}")
        with socket.socket() as client:
            return client.connect_ex((self.host, self.port)) == 0


@contextmanager
def temporary_pgbouncer(
    server: TemporaryPostgres, *, settings: Mapping[str, str] | None = None
) -> Iterator[TemporaryPgBouncer]:
    """Run a PgBouncer in front of `server`, in transaction mode unless `settings` say otherwise.

    Args:
        server: The Postgres that it pools the connections of.
        settings: Options of its configuration file, such as `{"pool_mode": "session"}`.

    Yields:
        `conninfo(conninfo)` leads to a database of `server` through the pooler; `restart()` loses
        all connections.

    Raises:
        PgBouncerNotFoundError: There is no `pgbouncer` on this machine.

    Example:
        ```python
        with temporary_postgres() as server, temporary_pgbouncer(server) as pooler:
            psycopg.connect(pooler.conninfo(server.conninfo), prepare_threshold=None)
        ```
    """
    # Debian keeps it where ordinary users have no PATH to.
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        raise PgBouncerNotFoundError("there is no pgbouncer: apt-get install pgbouncer")
    with reaped_directory("lghard-pgbouncer-", parent=temporary_parent(server_account())) as where:
        pooler = TemporaryPgBouncer(where, program, _free_port())
        _configure(
            where.path, server, {**_SETTINGS, **(settings or {}), "listen_port": str(pooler.port)}
        )
        pooler.start()
        yield pooler


def _configure(path: Path, server: TemporaryPostgres, settings: Mapping[str, str]) -> None:
    path.chmod(0o711)
    users = path / "users.txt"
    users.write_text('"postgres" ""\n')
    lines = [f"{name} = {value}" for name, value in settings.items()]
    (path / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={server.host} port={server.port}\n"
        f"[pgbouncer]\nauth_file = {users}\n" + "\n".join(lines) + "\n"
    )


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind((LOOPBACK, 0))
        port: int = sock.getsockname()[1]
        return port
