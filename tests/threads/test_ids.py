"""ThreadNamespace and ThreadId: built, taken apart, refused."""

import copy
import enum
import json
import pickle
import subprocess
import sys
import uuid

import httpx
import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from pydantic import BaseModel, ConfigDict

from lghard import ThreadId, ThreadIdError, ThreadNamespace
from lghard.threads.parts import MAX_LENGTH
from tests.threads.hostile import HOSTILE

threads = ThreadNamespace("tenant", "user", "session")
ADA = threads.id(tenant="acme", user="ada", session="7")


# Built and taken apart


def test_plain_parts_are_readable():
    """The id is what anybody would have written."""
    assert ("acme:ada:7", "ThreadId('acme:ada:7')") == (ADA, repr(ADA))


def test_naive_ids_collide_and_these_do_not():
    """The control: an f-string makes one conversation of two."""
    first, second = {"tenant": "a-b", "user": "c"}, {"tenant": "a", "user": "b-c"}
    assert "{tenant}-{user}".format(**first) == "{tenant}-{user}".format(**second)
    two = ThreadNamespace("tenant", "user", sep="-")
    assert two.id(**first) != two.id(**second)
    pattern = ThreadNamespace.from_pattern("{tenant}-{user}")
    assert pattern.id(**first) != pattern.id(**second)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("field", threads.fields)
def test_hostile_text_comes_back(text, field):
    """Whatever stands in a part, the id is printable ASCII, and is taken apart again."""
    parts = {"tenant": "acme", "user": "ada", "session": "7", field: text}
    thread_id = threads.id(**parts)
    assert parts == threads.parse(thread_id)
    assert thread_id.isascii()
    assert thread_id.isprintable()
    assert not set(' /\\"<>?#') & set(thread_id)


def test_hostile_texts_are_all_different():
    """None of them is the conversation of another, nor of the same text in another field."""
    ids = {
        threads.id(**{"tenant": "acme", "user": "ada", "session": "7", field: text})
        for text in HOSTILE.values()
        for field in threads.fields
    }
    assert len(HOSTILE) * len(threads.fields) == len(ids)


def test_ids_stay_as_they_are():
    """These stand in people's databases: a change would be a new thread for everybody."""
    assert [
        "a%3Ab:%25:50%20%2F",
        "%C3%A9:%00%0A:%F0%9F%99%82",
        "%E2%80%AEemca:%D7%A9:%ED%A0%BD",
        "8c939c28-2372-50c6-9a74-31e4c213161a:-7:0",
    ] == [
        threads.id(tenant="a:b", user="%", session="50 /"),
        threads.id(tenant="e\u0301", user="\x00\n", session="🙂"),
        threads.id(tenant="\u202eemca", user="ש", session="\ud83d"),
        threads.id(tenant=uuid.uuid5(uuid.NAMESPACE_DNS, "lghard"), user=-7, session=0),
    ]
    assert "6f78f1b6-491c-54e8-a29f-a60961a9f1d6" == str(ADA.uuid)


def test_other_processes_build_the_same():
    """Neither the hash seed nor the process decides anything."""
    code = (
        "from lghard import ThreadNamespace as N; "
        "t = N('tenant', 'user').id(user='\u00e9', tenant='a:b'); print(t, t.uuid)"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-X", "utf8", "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout.strip()
        for seed in "12"
    }
    ours = ThreadNamespace("tenant", "user").id(tenant="a:b", user="é")
    assert {f"{ours} {ours.uuid}"} == printed


def test_numbers_and_uuids_are_their_text():
    """In the one way in which they are usually written."""
    some = uuid.UUID("7F3A0F0E-2A4B-5C6D-8E9F-0123456789AB")
    by_value = threads.id(tenant=some, user=-7, session=10**30)
    assert by_value == threads.id(tenant=str(some), user="-7", session="1" + "0" * 30)


class Number(enum.IntEnum):
    SEVEN = 7


class Name(str, enum.Enum):  # noqa: UP042 - whose str() is not its value
    ACME = "acme"


