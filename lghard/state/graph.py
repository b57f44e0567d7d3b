"""Which parts of a graph are stored, and whether they come back: `check_schema`, `check_graph`."""

import dataclasses
import inspect
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, get_args, get_origin

import typing_extensions
from langgraph.channels.base import BaseChannel
from langgraph.channels.named_barrier_value import NamedBarrierValue, NamedBarrierValueAfterFinish
from langgraph.channels.untracked_value import UntrackedValue
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.constants import END, START
from langgraph.func import entrypoint
from langgraph.graph import StateGraph
from langgraph.managed.base import is_managed_value
from langgraph.pregel import Pregel
from langgraph.pregel._utils import find_subgraph_pregel
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore

from lghard.state import core_schema, functions
from lghard.state.annotations import (
    ALIASES,
    MISSING,
    Unresolved,
    arguments_of,
    fields_of,
    fill,
    resolve,
    return_of,
    show,
    strip,
    type_name,
)
from lghard.state.check_settings import CheckSettings
from lghard.state.found import Found, Place
from lghard.state.report import Finding, Report, Severity
from lghard.state.rules import RULES, finding
from lghard.state.serializers import Name, serialization_of
from lghard.state.source import Site
from lghard.state.types import Profile, TypeWalk

_TASKS = "__pregel_tasks"
_PLAIN = (NamedBarrierValue, NamedBarrierValueAfterFinish)
_PREVIOUS = "__previous__"


def check_schema(
    schema: Any,
    *,
    profile: Profile | None = None,
    serde: object = None,
    settings: CheckSettings | None = None,
) -> Report:
    """What will happen to values of a state schema, or of any type that is kept in a state.

    Nothing is stored, and no code of the schema runs: its classes are looked at. What no annotation
    tells, such as what is in a `dict`, is a note; `check_value` looks at values.

    Args:
        schema: the state of a graph (TypedDict, dataclass, pydantic model, ...), or an annotation
            of a value, `list[Plan]`.
        profile: "json" allows strings, numbers, booleans, None, lists and dicts only.
        serde: the serializer to judge by; LangGraph's default, if None; "server" for what the
            LangGraph server uses.
        settings: which rules are ignored; from [tool.lghard] in pyproject.toml, if None.

    Returns:
        The report; it is true if nothing is at warning or above.

    Raises:
        TypeError: it is no schema, but a value.

    Example:
        ```python
        report = check_schema(State)
        assert report, report
        ```
    """
    if not _is_schema(schema):
        raise TypeError(
            f"expected a schema or an annotation, such as a TypedDict; got {_given(schema)}. "
            "For a value there is check_value, for a graph check_graph"
        )
    check = _Check(TypeWalk(serialization_of(serde=serde), profile), settings)
    check.schema(schema)
    return check.report(show(schema))


def check_graph(
    graph: Any,
    *,
    profile: Profile | None = None,
    serde: object = None,
    settings: CheckSettings | None = None,
) -> Report:
    """What will happen to all that a graph stores: channels, input, Send payloads, task results.

    It judges with the graph's own checkpointer and serializer; without a checkpointer, as for
    LangGraph's own on Postgres. Subgraphs are walked, too. Nothing is run.

    Args:
        graph: compiled or not: a StateGraph, what its `compile()` returns, an `@entrypoint`.
        profile: "json" allows strings, numbers, booleans, None, lists and dicts only.
        serde: the serializer to judge by; the one of the graph's checkpointer, if None; "server"
            for what the LangGraph server uses.
        settings: which rules are ignored; from [tool.lghard] in pyproject.toml, if None.

    Returns:
        The report; it is true if nothing is at warning or above.

    Raises:
        TypeError: it is no graph.

    Example:
        ```python
        report = check_graph(graph)
        assert report, report
        ```
    """
    check = _check_of(graph, profile, serde, settings)
    return check.report(getattr(graph, "name", None) or "graph")


