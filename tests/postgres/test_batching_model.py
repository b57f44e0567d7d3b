"""Batches under fire: whatever breaks, a thread is what its operations have made of it, in order.

Bursts of operations on a few threads, some of which are invalid, and some of which are cancelled,
while connections are cut wherever that may be. A model says what the rows of each thread may be at
each point of its order: one state, or several where nobody knows what became of an operation whose
caller has gone. Rows and what was read are compared with it.

`pytest --hypothesis-profile=full` goes on for longer.
"""

import asyncio
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Self

import psycopg
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from lghard import open_checkpointer
from lghard.postgres import batching
from lghard.resilience import RetryBudget
from lghard.testing import FaultProxy
from tests.postgres.checkpoints import METADATA, checkpoint, config_of, eventually

# The model: the rows of a thread, and what each operation makes of them


State = frozenset[tuple[tuple[str, ...], str]]
"""Rows: their table and primary key, and the value."""

EMPTY: State = frozenset()

WRITES = {"messages": ("0", "1"), "special": ("-1", "-3")}
CHANNELS = {"messages": ("x", "y"), "special": ("__error__", "__interrupt__")}


@dataclass(frozen=True)
class Op:
    """An operation of a burst.

    Attributes:
        kind: what it does.
        thread: to which thread.
        target: to which of its checkpoints.
        wait: how often the event loop goes round before it is issued.
        cancel: and after it, before its caller goes; None if he stays.
        value: what it writes, like no other.
    """

    kind: str
    thread: str
    target: int
    wait: int = 0
    cancel: int | None = None
    value: str = ""

    @property
    def id(self) -> str:
        """Of the checkpoint."""
        return str(checkpoint(self.target)["id"])

    def rows(self) -> dict[tuple[str, ...], str]:
        """What it writes."""
        if self.kind in ("put", "put alone"):
            blobs = {("blob", channel, self.value, ""): self.value for channel in "ab"}
            return {("checkpoint", self.id, "", ""): self.value, **blobs}
        if self.kind in WRITES:
            return {("write", self.id, "task", at): self.value for at in WRITES[self.kind]}
        return {}

    def apply(self, state: State) -> State:
        """The rows when it is done."""
        if self.kind == "delete":
            return EMPTY
        if self.kind == "messages":  # DO NOTHING
            return frozenset({**self.rows(), **dict(state)}.items())
        return frozenset({**dict(state), **self.rows()}.items())


def seen_in(state: State) -> tuple[Any, ...] | None:
    """What whoever reads the newest checkpoint of a thread gets to see."""
    rows = dict(state)
    newest = max((key[1] for key in rows if key[0] == "checkpoint"), default=None)
    if newest is None:
        return None
    value = rows["checkpoint", newest, "", ""]
    writes = [
        ("task", channel, rows["write", newest, "task", at])
        for kind in WRITES
        for channel, at in zip(CHANNELS[kind], WRITES[kind], strict=True)
        if ("write", newest, "task", at) in rows
    ]
    return newest, {"text": value, "a": value, "b": value}, sorted(writes)


ROWS = """
SELECT ARRAY['checkpoint', checkpoint_id, '', ''], checkpoint -> 'channel_values' ->> 'text'
FROM checkpoints WHERE thread_id = %(thread)s
UNION ALL SELECT ARRAY['blob', channel, version, ''], convert_from(blob, 'UTF8')
FROM checkpoint_blobs WHERE thread_id = %(thread)s
UNION ALL SELECT ARRAY['write', checkpoint_id, task_id, idx::text], convert_from(blob, 'UTF8')
FROM checkpoint_writes WHERE thread_id = %(thread)s
"""

INVALID = {
    "refused by the server": psycopg.errors.UntranslatableCharacter,
    "impossible to send": psycopg.DataError,
}


async def perform(saver: Any, op: Op) -> Any:
    """The operation itself; what was read, if it is a read."""
    config = config_of(op.thread, op.id)
    match op.kind:
        case "read":
            found = await saver.aget_tuple(config_of(op.thread))
            return found and what_is_in(found)
        case "delete":
            await saver.adelete_thread(op.thread)
        case "messages" | "special":
            writes = [(channel, op.value.encode()) for channel in CHANNELS[op.kind]]
            await saver.aput_writes(config, writes, "task")
        case "impossible to send":
            await saver.aput_writes(config, [("x", op.value.encode())], "task\x00")
        case _:
            text = op.value + "\x00" * (op.kind in INVALID)
            blob = op.value.encode()
            made = checkpoint(op.target, text=text, a=blob, b=blob)
            made["channel_versions"] = dict.fromkeys("ab", op.value)
            await saver.aput(config_of(op.thread), made, METADATA, made["channel_versions"])
    return None


