"""What becomes of a run when its reader leaves, when a second message comes, when a line breaks.

    uv run examples/sdk_client.py

A real `langgraph dev` is started, offline; nothing is mocked. Everything is done twice: with
`lghard.get_client`, and with the SDK's own `get_client`. Only the import differs; where the line
breaks, the SDK's own is told `on_disconnect="cancel"`, too.
"""

import asyncio
import json
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import langgraph_sdk
from langgraph_sdk.client import LangGraphClient
from rich import box
from rich.console import Console
from rich.table import Table

import lghard
from lghard.testing import FaultProxy, LangGraphServer, langgraph_server

FOLDER = Path(__file__).parent / "server"
STEPS = 30
PAUSE = 0.05  # seconds a step takes
READ = 2  # updates that are read before something happens
ABANDONED = ("closed", "broken out of", "cancelled", "killed")
READER = """
import asyncio, sys, {module}
async def read(url, thread_id, run_input):
    client = {module}.get_client(url=url, api_key=None)
    async for part in client.runs.stream(thread_id, "slow", input=run_input):
        pass
asyncio.run(read({url!r}, {thread_id!r}, {run_input!r}))
"""


@dataclass
class Contestant:
    """A client, and what became of its runs."""

    name: str
    module: str
    get_client: Callable[..., LangGraphClient]
    answers: dict[str, str] = field(default_factory=dict)


class Scene:
    """A server, and what its runs have done to the world."""

    def __init__(self, server: LangGraphServer, effects: Path) -> None:
        self.server = server
        self.effects = effects

    def times(self, key: str) -> list[float]:
        """When each step of a run was done."""
        lines = map(json.loads, self.effects.read_bytes().splitlines())
        return [line["at"] for line in lines if line["key"] == key]

    async def until(self, key: str, steps: int) -> None:
        while len(self.times(key)) < steps:  # noqa: ASYNC110 - it happens elsewhere
            await asyncio.sleep(0.005)

    async def aftermath(self, thread_id: str, key: str, left_at: float) -> str:
        """What a run still does after its reader has left."""
        async with langgraph_sdk.get_client(url=self.server.url, api_key=None) as client:
            (run,) = await client.runs.list(thread_id)
            await client.runs.join(thread_id, run["run_id"])
        late = [at - left_at for at in self.times(key) if at > left_at]
        return f"{len(late)} steps, {max(late, default=0.0) * 1000:.0f} ms"


def work(steps: int = STEPS) -> tuple[str, dict[str, Any]]:
    key = uuid.uuid4().hex
    return key, {"key": key, "steps": steps, "pause": PAUSE}


async def new_thread(client: LangGraphClient) -> str:
    return (await client.threads.create())["thread_id"]


async def close(client: LangGraphClient, thread_id: str, run_input: dict[str, Any]) -> None:
    """Read two updates, and close the stream."""
    stream: Any = client.runs.stream(thread_id, "slow", input=run_input, stream_mode="updates")
    async with aclosing(stream):
        for _ in range(1 + READ):
            await anext(stream)


async def leave(client: LangGraphClient, thread_id: str, run_input: dict[str, Any]) -> None:
    """Read two updates, and break out of the loop."""
    count = 0
    async for _ in client.runs.stream(thread_id, "slow", input=run_input, stream_mode="updates"):
        count += 1
        if count == 1 + READ:
            break


async def abandon(scene: Scene, contestant: Contestant, client: LangGraphClient) -> None:
    """Close a stream, break out of one, and cancel the task that reads one."""
    for name, how in {"closed": close, "broken out of": leave}.items():
        key, run_input = work()
        thread_id = await new_thread(client)
        await how(client, thread_id, run_input)
        contestant.answers[name] = await scene.aftermath(thread_id, key, time.time())
    key, run_input = work()
    thread_id = await new_thread(client)
    task = asyncio.create_task(client.runs.wait(thread_id, "slow", input=run_input))
    await scene.until(key, READ)
    task.cancel()
    await asyncio.wait([task])
    contestant.answers["cancelled"] = await scene.aftermath(thread_id, key, time.time())


