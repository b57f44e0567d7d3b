"""Thread ids that cannot fall on each other: built of named parts, and taken apart again."""

import re
import time
from collections.abc import Mapping, Sequence
from operator import itemgetter
from secrets import randbits
from typing import TYPE_CHECKING, Self
from uuid import UUID, uuid5

from lghard.errors import ThreadIdError
from lghard.threads.parts import (
    MAX_LENGTH,
    Field,
    Part,
    braced,
    check_fields,
    read_pattern,
    text_of,
    too_long,
    unescape,
)

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

_LIKE_SPECIAL = re.compile(r"[\\%_]")

# uuid5(NAMESPACE_DNS, "lghard"). Another one would make every thread on a server a new one.
_ON_SERVER = UUID("8c939c28-2372-50c6-9a74-31e4c213161a")


class ThreadId(str):
    """A thread id that a `ThreadNamespace` has built; a `str` for everybody else.

    psycopg, msgpack, JSON, pydantic and httpx take it as the text that it is, and give back a plain
    `str`. It never changes: not with versions of lghard, Python or Unicode.

    Attributes:
        namespace: what has built it.
    """

    __module__ = "lghard"
    __slots__ = ("namespace",)

    namespace: "ThreadNamespace"

    def __new__(cls, text: str, namespace: "ThreadNamespace") -> Self:  # noqa: D102
        self = str.__new__(cls, text)
        self.namespace = namespace
        return self

    @property
    def uuid(self) -> UUID:
        """The same thread on a LangGraph server, which takes UUIDs only: a UUIDv5 of the text.

        Whoever can guess the text knows the UUID: it is a name, and no secret.
        """
        return uuid5(_ON_SERVER, str(self))

    @property
    def metadata(self) -> dict[str, str]:
        """What to give a thread on a LangGraph server, so that it can be found by its parts.

        The whole id, as `lghard`, and each part as it stands in the id: `lghard_tenant`, ….

        Example:
            ```python
            await client.threads.create(
                thread_id=str(thread.uuid), if_exists="do_nothing", metadata=thread.metadata
            )
            await client.threads.search(metadata=threads.metadata(tenant="acme"))
            ```
        """
        return {"lghard": str(self), **self.namespace.metadata(**self.namespace.parse(self))}

    def __repr__(self) -> str:
        return f"ThreadId({super().__repr__()})"

    def __getnewargs__(self) -> tuple[str, "ThreadNamespace"]:  # type: ignore[override]
        return str(self), self.namespace


