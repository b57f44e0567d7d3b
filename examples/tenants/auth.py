"""Whose threads on a LangGraph server: `"auth": {"path": "./auth.py:auth"}` in langgraph.json.

Copy it, and change how tokens are verified, and what roles there are. A thread is created with
`thread_id=str(thread.uuid)` and `metadata=thread.metadata`, where
`thread = threads.id(tenant=…, user=…, session=…)`. The server keeps the metadata, and shows every
later request only what matches. What has no handler here is refused: crons, the store, changes of
assistants; and so are copies of threads, which would be threads of no session.
"""

import os
from typing import Any

import jwt
from langgraph_sdk import Auth

from lghard import Principal, Role, ThreadAccess, ThreadAccessError, ThreadIdError, ThreadNamespace
from lghard.threads import Action

threads = ThreadNamespace("tenant", "user", "session")
access = ThreadAccess(
    threads,
    roles={
        "member": Role(own={"read", "write", "resume", "update_state", "delete"}),
        "viewer": Role(own={"read"}),
    },
)
NOBODYS = {"lghard": " "}  # no id holds a space, so this filter hides everything
auth = Auth()
Refused = Auth.exceptions.HTTPException


@auth.authenticate
async def authenticate(authorization: str | None) -> dict[str, Any]:
    """The claims of a token that we have signed; nothing else of the request says who it is."""
    try:
        claims = jwt.decode(
            (authorization or "").removeprefix("Bearer "),
            os.environ["JWT_SECRET"],
            algorithms=["HS256"],
            audience="chat",
            options={"require": ["exp", "sub", "tenant"]},
        )
        who = Principal(claims["tenant"], claims["sub"], claims.get("roles", ["member"]))
    except (jwt.InvalidTokenError, ThreadIdError, TypeError) as error:
        raise Refused(status_code=401, detail="no valid token") from error
    # The server takes two users with the same identity for one.
    identity = ThreadNamespace("tenant", "user").id(tenant=who.tenant, user=who.user)
    return {"identity": identity, "who": (who.tenant, who.user, sorted(who.roles))}


def principal(ctx: Auth.types.AuthContext) -> Principal:
    """Who has been authenticated; a developer in LangGraph Studio, for one, is nobody here."""
    try:
        return Principal(*ctx.user["who"])
    except (KeyError, TypeError, AttributeError):
        raise Refused(status_code=403) from None


def own(ctx: Auth.types.AuthContext, action: Action) -> dict[str, str]:
    """What the metadata of their threads has in common: the server hides all others."""
    who = principal(ctx)
    any_of_theirs = threads.id(tenant=who.tenant, user=who.user, session="any")
    if not access.may(who, action, any_of_theirs):
        return NOBODYS
    return threads.metadata(tenant=who.tenant, user=who.user)


def actions(kwargs: dict[str, Any]) -> set[Action]:
    """What a run does with its thread."""
    command = kwargs.get("command") or {}
    found: set[Action] = {"resume"} if command.get("resume") is not None else {"write"}
    return found | {"update_state"} if command.get("update") or command.get("goto") else found


def claims_a_thread(metadata: dict[str, Any] | None) -> bool:
    """Whether somebody says whose a thread is."""
    return any(str(key).startswith("lghard") for key in metadata or {})


def check_claim(ctx: Auth.types.AuthContext, thread_id: Any, metadata: dict[str, Any]) -> None:
    """A thread of their own, under its own UUID: nobody waits there for somebody else's."""
    try:
        thread = access.authorize(principal(ctx), "write", metadata.get("lghard", ""))
    except ThreadAccessError as error:
        raise Refused(status_code=403, detail=str(error)) from error
    if str(thread_id) != str(thread.uuid):
        raise Refused(status_code=403, detail="thread_id must be str(thread.uuid)")
    metadata.update(thread.metadata)


@auth.on
async def refuse(ctx: Auth.types.AuthContext, value: Any) -> bool:  # noqa: ARG001
    """What has no handler of its own; without this one, the server would let everybody."""
    return False


@auth.on.threads.create
async def create(ctx: Auth.types.AuthContext, value: Auth.types.ThreadsCreate) -> dict[str, str]:
    check_claim(ctx, value["thread_id"], value.setdefault("metadata", {}))
    return own(ctx, "write")


@auth.on.threads.create_run
async def create_run(ctx: Auth.types.AuthContext, value: Auth.types.RunsCreate) -> dict[str, str]:
    """A run on a thread of their own, which it may create by the same rule; or on none."""
    metadata, config = value.setdefault("metadata", {}), value["kwargs"].get("config") or {}
    creates = value.get("thread_id") and value.get("if_not_exists") == "create"
    if creates or claims_a_thread(metadata):
        check_claim(ctx, value.get("thread_id"), metadata)
    if claims_a_thread(config.get("metadata")):
        raise Refused(status_code=403, detail="metadata=thread.metadata, and not in config")
    filters = [own(ctx, action) for action in actions(value["kwargs"])]
    if NOBODYS in filters:
        raise Refused(status_code=403, detail="no role of theirs allows it")
    metadata.update(filters[0])  # for the thread that the server makes for a run without one
    return filters[0]


@auth.on.threads.update
async def update(ctx: Auth.types.AuthContext, value: Auth.types.ThreadsUpdate) -> dict[str, str]:
    """Its metadata, its state, its runs; but not whose it is."""
    # The server asks only about threads that exist, so an error would tell strangers that it does.
    return NOBODYS if claims_a_thread(value.get("metadata")) else own(ctx, "update_state")


@auth.on(resources="threads", actions=["read", "delete", "search"])
async def see(ctx: Auth.types.AuthContext, value: Any) -> dict[str, str]:  # noqa: ARG001
    return own(ctx, "delete" if ctx.action == "delete" else "read")


@auth.on(resources="assistants", actions=["read", "search"])
async def choose(ctx: Auth.types.AuthContext, value: Any) -> bool:  # noqa: ARG001
    """Which graphs there are, everybody may know."""
    principal(ctx)
    return True
