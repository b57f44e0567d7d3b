"""ThreadAccess: whose threads, which roles, and which interrupt; on a real Postgres."""

import itertools
import json
import uuid
from typing import Any

import pytest
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.types import Command, Interrupt, PregelTask, StateSnapshot

from lghard import (
    LghardError,
    Principal,
    Role,
    ThreadAccess,
    ThreadAccessError,
    ThreadIdError,
    ThreadNamespace,
)
from tests.threads.graphs import build, build_nested
from tests.threads.hostile import HOSTILE

threads = ThreadNamespace("tenant", "user", "session")
ROLES = {
    "member": Role(own={"read", "write", "resume"}, answers={"question"}),
    "editor": Role(own={"read", "update_state", "delete"}, answers={"question", "approval"}),
    "reviewer": Role(tenant={"read", "resume"}, answers={"approval"}),
    "auditor": Role(tenant={"read"}),
    "admin": Role(
        tenant={"read", "write", "resume", "update_state", "delete"},
        answers={"*"},
    ),
}
access = ThreadAccess(threads, roles=ROLES)
ADA = {"tenant": "acme", "user": "ada"}
THREAD = threads.id(**ADA, session="7")


@pytest.fixture(scope="module")
def saver(lghard_postgres):
    """Upstream's own, in a database for this module."""
    conninfo = lghard_postgres.create_database()
    with PostgresSaver.from_conn_string(conninfo) as saver:
        saver.setup()
        yield saver
    lghard_postgres.drop_database(conninfo)


@pytest.fixture
def start(saver):
    """A graph of these nodes, and the config of a new thread of Ada's in which it has begun."""

    def start(*names, make=build):
        graph = make(saver, *names)
        config = threads.config(**ADA, session=threads.new_session())
        graph.invoke({"log": ["hello"]}, config)
        return graph, config

    return start


def waiting(graph, config):
    """The ids of the interrupts that wait, by their kinds."""
    return {found.value["kind"]: found.id for found in graph.get_state(config).interrupts}


# The matrix: every role, action, ownership and state of the interrupt


@pytest.fixture(scope="module")
def snapshots(saver):
    """A state of each kind, in a thread of each owner, and what the caller saw in it."""
    found: dict[tuple[str, str], tuple[str, Any, list[str]]] = {}
    owners = {
        "own": ADA,
        "colleague's": {**ADA, "user": "bob"},
        "stranger's": {"tenant": "beta", "user": "ada"},
    }
    for owner, parts in owners.items():
        for state in STATES:
            config = threads.config(**parts, session=state)
            thread_id = config["configurable"]["thread_id"]
            if state == "missing":
                graph = build(saver, "question")
                found[owner, state] = thread_id, graph.get_state(config), []
                continue
            kinds = KINDS[state]
            graph = build(saver, *(kinds or ["question"]))
            graph.invoke({"log": []}, config)
            seen = list(waiting(graph, config).values())
            if state in ("answered", "gone"):
                graph.invoke(Command(resume={seen[0]: "yes"}), config)
            found[owner, state] = (
                thread_id,
                graph.get_state(config),
                [] if state in ("answered", "unseen") else seen,
            )
    return found


# What waits, and what the caller saw: all of it, or nothing, or what is gone.
KINDS = {
    "missing": [],
    "answered": [],
    "question": ["question"],
    "approval": ["approval"],
    "both": ["question", "approval"],
    "unseen": ["question"],
    "gone": ["question"],
}
STATES = list(KINDS)
OWNERS = ["own", "colleague's", "stranger's"]
ACTIONS = ["read", "write", "resume", "update_state", "delete"]
WHO = [[], ["member"], ["editor"], ["reviewer"], ["auditor"], ["admin"], ["root"]]
WHO += [["member", "reviewer"], ["member", "editor"]]

# What each may do to which threads, and which kinds it may answer with each action, said again.
ALLOWED = {
    "member": {("own", action): {"question"} for action in ("read", "write", "resume")},
    "editor": {
        ("own", action): {"question", "approval"} for action in ("read", "update_state", "delete")
    },
    "reviewer": {
        (owner, action): {"approval"}
        for owner in ("own", "colleague's")
        for action in ("read", "resume")
    },
    "auditor": {(owner, "read"): set() for owner in ("own", "colleague's")},
    "admin": {
        (owner, action): {"question", "approval"}
        for owner in ("own", "colleague's")
        for action in ACTIONS
    },
    "root": {},
}


