"""What will happen to a value when it is checkpointed: looked up, or tried out.

Two walks. The quick one (`quick.py`) runs in C and only says "nothing to find here". This one has
the paths, and runs where the quick one is not sure.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from langgraph.checkpoint.serde import _msgpack
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from lghard.state.compare import MISSING, Difference, attributes, differences
from lghard.state.inline import inline_findings, inline_surrogate
from lghard.state.judging import Place, Verdict, judge
from lghard.state.looking import in_class, inherits, mro_of, name_of, spelled
from lghard.state.models import (
    is_dataclass,
    is_simple,
    name_problem,
    plan_of,
    private_of,
    revive,
    stored_fields,
)
from lghard.state.paths import ROOT, Path
from lghard.state.quick import surely_clean
from lghard.state.remarks import (
    has_messages,
    must_not_be_packed,
    remarks,
    size_finding,
    weight,
)
from lghard.state.report import Finding, Report, Severity
from lghard.state.rules import finding
from lghard.state.stored import store_findings

if TYPE_CHECKING:
    from langgraph.checkpoint.serde.base import SerializerProtocol

# ormsgpack gives up at this depth of plain containers, and Python's stack at this of objects.
DEEPEST = 255
DEEPEST_OBJECTS = 400

# Bytes. What is shared at each of many levels would be written for ever.
ENDLESS = 1e10

# A value with more than this many is broken in one way that shows soon enough.
MOST_FINDINGS = 500


def check_value(
    value: object,
    schema: object = None,
    channel: str | None = None,
    *,
    roundtrip: bool = False,
    serde: "SerializerProtocol | None" = None,
    postgres: bool = True,
    profile: str | None = None,
    store: bool = False,
) -> Report:
    """What will not come back from a checkpoint as it went in, each with its path.

    It looks at the value without running any of its code: no properties, no `__getattr__`, no
    validators. About a class whose own code decides, it says so in a note (LGS404);
    `roundtrip=True` runs that code, exactly as checkpointing does, and decides.

    Args:
        value: a state or an update, as a dict of channels; or with `channel`, what one holds. An
            instance of `schema` is a state, too; anything else is what some channel holds.
        schema: the state schema. A pydantic one is asked whether it takes the value (LGS126).
        channel: the value is what this channel holds.
        roundtrip: write, read and compare it as well.
        serde: the serializer that writes it; LangGraph's default if None. It says which classes are
            allowed, and what is pickled.
        postgres: also say what only Postgres does to a channel's own str, int, float or bool.
        profile: "json" for the stricter promise that it is plain JSON (LGS318).
        store: it is no state, but the value of an item in a PostgresStore, which keeps JSON.

    Returns:
        Everything found, in the order of the value; empty if it comes back equal.

    Raises:
        ValueError: there is no such profile.

    Example:
        >>> print(check_value({"point": (1, 2)}))
        state: 1 warning
        └── $.point
            └── LGS301 warning: a tuple comes back as a list
                  → use a list, or a pydantic state that makes it a tuple again
    """
    if profile not in (None, "json"):
        raise ValueError(f'no profile {profile!r}: there is only "json"')
    if store:
        return Report(tuple(dict.fromkeys(store_findings(value))), "store value")
    channels = _channels(value, schema, channel)
    rules = Settings.of(serde, postgres=postgres, profile=profile)
    found: list[Finding] = []
    for path, held in channels:
        found += check_channel(path, held, rules, roundtrip=roundtrip)
    if schema is not None:
        found += _refused(value, schema, channel, roundtrip=roundtrip)
    return Report(tuple(dict.fromkeys(found)), f"channel {channel}" if channel else "state")


class Settings(NamedTuple):
    """How values are judged.

    Attributes:
        serde: what writes them.
        allowed: the classes that are read back, as module and name; None for all.
        pickles: whether what has no encoding is pickled.
        postgres: whether Postgres keeps them.
        json: whether they must be plain JSON.
        plain: whether nothing of this differs from LangGraph's default.
    """

    serde: "SerializerProtocol | None" = None
    allowed: frozenset[tuple[str, ...]] | None = None
    pickles: bool = False
    postgres: bool = True
    json: bool = False

    @property
    def plain(self) -> bool:
        """Whether the quick walk may answer for them."""
        return self.allowed is None and not self.json

    @classmethod
    def of(
        cls, serde: "SerializerProtocol | None", *, postgres: bool, profile: str | None
    ) -> "Settings":
        """From what a user says."""
        if serde is None and profile is None:
            return _USUAL if postgres else _USUAL_ELSEWHERE
        inner = getattr(serde, "serde", serde)  # of an EncryptedSerializer
        allowed = getattr(inner, "_allowed_msgpack_modules", True)
        known = None if allowed is True or inner is None else frozenset(allowed or ())
        pickles = bool(getattr(inner, "pickle_fallback", False))
        return cls(serde, known, pickles, postgres, profile == "json")


_USUAL, _USUAL_ELSEWHERE = Settings(), Settings(postgres=False)


def _channels(value: object, schema: object, channel: str | None) -> Iterator[tuple[Path, object]]:
    """Each channel that the value fills, and what it holds."""
    if channel is not None:
        yield ROOT[channel], value
    elif type(value) is dict:
        for key, held in value.items():
            yield ROOT[key], held
            if type(key) is not str:
                yield ROOT.key(key), {key: None}
    elif isinstance(schema, type) and schema in mro_of(type(value)):
        for key, held in attributes(value).items():
            yield ROOT.attribute(key), held
    else:
        yield ROOT, value


def check_channel(
    path: Path, value: object, settings: Settings, *, roundtrip: bool = False
) -> list[Finding]:
    """Everything about what one channel holds."""
    found = inline_findings(path, value) if settings.postgres else []
    quick = settings.plain and not roundtrip
    messages = has_messages(value)
    is_clean = quick and messages and surely_clean(value)
    stored = weight(value)  # of what has been touched by then, which is the quicker
    found += size_finding(path, stored)
    if quick and not messages and not must_not_be_packed(value, stored):
        is_clean = surely_clean(value)
    if is_clean:
        return found
    walk = Walk(settings)
    walk.channel(path, value)
    walk.endless |= stored > ENDLESS
    walked = walk.findings
    if roundtrip:
        walked = _tried(path, value, walk, settings)
    elif settings.pickles:
        walked = _as_pickled(path, value, walk)
    known = {(each.rule, each.path) for each in found}
    rules_here = {each.rule for each in found}
    if "LGS122" in rules_here:
        known.add(("LGS221", str(path)))
    if "LGS307" in rules_here:
        known.add(("LGS303", str(path)))
    return [*found, *(each for each in walked if (each.rule, each.path) not in known)]


class Step(NamedTuple):
    """Something to look at, and how deep it is.

    Attributes:
        path: where.
        value: what.
        place: inside of what.
        depth: of plain containers, since the last object that is encoded on its own.
        objects: how many of those.
        leave: whether this is the moment to leave it again.
    """

    path: Path
    value: object
    place: Place
    depth: int = 0
    objects: int = 0
    leave: bool = False


class Walk:
    """Looks at everything in a value once, without recursion."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.findings: list[Finding] = []
        # Whether writing it would go round in circles, or take Python's whole stack.
        self.endless = False
        self._inside: dict[int, Path] = {}
        self._clean: dict[tuple[int, bool], int] = {}

    def channel(self, path: Path, value: object) -> None:
        """Look at what a channel holds."""
        if type(value) in (bytearray, type(None), bytes):
            return
        if bytes in mro_of(type(value)) or bytearray in mro_of(type(value)):
            self.add("LGS303", path, type=spelled(type(value)), base=_base(value))
            return
        self.look(Step(path, value, Place()))

    def add(self, rule: str, path: Path, **fields: object) -> None:
        """Note a finding."""
        self.findings.append(finding(rule, str(path), **fields))

    def look(self, first: Step) -> None:
        """At this and all that is inside."""
        steps = [first]
        starts: dict[int, int] = {}
        while steps and len(self.findings) < MOST_FINDINGS:
            step = steps.pop()
            key = id(step.value)
            if step.leave:
                del self._inside[key]
                if starts.pop(key, None) == len(self.findings):
                    self._clean[key, step.place.dumped] = step.depth
                continue
            if self._too_deep(step) or self._seen(step):
                continue
            verdict = self._judged(step)
            if not verdict.inner:
                continue
            self._inside[key] = step.path
            starts[key] = len(self.findings)
            steps.append(step._replace(leave=True))
            depth, objects = (1, step.objects + 1) if verdict.boxed else (step.depth, step.objects)
            steps.extend(
                Step(path, value, place, depth + 1, objects)
                for path, value, place in reversed(verdict.inner)
            )

    def _seen(self, step: Step) -> bool:
        """Whether it was looked at elsewhere, at least as deep inside, and had nothing to find.

        What is referred to twice at each of thirty levels would be looked at a billion times.
        """
        return self._clean.get((id(step.value), step.place.dumped), -1) >= step.depth

    def _too_deep(self, step: Step) -> bool:
        other = self._inside.get(id(step.value))
        if other is not None:
            self.endless = True
            self.add("LGS105", step.path, what=f"a cycle back to {other}", limit=DEEPEST)
            return True
        if step.depth >= DEEPEST and type(step.value) in (list, dict, tuple):
            self.add("LGS105", step.path, what=f"{step.depth + 1} levels", limit=DEEPEST)
            return True
        if step.objects > DEEPEST_OBJECTS:
            self.endless = True
            what = f"{step.objects} objects inside each other"
            self.add("LGS105", step.path, what=what, limit=DEEPEST_OBJECTS)
            return True
        return False

    def _judged(self, step: Step) -> Verdict:
        try:
            verdict = judge(step.path, step.value, step.place)
        except Exception as error:  # a hostile metaclass, whatever it raises
            kind = type(step.value)
            self.add("LGS111", step.path, error=type(error).__name__, type=name_of(kind))
            return Verdict()
        if verdict.model:
            self._model(step, verdict)
            return Verdict()
        for rule, path, fields in verdict.findings:
            self.add(rule, path, **fields)
        if verdict.findings and inherits(type(step.value), "unittest.mock", "NonCallableMock"):
            self.endless = True  # for seconds, and half a gigabyte, until it raises
        self._profile(step)
        self._allowed(step, verdict)
        return verdict

    def _profile(self, step: Step) -> None:
        plain = (str, int, float, bool, type(None), list, dict)
        kind = type(step.value)
        if self.settings.json and kind not in plain:
            self.add("LGS318", step.path, type=spelled(kind))
        if self.settings.json and type(step.value) is dict:
            for key in step.value:
                if type(key) is not str:
                    self.add(
                        "LGS318", step.path.key(key), type=f"a key of type {type(key).__name__}"
                    )

    def _allowed(self, step: Step, verdict: Verdict) -> None:
        allowed = self.settings.allowed
        if allowed is None or not verdict.stored_as:
            return
        if verdict.stored_as not in allowed | _msgpack.SAFE_MSGPACK_TYPES:
            self.add("LGS315", step.path, types=".".join(verdict.stored_as))

    def _model(self, step: Step, verdict: Verdict) -> None:
        """A pydantic model, which comes back as its fields are validated."""
        model, kind = step.value, type(step.value)
        for rule, path, fields in verdict.findings:
            self.add(rule, path, **fields)
        problem = name_problem(kind, model)
        if problem:
            self.add(problem.rule, step.path, **problem.fields)
        self._profile(step)
        self._allowed(step, verdict)
        self._fields(step, model)

    def _fields(self, step: Step, model: Any) -> None:
        """Whatever is in a model that is not simple."""
        plan = plan_of(type(model))
        inner = Walk(self.settings)
        inner._inside = {**self._inside, id(model): step.path}
        dumped = not is_dataclass(type(model))
        place = Place(step.place.outer or name_of(type(model)), dumped=dumped)
        if not plan.encodes_itself:
            for name, value in stored_fields(model, plan):
                inner.look(Step(step.path.attribute(name), value, place, 2, step.objects + 1))
        self.endless |= inner.endless
        self.findings += [each for each in inner.findings if _certain(each) or _blocks(each)]
        if plan.code:
            self._code(step, model)
        elif inner.findings or not is_simple(model, plan):
            self._unless_blocked(step, model, inner.findings)

    def _unless_blocked(self, step: Step, model: Any, inside: list[Finding]) -> None:
        if not any(_blocks(each) for each in inside):
            self._revived(step, model)

    def _code(self, step: Step, model: Any) -> None:
        """What is certain about a model with code of its own, which does not run here."""
        plan = plan_of(type(model))
        name = spelled(type(model))
        lost = {
            **{field: "LGS201" if default else "LGS202" for field, default in plan.aliased.items()},
            **dict.fromkeys(sorted(plan.excluded), "LGS204"),
            **{field: "LGS205" for field, loses in plan.encoded.items() if loses},
            **dict.fromkeys(plan.computed, "LGS205"),
            **dict.fromkeys(sorted(plan.unwritten), "LGS205"),
        }
        for field, rule in lost.items():
            rewritten = rule == "LGS205" and field not in plan.unwritten
            if rewritten or not _holds_default(model, field):
                self.add(rule, step.path.attribute(field), model=name, field=field)
        if plan.loses_itself:
            self.add("LGS205", step.path, model=name, field="itself")
        for attribute in lost_attributes(model):
            path = step.path.attribute(attribute)
            self.add("LGS203", path, model=name, attribute=attribute)
        self.add("LGS404", step.path, type=name, code=plan.code)

    def _revived(self, step: Step, model: Any) -> None:
        """Try it out: none of the code that runs is the user's."""
        try:
            became, refused = revive(model)
        except Exception as error:  # whatever pydantic makes of a broken model
            name = spelled(type(model))
            self.add("LGS111", step.path, error=type(error).__name__, type=name)
            return
        changes = list(differences(model, became, step.path))
        if changes and refused:
            name = spelled(type(model))
            aliased = plan_of(type(model)).aliased
            for field in (name_ for name_, default in aliased.items() if not default):
                path = step.path.attribute(field)
                self.add("LGS202", path, model=name, field=field)
            if not aliased:
                self.add("LGS216", step.path, type=name, why=refused)
        self.findings += [explained(change, model, step.path) for change in changes]


