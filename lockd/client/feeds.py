"""What `client.watch()` and `election.observe()` give: news to iterate over, for ever.

A feed begins with its block, or with the first item that is asked for. `revision` is that of the
last item it gave: whoever goes on from there, in this process or another, misses nothing. Asking
is by that number too, so an iteration that was interrupted or cancelled has lost nothing either.
"""

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, Self, TypeVar

from lockd.client.callers import Caller
from lockd.client.engine import Engine
from lockd.client.threads import Runtime
from lockd.client.watch import Item

T = TypeVar("T")


class Source(Protocol[T]):
    """Where the news come from, on the engine's loop."""

    async def begin(self) -> int:
        """Return once it has begun: the revision that its first item comes after."""
        ...

    async def take(self, after: int) -> Sequence[Item[T]]:
        """The items after that revision, at least one; none when it was closed."""
        ...

    async def close(self) -> None: ...

    def close_soon(self) -> None:
        """As `close`, from any thread, without waiting for it."""
        ...


class _News(Generic[T]):
    """What both feeds know: what has come and was not given out yet, and up to where it was."""

    def __init__(self, revision: int | None) -> None:
        self.revision = revision
        """Of the last item that was given; where it begins until then, None while that is not known."""
        self._ready: deque[Item[T]] = deque()
        self._source: Source[T] | None = None
        self._is_closed = False

    def _began(self, engine: Engine, source: Source[T], revision: int) -> None:
        self._source = source
        self.revision = revision
        # One that is simply left, by `break`, must not keep its connection.
        weakref.finalize(self, _abandon, engine, source).atexit = False

    def _next(self) -> T:
        item = self._ready.popleft()
        self.revision = item.revision
        return item.news


def _abandon(engine: Engine, source: Source[Any]) -> None:
    if not engine.is_closed:
        source.close_soon()


class Feed(_News[T]):
    """`for item in feed`. Ends when it is closed, by any thread, or its client is."""

    def __init__(
        self,
        start: Callable[[], Runtime],
        make: Callable[[Engine], Source[T]],
        *,
        revision: int | None = None,
    ) -> None:
        super().__init__(revision)
        self._start = start
        self._make = make
        self._runtime: Runtime | None = None

    def __enter__(self) -> Self:
        """Begin: what happens from here on will come. Raises as the first item would."""
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._is_closed or not self._ready:
            self._fill()
        return self._next()

    def close(self) -> None:
        """End it: whoever waits for an item gets no more. Idempotent."""
        self._is_closed = True
        if self._source is not None and self._runtime is not None and not self._runtime.engine.is_closed:
            self._runtime.run(self._source.close())

    def _begin(self) -> tuple[Runtime, Source[T]]:
        if self._source is None or self._runtime is None:
            runtime = self._runtime = self._start()
            source, revision = runtime.run(_begun(runtime.engine, self._make), _given_back)
            self._began(runtime.engine, source, revision)
            return runtime, source
        return self._runtime, self._source

    def _fill(self) -> None:
        if self._is_closed:
            raise StopIteration
        runtime, source = self._begin()
        assert self.revision is not None, "it has begun"
        if runtime.engine.is_closed:
            raise StopIteration
        try:
            self._ready.extend(runtime.run(source.take(self.revision)))
        except RuntimeError:
            if not runtime.engine.is_closed:
                raise
        if not self._ready:
            raise StopIteration


class AsyncFeed(_News[T]):
    """`async for item in feed`. Ends when it is closed, or its client is."""

    def __init__(
        self,
        start: Callable[[], Caller],
        make: Callable[[Engine], Source[T]],
        *,
        revision: int | None = None,
    ) -> None:
        super().__init__(revision)
        self._start = start
        self._make = make
        self._caller: Caller | None = None

    async def __aenter__(self) -> Self:
        """Begin: what happens from here on will come. Raises as the first item would."""
        await self._begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._is_closed or not self._ready:
            await self._fill()
        return self._next()

    async def close(self) -> None:
        """End it: whoever waits for an item gets no more. Idempotent."""
        self._is_closed = True
        if self._source is not None and self._caller is not None and not self._caller.engine.is_closed:
            await self._caller.run(self._source.close())

    async def _begin(self) -> tuple[Caller, Source[T]]:
        if self._source is None or self._caller is None:
            caller = self._caller = self._start()
            source, revision = await caller.run(_begun(caller.engine, self._make), _given_back)
            self._began(caller.engine, source, revision)
            return caller, source
        return self._caller, self._source

    async def _fill(self) -> None:
        if self._is_closed:
            raise StopAsyncIteration
        caller, source = await self._begin()
        assert self.revision is not None, "it has begun"
        if caller.engine.is_closed:
            raise StopAsyncIteration
        self._ready.extend(await caller.run(source.take(self.revision)))
        if not self._ready:
            raise StopAsyncIteration


async def _begun(engine: Engine, make: Callable[[Engine], Source[T]]) -> tuple[Source[T], int]:
    source = make(engine)
    try:
        return source, await source.begin()
    except BaseException:
        source.close_soon()  # nobody has it
        raise


async def _given_back(begun: tuple[Source[Any], int]) -> None:
    await begun[0].close()
