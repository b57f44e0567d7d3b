"""Two tenants on a LangGraph server: what one gets of the other, without and with handlers.

    uv run examples/tenants_on_server.py

Two real `langgraph dev` are started. The first has no handlers, as it comes; the second has those
of `examples/tenants/auth.py`. On each, Ada of acme has a thread that waits for an answer, and Bob
of beta, who has guessed the parts of its id and computed its UUID, tries what he can.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

import httpx
import jwt
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lghard import ThreadNamespace
from lghard.testing import langgraph_server

FOLDER = Path(__file__).parent / "tenants"
JWT_SECRET = token_hex(32)

threads = ThreadNamespace("tenant", "user", "session")
ADAS = threads.id(tenant="acme", user="ada", session="7")
ID = str(ADAS.uuid)
WISH = {"wish": "a pony"}

ATTEMPTS: dict[str, Callable[[LangGraphClient], Awaitable[Any]]] = {
    "find it": lambda bob: bob.threads.search(metadata=threads.metadata(tenant="acme")),
    "read it": lambda bob: bob.threads.get_state(ID),
    "read its history": lambda bob: bob.threads.get_history(ID),
    "take it": lambda bob: bob.threads.update(ID, metadata={"lghard_tenant": "beta"}),
    "give the answer": lambda bob: bob.runs.wait(ID, "agent", command={"resume": "yes"}),
    "set its state": lambda bob: bob.threads.update_state(ID, {"answer": "yes"}),
    "write to it": lambda bob: bob.runs.wait(ID, "agent", input={"wish": "mine"}),
    "copy it": lambda bob: bob.threads.copy(ID),
    "delete it": lambda bob: bob.threads.delete(ID),
}


def client(url: str, tenant: str, user: str) -> LangGraphClient:
    """With a token, as whoever has signed them would give it."""
    claims = {"tenant": tenant, "sub": user, "aud": "chat", "exp": time.time() + 600}
    token = jwt.encode(claims, JWT_SECRET, "HS256")
    return get_client(url=url, headers={"Authorization": f"Bearer {token}"})


async def attack(url: str, step: Callable[[], None]) -> list[str]:
    """What became of each attempt."""
    async with client(url, "acme", "ada") as ada, client(url, "beta", "bob") as bob:
        await ada.threads.create(thread_id=ID, metadata=ADAS.metadata)
        await ada.runs.wait(ID, "agent", input=WISH)
        outcomes = []
        for attempt in ATTEMPTS.values():
            outcomes.append(await outcome(attempt(bob)))
            step()
        return outcomes


async def outcome(attempt: Awaitable[Any]) -> str:
    try:
        found = await attempt
    except httpx.HTTPStatusError as error:
        return f"refused: {error.response.status_code}"
    return "nothing" if found == [] else "done"


async def main(console: Console) -> list[list[str]]:
    columns = []
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for name, auth in (("without handlers", None), ("tenants/auth.py", "./auth.py:auth")):
            if not console.is_terminal:
                console.print(f"{name}: {len(ATTEMPTS)} attempts ...")
            bar = progress.add_task(name, total=len(ATTEMPTS))
            with langgraph_server(
                {"agent": "./asking.py:graph"},
                directory=FOLDER,
                auth=auth,
                env={"JWT_SECRET": JWT_SECRET},
            ) as server:
                columns.append(await attack(server.url, partial(progress.advance, bar)))
    return columns


def table(console: Console, columns: list[list[str]]) -> Table:
    title = "What Bob of beta gets of a thread of Ada's of acme"
    shown = Table("attempt", "without handlers", "tenants/auth.py", title=title)
    shown.box = box.ROUNDED if console.is_terminal else box.ASCII
    for row in zip(ATTEMPTS, *columns, strict=True):
        shown.add_row(*row)
    return shown


if __name__ == "__main__":
    logging.getLogger("httpx").setLevel(logging.ERROR)
    console = Console()
    without, ours = asyncio.run(main(console))
    console.print(table(console, [without, ours]))
    sys.exit("done" in ours)
