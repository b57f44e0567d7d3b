"""Taking a lease when one's turn has come, and passing it on: to the next in line, or back.

Each statement may have been executed although its answer is lost, and each await may be the last
for a long time. So what the database has done is only believed of who is still current, see
lease_line.py.
"""

import asyncio
import os
import random
import socket
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final

import psycopg
from psycopg import errors
from psycopg.rows import DictRow

from lghard.errors import SchemaSetupError
from lghard.postgres import lease_line, lease_rows
from lghard.postgres.fencing import ThreadLease, inside
from lghard.postgres.lease_desk import LEAST, Desk, Source, say_it_expires
from lghard.postgres.lease_line import Line, Turn, again, busy
from lghard.postgres.lease_rows import TABLE, Row, row_of
from lghard.resilience import is_transient

_FIRST_POLL: Final = 0.01


async def acquire(
    source: Source, thread_id: str, *, timeout: float, ttl: float, tell: Callable[[], None]
) -> Turn:
    """The turn that has the lock of that thread.

    Raises:
        ThreadBusyError: its turn has not come within `timeout`.
        RuntimeError: the caller has it already.
    """
    desk = Desk.of(source)
    turn = Turn(desk, thread_id, timeout=timeout, ttl=ttl, tell=tell)
    await desk.find(turn.left)
    desk.lines.join(turn)
    try:
        await _wait(turn)
    except BaseException:  # a cancellation, too: who leaves stands in nobody's way
        _leave(turn)
        raise
    return turn


async def _wait(turn: Turn) -> None:
    line = turn.line
    while not turn.desk.lines.enter(turn):
        if line.current is turn:
            await asyncio.sleep(min(line.rest(), turn.left()))
            await _take(turn)
        elif turn.left() <= 0:
            raise busy(turn)
        else:
            await asyncio.wait({turn.coming()}, timeout=turn.left())
    turn.lease._check()  # it may have been handed over to a process that stood still


def _leave(turn: Turn) -> None:
    desk, lease = turn.desk, turn.lease
    if desk.is_over():  # others see to it
        return
    if desk.lines.leave(turn):
        _start_to_give(turn)
    elif lease._owner in turn.line.strays:
        desk.start(desk.give_up(turn, lease))


# Taking


async def _take(turn: Turn) -> None:
    """Look whether it is free, again and again, and take it."""
    pause, want = _FIRST_POLL, False
    while _must_take(turn):
        await _claim(turn, want=want)
        if _must_take(turn):
            if turn.left() <= 0:
                raise busy(turn)
            await asyncio.sleep(min(turn.left(), pause * random.uniform(0.5, 1.0)))  # noqa: S311 - jitter
            pause, want = min(2 * pause, lease_line.POLL), True


def _must_take(turn: Turn) -> bool:
    """Whether it is its turn, and it has not been given the lock by another one."""
    return turn.line.current is turn and not turn.lease.epoch


def _may_take(turn: Turn, lease: ThreadLease) -> bool:
    """Whether it has not been passed over since it had this lease to take."""
    return turn.line.current is turn and turn.lease is lease


async def _claim(turn: Turn, *, want: bool) -> None:  # noqa: PLR0912
    """Take it, if it is free; whoever has it has been seen."""
    desk, lines, lease = turn.desk, turn.desk.lines, turn.lease
    strays = lines.strays(turn, lease)
    if strays is None:
        return
    asking = lease_rows.claim(
        lease.thread_id,
        lease._owner,
        ttl=lease._ttl,
        process=_process(),
        strays=strays,
        want=want,
        tidy=not lines.is_tidy,
    )
    try:
        sent_at, (*_, rows) = await desk.ask(asking, max(turn.left(), LEAST))
    except (errors.LockNotAvailable, errors.SerializationFailure):
        lines.clear(turn, lease)  # a write is under way, or somebody else was faster
    except errors.UndefinedTable:
        lines.clear(turn, lease)
        await desk.provide(max(turn.left(), LEAST))
        await _claim(turn, want=want)
    except errors.InsufficientPrivilege as error:
        lines.clear(turn, lease)
        raise _not_granted(error) from error
    except asyncio.CancelledError:
        desk.start(desk.give_up(turn, lease))  # whatever has become of it
        raise
    except psycopg.Error as error:
        if not _may_take(turn, lease):
            desk.start(desk.give_up(turn, lease))  # others do not know of it any more
        if not is_transient(error) or turn.left() <= 0:
            error.add_note(f"lghard: thread_lock() was trying to lock {lease.thread_id!r}")
            raise  # what has become of it otherwise, shows when we look again
    except Exception:  # a pool's own callbacks may raise anything, before there is a connection
        lines.clear(turn, lease)
        raise
    else:
        lines.is_tidy = True
        turn.line.seen = row = row_of(rows)
        if not row or row.owner != lease._owner:
            lines.clear(turn, lease)
        elif not lines.take(turn, lease, row, sent_at):
            desk.start(desk.give_up(turn, lease))
        if row and row.owner in {
            held._owner for held in inside.get() if held._is_inside and not held._over
        }:
            raise again(lease.thread_id)


