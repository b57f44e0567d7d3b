"""Private names of others that the checks of the state lean on; a failure names what changed."""

import dataclasses
import inspect

import ormsgpack
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde import _msgpack, jsonplus
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.func import entrypoint
from langgraph.graph import StateGraph
from pydantic import BaseModel

from lghard.state.checking import PREVIOUS
from lghard.state.quick import MESSAGES


def test_the_serializers_hook_and_options():
    """`CheckedSerializer` writes with them: LangGraph has moved or renamed them."""
    assert callable(jsonplus._msgpack_default)
    assert isinstance(jsonplus._option, int)
    assert 5 == jsonplus.EXT_PYDANTIC_V2


def test_the_order_in_which_the_hook_asks():
    """`judging.py` asks in the same order: LangGraph has another now."""
    asked = [
        *("_DeltaSnapshot", "model_dump", "get_secret_value", '"dict"', "_asdict", "pathlib.Path"),
        *("re.Pattern", "UUID", "decimal.Decimal", "deque", "IPv4Address", "datetime", "timedelta"),
        *("ZoneInfo", "Enum", "SendProtocol", "is_dataclass", "Item", "ndarray", "BaseException"),
    ]
    text = inspect.getsource(jsonplus._msgpack_default)
    found = [text.index(name) for name in asked]
    assert sorted(found) == found


def test_the_allowlist_of_a_serializer():
    """`check_value(serde=...)` reads it: LangGraph keeps it elsewhere."""
    assert True is JsonPlusSerializer(allowed_msgpack_modules=True)._allowed_msgpack_modules
    assert {("a", "B")} == JsonPlusSerializer(
        allowed_msgpack_modules=[("a", "B")]
    )._allowed_msgpack_modules
    assert ("uuid", "UUID") in _msgpack.SAFE_MSGPACK_TYPES


def test_the_fields_of_messages():
    """The quick walk knows these four: langchain-core has given one of them another field."""
    assert {AIMessage, HumanMessage, SystemMessage, ToolMessage} == {*MESSAGES}


def test_the_core_schema_of_models():
    """`models.py` reads it: pydantic has renamed something."""

    class Model(BaseModel):
        a: int = 1

    schema = Model.__pydantic_core_schema__
    assert "model" == schema["type"]
    assert "model-fields" == schema["schema"]["type"]
    assert "model-field" == schema["schema"]["fields"]["a"]["type"]
    assert Model.__private_attributes__ == {}
    assert Model().__pydantic_private__ is None


def test_the_pseudo_fields_of_dataclasses():
    """The standard library has renamed them."""
    assert dataclasses._FIELD_INITVAR is not dataclasses._FIELD_CLASSVAR


def test_the_depth_at_which_the_encoder_gives_up():
    """`values.DEEPEST` is the same number: ormsgpack has another limit."""
    value = []
    for _ in range(254):
        value = [value]
    ormsgpack.packb(value)


def test_where_an_entrypoint_keeps_what_it_saves():
    """By which `checked` knows one."""

    @entrypoint()
    def run(given: int) -> int:
        return given

    assert PREVIOUS in run.channels
    assert PREVIOUS not in StateGraph(dict).channels
