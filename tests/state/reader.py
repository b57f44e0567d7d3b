"""Reads what another process has written, and tells what came back.

`python -m tests.state.reader`: on stdin, pickled lists of what `dumps_typed` returned; on stdout,
pickled lists of fingerprints. Imports nothing that defines the classes that it reads.
"""

import logging
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tests.state.fingerprint import fingerprint

ROOT = Path(__file__).parents[2]


class Reader:
    """A process that has read nothing yet."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.state.reader"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=20)
        self._process.stdout.close()

    def read(self, stored: Sequence[tuple[str, bytes]]) -> list[str]:
        """What came back of each, as text."""
        assert self._process.stdin
        assert self._process.stdout
        pickle.dump([(kind, bytes(blob)) for kind, blob in stored], self._process.stdin)
        self._process.stdin.flush()
        found: list[str] = pickle.load(self._process.stdout)
        return found


def _read(serde: Any, item: tuple[str, bytes]) -> str:
    try:
        return fingerprint(serde.loads_typed(item))
    except Exception as error:
        return f"raised {type(error).__name__}"


def main() -> None:
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer  # noqa: PLC0415

    logging.disable(logging.CRITICAL)
    serde = JsonPlusSerializer(pickle_fallback=True, allowed_msgpack_modules=True)
    while True:
        try:
            stored = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump([_read(serde, item) for item in stored], sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
