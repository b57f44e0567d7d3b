"""reaped_directory: no process and no folder is left, however the test run ends."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lghard.testing.reaper import ReapedDirectory, reaped_directory

SLEEP = ["sleep", "600"]


def until(condition: Callable[[], bool], timeout: float = 20) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Say whether a process has ended, waited for or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Script:
    """A Python process that holds a folder, reports what is in it, and then waits."""

    def __init__(self, body: str) -> None:
        prelude = "import json, os, signal, subprocess, sys, threading\n"
        prelude += "from lghard.testing.reaper import reaped_directory\n"
        self.process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "error", "-c", prelude + body],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def report(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def end(self) -> tuple[int, str]:
        """Let it run to its end; return its exit code and what it complained about."""
        _, stderr = self.process.communicate(b"", timeout=20)
        return self.process.returncode, stderr.decode()


@pytest.fixture
def directory() -> Iterator[ReapedDirectory]:
    """A folder with its watching process."""
    with reaped_directory() as directory:
        yield directory


def test_the_end_of_the_block_ends_everything() -> None:
    """At the end of the block, the process has got its stop signal and the folder is gone."""
    with reaped_directory("lghard-test-") as directory:
        process = directory.popen(SLEEP, stop_signal=signal.SIGINT)
        assert directory.path.name.startswith("lghard-test-")

    assert process.returncode == -signal.SIGINT
    assert not directory.path.exists()


def test_an_exception_in_the_block_ends_everything_too() -> None:
    """The exception passes through, and nothing is left."""
    with pytest.raises(KeyError), reaped_directory() as directory:  # noqa: PT012
        process = directory.popen(SLEEP)
        raise KeyError

    assert process.returncode == -signal.SIGTERM
    assert not directory.path.exists()


def test_the_children_of_a_process_end_with_it(directory: ReapedDirectory) -> None:
    """A process is ended with its children, even those that lead a session of their own."""
    process = directory.popen(["sh", "-c", "setsid sleep 600 & wait"])
    until(lambda: len(psutil.Process(process.pid).children(recursive=True)) > 0)
    children = psutil.Process(process.pid).children(recursive=True)

    directory.end(process)

    assert all(gone(child.pid) for child in children)


def test_a_frozen_process_hears_that_it_shall_stop(directory: ReapedDirectory) -> None:
    """A frozen process is continued, so that it can act on its stop signal."""
    process = directory.popen(SLEEP)
    process.send_signal(signal.SIGSTOP)

    directory.end(process)

    assert process.returncode == -signal.SIGTERM


def test_a_process_that_ignores_its_stop_signal_is_killed() -> None:
    """After the grace time comes SIGKILL."""
    with reaped_directory(grace=0.1) as directory:
        process = directory.popen(
            ["sh", "-c", "trap '' TERM; echo ready; sleep 600; sleep 600"], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        with process.stdout as stdout:
            assert stdout.readline() == b"ready\n"

    assert process.returncode == -signal.SIGKILL


def test_a_pid_that_was_reused_is_spared() -> None:
    """A process that merely has the pid of a registered one is left alone."""
    with subprocess.Popen(SLEEP) as stranger:
        entry = {"pid": stranger.pid, "created": time.time() - 3600, "stop_signal": signal.SIGTERM}
        with (
            reaped_directory() as directory,
            (directory.path / ".reaper.jsonl").open("a") as register,
        ):
            register.write(json.dumps(entry) + "\n")

        assert stranger.poll() is None
        stranger.kill()


def test_a_missing_program_is_an_error(directory: ReapedDirectory) -> None:
    """It fails like Popen, and the folder still ends well."""
    with pytest.raises(FileNotFoundError):
        directory.popen(["/no/such/program"])


def test_nothing_starts_without_the_watching_process(directory: ReapedDirectory) -> None:
    """When the guard is gone, starting another process is refused instead of unsafe."""
    directory._reaper.kill()
    directory._reaper.wait()

    with pytest.raises(RuntimeError, match="ended with code -9"):
        directory.popen(SLEEP)


def test_it_may_be_opened_in_a_thread_that_ends() -> None:
    """The folder belongs to the process, not to the thread that opened it."""
    opened: list[Any] = []

    def open_it() -> None:
        context = reaped_directory()
        opened.extend([context, context.__enter__()])

    thread = threading.Thread(target=open_it)
    thread.start()
    thread.join()
    context, directory = opened
    process = directory.popen(SLEEP)

    assert directory._reaper.poll() is None
    assert process.poll() is None
    context.__exit__(None, None, None)
    assert not directory.path.exists()


HOLD = """
with reaped_directory() as directory:
    pids = [directory.popen(["sleep", "600"]).pid, directory._reaper.pid]
    print(json.dumps([str(directory.path), pids]), flush=True)
    sys.stdin.read()
