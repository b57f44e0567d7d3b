"""A process in strict mode: what it reads with LangGraph's allowlist, and with the complete one.

python -m tests.state.strict FILE, with LANGGRAPH_STRICT_MSGPACK set.
"""

import json
import pickle
import sys
from pathlib import Path

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, StateGraph

from lghard.state.graph import allowlist_of, check_graph
from tests.state.sameness import same
from tests.state.shapes import VALUES, State


def main(file: str) -> dict[str, list[str]]:
    graph = (
        StateGraph(State)
        .add_node("node", lambda state: {})
        .add_edge(START, "node")
        .add_edge("node", END)
        .compile(checkpointer=InMemorySaver())
    )
    written = pickle.loads(Path(file).read_bytes())
    complete = JsonPlusSerializer(allowed_msgpack_modules=allowlist_of(State))
    own = graph.checkpointer.serde
    return {
        "lost with LangGraph's": [n for n in VALUES if not _equal(own, written[n][0], n)],
        "lost with ours": [n for n in VALUES if not _equal(complete, written[n][0], n)],
        "found": _found(check_graph(graph)),
        "found with ours": _found(check_graph(graph, serde=complete)),
    }


def _equal(serde, data, name):
    return same(serde.loads_typed(data), VALUES[name])


def _found(report):
    found = (f.path.removeprefix("$.").split(".")[0] for f in report if f.rule == "LGS314")
    return list(dict.fromkeys(name.split("[")[0] for name in found))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1])))