def what_is_in(found: Any) -> tuple[Any, ...]:
    """As the model says it."""
    values = {
        name: value if name == "text" else value.decode()
        for name, value in found.checkpoint["channel_values"].items()
    }
    writes = [(task, name, value.decode()) for task, name, value in found.pending_writes]
    return found.checkpoint["id"], values, sorted(writes)


# What breaks


@dataclass(frozen=True)
class Fault:
    """What breaks during a burst.

    Attributes:
        kind: see `Fire.arm` and `Fire.strike`.
        at: bytes that pass before a connection is cut; or how often the event loop goes round.
        direction: in which they pass.
        times: how many connections, or responses.
    """

    kind: str = "none"
    at: int = 0
    direction: Any = "up"
    times: int = 1

    @property
    def loses(self) -> bool:
        """Whether operations may have to be repeated though they have been done."""
        return self.kind not in ("none", "lock")


ATTEMPT = 0.3
"""Seconds after which an attempt is given up."""

OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND usename IS NOT NULL AND pid"


class Fire:
    """A saver behind a network and a server that break, and the model of its threads."""

    def __init__(self, server: Any, conninfo: str, *, connections: int = 3) -> None:
        self.server, self.conninfo, self.connections = server, conninfo, connections
        self.states: dict[str, State] = {}
        self.values = map("{:08}".format, count(1))

    async def __aenter__(self) -> Self:
        self.block = AsyncExitStack()
        try:
            await self.open()
        except BaseException:
            await self.block.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.block.aclose()

    async def open(self) -> None:
        """Connect everybody to everybody."""
        enter = self.block.enter_async_context
        self.proxy = await enter(FaultProxy(self.server.host, self.server.port))
        conninfo = self.proxy.conninfo(self.conninfo)
        self.saver = await enter(
            open_checkpointer(
                conninfo,
                setup=False,
                batching=True,
                attempt_timeout=ATTEMPT,
                min_size=1,
                max_size=self.connections,
            )
        )
        # Not one retry a second, as where a database is away for long.
        self.saver._outage.budget = RetryBudget(per_second=1000.0)
        self.observer, self.blocker = [
            self.block.enter_context(psycopg.connect(self.conninfo, autocommit=True))
            for _ in range(2)
        ]
        self.observer.execute("DELETE FROM checkpoints")
        self.observer.execute("DELETE FROM checkpoint_blobs")
        self.observer.execute("DELETE FROM checkpoint_writes")
        # From now on, everything is serialized at once.
        for kind in ("put", "messages", "special", "read"):
            await self.burst([Op(kind, "warm", 1)])

    def rows(self, thread: str) -> State:
        """As a stranger sees them, at this very moment: the event loop stands still."""
        found = self.observer.execute(ROWS, {"thread": thread}).fetchall()
        return frozenset((tuple(key), value) for key, value in found)

    async def burst(self, ops: Iterable[Op], fault: Fault = Fault()) -> None:
        """Issue the operations in that order, while this breaks, and compare."""
        ops = [replace(op, value=next(self.values)) for op in ops]
        if fault.kind == "late":
            # What nobody repeats may come late, and so may the first attempt of a DO NOTHING.
            ops = [replace(op, cancel=None) for op in ops if op.kind != "delete"]
        seen: list[tuple[int, State]] = []

        async def follow(at: int, op: Op) -> Any:
            result = await perform(self.saver, op)
            seen.append((at, self.rows(op.thread)))
            return result

        self.arm(fault)
        others = [asyncio.create_task(self.strike(fault))]
        tasks = []
        for at, op in enumerate(ops):
            await go_round(op.wait)
            tasks.append(asyncio.create_task(follow(at, op)))
            if op.cancel is not None:
                others.append(asyncio.create_task(cancel_after(op.cancel, tasks[-1])))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*others)
        self.disarm()
        await self.at_rest()
        self.compare(ops, results, seen, fault)

    def arm(self, fault: Fault) -> None:
        """What happens by itself, on the way."""
        match fault.kind:
            case "cut" | "end":
                reset = fault.kind == "cut"
                self.proxy.cut_after(fault.at, fault.direction, n=fault.times, reset=reset)
            case "lose responses":
                self.proxy.lose_responses(fault.times)
            case "late":
                self.proxy.hold_requests(1)
            case "lock":
                self.blocker.execute("BEGIN")
                self.blocker.execute("LOCK checkpoints IN EXCLUSIVE MODE")

    async def strike(self, fault: Fault) -> None:
        """What happens at some time."""
        await go_round(fault.at)
        match fault.kind:
            case "reset" | "drop":
                getattr(self.proxy, fault.kind)()
            case "terminate one" | "terminate all":
                limit = 1 if fault.kind == "terminate one" else 100
                strangers = f"{OTHERS} NOT IN (pg_backend_pid(), %s) LIMIT {limit}"
                pids = f"SELECT pid {strangers}"
                self.observer.execute(
                    f"SELECT pg_terminate_backend(pid) FROM ({pids}) AS pids",
                    [self.blocker.info.backend_pid],
                )
            case "late":  # when it has been given up, and perhaps repeated
                await asyncio.sleep(2 * ATTEMPT)
                self.proxy.release()
            case "lock":
                await asyncio.sleep(0.15)
                self.blocker.execute("ROLLBACK")

    def disarm(self) -> None:
        self.proxy.cut_after(0, n=0)
        self.proxy.lose_responses(0)

    async def at_rest(self) -> None:
        """Wait until nothing is under way any more, neither here nor in the server."""

        def is_at_rest() -> bool:
            pool = self.saver.conn.snapshot()
            (backends,) = self.observer.execute(f"SELECT count(*) {OTHERS} IS NOT NULL").fetchone()
            return not (pool.borrowed + pool.waiting) and backends == pool.size + 2

        await eventually(is_at_rest)

    def compare(
        self, ops: list[Op], results: list[Any], seen: list[tuple[int, State]], fault: Fault
    ) -> None:
        """The rows of each thread, and what its operations have seen, with the model."""
        for thread in dict.fromkeys(op.thread for op in ops):
            line = [at for at, op in enumerate(ops) if op.thread == thread]
            may_be = {at: set[State]() for at in line}
            now = {self.states.get(thread, EMPTY)}
            for place, at in enumerate(line):
                if fault.loses:
                    rest = [(ops[each], results[each]) for each in line[place:]]
                    now |= after_losses(rest, now)
                may_be[at] = now = outcomes(ops[at], results[at], now)
            story = "\n".join(f"{ops[at]}: {results[at]!r}" for at in line)
            self.states[thread] = self.rows(thread)
            assert self.states[thread] in now, story
            for at, state in seen:
                if ops[at].thread == thread:
                    later = set[State]().union(*(may_be[each] for each in line if each >= at))
                    assert state in later, f"{ops[at]} was said to be done, and was not: {story}"


