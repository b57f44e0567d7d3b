"""examples/tenants on a real LangGraph server: what one tenant tries to do to the other."""

import time
import uuid
from pathlib import Path

import httpx
import jwt
import pytest
from langgraph_sdk import get_sync_client

from lghard import Principal, Role, ThreadAccess, ThreadAccessError, ThreadNamespace
from lghard.testing import langgraph_server

FOLDER = Path(__file__).parents[2] / "examples" / "tenants"
SECRET = "a secret for these tests, and for nothing else"
GRAPHS = {"agent": "./asking.py:graph"}
WISH = {"wish": "a pony"}

threads = ThreadNamespace("tenant", "user", "session")
VICTIM = threads.id(tenant="acme", user="ada", session="7")
MISSING = threads.id(tenant="acme", user="ada", session="8")
OWN = threads.id(tenant="beta", user="bob", session="1")


def token(tenant="acme", user="ada", secret=SECRET, algorithm="HS256", **claims):
    claims = {"tenant": tenant, "sub": user, "aud": "chat", "exp": time.time() + 600, **claims}
    return jwt.encode({k: v for k, v in claims.items() if v is not None}, secret, algorithm)


def headers(*args, **kwargs):
    return {"Authorization": f"Bearer {token(*args, **kwargs)}"}


@pytest.fixture(scope="module")
def server(lghard_langgraph_server):
    return lghard_langgraph_server(
        GRAPHS, directory=FOLDER, auth="./auth.py:auth", env={"JWT_SECRET": SECRET}
    )


@pytest.fixture(scope="module")
def ada(server):
    """Her thread waits for an answer, and she leaves nothing else to chance."""
    with get_sync_client(url=server.url, headers=headers("acme", "ada")) as client:
        client.threads.create(
            thread_id=str(VICTIM.uuid), if_exists="do_nothing", metadata=VICTIM.metadata
        )
        client.runs.wait(str(VICTIM.uuid), "agent", input=WISH)
        yield client


@pytest.fixture(scope="module")
def bob(server, ada):
    """Of another tenant, with a thread of his own."""
    with get_sync_client(url=server.url, headers=headers("beta", "bob")) as client:
        client.threads.create(
            thread_id=str(OWN.uuid), if_exists="do_nothing", metadata=OWN.metadata
        )
        client.runs.wait(str(OWN.uuid), "agent", input={"wish": "mine"})
        yield client


@pytest.fixture
def untouched(ada):
    """Whatever was tried, her thread and what waits in it are as they were."""

    def looked_at():
        thread = ada.threads.get(str(VICTIM.uuid))
        state = ada.threads.get_state(str(VICTIM.uuid))
        runs = [run["run_id"] for run in ada.runs.list(str(VICTIM.uuid))]
        found = ada.threads.search(metadata=threads.metadata(tenant="acme"))
        return thread["metadata"], thread["status"], state["checkpoint"], runs, len(found)

    before = looked_at()
    yield
    assert before == looked_at()
    assert 1 == len(ada.threads.get_state(str(VICTIM.uuid))["interrupts"])


def outcome(attempt, thread):
    """The status of what was tried, and the error, with all its ids made the same."""
    try:
        attempt(str(thread.uuid), thread)
    except httpx.HTTPStatusError as error:
        text = error.response.text.replace(str(thread.uuid), "<id>")
        return error.response.status_code, text
    return None


def test_own_thread(ada):
    """It is what she has created, it is found by its parts, and it can be created again."""
    again = ada.threads.create(
        thread_id=str(VICTIM.uuid), if_exists="do_nothing", metadata=VICTIM.metadata
    )
    assert str(VICTIM.uuid) == again["thread_id"]
    found = ada.threads.search(metadata=threads.metadata(tenant="acme", user="ada"))
    assert [VICTIM] == [thread["metadata"]["lghard"] for thread in found]


def test_own_answer(bob):
    """What waits is answered, after a look at the state that the server gives."""
    desk = ThreadAccess(
        threads, roles={"member": Role(own={"resume", "write"}, answers={"approval"})}
    )
    who = Principal("beta", "bob", ["member"])
    bob.runs.wait(str(OWN.uuid), "agent", input=WISH)
    state = bob.threads.get_state(str(OWN.uuid))
    answers = {state["interrupts"][0]["id"]: "no"}
    with pytest.raises(ThreadAccessError, match="would discard"):
        desk.authorize_write(who, OWN, state)
    desk.authorize_resume(who, OWN, state, answers)
    done = bob.runs.wait(str(OWN.uuid), "agent", command={"resume": answers})
    assert {**WISH, "answer": "no"} == done
    with pytest.raises(ThreadAccessError, match="not waiting any more"):
        desk.authorize_resume(who, OWN, bob.threads.get_state(str(OWN.uuid)), answers)