def allowlist_of(target: Any) -> tuple[tuple[str, str], ...]:
    """The complete `allowed_msgpack_modules` of a graph or schema, sorted.

    LangGraph computes one at `compile()` in strict mode, but does not look into every shape of
    annotation: a type below a `Sequence` or `Mapping`, an alias, a generic or a `Literal` is
    missing in it, and comes back as a plain dict.

    Args:
        target: a graph, a schema, or an annotation.

    Returns:
        Module and name of each class that is stored by its name.

    Raises:
        TypeError: it is neither a graph nor a schema.
    """
    if is_graph(target):
        check = _check_of(target, None, None, CheckSettings())
    elif _is_schema(target):
        check = _Check(TypeWalk(serialization_of()), CheckSettings())
        check.schema(target)
    else:
        raise TypeError(f"expected a graph or a schema; got {_given(target)}")
    return tuple(sorted((name[0], name[1]) for name in check.names))


def _check_of(graph: Any, profile: Any, serde: object, settings: CheckSettings | None) -> "_Check":
    if not is_graph(graph):
        hint = ""
        if inspect.isroutine(graph):
            hint = "; call it first, if it makes the graph"
        raise TypeError(
            f"expected a graph: a StateGraph, compiled or not, or an @entrypoint; got "
            f"{_given(graph)}{hint}"
        )
    checkpointer = getattr(graph, "checkpointer", None)
    check = _Check(TypeWalk(serialization_of(checkpointer, serde), profile), settings)
    check.graph(graph, "")
    return check


def is_graph(target: object) -> bool:
    """A StateGraph, compiled or not, or another Pregel graph."""
    return isinstance(target, StateGraph | Pregel)


def _is_schema(target: object) -> bool:
    if is_graph(target):
        return False
    return (
        target is None
        or target is Any
        or isinstance(target, type | Unresolved | typing.TypeVar | type(typing.Never))
        or target is typing_extensions.LiteralString
        or isinstance(target, ALIASES)
        or get_origin(target) is not None
        or hasattr(target, "__supertype__")
        or typing_extensions.is_typeddict(target)
    )


def _given(target: object) -> str:
    if inspect.isroutine(target):
        return f"the function {getattr(target, '__qualname__', target)}"
    if isinstance(target, type):
        return f"the class {type_name(target)}"
    return f"an object of type {type_name(type(target))}"


