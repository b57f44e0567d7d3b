"""One pool per event loop and database, for graph factories that are called for every run."""

import asyncio
import atexit
import concurrent.futures
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final, Unpack
from weakref import WeakSet

from psycopg import AsyncConnection
from psycopg.pq import ConnStatus
from psycopg.rows import DictRow
from psycopg_pool import PoolClosed

from lghard.postgres.opening import (
    Pool,
    PoolOverrides,
    _build,
    _describe,
    _merge,
    _open,
    _parameters,
)
from lghard.postgres.pool import ManagedPool
from lghard.postgres.settings import PoolSettings

Connection = AsyncConnection[DictRow]

CLOSE_TIMEOUT = 20.0
"""Seconds that another event loop may take to close its pool, once its borrowers are done."""


async def shared_pool(
    conninfo: str | None = None,
    *,
    settings: PoolSettings | None = None,
    **overrides: Unpack[PoolOverrides],
) -> ManagedPool[AsyncConnection[DictRow]]:
    """This event loop's one pool for a database: opened by the first call, then shared.

    For graph factories, which a LangGraph server calls for every run, every state read and every
    drawing of the graph; a pool of their own each time exhausts the server's connections. Call it
    as often as you like, also concurrently, and leave the pool open: it ends with its event loop,
    or by `close_shared_pools`.

    `max_size` is the budget of the process for this database: each of `loops` event loops gets
    `max_size // loops` connections. A loop that has ended makes room for another one.

    Args:
        conninfo: libpq conninfo or URI; by default from the environment, see `PoolSettings`.
        settings: sizes and deadlines; by default from the environment.
        overrides: as in `open_pool`. Callbacks must be the same objects in every call.

    Raises:
        PoolOpenError: the database cannot be reached. All who wait for the same opening get the
            same error; the next call tries again.
        ValueError: less than one connection for each loop; one loop more than `loops`; or other
            settings than this loop's pool was opened with. The message has the numbers.
        psycopg_pool.PoolClosed: the pool was closed while this call waited for it.

    Example:
        >>> async def make_graph(config):
        ...     checkpointer = HardenedAsyncPostgresSaver(await shared_pool())
        ...     return builder.compile(checkpointer=checkpointer)
    """
    # Not the share: whoever keeps an error keeps this frame, and so would keep its connections.
    ready = _registry.share(Call(conninfo, settings, overrides, dict(os.environ))).ready
    await asyncio.wait({ready})  # who is cancelled here does not cancel it for the others
    return ready.result()


async def close_shared_pools() -> None:
    """Close the shared pools of all event loops of this process; a later call opens new ones.

    Call it at the end of the application's lifespan. It waits up to `drain_timeout` for connections
    that are in use. A pool of another loop is closed there; where that loop does not run, idle
    connections are closed from here.
    """
    await asyncio.gather(*(share.close() for share in _registry.take(Share.is_public)))


@dataclass(frozen=True)
class Database:
    """A database, and as whom: equal for every spelling of the same conninfo."""

    place: str
    identity: tuple[str, ...] = field(repr=False)  # with the password

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> "Database":
        """What libpq connects to with `parameters`."""
        identity = tuple(parameters.get(name, "") for name in _IDENTITY)
        return cls(_describe(parameters), identity)


# Other parameters would only make another connection to the same tables: they are settings here.
# "options" may hold a search_path, and so name other tables.
_IDENTITY: Final[Sequence[str]] = (
    "service",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "passfile",
    "options",
)


@dataclass(frozen=True, repr=False)  # a repr would show passwords
class Call:
    """All that decides what a call of `shared_pool` asks for: comparing it is ten times cheaper."""

    conninfo: str | None
    settings: PoolSettings | None
    overrides: PoolOverrides
    environ: dict[str, str]