def after_losses(line: Sequence[tuple[Op, Any]], before: set[State]) -> set[State]:
    """What the rows may be while the first of `line` is repeated.

    The attempts that were lost, two at most, may have done more than that: what was sent with it
    was in the same transaction.
    """
    once = after_attempt(line, before)
    return once | after_attempt(line, once)


def after_attempt(line: Sequence[tuple[Op, Any]], before: set[State]) -> set[State]:
    """The rows after each number of operations that may have been sent together."""
    now, found = before, set[State]()
    for at, (op, result) in enumerate(line):
        after = {op.apply(state) for state in now}
        left = isinstance(result, asyncio.CancelledError)  # perhaps before it was sent
        if op.kind != "delete":
            now = now | after if left else after
            found |= now
            continue
        found |= set() if at else after  # it is sent alone
        if not left:
            break
    return found


def outcomes(op: Op, result: Any, before: set[State]) -> set[State]:
    """What the rows may be after an operation."""
    after = {op.apply(state) for state in before}
    if isinstance(result, asyncio.CancelledError):
        return before | after
    if op.kind in INVALID:
        assert INVALID[op.kind] is type(result)
        return before
    if isinstance(result, BaseException):
        raise result
    if op.kind == "read":
        after = {state for state in before if seen_in(state) == result}
        assert after, f"{op} has seen {result}, and there may be {[*map(seen_in, before)]}"
    return after


async def go_round(times: int) -> None:
    """Let the event loop go round."""
    for _ in range(times):
        await asyncio.sleep(0)


