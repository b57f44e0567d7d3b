"""The faults: gates that hold what comes, and traps that cut what passes."""

import asyncio
import math
from weakref import WeakKeyDictionary, WeakSet

from lghard.testing.proxy.relay import Connection, Direction, Item, Lane

PASS = 0.0
HOLD = math.inf

# A request is remembered up to this length, to look for what a fault is limited to.
_REMEMBERED = 64 * 1024


class Latency:
    """A delay line: each item passes `seconds` after it arrived, however many are under way."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def when(self, lane: Lane, item: Item, arrived: float) -> float:  # noqa: ARG002
        """Return the arrival plus the delay."""
        return arrived + self.seconds


class Blackhole:
    """While active, nothing passes, in no direction."""

    def __init__(self) -> None:
        self.active = False
        self._struck: WeakSet[Connection] = WeakSet()

    def when(self, lane: Lane, item: Item, arrived: float) -> float:  # noqa: ARG002
        """Hold everything, and remember on which connections something was held."""
        if not self.active:
            return PASS
        self._struck.add(lane.connection)
        return HOLD

    def restore(self) -> list[Connection]:
        """Let pass again; return the connections on which something was held."""
        self.active = False
        struck = list(self._struck)
        self._struck.clear()
        return struck


class Hold:
    """Holds requests: each for some seconds, or until released."""

    def __init__(self) -> None:
        self._left = 0.0
        self._containing = b""
        self._seconds = math.inf
        self._until: WeakKeyDictionary[Lane, float] = WeakKeyDictionary()

    @property
    def held(self) -> int:
        """The connections whose requests wait now."""
        return sum(not lane.connection.ended for lane in self._until)

    def arm(self, n: float, containing: bytes, seconds: float) -> None:
        """Hold the next `n` requests that contain some bytes."""
        self._left, self._containing, self._seconds = n, containing, seconds

    def release(self) -> None:
        """Hold nothing any more."""
        self._left = 0
        self._until.clear()

    def when(self, lane: Lane, item: Item, arrived: float) -> float:
        """Hold a request, and with it what follows on its connection."""
        if lane not in self._until and self._catches(lane, item):
            self._left -= 1
            self._until[lane] = arrived + self._seconds
        until = self._until.get(lane, PASS)
        if until <= asyncio.get_running_loop().time():
            self._until.pop(lane, None)
        return until

    def _catches(self, lane: Lane, item: Item) -> bool:
        if not self._left or lane.direction != "up" or not isinstance(item, bytes):
            return False
        return self._containing in item


class LostResponses:
    """Loses responses: the request was delivered, the answer never arrives."""

    def __init__(self) -> None:
        self.lost = 0
        self._left = 0
        self._containing = b""
        self._requests: WeakKeyDictionary[Connection, bytes] = WeakKeyDictionary()
        self._answered: WeakSet[Connection] = WeakSet()

    def arm(self, n: int, containing: bytes) -> None:
        """Lose the next `n` responses to requests that contain some bytes."""
        self._left, self._containing = n, containing

    def spring(self, lane: Lane, chunk: bytes) -> bytes:
        """Remember a request; cut the client off instead of sending it a response."""
        if lane.direction == "up":
            self._remember(lane.connection, chunk)
            return chunk
        self._answered.add(lane.connection)
        if not self._left or self._containing not in self._requests.get(lane.connection, b""):
            return chunk
        self._left -= 1
        self.lost += 1
        # Only the client's side: a server that notices nothing does what it was asked to do.
        lane.connection.client.end(reset=True)
        return b""

    def _remember(self, connection: Connection, chunk: bytes) -> None:
        earlier = b"" if connection in self._answered else self._requests.get(connection, b"")
        self._answered.discard(connection)
        if len(earlier) < _REMEMBERED:
            self._requests[connection] = earlier + chunk


class Cut:
    """Ends a connection in the middle of what passes."""

    def __init__(self) -> None:
        self._left = 0
        self._size = 0
        self._direction: Direction = "down"
        self._reset = True
        self._budgets: WeakKeyDictionary[Lane, int] = WeakKeyDictionary()

    def arm(self, size: int, direction: Direction, n: int, *, reset: bool) -> None:
        """Cut the next `n` connections on which `size` bytes have passed from now."""
        self._size, self._direction, self._left, self._reset = size, direction, n, reset
        self._budgets.clear()

    def spring(self, lane: Lane, chunk: bytes) -> bytes:
        """Send what the budget allows, then end the connection."""
        if not self._left or lane.direction != self._direction:
            return chunk
        budget = self._budgets.get(lane, self._size)
        if len(chunk) <= budget:
            self._budgets[lane] = budget - len(chunk)
            return chunk
        self._left -= 1
        lane.send(chunk[:budget])
        lane.connection.end(reset=self._reset)
        return b""
