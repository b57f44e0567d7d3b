"""What is said of a store's value is what PostgresStore does with it."""

from datetime import date
from typing import Any

import pytest
from langgraph.store.memory import InMemoryStore
from langgraph.store.postgres.aio import AsyncPostgresStore

from lghard import check_value
from lghard.testing import TemporaryPostgres
from tests.state.fingerprint import fingerprint
from tests.state.zoo import Color, Flat, Level, Mode, Text

CASES: dict[str, tuple[Any, str]] = {
    "plain": ({"a": [1, 2.5, None, True, "é", {"b": []}]}, ""),
    "large int": ({"a": 2**70}, ""),
    "date": ({"a": date(2026, 1, 1)}, "LGS112"),
    "model": ({"a": Flat()}, "LGS112"),
    "enum": ({"a": Color.RED}, "LGS112"),
    "set": ({"a": {1}}, "LGS112"),
    "bytes": ({"a": b"x"}, "LGS112"),
    "tuple": ({"a": (1,)}, "LGS301"),
    "int key": ({"a": {1: 2}}, "LGS302"),
    "tuple key": ({"a": {(1,): 2}}, "LGS104"),
    "int enum": ({"a": Level.LOW}, "LGS307"),
    "str enum": ({"a": Mode.FAST}, "LGS307"),
    "str subclass": ({"a": Text("x")}, "LGS303"),
    "NUL": ({"a": ["x\0"]}, "LGS120"),
    "NUL in a key": ({"a\0": 1}, "LGS120"),
    "nan": ({"a": [float("nan")]}, "LGS121"),
    "surrogate": ({"a": ["\ud800"]}, "LGS122"),
    "large float": ({"a": [1e16]}, "LGS307"),
}


@pytest.mark.parametrize("name", CASES)
async def test_what_is_said_is_what_postgres_does(
    name: str, lghard_postgres: TemporaryPostgres, conninfo: str
) -> None:
    """It raises, comes back different, or comes back equal, as the report says."""
    value, rules = CASES[name]
    report = check_value(value, store=True)
    assert rules == " ".join(report.rules)
    async with AsyncPostgresStore.from_conn_string(conninfo) as store:
        await store.setup()
        try:
            await store.aput(("a",), name, value)
            item = await store.aget(("a",), name)
            happened = "equal" if fingerprint(value) == fingerprint(item.value) else "different"
        except Exception:
            happened = "raises"
    promised = "equal" if report.clean else {4: "raises"}.get(report.worst or 0, "different")
    assert promised == happened


@pytest.fixture(scope="module")
def conninfo(lghard_postgres: TemporaryPostgres) -> str:
    return lghard_postgres.create_database()


def test_in_memory_hides_it() -> None:
    """The control: it keeps the live object."""
    store = InMemoryStore()
    store.put(("a",), "1", {"a": Flat()})
    assert isinstance(store.get(("a",), "1").value["a"], Flat)
