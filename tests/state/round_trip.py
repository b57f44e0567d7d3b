"""Writes values with LangGraph's serializer in one process, and reads them in a fresh one.

As a script it is either of the two:

    python -m tests.state.round_trip write MODULE FILE
    python -m tests.state.round_trip read MODULE FILE

The module has `CASES`; the reader prints what has become of each case's values, as JSON.
"""

import importlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from tests.state.sameness import same

ROOT = Path(__file__).parents[2]
RAISED = "raised"
EQUAL = "equal"
CHANGED = "changed"


def fates(module: str, file: Path, path: Path = ROOT) -> dict[str, list[str]]:
    """What becomes of the values of each case: "equal", "changed", or "raised: ..."."""
    write_in_another_process(module, file, path)
    found: dict[str, list[str]] = json.loads(_run("read", module, file, path).splitlines()[-1])
    return found


def write_in_another_process(module: str, file: Path, path: Path = ROOT) -> None:
    """The bytes of all values of all cases, into the file."""
    _run("write", module, file, path)


def _run(role: str, module: str, file: Path, path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.state.round_trip", role, module, str(file)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(path)])},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def write(module: str) -> dict[str, list[Any]]:
    """The bytes of each value, or the error."""
    cases = importlib.import_module(module).CASES
    return {name: [_written(value) for value in case.values()] for name, case in cases.items()}


def _written(value: Any) -> tuple[str, bytes]:
    try:
        kind, data = JsonPlusSerializer().dumps_typed(value)
        return kind, bytes(data)  # as a database keeps them
    except Exception as error:
        return "raised", repr(error).encode()


def read(module: str, written: dict[str, list[Any]]) -> dict[str, list[str]]:
    """Loaded before the module is imported, as in a process that resumes a run."""
    serde = JsonPlusSerializer()
    loaded = {
        name: [None if data[0] == RAISED else serde.loads_typed(data) for data in values]
        for name, values in written.items()
    }
    cases = importlib.import_module(module).CASES
    return {
        name: [
            _fate(data, value, original)
            for data, value, original in zip(
                values, loaded[name], cases[name].values(), strict=True
            )
        ]
        for name, values in written.items()
    }


def _fate(data: tuple[str, bytes], value: Any, original: Any) -> str:
    if data[0] == RAISED:
        return f"{RAISED}: {data[1].decode()}"
    return EQUAL if same(value, original) else CHANGED


if __name__ == "__main__":
    _, role, module, file = sys.argv
    if role == "write":
        Path(file).write_bytes(pickle.dumps(write(module)))
    else:
        sys.stdout.write(json.dumps(read(module, pickle.loads(Path(file).read_bytes()))))