def lost_attributes(model: Any) -> Iterator[str]:
    """Private attributes of a model that hold something else than their default."""
    declared = getattr(type(model), "__private_attributes__", {})
    for name, value in private_of(model).items():
        if not _is_default(value, declared.get(name)):
            yield name


def _holds_default(model: Any, field: str) -> bool:
    declared = in_class(type(model), "__pydantic_fields__") or {}
    return _is_default(attributes(model).get(field, MISSING), declared.get(field))


def _is_default(value: object, declared: Any) -> bool:
    if declared is None:
        return False
    factory = declared.default_factory
    default = factory() if factory in (dict, list, set) else declared.default
    return next(differences(default, value, ROOT), None) is None


# What stays true of a value inside a model even if it comes back equal.
_CERTAIN = {"LGS213", "LGS308", "LGS310", "LGS311", "LGS318", "LGS404"}


def _certain(found: Finding) -> bool:
    return found.severity is Severity.ERROR or found.rule in _CERTAIN


def _blocks(found: Finding) -> bool:
    """Whether somebody's code would run, or something raise, if it were tried out."""
    own_code = ("LGS404", "LGS210")
    return (found.severity is Severity.ERROR and found.rule != "LGS318") or found.rule in own_code


def explained(  # noqa: PLR0911
    change: Difference, model: Any = None, root: Path | None = None
) -> Finding:
    """The finding that a difference stands for."""
    path, was, became = change
    kind, back = type(was), type(became)
    step = path.step
    if model is not None and path.parent is root and path.kind == "attribute":
        plan, name = plan_of(type(model)), spelled(type(model))
        if step in plan.aliased:
            rule = "LGS201" if plan.aliased[step] else "LGS202"
            return finding(rule, str(path), model=name, field=step)
        if step in plan.excluded:
            return finding("LGS204", str(path), model=name, field=step)
        if step in getattr(type(model), "__private_attributes__", {}):
            return finding("LGS203", str(path), model=name, attribute=step)
    if path.kind == "attribute" and became is MISSING:
        owner = "the object" if model is None else spelled(type(model))
        return finding("LGS203", str(path), model=owner, attribute=step)
    if kind is str and back is str and (at := inline_surrogate(was)) is not None:
        return finding("LGS221", str(path), at=at)
    for matches, rule, fields in _EXPLANATIONS:
        if matches(was, became):
            return finding(rule, str(path), **fields(kind, back))
    what = f"another {spelled(back)}" if kind is back else _spelled(became)
    return finding("LGS227", str(path), was=_spelled(was), became=what)