class ThreadNamespace:
    """How an application names its threads; declared once.

    Joining parts by hand, `f"{tenant}-{user}"`, makes one conversation of `a-b`, `c` and `a`,
    `b-c`. Ids of a namespace are equal only if all their parts are.

    A part is text, or an `int` or `UUID`, which stand for their usual text: `7` and `"7"` are the
    same. Text is brought to Unicode's composed form, NFC, so that an é is an é however it was
    typed. Nothing else is changed: case, spaces and invisible characters count.

    Args:
        fields: names of the parts, in the order of the id: what is listed or deleted together
            comes first.
        sep: what stands between them: printable ASCII without `%`, not beginning with 0-9 or A-F.

    Attributes:
        fields: names of the parts.
        pattern: how an id is put together, such as `{tenant}:{user}:{session}`.

    Raises:
        ThreadIdError: ids would be ambiguous; with the reason.

    Example:
        >>> threads = ThreadNamespace("tenant", "user", "session")
        >>> threads.id(tenant="acme", user="ada", session="7")
        ThreadId('acme:ada:7')
        >>> threads.id(tenant="a:b", user="c", session="50 %")
        ThreadId('a%3Ab:c:50%20%25')
        >>> threads.parse("a%3Ab:c:50%20%25")
        {'tenant': 'a:b', 'user': 'c', 'session': '50 %'}
    """

    __module__ = "lghard"

    def __init__(self, *fields: str, sep: str = ":") -> None:
        # The last part is free of it, too: ids with another number of parts are other ids.
        ends = [*[sep] * (len(fields) - 1), ""]
        self._declare("", [Field(*each, stop=sep) for each in zip(fields, ends, strict=False)])

    @classmethod
    def from_pattern(cls, pattern: str) -> Self:
        """Declare ids as an application has them already: `report-{user}-{date}`.

        Parts are escaped as little as possible: where the text that follows them would be found too
        early. Nothing follows the last one, so it may be a date such as `2026-11-20`. Ids that were
        built by hand are the same as before where all parts are plain (letters, digits and
        `-._~!$&'()*+,;=:@`), and each but the last is free of the text that follows it.

        Args:
            pattern: as for `str.format`, with nothing but names in the braces.

        Raises:
            ThreadIdError: ids would be ambiguous; with the reason.

        Example:
            >>> reports = ThreadNamespace.from_pattern("report-{user}-{date}")
            >>> reports.id(user="mary-ann", date="2026-11-20")
            ThreadId('report-mary%2Dann-2026-11-20')
        """
        self = cls.__new__(cls)
        self._declare(*read_pattern(pattern))
        return self

    def _declare(self, before: str, fields: Sequence[Field]) -> None:
        check_fields(before, fields)
        self._before, self._all = before, tuple(fields)
        self._template = before + "".join("%s" + field.follows for field in fields)
        self._match = re.compile(
            re.escape(before) + "".join(field.plain() for field in fields)
        ).fullmatch
        self.fields = tuple(field.name for field in fields)
        self._pick = itemgetter(*self.fields)
        self.pattern = braced(before) + "".join(map(str, fields))

    def __repr__(self) -> str:
        return f"<ThreadNamespace {self.pattern}>"

    def id(self, /, **parts: Part) -> ThreadId:
        """Build the id of these parts.

        Raises:
            ThreadIdError: a part is missing, unknown, empty or neither text, `int` nor `UUID`; or
                the id would be longer than `MAX_LENGTH`. `field` is its name.
        """
        try:
            values = self._pick(parts)
            "".join(values)  # a TypeError unless all of them are text
            text = self._template % values
            plain = self._match(text)
        except (KeyError, TypeError):
            plain = None
        # What is plain, and is found again in it, needs no second look.
        if not plain or plain.groups() != values or len(parts) != len(values):
            text = self._build(parts)
        if len(text) > MAX_LENGTH:
            raise self._too_long(text)
        thread_id = str.__new__(ThreadId, text)  # as ThreadId() does it, which is a call more
        thread_id.namespace = self
        return thread_id

    def parse(self, text: str) -> dict[str, str]:
        """Take an id apart.

        Only what `id` builds is an id. Anything else would be a second id for the same parts, or
        for parts that cannot be.

        Raises:
            ThreadIdError: `text` is not an id of this namespace.

        Example:
            >>> ThreadNamespace("tenant", "user").parse("acme:ada")
            {'tenant': 'acme', 'user': 'ada'}
        """
        if not isinstance(text, str):
            raise ThreadIdError(f"an id is a str, not {type(text).__name__}")
        plain = self._match(text)
        if not plain or len(text) > MAX_LENGTH:
            return self._parse(text)
        return plain.groupdict()

    def config(self, given: "RunnableConfig | None" = None, /, **parts: Part) -> "RunnableConfig":
        """Return the config for the thread of these parts, on top of a given one.

        The thread of `given`, if it has one, is overridden, and so is which of its checkpoints it
        meant. Everything else stays. `given` itself is not changed.

        Raises:
            ThreadIdError: see `id`.

        Example:
            ```python
            await graph.ainvoke(question, threads.config(tenant="acme", user="ada", session="7"))
            ```
        """
        thread_id = self.id(**parts)
        config: RunnableConfig = {**(given or {})}
        configurable = {**(config.get("configurable") or {})}
        if configurable.get("thread_id", thread_id) != thread_id:
            for name in ("checkpoint_id", "checkpoint_ns", "checkpoint_map"):
                configurable.pop(name, None)
        config["configurable"] = {**configurable, "thread_id": thread_id}
        return config

    def prefix(self, /, **parts: Part) -> str:
        """Return a pattern for LIKE that finds all threads with these first parts, and no others.

        `acme` finds nothing of `acme2`. Wildcards in a part are escaped by a backslash, which is
        what LIKE expects unless it is told otherwise.

        Args:
            parts: at least the first one, and no gap; for a single thread there is `id`.

        Raises:
            ThreadIdError: a part is missing or wrong; `field` is its name.

        Example:
            ```python
            like = threads.prefix(tenant="acme")  # acme:%
            await conn.execute(
                "SELECT DISTINCT thread_id FROM checkpoints WHERE thread_id LIKE %s", [like]
            )
            ```
        """
        leading = self._all[: len(parts)]
        if not parts or len(parts) >= len(self._all):
            raise ThreadIdError(
                f"prefix() takes the first of {', '.join(self.fields)}, or more, but not all: for "
                "one thread there is id()"
            )
        text = self._before + "".join(
            field.encode(value) + field.follows
            for field, value in zip(leading, self._values(leading, parts), strict=True)
        )
        return _LIKE_SPECIAL.sub(r"\\\g<0>", text) + "%"

    def metadata(self, /, **parts: Part) -> dict[str, str]:
        """Return what finds the threads with these parts on a LangGraph server.

        Raises:
            ThreadIdError: a part is unknown or wrong; `field` is its name.

        Example:
            ```python
            await client.threads.search(metadata=threads.metadata(tenant="acme", user="ada"))
            ```
        """
        fields = [field for field in self._all if field.name in parts]
        values = self._values(fields, parts)
        return {
            f"lghard_{field.name}": field.encode(value)
            for field, value in zip(fields, values, strict=True)
        }

    @staticmethod
    def new_session() -> str:
        """Return a new id for a conversation: a UUIDv7, so later ones sort after earlier ones.

        It is unique, but no secret: what protects a thread is `ThreadAccess`.
        """
        # RFC 9562, 6.2, method 3: the 12 bits after the milliseconds are a fraction of one.
        milliseconds, rest = divmod(time.time_ns(), 1_000_000)
        fraction = rest * 4096 // 1_000_000
        version, variant = 7 << 76, 2 << 62
        return str(UUID(int=milliseconds << 80 | version | fraction << 64 | variant | randbits(62)))

    def _build(self, parts: Mapping[str, Part]) -> str:
        values = self._values(self._all, parts)
        encoded = [field.encode(value) for field, value in zip(self._all, values, strict=True)]
        return self._template % tuple(encoded)

    def _values(self, fields: Sequence[Field], parts: Mapping[str, object]) -> list[str]:
        """The text of these fields, if there are parts for all of them, and for no other name."""
        for name in parts:
            if name not in self.fields:
                raise ThreadIdError(
                    f"{name} is unknown: the fields are {', '.join(self.fields)}", name
                )
        for field in fields:
            if field.name not in parts:
                raise ThreadIdError(f"{field.name} is missing: an id is {self.pattern}", field.name)
        return [text_of(field.name, parts[field.name]) for field in fields]

    def _parse(self, text: str) -> dict[str, str]:
        """The parts of an id that is not plain: what makes this very text again, or nothing."""
        try:
            if len(text) <= MAX_LENGTH:
                parts = self._take_apart(text)
                if self._build(parts) == text:
                    return parts
        except ValueError:
            pass
        raise ThreadIdError(f"this text is not an id of {self.pattern} as id() builds them")

    def _take_apart(self, text: str) -> dict[str, str]:
        parts = {}
        rest = text.removeprefix(self._before)
        for field in self._all[:-1]:
            part, _, rest = rest.partition(field.follows)
            parts[field.name] = unescape(part)
        last = self._all[-1]
        return {**parts, last.name: unescape(rest.removesuffix(last.follows))}

    def _too_long(self, text: str) -> ThreadIdError:
        return too_long(max(self._take_apart(text).items(), key=lambda part: len(part[1]))[0])
