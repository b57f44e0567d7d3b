"""One database cluster: its data folder, its postmaster, and what can be done to both."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import psutil  # type: ignore[import-untyped, unused-ignore]

from lghard.testing.binaries import (
    Account,
    major_version,
    reachable_binaries,
    server_account,
    temporary_parent,
)
from lghard.testing.reaper import ReapedDirectory, reaped_directory

StopMode = Literal["smart", "fast", "immediate"]

HOST = "127.0.0.1"
_LOCALE = "C" if sys.platform == "darwin" else "C.UTF-8"
_TIMEOUT = 60.0
"""Seconds for anything a server is asked to do; on a busy machine a start takes a few."""
_POLL_INTERVAL = 0.005
_TAIL = 3000
"""Characters of a log that an error shows."""

_STATUS_LINE = 7
_READY = {"ready", "standby"}
"""What the postmaster writes there once it accepts connections."""

_SIGNALS: Mapping[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}

_SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    # Nothing here has to survive a power failure.
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "wal_level": "replica",
    "max_wal_senders": "4",
    "wal_keep_size": "128MB",
    "hot_standby": "on",
    # In the data folder, where the segments of a killed server go away with it.
    "dynamic_shared_memory_type": "mmap",
    "log_line_prefix": "%m [%p] %q%a %d ",
}


class Launcher:
    """The programs of one Postgres installation, and the folder and the user they run with."""

    def __init__(self, directory: ReapedDirectory, binaries: Path) -> None:
        self.directory = directory
        self.account: Account | None = server_account()
        self.version = major_version(binaries)
        # Others may pass through, as the server's user must, but not look around.
        directory.path.chmod(0o711)
        self.binaries = reachable_binaries(binaries, self.account, directory.path / "binaries")

    def popen(self, args: Sequence[str | Path], output: Path) -> subprocess.Popen[bytes]:
        """Start one of the programs as the server's user."""
        user, group = self.account or (None, None)
        with output.open("ab") as stream:
            return self.directory.popen(
                [self.binaries / args[0], *args[1:]],
                stop_signal=_SIGNALS["immediate"],
                env=_environment(),
                stdout=stream,
                stderr=subprocess.STDOUT,
                user=user,
                group=group,
                extra_groups=None if self.account is None else [],
            )

    def run(self, args: Sequence[str | Path], output: Path) -> None:
        """Run one of the programs to its end.

        Raises:
            RuntimeError: It failed; with the end of what it said.
        """
        process = self.popen(args, output)
        if not _ended(process):
            self.directory.end(process)
        if process.returncode != 0:
            raise RuntimeError(f"{args[0]} ended with code {process.returncode}: {_tail(output)}")

    def make_folder(self, path: Path) -> None:
        """Make a folder that belongs to the server's user."""
        path.mkdir(mode=0o700)
        if self.account is not None:
            os.chown(path, *self.account)


@contextmanager
def launcher(binaries: Path) -> Iterator[Launcher]:
    """Open a folder in which servers of this installation can run."""
    parent = temporary_parent(server_account())
    with reaped_directory("lghard-postgres-", parent=parent) as directory:
        yield Launcher(directory, binaries)


