"""A graph for a server: it answers with what it was given, and with its environment."""

import os
from typing import TypedDict

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import StateGraph


class State(TypedDict):
    text: str


class MarkingSaver(InMemorySaver):
    """Makes the file that MARK names, so that a test sees it is used."""

    async def aput(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        os.close(os.open(os.environ["MARK"], os.O_CREAT))
        return await super().aput(*args, **kwargs)


async def echo(state: State) -> State:
    """Answer."""
    return {"text": state["text"] + os.environ.get("ECHO_SUFFIX", "")}


builder = StateGraph(State)
builder.add_node("echo", echo)
builder.set_entry_point("echo")
graph = builder.compile()


def checkpointer() -> MarkingSaver:
    """Make the server's own checkpointer."""
    return MarkingSaver()