def _spelled(value: object) -> str:
    return "nothing" if value is MISSING else spelled(type(value))


def _is(was: type, became: type) -> Callable[[Any, Any], bool]:
    return lambda a, b: type(a) is was and type(b) is became


def _base(value: object) -> str:
    for base in (bytes, bytearray, str, int, float):
        if base in mro_of(type(value)):
            return base.__name__
    return "bytes"


def _subclass(base: type) -> Callable[[Any, Any], bool]:
    return lambda a, b: type(a) is not base and base in mro_of(type(a)) and type(b) is base


def _is_model(value: object) -> bool:
    return inherits(type(value), "pydantic", "BaseModel") or "__dataclass_fields__" in {
        name for base in mro_of(type(value)) for name in vars(base)
    }


def _dated(a: Any, b: Any) -> bool:
    return type(a) is type(b) and type(a).__name__ in ("datetime", "time")


def _names(kind: type, back: type) -> dict[str, object]:
    name = spelled(kind)
    return {"type": name, "base": back.__name__, "back": back.__name__, "outer": "a field"}


_Explanation = tuple[Callable[[Any, Any], bool], str, Callable[[type, type], dict[str, object]]]
_EXPLANATIONS: tuple[_Explanation, ...] = (
    (_is(tuple, list), "LGS301", _names),
    (_is(bytearray, bytes), "LGS303", _names),
    (_is(memoryview, bytes), "LGS303", _names),
    (_dated, "LGS305", lambda _, __: {"back": "a fixed offset"}),
    (
        lambda a, b: _is_model(a) and type(b) in mro_of(type(a)) and _is_model(b),
        "LGS206",
        lambda a, b: {"subclass": spelled(a), "base": spelled(b)},
    ),
    (lambda a, b: _is_model(a) and type(b) is dict, "LGS207", _names),
    (lambda a, b: type(a) in (set, frozenset) and type(b) is list, "LGS217", _names),
    (_subclass(dict), "LGS218", _names),
    (_subclass(list), "LGS218", _names),
    (_subclass(str), "LGS303", _names),
    (_subclass(int), "LGS303", _names),
    (_subclass(float), "LGS303", _names),
    (_subclass(bytes), "LGS303", _names),
    (lambda a, b: isinstance(a, BaseException) and type(b) is str, "LGS219", _names),
)


