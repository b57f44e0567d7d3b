"""What type checkers see of thread ids and of who may do what with a thread."""

from typing import Any, assert_type
from uuid import UUID

from langchain_core.runnables import RunnableConfig
from langgraph.types import StateSnapshot

from lghard import Principal, Role, ThreadAccess, ThreadId, ThreadNamespace
from lghard.threads import Action


def ids(threads: ThreadNamespace) -> None:
    """An id is a str; parts are text, numbers and UUIDs."""
    thread = threads.id(tenant="acme", user=7, session=UUID(int=0))
    assert_type(thread, ThreadId)
    text: str = thread
    assert_type(threads.parse(text), dict[str, str])
    assert_type(thread.uuid, UUID)
    assert_type(thread.metadata, dict[str, str])
    assert_type(threads.prefix(tenant="acme"), str)
    assert_type(ThreadNamespace.new_session(), str)
    assert_type(ThreadNamespace.from_pattern("report-{user}-{date}"), ThreadNamespace)
    threads.id(tenant=None)  # pyright: ignore[reportArgumentType]
    threads.id(tenant=b"acme")  # pyright: ignore[reportArgumentType]
    threads.id("acme")  # pyright: ignore[reportCallIssue]


def configs(threads: ThreadNamespace, given: RunnableConfig) -> None:
    """A config is upstream's."""
    assert_type(threads.config(tenant="acme"), RunnableConfig)
    assert_type(threads.config(given, tenant="acme", config="a field"), RunnableConfig)


def access(access: ThreadAccess, snapshot: StateSnapshot, state: dict[str, Any]) -> None:
    """What was authorized is an id; a state is LangGraph's, or a server's."""
    ada = Principal("acme", "ada", roles=["member"])
    action: Action = "read"
    assert_type(access.authorize(ada, action, "acme:ada:7"), ThreadId)
    assert_type(access.may(ada, "delete", "acme:ada:7"), bool)
    access.authorize_resume(ada, "acme:ada:7", snapshot, {"id": "yes"}, kind="approval")
    access.authorize_write(ada, "acme:ada:7", state, seen=["id"])
    access.authorize_update(ada, "acme:ada:7", state)
    access.authorize(ada, "update", "acme:ada:7")  # pyright: ignore[reportArgumentType]
    access.authorize_resume(ada, "x", snapshot, "yes")  # pyright: ignore[reportArgumentType]


def roles(threads: ThreadNamespace) -> None:
    """Actions are known by name."""
    member = Role(own={"read", "write"}, answers={"question"})
    ThreadAccess(threads, roles={"member": member}, tenant=None, kind=str)
    Role(own={"update"})  # pyright: ignore[reportArgumentType]
    Role({"read"})  # pyright: ignore[reportCallIssue]
