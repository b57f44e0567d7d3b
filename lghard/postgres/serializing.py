"""Whether to serialize here or in a thread."""

import asyncio
from collections.abc import Callable
from time import perf_counter, thread_time
from typing import Any, TypeVar

T = TypeVar("T")

# Seconds. A hop to a thread and back costs about 0.05 ms of CPU, measured on the machine of the
# benchmarks; ten times that is a hiccup of the event loop that nobody notices.
_QUICK = 0.0005

# How fast a slow one is forgotten: after one of 10 ms, some 30 quick ones.
_MEMORY = 0.9


class Serializing:
    """Runs a serializer here if that has been quick so far, and in a thread if it has not.

    Upstream hops to a thread for every write, which for small states takes longer than the work
    itself; but a serializer that blocks, or a large state, must not hold up the event loop.

    What counts is the CPU time, and what it has waited here twice in a row. A single wait says
    nothing on a busy machine, where anything may be interrupted; and in a thread it waits for the
    interpreter, the longer the busier the event loop is.
    """

    def __init__(self) -> None:
        self._seconds: dict[frozenset[str], float] = {}
        self._waited: dict[frozenset[str], float] = {}

    async def __call__(self, channels: frozenset[str], dump: Callable[..., T], *args: Any) -> T:
        """`dump(*args)`; those that dump the same channels are expected to take equally long."""
        if self._seconds.get(channels, _QUICK) < _QUICK:
            return self._here(channels, dump, *args)
        return await asyncio.to_thread(self._timed, channels, dump, *args)

    def _here(self, channels: frozenset[str], dump: Callable[..., T], *args: Any) -> T:
        started = perf_counter()
        try:
            return self._timed(channels, dump, *args)
        finally:
            waited = perf_counter() - started
            twice = min(waited, self._waited.get(channels, 0.0))
            self._waited[channels] = waited
            self._seconds[channels] = max(twice, self._seconds[channels])

    def _timed(self, channels: frozenset[str], dump: Callable[..., T], *args: Any) -> T:
        started = thread_time()
        try:
            return dump(*args)
        finally:
            elapsed = thread_time() - started
            self._seconds[channels] = max(elapsed, self._seconds.get(channels, 0.0) * _MEMORY)
