"""Which database a pool is of, so that all event loops that lock its threads stand in one line."""

import os
import threading
from collections.abc import Hashable, Sequence
from weakref import WeakValueDictionary

from lghard.postgres.lease_line import Lines


class Databases:
    """The lines of this process for all databases. Event loops of many threads ask for them."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._lines = WeakValueDictionary[Hashable, Lines]()
        self._is_hooked = False

    def lines(self, names: Sequence[Hashable]) -> Lines:
        """Those of the database that has one of these names, and all of them from now on."""
        with self._lock:
            self._hook()
            known = (self._lines.get(name) for name in names)
            lines = next((lines for lines in known if lines), None) or Lines()
            self._lines.update(dict.fromkeys(names, lines))
            return lines

    def _hook(self) -> None:
        if not self._is_hooked and hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(after_in_child=self._in_child)
        self._is_hooked = True

    def _in_child(self) -> None:
        self._lock = threading.RLock()  # the parent's may be held by a thread that is not here
        inherited, self._lines = self._lines, WeakValueDictionary()
        for lines in {*inherited.values()}:
            lines.leave_behind()


databases = Databases()