"""


def assert_nothing_left(path: str, pids: list[int]) -> None:
    """Wait until the folder and the processes are gone."""
    until(lambda: all(map(gone, pids)))
    until(lambda: not Path(path).exists())


def test_a_normal_end_is_quiet() -> None:
    """No resource warning, no complaint, nothing left."""
    script = Script(HOLD)
    path, pids = script.report()

    assert script.end() == (0, "")
    assert_nothing_left(path, pids)


def test_sigkill_leaves_nothing() -> None:
    """When the owner is killed, the watching process ends a frozen child, the folder and itself."""
    script = Script(HOLD)
    path, pids = script.report()
    os.kill(pids[0], signal.SIGSTOP)

    script.process.kill()
    script.end()

    assert_nothing_left(path, pids)


def test_many_that_are_killed_at_once_leave_nothing() -> None:
    """Processes that vanish while others look around do not disturb those that clean up."""
    scripts = [Script(HOLD) for _ in range(8)]
    reports = [script.report() for script in scripts]

    for script in scripts:
        script.process.kill()
    for script in scripts:
        script.end()

    for path, pids in reports:
        assert_nothing_left(path, pids)


def test_a_signal_to_everything_leaves_nothing() -> None:
    """What asks the whole run to stop does not stop the clean-up."""
    script = Script(HOLD)
    path, pids = script.report()
    os.kill(pids[1], signal.SIGINT)
    os.kill(pids[1], signal.SIGTERM)

    script.process.kill()
    script.end()

    assert_nothing_left(path, pids)


def test_ctrl_c_leaves_nothing() -> None:
    """A Ctrl-C reaches the owner alone, which cleans up on its way out."""
    script = Script(HOLD)
    path, pids = script.report()

    os.killpg(script.process.pid, signal.SIGINT)
    code, _ = script.end()

    assert code == -signal.SIGINT
    assert_nothing_left(path, pids)


def test_a_child_that_lives_on_does_not_keep_the_processes_alive() -> None:
    """A forked child holds the pipe to the watching process; the owner's death counts anyway."""
    script = Script("""
with reaped_directory() as directory:
    pids = [directory.popen(["sleep", "600"]).pid, directory._reaper.pid]
    child = os.fork()
    if child == 0:
        for descriptor in (0, 1, 2):
            os.close(descriptor)
        signal.pause()
    print(json.dumps([str(directory.path), pids, child]), flush=True)
    sys.stdin.read()
""")
    path, pids, child = script.report()

    script.process.kill()
    script.end()

    assert_nothing_left(path, pids)
    assert not gone(child)
    os.kill(child, signal.SIGKILL)


def test_a_forked_child_that_ends_takes_nothing_with_it() -> None:
    """The child leaves the copied block, and the owner's process and folder stay."""
    script = Script("""
with reaped_directory() as directory:
    process = directory.popen(["sleep", "600"])
    child = os.fork()
    if child == 0:
        sys.exit(0)
    os.waitpid(child, 0)
    print(json.dumps([process.poll(), directory.path.exists()]), flush=True)
""")

    assert script.report() == [None, True]
    assert script.end()[0] == 0


def test_an_orphan_of_a_killed_process_ends_as_well() -> None:
    """A frozen process whose registered parent was killed is found by the folder it works in."""
    script = Script("""
with reaped_directory() as directory:
    command = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    parent = directory.popen([sys.executable, "-c", command], stdin=subprocess.PIPE)
    print(json.dumps([str(directory.path), parent.pid]), flush=True)
    sys.stdin.read()
""")
    path, parent = script.report()
    until(lambda: bool(psutil.Process(parent).children()))
    (orphan,) = psutil.Process(parent).children()
    orphan.suspend()
    os.kill(parent, signal.SIGKILL)

    script.process.kill()
    script.end()

    assert_nothing_left(path, [parent, orphan.pid])


def test_a_shell_in_the_folder_is_spared() -> None:
    """Somebody who looks around in the folder is no part of it."""
    with reaped_directory() as directory:
        directory.popen(SLEEP)
        visitor = subprocess.Popen(["cat"], cwd=directory.path, stdin=subprocess.PIPE)

    assert visitor.poll() is None
    visitor.communicate()


def test_the_watching_process_loads_only_psutil() -> None:
    """It is ready at once, as it loads neither this package nor what that needs."""
    program = Path(sys.modules["lghard.testing.reaper"].__file__ or "")
    watching = subprocess.run(
        [sys.executable, "-X", "importtime", "-P", program, "/nowhere", str(os.getpid()), "1"],
        input=b"done",
        capture_output=True,
        check=True,
    )
    loaded = {line.split("|")[-1].strip() for line in watching.stderr.decode().splitlines()}

    assert "psutil" in loaded
    assert not {name for name in loaded if name.partition(".")[0] in {"lghard", "psycopg"}}