def test_a_run_may_create_its_own_thread(server, bob):
    """As the SDK's `threads.stream` does with every run; if it says whose, in its metadata."""
    thread = threads.id(tenant="beta", user="bob", session=threads.new_session())
    for _ in range(2):
        bob.runs.wait(
            str(thread.uuid),
            "agent",
            input=WISH,
            metadata=thread.metadata,
            if_not_exists="create",
        )
    found = bob.threads.get(str(thread.uuid))["metadata"]
    assert thread.metadata.items() <= found.items()
    bob.threads.delete(str(thread.uuid))


ATTEMPTS = {
    "read": lambda bob, id_, _: bob.threads.get(id_),
    "read the state": lambda bob, id_, _: bob.threads.get_state(id_),
    "read the history": lambda bob, id_, _: bob.threads.get_history(id_),
    "create": lambda bob, id_, thread: bob.threads.create(thread_id=id_, metadata=thread.metadata),
    "create, do nothing": lambda bob, id_, thread: bob.threads.create(
        thread_id=id_, metadata=thread.metadata, if_exists="do_nothing"
    ),
    "create as his own": lambda bob, id_, _: bob.threads.create(
        thread_id=id_, metadata=OWN.metadata, if_exists="do_nothing"
    ),
    "create without metadata": lambda bob, id_, _: bob.threads.create(thread_id=id_),
    "update the metadata": lambda bob, id_, _: bob.threads.update(id_, metadata={"x": 1}),
    "take": lambda bob, id_, _: bob.threads.update(id_, metadata=OWN.metadata),
    "update the state": lambda bob, id_, _: bob.threads.update_state(
        id_, {"answer": "yes"}, as_node="ask"
    ),
    "delete": lambda bob, id_, _: bob.threads.delete(id_),
    "prune": lambda bob, id_, _: bob.threads.prune([id_]),
    "copy": lambda bob, id_, _: bob.threads.copy(id_),
    "write": lambda bob, id_, _: bob.runs.wait(id_, "agent", input=WISH),
    "write in the background": lambda bob, id_, _: bob.runs.create(id_, "agent", input=WISH),
    "write as a stream": lambda bob, id_, _: [*bob.runs.stream(id_, "agent", input=WISH)],
    "write, or create": lambda bob, id_, _: bob.runs.wait(
        id_, "agent", input=WISH, if_not_exists="create"
    ),
    "write, or create as hers": lambda bob, id_, thread: bob.runs.wait(
        id_, "agent", input=WISH, if_not_exists="create", metadata=thread.metadata
    ),
    "write, or create as his own": lambda bob, id_, _: bob.runs.wait(
        id_, "agent", input=WISH, if_not_exists="create", metadata=OWN.metadata
    ),
    "resume": lambda bob, id_, _: bob.runs.wait(id_, "agent", command={"resume": "yes"}),
    "go on": lambda bob, id_, _: bob.runs.wait(id_, "agent", input=None),
    "list the runs": lambda bob, id_, _: bob.runs.list(id_),
    "cancel the runs": lambda bob, id_, _: bob.runs.cancel_many(
        thread_id=id_, run_ids=[str(uuid.UUID(int=1))]
    ),
    "repeat every day": lambda bob, id_, _: bob.crons.create_for_thread(
        id_, "agent", schedule="0 0 * * *", input=WISH
    ),
    "plant a thread": lambda bob, _, thread: bob.runs.wait(
        None, "agent", input=WISH, metadata=thread.metadata
    ),
    "plant a thread by config": lambda bob, _, thread: bob.runs.wait(
        None, "agent", input=WISH, config={"metadata": thread.metadata}
    ),
    "give his own away": lambda bob, _, thread: bob.threads.update(
        str(OWN.uuid), metadata=thread.metadata
    ),
    "write to the store": lambda bob, *_: bob.store.put_item(["acme"], "x", {"a": 1}),
    "read the store": lambda bob, *_: bob.store.search_items(["acme"]),
    "change what everybody runs": lambda bob, *_: bob.assistants.create("agent"),
}


@pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=ATTEMPTS)
def test_stranger_fails(bob, untouched, attempt):
    """And is told the same of a thread that exists, and of one that does not."""
    found = outcome(lambda *args: attempt(bob, *args), VICTIM)
    assert found is not None
    assert found[0] in (403, 404)
    assert found == outcome(lambda *args: attempt(bob, *args), MISSING)


def test_stranger_finds_nothing(bob, untouched):
    """Neither by the id, nor by the metadata, nor at all; and does not count it either."""
    for search in (
        {"ids": [str(VICTIM.uuid)]},
        {"metadata": VICTIM.metadata},
        {"metadata": threads.metadata(tenant="acme")},
        {"values": WISH},
        {"status": "interrupted"},
        {},
    ):
        found = {thread["thread_id"] for thread in bob.threads.search(**search)}
        assert found <= {str(OWN.uuid)}, search
    assert 1 == bob.threads.count()
    assert 0 == bob.threads.count(metadata=threads.metadata(tenant="acme"))


def test_an_id_in_the_config_leads_nowhere(bob, untouched):
    """A run on his own thread, or on none, stays there, whatever its config says."""
    config = {"configurable": {"thread_id": str(VICTIM.uuid), "checkpoint_ns": ""}}
    for thread_id in (str(OWN.uuid), None):
        found = bob.runs.wait(thread_id, "agent", input={"wish": "mine"}, config=config)
        assert "mine" == found["wish"]


# A stream says so in an event, or ends without any; a command says so in JSON.
REFUSALS = ("403", "404", "422", "200 event: error", '200 {"type":"error"')
ANYTHING = {
    "assistant_id": "agent",
    "input": WISH,
    "values": {},
    "metadata": {},
    "checkpoint": {"checkpoint_id": str(uuid.UUID(int=1))},
    "channels": ["values"],
    "id": 1,
    "method": "run.start",
    "params": {"assistant_id": "agent", "input": WISH},
}


def test_every_route_with_a_thread(server, bob, untouched):
    """Whatever the server offers for a thread, a stranger gets an error, and always the same.

    The routes are the server's own list, so that a new one is tried, too.
    """
    schema = httpx.get(f"{server.url}/openapi.json").json()
    tried = [
        (method.upper(), path)
        for path, methods in schema["paths"].items()
        for method in methods.keys() & {"get", "post", "put", "patch", "delete"}
        if "{thread_id}" in path
    ]
    tried.append(("POST", "/threads/{thread_id}/commands"))
    tried.append(("POST", "/threads/{thread_id}/stream/events"))
    with httpx.Client(base_url=server.url, headers=headers("beta", "bob"), timeout=5) as client:
        for method, path in tried:
            found, same = (answer(client, method, path, thread) for thread in (VICTIM, MISSING))
            assert found == same, (method, path)
            assert found.startswith(REFUSALS) or found == "200 ", (method, path, found)
    assert len(tried) > 15


def answer(client, method, path, thread):
    """Status and content; of a stream, as far as the first event."""
    url = path.replace("{thread_id}", str(thread.uuid))
    for name in ("run_id", "checkpoint_id", "cron_id"):
        url = url.replace(f"{{{name}}}", str(uuid.UUID(int=1)))
    body = {} if method in ("GET", "DELETE") else {"json": ANYTHING}
    with client.stream(method, url, **body) as response:
        content = next(response.iter_text(), "")
    return f"{response.status_code} {content}".replace(str(thread.uuid), "<id>")


CHECKPOINT = {"thread_id": str(VICTIM.uuid), "checkpoint_ns": ""}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("state/checkpoint", {}),
        ("history", {"limit": 10}),
        ("history", {"limit": 10, "before": {"configurable": CHECKPOINT}}),
        ("history", {"limit": 10, "metadata": {"thread_id": str(VICTIM.uuid)}}),
        ("state", {"values": {"answer": "yes"}, "as_node": "ask"}),
        ("runs/wait", {"assistant_id": "agent", "input": {"wish": "mine"}}),
        ("runs/wait", {"assistant_id": "agent", "command": {"resume": "yes"}}),
        ("runs/wait", {"assistant_id": "agent", "config": {"configurable": CHECKPOINT}}),
    ],
)
@pytest.mark.usefixtures("bob", "untouched")
def test_a_checkpoint_leads_nowhere(server, ada, path, body):
    """A checkpoint of hers on a thread of his: he reads nothing of it, and she has what she had."""
    newest = ada.threads.get_state(str(VICTIM.uuid))["checkpoint"]["checkpoint_id"]
    hers = {**CHECKPOINT, "checkpoint_id": newest}
    response = httpx.post(
        f"{server.url}/threads/{OWN.uuid}/{path}",
        json={"checkpoint": hers, **body},
        headers=headers("beta", "bob"),
    )
    assert WISH["wish"] not in response.text