async def cancel_after(times: int, task: "asyncio.Task[Any]") -> None:
    await go_round(times)
    task.cancel()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is full sooner; and what has been quick once is serialized at once, in its turn."""
    monkeypatch.setattr(batching, "_MOST", 8)
    monkeypatch.setattr("lghard.postgres.serializing._QUICK", math.inf)


# Bursts at random

KINDS = ["put", "put", "messages", "special", "read", "read", "delete", *INVALID]
ROUNDS = st.one_of(st.just(0), st.integers(0, 300))

ops = st.builds(
    Op,
    kind=st.sampled_from(KINDS),
    thread=st.sampled_from(["t", "u", "v"]),
    target=st.integers(1, 2),
    wait=st.one_of(st.just(0), st.just(0), st.integers(0, 100)),
    cancel=st.one_of(st.none(), st.none(), st.none(), ROUNDS),
)
faults = st.one_of(
    st.builds(
        Fault,
        kind=st.sampled_from(["cut", "end"]),
        at=st.integers(0, 6_000),
        direction=st.sampled_from(["up", "down"]),
        times=st.integers(1, 3),
    ),
    st.builds(
        Fault,
        kind=st.sampled_from(["reset", "drop", "terminate one", "terminate all"]),
        at=st.integers(0, 300),
    ),
    st.builds(Fault, kind=st.just("lose responses"), times=st.integers(1, 3)),
    st.builds(Fault, kind=st.sampled_from(["none", "lock", "late"])),
)


async def play(server: Any, conninfo: str, bursts: Iterable[tuple[list[Op], Fault]]) -> None:
    async with Fire(server, conninfo) as fire:
        for ops, fault in bursts:
            await fire.burst(ops, fault)


bursts = st.lists(st.tuples(st.lists(ops, min_size=1, max_size=14), faults), min_size=1, max_size=6)


# What depends on the moment cannot be made smaller by trying.
@settings(phases=[Phase.generate])
@given(bursts=bursts)
def test_bursts(
    lghard_postgres: Any, lghard_database: str, bursts: list[tuple[list[Op], Fault]]
) -> None:
    """Every valid operation whose caller stays is done once, in its turn, and as a whole."""
    asyncio.run(play(lghard_postgres, lghard_database, bursts))


# Every boundary between two messages


TOGETHER = [
    Op("put", "t", 1),
    Op("messages", "t", 1),
    Op("special", "t", 1),
    Op("read", "t", 1),
    Op("put", "u", 1),
    Op("read", "v", 1),
]
ONE_BY_ONE = [Op("refused by the server", "t", 1), Op("put", "t", 1)]


class Recorder:
    """What has passed in the proxy in one direction."""

    def __init__(self, proxy: FaultProxy, direction: str) -> None:
        self.direction, self.stream = direction, b""
        proxy._relay.traps = (self, *proxy._relay.traps)

    def spring(self, lane: Any, chunk: bytes) -> bytes:
        """Remember what passes."""
        if lane.direction == self.direction:
            self.stream += chunk
        return chunk

    def boundaries(self) -> Iterator[int]:
        """Where each message begins: a letter, and four bytes with the length of the rest.

        https://www.postgresql.org/docs/current/protocol-overview.html
        """
        at = 0
        while at < len(self.stream):
            yield at
            at += 1 + int.from_bytes(self.stream[at + 1 : at + 5], "big")


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("ops", [TOGETHER, ONE_BY_ONE], ids=["together", "one by one"])
async def test_every_boundary(
    lghard_postgres: Any,
    lghard_database: str,
    monkeypatch: pytest.MonkeyPatch,
    ops: list[Op],
    direction: str,
) -> None:
    """A connection that is cut between any two messages costs nothing, not even the order."""
    names = map("_lghard_{:06}".format, count())
    monkeypatch.setattr("lghard.postgres.statements._names", names)  # all of the same length
    async with Fire(lghard_postgres, lghard_database, connections=1) as fire:

        async def fresh_connection() -> None:
            """On which nothing is prepared."""
            async with fire.saver.conn.connection() as conn:
                await conn.close()
            await eventually(lambda: fire.saver.conn.snapshot().idle)

        await fresh_connection()
        recorder = Recorder(fire.proxy, direction)
        await fire.burst(ops)
        for number, at in enumerate([*recorder.boundaries()]):
            await fresh_connection()
            accepted = fire.proxy.accepted
            fault = Fault(["cut", "end"][number % 2], at, direction)
            await fire.burst([replace(op, thread=f"{op.thread}{number:04}") for op in ops], fault)
            assert accepted < fire.proxy.accepted  # it was cut, and replaced
