"""The proxy as its own process, so that its work is not on the measured process' event loop."""

import argparse
import asyncio
import contextlib
import select
import selectors
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lghard.testing.proxy.fault_proxy import LOOPBACK, Endpoint, FaultProxy

# Starting Python and importing asyncio takes 0.2 s; the rest is for machines under load.
_START_TIMEOUT = 15.0
_STOP_TIMEOUT = 5.0


@dataclass(frozen=True)
class ProxyProcess(Endpoint):
    """A running `python -m lghard.testing.proxy`."""

    host: str
    port: int
    pid: int


@contextmanager
def proxy_process(host: str, port: int, *, latency: float = 0.0) -> Iterator[ProxyProcess]:
    """Run a proxy that only delays, in a process of its own.

    A `FaultProxy` in the measured process shares its event loop and its GIL, so the delay would
    grow with the load it is to measure.

    Args:
        host: Where the server listens.
        port: Its port.
        latency: One-way delay in seconds; a round trip takes twice as long.

    Raises:
        RuntimeError: The process did not start.
    """
    command = [sys.executable, "-m", "lghard.testing.proxy"]
    arguments = ["--to", f"{host}:{port}", "--latency", str(latency)]
    process = subprocess.Popen(  # noqa: S603 - our own module, no shell
        command + arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield ProxyProcess(LOOPBACK, _read_port(process), process.pid)
        finally:
            _stop(process)


def _read_port(process: "subprocess.Popen[str]") -> int:
    deadline = threading.Timer(_START_TIMEOUT, process.kill)
    deadline.start()
    try:
        line = process.stdout.readline() if process.stdout else ""
    finally:
        deadline.cancel()
    if not line:
        raise RuntimeError(
            f"the proxy process did not start within {_START_TIMEOUT:g} s"
            " (its error output stands above)"
        )
    return int(line)


def _stop(process: "subprocess.Popen[str]") -> None:
    if process.stdin:
        process.stdin.close()
    try:
        process.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `python -m lghard.testing.proxy`."""
    parser = argparse.ArgumentParser(
        prog="python -m lghard.testing.proxy",
        description="Delay TCP. Prints the port it listens on; ends when its input ends.",
    )
    parser.add_argument("--to", required=True, metavar="HOST:PORT", help="the server")
    parser.add_argument(
        "--latency", type=float, default=0.0, metavar="SECONDS", help="one-way delay"
    )
    options = parser.parse_args(arguments)
    host, _, port = options.to.rpartition(":")
    with (
        contextlib.suppress(KeyboardInterrupt),
        asyncio.Runner(loop_factory=_loop_factory()) as runner,
    ):
        runner.run(_run(host, int(port), options.latency))


async def _run(host: str, port: int, latency: float) -> None:
    async with FaultProxy(host, port, latency=latency) as proxy:
        print(proxy.port, flush=True)  # noqa: T201 - this is the process' interface
        await _input_ended()


async def _input_ended() -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def read() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(ended.set)

    # A daemon, not `to_thread`: after Ctrl-C nobody may wait for a terminal's input to end.
    threading.Thread(target=read, daemon=True).start()
    await ended.wait()


if sys.platform == "linux":

    class _PreciseSelector(selectors.EpollSelector):
        """Epoll that can wait for less than a millisecond.

        `epoll_wait` counts in whole milliseconds and Python rounds up, so a delay of 1.2 ms would
        take 2. An epoll descriptor can itself be waited for, by a call that counts in microseconds.
        """

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is not None and timeout > 0:
                select.select([self.fileno()], [], [], timeout)
                timeout = 0
            return super().select(timeout)

    def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
        return _PreciseLoop

    class _PreciseLoop(asyncio.SelectorEventLoop):
        def __init__(self) -> None:
            super().__init__(_PreciseSelector())

else:

    def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
        return None
