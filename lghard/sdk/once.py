"""Create a run at most once for a key.

A server knows no idempotency key: a request whose response is lost cannot be repeated without
risking a second run. So a call first *claims* its key, by creating a record that only one can
create: a thread whose id is derived from the key (`if_exists="raise"`), and which carries a token
of its owner. Who owns the record may send the request that creates the run, once. The run carries
the token, too, so that whoever cannot tell what came of the request can look.

- A claim may be repeated: the second one meets a record with its own token.
- The creation of the run may not, unless not one byte of it was sent. After anything else that is
  not an answer, all there is left to do is to look.
- A claim is never taken away, because its owner's request may still be on its way. Only the owner
  can give it up, when the server has refused the run; who comes then claims the next *generation*
  of the key. What is written is never taken back or used again, so that it does not matter when a
  delayed or repeated request arrives.
"""

import inspect
from collections.abc import Coroutine, Iterator, Mapping
from functools import partial
from hashlib import sha256
from http import HTTPStatus
from itertools import chain, count
from typing import Any, cast, overload
from uuid import UUID, uuid4, uuid5

import orjson
from langgraph_sdk._shared.utilities import _orjson_default
from langgraph_sdk.client import LangGraphClient, SyncLangGraphClient
from langgraph_sdk.errors import NotFoundError
from langgraph_sdk.schema import Run

from lghard.errors import RunKeyReusedError, RunOutcomeUnknownError
from lghard.sdk.ids import server_id, thread_metadata
from lghard.sdk.outcomes import FAILURES, is_transient, status_of, was_never_sent, was_refused
from lghard.sdk.steps import Steps, pauses, walk, walk_sync

NAMESPACE = UUID("6f0d5b9e-6a2c-5f0e-9a55-1f1f6f9d8b3a")
"""What the ids of claims are derived in; all replicas of all versions must use the same one."""

# What claims and runs carry in their metadata.
CLAIM = "lghard_run_key"
"""On a claim: the id of the key's first claim, which is all that is stored of the key."""
TOKEN = "lghard_run_token"  # noqa: S105
"""On a claim and on the run: the owner's token."""
_ARGUMENTS = "lghard_run_arguments"
_THREAD = "lghard_run_thread"
_REFUSED = "lghard_run_refused"

# These do not change what the run does, and may differ between two calls for the same thing.
_ASIDE = frozenset(
    {"headers", "params", "metadata", "on_run_created", "if_not_exists", "on_completion"}
)

_PAGE = 100
_MOST_GENERATIONS = 100

Client = LangGraphClient | SyncLangGraphClient


@overload
def create_run_once(
    client: LangGraphClient,
    thread_id: str | None,
    assistant_id: str,
    *,
    key: str,
    ttl: int | None = None,
    timeout: float = 10.0,
    **run_arguments: Any,
) -> Coroutine[Any, Any, Run]: ...


@overload
def create_run_once(
    client: SyncLangGraphClient,
    thread_id: str | None,
    assistant_id: str,
    *,
    key: str,
    ttl: int | None = None,
    timeout: float = 10.0,
    **run_arguments: Any,
) -> Run: ...


def create_run_once(
    client: Client,
    thread_id: str | None,
    assistant_id: str,
    *,
    key: str,
    ttl: int | None = None,
    timeout: float = 10.0,
    **run_arguments: Any,
) -> Coroutine[Any, Any, Run] | Run:
    """Create a background run, at most once for a key; await it, if `client` is async.

    It protects against the second run of a request that was repeated because its response was
    lost: by this call, by the queue that delivers a message again, or by another replica that got
    the same message. All of them get the same run. It costs one request more than `runs.create`,
    and two where it creates the run's thread (`thread_id=None`, or `if_not_exists="create"`).

    Args:
        client: A client of `langgraph_sdk`, hardened or not.
        thread_id: The thread to run on; None: one of its own, which stays.
        assistant_id: The assistant, or the name of a graph.
        key: What the run is for, such as the id of the message that asks for it. It names one run
            of the whole deployment, whatever the thread. Only a hash of it is sent.
        ttl: Minutes after which the server may forget the key (and the thread, if it is the run's
            own); None: never. They count from the first call with this key, and need a server that
            deletes expired threads. See `forget_run_key`.
        timeout: Seconds to try to reach the server, and then to look for a run whose creation is
            uncertain. A request under way is not cut short.
        **run_arguments: All that `runs.create` takes, such as `input`.

    Returns:
        The run, as `runs.create` or `runs.get` returns it.

    Raises:
        RunOutcomeUnknownError: The run may have been created, or may yet be, and is not found.
        RunKeyReusedError: The key belongs to a run with other arguments.
        httpx.HTTPStatusError: The server refused the run, and the same key may be used again. As
            with `runs.create`, it is one of the classes of `langgraph_sdk.errors`.
        httpx.TransportError: The server cannot be reached. The run was not created.
        TypeError, ValueError: An argument is wrong. Nothing was sent.

    Example:
        ```python
        run = await create_run_once(client, thread_id, "agent", key=message.id, input=message.body)
        ```
    """
    creation = _Creation(
        client,
        thread_id,
        assistant_id,
        key=key,
        ttl=ttl,
        timeout=timeout,
        arguments=run_arguments,
    )
    if isinstance(client, SyncLangGraphClient):
        return walk_sync(creation.steps())
    return walk(creation.steps())


