"""The graphs that the other tests lean on do what they say."""

import pytest
from langgraph_sdk.client import LangGraphClient

from tests.sdk.conftest import Effects


@pytest.mark.parametrize("graph", ["slow", "sync", "stubborn"])
async def test_graph_does_its_steps(stock: LangGraphClient, effects: Effects, graph: str) -> None:
    """Each step leaves one line."""
    key = effects.new_key()
    result = await stock.runs.wait(None, graph, input={"key": key, "steps": 3})
    assert [0, 1, 2] == result["done"] == effects.steps(key)
    assert 1 == len(effects.runs(key))
