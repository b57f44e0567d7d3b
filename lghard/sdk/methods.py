"""Which requests may be repeated while it is unknown what came of them: each method of the SDK.

A test calls each method, of the oldest and of the newest SDK, and fails when one does something
else, or is new and nobody has decided about it.
"""

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any


class Repeat(Enum):
    """What a retry may do; the values say so in the documentation."""

    FREELY = "repeated"
    """It reads, or creates what is there already."""
    WRITE = "repeated, but not after a timeout"
    """Twice is as good as once. But a first attempt that is under way in a server that hangs may
    come later, and undo what others have done since."""
    ENDING = "repeated, but not after a timeout; that it is gone by then is a success"
    """So it is with cancelling and deleting: what the second does not find, the first ended."""
    RESUMED = "taken up again by itself, where the policy allows"
    """It waits for a run or reads its events: how that goes on is a matter of the run."""
    NEVER = "never repeated"
    """Each one has an effect: another run, another version, another copy."""


METHODS = {
    "assistants.count": Repeat.FREELY,
    "assistants.create": Repeat.NEVER,
    "assistants.create, assistant_id and if_exists='do_nothing'": Repeat.FREELY,
    "assistants.delete": Repeat.ENDING,
    "assistants.get": Repeat.FREELY,
    "assistants.get_graph": Repeat.FREELY,
    "assistants.get_schemas": Repeat.FREELY,
    "assistants.get_subgraphs": Repeat.FREELY,
    "assistants.get_versions": Repeat.FREELY,
    "assistants.search": Repeat.FREELY,
    "assistants.set_latest": Repeat.WRITE,
    "assistants.update": Repeat.NEVER,  # each one makes a version
    "crons.count": Repeat.FREELY,
    "crons.create": Repeat.NEVER,
    "crons.create_for_thread": Repeat.NEVER,
    "crons.delete": Repeat.ENDING,
    "crons.search": Repeat.FREELY,
    "crons.update": Repeat.WRITE,
    "runs.cancel": Repeat.ENDING,
    "runs.cancel, wait=True": Repeat.RESUMED,
    "runs.cancel_many": Repeat.NEVER,  # by status, it would hit runs that came later
    "runs.cancel_many, run_ids": Repeat.ENDING,
    "runs.create": Repeat.NEVER,
    "runs.create_batch": Repeat.NEVER,
    "runs.delete": Repeat.ENDING,
    "runs.get": Repeat.FREELY,
    "runs.join": Repeat.RESUMED,
    "runs.join_stream": Repeat.RESUMED,
    "runs.list": Repeat.FREELY,
    "runs.stream": Repeat.NEVER,
    "runs.wait": Repeat.NEVER,
    "store.delete_item": Repeat.WRITE,
    "store.get_item": Repeat.FREELY,
    "store.list_namespaces": Repeat.FREELY,
    "store.put_item": Repeat.WRITE,
    "store.search_items": Repeat.FREELY,
    "threads.copy": Repeat.NEVER,
    "threads.count": Repeat.FREELY,
    "threads.create": Repeat.NEVER,
    "threads.create, thread_id and if_exists='do_nothing'": Repeat.FREELY,
    "threads.delete": Repeat.ENDING,
    "threads.get": Repeat.FREELY,
    "threads.get_history": Repeat.FREELY,
    "threads.get_state": Repeat.FREELY,
    "threads.join_stream": Repeat.RESUMED,
    "threads.prune": Repeat.NEVER,  # it deletes by what is there when it arrives
    "threads.search": Repeat.FREELY,
    "threads.stream": Repeat.NEVER,
    "threads.update": Repeat.WRITE,
    "threads.update_state": Repeat.NEVER,  # each one makes a checkpoint
}
"""For each method, what lghard does with it; a case that depends on arguments names them."""

_READING = re.compile(
    r"/(assistants|threads|runs/crons|store/items)/(search|count)"
    r"|/store/namespaces"
    r"|/assistants/[^/]+/versions"
    r"|/threads/[^/]+/(history|state/checkpoint)"
)
_CANCELLING = re.compile(r"/threads/[^/]+/runs/[^/]+/cancel")
_LATEST = re.compile(r"/assistants/[^/]+/latest")
_ASSISTANT = re.compile(r"/assistants/[^/]+")


def repeat_of(verb: str, path: str, json: Any = None) -> Repeat:
    """What may be done with a request, as the SDK sends it.

    Args:
        verb: GET, POST, PUT, PATCH or DELETE.
        path: The path, without the server's own prefix.
        json: The body.
    """
    if verb == "GET":
        return Repeat.FREELY
    if verb == "DELETE":
        # The server says 404 for what is gone, but not for an item of a store.
        return Repeat.WRITE if path.startswith("/store/") else Repeat.ENDING
    if verb == "POST":
        return _repeat_of_post(path, json if isinstance(json, Mapping) else {})
    return Repeat.NEVER if _ASSISTANT.fullmatch(path) else Repeat.WRITE


def _repeat_of_post(path: str, json: Mapping[str, Any]) -> Repeat:
    if _READING.fullmatch(path) or _is_there_already(path, json):
        return Repeat.FREELY
    if _CANCELLING.fullmatch(path) or (path == "/runs/cancel" and json.get("run_ids")):
        return Repeat.ENDING
    return Repeat.WRITE if _LATEST.fullmatch(path) else Repeat.NEVER


def _is_there_already(path: str, json: Mapping[str, Any]) -> bool:
    """Whether it is created only if nobody has, under an id that the caller has chosen."""
    chosen = {"/threads": "thread_id", "/assistants": "assistant_id"}.get(path)
    return bool(chosen and json.get(chosen)) and json.get("if_exists") == "do_nothing"
