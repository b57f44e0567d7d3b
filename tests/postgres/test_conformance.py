"""LangGraph's own contract of a checkpointer, as its conformance suite tests it."""

import pytest
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import Capability

from lghard import open_checkpointer


@pytest.mark.usefixtures("batching")
async def test_every_capability_passes_langgraphs_conformance_suite(lghard_database):
    """Every capability that the suite knows is detected, and passes."""

    @checkpointer_test(name="HardenedAsyncPostgresSaver")
    async def checkpointer():
        async with open_checkpointer(lghard_database, setup=False) as saver:
            yield saver

    results = (await validate(checkpointer)).results
    assert [] == [failure for result in results.values() for failure in result.failures]
    assert {it.value for it in Capability} == {
        name for name, result in results.items() if result.passed
    }
