"""One order of steps for the async and for the sync client.

A generator yields what to do next, and gets back what came of it: so that what is difficult is
written, and tested, once.
"""

import asyncio
import inspect
import time
from collections.abc import Callable, Generator, Iterator
from itertools import count
from random import uniform
from typing import Any, TypeVar, cast

T = TypeVar("T")

Step = Callable[[], Any] | float
"""A request to make, or seconds to wait."""
Steps = Generator[Step, Any, T]


async def walk(steps: Steps[T]) -> T:
    """Take the steps with an async client, whose requests are awaited."""
    try:
        step = next(steps)
        while True:
            try:
                result = await _take(step)
            except Exception as error:  # it is raised where the step was made
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as end:
        return cast("T", end.value)
    finally:
        steps.close()


def walk_sync(steps: Steps[T]) -> T:
    """Take the steps with a sync client."""
    try:
        step = next(steps)
        while True:
            try:
                result = _take_sync(step)
            except Exception as error:  # it is raised where the step was made
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as end:
        return cast("T", end.value)
    finally:
        steps.close()


def _take_sync(step: Step) -> Any:
    if callable(step):
        return step()
    time.sleep(step)
    return None


async def _take(step: Step) -> Any:
    if not callable(step):
        return await asyncio.sleep(step)
    result = step()
    return await result if inspect.isawaitable(result) else result


def pauses(timeout: float, *, first: float = 0.05, longest: float = 2.0) -> Iterator[float]:
    """Seconds to wait between attempts, more each time, until `timeout` seconds have passed."""
    ends_at = time.monotonic() + timeout
    for attempt in count():
        left = ends_at - time.monotonic()
        if left <= 0:
            return
        yield min(left, uniform(0.5, 1.0) * min(longest, first * 2 ** min(attempt, 30)))  # noqa: S311