class _Check:
    """One check: what has been found so far, and which classes are stored by name."""

    def __init__(self, walk: TypeWalk, settings: CheckSettings | None) -> None:
        self._walk = walk
        self._settings = CheckSettings.load() if settings is None else settings
        self._found: dict[Finding, None] = {}
        self._graphs: set[int] = set()
        self._names: dict[Name, type] = {}

    @property
    def names(self) -> dict[Name, type]:
        """All classes that are stored by their name."""
        return self._names | self._walk.names

    # --- what is told ---

    def say(self, path: str, found: Found) -> None:
        """Keep it, unless a comment or a setting says otherwise."""
        if RULES[found.rule].postgres and not self._walk.serialization.postgres:
            return
        if not found.ignored:
            self._found.setdefault(found.at(path))

    def _note(self, rule: str, path: str, **fields: object) -> None:
        self._found.setdefault(finding(rule, path, **fields))

    def report(self, subject: str) -> Report:
        """All of it."""
        serialization = self._walk.serialization
        for name, cls in self.names.items():
            if not serialization.strict or serialization.blocks(name):
                self._note("LGS313", "$", module=name[0], name=name[1])
            self._note("LGS401", "$", type=type_name(cls), module=name[0], name=name[1])
        return self._settings.applied(Report(tuple(self._found), subject))

    # --- a schema ---

    def schema(self, schema: Any) -> None:
        """As a state, each field a channel; and as a value, where it is a class."""
        try:
            channels = _channels_of(schema)
        except Exception as error:  # a check never crashes: it is a finding
            what = f"{show(schema)} (which lghard cannot take apart: {type(error).__name__})"
            found = Found("LGS316", (("annotation", what),), severity=Severity.WARNING)
            self.say("$", found)
            return
        if channels is None:
            for found in self._walk.judge(schema, Place(inline=True, shape=show(schema))):
                self.say("$", found)
            return
        healed = _validates(strip(schema))
        for name, (hint, site) in channels.items():
            self._channel(f"$.{name}", hint, site, healed=healed)
        cls = get_origin(strip(schema)) or strip(schema)
        if not typing_extensions.is_typeddict(cls):
            self._whole("$", schema, None)

    def _whole(self, path: str, schema: Any, severity: Severity | None) -> None:
        """What happens to an object of the class, beside what happens to its fields as channels."""
        known = {(f.rule, f.path): f for f in self._found}
        for each in self._walk.judge(schema, Place(shape=show(schema))):
            found = each if severity is None else replace(each, severity=severity)
            # It is the same, whether LangGraph names it or the class around it.
            rule = "LGS101" if found.rule == "LGS102" else found.rule
            before = known.get((rule, path + "".join(found.steps)))
            if before is None:
                self.say(path, found)
            elif before.severity < _severity(found):
                self._found.pop(before, None)
                self.say(path, found)

    def _channel(self, path: str, hint: Any, site: Site | None, *, healed: bool = False) -> None:
        """The value of one channel; a pydantic state makes of it what it was, for the nodes."""
        sites = () if site is None else (site,)
        place = Place(inline=True, shape=show(hint))
        found = self._judge(hint, place, site)
        mended: set[tuple[str, tuple[str, ...]]] = set()
        if healed:
            left = self._judge(hint, replace(place, healed=True), site)
            mended = {(f.rule, f.steps) for f in found} - {(f.rule, f.steps) for f in left}
            mended |= {("LGS307", f.steps) for f in found if f.rule == "LGS307"}
        for each in found:
            severity = Severity.NOTE if (each.rule, each.steps) in mended else each.severity
            self.say(path, replace(each, severity=severity, sites=(*sites, *each.sites)))

    def _judge(self, hint: Any, place: Place, site: Site | None) -> tuple[Found, ...]:
        if isinstance(hint, Unresolved):
            where = "the schema" if site is None else show(site.owner)
            fields = (("name", hint.name), ("where", where), ("error", hint.error))
            return (Found("LGS114", fields),)
        return self._walk.judge(hint, place)

    # --- a graph ---

    def graph(self, graph: Any, prefix: str) -> None:
        """All that it stores, and its subgraphs."""
        if id(graph) in self._graphs:
            return
        self._graphs.add(id(graph))
        self._backends(graph, prefix)
        unknown = self._walk.serialization.unknown
        if unknown is not None:
            self._note("LGS316", prefix or "$", annotation=f"the serializer {unknown}")
            return
        self._with_own_names(graph)
        builder = graph if isinstance(graph, StateGraph) else getattr(graph, "builder", None)
        if builder is not None:
            self._state_graph(builder, prefix)
        else:
            self._pregel(graph, prefix)
        self._subgraphs(graph, builder, prefix)

    def _backends(self, graph: Any, prefix: str) -> None:
        """Those in memory hide what others do; what nodes put into a store has no annotation."""
        for name, kind in (("checkpointer", InMemorySaver), ("store", InMemoryStore)):
            object_ = getattr(graph, name, None)
            if isinstance(object_, kind):
                self._note("LGS402", prefix or "$", type=type(object_).__name__)
            elif isinstance(object_, BaseStore):
                values = f"the type of a store's values ({type(object_).__name__})"
                self._note("LGS316", prefix or "$", annotation=values)

    def _with_own_names(self, graph: Any) -> None:
        """In strict mode LangGraph adds what it finds in the annotations when it compiles."""
        own = getattr(graph, "_serde_allowlist", None)
        serialization = self._walk.serialization
        if own and serialization.strict and serialization.allowed is not None:
            self._names |= self._walk.names
            wider = replace(serialization, allowed=serialization.allowed | frozenset(own))
            self._walk = TypeWalk(wider, self._walk.profile)

    def _state_graph(self, builder: StateGraph[Any, Any, Any, Any], prefix: str) -> None:
        owners = _owners(builder)
        healed = _validates(builder.state_schema)
        for name, channel in builder.channels.items():
            if not isinstance(channel, UntrackedValue):
                path = f"{prefix}$" if name == "__root__" else f"{prefix}$.{name}"
                own = owners.get(name)
                hint = _hint_of(channel)
                self._channel(path, hint, own and Site(own, name), healed=healed)
        self._input(builder, prefix)
        for name, spec in builder.nodes.items():
            with self._surviving(f"{prefix}{name}()"):
                self._node(builder, name, spec, prefix)
        with self._surviving(f"{prefix}{_TASKS}"):
            self._sends(builder, prefix)

    @contextmanager
    def _surviving(self, path: str) -> Iterator[None]:
        """A function may be any object, and its source any text; what cannot be judged is told."""
        try:
            yield
        except Exception as error:  # as above
            what = f"what stands here (lghard cannot judge it: {type(error).__name__})"
            self.say(path, Found("LGS316", (("annotation", what),), severity=Severity.WARNING))

    def _input(self, builder: StateGraph[Any, Any, Any, Any], prefix: str) -> None:
        """The whole input is stored in `__start__`, with what is no channel or not tracked."""
        schema, path = builder.input_schema, f"{prefix}{START}"
        self._note("LGS316", path, annotation="the schema, about undeclared keys of the input,")
        for name, channel in builder.schemas.get(schema, {}).items():
            if isinstance(channel, UntrackedValue):
                self._untracked(path, schema, name, channel)
            elif isinstance(channel, BaseChannel):
                self._nested(path, schema, name, channel)
        if _channels_of(schema) is not None and not typing_extensions.is_typeddict(schema):
            for found in self._walk.judge(schema, Place(shape=show(schema))):
                if not found.steps:
                    self.say(path, replace(found, severity=Severity.NOTE))

    def _untracked(self, path: str, schema: Any, name: str, channel: Any) -> None:
        """A key that is not tracked is stored all the same when it is part of the input."""
        found = self._walk.judge(channel.ValueType, Place())
        if any(_severity(f) >= Severity.WARNING for f in found):
            known = (("key", name),)
            site = Site(schema, name)
            self.say(path, Found("LGS125", known, (f".{name}",), (site,), Severity.WARNING))

    def _nested(self, path: str, schema: Any, name: str, channel: Any) -> None:
        """What is stored otherwise inside the input than as a channel's own value."""
        hint = _hint_of(channel)
        own = {
            (f.rule, f.steps) for f in self._judge(hint, Place(inline=True, shape=show(hint)), None)
        }
        for found in self._judge(hint, Place(shape=show(hint)), None):
            if (found.rule, found.steps) not in own:
                self.say(path, found.under(f".{name}", Site(schema, name)))

    def _node(self, builder: Any, name: str, spec: Any, prefix: str) -> None:
        function = functions.function_of(spec.runnable)
        if function is not None and "__root__" not in builder.channels:
            self._update(builder, name, function, prefix)
        policy = spec.cache_policy
        if policy is not None and getattr(policy.key_func, "__name__", "") == "default_cache_key":
            self._cached(builder, name, spec, prefix)

    def _update(self, builder: Any, name: str, function: Any, prefix: str) -> None:
        path, site = f"{prefix}{name}()", Site(function)
        coroutine = list(functions.unawaited(function))
        for annotation in functions.no_update(function):
            if functions.is_awaitable(annotation):
                coroutine.append(name)
            else:
                fields = (("node", name), ("type", show(annotation)))
                self.say(path, Found("LGS115", fields, sites=(site,)))
        if coroutine and not (inspect.iscoroutinefunction(function) and coroutine == [name]):
            self.say(path, Found("LGS117", (("node", name),), sites=(site,)))
        known = {*builder.channels, *builder.managed}
        declared = (key for key, _ in functions.declared_keys(function))
        for key in dict.fromkeys((*declared, *functions.returned_keys(function))):
            if key not in known:
                self.say(path, Found("LGS116", (("node", name), ("key", key)), sites=(site,)))

    def _cached(self, builder: Any, name: str, spec: Any, prefix: str) -> None:
        """The default key of a cached node is a pickle of its input."""
        pickling = TypeWalk(replace(self._walk.serialization, pickles=True))
        for key, channel in builder.schemas.get(spec.input_schema, {}).items():
            if not isinstance(channel, BaseChannel):
                continue
            found = pickling.judge(_hint_of(channel), Place())
            for each in found:
                fields = dict(each.fields)
                if each.rule in ("LGS101", "LGS102") and fields.get("no_pickle"):
                    known = (("node", name), ("type", fields["type"]))
                    self.say(
                        f"{prefix}{name}()",
                        Found("LGS113", known, sites=(Site(spec.input_schema, key),)),
                    )

    def _sends(self, builder: Any, prefix: str) -> None:
        for branches in builder.branches.values():
            for branch in branches.values():
                function = functions.function_of(branch.path)
                if function is not None and functions.sends(function):
                    ends = list((branch.ends or {}).values()) or list(builder.nodes)
                    self._payloads(builder, ends, prefix)

    def _payloads(self, builder: Any, ends: list[str], prefix: str) -> None:
        """A Send carries what the node takes; the whole of it is stored."""
        for name in ends:
            spec = builder.nodes.get(name)
            if spec is None or spec.input_schema is builder.state_schema:
                self._note("LGS316", f"{prefix}{_TASKS}", annotation="the payload of a Send")
                continue
            for found in self._walk.judge(spec.input_schema, Place(shape=show(spec.input_schema))):
                if not found.steps:
                    self.say(f"{prefix}{_TASKS}.{name}", found)

    # --- graphs without a builder, the functional API ---

    def _pregel(self, graph: Any, prefix: str) -> None:
        function = _entrypoint_function(graph)
        for name, channel in graph.channels.items():
            if _is_stored(name, channel):
                hint = _signature_hint(name, function) if function is not None else None
                hint = channel.UpdateType if hint is None else hint
                site = None if function is None else Site(function)
                self._channel(f"{prefix}{name}", hint, site)
        if function is not None:
            with self._surviving(f"{prefix}{_PREVIOUS}"):
                self._tasks(function, prefix)

    def _tasks(self, function: Any, prefix: str) -> None:
        """What a task returns is stored, so that it does not run again."""
        for found in functions.reachable(function):
            if type(found).__name__ == "_TaskFunction":
                task: Any = found
                path = f"{prefix}{getattr(task, '__name__', 'task')}()"
                hint = return_of(functions.function_of(task) or task)
                if hint is MISSING:
                    self._note("LGS316", path, annotation="a task without a return annotation")
                    continue
                site = Site(task.func)
                for each in self._judge(hint, Place(shape=show(hint)), site):
                    self.say(path, replace(each, sites=(site, *each.sites)))

    # --- subgraphs ---

    def _subgraphs(self, graph: Any, builder: Any, prefix: str) -> None:
        runnables = (
            {name: spec.runnable for name, spec in builder.nodes.items()}
            if builder is not None
            else {name: node.bound for name, node in graph.nodes.items()}
        )
        for name, runnable in runnables.items():
            below = find_subgraph_pregel(runnable)
            if isinstance(below, Pregel) and below is not graph:
                self._below(below, f"{prefix}{name}|")

    def _below(self, graph: Any, prefix: str) -> None:
        """A subgraph writes through its parent's checkpointer, unless it has its own."""
        checkpointer = graph.checkpointer
        before = self._walk
        if checkpointer not in (None, True, False):
            self._names |= before.names
            self._walk = TypeWalk(serialization_of(checkpointer), before.profile)
        self.graph(graph, prefix)
        self._names |= self._walk.names
        self._walk = before


