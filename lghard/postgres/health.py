"""What a pool tells about itself: to a readiness endpoint, a metric, or somebody who debugs."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PoolSnapshot:
    """The state of a pool at one moment, read without waiting for anything.

    Durations are seconds. Counters count from the opening of the pool.

    Attributes:
        size: connections that are idle, borrowed, being asked, or being made.
        idle: connections ready to be borrowed.
        borrowed: connections in use.
        asked: connections that the server is being asked about.
        missing: connections that could not be made so far.
        waiting: borrowers without a connection.
        longest_borrow: age of the oldest borrow still going on.
        requests: borrows so far.
        waited: borrows that had to wait for a connection.
        failed: borrows that got none.
        wait_time: all the time that borrowers have waited.
        usage_time: all the time that connections were borrowed with `connection()`.
        evictions: connections taken out before their time, by reason.
        connect_error: the server's or libpq's words on the last attempt to connect, if it failed.
    """

    name: str
    min_size: int
    max_size: int
    size: int
    idle: int
    borrowed: int
    asked: int
    missing: int
    waiting: int
    longest_borrow: float
    requests: int
    waited: int
    failed: int
    wait_time: float
    usage_time: float
    evictions: Mapping[str, int] = field(default_factory=dict)
    connect_error: str | None = None


@dataclass(frozen=True)
class PoolHealth:
    """Whether a pool can serve a request now, and if not, why.

    Attributes:
        ok: whether the server answered, accepts writes, and nobody is kept waiting in vain.
        reasons: what is wrong, one sentence each; empty if `ok`.
        round_trip: seconds that borrowing a connection and one query took; None without an answer.
        role: "primary" or "standby"; None without an answer.
        server_version: such as "18.1"; None without an answer.
        pooler: whether a transaction pooler stands between; None without an answer.
        snapshot: the state of the pool at that moment.
    """

    ok: bool
    reasons: tuple[str, ...]
    round_trip: float | None
    role: str | None
    server_version: str | None
    pooler: bool | None
    snapshot: PoolSnapshot
