"""A real LangGraph server: `langgraph dev`, offline, in a folder and on a port of its own."""

import http.client
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

from lghard.testing.reaper import ReapedDirectory, reaped_directory

__all__ = ["LangGraphServer", "langgraph_server"]

_HOST = "127.0.0.1"
_POLL_INTERVAL = 0.02
_ANSWER_TIMEOUT = 5.0
_TAIL = 4000
"""Characters of the log that an error shows."""
_ANSI = re.compile(r"\x1b\[[0-9;]*m")

# Each of these would make the server look for the network, or for somebody's account.
_UNSET = {
    "LANGCHAIN_API_KEY",
    "LANGGRAPH_CLOUD_LICENSE_KEY",
    "LANGSMITH_API_KEY",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
}
_OFFLINE = {
    "LANGCHAIN_TRACING_V2": "false",
    "LANGGRAPH_CLI_NO_ANALYTICS": "1",
    "LANGGRAPH_NO_VERSION_CHECK": "true",
    "LANGSMITH_TRACING": "false",
    "NO_PROXY": _HOST,
}


class LangGraphServer:
    """A running LangGraph server; made by `langgraph_server`.

    Attributes:
        url: Where it answers; it stays the same when the server is started again.
    """

    def __init__(
        self,
        directory: ReapedDirectory,
        config: Mapping[str, object],
        *,
        env: Mapping[str, str],
        options: tuple[str, ...],
        timeout: float,
    ) -> None:
        self._directory = directory
        self._env = env
        self._options = options
        self._timeout = timeout
        self._port = _free_port()
        self._log = directory.path / "server.log"
        self._config = directory.path / "langgraph.json"
        self._config.write_text(json.dumps(config))
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.is_running else "stopped"
        return f"<LangGraphServer {self.url}, {state}>"

    @property
    def url(self) -> str:
        """Where it answers, for `langgraph_sdk.get_client(url=...)`."""
        return f"http://{_HOST}:{self._port}"

    @property
    def pid(self) -> int:
        """The server's process, which is also the one that runs the graphs."""
        if self._process is None:
            raise RuntimeError("the LangGraph server was never started: call start()")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is there; it says nothing about whether it answers."""
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """Return everything the server has printed so far, over all its starts, without colours."""
        return _ANSI.sub("", self._log.read_text(errors="replace"))

    def start(self) -> None:
        """Start the server (again), and wait until it answers.

        What it stored before is there again, apart from the last seconds before a `kill`.

        Raises:
            RuntimeError: It ended instead; the message shows the end of its log.
            TimeoutError: It does not answer in time; the message shows the end of its log.
        """
        if self.is_running:
            raise RuntimeError(f"{self!r} is running already: call stop() first")
        command = [sys.executable, "-m", "langgraph_cli", "dev", "--no-browser", "--no-reload"]
        place = ["--host", _HOST, "--port", str(self._port), "--config", str(self._config)]
        with self._log.open("ab") as log:
            self._process = self._directory.popen(
                [*command, *place, *self._options],
                env=self._env,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._wait_until_ready(self._process)

    def stop(self) -> None:
        """Stop the server as a deployment does: SIGTERM, and SIGKILL after the grace time."""
        if self._process is not None:
            self._directory.end(self._process)

    def kill(self) -> None:
        """Kill the server with SIGKILL, as the kernel does when memory runs out."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _wait_until_ready(self, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + self._timeout
        while not self._answers(process):
            if process.poll() is not None:
                raise RuntimeError(
                    f"langgraph dev ended with code {process.returncode} before it answered;"
                    f" the end of its log:\n{self.log()[-_TAIL:]}"
                )
            if time.monotonic() > deadline:
                self._directory.end(process)
                raise TimeoutError(
                    f"langgraph dev did not answer within {self._timeout:g} s;"
                    f" the end of its log:\n{self.log()[-_TAIL:]}"
                )
            time.sleep(_POLL_INTERVAL)

    def _answers(self, process: "subprocess.Popen[bytes]") -> bool:
        ports = _listening_ports(process)
        if ports and self._port not in ports:
            # Somebody took the port in the meantime, and `langgraph dev` takes another, silently.
            self._port = min(ports)
        return bool(ports) and _is_ok(self._port)


