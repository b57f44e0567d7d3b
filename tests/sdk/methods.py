"""What is decided about each method of the SDK, and each of its arguments.

A method or an argument that is not in `methods.json` fails a test until somebody decides about it.
"""

import json
from pathlib import Path

from lghard.sdk.methods import METHODS as REPEATS

METHODS = json.loads((Path(__file__).parent / "methods.json").read_text())
ARGUMENTS = {method: set(decided["arguments"].split()) for method, decided in METHODS.items()}


def treatment(method: str) -> str:
    """What the policy does to a method."""
    checked = "The thread id is checked." if "thread_id" in ARGUMENTS[method] else ""
    return f"{METHODS[method]['policy']} {checked}".strip() or "Nothing."


def repeats(method: str) -> str:
    """What becomes of a request whose answer was lost."""
    cases = [key for key in REPEATS if key.startswith(f"{method}, ")]
    special = [f"With {_code(key.partition(', ')[2])}: {REPEATS[key].value}." for key in cases]
    return " ".join([f"{REPEATS[method].value.capitalize()}.", *special])


def _code(arguments: str) -> str:
    return " and ".join(f"`{argument}`" for argument in arguments.split(" and "))


def table() -> str:
    """The table of the documentation."""
    rows = [f"| `{method}` | {treatment(method)} | {repeats(method)} |" for method in METHODS]
    return "\n".join(["| method | what the policy does | retries |", "|---|---|---|", *rows])
