"""What is decided about each method of the SDK, and each of its arguments.

A method or an argument that is not in `methods.json` fails a test until somebody decides about it.
"""

import json
from pathlib import Path

from lghard.sdk.methods import METHODS as REPEATED

METHODS = json.loads((Path(__file__).parent / "methods.json").read_text())
ARGUMENTS = {method: set(decided["arguments"].split()) for method, decided in METHODS.items()}


def treatment(method: str) -> str:
    """What the policy does to a method."""
    checked = "The thread id is checked." if "thread_id" in ARGUMENTS[method] else ""
    return f"{METHODS[method]['policy']} {checked}".strip() or "Nothing."


def repetition(method: str) -> str:
    """Whether it is tried again, for each way of calling it."""
    ways = {key: repeat for key, repeat in REPEATED.items() if key.partition(",")[0] == method}
    texts = [
        f"{key.partition(', ')[2]}: {repeat.value}".lstrip(": ") for key, repeat in ways.items()
    ]
    return "; ".join(texts)


def table() -> str:
    """The table of the documentation."""
    rows = [f"| `{method}` | {treatment(method)} | {repetition(method)} |" for method in METHODS]
    return "\n".join(["| method | policy | retries |", "|---|---|---|", *rows])