def _tried(path: Path, value: Any, walk: Walk, settings: Settings) -> list[Finding]:
    """What really happens, told in the words of what was expected."""
    if walk.endless:
        return walk.findings
    serde = settings.serde or JsonPlusSerializer(allowed_msgpack_modules=True)
    try:
        stored = serde.dumps_typed(value)
    except Exception as error:  # whatever the user's code raises
        if any(each.severity is Severity.ERROR for each in walk.findings):
            return walk.findings
        failed = finding("LGS111", str(path), error=type(error).__name__, type=spelled(type(value)))
        return [*walk.findings, failed]
    if stored[0].startswith("pickle"):
        return _pickled(path, value, walk)
    stored = stored[0], bytes(stored[1])  # what is bytes already is not written, but kept
    try:
        became = serde.loads_typed(stored)
    except Exception as error:  # of a serializer, or of bytes that somebody made by hand
        failed = finding("LGS111", str(path), error=type(error).__name__, type=spelled(type(value)))
        return [*walk.findings, failed]
    changes = [*differences(value, became, path)]
    return [*_merged(walk.findings, changes), *remarks(path, value)]


# What pickle can do with most values that msgpack cannot encode.
_PICKLED = {"LGS103", "LGS104", "LGS106", "LGS107", "LGS109", "LGS110"}


