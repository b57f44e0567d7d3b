"""Folders whose processes never outlive the test run, not even when it is killed.

A `with` block cleans up after an exception, but nothing in a process cleans up after `SIGKILL`, and
process groups do not help with Postgres: every backend leads a session of its own. So a small
second process watches the first one. While the test process lives, it does nothing; when the test
process is gone, it ends every process that was registered under the folder, with all their
children, and removes the folder.

    with reaped_directory("my-server-") as directory:
        process = directory.popen([sys.executable, "-m", "http.server", "0"])
        ...
    # here, and after a SIGKILL of this process: no process, no folder

This file is also the program of that second process. It runs by its path, not with `python -m`,
so that it loads neither `lghard` nor `lghard.testing`: it needs the standard library and psutil.
"""

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple, TypedDict

try:
    import psutil  # type: ignore[import-untyped, unused-ignore]
except ModuleNotFoundError as error:
    error.add_note("lghard.testing needs its extra: pip install 'lghard[testing]'")
    raise

_VANISHED = (psutil.Error, OSError)
"""What psutil raises about a process that ends while it is looked at; OSError is an oversight."""

__all__ = ["ReapedDirectory", "reaped_directory"]

_REGISTER = ".reaper.jsonl"
_STDERR = ".reaper.log"
_DONE = b"done"
_DEAF = 'trap "" HUP INT QUIT TERM; exec "$@"'
"""Whoever stops a test run with a signal to everything must not stop its clean-up. Ignored signals
stay ignored over an exec, so there is not even a moment in which the signal would do harm."""
_WATCH_INTERVAL = 0.2
_POLL_INTERVAL = 0.01
_ATTEMPTS = 3
_ORPHANS_GRACE = 1.0
_LAST_WORD = 30.0
"""Seconds for a process to vanish after SIGKILL, and for its folder to become removable."""
_CLOCK_TOLERANCE = 2.0
"""psutil derives a process's creation time from the wall clock, which NTP may move meanwhile."""


