"""How a part stands in a thread id, and how ids are declared.

In a part, these stay as they are: what RFC 3986 lets stand in a segment of a path, `pchar`, so that
no id holds a slash, a control character, or anything that looks like something else. The rest is
its UTF-8 in `%XX`, as in a URL. The text that follows a field is broken in the same way wherever it
would begin within the field's own part. So a part ends where that text is first found: there is one
way only to take an id apart, and two lists of parts never have the same id.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from string import Formatter, ascii_letters, digits
from urllib.parse import unquote
from uuid import UUID

from lghard.errors import ThreadIdError

Part = str | int | UUID
"""What a part may be: text, or a number or UUID, which stand for their usual text."""

MAX_LENGTH = 1024
"""Characters, and bytes, of the longest id.

A row of an index of Postgres has 2704 bytes at most, and LangGraph's primary keys hold more than
the id: `checkpoint_ns` grows by a node's name and 37 bytes with each nested subgraph.
"""

_PLAIN = frozenset(ascii_letters + digits + "-._~!$&'()*+,;=:@")
_NOT_PLAIN = re.compile(f"[^{re.escape(''.join(sorted(_PLAIN)))}]+")
_HEXADECIMAL = frozenset("0123456789ABCDEF")


@dataclass(frozen=True)
class Field:
    """A part of an id, in its place.

    Attributes:
        follows: the text after it.
        stop: the text that its part is kept free of; "" if nothing is to be found after it.
    """

    name: str
    follows: str
    stop: str

    def __str__(self) -> str:
        return f"{{{self.name}}}{braced(self.follows)}"

    def plain(self) -> str:
        """A regular expression for a part that needs no escapes, and what follows it.

        The part ends where the text after it is first found, so it matches in one way only.
        """
        plain = f"[{re.escape(''.join(sorted(_PLAIN - {self.stop})))}]"
        if len(self.stop) > 1:
            plain = f"(?:(?!{re.escape(self.stop)}){plain})"
        return f"(?P<{self.name}>{plain}+){re.escape(self.follows)}"

    def encode(self, value: str) -> str:
        """The part as it stands in the id."""
        escaped = _NOT_PLAIN.sub(_escape, value)
        # What would be found too early begins in the part, and may end in what follows.
        more = self.follows[:-1]
        if not self.stop or self.stop not in escaped + more:
            return escaped
        first, rest = re.escape(self.stop[0]), re.escape(self.stop[1:])
        broken = re.sub(f"{first}(?={rest})", _escape, escaped + more)
        return broken[: len(broken) - len(more)]


def _escape(found: re.Match[str]) -> str:
    # Half a surrogate pair is no valid text, but what JSON calls a string may hold one.
    return "".join(f"%{byte:02X}" for byte in found[0].encode(errors="surrogatepass"))


def unescape(part: str) -> str:
    """What a part of an id stands for; a UnicodeDecodeError if that is no text."""
    return unquote(part, errors="surrogatepass")


def text_of(name: str, value: object) -> str:
    """The text of a part, normalised.

    Raises:
        ThreadIdError: it is empty, or neither text, `int` nor `UUID`.
    """
    match value:
        case str():
            text = str.__str__(value)
        case UUID():
            text = str(value)
        case int() if not isinstance(value, bool):
            text = _digits(name, value)
        case _:
            kind = type(value).__name__
            raise ThreadIdError(f"{name} must be a str, an int or a UUID, not {kind}", name)
    if not text:
        raise ThreadIdError(f"{name} is empty: threads without it would all be the same one", name)
    if len(text) > MAX_LENGTH:  # no character becomes shorter by being normalised and escaped
        raise too_long(name)
    return text if text.isascii() else _normalised(text)


def too_long(name: str) -> ThreadIdError:
    """What to say of the part that makes an id too long."""
    return ThreadIdError(
        f"{name} is too long: an id has {MAX_LENGTH} characters at most, for more may not fit into "
        "an index of Postgres; use a hash of it",
        name,
    )


def _digits(name: str, number: int) -> str:
    if number.bit_length() > 4 * MAX_LENGTH:  # Python refuses to write down the largest ones
        raise too_long(name)
    return int.__repr__(number)


def _normalised(text: str) -> str:
    """Unicode's composed form, NFC, in every version of Python the same.

    Newer versions know more characters, and might combine them. So characters that Unicode 3.2 does
    not know, which is kept in Python for internet names, stay as they are. What that one knows will
    always be normalised in the same way: https://www.unicode.org/policies/stability_policy.html
    """
    runs = ((known, "".join(run)) for known, run in groupby(text, key=_is_known))
    return "".join(unicodedata.normalize("NFC", run) if known else run for known, run in runs)


def _is_known(character: str) -> bool:
    return unicodedata.ucd_3_2_0.category(character) != "Cn"


def braced(literal: str) -> str:
    """A text as it stands in a pattern."""
    return literal.replace("{", "{{").replace("}", "}}")


def read_pattern(pattern: str) -> tuple[str, list[Field]]:
    """What stands before the first field of a pattern, and the fields."""
    try:
        pieces = [*Formatter().parse(pattern)]
    except ValueError as error:
        raise ThreadIdError(f"{pattern!r} is no pattern: {error}") from error
    texts, names = [""], []
    for literal, name, spec, conversion in pieces:
        texts[-1] += literal
        if name is not None:
            if spec or conversion:
                raise ThreadIdError(f"{{{name}}} is to be put in as it is, without ! or :", name)
            names.append(name)
            texts.append("")
    before, *after = texts
    stops = [*after[:-1], ""]
    return before, [Field(*each) for each in zip(names, after, stops, strict=False)]


def check_fields(before: str, fields: Sequence[Field]) -> None:
    """Whether ids can be taken apart in one way only."""
    if not fields:
        raise ThreadIdError("without a field, all threads would be the same one")
    names = [field.name for field in fields]
    for name in names:
        if not name.isidentifier():
            raise ThreadIdError(f"{name!r} is no name for a field: use one such as tenant_1", name)
        if names.count(name) > 1:
            raise ThreadIdError(f"{name} occurs twice, and may not be the same both times", name)
    for literal in (before, *(text for field in fields for text in (field.follows, field.stop))):
        if not (literal.isascii() and literal.isprintable()) or "%" in literal:
            raise ThreadIdError(f"{literal!r} must be printable ASCII, without the % of escapes")
    for field, after in pairwise(fields):
        if not field.follows:
            raise ThreadIdError(
                f"nothing stands between {{{field.name}}} and {{{after.name}}}, so nobody could "
                "tell where one ends and the other begins",
                field.name,
            )
    for field in fields:
        if field.stop[:1] in _HEXADECIMAL:
            raise ThreadIdError(
                f"{field.stop!r} after {{{field.name}}} could be taken for the end of an escape "
                "such as %2F: let it begin with something else than 0-9 or A-F",
                field.name,
            )