@overload
def forget_run_key(client: LangGraphClient, key: str) -> Coroutine[Any, Any, None]: ...


@overload
def forget_run_key(client: SyncLangGraphClient, key: str) -> None: ...


def forget_run_key(client: Client, key: str) -> Coroutine[Any, Any, None] | None:
    """Delete what the server stores about a key of `create_run_once`, so that it may be used anew.

    Its run stays. Call it when nothing that was sent with this key can still be on its way, and
    nobody will ask for the same run again: long after, to clean up; or when you have looked into a
    `RunOutcomeUnknownError` and decided to have the run created by another call.

    Args:
        client: A client of `langgraph_sdk`, hardened or not.
        key: The key.
    """
    steps = _forget(client, _first_claim(key))
    return walk_sync(steps) if isinstance(client, SyncLangGraphClient) else walk(steps)


class _Creation:
    """The steps of one call of `create_run_once`, and what it knows."""

    def __init__(
        self,
        client: Client,
        thread_id: str | None,
        assistant_id: str,
        *,
        key: str,
        ttl: int | None,
        timeout: float,
        arguments: Mapping[str, Any],
    ) -> None:
        inspect.signature(client.runs.create).bind(thread_id, assistant_id, **arguments)
        self._client = client
        self._first = _first_claim(key)
        self._has_own_thread = thread_id is None
        own_id = uuid5(UUID(self._first), "thread")
        self._thread_id = str(own_id) if thread_id is None else server_id(thread_id)
        self._thread_metadata = thread_metadata(thread_id)
        self._assistant_id = assistant_id
        self._arguments = _checked(thread_id, arguments)
        self._creates_thread = (
            self._has_own_thread
            or self._thread_metadata is not None
            or _if_not_exists(client, arguments) == "create"
        )
        self._ttl = ttl
        self._timeout = timeout
        self._token = uuid4().hex
        self._claim = {
            CLAIM: self._first,
            TOKEN: self._token,
            _ARGUMENTS: _fingerprint(self._thread_id, assistant_id, arguments),
            _THREAD: self._thread_id,
        }

    def steps(self) -> Steps[Run]:
        """The run: this call's, or that of whoever was first."""
        if self._creates_thread:
            yield from self._create_thread()
        for generation in range(_MOST_GENERATIONS):
            claim_id = _claim_of(self._first, generation)
            claim = yield from self._claim_or_read(claim_id)
            if claim.get(TOKEN) == self._token:
                return (yield from self._create(claim_id))
            if run := (yield from self._run_of_other(claim_id, claim)):
                return self._found(run)
        raise RunOutcomeUnknownError(
            f"The server has refused {_MOST_GENERATIONS} runs with this key, and none was created:"
            " use another key."
        )

    def _create_thread(self) -> Steps[None]:
        """The run's thread, before the run: else the run's metadata would become the thread's."""
        ttl = self._ttl if self._has_own_thread else None
        waits = pauses(self._timeout)
        while True:
            try:
                yield lambda: self._client.threads.create(
                    thread_id=self._thread_id,
                    if_exists="do_nothing",
                    metadata=self._thread_metadata,
                    ttl=ttl,
                )
            except FAILURES as error:
                yield from _wait_or_raise(error, waits, "lghard: no run was created.")
            else:
                return

    def _claim_or_read(self, claim_id: str) -> Steps[Mapping[str, Any]]:
        """What the record says that is in force: this call's claim, or another's.

        A claim may be sent again, since whoever reads it knows by the token whose it is.
        """
        waits = pauses(self._timeout)
        while True:
            try:
                claim = yield lambda: self._client.threads.create(
                    thread_id=claim_id, if_exists="raise", metadata=self._claim, ttl=self._ttl
                )
                return _metadata(claim)
            except FAILURES as error:
                claim = None if was_never_sent(error) else (yield from self._read(claim_id))
                if claim is not None:
                    return claim
                yield from _wait_or_raise(error, waits, _NOT_CLAIMED)

    def _read(self, claim_id: str) -> Steps[Mapping[str, Any] | None]:
        """What a claim says; None if it is not there, or the server does not say."""
        try:
            return _metadata((yield lambda: self._client.threads.get(claim_id)))
        except FAILURES:
            return None

    def _create(self, claim_id: str) -> Steps[Run]:
        """The run of this call, which owns the claim: sent once, and then looked for."""
        waits = pauses(self._timeout)
        arguments = {**self._arguments, "metadata": self._metadata()}
        while True:
            failure: Exception | None = None
            try:
                run = yield lambda: self._client.runs.create(
                    self._thread_id, self._assistant_id, **arguments
                )
                if isinstance(run, Mapping) and "run_id" in run:
                    return cast("Run", run)
            except Exception as error:  # whatever it is, the run may have been created
                failure = error
            if failure and was_never_sent(failure) and (pause := next(waits, None)) is not None:
                yield pause
                continue
            if failure and (was_never_sent(failure) or was_refused(failure)):
                yield from self._give_up(claim_id, failure)
                raise failure
            return self._found((yield from self._look_for_own(failure)))

    def _give_up(self, claim_id: str, error: Exception) -> Steps[None]:
        """Say in the record that its owner has created no run, and never will."""
        waits = pauses(self._timeout)
        while True:
            try:
                yield lambda: self._client.threads.update(claim_id, metadata={_REFUSED: True})
            except FAILURES as failure:
                if is_transient(failure) and (pause := next(waits, None)) is not None:
                    yield pause
                    continue
                error.add_note(_NOT_GIVEN_UP)
            else:
                error.add_note("lghard: no run was created, and the key may be used again.")
            return

    def _look_for_own(self, failure: Exception | None) -> Steps[Run]:
        """The run of a request whose answer was none."""
        for pause in chain([0.0], pauses(self._timeout)):
            yield pause
            if run := (yield from self._look(self._token)):
                return run
        reason = f"the server's answer to the request for it was lost ({_words(failure)})"
        raise self._unknown(reason, "The request may still be on its way.") from failure

    def _run_of_other(self, claim_id: str, claim: Mapping[str, Any]) -> Steps[Run | None]:
        """The run of the call that owns the claim; None if it has given the claim up."""
        for pause in chain([0.0], pauses(self._timeout)):
            yield pause
            if claim.get(_REFUSED):
                return None
            self._compare(claim)
            if run := (yield from self._look(str(claim.get(TOKEN)))):
                return run
            claim = (yield from self._read(claim_id)) or claim
        raise self._unknown(
            "another call has claimed the key",
            "It may be at work, have lost the server's answer, or have died; or its run was"
            " deleted, or rolled back by a later one.",
        )

    def _compare(self, claim: Mapping[str, Any]) -> None:
        if TOKEN not in claim:
            raise RunOutcomeUnknownError(
                "Whether there is a run with this key is unknown: the thread that stands for the"
                f" key, {self._first}, says nothing of it. Either somebody else has created it, or"
                " the server does not keep the metadata of threads. This call has created no run."
            )
        if claim.get(_ARGUMENTS) != self._claim[_ARGUMENTS]:
            raise RunKeyReusedError(
                "This key belongs to a run with other arguments: of another assistant or graph,"
                f" with another input or setting, or not on thread {claim.get(_THREAD)}. No run was"
                " created. Use one key for one run: the id of the message that asks for it."
            )

    def _look(self, token: str) -> Steps[Run | None]:
        """The run that carries `token`; None if it is not there, or the server does not say."""
        try:
            run_id = yield from self._run_id(token)
            if run_id is None:
                return None
            run: Run = yield lambda: self._client.runs.get(self._thread_id, run_id)
        except FAILURES as error:
            if is_transient(error):
                return None
            reason = f"the runs of the thread cannot be read ({_words(error)})"
            raise self._unknown(reason, "Was the thread deleted?") from error
        return run

    def _run_id(self, token: str) -> Steps[str | None]:
        """The id of the run that carries `token`, from the thread's runs, the newest first."""
        for offset in count(0, _PAGE):
            runs: list[Run] = yield partial(
                self._client.runs.list,
                self._thread_id,
                limit=_PAGE,
                offset=offset,
                select=["run_id", "metadata"],
            )
            for run in runs:
                if _metadata(run).get(TOKEN) == token:
                    return run["run_id"]
            if len(runs) < _PAGE:
                break
        return None

    def _found(self, run: Run) -> Run:
        if on_run_created := self._arguments.get("on_run_created"):
            on_run_created({"run_id": run["run_id"], "thread_id": run["thread_id"]})
        return run

    def _metadata(self) -> dict[str, Any]:
        return {**(self._arguments.get("metadata") or {}), TOKEN: self._token}

    def _unknown(self, reason: str, why: str) -> RunOutcomeUnknownError:
        return RunOutcomeUnknownError(
            f"Whether the run was created is unknown: {reason}, and no run of it was found on"
            f" thread {self._thread_id} within {self._timeout:g} s. {why} Nothing was sent twice."
            " Call create_run_once again with the same key to look again. Once you know that"
            " nothing sent with the key can still arrive, forget_run_key(client, key) frees it."
        )


