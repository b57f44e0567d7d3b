"""What Postgres does to a channel's own value: written here, read elsewhere."""

import asyncio
import json
import subprocess
import sys
from typing import Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import StateGraph

from lghard import StateNotSerializableError, open_checkpointer
from lghard.state import CheckedSerializer, check_value, checked
from lghard.testing import TemporaryPostgres
from tests.state.fingerprint import fingerprint
from tests.state.reader import ROOT
from tests.state.zoo import Access, Color, Level, Mode, OldMode, Text

CASES: dict[str, tuple[Any, str]] = {
    "text": ("héllo", ""),
    "quotes and newlines": ('"\n\t\\u0000', ""),
    "NUL": ("a\0b", "LGS120"),
    "nan": (float("nan"), "LGS121"),
    "inf": (float("inf"), "LGS121"),
    "-inf": (float("-inf"), "LGS121"),
    "lone surrogate": ("a\ud800", "LGS122"),
    "split pair": ("\ud83d\ude00", "LGS221"),
    "int enum": (Level.LOW, "LGS307"),
    "str enum": (Mode.FAST, "LGS307"),
    "old str enum": (OldMode.SLOW, "LGS307"),
    "plain enum": (Color.RED, ""),
    "flag": (Access.READ, ""),
    "1e16": (1e16, "LGS307"),
    "-1e300": (-1e300, "LGS307"),
    "just below": (9999999999999998.0, ""),
    "small": (5e-324, ""),
    "pi": (3.141592653589793, ""),
    "minus zero": (-0.0, "LGS307"),
    "zero": (0.0, ""),
    "largest int": (2**63 - 1, ""),
    "64 bits": (2**64 - 1, ""),
    "65 bits": (2**64, "LGS103"),
    "true": (True, ""),
    "none": (None, ""),
    "subclass": (Text("x"), "LGS303"),
    "NUL in a list": (["a\0b"], ""),
    "nan in a list": ([float("nan")], ""),
}


class State(TypedDict, total=False):
    value: Any


def graph_of(value: Any) -> Any:
    builder = StateGraph(State)
    builder.add_node("make", lambda _: {"value": value})
    builder.set_entry_point("make")
    return builder


READ = """
import asyncio, json, logging, sys
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from tests.state.fingerprint import fingerprint

async def main():
    logging.disable(logging.CRITICAL)
    found = {}
    async with AsyncPostgresSaver.from_conn_string(sys.argv[1]) as saver:
        for name in json.loads(sys.argv[2]):
            config = {"configurable": {"thread_id": name}}
            saved = await saver.aget_tuple(config)
            values = saved.checkpoint["channel_values"] if saved else {}
            found[name] = fingerprint(values["value"]) if "value" in values else "nothing"
    print(json.dumps(found))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def truth(lghard_postgres: TemporaryPostgres) -> dict[str, str]:
    """What each value comes back as, from upstream's saver; or that it raised."""
    conninfo = lghard_postgres.create_database()
    raised = asyncio.run(write(conninfo))
    command = [sys.executable, "-c", READ, conninfo, json.dumps([*CASES])]
    printed = subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout
    return {**json.loads(printed), **raised}


async def write(conninfo: str) -> dict[str, str]:
    raised = {}
    async with AsyncPostgresSaver.from_conn_string(conninfo) as saver:
        await saver.setup()
        for name, (value, _) in CASES.items():
            graph = graph_of(value).compile(checkpointer=saver)
            try:
                await graph.ainvoke({}, {"configurable": {"thread_id": name}}, durability="sync")
            except Exception:
                raised[name] = "raises"
    return raised


@pytest.mark.parametrize("name", CASES)
def test_what_is_said_is_what_postgres_does(name: str, truth: dict[str, str]) -> None:
    """Nothing is said of what comes back equal; an error raises; else it is different."""
    value, expected = CASES[name]
    report = check_value({"value": value})
    assert expected == " ".join(report.rules)
    happened = "" if truth[name] == fingerprint(value) else truth[name]
    promised = {None: "", 4: "raises"}.get(report.worst, happened or "different")
    assert promised == happened


@pytest.mark.parametrize(
    "name", [n for n, (_, rule) in CASES.items() if rule in ("LGS120", "LGS121", "LGS122")]
)
def test_in_memory_hides_it(name: str) -> None:
    """The control: with InMemorySaver, nobody hears about it."""
    config = {"configurable": {"thread_id": "1"}}
    graph = graph_of(CASES[name][0]).compile(checkpointer=InMemorySaver())
    graph.invoke({}, config)
    assert "value" in graph.get_state(config).values


@pytest.fixture
def database(lghard_postgres: TemporaryPostgres) -> str:
    return lghard_postgres.create_database()


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_the_saver_asks_the_serializer_about_what_stands_in_the_checkpoint(
    database: str, durability: Any
) -> None:
    """Under exit, no write goes to the serializer: the value is only in the checkpoint."""
    async with open_checkpointer(database, serde=CheckedSerializer()) as saver:
        graph = graph_of("a\0b").compile(checkpointer=saver)
        with pytest.raises(StateNotSerializableError, match="LGS120"):
            await graph.ainvoke({}, {"configurable": {"thread_id": "1"}}, durability=durability)


async def test_nul_is_stripped_on_request(database: str) -> None:
    """From the write, and from what stands in the checkpoint itself."""
    config: Any = {"configurable": {"thread_id": "1"}}
    async with open_checkpointer(database, serde=CheckedSerializer(on_nul="strip")) as saver:
        graph = graph_of("a\0b").compile(checkpointer=saver)
        await graph.ainvoke({}, config)
        assert "ab" == (await graph.aget_state(config)).values["value"]


async def test_a_checked_graph_refuses_it_with_any_saver() -> None:
    """Also with one that has never heard of lghard."""
    graph = checked(graph_of("a\0b")).compile(checkpointer=InMemorySaver())
    with pytest.raises(StateNotSerializableError, match=r"node 'make'[^$]*\$\.value"):
        await graph.ainvoke({}, {"configurable": {"thread_id": "1"}})
