"""The errors of lghard that need no other package.

Database and HTTP errors stay psycopg's and langgraph_sdk's own; these exist only where upstream
has none. One that is also a psycopg or SDK class lives in its room.
"""

from datetime import datetime
from typing import Any, cast


class LghardError(Exception):
    """Base of every error that lghard itself defines."""

    __module__ = "lghard"

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is made anew from its `args`, which is too little where it has keywords.
        reduced = cast("tuple[Any, ...]", super().__reduce__())
        return _restored, (*reduced[:2], reduced[2] if len(reduced) > 2 else {})  # noqa: PLR2004


def _restored(kind: type[LghardError], args: tuple[Any, ...], state: dict[str, Any]) -> LghardError:
    """An error that comes out of a worker process or a task queue, as it went in."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ForeignLoopError(LghardError, RuntimeError):
    """Something that belongs to one event loop was used in another.

    Locks, tasks and sockets of asyncio belong to the loop they were made in; in another one they
    fail at a distance, or hang. Open a pool in each loop, or use `shared_pool`, which does.
    """

    __module__ = "lghard"


class SchemaSetupError(LghardError):
    """LangGraph's tables cannot be created or brought up to date.

    The message says what is missing, and which GRANT helps or who must call `setup()`; or which
    session has been at it for too long.
    """

    __module__ = "lghard"


class ThreadDeletedError(LghardError):
    """A write came too late: its thread has been deleted, and the checkpointer has a fence.

    Nothing was written.
    """

    __module__ = "lghard"


class ThreadBusyError(LghardError, TimeoutError):
    """Somebody else is writing to the thread, and was still at it at the deadline.

    Attributes:
        thread_id: the thread.
        holder: the application_name of who has the lock, None if nobody had it by then.
        process: its host and process id.
        since: when it got the lock, by the database's clock.
    """

    __module__ = "lghard"

    thread_id: str = ""
    holder: str | None = None
    process: str | None = None
    since: datetime | None = None


class ThreadLockLostError(LghardError):
    """This holder of a thread's lock has it no longer: somebody else may be writing to the thread.

    What it wrote before stands, nothing is written afterwards. The thread must be read again before
    one goes on.

    Attributes:
        thread_id: the thread.
    """

    __module__ = "lghard"

    thread_id: str = ""


class ThreadIdError(LghardError, ValueError):
    """No thread id can be made of these parts, or this text is not one.

    Attributes:
        field: the field that is wrong, or None if the text as a whole is.
    """

    __module__ = "lghard"

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ThreadAccessError(LghardError, PermissionError):
    """This principal may not do that with this thread.

    Until a principal has passed the checks of the id and its roles, nothing that is stored has been
    looked at: for a stranger, the error is the same whether the thread exists or not.

    Attributes:
        check: which one failed: `id`, `tenant`, `owner` or `role`; then `thread`, `interrupt` or
            `kind`, for those who may know about the thread.
    """

    __module__ = "lghard"

    def __init__(self, message: str, check: str = "") -> None:
        super().__init__(message)
        self.check = check


class RunCancelledError(LghardError):
    """A run was stopped before its graph came to an end: what arrived of it is a part.

    Attributes:
        thread_id: The thread of the run; None for a stateless run.
        run_id: The run, where the server has told it.
        reason: "superseded" by a newer run on its thread, "rolled back" or deleted, "timed out" on
            the server, or "cancelled", when the server does not know more.
    """

    __module__ = "lghard"

    def __init__(
        self, message: str, *, reason: str, thread_id: str | None, run_id: str | None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.thread_id = thread_id
        self.run_id = run_id


class RunDeadlineError(LghardError, TimeoutError):
    """A run took longer than its policy allows, and was cancelled on the server.

    A note says where that could not be done, or was not asked for.

    Attributes:
        limit: Which one: "deadline", "first_event_timeout" or "idle_timeout".
        seconds: How long it is.
        thread_id: The thread of the run; None for a stateless run.
        run_id: The run, where the server has told it.
    """

    __module__ = "lghard"

    def __init__(
        self,
        message: str,
        *,
        limit: str,
        seconds: float,
        thread_id: str | None,
        run_id: str | None,
    ) -> None:
        super().__init__(message)
        self.limit = limit
        self.seconds = seconds
        self.thread_id = thread_id
        self.run_id = run_id


class RunFailedError(LghardError):
    """A graph has raised an error; the message is the server's.

    Attributes:
        error: The name of the error's class on the server.
        message: What it said.
        thread_id: The thread of the run; None for a stateless run.
        run_id: The run, where the server has told it.
    """

    __module__ = "lghard"

    def __init__(
        self, error: str, message: str, *, thread_id: str | None, run_id: str | None
    ) -> None:
        super().__init__(f"{error}: {message}")
        self.error = error
        self.message = message
        self.thread_id = thread_id
        self.run_id = run_id


class RunOutcomeUnknownError(LghardError):
    """It is not known whether a run was created, and finding out by trying could create two.

    The message says why, what was looked at, and what to do next. Calling `create_run_once` again
    with the same key is always safe: it looks again.
    """

    __module__ = "lghard"


class RunKeyReusedError(LghardError, ValueError):
    """A key of `create_run_once` was used before, for a run with other arguments.

    No run was created by this call.
    """

    __module__ = "lghard"


class StateNotSerializableError(LghardError, TypeError):
    """A state, or a part of it, would not come back from a checkpoint as it went in.

    The message is the report: each path, what would happen, and what to do.

    Attributes:
        report: the `Report` with what was found.
    """

    __module__ = "lghard"

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report
