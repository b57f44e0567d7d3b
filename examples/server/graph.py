"""A graph for a LangGraph server: it has no checkpointer, since the server brings one."""

import asyncio
from typing import Any

from langchain_core.messages import AIMessage
from langgraph.graph import END, START, MessagesState, StateGraph

NODES = 4
MODEL_SECONDS = 0.3  # what a node waits for its pretended model


async def answer(state: MessagesState) -> dict[str, Any]:
    await asyncio.sleep(MODEL_SECONDS)
    return {"messages": [AIMessage(f"answer {len(state['messages'])}")]}


builder = StateGraph(MessagesState)
for number in range(1, NODES + 1):
    builder.add_node(f"step {number}", answer)
    builder.add_edge(START if number == 1 else f"step {number - 1}", f"step {number}")
builder.add_edge(f"step {NODES}", END)
graph = builder.compile()
