"""examples/fastapi_app.py over HTTP: who is asking, and what of a body is believed."""

import time

import httpx
import jwt
import pytest
from psycopg import connect

from examples.fastapi_app import JWT_SECRET, app, token


@pytest.fixture
async def client(lghard_database, monkeypatch):
    monkeypatch.setenv("LGHARD_DATABASE_URI", lghard_database)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://app") as client,
    ):
        yield client


def signed(secret=JWT_SECRET, algorithm="HS256", **claims):
    valid = {"tenant": "acme", "sub": "ada", "roles": ["member"], "aud": "chat"}
    claims = {**valid, "exp": time.time() + 600, **claims}
    claims = {name: value for name, value in claims.items() if value is not None}
    return {"authorization": f"Bearer {jwt.encode(claims, secret, algorithm)}"}


HELLO = {"session": "1", "text": "Hello"}


async def test_ids_in_the_body_are_ignored(client, lghard_database):
    """Whatever it carries, under whatever name: the only thread there is belongs to the caller."""
    config = {"thread_id": "acme:ada:1", "configurable": {"thread_id": "acme:ada:1"}}
    body = {**HELLO, "tenant": "acme", "user": "ada", "config": config, **config}
    body |= {"me": {"tenant": "acme", "user": "ada"}, "principal": "acme"}
    response = await client.post(
        "/questions", json=body, headers=token("beta", "bob"), params=config["configurable"]
    )
    assert "beta:bob:1" == response.json()["thread_id"]
    with connect(lghard_database) as conn:
        found = conn.execute("SELECT DISTINCT thread_id FROM checkpoints").fetchall()
    assert [("beta:bob:1",)] == found


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer x"},
        {"x-api-key": "x"},
        {"x-api-key": "x", **signed()},
        signed(secret="another secret, which is long enough as well"),
        signed(secret=None, algorithm="none"),
        signed(exp=time.time() - 60),
        signed(exp=None),
        signed(aud="another service"),
        signed(tenant=None),
        signed(tenant=""),
        signed(tenant=["acme"]),
        signed(roles="manager"),
        {"x-tenant": "acme", "x-user": "ada"},
    ],
)
async def test_nobody_is_refused(client, headers):
    """Whoever cannot prove who they are gets no conversation at all."""
    assert 401 == (await client.post("/questions", json=HELLO, headers=headers)).status_code


@pytest.mark.parametrize("session", ["", None, 7, True, {"x": 1}, ["1"]])
async def test_no_session_is_no_conversation(client, session):
    """Neither of everybody without one, nor a new one."""
    body = {**HELLO, "session": session}
    assert 422 == (await client.post("/questions", json=body, headers=signed())).status_code


async def test_strangers_are_told_the_same(client):
    """Of a thread that waits for an answer, and of one that does not exist."""
    wish = {"session": "1", "text": "a refund"}
    waits = (await client.post("/questions", json=wish, headers=signed())).json()
    told = set()
    for thread_id in (waits["thread_id"], "acme:ada:2"):
        body = {"thread_id": thread_id, "interrupt_id": waits["waiting"][0], "answer": "yes"}
        response = await client.post("/answers", json=body, headers=token("beta", "mia", "manager"))
        told.add((response.status_code, response.text))
    assert 1 == len(told)
    assert 403 == next(iter(told))[0]


async def test_a_new_question_does_not_discard_the_one_that_waits(client):
    """The answer comes first."""
    wish = {"session": "1", "text": "a refund"}
    waits = (await client.post("/questions", json=wish, headers=signed())).json()
    response = await client.post("/questions", json=HELLO, headers=signed())
    assert (403, True) == (response.status_code, "would discard" in response.text)
    body = {"thread_id": waits["thread_id"], "interrupt_id": waits["waiting"][0], "answer": "no"}
    done = await client.post("/answers", json=body, headers=token("acme", "max", "manager"))
    assert "refund: no" == done.json()["messages"][-1]
