"""Checking what nodes return, as they return it; and what they change without returning it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from functools import cache
from typing import Annotated, Any, TypeVar, cast

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.channels import LastValue, UntrackedValue
from langgraph.func import entrypoint
from langgraph.graph import END, StateGraph
from langgraph.pregel import Pregel
from langgraph.types import Command
from pydantic import TypeAdapter
from typing_extensions import override

from lghard.state.compare import attributes
from lghard.state.looking import inherits, spelled
from lghard.state.paths import ROOT, Path
from lghard.state.report import Finding, Report, Severity
from lghard.state.rules import finding
from lghard.state.values import Settings, check_channel
from lghard.state.verdicts import Mode, Verdicts

# Where an `@entrypoint` keeps what it is given as `previous`; a private name of LangGraph's.
PREVIOUS = "__previous__"

G = TypeVar("G", bound="StateGraph[Any, Any, Any, Any] | Pregel[Any, Any, Any, Any]")


def checked(
    graph: G,
    *,
    mode: Mode = "raise",
    fail_on: Severity | str = "data-loss",
    postgres: bool = True,
) -> G:
    """A graph whose nodes are asked, as they return, whether their update will come back.

    Under durability "async", LangGraph's default, and "exit", a checkpointer learns of an update
    when later nodes have run: the card is charged, then the run fails, and on resume it is charged
    again.
    Here the error surfaces in the node that made the value, and nothing runs after it.

    Args:
        graph: a `StateGraph`, just before it is compiled; or one that is compiled. Subgraphs that
            are nodes are checked, too. It is not changed.
        mode: "raise"; "warn" logs, each rule at each path once; "off" does nothing.
        fail_on: from which severity on "raise" raises. What is less bad is logged.
        postgres: also look for what only Postgres does to a channel's own str, int, float or bool.

    Returns:
        The same kind of graph.

    Raises:
        TypeError: it is no graph.
        ValueError: there is no such mode or severity.

    Example:
        >>> graph = checked(builder).compile(checkpointer=checkpointer)
    """
    verdicts = Verdicts(mode, fail_on)
    if isinstance(graph, StateGraph):
        return cast("G", builder_of(graph, lambda built: _checked(built, verdicts, postgres)))
    if isinstance(graph, Pregel):
        return cast("G", _checked(graph, verdicts, postgres))
    raise TypeError(f"checked() takes a StateGraph or a compiled graph, not {spelled(type(graph))}")


def builder_of(builder: Any, check: Callable[[Any], Any]) -> Any:
    """A builder of the same class, with the same nodes, whose graphs are checked."""
    kind = type(builder)

    def compile_checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        return check(kind.compile(self, *args, **kwargs))

    clone = copy(builder)
    clone.__class__ = type(kind.__name__, (kind,), {"compile": compile_checked})
    return clone


def _checked(graph: Any, verdicts: Verdicts, postgres: bool) -> Any:
    if verdicts.mode == "off":
        return graph
    serde = getattr(graph.checkpointer, "serde", None)
    settings = Settings.of(serde, postgres=postgres, profile=None)._replace(serde=None)
    nodes = {}
    for name, node in graph.nodes.items():
        written = results_in if PREVIOUS in graph.channels else updates_in
        check = UpdateCheck(
            name, graph.channels, _validators(graph), settings, verdicts, written=written
        )
        bound = node.bound
        if isinstance(bound, Pregel):
            bound = _checked(bound, verdicts, postgres)
        nodes[name] = node.copy({"writers": [check, *node.writers], "bound": bound})
    return graph.copy({"nodes": nodes})


class UpdateCheck(Runnable[Any, Any]):
    """Stands between a node and its writers, and passes on what it is given."""

    def __init__(
        self,
        node: str,
        channels: Mapping[str, Any],
        validators: Mapping[str, Callable[[Any], object]],
        settings: Settings,
        verdicts: Verdicts,
        *,
        written: "Written",
    ) -> None:
        self.name = f"check {node}"
        self._node = node
        self._channels = channels
        self._validators = validators
        self._settings = settings
        self._verdicts = verdicts
        self._written = written

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        found = [
            each
            for path, channel, value in self._written(input, ROOT)
            for each in self._found(path, channel, value)
        ]
        report = Report(tuple(dict.fromkeys(found)), f"update of node {self._node!r}")
        self._verdicts.on(report, f"node {self._node!r}")
        return input

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return self.invoke(input)

    def _found(self, path: Path, channel: str | None, value: Any) -> Iterator[Finding]:
        kept = self._channels.get(channel) if channel else None
        if isinstance(kept, UntrackedValue):
            return
        settings = self._settings if channel else self._settings._replace(postgres=False)
        yield from check_channel(path, value, settings)
        if channel and channel in self._validators and isinstance(kept, LastValue):
            try:
                self._validators[channel](value)
            except ValueError:
                yield finding("LGS126", str(path), schema="the state schema")


Written = Callable[[Any, Path], Iterator[tuple[Path, str | None, Any]]]
"""The values in what a node returns: the channel of each, or None for what is sent."""


def results_in(result: Any, path: Path) -> Iterator[tuple[Path, str | None, Any]]:
    """Of an `@entrypoint`, which is kept as it is: the keys of a dict are no channels."""
    if isinstance(result, entrypoint.final):
        yield path.attribute("value"), END, result.value
        yield path.attribute("save"), PREVIOUS, result.save
    else:
        yield path, END, result


def updates_in(update: Any, path: Path) -> Iterator[tuple[Path, str | None, Any]]:
    """Of a node of a StateGraph."""
    if update is None:
        return
    if isinstance(update, dict):
        for key, value in update.items():
            yield path[key], key, value
    elif isinstance(update, Command):
        yield from _of_command(update, path)
    elif isinstance(update, (list, tuple)) and any(isinstance(x, Command) for x in update):
        for i, each in enumerate(update):
            yield from updates_in(each, path[i])
    elif hasattr(type(update), "__annotations__") and not isinstance(update, type):
        for key, value in attributes(update).items():
            yield path.attribute(key), key, value
    else:
        yield path, "__root__", update


def _of_command(command: Any, path: Path) -> Iterator[tuple[Path, str | None, Any]]:
    update = command.update
    if isinstance(update, (list, tuple)) and all(isinstance(x, tuple) for x in update):
        update = dict(update)
    yield from updates_in(update, path.attribute("update"))
    sends = command.goto if isinstance(command.goto, Sequence) else [command.goto]
    for i, send in enumerate(sends):
        if not isinstance(send, str):
            yield path.attribute("goto")[i], None, send


def _validators(graph: Any) -> dict[str, Callable[[Any], object]]:
    """Of a pydantic state: what each field takes. LangGraph stores an update without asking it."""
    schema = getattr(getattr(graph, "builder", None), "state_schema", None)
    if not isinstance(schema, type) or not inherits(schema, "pydantic", "BaseModel"):
        return {}
    return _field_validators(schema)


@cache
def _field_validators(schema: Any) -> dict[str, Callable[[Any], object]]:
    annotated: Any = Annotated
    return {
        name: TypeAdapter(annotated[field.annotation, field]).validate_python
        for name, field in schema.model_fields.items()
    }