def _not_granted(error: psycopg.Error) -> SchemaSetupError:
    return SchemaSetupError(
        f"this role may not use the table {TABLE}, in which thread_lock() keeps its leases: "
        f"{error.diag.message_primary}; next step: GRANT SELECT, INSERT, UPDATE, DELETE ON {TABLE} "
        "to it, as the table's owner"
    )


def _process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


# Giving


async def release(turn: Turn) -> bool | None:
    """Give it to the next in line, or back.

    It goes on if the caller is cancelled. Who has lost it does not wait for that.

    Returns:
        whether it was still held; None if nobody knows.
    """
    if turn.desk.is_over() or turn.desk.lines.is_left_behind:  # others see to it
        return None
    was_held = turn.desk.lines.begin_to_give(turn)
    task = _start_to_give(turn)
    if not was_held:
        return None
    await asyncio.wait({task})
    return None if task.cancelled() else task.result()


def _start_to_give(turn: Turn) -> asyncio.Task[bool | None]:
    task = turn.desk.start(_give(turn))
    # Also if the event loop ends: then it may be cancelled before it begins.
    task.add_done_callback(lambda _: turn.desk.lines.free(turn))
    return task


async def _give(turn: Turn) -> bool | None:
    try:
        was_held = await _pass_on(turn)
    except Exception as error:  # a pool's own callbacks may raise anything
        say_it_expires(turn.lease, error)
        return None
    else:
        # Passed over meanwhile, it may have been taken over since its block ended, and not before.
        is_passed_over = turn.line.current is not turn
        return None if was_held is False and is_passed_over else was_held


async def _pass_on(turn: Turn) -> bool | None:
    """Whether it was still held; None if an answer was lost, and so nobody knows."""
    desk, line, lease = turn.desk, turn.line, turn.lease
    was_held: list[bool | None] = []
    while heir := desk.lines.heir(turn):
        mine, holder = heir.lease, heir.desk.name
        giving = lease_rows.hand_over(
            lease.thread_id, lease._owner, mine._owner, holder=holder, ttl=mine._ttl
        )
        sent_at, (_, handed, released), is_sure = await desk.insist(giving)
        _let_rest(line, released)
        was_held.append(_is_known(handed or released, is_sure=is_sure))
        if was_held[-1] is not None and not handed:
            desk.lines.clear(heir, mine)
        if not handed or desk.lines.hand(turn, heir, Row(**handed[0]), sent_at):
            return was_held[0]
        lease = mine  # whoever is current now takes it from there, if it is not gone by then
    _, (_, released), is_sure = await desk.insist(lease_rows.release(lease.thread_id, lease._owner))
    _let_rest(line, released)
    was_held.append(_is_known(released, is_sure=is_sure))
    desk.lines.clear(turn, lease)
    return was_held[0]


def _is_known(rows: Sequence[DictRow], *, is_sure: bool) -> bool | None:
    return bool(rows) if rows or is_sure else None


def _let_rest(line: Line, released: Sequence[DictRow]) -> None:
    """What others have asked for is left to them for a moment."""
    if released and released[0]["is_wanted"]:
        line.rests_until = monotonic() + lease_line.POLL
