"""A graph with a dozen hazards, each where people put it."""

import asyncio
import enum
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, TypedDict

from langgraph.channels.untracked_value import UntrackedValue
from langgraph.graph import END, START, StateGraph
from langgraph.types import CachePolicy, Send
from pydantic import BaseModel, ConfigDict, Field, SecretStr


class Mood(str, enum.Enum):  # noqa: UP042
    GOOD = "good"


class Animal(BaseModel):
    name: str


class Dog(Animal):
    tricks: int = 0


class Owner(BaseModel):
    pet: Animal


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True)
    first_name: str = Field("", alias="firstName")


@dataclass
class Order:
    lines: list[tuple[str, int]] = field(default_factory=list)
    paid: bool = False


class Token:
    def __init__(self, text: str) -> None:
        self.text = text


def add(a: list[str], b: list[str]) -> list[str]:
    return a + b


class State(TypedDict):
    size: tuple[int, int]
    mood: Mood
    counts: defaultdict[str, int]
    owner: Owner
    answer: Answer
    order: Order
    token: Token
    callback: Callable[[str], None]
    seen: set[tuple[str, str]]
    by_id: dict[uuid.UUID, str]
    started: datetime
    api_key: SecretStr
    names: Annotated[list[str], add]
    anything: dict[str, Any]
    allowed: tuple[int, int]  # lghard: ignore[LGS301]
    lock: Annotated[threading.Lock, UntrackedValue]


class Job(BaseModel):
    _tries: int = 0
    what: str = ""


async def fetch(name: str) -> str:
    await asyncio.sleep(0)
    return name


def plan(state: State) -> dict[str, Any]:
    return {"namse": ["a"]}


def count(state: State) -> list[str]:
    return state["names"]


def ask(state: State) -> dict[str, Any]:
    return {"names": fetch("a")}


def work(job: Job) -> dict[str, Any]:
    return {"names": [job.what]}


def spread(state: State) -> list[Send]:
    return [Send("work", Job(what=name)) for name in state["names"]]


def fine(state: State) -> dict[str, Any] | None:
    return {"names": []}


builder = StateGraph(State)
builder.add_node("plan", plan, cache_policy=CachePolicy())
builder.add_node("count", count)
builder.add_node("ask", ask)
builder.add_node("work", work)
builder.add_node("fine", fine)
builder.add_edge(START, "plan")
builder.add_edge("plan", "count")
builder.add_edge("count", "ask")
builder.add_conditional_edges("ask", spread, ["work"])
builder.add_edge("work", "fine")
builder.add_edge("fine", END)
graph = builder.compile()
