"""Finding nodes that change state in place without returning it. For tests."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, TypeVar, cast

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.graph import StateGraph
from langgraph.pregel import Pregel
from typing_extensions import override

from lghard.state.checking import builder_of, updates_in
from lghard.state.compare import attributes, differences
from lghard.state.looking import spelled
from lghard.state.paths import ROOT, Path
from lghard.state.report import Finding, Report
from lghard.state.rules import finding
from lghard.state.verdicts import logger, refusal

G = TypeVar("G", bound="StateGraph[Any, Any, Any, Any] | Pregel[Any, Any, Any, Any]")


def forbid_mutations(graph: G) -> G:
    """A graph that raises when a node changes its state in place without returning it.

    `state["items"].append(x)` without `return {"items": ...}` works in a test, where the next node
    sees it. In production it is lost on resume, or lands in the checkpoint before, or, with a
    write under way in the background, is torn. For tests: it copies the state for each node.

    Args:
        graph: a `StateGraph`, just before it is compiled; or one that is compiled. It stays as it
            is.

    Returns:
        The same kind of graph. Its nodes raise `StateNotSerializableError` with LGS226, the node
        and the path.

    Raises:
        TypeError: it is no graph.

    Example:
        >>> forbid_mutations(builder).compile().invoke({"items": []})
    """
    if isinstance(graph, StateGraph):
        return cast("G", builder_of(graph, _guarded))
    if isinstance(graph, Pregel):
        return cast("G", _guarded(graph))
    kind = spelled(type(graph))
    raise TypeError(f"forbid_mutations() takes a StateGraph or a compiled graph, not {kind}")


def _guarded(graph: Any) -> Any:
    nodes = {}
    for name, node in graph.nodes.items():
        guarded = not name.startswith("__")
        nodes[name] = node.copy({"bound": Guard(name, node.bound)}) if guarded else node
    return graph.copy({"nodes": nodes})


class Guard(Runnable[Any, Any]):
    """A node that is compared before and after."""

    def __init__(self, node: str, bound: Runnable[Any, Any]) -> None:
        self.name = self._node = node
        self._bound = bound

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        before = _copy(self._node, input)
        update = self._bound.invoke(input, config, **kwargs)
        self._compare(before, input, update)
        return update

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        before = _copy(self._node, input)
        update = await self._bound.ainvoke(input, config, **kwargs)
        self._compare(before, input, update)
        return update

    def _compare(self, before: dict[str, Any], state: Any, update: Any) -> None:
        returned = {channel for _, channel, _ in updates_in(update, ROOT)}
        found: list[Finding] = []
        for key, path, value in _channels(state):
            if key in before and key not in returned:
                change = next(differences(before[key], value, path), None)
                if change:
                    found.append(finding("LGS226", str(change.path), node=repr(self._node)))
        if found:
            raise refusal(Report(tuple(found), "state"), f"node {self._node!r}")


def _channels(state: Any) -> Iterator[tuple[str, Path, Any]]:
    held = state if isinstance(state, dict) else attributes(state)
    for key, value in held.items():
        yield key, ROOT[key], value


def _copy(node: str, state: Any) -> dict[str, Any]:
    """What the node is given, copied."""
    copies = {}
    for key, _, value in _channels(state):
        try:
            copies[key] = deepcopy(value)
        except Exception as error:  # what cannot be copied says so as it likes
            logger.warning(
                "mutations of %r by node %r go unnoticed: it cannot be copied (%s)",
                key, node, type(error).__name__,
            )  # fmt: skip
    return copies
