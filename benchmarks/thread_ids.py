"""What a thread id costs to build and to take apart, beside the bare f-string.

`uv run benchmarks/thread_ids.py`; what it means stands in benchmarks/README.md.
"""

import argparse
import statistics
import sys
import timeit
from collections.abc import Callable
from typing import Any

from report import Goal, keep, progress, show, table

from lghard import Principal, Role, ThreadAccess, ThreadNamespace

CALLS = 2000
"""Of one measurement: so few that others leave some of the measurements alone."""

threads = ThreadNamespace("tenant", "user", "session")
patterns = ThreadNamespace.from_pattern("tenant-{tenant}-ticket-{ticket}")
access = ThreadAccess(threads, roles={"member": Role(own={"read"})})
ada = Principal("acme", "ada", {"member"})

tenant, user, session = "acme", "ada", "0199f2c0-4b5e-7c3a-9d1e-5f6a7b8c9d0e"
plain = threads.id(tenant=tenant, user=user, session=session)
hard = threads.id(tenant="Zoë & co.", user="a:b", session=session)
ticket = patterns.id(tenant=tenant, ticket="7")

CASES: dict[str, Callable[[], Any]] = {
    "f-string": lambda: f"{tenant}:{user}:{session}",
    "id, plain parts": lambda: threads.id(tenant=tenant, user=user, session=session),
    "id, of a pattern": lambda: patterns.id(tenant=tenant, ticket="7"),
    "id, with escapes": lambda: threads.id(tenant="Zoë & co.", user="a:b", session=session),
    "config": lambda: threads.config(tenant=tenant, user=user, session=session),
    "str.split": lambda: plain.split(":"),
    "parse, plain parts": lambda: threads.parse(plain),
    "parse, of a pattern": lambda: patterns.parse(ticket),
    "parse, with escapes": lambda: threads.parse(hard),
    "uuid": lambda: plain.uuid,
    "authorize": lambda: access.authorize(ada, "read", plain),
    "new_session": threads.new_session,
}

LIMITS = {"id, plain parts": 2.0, "parse, plain parts": 3.0}
"""Microseconds."""


def main(rounds: int) -> int:
    """Measure all cases in turns, so that a disturbance meets all of them."""
    samples: dict[str, list[float]] = {name: [] for name in CASES}
    with progress(rounds) as step:
        for number in range(rounds):
            step(f"round {number + 1} of {rounds}")
            for name, case in CASES.items():
                samples[name].append(timeit.timeit(case, number=CALLS) / CALLS * 1e6)
    # What is slower than the fastest was so because of others, as the manual of timeit says.
    fastest = {name: min(taken) for name, taken in samples.items()}
    shown = table("", "fastest", "median", "times an f-string")
    for name, taken in samples.items():
        ratio = f"{fastest[name] / fastest['f-string']:.1f}"
        median = statistics.median(taken)
        shown.add_row(name, f"{fastest[name]:.2f} µs", f"{median:.2f} µs", ratio)
    goals = [
        Goal(f"{name}: {limit:g} µs at most", f"{fastest[name]:.2f} µs", fastest[name] <= limit)
        for name, limit in LIMITS.items()
    ]
    notes = [f"{rounds} rounds; a database's round trip is 100 µs on the same machine, and more"]
    show("Thread ids", shown, notes, goals)
    keep("thread_ids", None, {"microseconds": samples}, goals)
    return sum(not goal.met for goal in goals)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50, help="how often everything is measured")
    parser.add_argument("--quick", action="store_true", help="five rounds")
    options = parser.parse_args()
    sys.exit(main(5 if options.quick else options.rounds))
