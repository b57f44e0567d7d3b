"""The command line: `lghard check module:graph`."""

import argparse
import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lghard.targets import TargetError, load, targets_of

if TYPE_CHECKING:
    from lghard.state import Report
    from lghard.state.check_settings import CheckSettings

CLEAN, FOUND, FAILED = 0, 1, 2
_COLORS = {"note": "dim", "warning": "yellow", "data-loss": "magenta", "error": "red"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0: nothing found. 1: something at --fail-on or above. 2: it could not be checked.
    """
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except TargetError as error:
        print(f"lghard: {error}", file=sys.stderr)  # noqa: T201 - this is a command
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lghard", description="Makes a LangGraph application survive production."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="will the state of a graph come back from the database as it went in?",
        description="Imports the module, and looks at all that the graph stores. Nothing is run.",
    )
    _check_arguments(check)
    check.set_defaults(run=_check)
    return parser


def _check_arguments(check: argparse.ArgumentParser) -> None:
    severities = ("note", "warning", "data-loss", "error")
    check.add_argument(
        "targets",
        nargs="*",
        metavar="module:graph",
        help="a graph or a state schema, or ./file.py:graph; without any, those of langgraph.json",
    )
    check.add_argument("--json", action="store_true", help="print JSON, notes included")
    check.add_argument(
        "--fail-on", choices=severities, help="exit with 1 from this severity on (warning)"
    )
    check.add_argument("--profile", choices=["json"], help="json: nothing but plain JSON")
    check.add_argument("--ignore", action="append", default=[], metavar="RULE", help="drop a rule")
    check.add_argument("--notes", action="store_true", help="print notes, too")
    check.add_argument(
        "--allowlist", action="store_true", help="print allowed_msgpack_modules, and nothing else"
    )
    check.add_argument("--factory", action="store_true", help="call the target: it makes the graph")


def _check(arguments: argparse.Namespace) -> int:
    targets = {target: target for target in arguments.targets} or _from_config()
    served = not arguments.targets
    settings = _settings(arguments)
    loaded = {name: _loaded(t, arguments.factory) for name, t in targets.items()}
    if arguments.allowlist:
        return _print_allowlist(loaded)
    reports = {n: _report_of(n, target, settings, served) for n, target in loaded.items()}
    if arguments.json:
        _print_json(reports)
    else:
        for report in reports.values():
            _print(report, notes=arguments.notes)
    failing = any(len(report.at_least(settings.fail_on)) for report in reports.values())
    return FOUND if failing else CLEAN


def _from_config() -> dict[str, str]:
    config = Path("langgraph.json")
    if not config.is_file():
        raise TargetError(
            "name what to check, module:graph; only beside a langgraph.json there is no need to"
        )
    return targets_of(config)


def _settings(arguments: argparse.Namespace) -> "CheckSettings":
    from dataclasses import replace  # noqa: PLC0415 - `lghard --help` imports no langgraph

    from lghard.state.check_settings import CheckSettings  # noqa: PLC0415
    from lghard.state.report import Severity  # noqa: PLC0415

    try:
        settings = CheckSettings.load()
        own = CheckSettings.of({"ignore": arguments.ignore})
    except ValueError as error:
        raise TargetError(str(error)) from None
    fail_on = Severity.of(arguments.fail_on) if arguments.fail_on else settings.fail_on
    return replace(
        settings,
        ignore=(*settings.ignore, *own.ignore),
        fail_on=fail_on,
        profile=arguments.profile or settings.profile,
    )


def _loaded(target: str, factory: bool) -> Any:
    found = load(target, factory=factory)
    if inspect.isroutine(found):
        raise TargetError(f"{target} is a function; if it makes the graph, --factory calls it")
    return found


def _report_of(name: str, target: Any, settings: "CheckSettings", served: bool) -> "Report":
    from dataclasses import replace  # noqa: PLC0415

    from lghard.state.graph import check_graph, check_schema, is_graph  # noqa: PLC0415

    serde = "server" if served else None
    check = check_graph if is_graph(target) else check_schema
    try:
        report = check(target, profile=settings.profile, serde=serde, settings=settings)
    except TypeError as error:
        raise TargetError(f"{name}: {error}") from None
    return replace(report, subject=name)


def _print_allowlist(loaded: dict[str, Any]) -> int:
    from lghard.state.graph import allowlist_of  # noqa: PLC0415

    try:
        names = sorted({name for target in loaded.values() for name in allowlist_of(target)})
    except TypeError as error:
        raise TargetError(str(error)) from None
    lines = [f"    ({module!r}, {name!r})," for module, name in names]
    print("\n".join(["allowed_msgpack_modules = [", *lines, "]"]))  # noqa: T201
    return CLEAN


def _print_json(reports: "dict[str, Report]") -> None:
    whole = {
        "clean": all(report.clean for report in reports.values()),
        "reports": [json.loads(report.to_json()) for report in reports.values()],
    }
    print(json.dumps(whole, indent=2))  # noqa: T201


def _print(report: "Report", *, notes: bool) -> None:
    shown = report if notes else report.at_least("warning")
    more = _count(len(report) - len(shown), report)
    if sys.stdout.isatty() and _print_tree(shown, more):
        return
    print("\n".join(filter(None, [str(shown), more])))  # noqa: T201


def _count(hidden: int, report: "Report") -> str:
    """How many notes there are, and how many say that only running code can tell."""
    if not hidden:
        return ""
    undecided = sum(each.rule == "LGS404" for each in report)
    what = f", {undecided} on code that only a round trip can judge" if undecided else ""
    return f"{hidden} note{'s' if hidden != 1 else ''}{what}: --notes shows them"


def _print_tree(report: "Report", more: str) -> bool:
    """In colors; False where rich is missing."""
    try:
        from rich.console import Console  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415
        from rich.tree import Tree  # noqa: PLC0415
    except ImportError:
        print("lghard: for colors, pip install 'lghard[cli]'", file=sys.stderr)  # noqa: T201
        return False
    tree = Tree(Text(f"{report.subject}: {report.summary()}", "bold"))
    places: dict[str, Tree] = {}
    for finding in report:
        if finding.path not in places:
            places[finding.path] = tree.add(Text(finding.path, "cyan"))
        color = _COLORS[str(finding.severity)]
        line = Text(f"{finding.rule} {finding.severity}: ", color).append(
            finding.message, "default"
        )
        places[finding.path].add(line.append(f"\n→ {finding.fix}", "dim"))
    console = Console()
    console.print(tree)
    if more:
        console.print(Text(more, "dim"))
    return True
