"""One call that starts or joins a run: what was agreed on, and what is known of the run.

Nothing here talks to a server. What must be asked of it is yielded, and `performing` asks, in
either kind of client.
"""

import logging
import random
import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from langgraph_sdk.errors import AuthenticationError, NotFoundError, PermissionDeniedError
from langgraph_sdk.schema import StreamPart

from lghard.errors import RunCancelledError, RunDeadlineError, RunFailedError
from lghard.sdk.deadlines import Watch
from lghard.sdk.outcomes import FAILURES, was_never_sent, was_refused
from lghard.sdk.typed_errors import failed

logger = logging.getLogger("lghard.sdk")

_RUN = re.compile(r"(?:/threads/(?P<thread_id>[^/]+))?/runs/(?P<run_id>[^/]+)$")
_CANCELLATIONS = {"UserInterrupt", "UserRollback"}  # what servers before 0.16 call the graph's end
_UNFINISHED = {"pending", "running"}
_PAUSES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""A stream may end a moment before its run's row says so."""
_TOO_MANY, _SERVER_ERROR = 429, 500
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
BEGINNING = "-1"
"""The event before the first one: a stream joined with it is told from its beginning."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request whose answer is needed."""

    method: str
    path: str
    json: Any = None
    params: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Sleep:
    """A pause."""

    seconds: float


Steps = Generator[Ask | Sleep, Any, None]


