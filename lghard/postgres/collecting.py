"""What a store is asked at the same moment: sent together, and nobody in the way of the others."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextvars import copy_context
from functools import partial
from time import monotonic

from langgraph.store.base import Op, PutOp, Result
from psycopg_pool import PoolClosed

Queue = asyncio.Queue[tuple[asyncio.Future[Result], Op]]

# Seconds that closing waits for what it has cancelled; somebody's embedding may not listen.
STOP_TIMEOUT = 5.0


class Call:
    """An operation, and who waits for its result.

    Attributes:
        op: what was called.
        future: what the caller waits for.
        texts: what has to be embedded first.
        key: what it overwrites, None if it only reads.
        kind: operations of one kind go together.
    """

    def __init__(self, op: Op, future: asyncio.Future[Result], texts: Sequence[str]) -> None:
        self.op = op
        self.future = future
        self.texts = texts
        self.key = (op.namespace, op.key) if isinstance(op, PutOp) else None
        self.kind = (type(op), bool(texts))

    def succeed(self, result: Result) -> None:
        """Give the caller its result."""
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Give the caller an error."""
        if not self.future.done():
            self.future.set_exception(error)


class Collector:
    """Collects the operations of one moment into batches, and has several at work side by side.

    LangGraph's own stores have one task, which does one batch after the other: whatever is slow
    holds up everything, and when the task is gone, callers wait for ever. Here a batch is a task of
    its own, and there is none while there is nothing to do.

    Each kind of operation goes by itself, and so does what has to be embedded first. Writes to the
    same key are done in the order they were called in.

    Args:
        work: does a batch, and tells its calls what came of them.
        texts: what has to be embedded for an operation.
        limit: how many batches may be at work, apart from those that are embedded first; what comes
            meanwhile makes larger ones.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Call]], Coroutine[None, None, None]],
        texts: Callable[[Op], Sequence[str]],
        limit: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        # The batches are nobody's: what the first caller's run has in context variables, such as
        # its tracing, does not belong to the others.
        self._context = copy_context()
        self._work = work
        self._texts = texts
        self._limit = limit
        self._is_due = self._is_closed = False
        self._waiting: list[Call] = []
        self._busy: set[object] = set()
        self._tasks: dict[asyncio.Task[None], Sequence[Call]] = {}

    def expect(self, queue: Queue) -> None:
        """Something is being put into `queue` just now.

        Raises:
            PoolClosed: the store has been closed.
        """
        if self._is_closed:
            raise PoolClosed("the store is closed: use it inside the block of open_store()")
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._collect, queue, context=self._context)

    def _collect(self, queue: Queue) -> None:
        self._is_due = False
        while not queue.empty():
            future, op = queue.get_nowait()
            try:
                self._waiting.append(Call(op, future, self._texts(op)))
            except Exception as error:  # told to whoever called
                future.set_exception(error)
        self._begin()

    def _begin(self) -> None:
        self._waiting = [call for call in self._waiting if not call.future.done()]
        while batch := self._take():
            self._busy.update(call.key for call in batch if call.key)
            task = self._loop.create_task(self._work(batch), name="lghard-store")
            self._tasks[task] = batch
            task.add_done_callback(self._end, context=self._context)
            for call in batch:
                call.future.add_done_callback(partial(_stop_if_unwanted, task, batch))

    def _take(self) -> list[Call]:
        """The oldest call that can be done now, and all that can go with it."""
        batch: list[Call] = []
        left: list[Call] = []
        held = {*self._busy}  # also the keys of writes that are left: later ones come after them
        is_full = sum(not at_work[0].texts for at_work in self._tasks.values()) >= self._limit
        for call in self._waiting:
            differs = batch and call.kind != batch[0].kind
            if differs or call.key in held or (is_full and not call.texts):
                left.append(call)
                held.update({call.key} - {None})
            else:
                batch.append(call)
        self._waiting = left
        return batch

    def _end(self, task: asyncio.Task[None]) -> None:
        batch = self._tasks.pop(task)
        error = None if task.cancelled() else task.exception()
        for call in batch:
            call.fail(error or PoolClosed("the store was closed under this, which may be done"))
        self._busy.difference_update(call.key for call in batch)
        self._begin()

    async def close(self, timeout: float) -> None:
        """Refuse what comes from now on, and let what is under way come to its end.

        Args:
            timeout: seconds after which it is cancelled.
        """
        self._is_closed = True
        ends_at = monotonic() + timeout
        try:
            await asyncio.sleep(0)  # what is due is collected
            while self._tasks and (left := ends_at - monotonic()) > 0:
                await asyncio.wait([*self._tasks], timeout=left)
        finally:
            for call in self._waiting:
                call.fail(PoolClosed("the store was closed before this was begun"))
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait([*self._tasks], timeout=STOP_TIMEOUT)


def _stop_if_unwanted(
    task: asyncio.Task[None], batch: Sequence[Call], _: asyncio.Future[Result]
) -> None:
    """Cancel what is being done for callers who have all been cancelled."""
    if all(call.future.cancelled() for call in batch):
        task.cancel()
