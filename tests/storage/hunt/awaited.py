"""A holder behind asyncio: the same script, whose hands await, on a loop of the player's own.

The script is written once, for blocking stores. Each verb of a hand runs as one task, in a greenlet of
SQLAlchemy's in which a call may await: so a verb that is cancelled is cancelled as a user's task is, in
the middle of whatever it awaits next.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from random import Random
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.util import await_only, greenlet_spawn

from lockd.errors import OutcomeUnknown
from lockd_storage import HeldLease, fenced
from lockd_storage.sqlalchemy import SqlFence
from tests.storage.hunt.arena import Book, Hands
from tests.storage.hunt.history import View
from tests.storage.hunt.players import pause
from tests.storage.hunt.sql import SqlHands

EnteredT = TypeVar("EnteredT")


class Loop:
    """One player's event loop. It runs while a verb does, and until what that has begun has ended."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._verb: asyncio.Task[Any] | None = None

    def run(self, verb: Callable[..., Any], *arguments: Any) -> Any:
        """Call `verb` where it can await. Raises OutcomeUnknown if it is cancelled."""
        self._verb = self._loop.create_task(greenlet_spawn(verb, *arguments))
        try:
            return self._loop.run_until_complete(self._verb)
        except asyncio.CancelledError:
            raise OutcomeUnknown("the holder's task was cancelled") from None
        finally:
            self._verb = None
            # A connection that a cancelled task gives back is closed by a task beside it.
            while left := asyncio.all_tasks(self._loop):
                self._loop.run_until_complete(asyncio.wait(left))

    def in_a_verb(self) -> bool:
        """Whether a verb is under way, which can be cancelled."""
        return self._verb is not None

    def cancel(self) -> None:
        """Let the verb under way be cancelled where it waits next."""
        if self._verb is not None:
            self._verb.cancel()

    def pause(self) -> None:
        """As `players.pause`, unless it is a task that works beside the verb."""
        if self._verb is not None and asyncio.current_task() is self._verb:
            pause()

    def close(self) -> None:
        self._loop.close()


class OnLoop:
    """Hands that await, for a script that doesn't."""

    def __init__(self, hands: Hands, loop: Loop) -> None:
        self.broken = hands.broken
        self._hands = hands
        self._loop = loop

    def install(self, lease: HeldLease) -> None:
        self._loop.run(self._hands.install, lease)

    def work(self, book: Book) -> None:
        self._loop.run(self._hands.work, book)

    def look(self) -> View:
        view: View = self._loop.run(self._hands.look)
        return view

    def close(self) -> None:
        self._loop.run(self._hands.close)


class AsyncSqlHands(SqlHands):
    """A holder with an AsyncSession or an AsyncConnection, inside a greenlet."""

    def __init__(self, engine: sa.Engine, *arguments: Any, **named: Any) -> None:
        super().__init__(engine, *arguments, **named)
        self._async_fence = SqlFence(AsyncEngine(engine))

    def install(self, lease: HeldLease) -> None:
        await_only(self._async_fence.install(lease, timeout=self._install_seconds))

    @contextmanager
    def opened(self, draw: Random) -> Iterator[Any]:
        engine = AsyncEngine(self.levelled(draw))
        if draw.random() < 0.5:
            with awaiting(AsyncSession(engine)) as session:
                yield Awaited(session)
        else:
            with awaiting(engine.connect()) as connection:
                yield Awaited(connection)

    def block(self, target: "Awaited", book: Book) -> AbstractContextManager[Any]:  # type: ignore[override]
        block: AbstractAsyncContextManager[Any] = fenced(target.behind, self._async_fence, *book.leases)
        return awaiting(block)


class Awaited:
    """An asyncio target whose verbs are called as those of a blocking one."""

    def __init__(self, behind: AsyncSession | AsyncConnection) -> None:
        self.behind = behind

    def execute(self, statement: sa.Executable, /) -> Any:
        return await_only(self.behind.execute(statement))

    def commit(self) -> None:
        await_only(self.behind.commit())

    def rollback(self) -> None:
        await_only(self.behind.rollback())

    def begin_nested(self) -> "AwaitedSavepoint":
        savepoint = self.behind.begin_nested()
        await_only(savepoint.start())
        return AwaitedSavepoint(savepoint)


class AwaitedSavepoint:
    def __init__(self, behind: Any) -> None:
        self._behind = behind

    def commit(self) -> None:
        await_only(self._behind.commit())

    def rollback(self) -> None:
        await_only(self._behind.rollback())


@contextmanager
def awaiting(block: AbstractAsyncContextManager[EnteredT]) -> Iterator[EnteredT]:
    """`async with block`, inside a greenlet."""
    entered = await_only(block.__aenter__())
    try:
        yield entered
    except BaseException as error:
        if not await_only(block.__aexit__(type(error), error, error.__traceback__)):
            raise
    else:
        await_only(block.__aexit__(None, None, None))
