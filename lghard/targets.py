"""What a command is given: `module:graph`, `./file.py:graph`, the graphs of a langgraph.json."""

import asyncio
import contextlib
import importlib
import importlib.util
import inspect
import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any


class TargetError(Exception):
    """It cannot be imported, or is not there; the message says why, in Python's own words."""


def targets_of(config: Path) -> dict[str, str]:
    """The graphs of a langgraph.json, by name, and its local dependencies on `sys.path`.

    Raises:
        TargetError: the file cannot be read, or names no graphs.
    """
    try:
        table = json.loads(config.read_text())
        graphs = table["graphs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TargetError(f"{config}: no graphs in it ({type(error).__name__}: {error})") from None
    for dependency in table.get("dependencies", ()):
        folder = (config.parent / dependency).resolve()
        if str(dependency).startswith(".") and folder.is_dir():
            _put_on_path(folder)
    named = {name: g["path"] if isinstance(g, dict) else g for name, g in graphs.items()}
    return {name: _absolute(str(path), config.parent) for name, path in named.items()}


def _absolute(target: str, folder: Path) -> str:
    place, _, attribute = target.rpartition(":")
    return f"{(folder / place).resolve()}:{attribute}" if place.endswith(".py") else target


def load(target: str, *, factory: bool = False) -> Any:
    """The object that `module:attribute` names.

    The module is imported, as a run would do it; nothing in it is called, unless `factory` is set.

    Raises:
        TargetError: with the error of the import.
    """
    place, colon, attribute = target.rpartition(":")
    if not colon or not place or not attribute:
        raise TargetError(f"{target!r} is no module:graph, such as agent:graph or ./agent.py:graph")
    module = _module(place)
    found: Any = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise TargetError(f"{target}: {error}{_suggestion(module)}") from None
    return _made(found, target) if factory else found


def _module(place: str) -> ModuleType:
    _put_on_path(Path.cwd())
    try:
        # What a module prints as it is imported is no part of our own output.
        with contextlib.redirect_stdout(sys.stderr):
            return _from_file(Path(place)) if _is_file(place) else importlib.import_module(place)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise TargetError(f"{place}: {_own_words(error)}") from error


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place


def _from_file(path: Path) -> ModuleType:
    """Under the name that the LangGraph server gives it."""
    place = path.resolve()
    name = str(place).replace("/", "__").replace(".py", "").replace(" ", "_")
    spec = importlib.util.spec_from_file_location(name, place)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _put_on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _own_words(error: BaseException) -> str:
    lines = traceback.format_exception_only(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = frames[-1] if frames else None
    ours = where is None or where.filename.startswith("<frozen") or where.filename == __file__
    place = "" if ours or where is None else f" ({where.filename}:{where.lineno})"
    return "".join(lines).strip() + place


def _suggestion(module: ModuleType) -> str:
    names = ", ".join(_graphs_in(module))
    return f"; the graphs in it: {names}" if names else "; there is no graph in it"


def _graphs_in(module: ModuleType) -> Iterator[str]:
    for name, value in vars(module).items():
        kinds = {f"{k.__module__}.{k.__name__}" for k in type(value).__mro__}
        if kinds & {"langgraph.graph.state.StateGraph", "langgraph.pregel.main.Pregel"}:
            yield name


def _made(factory: Any, target: str) -> Any:
    if not callable(factory):
        raise TargetError(f"{target} is no function, and --factory calls one")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            made = factory()
            return asyncio.run(_awaited(made)) if inspect.isawaitable(made) else made
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise TargetError(f"{target}(): {_own_words(error)}") from error


async def _awaited(made: Any) -> Any:
    return await made