def expected(roles, action, owner, state):
    """Which check fails, or None."""
    if owner == "stranger's":
        return "tenant"
    let = [ALLOWED[role][owner, action] for role in roles if (owner, action) in ALLOWED[role]]
    if not let:
        others = owner == "colleague's" and any(("own", action) in ALLOWED[role] for role in roles)
        return "owner" if others else "role"
    if action in ("read", "delete"):
        return None
    if state == "gone" or (state in ("missing", "answered", "unseen") and action == "resume"):
        return "interrupt"
    if state == "unseen":
        return "interrupt"
    return None if set(KINDS[state]) <= set().union(*let) else "kind"


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("action", ACTIONS)
def test_matrix(snapshots, action, owner, state):
    """Every set of roles is let through, or stopped by the very check that the model names."""
    thread_id, snapshot, seen = snapshots[owner, state]
    for roles in WHO:
        principal = Principal("acme", "ada", roles)
        error = attempt(principal, action, thread_id, snapshot, seen)
        assert expected(roles, action, owner, state) == (error and error.check), roles


def attempt(principal, action, thread_id, snapshot, seen):
    """The error, if there is one."""
    checks = {
        "write": lambda: access.authorize_write(principal, thread_id, snapshot, seen=seen),
        "resume": lambda: access.authorize_resume(
            principal, thread_id, snapshot, dict.fromkeys(seen, "yes")
        ),
        "update_state": lambda: access.authorize_update(principal, thread_id, snapshot, seen=seen),
    }
    try:
        checks.get(action, lambda: access.authorize(principal, action, thread_id))()
    except ThreadAccessError as error:
        return error
    return None


def test_strangers_learn_nothing(snapshots):
    """What they are told is the same for threads that exist, and for those that do not."""
    for principal in (Principal("beta", "ada", ["admin"]), Principal("acme", "eve", ["member"])):
        for action in ACTIONS:
            told = {
                (state, str(attempt(principal, action, *snapshots["own", state])))
                for state in STATES
            }
            assert 1 == len({text for _, text in told}), told
            assert "if there is one" in next(iter(told))[1]


# Forged ids


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(
    "session",
    [*HOSTILE.values(), "x:acme:ada:7", "../acme:ada:7", "\x00acme:ada:7", "7%", "acme:ada:7"],
)
def test_no_session_leads_to_another_tenant(action, session):
    """Whatever a stranger puts into a session id, the id is their own."""
    eve = Principal("beta", "eve", ["member", "editor"])
    mine = threads.id(tenant=eve.tenant, user=eve.user, session=session)
    assert access.may(eve, action, mine)
    for tenant, user in [("acme", "ada"), ("beta", "bob"), ("beta:eve", "x")]:
        assert not access.may(Principal(tenant, user, ["member", "editor"]), action, mine)


@pytest.mark.parametrize(
    "thread_id",
    [
        *("", "7", "acme:ada", "acme:ada:7:8", "ACME:ada:7", " acme:ada:7", "acme:ada:7\x00"),
        *(
            "acme%3Aada:7",
            "%61cme:ada:7",
            "acme:%61da:7",
            "acme:ada:%37",
            "acme/ada/7",
            THREAD.uuid,
        ),
        *(str(THREAD.uuid), None, 7, b"acme:ada:7", ["acme:ada:7"], "acme:ada:" + "7" * 9999),
    ],
)
def test_forged_id_is_refused(thread_id):
    """It is no id of anybody's, or of somebody else's; a second name for a thread is none."""
    ada = Principal("acme", "ada", ["member"])
    with pytest.raises(ThreadAccessError) as caught:
        access.authorize(ada, "read", thread_id)
    assert caught.value.check in ("id", "tenant")


def test_authorized_id_is_one():
    """It has a UUID and metadata, whatever text came in."""
    found = access.authorize(Principal("acme", "ada", ["member"]), "read", "acme:ada:7")
    assert (THREAD, THREAD.uuid, THREAD.metadata) == (found, found.uuid, found.metadata)


def test_names_are_compared_as_in_ids():
    """An é of the identity provider is the é of the id; a number is its text."""
    zoe = Principal(7, "Zoe\u0308", ["member"])
    assert access.may(zoe, "read", threads.id(tenant="7", user="Zo\u00eb", session="1"))
    assert not access.may(zoe, "read", threads.id(tenant="7", user="Zoe", session="1"))


# Interrupts; each with what LangGraph itself would do


MEMBER = Principal("acme", "ada", ["member"])
EDITOR = Principal("acme", "ada", ["editor"])
REVIEWER = Principal("acme", "rob", ["reviewer"])
ADMIN = Principal("acme", "root", ["admin"])


