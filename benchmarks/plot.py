"""Draw docs/images/*.svg from the results of the benchmarks: `uv run benchmarks/plot.py`.

The same results give the same files, byte for byte, so that a diff shows what was measured anew.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from report import RESULTS, Name, count_callers

IMAGES = Path(__file__).parents[1] / "docs" / "images"

Result = dict[str, Any]

# Text in between: its contrast is more than 4:1 on white and on GitHub's dark #0d1117 alike.
INK = "#7a7a7a"
COLOURS = {
    "upstream": "#8a8f98",
    "upstream, check": "#b0721b",
    "lghard": "#1a8f5a",
}

# By how the contestants of batching.py are called there.
LINES = {
    "upstream, 4": ("upstream, 4 connections", "#8a8f98", "-"),
    "lock-free, 20": ("lghard, 20 connections", "#1a8f5a", "--"),
    "batched, 4": ("lghard, batched, 4 connections", "#1a8f5a", "-"),
    "in memory": ("in memory, no database", "#8a8f98", ":"),
}

ABOVE_THE_RATE: Mapping[str, Any] = {
    "xytext": (0, 19),
    "textcoords": "offset points",
    "horizontalalignment": "center",
    "color": COLOURS["lghard"],
    "weight": "bold",
}

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "lghard",
    "svg.fonttype": "path",
    "font.size": 13,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def draw_concurrent_runs(result: Result, axes: Axes) -> None:
    """A group of bars for each number of callers; the ceiling as a line over each group."""
    rows = {(row["contestant"], row["callers"]): row for row in result["rows"]}
    all_callers = sorted({row["callers"] for row in result["rows"]})
    width = 0.8 / len(COLOURS)
    for i, (name, colour) in enumerate(COLOURS.items()):
        places = [group + (i - 1) * width for group in range(len(all_callers))]
        rates = [rows[name, callers]["runs_per_second"] for callers in all_callers]
        bars = axes.bar(places, rates, 0.94 * width, color=colour, label=name)
        axes.bar_label(bars, [f"{rate:.0f}" for rate in rates], padding=2)
    for group, callers in enumerate(all_callers):
        row = rows["lghard", callers]
        place = group + width, row["runs_per_second"]
        axes.annotate(f"{row['ratio_to_upstream']:.1f} x", place, **ABOVE_THE_RATE)
    axes.set_xticks(range(len(all_callers)), [count_callers(n) for n in all_callers])
    axes.set_ylabel("runs per second")
    axes.set_title(f"Concurrent runs, {1000 * result['round_trip']:.1f} ms from Postgres")
    axes.margins(y=0.2)
    axes.legend(loc="upper left")


def draw_kill_storm(result: Result, axes: Axes) -> None:
    """Calm and storm side by side, with what was lost."""
    for i, row in enumerate(result["rows"]):
        colour = COLOURS[row["contestant"]]
        axes.barh(i - 0.2, row["calm_seconds"], 0.36, color=colour, alpha=0.5)
        axes.barh(i + 0.2, row["storm_seconds"], 0.36, color=colour)
        calm, storm = row["calm_seconds"], row["storm_seconds"]
        lost = f"{row['lost']} of {row['runs']} runs lost" if row["lost"] else "no run lost"
        _label(axes, calm, i - 0.2, f"calm {calm:.1f} s")
        _label(axes, storm, i + 0.2, f"storm {storm:.1f} s, {lost}")
    axes.set_yticks(range(len(result["rows"])), [row["contestant"] for row in result["rows"]])
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.set_title("All connections killed five times in two seconds")
    axes.margins(x=0.75)  # room for the labels


def _label(axes: Axes, seconds: float, place: float, text: str) -> None:
    axes.text(seconds, place, f" {text}", va="center")


def draw_batching(result: Result, axes: Axes) -> None:
    """A line for each contestant: runs per second over callers, where nothing else changes."""
    base = {"round_trip": 0.002, "slow_flush": False, "size": 0}
    curve = [row for row in result["rows"] if row.items() >= base.items()]
    for name, (label, colour, style) in LINES.items():
        points = sorted(
            (row["callers"], row["runs_per_second"]) for row in curve if row["contestant"] == name
        )
        axes.plot(*zip(*points, strict=True), style, color=colour, label=label, marker="o")
    all_callers = sorted({row["callers"] for row in curve})
    axes.set_xscale("log")
    axes.set_xticks(all_callers, [str(callers) for callers in all_callers])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("callers at once")
    axes.set_ylabel("runs per second")
    axes.set_title(f"Batching, {1000 * result['round_trips']['2 ms']:.1f} ms from Postgres")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


DRAWINGS: Mapping[Name, Callable[[Result, Axes], None]] = {
    "batching": draw_batching,
    "concurrent_runs": draw_concurrent_runs,
    "kill_storm": draw_kill_storm,
}


def main() -> int:
    """Draw what there are results of; 1 if there are none."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    drawn = 0
    for name, draw in DRAWINGS.items():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            print(f"no {path.name}: uv run benchmarks/{name}.py")
            continue
        with mpl.rc_context(STYLE):
            image = IMAGES / f"{name}.svg"
            figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
            draw(json.loads(path.read_text()), axes)
            figure.savefig(image, transparent=True, metadata={"Date": None, "Creator": None})
            plt.close(figure)
        print(f"drew {image.relative_to(IMAGES.parents[1])}")
        drawn += 1
    return not drawn


if __name__ == "__main__":
    sys.exit(main())
