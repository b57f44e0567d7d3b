"""When to try again to connect: soon while somebody waits, and with one attempt at a time."""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from time import monotonic

import psycopg
from psycopg_pool.base import AttemptWithBackoff
from psycopg_pool.pool_async import AddConnection
from typing_extensions import override

# Seconds. A refused attempt costs a server nothing, so somebody who waits need not wait long.
URGENT = 0.05
_FIRST = 0.1
_LONGEST = 1.0
_LONGEST_WHEN_REFUSED = 5.0

# What libpq and servers say of a server that is away for a moment. Everything else, a wrong
# password or "too many clients" above all, gets worse by insisting. Words that are not English are
# not found here, and fall on the patient side.
_AWAY = (
    "Connection refused",
    "Connection reset",
    "No such file or directory",
    "closed the connection unexpectedly",
    "starting up",
    "shutting down",
    "in recovery mode",
    "not yet accepting connections",
    "timeout expired",
)


def is_away(error: BaseException) -> bool:
    """Whether the server is not there at the moment, rather than there and unwilling."""
    return isinstance(error, psycopg.OperationalError) and any(part in str(error) for part in _AWAY)


class Attempt(AttemptWithBackoff):
    """Upstream's clock of how long a connection is missing; the delays are `Reconnects`' matter."""

    @override
    def update_delay(self, now: float) -> None:
        self.give_up_at = self.give_up_at or now + self.timeout


class Reconnects:
    """The connections that could not be made, and the task that tries to make them.

    While a server is away, the pool sends one attempt at a time instead of one for each connection
    that is missing; as soon as one succeeds, all others follow. psycopg_pool tries each on its own
    after 1, 2, 4, … seconds, so that a server that was away for a minute is missed for up to
    another one.

    Args:
        run: puts a task into the queue of the pool's workers.
        somebody_waits: whether there is a borrower without a connection.
    """

    def __init__(
        self, run: Callable[[AddConnection], None], somebody_waits: Callable[[], bool]
    ) -> None:
        self.error: Exception | None = None
        self._run = run
        self._somebody_waits = somebody_waits
        self._missing: deque[AddConnection] = deque()
        self._failures = 0
        self._task: asyncio.Task[None] | None = None
        self._is_stopped = False

    def __len__(self) -> int:
        """How many connections are missing."""
        return len(self._missing)

    def failed(self, error: Exception) -> None:
        """An attempt to connect has failed."""
        self.error = error
        self._failures += 1

    def succeeded(self) -> None:
        """An attempt to connect has succeeded: those that are missing can follow at once."""
        self.error = None
        self._failures = 0
        while self._missing:
            self._run(self._missing.popleft())

    def postpone(self, attempt: AddConnection) -> None:
        """Try this one again when its turn comes."""
        if self._is_stopped:  # a worker of the pool may fail once more while it is being closed
            return
        self._missing.append(attempt)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._retry(), name="lghard-reconnects")

    def stop(self) -> set[asyncio.Task[None]]:
        """Stop trying, for good.

        Returns:
            what there is to wait for.
        """
        self._is_stopped = True
        self._missing.clear()
        if self._task is None or self._task.done():
            return set()
        self._task.cancel()
        return {self._task}

    async def _retry(self) -> None:
        while self._missing:
            await self._pause()
            if self._missing:
                self._run(self._missing.popleft())

    async def _pause(self) -> None:
        """Wait for the back-off, but no longer than `URGENT` while somebody waits."""
        ends_at = monotonic() + self._backoff()
        if (attempt := self._missing[0].attempt) and attempt.give_up_at:
            ends_at = min(ends_at, attempt.give_up_at)
        while (left := ends_at - monotonic()) > 0:
            await asyncio.sleep(min(left, URGENT))
            if self._somebody_waits() and self.error and is_away(self.error):
                return

    def _backoff(self) -> float:
        longest = _LONGEST if self.error and is_away(self.error) else _LONGEST_WHEN_REFUSED
        delay = _FIRST * 2.0 ** min(self._failures, 10)
        return min(delay, longest) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
