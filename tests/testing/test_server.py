"""langgraph_server, with a graph that echoes."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from langgraph_sdk import get_sync_client
from langgraph_sdk.errors import NotFoundError

from lghard.testing import LangGraphServer, langgraph_server

HERE = Path(__file__).parent
GRAPHS = {"echo": "./echo_graph.py:graph"}


@pytest.fixture(scope="module")
def server(lghard_langgraph_server: Callable[..., LangGraphServer]) -> LangGraphServer:
    """One server for the tests that only talk to it."""
    return lghard_langgraph_server(GRAPHS, directory=HERE, env={"ECHO_SUFFIX": "!"})


def test_runs_a_graph(server: LangGraphServer) -> None:
    """A run through the SDK returns the graph's answer, made with the environment given."""
    with get_sync_client(url=server.url) as client:
        assert client.runs.wait(None, "echo", input={"text": "hello"}) == {"text": "hello!"}


def test_shows_what_it_is(server: LangGraphServer) -> None:
    """The repr, the process and the log belong to the running server."""
    assert repr(server) == f"<LangGraphServer {server.url}, pid {server.pid}>"
    assert server.url.rpartition(":")[2] in psutil.Process(server.pid).cmdline()
    assert "Application started up" in server.log()
    assert "\x1b" not in server.log()


def test_running_server_is_not_started_twice(server: LangGraphServer) -> None:
    """A second start would lose the first process, so it is refused."""
    with pytest.raises(RuntimeError, match="is running already"):
        server.start()


def test_two_servers_at_once_share_nothing(server: LangGraphServer, tmp_path: Path) -> None:
    """Each has its own port, its own threads and, if it was given one, its own checkpointer."""
    checkpointer, mark = "./echo_graph.py:checkpointer", tmp_path / "mark"
    with (
        langgraph_server(
            GRAPHS, directory=HERE, env={"MARK": str(mark)}, checkpointer=checkpointer
        ) as other_server,
        get_sync_client(url=server.url) as client,
        get_sync_client(url=other_server.url) as other,
    ):
        thread_id = client.threads.create()["thread_id"]
        with pytest.raises(NotFoundError):
            other.threads.get(thread_id)
        client.runs.wait(thread_id, "echo", input={"text": "hello"})
        assert not mark.exists()
        other.runs.wait(other.threads.create()["thread_id"], "echo", input={"text": "hello"})
        assert mark.exists()


def test_stop_and_start_keep_url_and_threads(server: LangGraphServer) -> None:
    """A restarted server is where it was and knows what it knew; a killed one is gone at once."""
    with get_sync_client(url=server.url) as client:
        url, thread_id = server.url, client.threads.create()["thread_id"]
        server.stop()
        assert repr(server) == f"<LangGraphServer {url}, stopped>"
        server.start()
        assert server.url == url
        assert client.threads.get(thread_id)["thread_id"] == thread_id
        server.kill()
        assert not server.is_running


def test_graph_that_cannot_be_imported_says_why(tmp_path: Path) -> None:
    """The error carries the server's own explanation."""
    (tmp_path / "broken.py").write_text("import no_such_module_at_all\n")
    with (
        pytest.raises(RuntimeError, match="No module named 'no_such_module_at_all'"),
        langgraph_server({"broken": "./broken.py:graph"}, directory=tmp_path),
    ):
        pass


def test_server_that_is_too_slow_says_so() -> None:
    """The deadline for the start is kept."""
    with (
        pytest.raises(TimeoutError, match=r"did not answer within 0\.1 s"),
        langgraph_server(GRAPHS, directory=HERE, timeout=0.1),
    ):
        pass


def test_nothing_survives_a_parent_killed_during_the_start() -> None:
    """After a SIGKILL of the test process, the server and its folder go away by themselves."""
    script = (
        "from lghard.testing import langgraph_server\n"
        f"with langgraph_server({GRAPHS!r}, directory={str(HERE)!r}): pass\n"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as parent:
        server = started_by(parent)
        folder = Path(server.cwd())
        parent.kill()
    assert psutil.wait_procs([server], timeout=10)[1] == []
    deadline = time.monotonic() + 10
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not folder.exists()


def started_by(parent: "subprocess.Popen[bytes]") -> psutil.Process:
    """Poll until the process has started a LangGraph server, and return that."""
    while parent.poll() is None:
        for child in psutil.Process(parent.pid).children():
            if "langgraph_cli" in child.cmdline():
                return child
        time.sleep(0.01)
    pytest.fail("it ended without having started a server")