async def kill(scene: Scene, contestant: Contestant, client: LangGraphClient) -> None:
    """Kill the process that reads."""
    key, run_input = work()
    thread_id = await new_thread(client)
    names = {"module": contestant.module, "url": scene.server.url}
    script = READER.format(**names, thread_id=thread_id, run_input=run_input)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
    await scene.until(key, READ)
    process.kill()
    await process.wait()
    contestant.answers["killed"] = await scene.aftermath(thread_id, key, time.time())


async def interrupt(scene: Scene, contestant: Contestant, client: LangGraphClient) -> None:
    """Send a second message while the first is being answered."""
    key, run_input = work()
    thread_id = await new_thread(client)
    first = asyncio.create_task(client.runs.wait(thread_id, "slow", input=run_input))
    await scene.until(key, READ)
    began = time.monotonic()
    await client.runs.wait(thread_id, "slow", input=work(1)[1])
    contestant.answers["second message"] = f"answered after {time.monotonic() - began:.1f} s"
    try:
        await first
    except lghard.RunCancelledError as error:
        contestant.answers["first caller"] = f"told: {error.reason}"
    else:
        contestant.answers["first caller"] = "got a result"


async def reset(scene: Scene, contestant: Contestant) -> None:
    """Reset the connection in the middle of a stream."""
    parts = urlsplit(scene.server.url)
    async with (
        FaultProxy(str(parts.hostname), int(parts.port or 0)) as proxy,
        contestant.get_client(url=proxy.url(scene.server.url), api_key=None) as client,
    ):
        contestant.answers["reset"] = await read_through(proxy, client)


async def read_through(proxy: FaultProxy, client: LangGraphClient) -> str:
    thread_id, count = await new_thread(client), 0
    stream = client.runs.stream(
        thread_id, "slow", input=work(8)[1], stream_mode="updates", on_disconnect="cancel"
    )
    try:
        async for part in stream:
            count += part.event == "updates" and "work" in part.data
            if count == READ:
                proxy.reset()
    except Exception as error:
        return f"raises {type(error).__name__}"
    return f"{count} of 8 updates, no error"


async def show(scene: Scene, contestant: Contestant) -> None:
    async with contestant.get_client(url=scene.server.url, api_key=None) as client:
        await abandon(scene, contestant, client)
        await kill(scene, contestant, client)
        await interrupt(scene, contestant, client)
    await reset(scene, contestant)


def table(console: Console, contestants: list[Contestant]) -> Table:
    title = f"runs of {STEPS} steps, {PAUSE * 1000:.0f} ms each; what a run does after its reader"
    shown = Table("", *(contestant.name for contestant in contestants), title=title)
    shown.box = box.ROUNDED if console.is_terminal else box.ASCII
    for row in contestants[0].answers:
        shown.add_row(row, *(contestant.answers[row] for contestant in contestants))
    return shown


async def main(console: Console) -> list[Contestant]:
    contestants = [
        Contestant("lghard", "lghard", lghard.get_client),
        Contestant("langgraph_sdk", "langgraph_sdk", langgraph_sdk.get_client),
    ]
    with tempfile.TemporaryDirectory() as folder:
        effects = Path(folder) / "effects.jsonl"
        effects.touch()
        options: dict[str, Any] = {"env": {"EFFECTS": str(effects)}, "allow_blocking": True}
        with (
            console.status("starting a LangGraph server"),
            langgraph_server({"slow": "./slow.py:graph"}, directory=FOLDER, **options) as server,
        ):
            for contestant in contestants:
                console.print(f"{contestant.name} ...")
                await show(Scene(server, effects), contestant)
    return contestants


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # all that the SDK says of what it has lost
    console = Console(width=None if sys.stdout.isatty() else 100)
    ours, theirs = asyncio.run(main(console))
    console.print(table(console, [ours, theirs]))
    ends = [[int(each.answers[name].split()[-2]) for each in (ours, theirs)] for name in ABANDONED]
    sys.exit(0 if all(2 * stopped < went_on for stopped, went_on in ends) else 1)
