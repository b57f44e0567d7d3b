"""How a benchmark is shown and kept: progress, a table, its goals, and JSON."""

import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psycopg
from rich import box
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "lghard",
    "langgraph",
    "langgraph-checkpoint-postgres",
    "langgraph-sdk",
    "psycopg",
    "psycopg-pool",
)

_WIDTH_WHEN_PIPED = 110

Name = Literal[
    "batching",
    "concurrent_runs",
    "conversations",
    "kill_storm",
    "leases",
    "loops",
    "pool",
    "sdk",
    "state",
    "thread_ids",
]


class Goal(NamedTuple):
    """What a benchmark is to show, and what it has shown."""

    text: str
    measured: str
    met: bool


@contextmanager
def progress(steps: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, and a function that names the next of `steps` steps."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    # Drawn between the steps only: a refresh in the background would be measured, too.
    bar = Progress(
        *columns,
        console=console,
        auto_refresh=False,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=steps)
        started = 0

        def step(description: str) -> None:
            nonlocal started
            bar.update(task, description=description, completed=started, refresh=True)
            started += 1

        yield step


def table(*columns: str) -> Table:
    """An empty table: the first column is text, the others are numbers."""
    empty = Table(box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        empty.add_column(column, justify="right" if i else "left", no_wrap=True)
    return empty


def show(title: str, results: RenderableType, notes: Sequence[str], goals: Sequence[Goal]) -> None:
    """Print the table or tables, what one should know about it, and whether the goals are met."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH_WHEN_PIPED
    console.print(title, style="bold", markup=False)
    console.print(results)
    for note in notes:
        console.print(note, markup=False)
    for goal in goals:
        verdict = "[green]PASS[/]" if goal.met else "[bold red]FAIL[/]"
        console.print(f"{verdict}  {goal.text}: {goal.measured}")


def count_callers(number: int) -> str:
    """1 caller, 20 callers."""
    return f"{number} caller" + "s" * (number != 1)


def count_bytes(number: float) -> str:
    """1 kB, 5 MB."""
    return f"{number / 1e6:g} MB" if number >= 1e6 else f"{number / 1e3:g} kB"


def keep(name: Name, conninfo: str | None, result: dict[str, Any], goals: Sequence[Goal]) -> None:
    """Write the result, with what it was measured on, to `results/<name>.json`."""
    RESULTS.mkdir(exist_ok=True)
    content = {
        "measured_on": measured_on(conninfo),
        **result,
        "goals": [goal._asdict() for goal in goals],
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def measured_on(conninfo: str | None) -> dict[str, Any]:
    """Machine and versions; without them a number means nothing."""
    postgres = None
    if conninfo is not None:
        with psycopg.connect(conninfo) as conn:
            postgres = conn.info.parameter_status("server_version")
    return {
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "postgres": postgres,
        **{package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"  # run from a checkout, with PYTHONPATH