# --- small questions ---


def _validates(schema: Any) -> bool:
    """A state that pydantic makes for each node, from what the channels hold."""
    return core_schema.is_model(schema) or core_schema.is_pydantic_dataclass(schema)


def _severity(found: Found) -> Severity:
    return RULES[found.rule].severity if found.severity is None else found.severity


def _channels_of(schema: Any) -> Mapping[str, tuple[Any, Site]] | None:
    """The fields of a state schema; None for what LangGraph keeps in one channel."""
    bare = strip(schema)
    cls = get_origin(bare) or bare
    if not isinstance(cls, type) or cls.__module__ in ("builtins", "typing", "collections"):
        return None
    if cls.__module__.startswith("langchain_core.") and not typing_extensions.is_typeddict(cls):
        return None
    model: Any = cls
    if typing_extensions.is_typeddict(cls):
        given = arguments_of(bare)
        own = vars(cls).get("__annotations__", {})
        hints = {name: fill(resolve(hint, cls), given) for name, hint in own.items()}
    elif core_schema.is_model(cls) and not model.__pydantic_root_model__:
        hints = {n: f.annotation for n, f in model.model_fields.items()}
    elif dataclasses.is_dataclass(cls):
        given = arguments_of(bare)
        fields = {f.name for f in dataclasses.fields(cls)}
        hints = {n: fill(h, given) for n, h in fields_of(cls).items() if n in fields}
    else:
        hints = {}
    hints = {name: hint for name, hint in hints.items() if not _is_not_stored(hint)}
    return {name: (hint, Site(_writer(cls, name), name)) for name, hint in hints.items()} or None


