"""LangGraph's prebuilt ReAct agent, as it is, with tools and a chat model that is none."""

import warnings
from typing import Any

from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from langgraph.prebuilt import create_react_agent


class Model(FakeMessagesListChatModel):
    """Says what it is told to say."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self


def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"It rains in {city}."


CALL = {"name": "weather", "args": {"city": "Kiel"}, "id": "1", "type": "tool_call"}
model = Model(responses=[AIMessage("", tool_calls=[CALL]), AIMessage("Take an umbrella.")])  # type: ignore[list-item]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    graph = create_react_agent(model, [weather])
