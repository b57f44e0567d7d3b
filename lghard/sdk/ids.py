"""Thread ids that a server would misunderstand are refused before they are sent."""

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import getmembers, iscoroutinefunction, isfunction, signature
from typing import Any, Protocol, TypeVar, runtime_checkable
from uuid import UUID

from lghard.errors import ThreadIdError

C = TypeVar("C", bound=type)


@runtime_checkable
class NamedThread(Protocol):
    """A thread id that has a UUID, and says what it stands for: lghard's `ThreadId` is one."""

    @property
    def uuid(self) -> UUID:
        """The thread's UUID on a server."""

    @property
    def metadata(self) -> Mapping[str, object]:
        """What its thread is created with."""


def server_id(thread_id: object) -> str:
    """Return a thread id as the server knows it.

    Args:
        thread_id: A UUID, as an object or in any of the forms that `uuid.UUID` reads, or an id
            that has one.

    Raises:
        ThreadIdError: It is empty or no UUID.
    """
    if isinstance(thread_id, NamedThread):
        return str(thread_id.uuid)
    try:
        UUID(str(thread_id))
    except ValueError:
        raise ThreadIdError(_advice(thread_id)) from None
    return str(thread_id)


def thread_metadata(thread_id: object) -> dict[str, object] | None:
    """Return what a thread is to be created with, if its id says so."""
    return dict(thread_id.metadata) if isinstance(thread_id, NamedThread) else None


def _advice(thread_id: object) -> str:
    if thread_id == "":
        return (
            "the thread id is empty: a server would take a fresh thread, and forget the"
            " conversation; pass None where none is meant"
        )
    return (
        f"a LangGraph server knows threads by UUID, not {thread_id!r}: map your own ids to UUIDs,"
        " as uuid.uuid5 or a ThreadNamespace do"
    )


def checks_thread_ids(cls: C) -> C:
    """Have each public method that a class inherits look at its `thread_id` first.

    So does a method that a later SDK adds.
    """
    for name, method in getmembers(cls, isfunction):
        if name not in vars(cls) and not name.startswith("_"):
            parameters = [*signature(method).parameters]
            if "thread_id" in parameters:
                setattr(cls, name, _checking(method, parameters.index("thread_id")))
    return cls


def _checking(method: Callable[..., Any], place: int) -> Callable[..., Any]:
    def check(args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, ...]:
        if options.get("thread_id") is not None:
            options["thread_id"] = server_id(options["thread_id"])
        elif len(args) > place and args[place] is not None:
            return (*args[:place], server_id(args[place]), *args[place + 1 :])
        return args

    if iscoroutinefunction(method):

        @wraps(method)
        async def checked_coroutine(*args: Any, **options: Any) -> Any:
            return await method(*check(args, options), **options)

        return checked_coroutine

    @wraps(method)
    def checked(*args: Any, **options: Any) -> Any:
        return method(*check(args, options), **options)

    return checked