def test_enums_are_their_value():
    """And not their name, which `str` of some of them is."""
    assert ADA == threads.id(tenant=Name.ACME, user="ada", session=Number.SEVEN)


def test_composed_and_decomposed_text_is_the_same():
    """An é is an é, whether it was typed on a Mac or anywhere else; so is an Å."""
    composed = threads.id(tenant="acme", user="Zoé\u00c5", session="7")
    assert composed == threads.id(tenant="acme", user="Zoe\u0301\u212b", session="7")
    assert "Zo\u00e9\u00c5" == threads.parse(composed)["user"]


def test_look_alikes_are_not_the_same():
    """Compatibility forms, case and invisible characters are somebody else's."""
    texts = ["fi", "\ufb01", "FI", "f\u200bi", "\uff46\uff49", " fi", "fi "]
    assert len(texts) == len({threads.id(tenant=text, user="u", session="s") for text in texts})


def test_characters_of_newer_unicode_stay_as_they_are():
    """U+11131 and U+11127 were added later: a Python that knows them would combine them."""
    text = "e\u0301\U00011131\U00011127e\u0301"
    parts = threads.parse(threads.id(tenant=text, user="u", session="s"))
    assert "\u00e9\U00011131\U00011127\u00e9" == parts["tenant"]


# Refused


@pytest.mark.parametrize("value", ["", None, True, False, b"acme", 1.0, [], {}, ("a",), object()])
@pytest.mark.parametrize("field", threads.fields)
def test_wrong_part_is_named(value, field):
    """What is empty or no text says which field it is, and not what is in it."""
    with pytest.raises(ThreadIdError, match=f"^{field} (is empty|must be a str)") as caught:
        threads.id(**{"tenant": "acme", "user": "ada", "session": "7", field: value})
    assert field == caught.value.field


@pytest.mark.parametrize("field", threads.fields)
def test_missing_part_is_named(field):
    """No id is built of the rest."""
    parts = {"tenant": "acme", "user": "ada", "session": "7"}
    del parts[field]
    with pytest.raises(ThreadIdError, match=f"^{field} is missing") as caught:
        threads.id(**parts)
    assert field == caught.value.field


@pytest.mark.parametrize("others", [{}, {"session": "7"}])
def test_unknown_part_is_named(others):
    """A typing error does not lead to another thread."""
    with pytest.raises(
        ThreadIdError, match=r"^sesion is unknown: the fields are tenant,"
    ) as caught:
        threads.id(tenant="acme", user="ada", sesion="7", **others)
    assert "sesion" == caught.value.field


@pytest.mark.parametrize(
    "value",
    ["x" * MAX_LENGTH, "x" * 10**7, "e\u0301" * 10**6, "\U0001fae8" * 100, 10**2000, 10**9000],
    ids=["x", "many", "many accents", "emoji", "number", "huge"],
)
def test_too_long_part_is_named(value):
    """Also a number that Python itself refuses to write down."""
    with pytest.raises(ThreadIdError, match=r"^user is too long") as caught:
        threads.id(tenant="acme", user=value, session="7")
    assert "user" == caught.value.field


def test_longest_id():
    """One more is too long."""
    longest = threads.id(tenant="a", user="b", session="c" * (MAX_LENGTH - 4))
    assert MAX_LENGTH == len(longest)
    assert "c" * (MAX_LENGTH - 4) == threads.parse(longest)["session"]
    with pytest.raises(ThreadIdError, match="this text is not an id"):
        threads.parse(longest + "c")


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "::", "acme", "acme:ada", "acme:ada:", ":ada:7", "acme::7", "acme:ada:7:8"),
        *("acme:ada:7 ", "acme:ada:7\n", "acme:ada:\x00", "acme:ada:é", "acme:ada:a/b"),
        *("acme:ada:%", "acme:ada:%4", "acme:ada:%zz", "acme:ada:%ff", "acme:ada:%C3"),
        *("acme:ada:%3a", "acme:ada:%37", "acme:ada:%65%CC%81", "acme%3aada:x:7", "acme:ada:+%20%"),
        *("acme:ada:e%CC%81", "acme:ada:" + "7" * MAX_LENGTH, "acme:ada:" + "%3A" * MAX_LENGTH),
    ],
)
def test_what_id_would_not_build_is_no_id(text):
    """A second text for the same parts would be a second thread."""
    with pytest.raises(ThreadIdError, match="this text is not an id of "):
        threads.parse(text)


