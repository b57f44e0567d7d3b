"""The rules: what can happen to a state on its way to the database and back.

Each has a page in the documentation, and a test that writes the real thing in one process and reads
it in another.
"""

from string import Formatter
from types import MappingProxyType
from typing import Literal, NamedTuple

from lghard.state.report import Finding, Severity

Mode = Literal["static", "value", "both"]
"""What finds it: a look at the schema, a look at a value, or either."""

NOTE, WARNING, DATA_LOSS, ERROR = Severity

DOCS = "docs/rules"


class Rule(NamedTuple):
    """One way in which a state can fail to come back.

    Attributes:
        id: "LGS" and three digits: 1xx is raised, 2xx is lost, 3xx comes back different, 4xx is
            good to know.
        severity: how bad it is, unless [tool.lghard] says otherwise.
        mode: what finds it.
        title: what it is about, in a few words.
        message: what will happen; fields in braces are filled in by whoever finds it.
        fix: what to do.
        postgres: only Postgres does this; InMemorySaver hides it.
    """

    id: str
    severity: Severity
    mode: Mode
    title: str
    message: str
    fix: str
    postgres: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        """What the message wants to be told, in order."""
        return tuple(name for _, name, _, _ in Formatter().parse(self.message) if name)


def finding(rule: str, path: str, /, **fields: object) -> Finding:
    """What `rule` says about what stands at `path`.

    Args:
        rule: its id.
        path: where, `$.messages[2].artifact`.
        fields: what stands in braces in the rule's message: types, keys and numbers, but no values.

    Raises:
        KeyError: there is no such rule, or a field of its message is missing.
    """
    found = RULES[rule]
    message, fix = found.message.format(**fields), found.fix.format(**fields)
    return Finding(rule, found.severity, path, message, fix)


