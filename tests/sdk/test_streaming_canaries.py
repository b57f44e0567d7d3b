"""What reading runs leans on, without its being promised: each test names what broke."""

import asyncio
import inspect
import json

import httpx
import pytest
from langgraph_sdk.client import HttpClient, LangGraphClient, SyncHttpClient, SyncLangGraphClient

from tests.sdk.heartbeats import heartbeats
from tests.sdk.wire import THREAD

HTTPS = pytest.mark.parametrize("http", [HttpClient, SyncHttpClient])


@HTTPS
def test_requests_of_a_run_have_the_arguments_that_are_passed_on(http: type) -> None:
    """`reading` calls `stream` and `request_reconnect` by these names, and turns one off by `0`."""
    stream = {"path", "method", "json", "params", "headers", "on_response"}
    assert stream < {*inspect.signature(http.stream).parameters}
    assert stream | {"reconnect_limit"} < {*inspect.signature(http.request_reconnect).parameters}


@HTTPS
def test_response_is_shown_before_its_location_is_read(http: type) -> None:
    """`RunCall.notice` hides the `Location` there, or the SDK reconnects by itself."""
    for method in (http.stream, http.request_reconnect):
        source = inspect.getsource(method)
        assert 0 < source.index("on_response(r") < source.index('headers.get("location")')


@pytest.mark.parametrize("client", [LangGraphClient, SyncLangGraphClient])
def test_session_has_what_its_limits_look_at(client: type) -> None:
    """`thread_streams` looks at `_run_done` and `interrupted`, and shadows these two commands."""
    http = httpx.AsyncClient() if client is LangGraphClient else httpx.Client()
    stream = client(http).threads.stream(assistant_id="agent")
    assert (None, False) == (stream._run_done, stream.interrupted)
    assert {"start", "respond"} <= {name for name, _ in inspect.getmembers(stream.run)}


async def test_timeout_of_a_body_is_looked_up_when_its_headers_are_there() -> None:
    """`sync_reading` ends the wait for headers with the limits, and restores the client's own."""

    def read(url: str) -> None:
        with httpx.Client(base_url=url, timeout=5) as client:
            body = json.dumps({}).encode()
            with client.stream("POST", f"/threads/{THREAD}/runs/wait", content=body) as response:
                response.request.extensions["timeout"]["read"] = 0.001
                assert response.extensions["network_stream"].get_extra_info("socket").fileno() > 0
                with pytest.raises(httpx.ReadTimeout):
                    response.read()

    async with heartbeats() as server:
        await asyncio.to_thread(read, server.url)