@pytest.mark.parametrize("value", [None, 7, b"acme:ada:7", uuid.UUID(int=0), ["acme:ada:7"]])
def test_what_is_no_text_is_no_id(value):
    """As in a request body that was not validated."""
    with pytest.raises(ThreadIdError, match=r"^an id is a str, not "):
        threads.parse(value)


def test_errors_show_no_parts():
    """They may end in a log or a response."""
    for build in (threads.parse, lambda text: threads.id(tenant=text, user="", session="s")):
        with pytest.raises(ThreadIdError) as caught:
            build("secret@example.com")
        assert "secret" not in str(caught.value)


# Patterns that people have


PATTERNS = [
    ("report-{user}-{date}", {"user": "ada", "date": "2026-11-20"}, "report-ada-2026-11-20"),
    (
        "tenant-{tenant}-ticket-{ticket}",
        {"tenant": "acme-corp", "ticket": "A-7"},
        "tenant-acme-corp-ticket-A-7",
    ),
    (
        "{tenant}::{user}::{session}",
        {"tenant": "a:b", "user": "ada", "session": "7"},
        "a:b::ada::7",
    ),
    ("{tenant}/{user}", {"tenant": "acme", "user": "ada"}, "acme/ada"),
    ("{user}_{n}.thread", {"user": "ada@example.com", "n": "1"}, "ada@example.com_1.thread"),
    ("thread|{user}", {"user": "a-b_c"}, "thread|a-b_c"),
    ("{{x}}{user}", {"user": "ada"}, "{x}ada"),
]


@pytest.mark.parametrize(("pattern", "parts", "text"), PATTERNS)
def test_ids_that_exist_already(pattern, parts, text):
    """The pattern builds what the f-string has built, and takes it apart."""
    namespace = ThreadNamespace.from_pattern(pattern)
    assert (pattern, text) == (namespace.pattern, namespace.id(**parts))
    assert parts == namespace.parse(text)


@pytest.mark.parametrize(
    ("pattern", "parts", "text"),
    [
        ("report-{user}-{date}", {"user": "mary-ann", "date": "1"}, "report-mary%2Dann-1"),
        ("a{x}-t-{y}", {"x": "-t", "y": "t-"}, "a%2Dt-t-t-"),
        ("a{x}-t-{y}", {"x": "-t-t", "y": "-t-"}, "a%2Dt%2Dt-t--t-"),
        ("{x}::{y}", {"x": "a:", "y": ":b"}, "a%3A:::b"),
    ],
)
def test_what_would_be_found_too_early_is_escaped(pattern, parts, text):
    """That, and no more: also what only begins in the part, and ends in what follows."""
    namespace = ThreadNamespace.from_pattern(pattern)
    assert text == namespace.id(**parts)
    assert parts == namespace.parse(text)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("{tenant}{user}", "nothing stands between {tenant} and {user}"),
        ("{tenant}A{user}", "'A' after {tenant} could be taken for the end of an escape"),
        ("{tenant}%{user}", "printable ASCII, without the %"),
        ("{tenant}é{user}", "printable ASCII"),
        ("{tenant}\n{user}", "printable ASCII"),
        ("{tenant}-{tenant}", "tenant occurs twice"),
        ("thread", "without a field, all threads would be the same one"),
        ("", "without a field"),
        ("{}-{user}", "'' is no name for a field"),
        ("{user.id}", "'user.id' is no name"),
        ("{0}", "'0' is no name"),
        ("{date:%Y}", "{date} is to be put in as it is"),
        ("{user!r}", "{user} is to be put in as it is"),
        ("{user", "is no pattern"),
        ("user}", "is no pattern"),
    ],
)
def test_ambiguous_pattern_is_refused(pattern, reason):
    """When it is declared, and with the reason."""
    with pytest.raises(ThreadIdError, match=reason):
        ThreadNamespace.from_pattern(pattern)


