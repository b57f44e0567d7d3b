"""What the SDK room leans on in private: each test names what broke when upstream changes it."""

import inspect

import httpcore
import httpx
import orjson
import pytest
from langgraph_sdk._shared.utilities import _orjson_default
from langgraph_sdk.client import HttpClient, SyncHttpClient
from pydantic import BaseModel
from tenacity import RetryCallState, Retrying, stop_never, wait_fixed


class Model(BaseModel):
    text: str


def test_the_sdk_encodes_with_orjson_default() -> None:
    """`create_run_once` compares arguments as the SDK would send them."""
    assert b'{"text":"hi"}' == orjson.dumps(Model(text="hi"), _orjson_default)


@pytest.mark.parametrize("client", [httpx.Client(), httpx.AsyncClient(proxy="http://proxy:1")])
def test_httpx_keeps_its_transports_where_the_guard_goes(client: httpx.Client) -> None:
    """`circuit.guarded` copies a client and changes these two."""
    transports = [client._transport, *client._mounts.values()]
    kinds = (httpx.BaseTransport, httpx.AsyncBaseTransport)
    assert all(isinstance(transport, kinds) for transport in transports)


@pytest.mark.parametrize("http", [HttpClient, SyncHttpClient])
def test_http_client_has_the_verbs_that_are_repeated(http: type) -> None:
    """`retrying` overrides them: a new one must be decided about."""
    verbs = {name for name, _ in inspect.getmembers(http, inspect.isfunction) if name[0] != "_"}
    assert {"get", "post", "put", "patch", "delete", "request_reconnect", "stream"} == verbs
    for verb in ("get", "post", "put", "patch", "delete"):
        path, *others = list(inspect.signature(getattr(http, verb)).parameters.values())[1:]
        assert "path" == path.name
        assert {inspect.Parameter.KEYWORD_ONLY} == {other.kind for other in others}


def test_transport_retries_connections_only() -> None:
    """So a refused connection was tried six times, and nothing that was sent twice."""
    source = inspect.getsource(httpcore._async.connection.AsyncHTTPConnection._connect)
    assert "except (ConnectError, ConnectTimeout)" in source


def test_tenacity_tells_the_pause_before_it_asks_whether_to_stop() -> None:
    """`retrying` does not wait for a Retry-After of an hour."""
    seen: list[float] = []

    def stop(state: RetryCallState) -> bool:
        seen.append(state.upcoming_sleep)
        return True

    with pytest.raises(ValueError, match="once"):
        Retrying(stop=stop_never | stop, wait=wait_fixed(7.0), reraise=True)(_fail)
    assert [7.0] == seen


def _fail() -> None:
    raise ValueError("once")