def test_an_answer_reaches_its_interrupt(start):
    """The mapping that was checked is the one that is resumed with."""
    graph, config = start("question")
    answers = {waiting(graph, config)["question"]: "blue"}
    thread_id = config["configurable"]["thread_id"]
    assert thread_id == access.authorize_resume(MEMBER, thread_id, graph.get_state(config), answers)
    assert ["hello", "blue"] == graph.invoke(Command(resume=answers), config)["log"]


def test_a_late_answer_does_not_approve(start):
    """Control: LangGraph takes the second click on a question for the approval after it."""
    graph, config = start("ask")
    answers = {waiting(graph, config)["question"]: "yes"}
    thread_id = config["configurable"]["thread_id"]
    access.authorize_resume(MEMBER, thread_id, graph.get_state(config), answers)
    graph.invoke(Command(resume=answers), config)
    snapshot = graph.get_state(config)
    with pytest.raises(ThreadAccessError) as caught:
        access.authorize_resume(MEMBER, thread_id, snapshot, answers, kind="question")
    assert caught.value.check in ("interrupt", "kind")  # by its id, if it has one of its own
    with pytest.raises(ThreadAccessError, match=r"no role|not waiting"):
        access.authorize_resume(MEMBER, thread_id, snapshot, answers)
    with pytest.raises(ThreadAccessError, match=r"another kind|not waiting"):
        access.authorize_resume(ADMIN, thread_id, snapshot, answers, kind="question")
    assert ["hello", "yes", "yes"] == graph.invoke(Command(resume=answers), config)["log"]


def test_input_does_not_discard_what_waits(start):
    """Control: LangGraph starts over, and the question that waited is gone."""
    graph, config = start("question")
    before = waiting(graph, config)
    thread_id = config["configurable"]["thread_id"]
    with pytest.raises(ThreadAccessError, match="would discard an interrupt") as caught:
        access.authorize_write(MEMBER, thread_id, graph.get_state(config))
    assert "interrupt" == caught.value.check
    graph.invoke({"log": ["never mind"]}, config)
    assert not set(before.values()) & set(waiting(graph, config).values())


def test_input_may_discard_what_was_seen(start):
    """By those who could have answered it as well."""
    graph, config = start("question")
    thread_id, snapshot = config["configurable"]["thread_id"], graph.get_state(config)
    seen = list(waiting(graph, config).values())
    assert thread_id == access.authorize_write(MEMBER, thread_id, snapshot, seen=seen)
    graph, config = start("approval")
    thread_id, snapshot = config["configurable"]["thread_id"], graph.get_state(config)
    seen = list(waiting(graph, config).values())
    with pytest.raises(ThreadAccessError, match="no role of theirs answers") as caught:
        access.authorize_write(MEMBER, thread_id, snapshot, seen=seen)
    assert "kind" == caught.value.check


def test_update_does_not_get_around_an_approval(start):
    """Control: LangGraph lets a new state pass for the node that asked."""
    clerk = Principal("acme", "ada", ["clerk"])
    roles = {"clerk": Role(own={"update_state"}, answers={"question"})}
    graph, config = start("approval")
    thread_id, snapshot = config["configurable"]["thread_id"], graph.get_state(config)
    for seen in ([], waiting(graph, config).values()):
        with pytest.raises(ThreadAccessError):
            ThreadAccess(threads, roles=roles).authorize_update(
                clerk, thread_id, snapshot, seen=list(seen)
            )
    assert access.authorize_update(EDITOR, thread_id, snapshot, seen=[*seen])
    graph.update_state(config, {"log": ["approved"]}, as_node="approval")
    assert ((), {}) == (graph.get_state(config).next, waiting(graph, config))


def test_update_of_what_is_gone_is_refused(start):
    """The caller decided about something that others have decided already."""
    graph, config = start("question")
    thread_id, seen = config["configurable"]["thread_id"], list(waiting(graph, config).values())
    graph.invoke(Command(resume={seen[0]: "blue"}), config)
    with pytest.raises(ThreadAccessError, match="not waiting any more") as caught:
        access.authorize_update(EDITOR, thread_id, graph.get_state(config), seen=seen)
    assert "interrupt" == caught.value.check


def test_one_of_several(start):
    """Each answers what it may, and what has been answered is gone, though the step is not done."""
    graph, config = start("question", "approval")
    thread_id, ids = config["configurable"]["thread_id"], waiting(graph, config)
    yes = dict.fromkeys(ids.values(), "yes")
    question, approval = ({ids[kind]: "yes"} for kind in ("question", "approval"))
    for principal in (MEMBER, REVIEWER):
        with pytest.raises(ThreadAccessError, match="no role of theirs answers this kind"):
            access.authorize_resume(principal, thread_id, graph.get_state(config), yes)
    access.authorize_resume(MEMBER, thread_id, graph.get_state(config), question)
    graph.invoke(Command(resume=question), config)
    with pytest.raises(ThreadAccessError, match="not waiting any more"):
        access.authorize_resume(MEMBER, thread_id, graph.get_state(config), question)
    access.authorize_resume(REVIEWER, thread_id, graph.get_state(config), approval)
    assert ["hello", "yes", "yes"] == graph.invoke(Command(resume=approval), config)["log"]