@contextmanager
def langgraph_server(
    graphs: Mapping[str, str],
    *,
    directory: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    checkpointer: str | None = None,
    store: str | None = None,
    auth: str | None = None,
    jobs: int = 10,
    allow_blocking: bool = False,
    timeout: float = 60.0,
) -> Iterator[LangGraphServer]:
    """Run a real LangGraph server, offline, for the time of a `with` block.

    It starts `langgraph dev` from the package `langgraph-cli[inmem]` in 2 to 3 seconds, on a free
    port of the loopback interface, with its state in a folder of its own. It needs no key and no
    network, and nothing of it is left, even when this process is killed.

    Args:
        graphs: Each graph's name and where it is: "./file.py:attribute" or "package.module:name".
        directory: What relative files are relative to, and where the graphs may import from; the
            working directory unless told.
        env: Environment variables for the server, on top of this process'. API keys, proxies and
            tracing are switched off unless set here.
        checkpointer: Where its own checkpointer is: "./file.py:attribute" or
            "package.module.name" (with a dot).
        store: Where its own store is, in the same way.
        auth: Where its own `langgraph_sdk.Auth` is, in the same way. LangGraph Studio gets no way
            around it, which `langgraph dev` gives to everybody unless it is told otherwise.
        jobs: How many runs it works on at the same time; 0 makes a server that accepts runs and
            never works on them. `langgraph dev` alone defaults to 1 in some versions.
        allow_blocking: Allow synchronous I/O in async nodes, which `langgraph dev` otherwise
            reports as an error.
        timeout: Seconds until it must answer.

    Yields:
        The running server: `url`, `pid`, `log()`, `stop()`, `kill()`, `start()`.

    Raises:
        RuntimeError: The server ended instead of answering, as it does when a graph cannot be
            imported; the message shows the end of its log.
        TimeoutError: It did not answer in time.

    Example:
        ```python
        with langgraph_server({"agent": "./agent.py:graph"}) as server:
            client = langgraph_sdk.get_client(url=server.url)
            await client.runs.wait(None, "agent", input={"messages": "hello"})
        ```
    """
    if importlib.util.find_spec("langgraph_api") is None:
        raise ModuleNotFoundError(
            "langgraph_server needs langgraph-cli[inmem]: pip install 'lghard[testing]'"
        )
    home = Path(directory or ".").resolve()
    config = _config({name: _located(spec, home) for name, spec in graphs.items()}, home)
    if checkpointer is not None:
        config["checkpointer"] = {"path": _located(checkpointer, home)}
    if store is not None:
        config["store"] = {"path": _located(store, home)}
    if auth is not None:
        config["auth"] = {"path": _located(auth, home), "disable_studio_auth": True}
    options = ("--n-jobs-per-worker", str(jobs), *["--allow-blocking"] * allow_blocking)
    with reaped_directory("lghard-langgraph-") as folder:
        server = LangGraphServer(
            folder, config, env=_environment(env or {}), options=options, timeout=timeout
        )
        server.start()
        yield server


def _config(graphs: Mapping[str, str], home: Path) -> dict[str, object]:
    # A dependency that is a folder is what `langgraph dev` appends to sys.path.
    return {"dependencies": [str(home)], "graphs": graphs}


def _located(spec: str, home: Path) -> str:
    """Return a graph's place with its file, if it is one, made absolute."""
    file, colon, attribute = spec.rpartition(":")
    return f"{home / file}:{attribute}" if colon and file.endswith(".py") else spec


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name.upper() not in _UNSET}
    if "PYTHONPATH" in inherited:
        # The server works in a folder of its own, where relative entries would point elsewhere.
        entries = inherited["PYTHONPATH"].split(os.pathsep)
        inherited["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, entries))
    return {**inherited, **_OFFLINE, **extra}


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind((_HOST, 0))
        port: int = sock.getsockname()[1]
        return port


def _listening_ports(process: "subprocess.Popen[bytes]") -> set[int]:
    try:
        connections = psutil.Process(process.pid).net_connections("tcp4")
    except psutil.Error:
        return set()  # it has just ended
    return {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}


def _is_ok(port: int) -> bool:
    connection = http.client.HTTPConnection(_HOST, port, timeout=_ANSWER_TIMEOUT)
    try:
        connection.request("GET", "/ok")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
