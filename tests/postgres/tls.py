"""A Postgres server that is spoken to over TLS."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from lghard.testing import TemporaryPostgres, temporary_postgres
from lghard.testing.fixtures import require_or_skip


@contextmanager
def temporary_tls_postgres() -> Iterator[TemporaryPostgres]:
    """A server that uses TLS for every connection that asks for it."""
    with temporary_postgres(binaries=_binaries_with_tls()) as server:
        _enable_tls(server)
        yield server


def _binaries_with_tls() -> Path:
    """The programs of a Postgres that was built with OpenSSL; that of the wheel is not."""
    folders = [*Path("/usr/lib/postgresql").glob("*/bin"), *map(Path, os.get_exec_path())]
    found = next(filter(_has_tls, folders), None)
    return found or require_or_skip("there is no Postgres with TLS: apt-get install postgresql")


def _has_tls(folder: Path) -> bool:
    config = folder / "pg_config"
    if not (folder / "initdb").exists() or not config.exists():
        return False
    answer = subprocess.run([config, "--configure"], capture_output=True, check=True)
    return b"openssl" in answer.stdout


def _enable_tls(server: TemporaryPostgres) -> None:
    """Give a server a certificate, and have it used."""
    openssl = shutil.which("openssl")
    if openssl is None:
        require_or_skip("there is no openssl to make a certificate with: apt-get install openssl")
    directory = server.directory / "data"
    files = {"-keyout": directory / "server.key", "-out": directory / "server.crt"}
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    arguments = [str(argument) for option in files.items() for argument in option]
    subprocess.run([*command, *arguments], check=True, capture_output=True)
    for path in files.values():
        # The server insists that it owns its key, and that nobody else can read it.
        os.chown(path, directory.stat().st_uid, directory.stat().st_gid)
        path.chmod(0o600)
    with psycopg.connect(server.conninfo, autocommit=True) as admin:
        admin.execute("ALTER SYSTEM SET ssl = on")
    server.restart()
