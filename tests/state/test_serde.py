"""A serializer that names the culprit, stores what upstream stores, and nothing that is lost."""

import logging
import threading
from collections.abc import Sequence
from typing import Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from lghard import CheckedSerializer, LghardError, StateNotSerializableError
from tests.state.cases import CASES, TC
from tests.state.zoo import Color, Flat, Growing, Untyped

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")

MESSAGES = [
    SystemMessage("be brief"),
    HumanMessage("zażółć", id="1", name="me"),
    AIMessage(
        [{"type": "text", "text": "x"}, "y"],
        tool_calls=[TC],
        usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
        response_metadata={"model": "m", "logprobs": [0.5, None]},
        additional_kwargs={"blob": b"x"},
    ),
    ToolMessage("42", tool_call_id="1", artifact={"rows": [[1, 2]]}),
]


def test_it_is_upstreams_serializer() -> None:
    """So everything that takes one takes it."""
    assert isinstance(CheckedSerializer(), JsonPlusSerializer)


@pytest.mark.parametrize(
    "value", [MESSAGES, {"m": MESSAGES * 70}, [Flat(), *MESSAGES], [], 1, None]
)
def test_it_writes_what_upstream_writes(value: Any) -> None:
    """Byte for byte, also by its shortcuts."""
    assert JsonPlusSerializer().dumps_typed(value) == CheckedSerializer().dumps_typed(value)


@pytest.mark.parametrize("case", [c for c in CASES if "Mock" not in c.name], ids=lambda c: c.name)
def test_it_writes_what_upstream_writes_or_raises(case: Any) -> None:
    """Nothing else comes out of it, whatever goes in."""
    value = [case.make()]
    try:
        expected = JsonPlusSerializer().dumps_typed(value)
    except Exception:
        with pytest.raises(StateNotSerializableError):
            CheckedSerializer(mode="warn").dumps_typed(value)
        return
    assert expected == CheckedSerializer(mode="warn").dumps_typed(value)


def test_upstream_names_the_outermost_object_only() -> None:
    """The control: which of a message's parts it is, nobody is told."""
    with pytest.raises(TypeError, match=r"^Type is not msgpack serializable: AIMessage$"):
        JsonPlusSerializer().dumps_typed(
            [AIMessage("x", additional_kwargs={"a": [threading.Lock()]})]
        )


def test_the_error_names_the_culprit_and_its_path() -> None:
    """Inside the object that upstream names."""
    value = [AIMessage("x", additional_kwargs={"a": [threading.Lock()]})]
    with pytest.raises(StateNotSerializableError) as error:
        CheckedSerializer().dumps_typed(value)
    assert "$[0].additional_kwargs.a[0]" in str(error.value)
    assert "_thread.lock inside AIMessage" in str(error.value)


def test_the_error_is_what_callers_catch() -> None:
    """Upstream's is a TypeError, too."""
    with pytest.raises(TypeError) as error:
        CheckedSerializer().dumps_typed([2**70])
    assert isinstance(error.value, LghardError)


def test_every_culprit_is_named() -> None:
    """Not only the first."""
    with pytest.raises(StateNotSerializableError) as error:
        CheckedSerializer().dumps_typed({"a": 2**70, "b": [lambda: 1], "c": {(1, 2)}})
    assert ["$.a", "$.b[0]", "$.c"] == [each.path for each in error.value.report]


def test_silent_loss_is_refused() -> None:
    """Upstream stores a model in an untyped field, and gives back a dict."""
    with pytest.raises(StateNotSerializableError, match="LGS207"):
        CheckedSerializer().dumps_typed([Untyped(a=Flat())])


def test_what_is_less_bad_is_stored_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Each rule at each path, whatever the index."""
    serde = CheckedSerializer()
    serde.dumps_typed([(1, 2), (3, 4)])
    serde.dumps_typed([1, 2, (5, 6)])
    assert 1 == len(caplog.records)
    assert "LGS301" in caplog.text


def test_warnings_can_be_refused_too() -> None:
    with pytest.raises(StateNotSerializableError, match="LGS301"):
        CheckedSerializer(fail_on="warning").dumps_typed([(1, 2)])


def test_warn_stores_all_that_can_be_stored(caplog: pytest.LogCaptureFixture) -> None:
    """For a service that is running already."""
    kind, _ = CheckedSerializer(mode="warn").dumps_typed([Untyped(a=Flat())])
    assert "msgpack" == kind
    assert "LGS207" in caplog.text


def test_off_is_upstream(caplog: pytest.LogCaptureFixture) -> None:
    CheckedSerializer(mode="off").dumps_typed([Untyped(a=Flat())])
    assert [] == caplog.records


def test_code_of_the_values_own_is_tried_out_on_request() -> None:
    """A constructor that multiplies is found by running it."""
    CheckedSerializer().dumps_typed([Growing(5)])
    with pytest.raises(StateNotSerializableError, match="LGS215"):
        CheckedSerializer(roundtrip=True).dumps_typed([Growing(5)])


def test_pickling_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """With a fallback nothing raises; but what is pickled is told."""
    kind, _ = CheckedSerializer(pickle_fallback=True).dumps_typed([1j])
    assert "pickle" == kind
    assert "LGS312" in caplog.text


def test_an_allowlist_with_a_hole_is_refused() -> None:
    """What would be written, and come back as a raw value."""
    serde = CheckedSerializer(allowed_msgpack_modules=[Flat])
    serde.dumps_typed([Flat()])
    with pytest.raises(StateNotSerializableError, match="LGS315"):
        serde.dumps_typed([Color.RED])


def test_an_allowlist_that_grows_keeps_the_checks() -> None:
    """LangGraph makes such a copy when it compiles a graph in strict mode."""
    serde = CheckedSerializer(allowed_msgpack_modules=[Flat])
    copied = serde.with_msgpack_allowlist([Color])
    copied.dumps_typed([Color.RED])
    with pytest.raises(StateNotSerializableError):
        copied.dumps_typed([2**70])


def test_it_works_inside_encryption() -> None:
    class Nothing:
        def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
            return "none", plaintext

        def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
            return ciphertext

    serde = EncryptedSerializer(Nothing(), CheckedSerializer())
    with pytest.raises(StateNotSerializableError):
        serde.dumps_typed([2**70])


def test_no_value_is_shown() -> None:
    """An error ends up in logs, where no state belongs."""
    secret = "hunter2"
    with pytest.raises(StateNotSerializableError) as error:
        CheckedSerializer().dumps_typed([AIMessage(secret, additional_kwargs={"a": {1j, secret}})])
    assert secret not in str(error.value)


def test_it_serves_a_saver() -> None:
    saver = InMemorySaver(serde=CheckedSerializer())
    assert isinstance(saver.serde, CheckedSerializer)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mode": "loud"}, "no mode"),
        ({"fail_on": "x"}, "no severity"),
        ({"on_nul": "x"}, "no on_nul"),
    ],
)
def test_wrong_settings_are_refused(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CheckedSerializer(**wrong)


def test_nothing_is_logged_at_import() -> None:
    assert [] == logging.getLogger("lghard.state").handlers


def test_it_carries_the_complete_allowlist() -> None:
    """Also of types that LangGraph's own walker does not look for."""

    class State(TypedDict):
        flats: Sequence[Flat]

    serde = CheckedSerializer(graph=State)
    assert [Flat()] == serde.loads_typed(serde.dumps_typed([Flat()]))
    with pytest.raises(StateNotSerializableError, match="LGS315"):
        serde.dumps_typed([Color.RED])
