"""How a verb is written, as data: its usage line taken apart into arguments.

The usage line of a verb is what docs/PROTOCOL.md shows, what an error message repeats, and what COMMAND
DOCS is made of, from which redis-cli draws its hints. It is written as users know it from Redis:

    word          a value                        WORD           a word that is sent as it stands
    WORD value    the value after that word      [ ... ]        may be left out
    a|b           one of these                   WORD a | WORD b    one of these
    value...      one or more of it
"""

from collections import deque
from functools import lru_cache

import msgspec
from msgspec import structs

_NUMBERS = frozenset({"ms", "ttl_ms", "token", "revision", "offset", "count", "w"})
"""Values that are always numbers, by name."""


class Argument(msgspec.Struct, frozen=True):
    """One argument, in the terms of COMMAND DOCS."""

    name: str
    kind: str
    """string, integer, pure-token (a word that is sent as it stands), oneof or block."""
    token: str = ""
    """The word that comes before the value; of a pure-token, the word."""
    optional: bool = False
    multiple: bool = False
    arguments: tuple["Argument", ...] = ()
    """Of oneof and block."""


@lru_cache(maxsize=256)
def arguments_of(usage: str) -> tuple[Argument, ...]:
    """The arguments that a usage line names, in order."""
    apart = usage.replace("[", " [ ").replace("]", " ] ").replace("...", " ... ")
    return _sequence(deque(apart.split()))


def _sequence(words: deque[str]) -> tuple[Argument, ...]:
    """Take the words up to a closing bracket, or to the end."""
    found: list[Argument] = []
    while words and (word := words.popleft()) != "]":
        if word == "|":
            found.append(_one_of(found.pop(), _argument(words.popleft(), words)))
        elif word == "...":
            found.append(structs.replace(found.pop(), multiple=True))
        else:
            found.append(_argument(word, words))
    return tuple(found)


def _argument(word: str, words: deque[str]) -> Argument:
    if word == "[":
        return _optional(_sequence(words))
    if not _is_token(word):
        return _value(word)
    if words and words[0] not in {"[", "]", "|"} and not _is_token(words[0]):
        return structs.replace(_value(words.popleft()), token=word)
    return _pure(word)


def _optional(inside: tuple[Argument, ...]) -> Argument:
    if len(inside) == 1:
        return structs.replace(inside[0], optional=True)
    name = inside[0].token.lower() or inside[0].name
    return Argument(name, "block", optional=True, arguments=inside)


def _value(word: str) -> Argument:
    """A value, or one of several. Words of which none is a value's name are sent as they stand."""
    names = word.split("|")
    if len(names) == 1:
        return Argument(word, "integer" if word in _NUMBERS else "string")
    has_value = any(map(_is_token, names)) and not all(map(_is_token, names))
    return _one_of(*(_value(name) if has_value and not _is_token(name) else _pure(name) for name in names))


def _one_of(*ways: Argument) -> Argument:
    return Argument("-or-".join(way.name for way in ways), "oneof", arguments=ways)


def _pure(word: str) -> Argument:
    return Argument(word.lower(), "pure-token", token=word)


def _is_token(word: str) -> bool:
    return word.isupper() and "|" not in word