def _writer(cls: type, name: str) -> type:
    """The class in whose body a field is written."""
    for base in (*cls.__mro__, *getattr(cls, "__orig_bases__", ())):
        if name in getattr(base, "__dict__", {}).get("__annotations__", {}):
            bases = [
                b
                for b in getattr(base, "__orig_bases__", ())
                if typing_extensions.is_typeddict(b) and name in b.__annotations__
            ]
            return _writer(bases[0], name) if bases else base
    return cls


def _is_not_stored(hint: Any) -> bool:
    """Managed values, and what is annotated with UntrackedValue."""
    metadata = getattr(hint, "__metadata__", ())
    if any(m is UntrackedValue or isinstance(m, UntrackedValue) for m in metadata):
        return True
    if any(is_managed_value(get_origin(m) or m) for m in metadata):
        return True
    inner = strip(hint) if get_origin(hint) is not None and not metadata else None
    wrapped = get_args(hint)[:1] if get_origin(hint) is not None else ()
    return bool(inner is not None and wrapped and hasattr(wrapped[0], "__metadata__")) and (
        _is_not_stored(wrapped[0])
    )


def _owners(builder: StateGraph[Any, Any, Any, Any]) -> dict[str, Any]:
    """In which class each channel is written."""
    found: dict[str, Any] = {}
    for schema, channels in builder.schemas.items():
        for name in channels:
            if isinstance(schema, type) or typing_extensions.is_typeddict(schema):
                found.setdefault(name, _writer(schema, name))
    return found


