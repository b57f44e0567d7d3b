"""No run is waited for without end: how long, for what, and how a blocked read is woken.

Heartbeats of a server are no events. A limit is measured between two decoded events, while
somebody waits for the next one: the time that a reader takes for itself does not count, except
against the deadline. One timer (or, in the synchronous client, one thread) watches a call, and is
not touched by each event.
"""

import asyncio
import math
import socket
import threading
from contextlib import suppress
from time import monotonic
from typing import Self

import httpx

from lghard.sdk.policy import RunPolicy

_SLACK = 0.05
"""Seconds by which a socket's own timeout lags behind the limit that it stands for."""
_DAY = 86400.0
"""Seconds after which a watch looks again in any case: no clock can be set to any number."""


class Watch:
    """The limits of one call.

    Attributes:
        expired: The limit that has passed, by its name in the policy.
        seconds: How long that is.
        waiting: Whether somebody waits for an event.
        since: Since when, on the monotonic clock.
    """

    def __init__(self, policy: RunPolicy, *, has_events: bool) -> None:
        self.expired: str | None = None
        self.seconds = math.inf
        self._deadline = policy.deadline or math.inf
        self._ends_at = monotonic() + self._deadline
        self._first = policy.first_event_timeout or math.inf if has_events else math.inf
        self._idle = policy.idle_timeout or math.inf if has_events else math.inf
        self._kind, self._limit = "first_event_timeout", self._first
        self.waiting = False
        self.since = monotonic()

    @property
    def is_needed(self) -> bool:
        """Whether there is any limit."""
        return min(self._deadline, self._first, self._idle) < math.inf

    def left(self) -> float:
        """Seconds until the next limit, if nothing happens."""
        silence = self.since + self._limit if self._is_silent() else math.inf
        return min(self._ends_at, silence) - monotonic()

    def begun(self) -> None:
        """The first event has arrived, or none is expected: from here on, silence counts."""
        self._kind, self._limit = "idle_timeout", self._idle

    def begins(self) -> None:
        """From here on the first event is waited for (again)."""
        self._kind, self._limit = "first_event_timeout", self._first
        self.since = monotonic()

    def progress(self) -> None:
        """An event has arrived, and the next one is waited for."""
        self._kind, self._limit = "idle_timeout", self._idle
        self.since = monotonic()

    def timeout(self, own: httpx.Timeout) -> httpx.Timeout:
        """Return a client's own timeout, shortened to end with the limits."""
        left = max(0.0, self.left()) + _SLACK
        if left > _DAY:
            return own
        return httpx.Timeout(
            **{
                name: left if seconds is None else min(left, seconds)
                for name, seconds in own.as_dict().items()
            }
        )

    def _is_silent(self) -> bool:
        """Whether somebody waits for an event."""
        return self.waiting

    def _pause(self) -> float:
        """Seconds until somebody must look again.

        At the latest after the shortest limit, which may begin in the meantime.
        """
        return max(0.0, min(self.left(), self._first, self._idle, _DAY))

    def _expire(self) -> bool:
        """Find out whether a limit has passed."""
        if self.left() > 0:
            return False
        if self._ends_at <= monotonic():
            self.expired, self.seconds = "deadline", self._deadline
        else:
            self.expired, self.seconds = self._kind, self._limit
        return True


class AsyncWatch(Watch):
    """Wakes a task that waits for too long, as `asyncio.timeout` does.

    A timeout for each event would cost more than the event; this has one timer for all.
    """

    _timer: asyncio.TimerHandle | None = None
    task: "asyncio.Task[object] | None" = None
    _woken = False
    _cancels = 0

    def __enter__(self) -> Self:
        self.wait()
        if self.is_needed:
            self._check()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Wake nobody any more."""
        self.waiting = False
        if self._timer is not None:
            self._timer.cancel()

    def wait(self) -> None:
        """The current task waits for the next event."""
        self.task = asyncio.current_task()
        self.since = monotonic()
        self.waiting = True

    def caught(self) -> bool:
        """Whether the `CancelledError` just caught was this watch's, and nobody else's."""
        if not self._woken or self.task is None:
            return False
        self._woken = False
        return self.task.uncancel() <= self._cancels

    def _check(self) -> None:
        if not self._expire():
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._pause(), self._check)
        elif self.waiting and self.task is not None:
            self._woken = True
            self._cancels = self.task.cancelling()
            self.task.cancel()


class SyncWatch(Watch):
    """Wakes a thread that waits for too long, by shutting down the socket that it reads from."""

    def __init__(self, policy: RunPolicy, *, has_events: bool) -> None:
        super().__init__(policy, has_events=has_events)
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._response: httpx.Response | None = None

    def __enter__(self) -> Self:
        self.wait()
        if self.is_needed:
            name = "lghard-run-deadline"
            threading.Thread(target=self._watch, name=name, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Wake nobody any more."""
        with self._lock:
            self._over.set()

    def is_late(self) -> bool:
        """Whether a limit has passed."""
        with self._lock:
            return self.expired is not None or self._expire()

    def wait(self) -> None:
        """The current thread waits for the next event."""
        self.since = monotonic()
        self.waiting = True

    def reads(self, response: httpx.Response) -> None:
        """From here on the thread waits for this response."""
        with self._lock:
            self._response = response
            if self.expired:
                self._wake()

    def rests(self) -> None:
        """From here on the connection may be anybody's."""
        with self._lock:
            self._response = None

    def sleep(self, seconds: float) -> None:
        """Sleep, but not beyond the limits."""
        self._over.wait(max(0.0, min(seconds, self.left())))

    def _watch(self) -> None:
        while not self._over.wait(self._pause()):
            with self._lock:
                if not self._over.is_set() and self._expire():
                    self._wake()
                    return

    def _wake(self) -> None:
        # The connection of a response that was read to its end may serve another thread by now.
        if self._response is None or self._response.is_closed:
            return
        stream = self._response.extensions.get("network_stream")
        found = stream.get_extra_info("socket") if stream is not None else None
        if isinstance(found, socket.socket):
            with suppress(OSError):  # it is closed already
                # The method of an SSLSocket would also change what the other thread is using.
                socket.socket.shutdown(found, socket.SHUT_RDWR)
