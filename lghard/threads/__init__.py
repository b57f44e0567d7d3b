"""Whose conversation is it? Thread ids, and who may do what with a thread."""

from lghard.threads.access import Action, Principal, Role, ThreadAccess, kind_of
from lghard.threads.ids import ThreadId, ThreadNamespace

__all__ = [
    "Action",
    "Principal",
    "Role",
    "ThreadAccess",
    "ThreadId",
    "ThreadNamespace",
    "kind_of",
]
