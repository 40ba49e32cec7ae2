"""What the expected output of a script's directive says, as facts that a node can be asked for.

A fact is a key and a text, as `("hard state", 2)` and `Term:1 Vote:2 Commit:11`. Most of what etcd
prints is news: it stays true until other news come. So facts are gathered over the directives and
all that are known are asked again after each one. Under a log level that hides news, everything
that such a directive may have changed is unknown again.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from tests.conformance.cluster import DROPPED, IDLE, STRANGER
from tests.conformance.datadriven import Directive

Fact = tuple[str | int, ...]
_LEVELS: Final = ("debug", "info", "warn", "error", "fatal", "none")
_STILL: Final = frozenset({"_breakpoint", "log-level", "raft-state", "raft-log", "status"})
"""Commands that change nothing."""
_OUTPUTS: Final = frozenset(
    {
        DROPPED,
        *IDLE,
        "index must be specified as > 1 due to bootstrap",
        "v1 conf change can only have one operation and no transition",
    }
)
_SECTIONS: Final = {
    "Entries:": "entry",
    "CommittedEntries:": "committed",
    "Messages:": "",
    "Processing:": "",
    "Responses:": "",
}

_HEADER = re.compile(
    r"^> (\d+) (handling Ready|receiving messages|processing append thread|processing apply thread)$"
)
_ENTRY = re.compile(r"^(\d+)/(\d+) (EntryNormal|EntryConfChange)(?:V2)?(.*)$")
_ROLE = re.compile(r"^INFO (\w+) became (follower|candidate|pre-candidate|leader) at term (\d+)$")
_CONFIGURATION = re.compile(r"^INFO (\w+) switched to configuration (.*)$")
_NEW = re.compile(
    r"^INFO newRaft (\w+) \[peers: \[.*\], "
    r"(term: \d+, commit: \d+, applied: \d+, lastindex: \d+), lastterm: \d+\]$"
)
_REFUSED = re.compile(r"^INFO (\w+) ignoring conf change ")
_SNAPSHOT = re.compile(r"^Snapshot (Index:\d+ Term:\d+) ConfState:(.*)$")
_READY = re.compile(r"^(\d+/\d+ Entry|HardState |Lead:\d+ State:\w+$|Snapshot Index:)")
_STATE = re.compile(r"^(\d+): (State\w+ \((?:Voter|Non-Voter)\) Term:\d+ Lead:\d+)$")
_PROGRESS = re.compile(r"^(\d+): (State\w+ match=\d+)( next=\d+)( learner)?(.*)$")
_NOT_COMPARED = re.compile(
    r"^((dropped: )?\w+->\w+ Msg\w+ .*"  # a message
    r"|Snapshot: Index:.*"  # what a message carries
    r"|\](.*)?"  # the end of what a message carries
    r"|(DEBUG|INFO|WARN|ERROR) .*"  # what the log says, but for the above
    r"|Ready( MustSync=(true|false))?:"
    r"|<empty Ready>"
    r"|ReadStates.*"
    r"|ok)$"
)
_ROLE_NAMES: Final = {
    "follower": "StateFollower",
    "candidate": "StateCandidate",
    "pre-candidate": "StatePreCandidate",
    "leader": "StateLeader",
}


@dataclass
class Expectation:
    """What is known at this point of a script. `facts` is asked after each directive."""

    facts: dict[Fact, str] = field(default_factory=dict)
    details: dict[Fact, str] = field(default_factory=dict)
    """What the last directive told of the inner life of a node; ours may differ there."""
    not_understood: list[str] = field(default_factory=list)
    """Lines of the last directive that are of no kind that is known."""
    _level: str = "debug"
    _momentary: set[Fact] = field(default_factory=set)

    def read(self, directive: Directive) -> None:
        """Take in what a directive printed."""
        for fact in self._momentary:
            del self.facts[fact]
        self._momentary.clear()
        self.details.clear()
        self.not_understood.clear()
        command = directive.command
        if command.name == "log-level":
            self._level = command.plain[0].lower()
        level = (command.value("log-level") or self._level).lower()
        self._forget(command.name, level)
        match command.name:
            case "raft-state":
                self._read_states(directive.expected, level)
            case "status":
                self._read_progress(int(command.plain[0]), directive.expected)
            case "raft-log" | "compact":
                self._read_log(int(command.plain[0]), directive.expected, level)
            case _:
                self._read_news(directive, level)

    def _forget(self, command: str, level: str) -> None:
        if command in _STILL or command.startswith("propose"):
            return
        if level == "none":
            self.facts.clear()
        elif _LEVELS.index(level) > _LEVELS.index("info"):
            hidden = ("role", "configuration")
            self.facts = {fact: text for fact, text in self.facts.items() if fact[0] not in hidden}

    def _note_for_now(self, fact: Fact, text: str) -> None:
        self.facts[fact] = text
        self._momentary.add(fact)

    def _read_states(self, text: str, level: str) -> None:
        for line in text.splitlines():
            if found := _STATE.match(line):
                self._note_for_now(("raft-state", int(found[1])), found[2])
            elif line != "ok" or level != "none":
                self.not_understood.append(line)

    def _read_progress(self, leader: int, text: str) -> None:
        for line in text.splitlines():
            if found := _PROGRESS.match(line):
                peer = int(found[1])
                self._note_for_now(("progress", leader, peer), f"{found[2]}{found[4] or ''}")
                self.details["flow", leader, peer] = f"{found[3]}{found[5]}".strip()
            elif line != "ok":
                self.not_understood.append(line)

    def _read_log(self, node: int, text: str, level: str) -> None:
        if level != "none" or text.strip() != "ok":
            lines = [_entry(line) or line.strip() for line in text.splitlines()]
            self._note_for_now(("raft-log", node), "\n".join(lines))

    def _read_news(self, directive: Directive, level: str) -> None:
        errors, strangers = [], set()
        several = directive.command.name != "propose-conf-change" and bool(directive.input)
        if several:
            # Readys of several commands stand one after another, and nothing says whose they are.
            self.facts.clear()
        for node, section, line in _by_node(directive):
            if line == STRANGER:
                strangers.add(node)
            elif line in _OUTPUTS:
                errors.append(line)
            elif self._read_info(line) or (not several and self._read_ready(node, section, line)):
                pass
            elif _READY.match(line) is None and _NOT_COMPARED.match(line) is None:
                self.not_understood.append(line)
        if level != "none" or errors:
            self._note_for_now(("errors",), "; ".join(sorted({*errors} - IDLE)))
        if IDLE & {*errors}:
            self.details["idle",] = "; ".join(sorted(IDLE & {*errors}))
        if level != "none":
            self._note_for_now(("answers from strangers to",), _listed(strangers))
        if _LEVELS.index(level) <= _LEVELS.index("info"):
            refused = {int(found[1], 16) for found in map(_REFUSED.match, _lines(directive)) if found}
            self._note_for_now(("changes refused by",), _listed(refused))

    def _read_ready(self, node: int, section: str, line: str) -> bool:
        if section and (found := _ENTRY.match(line)):
            index = int(found[2])
            self.facts[section, node, index] = _entry(line) or ""
            self._end_log(section, node, index)
        elif line.startswith("HardState "):
            self.facts["hard state", node] = line.removeprefix("HardState ")
        elif re.match(r"^Lead:\d+ State:\w+$", line):
            self.facts["soft state", node] = line
        elif found := _SNAPSHOT.match(line):
            self.facts["snapshot", node] = f"{found[1]} {found[2]}"
            for fact in [fact for fact in self.facts if fact[0] == "entry" and fact[1] == node]:
                del self.facts[fact]
            self.facts.pop(("last of entry", node), None)
        else:
            return False
        return True

    def _read_info(self, line: str) -> bool:
        if found := _ROLE.match(line):
            self.facts["role", int(found[1], 16)] = f"{_ROLE_NAMES[found[2]]} Term:{found[3]}"
        elif found := _CONFIGURATION.match(line):
            self.facts["configuration", int(found[1], 16)] = found[2]
        elif found := _NEW.match(line):
            self._note_for_now(("new", int(found[1], 16)), found[2])
        else:
            return False
        return True

    def _end_log(self, section: str, node: int, index: int) -> None:
        """News of entries end the log there: what was behind has been cut off."""
        for fact in list(self.facts):
            if fact[:2] == (section, node) and isinstance(fact[2], int) and fact[2] > index:
                del self.facts[fact]
        self.facts[f"last of {section}", node] = str(index)


def _by_node(directive: Directive) -> Iterator[tuple[int, str, str]]:
    """Each line with the node whose Ready it is part of (0 if none), and the list it stands in."""
    command = directive.command
    node, section, message_is_open = 0, "", False
    if command.name.startswith(("process-", "deliver-")) and command.plain:
        node = int(command.plain[0])
    for line in _lines(directive):
        if message_is_open:
            message_is_open = not line.startswith("]")
        elif line in _SECTIONS:
            section = _SECTIONS[line]
        elif found := _HEADER.match(line):
            node, section = int(found[1]), ""
        else:
            message_is_open = "->" in line and line.endswith("[")
            if command.name.startswith("deliver-") and (to := re.match(r"^\w+->(\w+) Msg", line)):
                node = int(to[1], 16)
            yield node, section, line


def _lines(directive: Directive) -> list[str]:
    return [line.strip() for line in directive.expected.splitlines()]


def _entry(line: str) -> str | None:
    found = _ENTRY.match(line.strip())
    return f"{found[1]}/{found[2]} {found[3]}{found[4]}".rstrip() if found else None


def _listed(nodes: set[int]) -> str:
    return " ".join(map(str, sorted(nodes))) or "nobody"
