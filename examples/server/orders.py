"""A graph whose one step must not happen twice: it charges for an order."""

import os
from pathlib import Path
from typing import TypedDict

from langgraph.graph import END, START, StateGraph

CHARGED = Path(os.environ["CHARGED"])


class Order(TypedDict, total=False):
    """An order, and its receipt once it is charged."""

    order: str
    receipt: str


def charge(state: Order) -> Order:
    with CHARGED.open("a") as ledger:
        ledger.write(f"{state['order']}\n")
    return {"receipt": f"receipt of {state['order']}"}


builder = StateGraph(Order)
builder.add_node("charge", charge)
builder.add_edge(START, "charge")
builder.add_edge("charge", END)
graph = builder.compile()