class ReapedDirectory:
    """A temporary folder and the processes that belong to it; made by `reaped_directory`.

    Attributes:
        path: The folder. It exists until the `with` block of `reaped_directory` ends.
    """

    def __init__(self, path: Path, grace: float) -> None:
        self.path = path
        self._grace = grace
        self._owner = os.getpid()
        self._children: list[subprocess.Popen[bytes]] = []
        self._reaper = _start_reaper(path, grace)

    def popen(
        self,
        args: Sequence[str | Path],
        *,
        stop_signal: int = signal.SIGTERM,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[bytes] | None = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = subprocess.DEVNULL,
        stderr: int | IO[bytes] | None = subprocess.DEVNULL,
        user: int | None = None,
        group: int | None = None,
        extra_groups: Iterable[int] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a process that ends with this folder.

        It runs in a session of its own, so a Ctrl-C in the terminal does not reach it. There is no
        gap before it is registered: what was started from here and works inside the folder is
        found even if this process is killed in the middle of starting it.

        Args:
            args: The program and its arguments.
            stop_signal: What asks this program to stop. `SIGKILL` follows after the grace time.
            cwd: Its working directory; the folder itself unless told.
            env: Its whole environment; this process's unless told.
            stdin: As in `subprocess.Popen`, but closed unless told.
            stdout: As in `subprocess.Popen`, but discarded unless told.
            stderr: As in `subprocess.Popen`, but discarded unless told.
            user: As in `subprocess.Popen`.
            group: As in `subprocess.Popen`.
            extra_groups: As in `subprocess.Popen`.

        Returns:
            The process. It need not be waited for: the end of the folder does.

        Raises:
            OSError: The program cannot be started.

        Example:
            ```python
            process = directory.popen([sys.executable, "server.py"], stop_signal=signal.SIGINT)
            ```
        """
        program = shutil.which(args[0]) or args[0]
        self._write({"program": os.path.realpath(program)})
        process = subprocess.Popen(  # noqa: S603 - to start what it is told is its purpose
            [str(arg) for arg in args],
            cwd=self.path if cwd is None else cwd,
            env=env,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            user=user,
            group=group,
            extra_groups=extra_groups,
            start_new_session=True,
        )
        self._children.append(process)
        self.register(process.pid, stop_signal=stop_signal)
        return process

    def register(self, pid: int, *, stop_signal: int = signal.SIGTERM) -> None:
        """Make a process that somebody else started end with this folder, and all its children.

        Its creation time is kept with its pid, so that a later process with the same pid is safe.

        Args:
            pid: A living process. One that has ended already is ignored.
            stop_signal: What asks this program to stop. `SIGKILL` follows after the grace time.

        Example:
            ```python
            directory.register(int(pid_file.read_text()))
            ```
        """
        with suppress(*_VANISHED):
            created = psutil.Process(pid).create_time()
            self._write({"pid": pid, "created": created, "stop_signal": int(stop_signal)})

    @property
    def owned(self) -> bool:
        """Whether this process made the folder; a forked copy of that process did not.

        A forked child that unwinds passes the clean-up of every block it was forked in, and must
        leave alone what its parent still uses.
        """
        return os.getpid() == self._owner

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """End one process and all its children, frozen ones too, and wait until they are gone.

        In a forked copy of the process that made the folder, it does nothing.

        Args:
            process: What `popen` returned. One that has ended already is only waited for.

        Example:
            ```python
            directory.end(process)
            ```
        """
        if not self.owned:
            return
        entries = [entry for entry in _registered(self.path) if entry.process.pid == process.pid]
        _end(lambda: _with_children(entries), entries, self._grace)
        process.wait(_LAST_WORD)

    def _write(self, line: "_Line") -> None:
        if self._reaper.poll() is not None:
            raise RuntimeError(
                f"the process that guards {self.path} ended with code {self._reaper.returncode}:"
                f" {(self.path / _STDERR).read_text(errors='replace')[-2000:]}"
            )
        # One write in append mode: a reader sees whole lines, except perhaps the last.
        with (self.path / _REGISTER).open("a") as register:
            register.write(json.dumps(line) + "\n")

    def _close(self) -> None:
        if not self.owned:
            return
        try:
            _clear(self.path, self._grace)
            for child in self._children:
                child.wait(_LAST_WORD)
        except BaseException:  # a cancellation or an interrupt above all
            self._dismiss(b"")  # without the word, the reaper takes over
            raise
        self._dismiss(_DONE)

    def _dismiss(self, word: bytes) -> None:
        assert self._reaper.stdin is not None
        with self._reaper.stdin as stdin, suppress(BrokenPipeError):
            stdin.write(word)
        self._reaper.wait()


@contextmanager
def reaped_directory(
    prefix: str = "lghard-", *, parent: str | Path | None = None, grace: float = 5.0
) -> Iterator[ReapedDirectory]:
    """Make a temporary folder, and remove it with every process that was started in it.

    It protects the machine from what a test run leaves behind when it is killed: a watching process
    does the same as the end of the `with` block, as soon as this process is gone. Processes are
    continued if they are frozen, asked to stop, and killed once the grace time is over. POSIX only.

    Args:
        prefix: The beginning of the folder's name.
        parent: Where to make the folder; the system's temporary folder unless told.
        grace: Seconds between asking the processes to stop and killing them.

    Yields:
        The folder: `path`, `popen(...)`, `register(pid)` and `end(process)`.

    Raises:
        OSError: At the end, when the folder cannot be removed.

    Example:
        ```python
        with reaped_directory("my-server-") as directory:
            process = directory.popen(["my-server", "--dir", directory.path])
        ```
    """
    import tempfile  # noqa: PLC0415 - not needed by the watching process, which must start fast

    path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        directory = ReapedDirectory(path, grace)
    except BaseException:  # nobody watches over the folder yet
        shutil.rmtree(path)
        raise
    try:
        yield directory
    finally:
        directory._close()


def _start_reaper(path: Path, grace: float) -> subprocess.Popen[bytes]:
    # -P: this file's folder must not become an import path; it has modules of common names.
    program = [sys.executable, "-P", "-W", "ignore", __file__, str(path), str(os.getpid())]
    with (path / _STDERR).open("wb") as stderr:
        return subprocess.Popen(  # noqa: S603
            ["/bin/sh", "-c", _DEAF, "sh", *program, str(grace)],
            bufsize=0,
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )


class _Line(TypedDict, total=False):
    program: str
    pid: int
    created: float
    stop_signal: int


class _Entry(NamedTuple):
    process: psutil.Process
    stop_signal: int


def _read(path: Path) -> Iterator[_Line]:
    with suppress(FileNotFoundError), (path / _REGISTER).open() as register:
        for line in register:
            with suppress(json.JSONDecodeError):  # the last line of a writer that was killed
                yield json.loads(line)


def _registered(path: Path) -> list[_Entry]:
    """Return the registered processes that still exist and are still the same."""
    entries = []
    for entry in _read(path):
        with suppress(*_VANISHED, KeyError):
            process = psutil.Process(entry["pid"])
            moved = abs(process.create_time() - entry["created"])
            if moved < _CLOCK_TOLERANCE and process.pid != os.getpid():
                entries.append(_Entry(process, entry["stop_signal"]))
    return entries


def _with_children(entries: Iterable[_Entry]) -> set[psutil.Process]:
    processes = set()
    for entry in entries:
        with suppress(*_VANISHED):
            processes |= {entry.process, *entry.process.children(recursive=True)}
    return processes


def _strays(path: Path) -> set[psutil.Process]:
    """Return processes that work in the folder but whose registered parent is gone.

    That is a backend whose postmaster was killed while the backend was frozen, and a process whose
    starter was killed before it could register it. A person's shell in the folder is neither.
    """
    programs = {entry["program"] for entry in _read(path) if "program" in entry}
    folder = path.resolve()
    strays = set()
    for process in psutil.process_iter():
        with suppress(*_VANISHED):
            if process.exe() in programs and Path(process.cwd()).is_relative_to(folder):
                strays.add(process)
    return strays - {psutil.Process(), *_ancestors(psutil.Process())}


def _ancestors(process: psutil.Process) -> set[psutil.Process]:
    # Seen from the reaper, the first of them is just about to vanish.
    try:
        return set(process.parents())
    except _VANISHED:
        return set()


def _alive(process: psutil.Process) -> bool:
    # A zombie only waits for its parent, which in a container may be one that never waits.
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except _VANISHED:
        return False


def _signal(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        with suppress(*_VANISHED):
            process.send_signal(number)


def _poll(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_INTERVAL)
    return True


def _end(find: Callable[[], set[psutil.Process]], entries: list[_Entry], grace: float) -> None:
    processes = find()
    _signal(processes, signal.SIGCONT)
    for entry in entries:
        _signal([entry.process], entry.stop_signal)
    _poll(lambda: not any(_alive(entry.process) for entry in entries), grace)
    # Children that only served their parent are about to end by themselves, in good order.
    _poll(lambda: not any(map(_alive, processes)), min(grace, _ORPHANS_GRACE))

    def killed() -> bool:
        # Once more each time: children appear while their parents are being killed.
        processes.update(find())
        remaining = [process for process in processes if _alive(process)]
        _signal(remaining, signal.SIGKILL)
        return not remaining

    _poll(killed, _LAST_WORD)


def _remove_shared_memory(path: Path) -> None:
    """Remove the System V segments whose creator had no chance to do it before it was killed."""
    births = {entry["pid"]: entry["created"] for entry in _read(path) if "pid" in entry}
    with suppress(FileNotFoundError), Path("/proc/sysvipc/shm").open() as table:
        names = next(table).split()
        for line in table:
            row = dict(zip(names, map(int, line.split()), strict=False))
            born = births.get(row["cpid"])
            if row["nattch"] == 0 and born and born <= row["ctime"] + _CLOCK_TOLERANCE:
                ctypes.CDLL(None).shmctl(row["shmid"], 0, None)  # 0 is IPC_RMID


def _clear(path: Path, grace: float) -> None:
    entries = _registered(path)
    _end(lambda: _with_children(entries) | _strays(path), entries, grace)
    _remove_shared_memory(path)

    def removed() -> bool:
        shutil.rmtree(path, ignore_errors=True)
        return not path.exists()

    if not _poll(removed, _LAST_WORD):
        shutil.rmtree(path)  # says what it is that cannot be removed


def _watch(parent: int) -> bool:
    """Wait for the parent's end; return whether it left its processes behind.

    The pipe alone is no proof that the parent lives: a child it forked may hold the other end.
    """
    while os.getppid() == parent:
        if select.select([0], [], [], _WATCH_INTERVAL)[0]:
            return os.read(0, len(_DONE)) != _DONE
    return True


def _main(path: str, parent: str, grace: str) -> None:
    if not _watch(int(parent)):
        return
    for _ in range(_ATTEMPTS):
        try:
            _clear(Path(path), float(grace))
        except Exception:  # whatever it was: nobody else is left to do it
            traceback.print_exc()
        else:
            break


if __name__ == "__main__":
    _main(*sys.argv[1:])