def _hint_of(channel: Any) -> Any:
    """What a channel holds; BinaryOperatorAggregate has the annotation with its reducer."""
    return channel.ValueType if not hasattr(channel, "typ") else channel.typ


def _is_stored(name: str, channel: Any) -> bool:
    if is_managed_value(channel) or isinstance(channel, (UntrackedValue, *_PLAIN)):
        return False
    return name != _TASKS and not name.startswith("branch:to:")


def _entrypoint_function(graph: Any) -> Any:
    """The function under an `@entrypoint`; None for another graph."""
    if _PREVIOUS not in graph.channels or len(graph.nodes) != 1:
        return None
    (node,) = graph.nodes.values()
    return functions.function_of(node.bound)


def _signature_hint(name: str, function: Any) -> Any:
    """What `@entrypoint` stores under this name, with the names in its annotations looked up."""
    if name == START:
        first = next(iter(inspect.signature(function).parameters.values()), None)
        if first is None or first.annotation is inspect.Parameter.empty:
            return Any
        return resolve(first.annotation, function)
    returned = return_of(function)
    if returned is MISSING:
        return Any
    if get_origin(returned) is entrypoint.final:
        parts = get_args(returned)
        return parts[0 if name == END else -1]
    return Any if returned is entrypoint.final else returned
