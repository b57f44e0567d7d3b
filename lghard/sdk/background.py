"""Start a run now, and fetch what came of it later, from wherever."""

from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypedDict, cast, overload
from uuid import UUID

from langgraph_sdk.client import LangGraphClient, SyncLangGraphClient
from langgraph_sdk.errors import NotFoundError
from langgraph_sdk.schema import Run, ThreadState

from lghard.errors import RunCancelledError, RunDeadlineError, RunFailedError
from lghard.sdk.ids import server_id
from lghard.sdk.once import create_run_once
from lghard.sdk.outcomes import FAILURES, is_transient
from lghard.sdk.steps import Steps, pauses, walk, walk_sync

Client = LangGraphClient | SyncLangGraphClient

_UNFINISHED = {"pending", "running"}
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0


class RunHandle(TypedDict):
    """Where a run is: plain strings, to be stored, queued or sent as JSON.

    A `Run` of the SDK is one, too.
    """

    thread_id: str
    run_id: str


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended, and with what.

    Attributes:
        thread_id: Its thread.
        run_id: The run.
        status: "success"; "error", when the graph raised one; "interrupted", when the run was
            cancelled; "timeout", on the server; "gone", when it was deleted, or rolled back by a
            later run on its thread.
        values: The state that the run left, whatever later runs have made of it; None if there is
            none.
        interrupts: What the graph asks, where it stopped at an `interrupt()`: a success.
        error: What the graph raised, as the server tells it.
    """

    thread_id: str
    run_id: str
    status: str
    values: Any = field(default=None, repr=False)
    interrupts: tuple[Any, ...] = field(default=(), repr=False)
    error: str | None = None

    def raise_for_status(self) -> None:
        """Raise if the run did not succeed.

        Raises:
            RunFailedError: The graph raised an error.
            RunCancelledError: The run was stopped, deleted or rolled back.
        """
        ids = {"thread_id": self.thread_id, "run_id": self.run_id}
        if self.status == "error":
            name, _, _ = (self.error or "Error").partition("(")
            raise RunFailedError(name, self.error or "the graph failed", **ids)
        if self.status != "success":
            reason, words = _ENDS.get(self.status, (self.status, f"ended as {self.status!r}"))
            where = f"run {self.run_id} on thread {self.thread_id}"
            raise RunCancelledError(f"{where} {words}", reason=reason, **ids)


_ENDS = {
    "interrupted": ("cancelled", "was cancelled"),
    "timeout": ("timed out", "ran into the server's own time limit (BG_JOB_TIMEOUT_SECS)"),
    "gone": ("rolled back", "was rolled back or deleted, or has never been on this server"),
}


@overload
def start_run(
    client: LangGraphClient,
    thread_id: str | None,
    assistant_id: str,
    *,
    key: str | None = None,
    webhook: str | None = None,
    **run_arguments: Any,
) -> Coroutine[Any, Any, RunHandle]: ...


@overload
def start_run(
    client: SyncLangGraphClient,
    thread_id: str | None,
    assistant_id: str,
    *,
    key: str | None = None,
    webhook: str | None = None,
    **run_arguments: Any,
) -> RunHandle: ...


def start_run(
    client: Client,
    thread_id: str | None,
    assistant_id: str,
    *,
    key: str | None = None,
    webhook: str | None = None,
    **run_arguments: Any,
) -> Coroutine[Any, Any, RunHandle] | RunHandle:
    """Start a run in the background and return at once; await it, if `client` is async.

    Nobody needs to stay connected: neither a restart of the caller nor a lost connection ends the
    run. `await_run` fetches its result.

    Args:
        client: A client of `langgraph_sdk`, hardened or not.
        thread_id: The thread to run on; None: one of its own, which stays until it is deleted.
        assistant_id: The assistant, or the name of a graph.
        key: What the run is for: then it is started at most once, see `create_run_once`.
        webhook: A URL that the server calls when the run has ended, with the run as JSON.
        **run_arguments: All that `runs.create` takes, such as `input`; and with a `key` what
            `create_run_once` takes.

    Returns:
        The handle of the run, which is plain JSON.

    Raises:
        ValueError: `on_completion="delete"` would delete the result with its thread.

    Example:
        ```python
        handle = await start_run(client, None, "agent", input=task, webhook=url)
        queue.publish(json.dumps(handle))
        ```
    """
    if webhook is not None:
        run_arguments["webhook"] = webhook
    if thread_id is None and key is None:
        _keep_thread(run_arguments)
    create: Callable[[], Any] = partial(client.runs.create, thread_id, assistant_id)
    if key is not None:
        create = partial(create_run_once, client, thread_id, assistant_id, key=key)
    steps = _start(partial(create, **run_arguments))
    return walk_sync(steps) if isinstance(client, SyncLangGraphClient) else walk(steps)


@overload
def await_run(
    client: LangGraphClient, handle: RunHandle | Run, *, timeout: float | None = 3600.0
) -> Coroutine[Any, Any, RunResult]: ...


@overload
def await_run(
    client: SyncLangGraphClient, handle: RunHandle | Run, *, timeout: float | None = 3600.0
) -> RunResult: ...


def await_run(
    client: Client, handle: RunHandle | Run, *, timeout: float | None = 3600.0
) -> Coroutine[Any, Any, RunResult] | RunResult:
    """Wait until a run has ended, and return how and with what; await it, if `client` is async.

    It asks for the run again and again, a quarter of a second later at first and five seconds later
    in the end, and so needs no connection that would have to last. A server that cannot be reached
    for a while is waited for. Who gives up waiting does not end the run.

    Args:
        client: A client of `langgraph_sdk`, hardened or not.
        handle: What `start_run` returned, here or in another process, or a run of the SDK.
        timeout: Seconds to wait; 0 looks once. None: for ever. A request under way is not cut
            short: that is what the client's own `timeout` is for.

    Returns:
        The run's result; `raise_for_status()` raises what it did not succeed in.

    Raises:
        RunDeadlineError: The run has not ended by then. It goes on, and may be awaited again. If
            the server could not be reached, the error for that is the cause.
        httpx.HTTPStatusError: The server refuses to tell, as one of `langgraph_sdk.errors`.
        ValueError: It is no handle: its ids are not UUIDs. Nothing was sent.

    Example:
        ```python
        result = await await_run(client, json.loads(message), timeout=600.0)
        if result.interrupts:
            ...  # the graph asks something
        ```
    """
    steps = _await(client, handle, timeout)
    return walk_sync(steps) if isinstance(client, SyncLangGraphClient) else walk(steps)


def _keep_thread(run_arguments: dict[str, Any]) -> None:
    """A thread that is deleted with its run leaves nothing to fetch."""
    if run_arguments.setdefault("on_completion", "keep") != "keep":
        raise ValueError(
            "start_run keeps the thread of its run, where its result is fetched from: leave"
            " on_completion out, and delete the thread once you have the result"
        )


def _start(create: Callable[[], Any]) -> Steps[RunHandle]:
    run = yield create
    return {"thread_id": run["thread_id"], "run_id": run["run_id"]}


def _await(client: Client, handle: RunHandle | Run, timeout: float | None) -> Steps[RunResult]:
    limit = float("inf") if timeout is None else timeout
    waits = pauses(limit, first=_FIRST_PAUSE, longest=_LONGEST_PAUSE)
    ids: RunHandle = {
        "thread_id": server_id(handle["thread_id"]),
        "run_id": _checked_run_id(handle["run_id"]),
    }
    get = partial(client.runs.get, ids["thread_id"], ids["run_id"])
    try:
        while (run := (yield from _patiently(get, waits, ids, limit)))["status"] in _UNFINISHED:
            yield _next_pause(waits, ids, limit)
    except NotFoundError:
        return RunResult(**ids, status="gone")
    history = partial(
        client.threads.get_history,
        ids["thread_id"],
        limit=1,
        metadata={"run_id": ids["run_id"]},
    )
    states = yield from _patiently(history, waits, ids, limit)
    error = None
    if run["status"] == "error" and not (error := _error_of(states)):
        get_thread = partial(client.threads.get, ids["thread_id"])
        error = _last_words((yield from _patiently(get_thread, waits, ids, limit)))
    return _result(ids, run["status"], states, error)


def _checked_run_id(run_id: object) -> str:
    """A handle may come from a URL, and a path in it would lead to the run of somebody else."""
    try:
        UUID(str(run_id))
    except ValueError:
        raise ValueError(f"the run_id of a handle must be a UUID, not {run_id!r}") from None
    return str(run_id)


def _patiently(
    request: Callable[[], Any], waits: Iterator[float], ids: RunHandle, limit: float
) -> Steps[Any]:
    """The answer to a request, as soon as there is one."""
    while True:
        try:
            return (yield request)
        except FAILURES as error:
            if not is_transient(error):
                raise
            yield _next_pause(waits, ids, limit, error)


def _next_pause(
    waits: Iterator[float],
    ids: RunHandle,
    limit: float,
    cause: Exception | None = None,
) -> float:
    for pause in waits:
        return pause
    what = "the server cannot be reached" if cause else "it has not ended"
    error = RunDeadlineError(
        f"{what} after {limit:g} s of waiting for run {ids['run_id']} on thread"
        f" {ids['thread_id']}, which goes on: await it again with the same handle",
        limit="timeout",
        seconds=limit,
        **ids,
    )
    raise error from cause


def _error_of(states: list[ThreadState]) -> str | None:
    tasks = states[0]["tasks"] if states else ()
    return next((str(task["error"]) for task in tasks if task.get("error")), None)


def _last_words(thread: Mapping[str, Any]) -> str | None:
    """The thread's error: of a run that failed before it stored anything."""
    error = thread.get("error") if thread.get("status") == "error" else None
    return None if error is None else str(error)


def _result(ids: RunHandle, status: str, states: list[ThreadState], error: str | None) -> RunResult:
    if not states:
        return RunResult(**ids, status=status, error=error)
    state = states[0]
    asked = [question for task in state["tasks"] for question in task.get("interrupts") or ()]
    return RunResult(
        **ids,
        status=status,
        values=cast("Any", state["values"]),
        interrupts=tuple(asked) if status == "success" else (),
        error=error,
    )
