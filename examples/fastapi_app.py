"""Whose conversation a request is about: FastAPI, with JWTs or API keys, on a real Postgres.

    uv run examples/fastapi_app.py

The app is an ordinary one: `uvicorn examples.fastapi_app:app`. Run as a script, it is attacked over
HTTP: by a tenant whose naive ids fall on those of another, and by one that sends other people's ids
in the body. First with ids as they are usually built, `f"{tenant}-{user}-{session}"`, or taken from
the body if it has one; then with `ThreadNamespace` and `ThreadAccess`.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Annotated, Any

import httpx
import jwt
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt
from pydantic import BaseModel
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lghard import (
    Principal,
    Role,
    ThreadAccess,
    ThreadAccessError,
    ThreadBusyError,
    ThreadIdError,
    ThreadNamespace,
    open_checkpointer,
    thread_lock,
)
from lghard.testing import temporary_postgres

# The names of threads, and who may do what. Declared once, and imported by whoever needs them.

threads = ThreadNamespace("tenant", "user", "session")
access = ThreadAccess(
    threads,
    roles={
        "member": Role(own={"read", "write", "resume"}, answers={"question"}),
        "manager": Role(tenant={"read", "resume"}, answers={"approval"}),
    },
)

# Who is asking: a token that we have signed, or an API key of which we have kept the hash.

JWT_SECRET = os.environ.get("JWT_SECRET") or os.urandom(32).hex()
API_KEYS = {
    sha256(b"an API key that is random").hexdigest(): Principal("acme", "robot", {"member"}),
}


def principal(request: Request) -> Principal:
    """The verified principal; nothing in the body, the path or the query has a say in it."""
    if key := request.headers.get("x-api-key"):
        found = API_KEYS.get(sha256(key.encode()).hexdigest())
        if found is None:
            raise HTTPException(401, "unknown API key")
        return found
    try:
        claims = jwt.decode(
            request.headers.get("authorization", "").removeprefix("Bearer "),
            JWT_SECRET,
            algorithms=["HS256"],
            audience="chat",
            options={"require": ["exp", "sub", "tenant"]},
        )
        return Principal(claims["tenant"], claims["sub"], claims.get("roles", []))
    except (jwt.InvalidTokenError, ThreadIdError, TypeError) as error:
        raise HTTPException(401, "no valid token") from error


Me = Annotated[Principal, Depends(principal)]

# Which conversation: one of theirs. The body says which of them; other ids in it are ignored.


class Question(BaseModel):
    """What is said in which session."""

    session: str
    text: str


class Answer(BaseModel):
    """What is answered to which interrupt of which thread."""

    thread_id: str
    interrupt_id: str
    answer: str


async def conversation(
    request: Request, question: Question, me: Me
) -> AsyncIterator[RunnableConfig]:
    """The config of the thread, from the verified claims and the name of the session."""
    config = threads.config(tenant=me.tenant, user=me.user, session=question.session)
    thread_id = config["configurable"]["thread_id"]
    # Nobody else, in whichever replica, writes between this look and the end of the run.
    async with thread_lock(request.app.state.checkpointer, thread_id):
        state = await request.app.state.graph.aget_state(config)
        access.authorize_write(me, thread_id, state)
        yield config


Conversation = Annotated[RunnableConfig, Depends(conversation)]


def agent(state: MessagesState) -> dict[str, Any]:
    text = state["messages"][-1].text
    if "refund" in text:
        approved = interrupt({"kind": "approval", "request": text})
        return {"messages": [f"refund: {approved}"]}
    return {"messages": [f"You said: {text}"]}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    builder = StateGraph(MessagesState)
    builder.add_node("agent", agent)
    builder.add_edge(START, "agent")
    async with open_checkpointer() as checkpointer:  # LGHARD_DATABASE_URI, POSTGRES_URI, …
        app.state.checkpointer = checkpointer
        app.state.graph = builder.compile(checkpointer=checkpointer)
        yield


app = FastAPI(lifespan=lifespan)


@app.exception_handler(ThreadAccessError)
async def refused(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=403)


@app.exception_handler(ThreadIdError)
async def no_id(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=422)


@app.exception_handler(ThreadBusyError)
async def busy(_: Request, __: Exception) -> JSONResponse:
    return JSONResponse({"detail": "this conversation is busy"}, status_code=409)


@app.post("/questions")
async def ask(request: Request, question: Question, config: Conversation) -> Any:
    """Say something in a conversation of one's own."""
    told = {"messages": [("user", question.text)]}
    return await reply(request.app.state.graph, told, config)


@app.post("/answers")
async def answer(request: Request, given: Answer, me: Me) -> Any:
    """Answer what a conversation waits for: here the id is somebody else's, so it is checked."""
    # Before the database is asked, so that not even the time tells whether the thread exists.
    thread_id = access.authorize(me, "resume", given.thread_id)
    config: RunnableConfig = {"configurable": {"thread_id": thread_id}}
    answers = {given.interrupt_id: given.answer}
    graph = request.app.state.graph
    async with thread_lock(request.app.state.checkpointer, thread_id):
        access.authorize_resume(me, thread_id, await graph.aget_state(config), answers)
        return await reply(graph, Command(resume=answers), config)


