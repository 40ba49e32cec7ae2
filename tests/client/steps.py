"""Cancelling an operation at its n-th await, for every n, in both of the ways in which that can happen.

    async for step in every_step():
        await cancel_at(step, operation())
        ...                                  # what must hold after that

Either the operation is cancelled while what it awaits is not done, or it is done already and the
task has not woken yet: then the result is there, and is lost unless somebody gives it back.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Generator
from dataclasses import dataclass
from typing import Any

STEPS_MAX = 200


@dataclass
class Step:
    """The n-th await of an operation, from 0."""

    number: int
    is_late: bool
    """What is awaited there is done, and its task is cancelled before it wakes."""
    came_to_pass: bool = False
    """The operation had so many awaits."""
    was_cancelled: bool = False
    """It ended by the cancellation: nobody has its result."""
    result: Any = None


async def every_step() -> AsyncIterator[Step]:
    """Steps until the operation ends before it comes to one, early and late ones in turn."""
    for is_late in (False, True):
        for number in range(STEPS_MAX):
            step = Step(number, is_late)
            yield step
            if not step.came_to_pass:
                assert number > 0, "an operation that awaits nothing"
                break
        else:
            raise AssertionError("it never came to its end")


async def cancel_at(step: Step, operation: Coroutine[Any, Any, Any]) -> None:
    """Run it in a task of its own, which is cancelled at that step. Its own errors are raised."""
    task = asyncio.create_task(_counted(step, operation))
    try:
        step.result = await task
    except asyncio.CancelledError:
        step.was_cancelled = True
    assert not task.cancelling() or step.came_to_pass


async def _counted(step: Step, operation: Coroutine[Any, Any, Any]) -> Any:
    return await _Counting(step, operation)


class _Counting:
    def __init__(self, step: Step, operation: Coroutine[Any, Any, Any]) -> None:
        self._step = step
        self._operation = operation

    def __await__(self) -> Generator[Any, Any, Any]:
        task = asyncio.current_task()
        assert task is not None
        inner = self._operation.__await__()
        number = 0
        error: BaseException | None = None
        while True:
            try:
                awaited = inner.send(None) if error is None else inner.throw(error)
            except StopIteration as end:
                return end.value
            if number == self._step.number:
                self._step.came_to_pass = True
                if self._step.is_late and isinstance(awaited, asyncio.Future):
                    # Before the task's own callback, which wakes it: it is cancelled in between.
                    awaited.add_done_callback(lambda _: task.cancel())
                else:
                    task.cancel()
            number += 1
            error = None
            try:
                yield awaited
            except BaseException as thrown:  # noqa: BLE001 - it is the operation's to handle
                error = thrown