def _as_pickled(path: Path, value: object, walk: Walk) -> list[Finding]:
    """With a fallback, what msgpack cannot encode does not raise, if pickle can."""
    errors = {each.rule for each in walk.findings if each.severity is Severity.ERROR}
    return _pickled(path, value, walk) if errors and errors <= _PICKLED else walk.findings


def _pickled(path: Path, value: object, walk: Walk) -> list[Finding]:
    errors = [each for each in walk.findings if each.severity is Severity.ERROR]
    what = errors[0].message.split(" ")[0] if errors else spelled(type(value))
    return [finding("LGS312", str(path), channel=str(path), type=what)]


def _merged(expected: list[Finding], changes: list[Difference]) -> list[Finding]:
    """The expected findings that are true, and the differences that nobody expected."""
    at: dict[str, list[Finding]] = {}
    for each in expected:
        at.setdefault(each.path, []).append(each)
    found = [f for f in expected if f.rule in _CERTAIN - {"LGS404"}]
    for change in changes:
        above = [f for place in change.path for f in at.get(str(place), ())]
        likely = [
            f for f in above if f.severity is Severity.DATA_LOSS or f.path == str(change.path)
        ]
        likely = [f for f in likely if Severity.NOTE < f.severity < Severity.ERROR]
        found += likely or [_blamed(change, above) or explained(change)]
    return list(dict.fromkeys(found))


def _blamed(change: Difference, above: list[Finding]) -> Finding | None:
    """The finding that a constructor or validator is to blame, if one stands above the change."""
    coded = [f for f in above if f.rule == "LGS404" and f.path != str(change.path)]
    if not coded or type(change.was) is not type(change.became):
        return None
    kind = coded[-1].message.split(" ")[0]
    what = str(change.path).removeprefix(coded[-1].path).lstrip(".")
    return finding("LGS215", str(change.path), type=kind, what=what)


def _refused(
    value: object, schema: object, channel: str | None, *, roundtrip: bool
) -> Iterator[Finding]:
    """Whether a pydantic state schema takes the whole state."""
    if not isinstance(schema, type) or not inherits(schema, "pydantic", "BaseModel"):
        return
    if channel is not None or type(value) is not dict:
        return
    if plan_of(schema).code and not roundtrip:
        return
    kind: Any = schema
    try:
        kind.model_validate(value)
    except Exception as error:  # validators raise what they like
        places = [e["loc"] for e in error.errors()] if hasattr(error, "errors") else [()]
        for place in places:
            path = ROOT
            for key in place:
                path = path[key]
            yield finding("LGS126", str(path), schema=spelled(schema))
