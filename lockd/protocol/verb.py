"""What a verb is: how it is written, and how its arguments are read."""

from collections.abc import Callable, Sequence

import msgspec

from lockd.protocol.requests import Request
from lockd.protocol.usage import Argument, arguments_of

ANY_NUMBER = 1024
"""Of words: what the limits of a command let through."""


class Verb(msgspec.Struct, frozen=True):
    """A row of the table: how a command is written, and how its arguments are read."""

    name: str
    usage: str
    """The arguments, as a user would write them."""
    summary: str
    parse: Callable[[Sequence[bytes]], Request]
    """Takes the words after the name; raises RequestError or ValueError."""
    words_min: int
    """Fewest words after the name."""
    words_max: int

    @property
    def arguments(self) -> tuple[Argument, ...]:
        return arguments_of(self.usage)

    @property
    def group(self) -> str:
        """What it is about: `lock` for LOCK.ACQUIRE; `connection` for what any Redis client sends."""
        family, dot, _ = self.name.partition(".")
        return family.lower() if dot else "connection"

    @property
    def arity(self) -> int:
        """As Redis counts: words with the name; negative when more may follow."""
        least = self.words_min + len(self.name.split())
        return least if self.words_min == self.words_max else -least