_TABLE = (
    # Raised: it cannot be stored.
    Rule(
        "LGS101",
        ERROR,
        "both",
        "No encoder",
        "{type} cannot be checkpointed; the run raises, and under durability async or exit only "
        "after later nodes have run",
        "pass it through context= and Runtime, build it in the node, or annotate the key with "
        "UntrackedValue",
    ),
    Rule(
        "LGS102",
        ERROR,
        "both",
        "No encoder, inside another object",
        "{type} inside {outer} cannot be checkpointed; LangGraph's error will name {outer} only",
        "give the field a type that can be stored, or keep it out of the state",
    ),
    Rule(
        "LGS103",
        ERROR,
        "value",
        "Integer beyond 64 bits",
        "an integer of {bits} bits does not fit: LangGraph stores -2**63 to 2**64-1",
        "store it as str or Decimal",
    ),
    Rule(
        "LGS104",
        ERROR,
        "both",
        "Dict key without an encoding",
        "a dict key of type {type} cannot be stored",
        "use str or int keys",
    ),
    Rule(
        "LGS105",
        ERROR,
        "value",
        "Too deep, or a cycle",
        "{what}; LangGraph stores at most {limit} levels",
        "flatten it, or store ids instead of the objects",
    ),
    Rule(
        "LGS106",
        ERROR,
        "both",
        "numpy value without an encoder",
        "{type} cannot be checkpointed",
        "convert it: .item() for a scalar, .astype('int64') for datetime64 and timedelta64",
    ),
    Rule(
        "LGS107",
        ERROR,
        "both",
        "pandas object",
        "{type} cannot be checkpointed",
        "store .to_dict('records'), or write a file and store its name",
    ),
    Rule(
        "LGS109",
        ERROR,
        "both",
        "Plain class",
        "{type} is neither a dataclass nor a pydantic model, and cannot be checkpointed",
        "make it a dataclass or a pydantic model",
    ),
    Rule(
        "LGS110",
        ERROR,
        "both",
        "Value type that LangGraph has no encoding for",
        "{type} cannot be checkpointed",
        "store str(value), and convert it back in the node",
    ),
    Rule(
        "LGS111",
        ERROR,
        "value",
        "An object's own code raises",
        "{error} was raised by the code of {type} when it was encoded",
        "let the class encode itself without raising, or keep it out of the state",
    ),
    Rule(
        "LGS112",
        ERROR,
        "both",
        "Store value that is not JSON",
        "PostgresStore keeps JSON, and {type} is none; InMemoryStore hides it",
        "store model_dump(mode='json') or another plain form",
        postgres=True,
    ),
    Rule(
        "LGS113",
        ERROR,
        "both",
        "Cached node whose input cannot be pickled",
        "the cache key of node {node} is a pickle of its input, and {type} cannot be pickled",
        "pass a key_func to CachePolicy",
    ),
    Rule(
        "LGS114",
        ERROR,
        "static",
        "Unresolvable schema",
        "{name} cannot be resolved in {where}: {error}",
        "import the name at run time where the schema is defined, not only under TYPE_CHECKING",
    ),
    Rule(
        "LGS115",
        ERROR,
        "static",
        "Return annotation that is no state update",
        "node {node} is annotated to return {type}; LangGraph takes a dict of updates, a Command "
        "or None, and raises InvalidUpdateError for it",
        "return a dict with the keys that change",
    ),
    Rule(
        "LGS116",
        ERROR,
        "static",
        "Update of an unknown key",
        "node {node} returns the key {key}, which the state does not have",
        "add it to the state schema, or correct its name",
    ),
    Rule(
        "LGS117",
        ERROR,
        "static",
        "Coroutine that nobody awaits",
        "node {node} returns a coroutine that nobody awaits",
        "make the node `async def` and await what it calls",
    ),
    Rule(
        "LGS120",
        ERROR,
        "value",
        "NUL in a channel's own string",
        "a NUL character at position {at}; Postgres cannot store it, and the thread cannot go on",
        "remove it, CheckedSerializer(on_nul='strip') does; or keep the string in a list or model",
        postgres=True,
    ),
    Rule(
        "LGS121",
        ERROR,
        "value",
        "nan or inf as a channel's own value",
        "{value} is not JSON; Postgres cannot store it",
        "store None, or keep the number in a list or model",
        postgres=True,
    ),
    Rule(
        "LGS122",
        ERROR,
        "value",
        "Lone surrogate in a channel's own string",
        "a lone surrogate at position {at}; Postgres cannot store it",
        "text.encode('utf-8', 'replace').decode(), or keep the bytes",
        postgres=True,
    ),
    Rule(
        "LGS123",
        ERROR,
        "value",
        "String too long for Postgres",
        "a string of {bytes} bytes; Postgres' JSONB takes 268435455",
        "store it elsewhere, and its name in the state",
        postgres=True,
    ),
    Rule(
        "LGS125",
        ERROR,
        "both",
        "Input that is stored although it is not tracked",
        "{key} is given as input, and the whole input is stored in the channel __start__",
        "pass it through context=",
    ),
    Rule(
        "LGS126",
        ERROR,
        "value",
        "Value that its own schema refuses",
        "{schema} refuses this value; LangGraph stores it unchecked, and after that invoke, "
        "get_state and update_state of the thread raise",
        "return what the schema takes",
    ),
    # Lost: it comes back as something else, or without a part, and nobody is told.
    Rule(
        "LGS201",
        DATA_LOSS,
        "both",
        "Alias on a field with a default",
        "{model}.{field} has an alias and is stored by its name: it comes back as its default",
        "ConfigDict(populate_by_name=True)",
    ),
    Rule(
        "LGS202",
        DATA_LOSS,
        "both",
        "Alias on a required field",
        "{model}.{field} has an alias and is stored by its name: {model} comes back unvalidated, "
        "and models inside it as dicts",
        "ConfigDict(populate_by_name=True)",
    ),
    Rule(
        "LGS203",
        DATA_LOSS,
        "both",
        "Private or undeclared attribute",
        "{model}.{attribute} is not a field: it is lost",
        "make it a field",
    ),
    Rule(
        "LGS204",
        DATA_LOSS,
        "both",
        "Excluded field",
        "{model}.{field} is excluded from dumps: it is lost, and unset after reading if it is "
        "required",
        "include it, or keep it out of the state",
    ),
    Rule(
        "LGS205",
        DATA_LOSS,
        "both",
        "Own serializer",
        "{model} stores {field} as its serializer writes it, and reads that as the value",
        "use when_used='json' on the serializer",
    ),
    Rule(
        "LGS206",
        DATA_LOSS,
        "both",
        "Subclass in a field of its base class",
        "{subclass} in a field typed {base} comes back as {base}; what {subclass} adds is lost",
        "type the field with a discriminated union of what it holds; AnyMessage for messages",
    ),
    Rule(
        "LGS207",
        DATA_LOSS,
        "both",
        "Object in an untyped field",
        "{type} in {outer}, where no type says what it is, comes back as {back}",
        "type the field, or give the object a state key of its own",
    ),
    Rule(
        "LGS208",
        DATA_LOSS,
        "both",
        "Array of objects",
        "an array of dtype object comes back as None, and memory addresses are stored",
        "store .tolist()",
    ),
    Rule(
        "LGS209",
        DATA_LOSS,
        "both",
        "Array with fields, a mask, or a class of its own",
        "{type} loses its {what}",
        "split it into plain arrays",
    ),
    Rule(
        "LGS210",
        DATA_LOSS,
        "both",
        "Encoded through a method that looks right",
        "{type} is stored as whatever its {attribute} returns",
        "make it a dataclass or a pydantic model; a database row: dict(row._mapping)",
    ),
    Rule(
        "LGS211",
        DATA_LOSS,
        "both",
        "Another class of the same name",
        "{type} is looked up as {module}.{name}, which is another class",
        "move it to the top level of its module, under a name of its own",
    ),
    Rule(
        "LGS212",
        DATA_LOSS,
        "both",
        "Class that cannot be found by its name",
        "{type} is looked up as {module}.{name}, which does not exist: it comes back as {back}",
        "move it to the top level of its module",
    ),
    Rule(
        "LGS213",
        DATA_LOSS,
        "both",
        "Class of this process only",
        "{type} is defined in {where}: another process cannot find it, and gets {back}",
        "move it to a module that can be imported",
    ),
    Rule(
        "LGS214",
        DATA_LOSS,
        "both",
        "Dataclass whose constructor does not take its fields",
        "{type} cannot be rebuilt from its fields ({why}): it comes back as a dict",
        "let the generated __init__ take every field",
    ),
    Rule(
        "LGS215",
        DATA_LOSS,
        "both",
        "Constructor that changes what it is given",
        "the constructor of {type} runs again on every read, and changes {what}",
        "change values in a classmethod that makes objects, not in __post_init__ or a validator",
    ),
    Rule(
        "LGS216",
        DATA_LOSS,
        "both",
        "Value that its own model refuses",
        "{type} refuses its own value ({why}): it comes back unvalidated, and models inside it as "
        "dicts",
        "ConfigDict(validate_assignment=True), and validators that need no context",
    ),
    Rule(
        "LGS217",
        DATA_LOSS,
        "both",
        "Set of tuples",
        "a {type} whose members come back unhashable comes back as a list",
        "use a list, or members that are frozen dataclasses",
    ),
    Rule(
        "LGS218",
        DATA_LOSS,
        "both",
        "Subclass of dict or list",
        "{type} comes back as a plain {base}",
        "store a plain {base}, and rebuild it in the node",
    ),
    Rule(
        "LGS219",
        DATA_LOSS,
        "both",
        "Exception",
        "{type} comes back as its repr, a str",
        "store its type and message",
    ),
    Rule(
        "LGS220",
        DATA_LOSS,
        "both",
        "Dataclass itself as a value",
        "the class {type} is stored as its defaults",
        "store its name",
    ),
    Rule(
        "LGS221",
        DATA_LOSS,
        "value",
        "Surrogate in a string",
        "a surrogate at position {at} comes back as '?', or as another character",
        "text.encode('utf-8', 'replace').decode(), or keep the bytes",
    ),
    Rule(
        "LGS222",
        DATA_LOSS,
        "both",
        "Enum member that is not its value",
        "{type} is rebuilt from its value, which comes back as another one",
        "give its members values that come back equal, such as str or int",
    ),
    Rule(
        "LGS223",
        DATA_LOSS,
        "both",
        "RootModel, or a model made inside a function",
        "{type} comes back as {back}",
        "use a BaseModel with a field; bind generated models at the top level of a module",
    ),
    Rule(
        "LGS226",
        DATA_LOSS,
        "value",
        "State mutated in place",
        "node {node} changed it without returning it: the change is lost, or torn",
        "return the new value as an update",
    ),
    Rule(
        "LGS227",
        DATA_LOSS,
        "value",
        "Comes back different",
        "{was} comes back as {became}",
        "store it in a plain form, and convert it in the node",
    ),
    # Different: it comes back as something similar.
    Rule(
        "LGS301",
        WARNING,
        "both",
        "Tuple",
        "a tuple comes back as a list",
        "use a list, or a pydantic state that makes it a tuple again",
    ),
    Rule(
        "LGS302",
        WARNING,
        "both",
        "Dict key that becomes a str",
        "a dict key of type {type} comes back as {back}",
        "use str keys",
    ),
    Rule(
        "LGS303",
        WARNING,
        "both",
        "Subclass of str, int, float or bytes; bytearray and memoryview",
        "{type} comes back as {base}",
        "convert it before it is returned",
    ),
    Rule(
        "LGS304",
        WARNING,
        "both",
        "Bounded deque",
        "a deque comes back without its maxlen",
        "rebuild it in the node",
    ),
    Rule(
        "LGS305",
        WARNING,
        "both",
        "Time zone",
        "the time zone comes back as {back}",
        "store UTC, and the name of the zone beside it",
    ),
    Rule(
        "LGS306",
        DATA_LOSS,
        "both",
        "Subclass of a datetime type",
        "{type} comes back as {back}",
        "convert it: .to_pydatetime() for pandas",
    ),
    Rule(
        "LGS307",
        WARNING,
        "value",
        "What JSON makes of a channel's own value",
        "{type} comes back from Postgres as {back}; InMemorySaver hides it",
        "keep it in a list or model, or use a pydantic state that converts it",
        postgres=True,
    ),
    Rule(
        "LGS308",
        WARNING,
        "both",
        "Array",
        "an array comes back read-only",
        ".copy() it before changing it",
    ),
    Rule(
        "LGS309",
        NOTE,
        "value",
        "Which fields were set",
        "model_fields_set of {model} names all fields after reading",
        "do not rely on exclude_unset after a resume",
    ),
    Rule(
        "LGS310",
        WARNING,
        "both",
        "Secret",
        "{type} is stored in plain text",
        "pass it through context=, or use EncryptedSerializer",
    ),
    Rule(
        "LGS311",
        WARNING,
        "both",
        "Prompt, chat model or other Runnable",
        "{type} is rebuilt from plain parts: clients, and classes inside it, are lost",
        "rebuild it in the node",
    ),
    Rule(
        "LGS312",
        WARNING,
        "both",
        "Pickled value",
        "{channel} is pickled as a whole because of {type}: strict mode does not see into it, and "
        "it is lost when a class in it moves",
        "give {type} a type that can be stored",
    ),
    Rule(
        "LGS313",
        NOTE,
        "static",
        "Class for the allowlist",
        "strict mode restores it only if ({module!r}, {name!r}) is in allowed_msgpack_modules",
        "CheckedSerializer and lghard's allowlist carry it",
    ),
    Rule(
        "LGS314",
        DATA_LOSS,
        "static",
        "Annotation that hides its types from strict mode",
        "LangGraph does not look into {annotation}: strict mode gives raw values for {types}",
        "pass lghard's allowlist as allowed_msgpack_modules",
    ),
    Rule(
        "LGS315",
        DATA_LOSS,
        "static",
        "Allowlist with holes",
        "allowed_msgpack_modules blocks {types}, which comes back as raw values",
        "pass lghard's allowlist as allowed_msgpack_modules",
    ),
    Rule(
        "LGS316",
        NOTE,
        "static",
        "Nothing known before run time",
        "{annotation} says nothing about what is stored",
        "narrow the annotation, or check a sample with check_value",
    ),
    Rule(
        "LGS317",
        WARNING,
        "value",
        "Large channel",
        "{size} MB are written again whenever the channel changes",
        "use a DeltaChannel, or store a reference",
    ),
    Rule(
        "LGS318",
        ERROR,
        "both",
        'Not plain JSON, under profile="json"',
        "{type} is not plain JSON",
        "use str, int, float, bool, None, lists, and dicts with str keys",
    ),
    # Good to know.
    Rule(
        "LGS401",
        NOTE,
        "static",
        "Names in the database",
        "{type} is stored under the name {module}.{name}: renamed or moved, it comes back from old "
        "threads as raw values",
        "keep an alias under the old name",
    ),
    Rule(
        "LGS402",
        NOTE,
        "static",
        "In-memory checkpointer or store",
        "{type} hides what only Postgres does: LGS112, LGS120 to LGS123, LGS307",
        "test with Postgres; lghard.testing starts one",
    ),
    Rule(
        "LGS403",
        NOTE,
        "value",
        "One object in two places",
        "it is the same object as {other}; they come back as two",
        "store an id in one of the places",
    ),
    Rule(
        "LGS404",
        NOTE,
        "value",
        "Only a round trip can tell",
        "{type} runs code of its own ({code}) when it is stored or read",
        "check_value(..., roundtrip=True) runs it, and decides",
    ),
)

RULES = MappingProxyType({rule.id: rule for rule in _TABLE})
"""All rules by id."""