async def reply(graph: Any, what: Any, config: RunnableConfig) -> dict[str, Any]:
    state = await graph.ainvoke(what, config)
    return {
        "thread_id": config["configurable"]["thread_id"],
        "messages": [message.text for message in state["messages"]],
        "waiting": [found.id for found in state.get("__interrupt__", ())],
    }


# The attack


async def by_hand(request: Request, question: Question, me: Me) -> RunnableConfig:
    """As it is usually written."""
    body = await request.json()
    naive = f"{me.tenant}-{me.user}-{question.session}"
    return {"configurable": {"thread_id": body.get("thread_id", naive)}}


def token(tenant: str, user: str, *roles: str) -> dict[str, str]:
    claims = {"tenant": tenant, "sub": user, "roles": roles or ["member"], "aud": "chat"}
    signed = jwt.encode({**claims, "exp": time.time() + 600}, JWT_SECRET, "HS256")
    return {"authorization": f"Bearer {signed}"}


ADA = token("acme", "eu-ada")
SECRET = "My salary is 100"
ATTEMPTS = {
    "colliding tenant": (token("acme-eu", "ada"), {"session": "1"}),
    "thread_id in the body": (
        token("beta", "bob"),
        {"session": "1", "thread_id": "acme-eu-ada-1", "tenant": "acme", "user": "eu-ada"},
    ),
    "separator in the session": (token("acme", "eu"), {"session": "ada-1"}),
    "escapes in the session": (token("acme", "eu"), {"session": "ada%2D1:acme:eu-ada:1"}),
    "no session": (token("beta", "bob"), {"session": ""}),
}


async def attack(client: httpx.AsyncClient) -> list[str]:
    """What became of each attempt, after Ada has said something."""
    said = await client.post("/questions", json={"session": "1", "text": SECRET}, headers=ADA)
    said.raise_for_status()
    outcomes = []
    for headers, body in ATTEMPTS.values():
        response = await client.post("/questions", json={"text": "Hello"} | body, headers=headers)
        if SECRET in response.text:
            outcomes.append("reads what Ada said")
        elif response.is_success:
            outcomes.append("a thread of its own")
        else:
            outcomes.append(f"refused: {response.status_code}")
    return outcomes


async def approve(client: httpx.AsyncClient) -> list[tuple[str, str]]:
    """Who may answer what a conversation waits for."""
    wish = {"session": "2", "text": "I want a refund"}
    waits = (await client.post("/questions", json=wish, headers=ADA)).json()
    given = {"thread_id": waits["thread_id"], "interrupt_id": waits["waiting"][0], "answer": "yes"}
    outcomes = []
    for name, headers in {
        "Ada herself": ADA,
        "a manager of another tenant": token("beta", "mia", "manager"),
        "a robot with an API key": {"x-api-key": "an API key that is random"},
        "a manager": token("acme", "max", "manager"),
        "a manager, clicking twice": token("acme", "max", "manager"),
    }.items():
        response = await client.post("/answers", json=given, headers=headers)
        detail = response.json().get("detail", "").rpartition("if there is one: ")[2]
        outcomes.append((name, "approved" if response.is_success else f"refused: {detail}"))
    return outcomes


async def main(console: Console) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    with (
        temporary_postgres() as postgres,
        Progress(console=console, disable=not console.is_terminal) as progress,
    ):
        bar = progress.add_task("attacks over HTTP", total=3)
        os.environ["LGHARD_DATABASE_URI"] = await asyncio.to_thread(postgres.create_database)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://app") as client,
        ):
            app.dependency_overrides[conversation] = by_hand
            theirs = await attack(client)
            progress.advance(bar)
            app.dependency_overrides.clear()
            ours = await attack(client)
            progress.advance(bar)
            return theirs, ours, await approve(client)


def show(
    console: Console, theirs: list[str], ours: list[str], approvals: list[tuple[str, str]]
) -> None:
    style = box.ROUNDED if console.is_terminal else box.ASCII
    attacks = Table("attempt", "by hand", "lghard", box=style, title="What strangers get")
    for row in zip(ATTEMPTS, theirs, ours, strict=True):
        attacks.add_row(*row)
    answers = Table("who", "outcome", box=style, title="Who approves Ada's refund")
    for pair in approvals:
        answers.add_row(*pair)
    console.print(attacks, answers)


if __name__ == "__main__":
    console = Console()
    theirs, ours, approvals = asyncio.run(main(console))
    show(console, theirs, ours, approvals)
    approved = [outcome for _, outcome in approvals].count("approved")
    sys.exit(any("Ada" in outcome for outcome in ours) or approved != 1)
