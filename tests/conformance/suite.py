"""Everything that a folder of conformance data asks of us, one check a file.

The folder is laid out like `../shared/conformance`: `etcd-raft/quorum`, `etcd-raft/confchange`,
`etcd-raft/interaction`, each with files `*.txt`, and `porcupine` with its `verdicts.json`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from tests.conformance import confchange, porcupine, quorum, script
from tests.conformance.datadriven import Directive, parse

DEFAULT_FOLDER: Final = Path(__file__).resolve().parents[2].parent / "shared" / "conformance"
"""Beside the project; it is not part of it."""


class Failed(AssertionError):
    """A file's data contradict our code; the text says where."""


@dataclass(frozen=True, slots=True)
class Check:
    """One file. `run` returns what was found right, in words, or raises Failed."""

    name: str
    run: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of data; it may be missing from a folder."""

    folder: str
    checks: Callable[[Path], Iterator[Check]]

    def find(self, root: Path) -> list[Check]:
        """The checks of this part in a folder, none when it has no such part."""
        folder = root / self.folder
        return list(self.checks(folder)) if folder.is_dir() else []


def _scripts(folder: Path) -> Iterator[Check]:
    for file in sorted(folder.glob("*.txt")):
        yield Check(f"etcd-raft/interaction/{file.name}", partial(_play_script, file))


def _quorum_tables(folder: Path) -> Iterator[Check]:
    for file in sorted(folder.glob("*.txt")):
        yield Check(f"etcd-raft/quorum/{file.name}", partial(_play_table, file, quorum.play))


def _change_tables(folder: Path) -> Iterator[Check]:
    for file in sorted(folder.glob("*.txt")):
        name = f"etcd-raft/confchange/{file.name}"
        yield Check(name, partial(_play_changes, file))


def _histories(folder: Path) -> Iterator[Check]:
    if not (folder / "verdicts.json").is_file():
        yield Check("porcupine/verdicts.json", _missing_verdicts)
        return
    for file, is_linearizable in porcupine.verdicts(folder):
        name = f"porcupine/{file.relative_to(folder)}"
        yield Check(name, partial(_judge, file, is_linearizable=is_linearizable))


PARTS: Final = (
    Part("etcd-raft/interaction", _scripts),
    Part("etcd-raft/quorum", _quorum_tables),
    Part("etcd-raft/confchange", _change_tables),
    Part("porcupine", _histories),
)


def _missing_verdicts() -> str:
    raise Failed("there are histories and no verdicts.json to judge ours by")


def _play_script(file: Path) -> str:
    try:
        played = script.play(file.read_text(), file.name)
    except script.Difference as difference:
        raise Failed(str(difference)) from difference
    found = f"{played.directives} directives, {played.facts} facts compared"
    if played.details:
        found += f", {played.agreeing} of {played.details} details alike that need not be"
    return found


def _play_table(file: Path, play: Callable[[Directive], tuple[str, str]]) -> str:
    wrong, count = [], 0
    for directive in parse(file.read_text()):
        count += 1
        expected, actual = play(directive)
        if expected != actual:
            wrong.append(f"{file.name}:{directive.line}: expected\n{expected}\nand it is\n{actual}")
    if wrong:
        raise Failed(f"{len(wrong)} of {count} directives differ\n" + "\n".join(wrong))
    return f"{count} directives"


def _play_changes(file: Path) -> str:
    return _play_table(file, confchange.Changer().play)


def _judge(file: Path, *, is_linearizable: bool) -> str:
    words = {True: "linearizable", False: "not linearizable"}
    try:
        judged = porcupine.judge(file)
    except TimeoutError as error:
        raise Failed(str(error)) from error
    if judged != is_linearizable:
        raise Failed(f"{file.name} is {words[is_linearizable]}, and our checker says {words[judged]}")
    return words[judged]
