"""The errors of lghard that need no other package.

Database and HTTP errors stay psycopg's and langgraph_sdk's own; these exist only where upstream
has none. One that is also a psycopg or SDK class lives in its room.
"""

from typing import Any


class LghardError(Exception):
    """Base of every error that lghard itself defines."""

    __module__ = "lghard"


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


class ThreadDeletedError(LghardError):
    """A write came too late: its thread has been deleted, and the checkpointer has a fence.

    Nothing was written.
    """

    __module__ = "lghard"