@pytest.mark.parametrize(
    ("fields", "sep", "reason"),
    [
        ((), ":", "without a field"),
        (("a", "a"), ":", "a occurs twice"),
        (("a-b",), ":", "'a-b' is no name"),
        (("a", "b"), "", "nothing stands between"),
        (("a", "b"), "%", "without the %"),
        (("a",), "%", "without the %"),
        (("a", "b"), "0", "could be taken for the end of an escape"),
        (("a",), "F", "could be taken for the end of an escape"),
        (("a", "b"), "\x00", "printable ASCII"),
    ],
)
def test_ambiguous_declaration_is_refused(fields, sep, reason):
    """In the same way."""
    with pytest.raises(ThreadIdError, match=reason):
        ThreadNamespace(*fields, sep=sep)


def test_any_name_is_a_field():
    """Also those of the arguments of our own methods, and names in other alphabets."""
    namespace = ThreadNamespace("self", "given", "prénom")
    parts = {"self": "a", "given": "b", "prénom": "c"}
    assert "a:b:c" == namespace.config(**parts)["configurable"]["thread_id"]
    assert parts == namespace.parse("a:b:c")


# Config, server, prefix, session


def test_config():
    """A config for the thread, and nothing else."""
    config = threads.config(tenant="acme", user="ada", session="7")
    assert {"configurable": {"thread_id": "acme:ada:7"}} == config
    assert ADA.uuid == config["configurable"]["thread_id"].uuid


def test_config_overrides_the_thread_of_a_given_one():
    """And which of its checkpoints was meant; what else was given stays, and is not changed."""
    given = {
        "tags": ["a"],
        "configurable": {"thread_id": "beta:bob:1", "checkpoint_id": "x", "checkpoint_ns": "y"},
        "recursion_limit": 7,
    }
    given["configurable"] |= {"checkpoint_map": {"": "x"}, "model": "m"}
    before = copy.deepcopy(given)
    assert {
        "tags": ["a"],
        "configurable": {"thread_id": "acme:ada:7", "model": "m"},
        "recursion_limit": 7,
    } == threads.config(given, tenant="acme", user="ada", session="7")
    assert before == given


@pytest.mark.parametrize("same", [{}, {"thread_id": "acme:ada:7"}])
def test_config_keeps_a_checkpoint_of_its_own_thread(same):
    """So that one may go back in it."""
    given = {"configurable": {"checkpoint_id": "x", **same}}
    config = threads.config(given, tenant="acme", user="ada", session="7")
    assert {"thread_id": "acme:ada:7", "checkpoint_id": "x"} == config["configurable"]


def test_uuid_is_one_that_a_server_takes():
    """Version 5, of the text alone: another namespace with the same text means the same thread."""
    assert (5, uuid.RFC_4122) == (ADA.uuid.version, ADA.uuid.variant)
    assert ADA.uuid == ThreadNamespace.from_pattern("{a}:{b}:{c}").id(a="acme", b="ada", c=7).uuid
    assert ADA.uuid != threads.id(tenant="acme", user="ada", session="8").uuid


def test_metadata_finds_the_thread_again():
    """As a whole, and by each part as it stands in the id."""
    thread_id = threads.id(tenant="acme", user="Zoë", session="7")
    assert {
        "lghard": "acme:Zo%C3%AB:7",
        "lghard_tenant": "acme",
        "lghard_user": "Zo%C3%AB",
        "lghard_session": "7",
    } == thread_id.metadata
    found = threads.metadata(user="Zoe\u0308", tenant="acme")
    assert {"lghard_tenant": "acme", "lghard_user": "Zo%C3%AB"} == found
    with pytest.raises(ThreadIdError, match="team is unknown"):
        threads.metadata(team="acme")


