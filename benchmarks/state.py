"""What it costs to look at a state before it is stored, as shares of what storing it costs.

`uv run benchmarks/state.py`; what it means stands in benchmarks/README.md.
"""

import argparse
import gc
import json
import random
import statistics
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import ormsgpack
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from report import RESULTS, Goal, progress, show, table
from rich.table import Table

from lghard.state import CheckedSerializer, check_value

UPSTREAM, CHECKED = JsonPlusSerializer(), CheckedSerializer()
WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dogs",
    "and",
    "some",
    "more",
    "words",
    "of",
    "a",
    "model",
]


def text(words: int) -> str:
    return " ".join(random.choice(WORDS) for _ in range(words))


def messages(count: int) -> list[Any]:
    """Questions, calls of tools, their results and answers, as an agent has them."""
    return [MAKERS[i % len(MAKERS)]() for i in range(count)]


def usage() -> Any:
    spent, made = random.randint(100, 3000), random.randint(10, 900)
    return {"input_tokens": spent, "output_tokens": made, "total_tokens": spent + made}


MAKERS: tuple[Callable[[], Any], ...] = (
    lambda: HumanMessage(text(120), id=str(uuid.uuid4())),
    lambda: AIMessage(
        "",
        id=f"run-{uuid.uuid4()}",
        tool_calls=[{"name": "search", "args": {"q": text(5)}, "id": f"call_{uuid.uuid4().hex}"}],
        usage_metadata=usage(),
        response_metadata={"model_name": "m", "finish_reason": "tool_calls"},
    ),
    lambda: ToolMessage(text(150), tool_call_id="call", id=str(uuid.uuid4()), name="search"),
    lambda: AIMessage(
        text(130),
        id=f"run-{uuid.uuid4()}",
        usage_metadata=usage(),
        response_metadata={"model_name": "m", "finish_reason": "stop"},
    ),
)


def record(i: int) -> dict[str, Any]:
    return {
        "id": i,
        "name": f"n{i}",
        "tags": ["a", "b", "c"],
        "score": random.random(),
        "nested": {"x": i * 7, "y": [1, 2, 3, None, True], "t": text(random.randint(1, 8))},
    }


def fastest(repeats: int, *functions: Callable[[], object]) -> list[float]:
    """Microseconds of each, at its best; in turns, so that a neighbour disturbs all alike."""
    taken: list[list[float]] = [[] for _ in functions]
    gc.collect()
    gc.disable()  # as timeit does: whose turn it is to tidy up is chance
    for _ in range(repeats):
        for function, times in zip(functions, taken, strict=True):
            began = time.perf_counter()
            function()
            times.append((time.perf_counter() - began) * 1e6)
    gc.enable()
    return [statistics.quantiles(times, n=20)[0] for times in taken]


def plain(value: Any) -> Any:
    """What is in it, for the floor: C over data that has no objects."""
    return [m.__dict__ for m in value] if isinstance(value[0], HumanMessage) else value


def measure(repeats: int) -> list[dict[str, Any]]:
    """Each kind of state: upstream's dump, and what else is done with it."""
    kinds = {
        "10 messages": messages(10),
        "100 messages": messages(100),
        "1000 messages": messages(1000),
        "plain JSON": [record(i) for i in range(900)],
    }
    thousand, writes = kinds["1000 messages"], messages(4)
    rows = []
    with progress(len(kinds)) as step:
        for name, value in kinds.items():
            step(name)
            bare = plain(value)
            dump, check, checked, floor = fastest(
                repeats,
                lambda v=value: UPSTREAM.dumps_typed(v),  # type: ignore[misc]
                lambda v=value: check_value(v, channel="c"),  # type: ignore[misc]
                lambda v=value: CHECKED.dumps_typed(v),  # type: ignore[misc]
                lambda v=bare: ormsgpack.packb(v),  # type: ignore[misc]
            )
            rows.append({"state": name, "dump": dump, "check": check, "checked": checked,
                         "floor": floor})  # fmt: skip
    dump, check = fastest(
        repeats,
        lambda: UPSTREAM.dumps_typed(thousand),
        lambda: check_value({"messages": writes}),
    )
    rows.append({"state": "4 new of 1000", "dump": dump, "check": check})
    return rows


def tabulate(rows: list[dict[str, Any]]) -> Table:
    """Shares of upstream's dump of the same value."""
    results = table("", "dumps_typed", "floor: packb", "check_value", "CheckedSerializer")
    for row in rows:
        shares = (_share(row, key) for key in ("floor", "check", "checked"))
        results.add_row(row["state"], f"{row['dump']:.0f} us", *shares)
    return results


def _share(row: dict[str, Any], key: str) -> str:
    return f"{row[key] / row['dump']:.4f}" if key in row else ""


def judge(rows: list[dict[str, Any]]) -> list[Goal]:
    """Whether it is cheap enough to leave on."""
    of = {row["state"]: row for row in rows}
    limits = (
        ("clean messages: check at most 0.12 of a dump", "1000 messages", "check", 0.12),
        ("a node's writes: at most 0.01 of the dump of all", "4 new of 1000", "check", 0.01),
        ("plain JSON: check at most 1.05 of a dump", "plain JSON", "check", 1.05),
        ("messages: CheckedSerializer at most 1.15", "1000 messages", "checked", 1.15),
    )
    goals = []
    for goal, state, key, limit in limits:
        share = of[state][key] / of[state]["dump"]
        goals.append(Goal(goal, f"{share:.4f}", share <= limit))
    return goals


def main() -> int:
    """Measure, show, keep; 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round: does it work?")
    options = parser.parse_args()
    random.seed(1)
    rows = measure(20 if options.quick else 200)
    goals = judge(rows)
    RESULTS.mkdir(exist_ok=True)
    content = {"rows": rows, "goals": [goal._asdict() for goal in goals]}
    (RESULTS / "state.json").write_text(json.dumps(content, indent=2) + "\n")
    notes = ["Shares of upstream's dumps_typed of the same value; the fastest twentieth of each."]
    show("Looking at a state, one thread", tabulate(rows), notes, goals)
    return not all(goal.met for goal in goals)


if __name__ == "__main__":
    sys.exit(main())
