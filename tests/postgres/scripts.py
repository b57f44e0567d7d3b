"""Code that runs in an interpreter of its own."""

import re
import subprocess
import sys

# asyncio's debug mode says this of a callback that took 0.1 s, which it may on a busy machine.
_SLOW = re.compile(r"^Executing .* took [\d.]+ seconds\n", re.MULTILINE)


def script(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run code in a fresh interpreter in development mode."""
    command = [sys.executable, "-X", "dev", "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    done.stderr = _SLOW.sub("", done.stderr)
    return done
