"""What the serializer of a graph does beyond the default: strict mode, allowlist, pickle."""

from dataclasses import dataclass, replace
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde import _msgpack
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

Name = tuple[str, ...]
SAFE = _msgpack.SAFE_MSGPACK_TYPES


@dataclass(frozen=True)
class Serialization:
    """How values are written and read, as far as it changes what comes back.

    Attributes:
        allowed: classes that may be rebuilt beside LangGraph's own; None: every class.
        strict: LANGGRAPH_STRICT_MSGPACK is set, so that LangGraph makes a list of its own.
        pickles: what has no encoding is pickled, with the whole channel.
        encrypted: nobody reads a secret in the database.
        postgres: a channel's own str, int, float and bool are kept in JSONB.
        unknown: the name of a serializer that is none of LangGraph's; nothing is known of it.
    """

    allowed: frozenset[Name] | None = None
    strict: bool = False
    pickles: bool = False
    encrypted: bool = False
    postgres: bool = True
    unknown: str | None = None

    def blocks(self, name: Name) -> bool:
        """Whether a class of this name comes back as raw values."""
        return self.allowed is not None and name not in SAFE and name not in self.allowed


def serialization_of(checkpointer: object = None, serde: object = None) -> Serialization:
    """How a checkpointer writes and reads; without one, as Postgres checkpointers do by default.

    Args:
        checkpointer: of the graph; None, True and False are no object to look at.
        serde: a serializer to judge by, in place of the checkpointer's; "server" for the one of
            the LangGraph server.
    """
    if serde == "server":
        # It keeps the default of what may be rebuilt, and pickles what has no encoding.
        return replace(serialization_of(), pickles=True)
    if isinstance(checkpointer, bool):
        checkpointer = None
    serde = serde or getattr(checkpointer, "serde", None) or JsonPlusSerializer()
    encrypted = isinstance(serde, EncryptedSerializer)
    inner = _inner(serde)
    strict = bool(_msgpack.STRICT_MSGPACK_ENABLED)
    postgres = not isinstance(checkpointer, InMemorySaver)
    if not isinstance(inner, JsonPlusSerializer):
        return Serialization(unknown=type(inner).__name__, postgres=postgres)
    return Serialization(
        allowed=_allowed(inner),
        strict=strict,
        pickles=_pickles(inner),
        encrypted=encrypted,
        postgres=postgres,
    )


def _inner(serde: Any) -> Any:
    """Without encryption, and without the shell that savers put around a serializer of old kind."""
    while isinstance(serde, EncryptedSerializer) or (
        not isinstance(serde, JsonPlusSerializer) and hasattr(serde, "serde")
    ):
        serde = serde.serde
    return serde


def _allowed(serde: JsonPlusSerializer) -> frozenset[Name] | None:
    allowed = serde._allowed_msgpack_modules
    return None if allowed is True else frozenset(allowed or ())


def _pickles(serde: JsonPlusSerializer) -> bool:
    """The server's serializer pickles whatever it cannot encode, even with the fallback off."""
    served = type(serde).__module__ == "langgraph_api.serde"
    return bool(serde.pickle_fallback) or served
