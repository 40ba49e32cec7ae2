"""The format of etcd's data-driven tests: a command, its input, four dashes, what it printed.

    # a comment
    propose-conf-change 1 transition=explicit
    r1 v4
    ----
    ok

Expected output ends at a blank line; output that contains one stands between doubled dashes.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_ARGUMENT = re.compile(r"(?P<key>[^\s=]+)=\((?P<many>[^)]*)\)|(?P<name>[^\s=]+)=(?P<one>\S+)|(?P<flag>\S+)")
_RULE = "----"


@dataclass(frozen=True, slots=True)
class Argument:
    """`key`, `key=value` or `key=(value,value)`."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Command:
    name: str
    arguments: tuple[Argument, ...]

    @property
    def plain(self) -> list[str]:
        """The arguments without a value, in order."""
        return [argument.key for argument in self.arguments if not argument.values]

    def values(self, key: str) -> tuple[str, ...] | None:
        """The values of that argument, or None if it isn't there."""
        return next((found.values for found in self.arguments if found.values and found.key == key), None)

    def value(self, key: str) -> str | None:
        """The single value of that argument, or None. Raises ValueError when there are several."""
        values = self.values(key)
        if values is None:
            return None
        (value,) = values
        return value


@dataclass(frozen=True, slots=True)
class Directive:
    """One step of a file. `line` is where its command stands, from 1."""

    line: int
    command: Command
    input: str
    expected: str


def parse_command(line: str) -> Command:
    """Read a command line. Raises ValueError for an empty one."""
    name, _, rest = line.strip().partition(" ")
    if not name:
        raise ValueError("a command is missing")
    arguments = []
    for found in _ARGUMENT.finditer(rest):
        if found["key"] is not None:
            values = tuple(re.split(r"[,\s]+", found["many"].strip())) if found["many"].strip() else ()
            arguments.append(Argument(found["key"], values))
        elif found["name"] is not None:
            arguments.append(Argument(found["name"], (found["one"],)))
        else:
            arguments.append(Argument(found["flag"], ()))
    return Command(name, tuple(arguments))


def parse(text: str) -> Iterator[Directive]:
    """Yield the directives of a file, in order. Raises ValueError where it is not of this format."""
    lines = text.splitlines()
    position = 0
    while position < len(lines):
        line = lines[position].strip()
        start = position + 1
        position += 1
        if not line or line.startswith("#"):
            continue
        while line.endswith("\\"):
            line = line[:-1] + " " + lines[position].strip()
            position += 1
        try:
            rule = lines.index(_RULE, position)
        except ValueError:
            raise ValueError(f"line {start}: no {_RULE} follows the command {line!r}") from None
        given = lines[position:rule]
        expected, position = _expected(lines, rule + 1)
        yield Directive(start, parse_command(line), "\n".join(given).strip(), "\n".join(expected))


def _expected(lines: list[str], start: int) -> tuple[list[str], int]:
    """The output that begins at `start`, and where the file goes on."""
    if lines[start : start + 1] == [_RULE]:
        for end in range(start + 1, len(lines) - 1):
            if lines[end : end + 2] == [_RULE, _RULE]:
                return lines[start + 1 : end], end + 2
        raise ValueError(f"line {start}: the doubled {_RULE} has no end")
    end = start
    while end < len(lines) and lines[end].strip():
        end += 1
    return lines[start:end], end