@dataclass(slots=True, kw_only=True)
class RunCall:
    """A call of `stream`, `wait`, `join` or `join_stream`.

    Attributes:
        thread_id: The thread; None for a stateless run.
        run_id: The run, as soon as it is known.
        metadata: What the thread is created with before the run, if its id says so.
        headers: The caller's own, for every request that belongs to the call.
        cancelled_by_us: Whether we do that, when the reader is gone.
        cancelled_when_late: Whether the run ends with the call's limits.
        resumable: Whether a lost connection is taken up again.
        raises: Whether an error of the graph is raised.
        last_event_id: The last event that arrived.
        error: What the server told of a failure.
        attempts: How often the call was taken up since the last event.
        settles: Whether it matters how the run ended.
        from_beginning: Whether a stream that is taken up before its first event is told from the
            beginning of its run.
        is_sent: Whether the request may have left.
        is_fresh: Whether an event has arrived on this connection.
    """

    thread_id: str | None
    base_url: httpx.URL
    run_id: str | None = None
    metadata: dict[str, object] | None = None
    headers: Mapping[str, str] | None = None
    cancelled_by_us: bool = False
    cancelled_when_late: bool = False
    resumable: bool = False
    raises: bool = True
    stream_mode: Any = None
    last_event_id: str | None = None
    error: Mapping[str, object] | None = None
    attempts: int = 0
    settles: bool = True
    from_beginning: bool = True
    is_fresh: bool = False
    is_sent: bool = False

    def notice(
        self, on_response: Callable[[httpx.Response], None] | None
    ) -> Callable[[httpx.Response], None]:
        """Return what looks at a response before the SDK does.

        It learns which run this is, and hides the `Location` to which the SDK would reconnect by
        itself. By then a run that is cancelled with its connection is cancelled, and what the SDK
        finds there looks like its end.
        """

        def look(response: httpx.Response) -> None:
            response.headers.pop("location", None)
            match = _RUN.search(response.headers.get("content-location", ""))
            if match and self.run_id is None:
                self.run_id = match["run_id"]
            if on_response is not None:
                on_response(response)

        return look

    @property
    def path(self) -> str | None:
        """Where the run is, if it can be asked for: no stateless run can."""
        if self.thread_id is None or self.run_id is None:
            return None
        return f"/threads/{self.thread_id}/runs/{self.run_id}"

    @property
    def unnamed(self) -> str | None:
        """Why a run that is unknown cannot be cancelled, if it is not cancelled all the same."""
        if not self.cancelled_by_us or not self.is_sent:
            return None
        return "the server has not told which run it is"

    def see_error(self, part: StreamPart) -> None:
        """Take note of an `error` event."""
        if isinstance(part.data, Mapping):
            self.error = part.data

    def see_answer(self, answer: object) -> None:
        """Take note of what `wait` or `join` was answered."""
        error = answer.get("__error__") if isinstance(answer, Mapping) else None
        if isinstance(error, Mapping):
            self.error = error

    def pause_after(self, error: httpx.HTTPError) -> float:
        """Return the seconds until the call is taken up on another connection.

        Raises:
            httpx.HTTPError: The error, if the call cannot be taken up.
        """
        if not self._is_passing(error):
            raise error
        self.attempts = 1 if self.is_fresh else self.attempts + 1
        self.is_fresh = False
        self.error = None
        if self.attempts == 1:
            return 0.0
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self.attempts, 10))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret

    def rejoining(self) -> tuple[str, str, dict[str, Any]]:
        """Return the request that takes a stream up after the last event that arrived."""
        own = {k: v for k, v in (self.headers or {}).items() if k.lower() != "last-event-id"}
        mode = {} if self.stream_mode is None else {"stream_mode": self.stream_mode}
        request = {
            "params": {"cancel_on_disconnect": False, **mode},
            "headers": {**own, "Last-Event-ID": self.last_event_id or BEGINNING},
            "on_response": self.notice(None),
        }
        return f"{self.path}/stream", "GET", request

    def joining(self) -> tuple[str, str, dict[str, Any]]:
        """Return the request that waits for a run that goes on."""
        request = {"headers": self.headers, "on_response": self.notice(None)}
        return f"{self.path}/join", "GET", request

    def must_cancel(self, error: BaseException) -> bool:
        """Whether the run is to be cancelled now that this has ended the call."""
        if isinstance(error, RunDeadlineError):
            return self.cancelled_when_late
        if isinstance(error, RunCancelledError | RunFailedError):
            return False
        there_is_none = self.run_id is None and (was_refused(error) or was_never_sent(error))
        return self.cancelled_by_us and not there_is_none

    def annotate(self, error: BaseException, problem: str | None) -> None:
        """Say so if the run could not be cancelled."""
        if problem is not None:
            error.add_note(
                f"lghard: {self} may be going on, since it could not be cancelled: {problem}"
            )
            logger.warning("%s may be going on, since it could not be cancelled: %s", self, problem)

    def _is_passing(self, error: httpx.HTTPError) -> bool:
        has_place = self.from_beginning or self.last_event_id is not None
        if not self.resumable or self.path is None or not has_place:
            return False
        if isinstance(error, httpx.HTTPStatusError):
            status = error.response.status_code
            return (self.attempts > 0 or self.is_fresh) and (
                status == _TOO_MANY or status >= _SERVER_ERROR
            )
        return isinstance(error, httpx.TransportError)

    def prepare(self) -> Steps:
        """Create the thread, if its id says with what."""
        if self.metadata is not None:
            thread = {"thread_id": self.thread_id, "metadata": self.metadata}
            yield Ask("POST", "/threads", json={**thread, "if_exists": "do_nothing"})

    def settle(self) -> Steps:
        """Find out how the run ended, after a stream or an answer that came to its end.

        Raises:
            RunCancelledError: It was stopped.
            RunFailedError: Its graph raised an error.
            httpx.RemoteProtocolError: It has not ended at all.
        """
        name = self.error.get("error") if self.error else None
        if not self.settles:
            return
        if self.error and name not in _CANCELLATIONS:
            if self.raises:
                raise failed(self.error, **self._ids(), url=self.base_url)
            return
        run = yield from self._ended()
        status = run["status"] if run else None
        if name in _CANCELLATIONS or status in {"interrupted", "timeout", None}:
            reason = yield from self._reason(run, str(name))
            raise RunCancelledError(self._epitaph(reason), reason=reason, **self._ids())
        if status in _UNFINISHED:
            raise httpx.RemoteProtocolError(
                f"the server closed the stream of {self}, which runs on"
            )
        if status == "error" and self.raises:
            # Its words were in an event that got lost, but they are kept.
            words = (yield from self._words()) or {"error": "Error", "message": "the graph failed"}
            raise failed(words, **self._ids(), url=self.base_url)

    def deadline_error(self, watch: Watch) -> RunDeadlineError:
        """Return the error for the limit that has passed."""
        what = {
            "deadline": f"is not done after {watch.seconds:g} s",
            "first_event_timeout": f"has shown no event within {watch.seconds:g} s",
            "idle_timeout": f"has been silent for {watch.seconds:g} s",
        }[str(watch.expired)]
        return RunDeadlineError(
            f"{self} {what} ({watch.expired} of the RunPolicy)",
            limit=str(watch.expired),
            seconds=watch.seconds,
            **self._ids(),
        )

    def __str__(self) -> str:
        run = f"run {self.run_id}" if self.run_id else "the run"
        return f"{run} on thread {self.thread_id}" if self.thread_id else f"{run} (stateless)"

    def _ids(self) -> dict[str, str | None]:
        return {"thread_id": self.thread_id, "run_id": self.run_id}

    def _ended(self) -> Generator[Ask | Sleep, Any, dict[str, Any] | None]:
        """Ask for the run until it has ended; None if it is gone."""
        run: dict[str, Any] | None = {"status": "success"}  # where nobody can tell
        pauses = _PAUSES[:3] if self.resumable else _PAUSES  # looking again is waiting, too
        for pause in pauses if self.path else ():
            yield Sleep(pause)
            try:
                run = yield Ask("GET", f"{self.path}")
            except NotFoundError:
                return None
            except (AuthenticationError, PermissionDeniedError) as error:
                logger.warning("how %s ended may not be read, so it may be a part: %s", self, error)
                break
            if run and run["status"] not in _UNFINISHED:
                break
        return run

    def _words(self) -> Generator[Ask | Sleep, Any, Mapping[str, object] | None]:
        try:
            answer = yield Ask("GET", f"{self.path}/join")
        except FAILURES:
            return None  # that the run has failed is known without them
        return answer.get("__error__") if isinstance(answer, dict) else None

    def _reason(self, run: Mapping[str, Any] | None, name: str) -> Generator[Ask | Sleep, Any, str]:
        if run is None or name == "UserRollback":
            return "rolled back"
        if run["status"] == "timeout":
            return "timed out"
        if run.get("cancel_reason") or self.path is None:
            return str(run.get("cancel_reason") or "cancelled")
        try:
            newer = yield Ask("GET", f"/threads/{self.thread_id}/runs", params={"limit": 10})
        except FAILURES:
            return "cancelled"  # that much is known
        return "superseded" if any(_supersedes(other, run) for other in newer) else "cancelled"

    def _epitaph(self, reason: str) -> str:
        how = {
            "superseded": "was superseded by a newer run on its thread (multitask_strategy)",
            "rolled back": "was rolled back or deleted",
            "timed out": "ran into the server's own time limit (BG_JOB_TIMEOUT_SECS)",
            "cancelled": "was cancelled",
        }.get(reason, f"was cancelled ({reason})")
        return f"{self} {how}; what arrived of it is a part"


def _supersedes(other: Mapping[str, Any], run: Mapping[str, Any]) -> bool:
    """Whether `other` was there when `run` ended, and told to interrupt it."""
    times: list[Any] = [run.get("created_at"), other.get("created_at"), run.get("updated_at")]
    return (
        other["run_id"] != run["run_id"]
        and other.get("multitask_strategy") == "interrupt"
        and None not in times
        and times == sorted(times)
    )
