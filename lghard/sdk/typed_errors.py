"""What went wrong, as the error classes that the SDK's other calls raise."""

import json
import re
from collections.abc import Mapping

import httpx
from langgraph_sdk.errors import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    UnprocessableEntityError,
)

from lghard.errors import RunFailedError

_CLASSES: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}
_FIRST_SERVER_ERROR = 500
_HTTP_EXCEPTION = re.compile(r"(\d{3}): (.*)", re.DOTALL)


def typed(error: httpx.HTTPStatusError) -> APIStatusError:
    """Return a plain HTTP error of `wait`, `join` or `cancel` as the SDK's own for that status."""
    if isinstance(error, APIStatusError):
        return error
    body = _body(error.response)
    fallback = f"{error.response.status_code} {error.response.reason_phrase or 'HTTP Error'}"
    better = _class_of(error.response)(
        _message(body) or fallback, response=error.response, body=body
    )
    for note in getattr(error, "__notes__", ()):
        better.add_note(note)
    return better


def failed(
    error: Mapping[str, object], *, thread_id: str | None, run_id: str | None, url: httpx.URL
) -> Exception:
    """Return what a server tells of a run in an `error` event or under `__error__`.

    It is the graph's own failure, or an answer like "404: Run not found" that comes with status
    200 since the response had already begun.
    """
    name, message = str(error.get("error")), str(error.get("message"))
    match = _HTTP_EXCEPTION.fullmatch(message)
    if name == "HTTPException" and match:
        request = httpx.Request("GET", url)
        response = httpx.Response(int(match[1]), request=request, json={"detail": match[2]})
        return _class_of(response)(match[2], response=response, body={"detail": match[2]})
    return RunFailedError(name, message, thread_id=thread_id, run_id=run_id)


def _class_of(response: httpx.Response) -> type[APIStatusError]:
    if response.status_code >= _FIRST_SERVER_ERROR:
        return InternalServerError
    return _CLASSES.get(response.status_code, APIStatusError)


def _body(response: httpx.Response) -> object:
    try:
        return json.loads(response.content) if response.content else None
    except (httpx.ResponseNotRead, ValueError):
        return None


def _message(body: object) -> str | None:
    if not isinstance(body, dict):
        return None
    words = (body.get(key) for key in ("message", "detail", "error"))
    return next((word for word in words if isinstance(word, str) and word), None)
