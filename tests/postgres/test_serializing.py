"""Where a serializer runs: here while it is quick, and in a thread if others had to wait."""

import threading
import time

import pytest

from lghard.postgres import serializing
from lghard.postgres.serializing import Serializing

CHANNELS = frozenset({"messages"})


class Clocks:
    """The CPU time of every thread, and the time of the wall."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.busy = self.passed = 0.0
        monkeypatch.setattr(serializing, "thread_time", lambda: self.busy)
        monkeypatch.setattr(serializing, "perf_counter", lambda: self.passed)

    def work(self, seconds: float) -> bool:
        """Compute for so long; whether that was in the event loop's own thread."""
        self.busy += seconds
        return self.wait(seconds)

    def wait(self, seconds: float) -> bool:
        """Wait for so long; whether that was in the event loop's own thread."""
        self.passed += seconds
        return threading.current_thread() is threading.main_thread()


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


async def test_the_first_is_dumped_in_a_thread(clocks: Clocks) -> None:
    """Nobody knows yet how long it takes."""
    serialize = Serializing()
    assert [False, True] == [await serialize(CHANNELS, clocks.work, 0.0) for _ in range(2)]


async def test_what_takes_long_is_dumped_in_a_thread(clocks: Clocks) -> None:
    """Those that dump the same channels next, too, for a while."""
    serialize = Serializing()
    took = [0.0, 0.01, *[0.0] * 40]
    here = [await serialize(CHANNELS, clocks.work, seconds) for seconds in took]
    assert [False, True, False] == here[:3]
    assert 31 == here.index(True, 2)
    assert all(here[31:])


async def test_others_are_not_held_responsible(clocks: Clocks) -> None:
    """A large channel says nothing about a small one."""
    serialize = Serializing()
    small = frozenset({"small"})
    await serialize(small, clocks.work, 0.0)
    await serialize(CHANNELS, clocks.work, 1.0)
    assert await serialize(small, clocks.work, 0.0)


async def test_what_is_interrupted_once_stays_here(clocks: Clocks) -> None:
    """On a busy machine anything may be: a thread would be of no help."""
    serialize = Serializing()
    waits = [0.0, 0.0, 0.01, 0.0, 0.01, 0.0, 0.0]
    here = [await serialize(CHANNELS, clocks.wait, seconds) for seconds in waits]
    assert [False, *[True] * 6] == here


async def test_what_waits_for_the_interpreter_comes_back(clocks: Clocks) -> None:
    """In a thread, it waits for the event loop, which would keep it there for good."""
    serialize = Serializing()
    assert not await serialize(CHANNELS, clocks.wait, 0.01)
    assert await serialize(CHANNELS, clocks.wait, 0.0)


async def test_what_blocks_is_sent_to_a_thread(clocks: Clocks) -> None:
    """One that asks a server for its key, say, holds up the event loop twice, and then no more."""
    serialize = Serializing()
    here = [await serialize(CHANNELS, clocks.wait, 0.01) for _ in range(5)]
    assert [False, True, True, False, False] == here


async def test_one_that_fails_counts_as_well() -> None:
    """Its error is its caller's, and the next one is dumped where this one says."""
    serialize = Serializing()

    def fail() -> None:
        deadline = time.thread_time() + 0.001
        while time.thread_time() < deadline:
            pass
        raise ValueError("no codec")

    with pytest.raises(ValueError, match="no codec"):
        await serialize(CHANNELS, fail)
    assert not await serialize(CHANNELS, lambda: threading.current_thread().name == "MainThread")