class Cluster:
    """A data folder and, while it runs, its postmaster."""

    def __init__(self, launcher: Launcher, home: Path) -> None:
        self.launcher = launcher
        self.home = home
        self._data = home / "data"
        self._log = home / "server.log"
        self._postmaster: subprocess.Popen[bytes] | None = None
        self._ever_ready = False
        home.mkdir()
        home.chmod(0o711)
        launcher.make_folder(self._data)
        self._reservation, self.port = _reserve_port()

    def initialize(self, settings: Mapping[str, str]) -> None:
        """Create an empty cluster with the settings of this module and these on top."""
        who = ["-U", "postgres", "-A", "trust"]
        what = ["-E", "UTF8", f"--locale={_LOCALE}", "--no-sync", "--no-instructions"]
        self.launcher.run(["initdb", "-D", self._data, *who, *what], self.home / "initdb.log")
        # In the file, not on the command line: there, ALTER SYSTEM could not change them.
        with (self._data / "postgresql.conf").open("a") as file:
            for name, value in {**_SETTINGS, **settings}.items():
                quoted = str(value).replace("'", "''")
                file.write(f"{name} = '{quoted}'\n")

    def clone(self, conninfo: str) -> None:
        """Create a streaming replica of a running server."""
        how = ["--write-recovery-conf", "--checkpoint=fast", "--no-sync"]
        self.launcher.run(
            ["pg_basebackup", "-d", conninfo, "-D", self._data, *how],
            self.home / "pg_basebackup.log",
        )

    def start(self) -> None:
        """Start the postmaster, and return once it accepts connections."""
        if self.running:
            return
        deadline = time.monotonic() + _TIMEOUT
        while not self._launch(deadline):
            if not self._ever_ready:
                self._move()  # nobody knows the port yet, so another one will do
            time.sleep(_POLL_INTERVAL)
        self._ever_ready = True

    def stop(self, mode: StopMode) -> None:
        """Stop the postmaster in one of its three ways, and wait until it is gone."""
        if self._postmaster is None or not self.running:
            return
        with suppress(psutil.NoSuchProcess):
            self.thaw()  # a frozen process would never hear that it shall stop
        self._postmaster.send_signal(_SIGNALS[mode])
        if not _ended(self._postmaster):
            raise TimeoutError(
                f"Postgres did not stop ({mode}) within {_TIMEOUT:.0f} s: {_tail(self._log)}"
            )

    def close(self) -> None:
        """End the server for good, and give back its port and its folder."""
        self._reservation.close()
        if not self.launcher.directory.owned:
            return
        if self._postmaster is not None:
            self.launcher.directory.end(self._postmaster)
        shutil.rmtree(self.home)

    @property
    def running(self) -> bool:
        """Whether the postmaster runs; frozen is running."""
        return self._postmaster is not None and self._postmaster.poll() is None

    @property
    def pid(self) -> int:
        """The postmaster's pid."""
        if self._postmaster is None or not self.running:
            raise RuntimeError(f"Postgres on port {self.port} is stopped and has no pid")
        return self._postmaster.pid

    @property
    def state(self) -> str:
        """One of running, frozen and stopped."""
        if not self.running:
            return "stopped"
        return "frozen" if _frozen(psutil.Process(self.pid)) else "running"

    def freeze(self) -> None:
        """Suspend the postmaster and all its children."""
        postmaster = psutil.Process(self.pid)
        _suspend(postmaster)  # first, as it then forks no more children
        for child in postmaster.children(recursive=True):
            _suspend(child)

    def thaw(self) -> None:
        """Continue every frozen process."""
        postmaster = psutil.Process(self.pid)
        for process in [*postmaster.children(recursive=True), postmaster]:
            _resume(process)

    def freeze_backend(self, pid: int) -> None:
        """Suspend one child of the postmaster."""
        _suspend(self._child(pid))

    def thaw_backend(self, pid: int) -> None:
        """Continue one child of the postmaster."""
        _resume(self._child(pid))

    def wait_until_gone(self, pids: set[int]) -> None:
        """Wait until these children have ended, except those that are frozen."""
        postmaster = psutil.Process(self.pid)

        def gone() -> bool:
            children = [child for child in postmaster.children() if child.pid in pids]
            return all(map(_frozen, children))

        if not poll(gone, time.monotonic() + _TIMEOUT):
            raise TimeoutError(f"not all of {sorted(pids)} ended within {_TIMEOUT:.0f} s")

    def log(self) -> str:
        """Return everything the server logged."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def _child(self, pid: int) -> psutil.Process:
        for child in psutil.Process(self.pid).children(recursive=True):
            if child.pid == pid:
                return child
        raise ValueError(f"{pid} is no process of the Postgres on port {self.port}")

    def _launch(self, deadline: float) -> bool:
        """Start the postmaster; return False if what it needs is still taken."""
        logged = len(self.log())
        self._postmaster = self.launcher.popen(
            ["postgres", "-D", self._data, "-p", str(self.port)], self._log
        )
        if poll(lambda: self._ready() or not self.running, deadline) and self.running:
            return True
        if not self.running and _taken(self.log()[logged:]) and time.monotonic() < deadline:
            return False
        raise RuntimeError(
            f"Postgres {self.launcher.version} did not start on port {self.port}"
            f" (exit code {self._postmaster.poll()}): {_tail(self._log)}"
        )

    def _ready(self) -> bool:
        # What pg_ctl trusts as well. Connecting says less: somebody else may answer on that port,
        # and this server refuses us when its clients have taken all its connections already.
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        assert self._postmaster is not None
        mine = lines[:1] == [str(self._postmaster.pid)]  # a killed server leaves its file behind
        return mine and len(lines) > _STATUS_LINE and lines[_STATUS_LINE].strip() in _READY

    def _move(self) -> None:
        self._reservation.close()
        self._reservation, self.port = _reserve_port()


def poll(condition: Callable[[], bool], deadline: float) -> bool:
    """Wait until the condition holds; return False if it does not by then."""
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_INTERVAL)
    return True


def _environment() -> dict[str, str]:
    # PGDATA, PGPORT, PGOPTIONS and the like are meant for somebody else's server. The messages in
    # English are for us, the fixed time zone spares initdb a search through all of them.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


def _reserve_port() -> tuple[socket.socket, int]:
    """Bind a free port.

    On Linux the socket stays bound, without listening. The server can bind the port as well, as
    both set SO_REUSEADDR; but while it is stopped, the port is no longer among those the kernel
    hands out. Otherwise a client that keeps trying to reconnect ends up connected to itself, and
    the server cannot come back.
    """
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind((HOST, 0))
    port = reservation.getsockname()[1]
    if sys.platform != "linux":
        reservation.close()  # elsewhere it would keep the server out, too
    return reservation, port


def _ended(process: subprocess.Popen[bytes]) -> bool:
    return poll(lambda: process.poll() is not None, time.monotonic() + _TIMEOUT)


def _taken(logged: str) -> bool:
    return "Address already in use" in logged or "pre-existing shared memory block" in logged


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-_TAIL:].strip() or "it said nothing"


def _frozen(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


def _resume(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.resume()


def _suspend(process: psutil.Process) -> None:
    """Suspend a process, and wait until it really stands still."""
    with suppress(psutil.NoSuchProcess):
        process.suspend()
        if not poll(lambda: _still(process), time.monotonic() + _TIMEOUT):
            raise TimeoutError(f"process {process.pid} did not stop within {_TIMEOUT:.0f} s")


def _still(process: psutil.Process) -> bool:
    # A child that has ended stays a zombie for as long as its postmaster is frozen.
    return process.status() in {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}
