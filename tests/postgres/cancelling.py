"""Cancellations that strike where it hurts, however fast the machine is."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from enum import Enum
from itertools import count
from types import coroutine
from typing import Any

import pytest


class Moment(Enum):
    """When a cancellation strikes a task that waits for something."""

    BEGUN = "as it begins to wait"
    DONE = "as what it waits for is done, before it can know"


each_moment = pytest.mark.parametrize("moment", Moment, ids=lambda moment: moment.name.lower())
insistently = pytest.mark.parametrize("insistent", [False, True], ids=["once", "insistently"])


async def cancelled_at_each_step(
    work: Callable[[], Coroutine[Any, Any, Any]], moment: Moment, *, insistent: bool = False
) -> AsyncIterator[int]:
    """Cancel `work()` at its first suspension point, the next one at its second, and so on.

    The last one ends by itself, before it has reached so many. Each of the others must have ended
    as cancelled.

    Args:
        work: makes a coroutine.
        moment: when the cancellation strikes.
        insistent: whether it strikes at all later suspension points, too, as AnyIO's scopes do.

    Yields:
        the number of each suspension point, when the task that was cancelled there has ended.
    """
    for step in count():
        strike = Strike(step, moment, insistent=insistent)
        task = await strike.against(work())
        if not strike.hits:
            await task
            return
        assert task.cancelled(), f"the cancellation at suspension point {step} had no effect"
        yield step


class Strike:
    """The cancellation of one task."""

    def __init__(self, step: int, moment: Moment, *, insistent: bool = False) -> None:
        self.step = step
        self.moment = moment
        self.insistent = insistent
        self.hits = 0

    async def against(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """The task of `work`, when it has ended."""
        self._task = asyncio.ensure_future(self._drive(work))
        await asyncio.wait({self._task})
        return self._task

    async def _drive(self, work: Coroutine[Any, Any, Any]) -> Any:
        return await self._steps_of(work)

    @coroutine
    def _steps_of(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Wait for what `work` waits for, and strike when it does so for the `step`-th time."""
        thrown: BaseException | None = None
        for number in count():
            try:
                awaited = work.throw(thrown) if thrown else work.send(None)
            except StopIteration as end:
                return end.value
            finally:
                thrown = None  # with it this frame would be in a cycle, and all below would stay
            if number == self.step or (self.insistent and number > self.step):
                self._strike_at(awaited)
            try:
                yield awaited
            except BaseException as error:
                thrown = error

    def _strike_at(self, awaited: "asyncio.Future[Any] | None") -> None:
        """`awaited` is None where a task only lets others run."""
        if awaited is None or self.moment is Moment.BEGUN:
            self._hit()
        else:
            awaited.add_done_callback(self._hit)  # called before the task, which comes to it later

    def _hit(self, _: object = None) -> None:
        self.hits += self._task.cancel()
