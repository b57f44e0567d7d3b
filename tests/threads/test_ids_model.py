"""Ids of whatever text, of whatever namespace: taken apart again, and never equal by accident.

`pytest --hypothesis-profile=full` goes on for longer.
"""

import re
import unicodedata

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lghard import ThreadIdError, ThreadNamespace
from tests.threads.hostile import HOSTILE

# Nothing here waits for anybody.
many = settings(max_examples=max(300, settings.default.max_examples))

# Any code point, half a surrogate pair included; what is to be escaped, and what escapes look like.
anything = st.text(st.integers(0, 0x10FFFF).map(chr), min_size=1, max_size=8)
nasty = st.text("ab:-/%0123456789ABCDEF\u0301é\x00_\\", min_size=1, max_size=8)
part = st.one_of(nasty, anything, st.sampled_from([*HOSTILE.values()]))

literal = st.text("ab:-/%A0{}", max_size=4)
name = st.sampled_from(["a", "b", "c", "d"])
separator = st.text("ab:-/", min_size=1, max_size=3)


@st.composite
def patterns(draw):
    """A pattern, that may be refused."""
    names = draw(st.lists(name, min_size=1, max_size=4, unique=True))
    texts = [draw(literal).replace("{", "{{").replace("}", "}}") for _ in [*names, ""]]
    return texts[0] + "".join(
        f"{{{name}}}{text}" for name, text in zip(names, texts[1:], strict=False)
    )


@st.composite
def namespaces(draw):
    """What can be declared, in both ways."""
    if draw(st.booleans()):
        names = draw(st.lists(name, min_size=1, max_size=4, unique=True))
        return ThreadNamespace(*names, sep=draw(separator))
    try:
        return ThreadNamespace.from_pattern(draw(patterns()))
    except ThreadIdError:
        assume(False)


def parts_of(namespace):
    return st.fixed_dictionaries(dict.fromkeys(namespace.fields, part))


def normal(parts):
    """The model: what has been assigned since Unicode 3.2 is left alone, and divides the text."""
    return {name: "".join(map(composed, runs(text))) for name, text in parts.items()}


def runs(text):
    """Cut out, one by one, the characters that Unicode 3.2 does not know."""
    unknown = {c for c in text if unicodedata.ucd_3_2_0.category(c) == "Cn"}
    return re.split(f"([{re.escape(''.join(unknown))}])", text) if unknown else [text]


def composed(text):
    return unicodedata.normalize("NFC", text)


@many
@given(data=st.data(), namespace=namespaces())
def test_round_trip(data, namespace):
    """Any id of any namespace is printable ASCII, and its parts come back."""
    parts = data.draw(parts_of(namespace))
    thread_id = namespace.id(**parts)
    assert normal(parts) == namespace.parse(thread_id)
    assert thread_id == namespace.id(**namespace.parse(thread_id))
    assert thread_id.isascii()
    assert thread_id.isprintable()


@many
@given(data=st.data(), namespace=namespaces())
def test_injective(data, namespace):
    """Two ids are equal if all their parts are, and only then; on a server, too."""
    one, other = data.draw(parts_of(namespace)), data.draw(parts_of(namespace))
    first, second = namespace.id(**one), namespace.id(**other)
    assert (normal(one) == normal(other)) == (first == second) == (first.uuid == second.uuid)


@many
@given(data=st.data(), namespace=namespaces())
def test_moving_text_from_one_part_to_the_next(data, namespace):
    """What makes hand-made ids collide: the same text, cut elsewhere."""
    assume(len(namespace.fields) > 1)
    parts = data.draw(parts_of(namespace))
    left, right = namespace.fields[:2]
    literal = namespace.pattern.partition(f"{{{left}}}")[2].partition(f"{{{right}}}")[0]
    whole = parts[left] + literal.replace("{{", "{").replace("}}", "}") + parts[right]
    seen = {}
    for cut in range(1, len(whole)):
        moved = {**parts, left: whole[:cut], right: whole[cut:]}
        thread_id = namespace.id(**moved)
        assert normal(moved) == seen.setdefault(thread_id, normal(moved))


@many
@given(data=st.data(), namespace=namespaces())
def test_only_what_is_built_is_taken_apart(data, namespace):
    """There is no second text for the same parts, however close to an id it is."""
    thread_id = namespace.id(**data.draw(parts_of(namespace)))
    at = data.draw(st.integers(0, len(thread_id)))
    text = thread_id[:at] + data.draw(nasty | st.just("")) + thread_id[at + data.draw(name_len) :]
    try:
        parts = namespace.parse(text)
    except ThreadIdError:
        return
    assert text == namespace.id(**parts)


name_len = st.integers(0, 3)


@many
@given(data=st.data(), sep=separator, counts=st.sets(st.integers(1, 4), min_size=2, max_size=2))
def test_other_number_of_fields(data, sep, counts):
    """Namespaces with the same separator and other numbers of fields share no id."""
    few, more = [ThreadNamespace(*"abcd"[:count], sep=sep) for count in sorted(counts)]
    thread_id = few.id(**data.draw(parts_of(few)))
    with pytest.raises(ThreadIdError):
        more.parse(thread_id)
    with pytest.raises(ThreadIdError):
        few.parse(more.id(**data.draw(parts_of(more))))


@many
@given(
    data=st.data(), heads=st.lists(st.text("ab-", min_size=1, max_size=3), min_size=2, max_size=2)
)
def test_other_heads(data, heads):
    """Nor do patterns that begin with different text, neither of which begins with the other."""
    assume(not heads[0].startswith(heads[1]) and not heads[1].startswith(heads[0]))
    one, other = [
        ThreadNamespace.from_pattern(head + data.draw(st.sampled_from(["{a}", "{a}-{b}", "{b}:x"])))
        for head in heads
    ]
    assert one.id(**data.draw(parts_of(one))) != other.id(**data.draw(parts_of(other)))


@many
@given(data=st.data(), namespace=namespaces())
def test_prefix(data, namespace):
    """It finds the threads with these first parts, and no other of the namespace."""
    assume(len(namespace.fields) > 1)
    one, other = data.draw(parts_of(namespace)), data.draw(parts_of(namespace))
    count = data.draw(st.integers(1, len(namespace.fields) - 1))
    first = {name: one[name] for name in namespace.fields[:count]}
    pattern = namespace.prefix(**first)
    assert like(namespace.id(**one), pattern)
    same = normal(first) == {name: normal(other)[name] for name in first}
    assert same == bool(like(namespace.id(**other), pattern))


def like(text, pattern):
    """As Postgres does; tests/threads/test_on_postgres.py asks itself."""
    tokens = re.findall(r"\\?.", pattern, re.DOTALL)
    wild = {"%": ".*", "_": "."}
    return re.fullmatch("".join(wild.get(t) or re.escape(t[-1]) for t in tokens), text, re.DOTALL)


@many
@given(text=st.one_of(anything, nasty), namespace=namespaces())
def test_any_text_may_be_asked(text, namespace):
    """What is no id is a ThreadIdError, and no other error."""
    try:
        parts = namespace.parse(text)
    except ThreadIdError:
        return
    assert text == namespace.id(**parts)