def test_interrupt_of_a_subgraph(start):
    """It waits in the thread as any other, with the same id."""
    graph, config = start("approval", make=build_nested)
    thread_id, snapshot = config["configurable"]["thread_id"], graph.get_state(config)
    answers = {waiting(graph, config)["approval"]: "yes"}
    with pytest.raises(ThreadAccessError, match="no role of theirs answers this kind"):
        access.authorize_resume(MEMBER, thread_id, snapshot, answers)
    access.authorize_resume(REVIEWER, thread_id, snapshot, answers)
    assert ["hello", "yes"] == graph.invoke(Command(resume=answers), config)["log"][-2:]


def test_state_of_a_subgraph_is_not_enough(start):
    """What waits elsewhere in the thread is not in it."""
    graph, config = start("approval", make=build_nested)
    inner = graph.get_state(config, subgraphs=True).tasks[0].state
    with pytest.raises(ThreadAccessError, match="this is the state of another thread, or of a"):
        access.authorize_write(ADMIN, config["configurable"]["thread_id"], inner)


def test_interrupt_without_a_kind(start):
    """Only those answer it who may answer everything."""
    graph, config = start("untold")
    thread_id, snapshot = config["configurable"]["thread_id"], graph.get_state(config)
    answers = {snapshot.interrupts[0].id: 42}
    with pytest.raises(ThreadAccessError, match="no role of theirs answers this kind"):
        access.authorize_resume(MEMBER, thread_id, snapshot, answers)
    access.authorize_resume(ADMIN, thread_id, snapshot, answers)


def test_kind_of_the_applications_own(start):
    """From whatever its interrupts are."""
    mine = ThreadAccess(
        threads, roles=ROLES, kind=lambda value: "question" if "How" in value else None
    )
    graph, config = start("untold")
    snapshot = graph.get_state(config)
    answers = {snapshot.interrupts[0].id: 42}
    mine.authorize_resume(MEMBER, config["configurable"]["thread_id"], snapshot, answers)


@pytest.mark.parametrize("answers", [{}, {"": "yes"}, {"0" * 32: "yes"}])
def test_answers_to_nothing(start, answers):
    """LangGraph ignores some of these, and takes others for an answer to whatever waits."""
    graph, config = start("question")
    with pytest.raises(ThreadAccessError) as caught:
        access.authorize_resume(
            MEMBER, config["configurable"]["thread_id"], graph.get_state(config), answers
        )
    assert "interrupt" == caught.value.check


def test_state_of_another_thread(start):
    """It says nothing about this one."""
    graph, config = start("question")
    answers = {waiting(graph, config)["question"]: "blue"}
    with pytest.raises(ThreadAccessError, match="this is the state of another thread") as caught:
        access.authorize_resume(MEMBER, THREAD, graph.get_state(config), answers)
    assert "thread" == caught.value.check


def test_state_from_a_server():
    """It is a dictionary, and the thread is the UUID."""
    task = {"id": "1", "name": "ask", "interrupts": [{"id": "x", "value": {"kind": "question"}}]}
    state = {"checkpoint": {"thread_id": str(THREAD.uuid)}, "tasks": [task], "values": {}}
    access.authorize_resume(MEMBER, THREAD, state, {"x": "blue"})
    with pytest.raises(ThreadAccessError, match="would discard"):
        access.authorize_write(MEMBER, THREAD, state)
    other = {**state, "checkpoint": {"thread_id": str(uuid.uuid4())}}
    with pytest.raises(ThreadAccessError, match="another thread"):
        access.authorize_resume(MEMBER, THREAD, other, {"x": "blue"})


def snapshot_of(*tasks):
    config = {"configurable": {"thread_id": THREAD, "checkpoint_ns": ""}}
    return StateSnapshot({}, (), config, None, None, None, tasks, ())


def test_what_older_versions_show():
    """A finished task's interrupts are shown until its step is done; one that waits has no result.

    Nor has it after its first answer, where there is an empty one.
    """
    asked = (Interrupt({"kind": "question"}, id="x"),)
    done = PregelTask("1", "done", (), None, asked, None, {"log": ["blue"]})
    empty = PregelTask("2", "waits", (), None, asked, None, {})
    access.authorize_write(MEMBER, THREAD, snapshot_of(done))
    with pytest.raises(ThreadAccessError, match="would discard"):
        access.authorize_write(MEMBER, THREAD, snapshot_of(done, empty))


