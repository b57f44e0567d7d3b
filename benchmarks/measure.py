"""What is measured with: a server, a clock, and an eye on the neighbours."""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, Generic, NamedTuple, TypeVar

import psutil  # type: ignore[import-untyped, unused-ignore]

from lghard.testing import TemporaryPostgres, temporary_postgres

T = TypeVar("T")

# The test kit's server is tuned for tests; a benchmark's must pay for what it promises.
SERVER_SETTINGS = {"fsync": "on", "full_page_writes": "on"}

# In cores. Nobody else there, up to 0.1 is measured: rounding, and threads of the kernel.
QUIET = 0.2

# Seconds to wait for quiet neighbours, in all.
PATIENCE = 600.0

# What a run asks of a checkpointer.
OPERATIONS = ("aget_tuple", "aput", "aput_writes")

_ATTEMPTS = 3
_GLANCE = 1.0


@contextmanager
def server(**settings: str) -> Iterator[TemporaryPostgres]:
    """A Postgres of our own that would survive a power failure, as the one in production does."""
    with temporary_postgres(settings={**SERVER_SETTINGS, **settings}) as postgres:
        yield postgres


@dataclass
class Clock:
    """What the block of `clock` took, and how much of the machine others took meanwhile."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    foreign_cores: float = 0.0


@contextmanager
def clock() -> Iterator[Clock]:
    """Measure the block: its time, this process' CPU time, and what others took of the machine."""
    gc.collect()
    reading = Clock()
    foreign, cpu, started = _foreign_cpu_seconds(), time.process_time(), time.perf_counter()
    yield reading
    reading.seconds = time.perf_counter() - started
    reading.cpu_seconds = time.process_time() - cpu
    reading.foreign_cores = (_foreign_cpu_seconds() - foreign) / reading.seconds


def _foreign_cpu_seconds() -> float:
    """CPU time of this machine that neither we nor our children (server, proxy) have used."""
    times = psutil.cpu_times()
    busy = sum(times) - times.idle - getattr(times, "iowait", 0.0)
    # Linux counts a guest's time twice: in a column of its own, and in user or nice.
    busy -= getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    me = psutil.Process()
    return float(busy) - sum(_cpu_seconds(p) for p in [me, *me.children(recursive=True)])


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0  # its parent has inherited its time
    return float(times.user + times.system + times.children_user + times.children_system)


def time_operations(saver: Any) -> list[float]:
    """Seconds of each operation of `saver` that is over, from the caller's side; it grows."""
    taken: list[float] = []
    for name in OPERATIONS:
        setattr(saver, name, _timed(getattr(saver, name), taken))
    return taken


def _timed(operation: Callable[..., Awaitable[T]], taken: list[float]) -> Callable[..., Any]:
    @wraps(operation)
    async def timed(*args: Any, **kwargs: Any) -> T:
        began = time.perf_counter()
        try:
            return await operation(*args, **kwargs)
        finally:
            taken.append(time.perf_counter() - began)

    return timed


class Measurement(NamedTuple, Generic[T]):
    """A number, and how many cores others took while it was measured."""

    value: T
    foreign_cores: float


class Referee:
    """Has measurements made while the machine is ours, as far as patience lasts.

    Args:
        patience: seconds to wait for quiet neighbours, in all.
        attempts: how often a disturbed measurement is made at most.
    """

    def __init__(self, patience: float, attempts: int = _ATTEMPTS) -> None:
        self._patience = patience
        self._attempts = attempts
        self._foreign_cores: list[float] = []

    async def undisturbed(self, measure: Callable[[], Awaitable[Measurement[T]]]) -> Measurement[T]:
        """The first measurement that nobody disturbed, or the least disturbed of all attempts."""
        attempts: list[Measurement[T]] = []
        for _ in range(self._attempts):
            await self._wait_for_quiet()
            attempts.append(await measure())
            if attempts[-1].foreign_cores < QUIET or self._patience <= 0:
                break
        best = min(attempts, key=lambda attempt: attempt.foreign_cores)
        self._foreign_cores.append(best.foreign_cores)
        return best

    async def _wait_for_quiet(self) -> None:
        while self._patience > 0:
            foreign = _foreign_cpu_seconds()
            await asyncio.sleep(_GLANCE)
            if _foreign_cpu_seconds() - foreign < QUIET * _GLANCE:
                break
            self._patience -= _GLANCE

    def verdict(self) -> str:
        """How many measurements others disturbed all the same."""
        disturbed = [cores for cores in self._foreign_cores if cores >= QUIET]
        text = f"{len(disturbed)} of {len(self._foreign_cores)} measurements were disturbed"
        return text + (f", by up to {max(disturbed):.1f} cores" if disturbed else "")