_NOT_CLAIMED = (
    "lghard: no run was created. The key may be used again; if that raises RunOutcomeUnknownError,"
    " this call's claim has arrived late: forget_run_key(client, key) removes it."
)
_NOT_GIVEN_UP = (
    "lghard: no run was created, but the server could not be told that the key is free again:"
    " forget_run_key(client, key) frees it."
)


def _forget(client: Client, first: str) -> Steps[None]:
    """Delete all claims of a key, the newest first: what is left is never a key half known."""
    claims: list[str] = []
    for generation in range(_MOST_GENERATIONS):
        claim_id = _claim_of(first, generation)
        if not (yield from _exists(client, claim_id)):
            break
        claims.append(claim_id)
    for claim_id in reversed(claims):
        try:
            yield partial(client.threads.delete, claim_id)
        except NotFoundError:
            continue  # somebody else forgets it, too


def _exists(client: Client, claim_id: str) -> Steps[bool]:
    try:
        yield lambda: client.threads.get(claim_id)
    except NotFoundError:
        return False
    return True


def _first_claim(key: str) -> str:
    if not isinstance(key, str) or not key:
        raise ValueError(f"key must be a string that is not empty, not {key!r}")
    return str(uuid5(NAMESPACE, key))


def _claim_of(first: str, generation: int) -> str:
    return str(uuid5(UUID(first), str(generation))) if generation else first


