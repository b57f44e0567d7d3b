"""Who may do what with a thread, and who may answer what it asks."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from lghard.errors import ThreadAccessError, ThreadIdError
from lghard.threads.ids import ThreadId, ThreadNamespace
from lghard.threads.parts import Part, text_of

if TYPE_CHECKING:
    from langgraph.types import StateSnapshot

Action = Literal["read", "write", "resume", "update_state", "delete"]
"""What may be done with a thread."""

_ACTIONS: tuple[str, ...] = get_args(Action)


@dataclass(frozen=True)
class Principal:
    """Who is asking, as a token or an API key proves it; never as a request body says.

    Attributes:
        tenant: whom they belong to.
        user: who they are there.
        roles: what they are; names that `ThreadAccess` knows.

    Raises:
        ThreadIdError: tenant or user is missing, as where a token lacks the claim.

    Example:
        >>> Principal("acme", "ada", roles={"member"})
        Principal(tenant='acme', user='ada', roles=frozenset({'member'}))
    """

    __module__ = "lghard"

    tenant: Part
    user: Part
    roles: Collection[str] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tenant", text_of("tenant", self.tenant))
        object.__setattr__(self, "user", text_of("user", self.user))
        object.__setattr__(self, "roles", _names("roles", self.roles))


@dataclass(frozen=True, kw_only=True)
class Role:
    """What a role allows; what is not here is refused.

    Attributes:
        own: actions on the principal's own threads.
        tenant: actions on all threads of the principal's tenant, their own ones included.
        answers: kinds of interrupts that this role may answer, where it may `resume`; or decide by
            an `update_state` or a new input. `"*"` is any, with or without a kind.

    Example:
        >>> Role(own={"read", "write", "resume"}, answers={"question"}).answers
        frozenset({'question'})
    """

    __module__ = "lghard"

    own: Collection[Action] = frozenset()
    tenant: Collection[Action] = frozenset()
    answers: Collection[str] = frozenset()

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _names(field.name, getattr(self, field.name)))
        for action in {*self.own, *self.tenant}:
            _check_action(action)


def kind_of(value: object) -> str | None:
    """The kind of an interrupt: `interrupt({"kind": "approval", ...})`.

    Args:
        value: what the graph has called `interrupt` with.
    """
    kind = value.get("kind") if isinstance(value, Mapping) else None
    return kind if isinstance(kind, str) else None


class ThreadAccess:
    """Who may do what with the threads of a namespace, and who may answer their interrupts.

    A thread belongs to the tenant and to the user in its id. So whose it is needs no look into the
    database, and nobody can learn from an error, or from how long it took, whether a thread of
    somebody else exists.

    Args:
        namespace: how threads are named.
        roles: what each role allows, by its name. Roles that are not here allow nothing.
        tenant: the field of the namespace that holds the tenant, or None if there is only one.
        user: the field that holds the owner, or None if threads have none: then `Role.own` never
            applies.
        kind: what kind of interrupt it is, from the value that the graph has called `interrupt`
            with; None for one that only `"*"` may answer.

    Raises:
        ThreadIdError: the namespace has no such field.

    Example:
        ```python
        access = ThreadAccess(
            ThreadNamespace("tenant", "user", "session"),
            roles={
                "member": Role(own={"read", "write", "resume"}, answers={"question"}),
                "manager": Role(tenant={"read", "resume"}, answers={"approval"}),
            },
        )
        thread_id = access.authorize(principal, "read", request.path_params["thread_id"])
        ```
    """

    __module__ = "lghard"

    def __init__(
        self,
        namespace: ThreadNamespace,
        *,
        roles: Mapping[str, Role],
        tenant: str | None = "tenant",
        user: str | None = "user",
        kind: Callable[[Any], str | None] = kind_of,
    ) -> None:
        for argument, field in (("tenant", tenant), ("user", user)):
            if field is not None and field not in namespace.fields:
                raise ThreadIdError(
                    f"{argument}={field!r} is no field of {namespace.pattern}: name the one that "
                    f"holds the {argument}, or pass {argument}=None if none does",
                    field,
                )
        self.namespace = namespace
        self.roles = dict(roles)
        self._tenant, self._user, self._kind = tenant, user, kind

    def authorize(self, principal: Principal, action: Action, thread_id: str) -> ThreadId:
        """Check whether this principal may do that with this thread; before looking at it.

        Args:
            principal: who is asking.
            action: `read`, `write`, `resume`, `update_state` or `delete`. Where the thread may be
                waiting for an answer, the last word is with `authorize_write`, `authorize_resume`
                and `authorize_update`.
            thread_id: of which thread; from wherever it comes.

        Returns:
            The id, which is now known to be one.

        Raises:
            ThreadAccessError: they may not, with the check that failed.
        """
        return self._admit(principal, action, thread_id)[0]

    def may(self, principal: Principal, action: Action, thread_id: str) -> bool:
        """Whether `authorize` would let them pass: for what to show, rather than what to do."""
        try:
            self.authorize(principal, action, thread_id)
        except ThreadAccessError:
            return False
        return True

    def authorize_resume(
        self,
        principal: Principal,
        thread_id: str,
        snapshot: "StateSnapshot | Mapping[str, Any]",
        answers: Mapping[str, object],
        *,
        kind: str | None = None,
    ) -> ThreadId:
        """Check whether this principal may give these answers: then `Command(resume=answers)`.

        Each answer must be to an interrupt that is still waiting, and of a kind that a role of
        theirs may answer which lets them resume this thread. An answer to one that is gone is
        refused: LangGraph would take some of these for the answer to the next question.

        Args:
            principal: who is asking.
            thread_id: of which thread.
            snapshot: its newest state: `await graph.aget_state(config)` without a checkpoint, or
                `await client.threads.get_state(...)`. Read and resumed in one `thread_lock`, it
                is still the newest when the answers are given.
            answers: by the id of the interrupt that the caller saw.
            kind: which the caller saw, or this endpoint is for. Where LangGraph gives all
                interrupts of a node the same id, as some versions do, this tells them apart.

        Raises:
            ThreadAccessError: they may not, with the check that failed.
        """
        admitted, roles = self._admit(principal, "resume", thread_id)
        if not answers:
            raise ThreadAccessError("there is no answer to any interrupt", "interrupt")
        values = self._pending(admitted, snapshot)
        _check_waiting(answers, values)
        self._check_kinds(roles, [v for id_ in answers for v in values[id_]], kind)
        return admitted

    def authorize_update(
        self,
        principal: Principal,
        thread_id: str,
        snapshot: "StateSnapshot | Mapping[str, Any]",
        *,
        seen: Collection[str] = (),
    ) -> ThreadId:
        """Check whether this principal may change the state: then `graph.aupdate_state(...)`.

        A new state takes the place of all interrupts that are waiting, as if they had been
        answered. So the caller must have seen them all, and be allowed to answer each.

        Args:
            principal: who is asking.
            thread_id: of which thread.
            snapshot: its newest state, see `authorize_resume`.
            seen: ids of the interrupts that the caller saw, and decides in this way.

        Raises:
            ThreadAccessError: they may not, with the check that failed.
        """
        return self._replace(principal, "update_state", thread_id, snapshot, seen)

    def authorize_write(
        self,
        principal: Principal,
        thread_id: str,
        snapshot: "StateSnapshot | Mapping[str, Any]",
        *,
        seen: Collection[str] = (),
    ) -> ThreadId:
        """Check whether this principal may send input: then `graph.ainvoke(input, config)`.

        Input that is no `Command` starts over, and LangGraph silently discards what was waiting.
        So it is refused while anything is, unless the caller has seen it and may answer it.

        Args:
            principal: who is asking.
            thread_id: of which thread.
            snapshot: its newest state, see `authorize_resume`.
            seen: ids of the interrupts that the caller saw, and means to discard.

        Raises:
            ThreadAccessError: they may not, with the check that failed.
        """
        return self._replace(principal, "write", thread_id, snapshot, seen)

    def _admit(
        self, principal: Principal, action: Action, thread_id: str
    ) -> tuple[ThreadId, list[Role]]:
        """The thread, and the roles that let them; nothing but principal and id is looked at."""
        _check_action(action)
        try:
            parts = self.namespace.parse(thread_id)
        except ThreadIdError:
            raise _refusal(action, "id", "this is not an id of any thread here") from None
        if self._tenant and parts[self._tenant] != principal.tenant:
            raise _refusal(action, "tenant", "the id is another tenant's")
        owns = self._user is not None and parts[self._user] == principal.user
        roles = [self.roles[name] for name in principal.roles if name in self.roles]
        letting = [role for role in roles if _lets(role, action, owns=owns)]
        if not letting and not owns and any(action in role.own for role in roles):
            raise _refusal(action, "owner", "the id is another user's")
        if not letting:
            raise _refusal(action, "role", "no role of theirs allows it")
        return self.namespace.id(**parts), letting

    def _replace(
        self,
        principal: Principal,
        action: Action,
        thread_id: str,
        snapshot: "StateSnapshot | Mapping[str, Any]",
        seen: Collection[str],
    ) -> ThreadId:
        """Check what takes the place of whatever is waiting."""
        admitted, roles = self._admit(principal, action, thread_id)
        values = self._pending(admitted, snapshot)
        _check_waiting(_names("seen", seen), values)
        if not values.keys() <= set(seen):
            raise ThreadAccessError(
                "this would discard an interrupt that is waiting for an answer, and that the "
                "caller has not seen: answer it, or name it as seen",
                "interrupt",
            )
        self._check_kinds(roles, [value for found in values.values() for value in found])
        return admitted

    def _pending(
        self, thread_id: ThreadId, snapshot: "StateSnapshot | Mapping[str, Any]"
    ) -> dict[str, list[object]]:
        """The values of the interrupts that are waiting, by their ids."""
        place, interrupts = _waiting(snapshot)
        ids = {str(thread_id), str(thread_id.uuid)}
        if str(place["thread_id"]) not in ids or place.get("checkpoint_ns"):
            raise ThreadAccessError(
                "this is the state of another thread, or of a subgraph alone", "thread"
            )
        pending: dict[str, list[object]] = {}
        for id_, value in interrupts:
            pending.setdefault(id_, []).append(value)
        return pending

    def _check_kinds(
        self, roles: Iterable[Role], values: Iterable[object], seen: str | None = None
    ) -> None:
        """Whether one of the roles that let them do it may answer all of these."""
        kinds = {self._kind(value) for value in values}
        if seen is not None and kinds != {seen}:
            raise ThreadAccessError(
                "another kind of interrupt is waiting than the one that the caller saw", "kind"
            )
        answers = set[str | None]().union(*(role.answers for role in roles))
        if "*" not in answers and not kinds <= answers:
            raise ThreadAccessError("no role of theirs answers this kind of interrupt", "kind")


def _lets(role: Role, action: Action, *, owns: bool) -> bool:
    return action in role.tenant or (owns and action in role.own)


def _check_waiting(ids: Iterable[str], pending: Collection[str]) -> None:
    if any(id_ not in pending for id_ in ids):
        raise ThreadAccessError(
            "the interrupt that the caller saw is not waiting any more: load the thread again",
            "interrupt",
        )


def _waiting(
    snapshot: "StateSnapshot | Mapping[str, Any]",
) -> tuple[Mapping[str, Any], list[tuple[str, object]]]:
    """Where a state stands, and the interrupts that are waiting in it.

    Some versions of LangGraph show also those that have been answered, until the step is done. But
    a task that has written something has no more questions.
    """
    if isinstance(snapshot, Mapping):  # from a LangGraph server
        return snapshot["checkpoint"], [
            (interrupt["id"], interrupt["value"])
            for task in snapshot["tasks"]
            if not _has_written(task.get("result"))
            for interrupt in task["interrupts"]
        ]
    return snapshot.config["configurable"], [
        (interrupt.id, interrupt.value)
        for task in snapshot.tasks
        if not _has_written(task.result)
        for interrupt in task.interrupts
    ]


def _has_written(result: object) -> bool:
    return result is not None and not (isinstance(result, dict) and not result)


def _names(what: str, names: Collection[str]) -> frozenset[str]:
    """A set of names; text would be a set of letters."""
    if isinstance(names, str):
        raise TypeError(f"{what} must be a collection of names, such as {{{names!r}}}")
    return frozenset(names)


def _check_action(action: str) -> None:
    if action not in _ACTIONS:
        raise ValueError(f"{action!r} is no action: there are {', '.join(_ACTIONS)}")


def _refusal(action: str, check: str, reason: str) -> ThreadAccessError:
    """One text for all threads, those that exist and those that do not."""
    return ThreadAccessError(f"may not {action} this thread, if there is one: {reason}", check)
