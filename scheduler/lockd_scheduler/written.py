"""A YAML or TOML file as it is written: what is in it, and on which line.

YAML is read by its 1.2 rules for plain words: `on`, `yes` and `12:30` are texts, as whoever writes
`after: {on: failed}` expects. Refused: a key that stands twice, tags, and references (`*name`) that would
grow a small file into a large one.
"""

import re
import tomllib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from lockd_scheduler.errors import BadSchedule

FILE_BYTES_MAX = 8 * 1024 * 1024
NODES_MAX = 1_000_000
DEPTH_MAX = 64

Path_: TypeAlias = tuple[str | int, ...]
"""The way to a place: the names of keys and the numbers of items."""


@dataclass(frozen=True)
class Mistake:
    """What is wrong, and where."""

    file: str
    line: int | None
    path: Path_
    reason: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}, line {self.line}"
        field_ = ".".join(map(str, self.path))
        reason = " ".join(self.reason.split())
        return f"{where}: {field_}: {reason}" if field_ else f"{where}: {reason}"


class BadFile(BadSchedule):
    """A file has mistakes; the text has one line for each."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        self.mistakes = list(mistakes)
        super().__init__("\n".join(map(str, mistakes)))


@dataclass(frozen=True)
class Written:
    """A file's content, and the lines of its keys."""

    file: str
    content: Any
    lines: dict[Path_, int] = field(default_factory=dict)

    def mistake(self, path: Path_, reason: str) -> Mistake:
        """Something wrong at that place; its line is that of the nearest key that is known."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return Mistake(self.file, self.lines[path[:length]], path, reason)
        return Mistake(self.file, None, path, reason)


def read_written(path: Path) -> Written:
    """Read a .yaml, .yml or .toml file. Raises BadFile."""
    name = str(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadFile([Mistake(name, None, (), error.strerror or str(error))]) from None
    if len(data) > FILE_BYTES_MAX:
        raise BadFile([Mistake(name, None, (), f"it is larger than {FILE_BYTES_MAX} bytes")])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise BadFile([Mistake(name, line, (), "it is not a text in UTF-8")]) from None
    match path.suffix.lower():
        case ".yaml" | ".yml":
            return _read_yaml(name, text)
        case ".toml":
            return _read_toml(name, text)
        case _:
            raise BadFile([Mistake(name, None, (), "its name must end in .yaml, .yml or .toml")])


def _read_toml(name: str, text: str) -> Written:
    try:
        return Written(name, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line ([0-9]+), column [0-9]+\)", str(error))
        line = int(found.group(1)) if found else None
        raise BadFile([Mistake(name, line, (), f"it is not TOML: {error}")]) from None
    except RecursionError:
        raise BadFile([Mistake(name, None, (), "it is nested too deeply")]) from None


class _Loader(yaml.SafeLoader):
    """SafeLoader with the plain words of YAML 1.2."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - PyYAML's way


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", list("-+0123456789")),
    ("float", r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    ("merge", r"^<<$", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _read_yaml(name: str, text: str) -> Written:
    try:
        return _parse_yaml(name, _Loader(text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else mark.line + 1
        raise BadFile(
            [Mistake(name, line, (), f"it is not YAML: {error.problem or error.context}")]
        ) from None
    except BadFile:
        raise
    except (yaml.YAMLError, ValueError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise BadFile([Mistake(name, None, (), f"it is not YAML: {first}")]) from None
    except RecursionError:
        raise BadFile([Mistake(name, None, (), "it is nested too deeply")]) from None


def _parse_yaml(name: str, loader: _Loader) -> Written:
    try:
        root = loader.get_single_node()
        if root is None:
            raise BadFile([Mistake(name, None, (), "it is empty")])
        survey = _Survey(name)
        survey.look(root, ())
        if survey.mistakes:
            raise BadFile(survey.mistakes)
        return Written(name, loader.construct_document(root), survey.lines)
    finally:
        loader.dispose()


class _Survey:
    """Walks the nodes: notes lines, refuses keys that stand twice and files that grow."""

    def __init__(self, name: str) -> None:
        self.lines: dict[Path_, int] = {}
        self.mistakes: list[Mistake] = []
        self._name = name
        self._nodes = 0

    def look(self, node: yaml.Node, path: Path_) -> None:
        """Look at a node and all below it, references followed. Raises BadFile."""
        self._nodes += 1
        if self._nodes > NODES_MAX or len(path) > DEPTH_MAX:
            line = node.start_mark.line + 1
            raise BadFile([Mistake(self._name, line, (), "its references (`*name`) make it too large")])
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                self.look(item, (*path, number))
        elif isinstance(node, yaml.MappingNode):
            seen: set[Hashable] = set()
            for key, value in node.value:
                self._look_at_pair(key, value, path, seen)

    def _look_at_pair(self, key: yaml.Node, value: yaml.Node, path: Path_, seen: set[Hashable]) -> None:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            self.mistakes.append(Mistake(self._name, line, path, "a key must be a plain text"))
            return
        if key.tag == "tag:yaml.org,2002:merge":
            self.look(value, path)
            return
        below = (*path, key.value)
        if key.value in seen:
            self.mistakes.append(Mistake(self._name, line, below, "it stands there twice"))
        seen.add(key.value)
        self.lines[below] = line
        self.look(value, below)