@pytest.mark.parametrize(
    ("parts", "pattern"),
    [
        ({"tenant": "acme"}, "acme:%"),
        ({"tenant": "acme", "user": "ada"}, "acme:ada:%"),
        ({"tenant": "a_c"}, r"a\_c:%"),
        ({"tenant": "50 %"}, r"50\%20\%25:%"),
        ({"tenant": "a\\"}, r"a\%5C:%"),
    ],
)
def test_prefix_is_a_pattern_for_like(parts, pattern):
    """With the wildcards of the parts escaped, and one of its own at the end."""
    assert pattern == threads.prefix(**parts)


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ({}, r"prefix\(\) takes the first of tenant, user, session"),
        ({"tenant": "a", "user": "b", "session": "c"}, "not all"),
        ({"user": "ada"}, "tenant is missing"),
        ({"tenant": "acme", "session": "7"}, "user is missing"),
        ({"tenant": "acme", "team": "x"}, "team is unknown"),
        ({"tenant": ""}, "tenant is empty"),
        ({"tenant": None}, "tenant must be a str"),
    ],
)
def test_prefix_never_means_everything(parts, complaint):
    """It is for deleting, too: what is missing is an error, and not everybody's threads."""
    with pytest.raises(ThreadIdError, match=complaint):
        threads.prefix(**parts)


def test_sessions_are_in_order_of_time():
    """Each is a UUIDv7, and sorts after those before it."""
    sessions = [ThreadNamespace.new_session() for _ in range(1000)]
    assert sorted(set(sessions)) == sessions
    assert {7} == {uuid.UUID(session).version for session in sessions}
    assert {uuid.RFC_4122} == {uuid.UUID(session).variant for session in sessions}


def test_session_holds_the_time(monkeypatch):
    """The first 48 bits are the milliseconds, as RFC 9562 says."""
    monkeypatch.setattr("time.time_ns", lambda: 0x017F22E279B0 * 1_000_000 + 999_999)
    assert threads.new_session().startswith("017f22e2-79b0-7fff-")


# As plain text


def test_is_text():
    """For whoever asks."""
    assert isinstance(ADA, str)
    assert "acme:ada:7" == ADA
    assert {"acme:ada:7": 1} == {ADA: 1}
    assert (str, str) == (type(str(ADA)), type(f"{ADA}"))


def test_json():
    """As a value and as a key."""
    assert '{"acme:ada:7": "acme:ada:7"}' == json.dumps({ADA: ADA})


def test_msgpack():
    """In a checkpoint it is plain text, without a warning and without an extension type."""
    serde = JsonPlusSerializer()
    kind, stored = serde.dumps_typed({"id": ADA, "all": [ADA], ADA: 1})
    loaded = serde.loads_typed((kind, stored))
    assert {"id": "acme:ada:7", "all": ["acme:ada:7"], "acme:ada:7": 1} == loaded
    assert (kind, stored) == serde.dumps_typed(
        {"id": str(ADA), "all": [str(ADA)], str(ADA): 1},
    )
    assert {str} == {type(loaded["id"]), type(loaded["all"][0]), *map(type, loaded)}


@pytest.mark.parametrize("strict", [False, True])
def test_pydantic(strict):
    """A field of type str takes it, and holds plain text."""

    class Body(BaseModel):
        model_config = ConfigDict(strict=strict)
        thread_id: str

    body = Body(thread_id=ADA)
    assert (str, "acme:ada:7") == (type(body.thread_id), body.thread_id)
    assert '{"thread_id":"acme:ada:7"}' == body.model_dump_json()


def test_httpx():
    """In the path, the query, a header and the body."""
    request = httpx.Request(
        "POST", f"http://server/{ADA}", params={"id": ADA}, headers={"x-id": ADA}, json={"id": ADA}
    )
    assert ("/acme:ada:7", "acme:ada:7") == (request.url.path, request.url.params["id"])
    assert ("acme:ada:7", b'{"id":"acme:ada:7"}') == (request.headers["x-id"], request.content)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_copies_know_what_they_are(copied):
    """A config is copied, and sent to other processes."""
    copy_of_ada = copied(ADA)
    assert (ThreadId, ADA, ADA.uuid) == (type(copy_of_ada), copy_of_ada, copy_of_ada.uuid)
    assert ADA.metadata == copy_of_ada.metadata