def _checked(thread_id: str | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the request that creates the run, on a thread that is there by then."""
    checked = {**arguments, "if_not_exists": "reject"}
    if thread_id is None and (checked.pop("on_completion", None) or "keep") != "keep":
        raise ValueError(
            "create_run_once keeps the thread of its run, which tells that there was one:"
            " leave on_completion out, and delete the thread later, or give a ttl"
        )
    return checked


def _if_not_exists(client: Client, arguments: Mapping[str, Any]) -> str:
    own = getattr(getattr(client, "policy", None), "if_not_exists", None)
    return arguments.get("if_not_exists", own) or "reject"


def _fingerprint(thread_id: str, assistant_id: str, arguments: Mapping[str, Any]) -> str:
    """A hash of what the run will do; it fails where the SDK would fail to send it."""
    telling = {
        name: value for name, value in arguments.items() if value is not None and name not in _ASIDE
    }
    encoded = orjson.dumps(
        [str(UUID(thread_id)), assistant_id, telling],
        _orjson_default,
        orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS | orjson.OPT_SORT_KEYS,
    )
    return sha256(encoded).hexdigest()


def _metadata(record: Any) -> Mapping[str, Any]:
    return record.get("metadata") or {} if isinstance(record, Mapping) else {}


def _wait_or_raise(error: Exception, waits: Iterator[float], note: str) -> Steps[None]:
    """Wait before the next attempt, or raise what the last one ended with."""
    is_there = status_of(error) == HTTPStatus.CONFLICT
    pause = next(waits, None) if is_there or is_transient(error) else None
    if pause is not None:
        yield pause
    elif is_there:
        raise RunOutcomeUnknownError(
            "Whether there is a run with this key is unknown: another call has claimed the key, and"
            " what it stored cannot be read. This call has created none. If the key may be another"
            " user's, make the user's name a part of it."
        ) from error
    else:
        error.add_note(note)
        raise error


def _words(error: Exception | None) -> str:
    if error is None:
        return "it was no run"
    return f"{type(error).__name__}: {error}".rstrip(": ")
