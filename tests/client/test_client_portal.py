"""The way to the private thread: every result arrives or is given back (K4)."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from lockd.client.portal import Portal


@pytest.fixture
def portal() -> Iterator[Portal]:
    found = Portal()
    yield found
    found.stop()


class Shelf:
    """Where results are given back."""

    def __init__(self) -> None:
        self.returned: list[str] = []
        self.news = threading.Event()

    async def give_back(self, result: str) -> None:
        self.returned.append(result)
        self.news.set()


def test_a_result_or_an_error_comes_back(portal: Portal) -> None:
    async def double(number: int) -> int:
        if number < 0:
            raise ValueError("negative")
        return 2 * number

    assert portal.run(double(4)) == 8
    with pytest.raises(ValueError, match="negative"):
        portal.run(double(-1))
    assert asyncio.run(portal.run_from_task(double(5))) == 10


def test_k4_a_result_that_comes_in_spite_of_the_cancellation_is_given_back(portal: Portal) -> None:
    shelf, begun = Shelf(), threading.Event()

    async def stubborn() -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "granted all the same"
        raise AssertionError

    async def main() -> None:
        waiting = asyncio.create_task(portal.run_from_task(stubborn(), shelf.give_back))
        await asyncio.to_thread(begun.wait)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    assert shelf.news.wait(10)
    assert shelf.returned == ["granted all the same"]


def test_k4_a_result_that_nobody_came_for_is_given_back(portal: Portal) -> None:
    """It has arrived, but its task is cancelled before it wakes."""
    shelf, go_on = Shelf(), threading.Event()

    async def grant() -> str:
        return "granted"

    async def nothing() -> None:
        go_on.set()

    async def main() -> None:
        waiting = asyncio.create_task(portal.run_from_task(grant(), shelf.give_back))
        await asyncio.sleep(0)
        portal.run(nothing())  # this loop stands still until the portal has done with all before
        assert go_on.is_set()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    assert shelf.news.wait(10)
    assert shelf.returned == ["granted"]


def test_who_waits_for_itself_is_refused(portal: Portal) -> None:
    async def inner() -> None: ...

    async def outer() -> None:
        portal.run(inner())

    with pytest.raises(RuntimeError, match="can't wait for its client"):
        portal.run(outer())


def test_a_stopped_portal_takes_nothing_and_leaves_nobody_waiting() -> None:
    portal = Portal()
    begun = threading.Event()
    failures: list[BaseException] = []

    async def for_ever() -> None:
        begun.set()
        await asyncio.Event().wait()

    def wait() -> None:
        try:
            portal.run(for_ever())
        except RuntimeError as error:
            failures.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    begun.wait()
    portal.stop()
    thread.join(10)
    assert [str(failure) for failure in failures] == ["the client was closed"]
    with pytest.raises(RuntimeError, match="closed"):
        portal.run(for_ever())