class Request:
    """What a call asks a shared pool to be."""

    def __init__(self, call: Call) -> None:
        self.settings, self.arguments = _merge(call.conninfo, call.settings, call.overrides)
        # A pool that is never opened knows what it would connect with.
        self.parameters = _parameters(_build(self.settings, dict(self.arguments)))
        self.parameters.setdefault("dbname", self.parameters.get("user", ""))  # as libpq does
        self.database = Database.of(self.parameters)

    def share_of_settings(self) -> PoolSettings:
        """The settings of one loop's pool.

        Raises:
            ValueError: the budget is smaller than the number of loops.
        """
        budget, loops = self.settings.max_size, self.settings.loops
        if budget < loops:
            raise ValueError(
                f"max_size={budget} is what all event loops of this process share, and less than "
                f"one connection for each of loops={loops}: raise max_size (LGHARD_POOL_MAX_SIZE) "
                f"to at least {loops}, or lower loops (LGHARD_POOL_LOOPS; by default "
                f"1 + N_JOBS_PER_WORKER where BG_JOB_ISOLATED_LOOPS=true) to at most {budget}"
            )
        size = budget // loops
        sizes = {"max_size": size, "min_size": min(self.settings.min_size, size)}
        return self.settings.model_copy(update=sizes)

    def equals(self, other: "Request") -> bool:
        """Whether both ask for the same pool."""
        return self.database == other.database and not any(self._differences(other))

    def refuse_another(self, other: "Request") -> None:
        """Raise ValueError if `other` asks the same pool to be something else."""
        differences = [*self._differences(other)]
        if differences:
            raise ValueError(
                f"this event loop already shares a pool on {self.database.place}, with other "
                f"settings: {', '.join(differences)}; use the same in every call, or open_pool() "
                "for a pool of its own"
            )

    def _differences(self, other: "Request") -> Iterator[str]:
        for name in PoolSettings.model_fields:
            ours, theirs = getattr(self.settings, name), getattr(other.settings, name)
            if name != "conninfo" and ours != theirs:
                yield f"{name} was {ours} and is {theirs}"
        # Their values may be secret.
        for name in _unequal(self.parameters, other.parameters):
            yield f"{name} of the connection is another"
        for name in _unequal(self.arguments, other.arguments):
            if name != "kwargs":
                yield f"{name} is another object"

    def refuse_one_more(self, others: list["Request"]) -> None:
        """Raise ValueError if the budget is divided among `others` already, or differently."""
        loops, budget = self.settings.loops, self.settings.max_size
        for other in others:
            if (loops, budget) != (other.settings.loops, other.settings.max_size):
                raise ValueError(
                    f"another event loop of this process shares {self.database.place} with "
                    f"max_size={other.settings.max_size} and loops={other.settings.loops}, this "
                    f"one with max_size={budget} and loops={loops}: the budget is one for all loops"
                )
        if len(others) >= loops:
            raise ValueError(
                f"{len(others)} event loops of this process have {budget // loops} connections "
                f"each to {self.database.place}, and this is one more: set loops "
                f"(LGHARD_POOL_LOOPS, now {loops}) to at least {len(others) + 1}, which leaves "
                f"{budget // (len(others) + 1)} of max_size={budget} for each"
            )


