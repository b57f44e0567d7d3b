"""What a client sends, caught before it leaves."""

import json
from dataclasses import dataclass, field
from typing import Any

import httpx

THREAD, RUN = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"


@dataclass
class Wire:
    """Answers every request as a server would whose runs all succeed, and remembers it."""

    requests: list[httpx.Request] = field(default_factory=list)

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        path = request.url.path
        headers = {"content-location": f"/threads/{THREAD}/runs/{RUN}"}
        if path.endswith("/stream"):
            media = {"content-type": "text/event-stream"}
            return httpx.Response(200, headers=headers | media, content=b"event: end\ndata: {}\n\n")
        if path.endswith(f"/runs/{RUN}"):
            return httpx.Response(200, json={"run_id": RUN, "status": "success"})
        return httpx.Response(200, headers=headers, json={})

    @property
    def sent(self) -> list[tuple[str, str]]:
        """The method and the path of each request."""
        return [(request.method, request.url.path) for request in self.requests]

    def body(self, end: str = "") -> dict[str, Any]:
        """The body of the one request whose path ends so."""
        (body,) = (
            request.content
            for request in self.requests
            if request.method == "POST" and request.url.path.endswith(end)
        )
        return json.loads(body)
