"""The way from a task to an engine, which may be on another loop."""

from collections.abc import Awaitable, Coroutine
from typing import Any, Protocol, TypeVar

from lockd.client.engine import Engine
from lockd.client.portal import GiveBack

T = TypeVar("T")


class Caller(Protocol):
    """The way from a task to an engine."""

    @property
    def engine(self) -> Engine: ...

    def run(self, coroutine: Coroutine[Any, Any, T], give_back: GiveBack[T] | None = None) -> Awaitable[T]:
        """Run a coroutine of the engine. Who is cancelled while waiting gets nothing, and holds nothing."""
        ...