def _unequal(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    return [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]


class Share:
    """One event loop's part of the connections to a database, and the pool that makes them.

    Args:
        call: what was called for.
        asked: the same, understood.
        settings: of a pool that `shared_pool` gives to nobody; by default, this loop's part.
    """

    def __init__(self, call: Call, asked: Request, *, settings: PoolSettings | None = None) -> None:
        self.call = call
        self.asked = asked
        self.settings = settings or asked.share_of_settings()
        self._is_private = settings is not None
        self.loop = asyncio.get_running_loop()
        self.thread = threading.current_thread()
        self.connections = WeakSet[Connection]()
        self._configure = asked.arguments.get("configure")
        self._configuring = 0
        self.pool = _build(self.settings, {**asked.arguments, "configure": self._note})
        self.ready: asyncio.Future[Pool] = self.loop.create_future()
        self.drain_timeout = 0.0  # who is cancelled by the end of its loop waits for nobody
        self.ended = concurrent.futures.Future[None]()
        self.keeper: asyncio.Task[None]

    def start(self, *, compare: bool) -> None:
        """Have a task open the pool, and keep it until that task is cancelled.

        Not in the context of the first caller: what its run has in context variables, such as its
        tracing, is no business of a pool that outlives it.
        """
        keeping = self._keep(compare=compare)
        self.keeper = Context().run(self.loop.create_task, keeping)
        self.keeper.add_done_callback(self._end)

    async def _keep(self, *, compare: bool) -> None:
        try:
            await _open(self.pool, self.settings, compare=compare)
            ended = self.loop.create_future()
            if self.keeper.cancelling():  # asyncio.wait_for of Python 3.11 may have dropped it
                ended.cancel()
            else:
                self.ready.set_result(self.pool)
            await ended  # asyncio.run cancels it when the loop ends
        except (Exception, asyncio.CancelledError):  # but not GeneratorExit: it cannot wait
            await self.pool.close(drain_timeout=self.drain_timeout)
            raise

    def _end(self, keeper: asyncio.Task[None]) -> None:
        _registry.take(lambda share: share is self and share.is_spent())
        if not self.ready.done():
            closed = PoolClosed("the shared pools were closed while this one was being opened")
            self.ready.set_exception((not keeper.cancelled() and keeper.exception()) or closed)
            self.ready.exception()  # asyncio reports what nobody has looked at
        self.ended.set_result(None)

    def join(self, call: Call, asked: Request) -> None:
        """Let another caller have this pool.

        Raises:
            ValueError: it asks for another one.
        """
        self.asked.refuse_another(asked)
        self.call = call
        self.thread = threading.current_thread()

    def is_public(self) -> bool:
        """Whether `shared_pool` may give it to others."""
        return not self._is_private

    def is_over(self) -> bool:
        """Whether the loop will never run again: closed, or left behind by its thread's end."""
        return self.loop.is_closed() or not (self.loop.is_running() or self.thread.is_alive())

    def is_closed(self) -> bool:
        """Whether this pool is of no use any more; a caller may have closed it by mistake."""
        return self.keeper.done() or (self.ready.done() and self.pool.closed)

    def is_spent(self) -> bool:
        """Whether the pool is closed, and so are the connections that it had lent."""
        return self.keeper.done() and all(conn.closed for conn in self._known_connections())

    async def close(self) -> None:
        """Close the pool, in whichever loop it is."""
        if self.is_over():
            self.finish()
        elif self.loop is asyncio.get_running_loop():
            self.drain_timeout = self.settings.drain_timeout
            self.keeper.cancel()
            await asyncio.wait({self.keeper})
        else:
            await self._close_from_another_loop()

    def retire(self) -> None:
        """Have the pool closed in its own loop, once its borrowers are done."""
        self.drain_timeout = self.settings.drain_timeout
        with suppress(RuntimeError):  # closed meanwhile
            self.loop.call_soon_threadsafe(self.keeper.cancel)

    async def _close_from_another_loop(self) -> None:
        self.retire()
        if self.loop.is_running():
            patience = self.drain_timeout + CLOSE_TIMEOUT
            await asyncio.wait({asyncio.wrap_future(self.ended)}, timeout=patience)
        if not self.ended.done():
            self.leave()

    def finish(self) -> None:
        """End everything of a loop that is over, from outside."""
        self.pool._closed = True
        for conn in self._known_connections():
            conn.pgconn.finish()
        for task in self._silenced_tasks():
            with suppress(RuntimeError, ValueError):  # its loop is closed
                task.get_coro().close()
        _registry.take(lambda share: share is self)

    def leave(self) -> None:
        """End what can be ended from outside while the loop may still run: what is idle."""
        self.pool._max_size = 0  # who still waits there gets what comes back, and nothing new
        self._finish_idle()
        self._silenced_tasks()

    def _finish_idle(self) -> None:
        with suppress(IndexError):
            while True:
                self.pool._pool.popleft().pgconn.finish()

    def disown(self) -> None:
        """Let nobody in a forked child use, or end, what belongs to its parent.

        A dead socket takes the place of each of the connections' own, which are the parent's too:
        whoever has kept such a connection finds it lost, instead of talking into the parent's.
        """
        dead, other = socket.socketpair()
        other.close()
        with dead:
            for conn in self._known_connections():
                if conn.pgconn.status == ConnStatus.OK:
                    os.dup2(dead.fileno(), conn.pgconn.socket, inheritable=False)
        self._silenced_tasks()

    async def _note(self, conn: Connection) -> None:
        """Configure a connection, and remember it: a pool does not know those it has lent."""
        self.connections.add(conn)
        self._configuring += 1
        try:
            if self._configure:
                await self._configure(conn)
        finally:
            self._configuring -= 1

    def open_connections(self) -> int:
        """How many there are, or may be: with those that are borrowed, or being made."""
        known = sum(not conn.closed for conn in self._known_connections())
        if self.is_over():
            return known
        making = self.pool._connecting - self._configuring
        return known + max(making, 0 if self.ready.done() else 1)  # the first is no pool's

    def _known_connections(self) -> list[Connection]:
        while True:
            with suppress(RuntimeError):  # the loop is adding one just now
                return [*self.connections]

    def _silenced_tasks(self) -> list[asyncio.Task[Any]]:
        """The pool's tasks, which asyncio now does not report when they are dropped unfinished."""
        tasks = [task for task in asyncio.all_tasks(self.loop) if self._owns(task)]
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        return tasks

    def _owns(self, task: asyncio.Task[Any]) -> bool:
        """Whether `task` runs library code on a part of the pool.

        The pool does not know all of its tasks: asyncio.wait_for makes more on Python 3.11.
        """
        frame = getattr(task.get_coro(), "cr_frame", None)
        if frame is None or frame.f_globals["__name__"].partition(".")[0] not in _LIBRARIES:
            return False
        mine = {id(part) for part in [self, self.pool, *self._parts(), *self._known_connections()]}
        return any(id(value) in mine for value in frame.f_locals.values())

    def _parts(self) -> list[object]:
        """What the pool's tasks work on; a pool that is not open yet has less of it."""
        names = ("_reconnects", "_tasks", "_sched", "_sched._event")
        return [attrgetter(name)(self.pool) for name in names] if self.pool._opened else []


_LIBRARIES = ("asyncio", "lghard", "psycopg_pool")


class Registry:
    """All shares of this process. Event loops of many threads ask it."""

    def __init__(self) -> None:
        # Reentrant: with asyncio's eager tasks, one may end while it is being created.
        self._lock = threading.RLock()
        self._shares: list[Share] = []
        self._left: list[Share] = []  # kept for ever: what drops their connections closes them
        self._is_hooked = False

    def share(self, call: Call) -> Share:
        """The share of this event loop for this call, a new one if it has none.

        Raises:
            ValueError: as `shared_pool`.
        """
        self.take(Share.is_spent)
        for share in self.take(Share.is_over):
            share.finish()
        with self._lock:
            loop = asyncio.get_running_loop()
            mine = [s for s in self._shares if s.loop is loop and s.is_public()]
            for share in mine:
                if share.call == call and not share.is_closed():
                    share.thread = threading.current_thread()
                    return share
            return self._find_or_add(mine, call, Request(call))

    def _find_or_add(self, mine: list[Share], call: Call, asked: Request) -> Share:
        public = [share for share in self._shares if share.is_public()]
        known = [share for share in public if share.asked.database == asked.database]
        for share in known:
            if share in mine and not share.is_closed():
                share.join(call, asked)
                return share
            if share in mine:
                share.keeper.cancel()
        others = [share.asked for share in known if share not in mine]
        asked.refuse_one_more(others)
        share = Share(call, asked)
        self.keep(share, compare=not others)
        return share

    def keep(self, share: Share, *, compare: bool) -> None:
        """Start `share`, and end it with its loop or with the process."""
        with self._lock:
            self._hook()
            self._shares.append(share)
            share.start(compare=compare)

    def take(self, wanted: Callable[[Share], bool] = lambda _: True) -> list[Share]:
        """Forget these shares, and return them."""
        with self._lock:
            taken = [share for share in self._shares if wanted(share)]
            self._shares = [share for share in self._shares if share not in taken]
            return taken

    def _hook(self) -> None:
        if not self._is_hooked:
            self._is_hooked = True
            atexit.register(self._at_exit)
            if hasattr(os, "register_at_fork"):  # not on Windows
                os.register_at_fork(after_in_child=self._in_child)

    def _at_exit(self) -> None:
        for share in self.take():
            if share.loop.is_running():  # in a daemon thread
                share.leave()
                self._left.append(share)
            else:
                share.finish()

    def _in_child(self) -> None:
        self._lock = threading.RLock()  # the parent's may be held by a thread that is not here
        inherited, self._shares = self._shares, []
        self._left += inherited
        for share in inherited:
            share.disown()


_registry = Registry()
