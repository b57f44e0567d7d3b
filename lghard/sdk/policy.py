"""What a client does where its caller says nothing."""

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self, get_args

from langgraph_sdk.schema import DisconnectMode, Durability, IfNotExists, MultitaskStrategy

if TYPE_CHECKING:
    from collections.abc import Iterable

_CHOICES = {
    "on_disconnect": (*get_args(DisconnectMode), None),
    "multitask_strategy": (*get_args(MultitaskStrategy), None),
    "durability": (*get_args(Durability), None),
    "if_not_exists": (*get_args(IfNotExists), None),
}
_DURATIONS = ("deadline", "first_event_timeout", "idle_timeout")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPolicy:
    """The defaults of a client for the runs that it starts; a caller's own argument always wins.

    The server's defaults keep a run going for nobody, queue a second message behind a hanging
    first one, and let a caller wait forever; these do not. `None` leaves a choice to the server,
    a limit of `None` is none.

    Args:
        on_disconnect: What becomes of a run whose reader goes away: "cancel", or "continue".
        multitask_strategy: What a new run does on a thread that has an unfinished one:
            "interrupt" it, "rollback" it, "reject" the new run, or "enqueue" it, the server's
            default. Only for runs on a thread.
        durability: When checkpoints are written: "sync", "async" (the server's default) or
            "exit".
        if_not_exists: What a run does on a thread that does not exist: "reject" (the server's
            default) or "create" it.
        deadline: Seconds until a run must be done, from the request on. The server's own limit
            used to be an hour, and is a day now (`BG_JOB_TIMEOUT_SECS`).
        first_event_timeout: Seconds until a stream must show its first event, which a server
            sends when it begins to work on the run: a queued one has to wait for that.
        idle_timeout: Seconds that a stream may be silent between two events, or a joined one
            before the first. It is the SDK's own read timeout, which the heartbeats of a server
            defeat.
        retries: How often a read or an idempotent write is tried again. What starts a run never
            is.
        circuit: Whether to stop calling a server that fails, until it answers again.
        reconnect: Whether a stream whose connection is lost goes on where it was: see
            `resumable`.

    Raises:
        ValueError: A value is none of the choices, or not a positive number of seconds.

    Example:
        ```python
        client = get_client(url=url, policy=RunPolicy(deadline=120.0, idle_timeout=30.0))
        ```
    """

    on_disconnect: DisconnectMode | None = "cancel"
    multitask_strategy: MultitaskStrategy | None = "interrupt"
    durability: Durability | None = None
    if_not_exists: IfNotExists | None = None
    deadline: float | None = 3600.0
    first_event_timeout: float | None = 120.0
    idle_timeout: float | None = 300.0
    retries: int = 3
    circuit: bool = True
    reconnect: bool = False

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            _check_choice(name, getattr(self, name), choices)
        for name in _DURATIONS:
            _check_duration(name, getattr(self, name))
        if isinstance(self.retries, bool) or not isinstance(self.retries, int) or self.retries < 0:
            raise ValueError(f"retries must be a whole number from 0 on, not {self.retries!r}")

    @classmethod
    def resumable(cls, **overrides: Any) -> Self:
        """Return a policy under which a lost connection costs nothing.

        The run goes on without its reader, and its stream is taken up again after the last event
        that arrived, over any number of resets. A reader who gives up (closes the stream, breaks
        out of it, is cancelled or out of time) has the run cancelled by a request of its own;
        what a process that is killed leaves behind runs on, which "cancel" without `reconnect`
        avoids.

        Args:
            **overrides: Any field of the policy.
        """
        return cls(**{"reconnect": True, **overrides})

    def __repr__(self) -> str:
        changed = [
            f"{field.name}={value!r}"
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default
        ]
        return f"RunPolicy({', '.join(changed)})"


def _check_choice(name: str, value: object, choices: "Iterable[object]") -> None:
    if value not in choices:
        allowed = ", ".join(map(repr, choices))
        raise ValueError(f"{name} must be one of {allowed}, not {value!r}")


def _check_duration(name: str, value: object) -> None:
    if value is None:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:  # type: ignore[operator]
        raise ValueError(
            f"{name} must be a positive number of seconds, or None for no limit, not {value!r}"
        )
