"""Is this connection still good? Without a round trip where that can be told, bounded where not."""

import asyncio
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg.pq import ConnStatus
from psycopg.pq.abc import PGconn
from psycopg.rows import Row, scalar_row
from psycopg_pool import AsyncConnectionPool
from typing_extensions import override

# What one look reads at most: a busy LISTEN connection must not hold up the event loop.
_READS_PER_LOOK = 64

CANCEL_TIMEOUT = 1.0
"""Seconds that a server gets to end a cancelled query, so that its connection can be kept.

A healthy one takes 3 ms, and 0.4 s at worst with 32 busy processes on its two cores; a distant one
a few round trips. One whose process stands still takes for ever.
"""


class Pulse(Enum):
    """What a look at an idle connection's socket tells."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"


def look(conn: psycopg.AsyncConnection[Any]) -> Pulse:
    """Judge an idle connection by its socket, in about a microsecond and without a round trip.

    On an idle connection the server has nothing to say: a quiet socket means that it is alive, as
    far as this side can know. A readable one is SUSPECT until a round trip proves the contrary:
    a notification or a TLS session ticket makes a healthy socket readable, while one
    `consume_input` on a killed backend reads its last words and leaves the status OK.
    """
    pgconn = conn.pgconn
    if pgconn.status != ConnStatus.OK:
        return Pulse.DEAD
    if not _readable(pgconn.socket):
        return Pulse.ALIVE
    return Pulse.SUSPECT if _survives_reading(pgconn) else Pulse.DEAD


def _survives_reading(pgconn: PGconn) -> bool:
    for _ in range(_READS_PER_LOOK):
        try:
            pgconn.consume_input()
        except psycopg.OperationalError:
            return False
        if pgconn.status != ConnStatus.OK:
            return False
        if not _readable(pgconn.socket):
            break
    return True


def _readable(fd: int) -> bool:
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([fd], [], [], 0)[0])
    poll = select.poll()  # unlike select, not limited to descriptors below 1024
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


async def ping(conn: psycopg.AsyncConnection[Any], timeout: float) -> bool:
    """Whether the server answers an empty query on `conn` within `timeout` seconds.

    A connection that does not is left broken. Cancellation is honoured at once, and leaves it
    usable or broken, never in between.
    """
    # In a task of its own: psycopg, when it is cancelled, asks the server to cancel the query, and
    # waits up to ten seconds for a server that may be the very thing that does not answer.
    question = asyncio.create_task(AsyncConnectionPool.check_connection(conn))
    try:
        await asyncio.wait({question}, timeout=timeout)
    finally:
        answered = question.done() and question.exception() is None
        if not answered:
            question.add_done_callback(partial(_give_up, conn))
            abort(conn)
            await asyncio.wait({question})
            conn.pgconn.finish()
    return answered


def _give_up(conn: psycopg.AsyncConnection[Any], question: asyncio.Task[None]) -> None:
    conn.pgconn.finish()
    if not question.cancelled():
        question.exception()  # asyncio reports an exception that nobody has looked at


@contextmanager
def abort_after(conn: psycopg.AsyncConnection[Any], seconds: float) -> Iterator[None]:
    """Whatever waits on `conn` inside this block gives up after `seconds`, as on a lost connection.

    `asyncio.timeout` is no bound by itself: psycopg makes a cancelled task wait until the server
    has ended its query. In this block it waits no longer than `CANCEL_TIMEOUT`, on a connection of
    whatever class; then the connection is broken, and the cancellation goes on.
    """
    loop = asyncio.get_running_loop()
    timers = [loop.call_later(seconds, abort, conn)]

    async def try_cancel(**_: float) -> None:
        timers.append(loop.call_later(CANCEL_TIMEOUT, abort, conn))
        await _ask_to_cancel(conn)

    methods = vars(conn)
    is_outermost = methods.setdefault("_try_cancel", try_cancel) is try_cancel
    try:
        yield
    finally:
        if is_outermost:
            del methods["_try_cancel"]
        for timer in timers:
            timer.cancel()


async def _ask_to_cancel(conn: psycopg.AsyncConnection[Any]) -> None:
    """Ask the server to end the query; whoever waits for it fails if that cannot be asked."""
    try:
        await asyncio.wait_for(conn.cancel_safe(timeout=CANCEL_TIMEOUT), CANCEL_TIMEOUT)
    except (psycopg.Error, TimeoutError):
        abort(conn)
    except BaseException as error:  # the request has a socket of its own, see Connection
        raise error.with_traceback(None)  # noqa: B904 - it is the same error


def abort(conn: psycopg.AsyncConnection[Any]) -> None:
    """Break `conn` at once and locally, whatever it is waiting for.

    The socket is shut down, not closed: whoever waits for it wakes up and fails as if the server
    had gone, and its descriptor cannot be given to somebody else's socket meanwhile.
    """
    if conn.pgconn.status != ConnStatus.OK:
        return
    sock = socket.socket(fileno=conn.pgconn.socket)
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the other side was faster
    finally:
        sock.detach()


async def is_pooled(conn: psycopg.AsyncConnection[Any]) -> bool:
    """Whether a pooler stands between: the process id that it told us is not the server's own."""
    async with conn.cursor(row_factory=scalar_row) as cur:
        await cur.execute("SELECT pg_backend_pid()")
        return bool(await cur.fetchone() != conn.pgconn.backend_pid)


class Connection(psycopg.AsyncConnection[Row]):
    """A connection on which a cancelled task leaves nothing behind, and does not wait long.

    psycopg asks the server to cancel the query, for up to five seconds, and then waits as long for
    the query to end. A socket that it was just connecting stays open until somebody drops the
    error, or for as long as the garbage collector takes: it belongs to a frame of the traceback.
    """

    @override
    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Self:
        """As upstream; an attempt that is given up closes its socket at once."""
        try:
            return await super().connect(conninfo, **kwargs)
        except BaseException as error:  # whatever ends it, the frame that has the socket must go
            raise error.with_traceback(None)  # noqa: B904 - it is the same error

    @override
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """As upstream, which leaves it open when it is cancelled in between."""
        try:
            await super().__aexit__(exc_type, exc_val, exc_tb)
        finally:
            if not getattr(self, "_pool", None):
                self.pgconn.finish()

    @override
    async def _try_cancel(self, **_: float) -> None:
        await _ask_to_cancel(self)
