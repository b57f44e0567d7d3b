"""Is an attempt over whose connection was lost, or may it still come to something?"""

from collections.abc import Sequence
from time import monotonic
from typing import Any, NamedTuple, Protocol

import psycopg
from psycopg.rows import DictRow, dict_row
from typing_extensions import override

from lghard.postgres.statements import Statement

Connection = psycopg.AsyncConnection[DictRow]


class Unprovable(psycopg.InterfaceError):
    """Nobody can tell whether an attempt is over; never raised to a caller."""


class Attempt(Protocol):
    """One attempt, as far as it can be told of once its connection is lost."""

    @property
    def opening(self) -> Sequence[Statement]:
        """What has to stand before its own statements, in the same transaction."""

    async def is_over(self, conn: Connection) -> bool:
        """Whether it can no longer do anything; if it can, it is told to stop.

        Args:
            conn: another connection, which is idle; as it is afterwards.

        Raises:
            Unprovable: nobody can tell.
        """


# Seconds by which the age of a backend, told by the server's clock, may fall short of the age of
# our connection to it, told by ours.
_CLOCK_TOLERANCE = 1.0

# A backend cannot be younger than the connection it served, so a younger one with the same process
# id is a stranger; and a server that was started since then has none of its old backends.
_TERMINATE = """
WITH suspect AS (
    SELECT pid, usename = session_user AND datname = current_database() AS ours
    FROM pg_catalog.pg_stat_activity
    WHERE pid = %(pid)s
    AND pid <> pg_catalog.pg_backend_pid()
    AND clock_timestamp() - pg_postmaster_start_time() >= make_interval(secs => %(least_age)s)
    AND coalesce(clock_timestamp() - backend_start >= make_interval(secs => %(least_age)s), true)
)
SELECT
    pg_backend_pid() AS own_pid,
    EXISTS (SELECT FROM suspect) AS present,
    (SELECT pg_terminate_backend(pid) FROM suspect WHERE ours) AS terminated
"""


class Backend(NamedTuple):
    """An attempt, told by the server process that is at work for it: over once that is gone."""

    pid: int
    connected_at: float

    @classmethod
    def of(cls, conn: Connection) -> "Backend":
        """The one behind `conn`."""
        return cls(conn.pgconn.backend_pid, conn._created_at)

    @override
    def __str__(self) -> str:
        return f"its backend ({self.pid})"

    @property
    def opening(self) -> Sequence[Statement]:
        """Nothing."""
        return ()

    async def is_over(self, conn: Connection) -> bool:
        """Whether it is gone.

        `pg_terminate_backend` is no proof by itself: a frozen process obeys when it thaws.

        Raises:
            Unprovable: behind a transaction pooler, where the process ids that clients see are not
                the server's own.
        """
        least_age = monotonic() - self.connected_at - _CLOCK_TOLERANCE
        async with conn.cursor(row_factory=dict_row) as cur:
            try:
                await cur.execute(_TERMINATE, {"pid": self.pid, "least_age": least_age})
            except psycopg.errors.InsufficientPrivilege:
                return False  # it is there, and belongs to a role that this session has put aside
            row: dict[str, Any] = await cur.fetchone() or {}
        if row["own_pid"] != conn.pgconn.backend_pid:
            raise Unprovable
        return not row["present"]
