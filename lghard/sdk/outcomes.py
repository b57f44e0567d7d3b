"""What a failed request says about itself, and about the server: judged on httpx and SDK errors."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import httpx
import orjson

from lghard.errors import LghardError

UNAVAILABLE = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
"""The answers of a server, or of a gateway before it, that goes away by itself. 500 does not."""

NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""The errors of a request of which not one byte has left this machine."""

FAILURES = (httpx.HTTPError, orjson.JSONDecodeError)
"""What a request ends with; the latter, when somebody else than the server has answered."""

_NOT_OF_THE_NETWORK = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)


class CircuitOpenError(LghardError, httpx.ConnectError):
    """The circuit breaker has kept a request from a server that did not answer the last ones.

    It was not sent. It is a `ConnectError`, too, as one refused by the server itself would be.

    Attributes:
        retry_in: Seconds until the next request may find out whether the server is back.
    """

    __module__ = "lghard"

    def __init__(self, message: str, *, retry_in: float, request: httpx.Request) -> None:
        super().__init__(message, request=request)
        self.retry_in = retry_in


def status_of(error: BaseException) -> int | None:
    """The status of the server's answer, if `error` is one."""
    return error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None


def was_never_sent(error: BaseException) -> bool:
    """Whether the request cannot have had an effect: the server never saw anything of it."""
    return isinstance(error, NEVER_SENT)


def was_refused(error: BaseException) -> bool:
    """Whether the server has said no, and so has done nothing.

    408 is no such answer: a gateway may give it when it has passed the request on.
    """
    status = status_of(error)
    return (
        status is not None
        and HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
        and status != HTTPStatus.REQUEST_TIMEOUT
    )


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, httpx.TransportError):
        return not isinstance(error, _NOT_OF_THE_NETWORK)
    if isinstance(error, orjson.JSONDecodeError):
        return True  # it is the page of a gateway
    return status_of(error) in UNAVAILABLE


def is_worth_a_retry(error: BaseException) -> bool:
    """Whether to repeat it at once: not after a refused connection, which the SDK has retried.

    Its transport tries five times to connect, over 7.5 s. And an open circuit is to be heeded.
    """
    return is_transient(error) and not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)


def is_unavailability(error: BaseException) -> bool:
    """Whether a circuit breaker counts it: the server cannot be reached, or does not answer.

    A connection that broke in the middle says nothing yet: it may be the only one. A full pool is
    our own.
    """
    if isinstance(error, httpx.PoolTimeout):
        return False
    return isinstance(error, httpx.ConnectError | httpx.TimeoutException) or (
        status_of(error) in UNAVAILABLE
    )


def retry_after(error: BaseException | None) -> float | None:
    """The seconds that the server asks to wait, if it does (RFC 9110, section 10.2.3)."""
    if not isinstance(error, httpx.HTTPStatusError):
        return None
    headers = error.response.headers
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    if (until := _date(value)) is None:
        return None
    # The server's clock may be another than ours, so its own idea of now comes first.
    now = _date(headers.get("date", "")) or datetime.now(UTC)
    return max(0.0, (until - now).total_seconds())


def _date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
