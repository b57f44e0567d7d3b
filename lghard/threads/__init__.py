"""Whose conversation is it? Thread ids, and who may do what with a thread."""

from lghard.threads.ids import ThreadId, ThreadNamespace

__all__ = ["ThreadId", "ThreadNamespace"]