def test_agent_to_agent(server, bob, untouched):
    """A contextId is a thread id by another name."""
    message = {"messageId": "1", "role": "user", "parts": [{"kind": "text", "text": "hello"}]}
    message["contextId"] = str(VICTIM.uuid)
    ask = {"jsonrpc": "2.0", "id": "1", "method": "message/send", "params": {"message": message}}
    with httpx.Client(base_url=server.url, headers=headers("beta", "bob")) as client:
        assistant = bob.assistants.search(graph_id="agent")[0]["assistant_id"]
        response = client.post(
            f"/a2a/{assistant}", json=ask, headers={"accept": "application/json"}
        )
    assert response.status_code >= 400 or "error" in response.json(), response.text


@pytest.mark.parametrize(
    "forged",
    [
        {},
        {"Authorization": "Bearer x"},
        {"Authorization": f"Basic {token()}"},
        headers(secret="another secret, which is long enough, too"),
        headers(secret=None, algorithm="none"),
        headers(exp=time.time() - 60),
        headers(exp=None),
        headers(aud="another service"),
        headers(aud=None),
        headers(tenant=None),
        headers(tenant=""),
        headers(tenant=True),
        headers(roles="admin"),
        {"x-auth-scheme": "langsmith"},
        {"x-auth-scheme": "langsmith", "x-api-key": "lsv2_x"},
        {"x-user-id": "ada", "x-tenant-id": "acme"},
    ],
)
def test_forged_token(server, untouched, forged):
    """Whoever is not who the token says is nobody."""
    response = httpx.get(f"{server.url}/threads/{VICTIM.uuid}", headers=forged)
    assert 401 == response.status_code


CHANGES = {
    name: ATTEMPTS[name]
    for name in (
        *("create, do nothing", "update the metadata", "update the state", "delete", "prune"),
        *("write", "write in the background", "resume", "go on", "cancel the runs"),
    )
}


@pytest.mark.parametrize("attempt", CHANGES.values(), ids=CHANGES)
def test_a_viewer_only_reads(server, ada, untouched, attempt):
    """Of her own thread, where her token says no more; and a role that nobody knows not even that.

    A run without a thread is a run, too.
    """
    for role, sees in (("viewer", 1), ("nobody", 0)):
        with get_sync_client(url=server.url, headers=headers(roles=[role])) as client:
            assert sees == len(client.threads.search(ids=[str(VICTIM.uuid)]))
            found = outcome(lambda *args: attempt(client, *args), VICTIM)
            assert found is not None
            assert found[0] in (403, 404)
            with pytest.raises(httpx.HTTPStatusError, match="403"):
                client.runs.wait(None, "agent", input=WISH)


def test_colleague_fails(server, ada, untouched):
    """A member of the same tenant has threads of their own."""
    with get_sync_client(url=server.url, headers=headers("acme", "eve")) as eve:
        assert [] == eve.threads.search()
        for attempt in (eve.threads.get, eve.threads.delete, eve.runs.list):
            with pytest.raises(httpx.HTTPStatusError, match="not found"):
                attempt(str(VICTIM.uuid))


def test_without_handlers_everybody_reads_everything():
    """The control: a UUIDv5 can be computed by whoever guesses the parts."""
    with langgraph_server(GRAPHS, directory=FOLDER) as plain:
        with get_sync_client(url=plain.url) as client:
            client.threads.create(thread_id=str(VICTIM.uuid), metadata=VICTIM.metadata)
            client.runs.wait(str(VICTIM.uuid), "agent", input=WISH)
        with get_sync_client(url=plain.url, headers=headers("beta", "bob")) as bob:
            assert WISH == bob.threads.get_state(str(VICTIM.uuid))["values"]
            done = bob.runs.wait(str(VICTIM.uuid), "agent", command={"resume": "yes"})
            assert {**WISH, "answer": "yes"} == done