def test_same_id_twice():
    """All interrupts of that id are looked at."""
    two = (Interrupt({"kind": "question"}, id="x"), Interrupt({"kind": "approval"}, id="x"))
    snapshot = snapshot_of(PregelTask("1", "ask", (), None, two, None, None))
    with pytest.raises(ThreadAccessError, match="no role of theirs answers this kind"):
        access.authorize_resume(MEMBER, THREAD, snapshot, {"x": "yes"})


# Roles do not add up to more than each allows


def test_a_role_answers_only_where_it_may_resume():
    """A reviewer of all threads who is a member answers no questions of others as a member."""
    both = Principal("acme", "rob", ["member", "reviewer"])
    asked = (Interrupt({"kind": "question"}, id="x"),)
    snapshot = snapshot_of(PregelTask("1", "ask", (), None, asked, None, None))
    with pytest.raises(ThreadAccessError, match="no role of theirs answers this kind"):
        access.authorize_resume(both, THREAD, snapshot, {"x": "yes"})


# Declarations


def test_threads_without_an_owner():
    """Then only what a role may do in the whole tenant counts."""
    tickets = ThreadNamespace.from_pattern("tenant-{tenant}-ticket-{ticket}")
    desk = ThreadAccess(tickets, roles=ROLES, user=None)
    ticket = tickets.id(tenant="acme", ticket=7)
    outcomes = [desk.may(Principal("acme", "ada", [role]), "read", ticket) for role in ROLES]
    assert [False, False, True, True, True] == outcomes
    assert not desk.may(Principal("beta", "ada", ["admin"]), "read", ticket)


def test_threads_without_a_tenant():
    """All belong to the only one there is."""
    reports = ThreadNamespace.from_pattern("report-{who}-{date}")
    office = ThreadAccess(reports, roles=ROLES, tenant=None, user="who")
    report = reports.id(who="ada", date="2026-11-20")
    assert office.may(MEMBER, "read", report)
    assert not office.may(Principal("acme", "eve", ["member"]), "read", report)


@pytest.mark.parametrize("argument", ["tenant", "user"])
def test_missing_field_is_refused(argument):
    """Otherwise nobody would be checked against it."""
    with pytest.raises(ThreadIdError, match=f"{argument}='team' is no field of {{tenant}}"):
        ThreadAccess(threads, roles=ROLES, **{argument: "team"})


@pytest.mark.parametrize("tenant", ["", None, True, b"acme"])
def test_principal_without_a_tenant(tenant):
    """As where a token lacks the claim."""
    with pytest.raises(ThreadIdError, match=r"^tenant "):
        Principal(tenant, "ada")
    with pytest.raises(ThreadIdError, match=r"^user "):
        Principal("acme", tenant)


def test_names_are_not_letters():
    """Text where a set of names belongs would be the set of its letters."""
    for make in (
        lambda: Principal("acme", "ada", "admin"),
        lambda: Role(own="read"),
        lambda: Role(answers="*"),
        lambda: access.authorize_write(ADMIN, THREAD, snapshot_of(), seen="x"),
    ):
        with pytest.raises(TypeError, match="must be a collection of names"):
            make()


def test_unknown_action_is_refused():
    """A typing error allows nothing by accident, and hides nothing."""
    with pytest.raises(ValueError, match="'update' is no action: there are read, write, resume"):
        Role(own={"update"})
    with pytest.raises(ValueError, match="'Read' is no action"):
        access.authorize(ADMIN, "Read", THREAD)
    with pytest.raises(ValueError, match="'Read' is no action"):
        access.may(ADMIN, "Read", THREAD)


def test_error_is_upstreams_kind():
    """A handler of PermissionError hears it; and it shows no part of the id."""
    with pytest.raises(PermissionError) as caught:
        access.authorize(Principal("acme", "eve", ["member"]), "read", THREAD)
    assert isinstance(caught.value, LghardError)
    assert "may not read this thread, if there is one: the id is another user's" == str(
        caught.value
    )
    assert json.dumps(caught.value.check) == '"owner"'
    assert caught.value.__cause__ is None


def test_matrix_is_complete():
    """Every action and every role occurs in it."""
    assert set(ACTIONS) == {a for role in ROLES.values() for a in (*role.own, *role.tenant)}
    assert set(ROLES) == set(itertools.chain(*WHO)) - {"root"}
