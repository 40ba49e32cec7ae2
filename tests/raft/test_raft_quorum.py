"""Majority and joint arithmetic, held to etcd-io/raft's tables and to the definition."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lockd.ids import NodeId
from lockd.raft.quorum import UNBOUNDED, VoteResult, acknowledged_by_quorum, vote_result

TABLES = Path(__file__).parents[2].parent / "shared/conformance/etcd-raft/quorum"
NAMES = {VoteResult.WON: "VoteWon", VoteResult.LOST: "VoteLost", VoteResult.PENDING: "VotePending"}


@dataclass(frozen=True)
class Directive:
    where: str
    command: str
    arguments: dict[str, list[str]]
    expected: str

    def voters(self, name: str) -> list[NodeId]:
        return [NodeId(int(text)) for text in self.arguments.get(name, []) if text != "zero"]

    def answers(self, name: str) -> dict[NodeId, str]:
        """Answers are listed for each voter once, incoming voters before outgoing ones."""
        voters = dict.fromkeys(self.voters("cfg") + self.voters("cfgj"))
        given = zip(voters, self.arguments.get(name, []), strict=True)
        return {voter: answer for voter, answer in given if answer != "_"}


def read_directives(path: Path) -> Iterator[Directive]:
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        if line != "----":
            continue
        command, _, rest = lines[number - 1].partition(" ")
        found = re.findall(r"(\w+)=(\([^)]*\)|\S+)", rest)
        arguments = {
            name: [part.strip() for part in value.strip("()").split(",") if part.strip()]
            for name, value in found
        }
        output = list(itertools.takewhile(bool, lines[number + 1 :]))
        yield Directive(f"{path.name}:{number}", command, arguments, output[-1])


def test_quorum_arithmetic_agrees_with_all_127_of_etcds_directives() -> None:
    if not TABLES.is_dir():
        pytest.skip(f"CONFORMANCE NOT CHECKED: etcd's quorum tables are not at {TABLES}")
    directives = [directive for path in sorted(TABLES.glob("*.txt")) for directive in read_directives(path)]
    assert len(directives) == 127
    for directive in directives:
        voters, outgoing = directive.voters("cfg"), directive.voters("cfgj")
        if directive.command == "committed":
            indexes = {voter: int(text) for voter, text in directive.answers("idx").items()}
            index = acknowledged_by_quorum(voters, outgoing, indexes)
            text = "∞" if index == UNBOUNDED else str(index)
            expected = directive.expected.removeprefix("<empty majority quorum>")
        else:
            assert directive.command == "vote"
            votes = {voter: text == "y" for voter, text in directive.answers("votes").items()}
            text, expected = NAMES[vote_result(voters, outgoing, votes)], directive.expected
        assert text == expected, directive.where


def subsets(voters: tuple[NodeId, ...]) -> list[tuple[NodeId, ...]]:
    return [chosen for size in range(len(voters) + 1) for chosen in itertools.combinations(voters, size)]


def is_quorum(chosen: tuple[NodeId, ...], *halves: tuple[NodeId, ...]) -> bool:
    return all(2 * len(set(half) & set(chosen)) > len(half) for half in halves if half)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("overlap", [0, 1, 2])
def test_both_answers_are_those_of_the_definition_of_a_joint_quorum(size: int, overlap: int) -> None:
    """§6: a joint decision needs a majority of each half."""
    voters = tuple(NodeId(i) for i in range(1, size + 1))
    outgoing = tuple(NodeId(i) for i in range(size + 1 - min(overlap, size), size + 2))
    for half in ((), outgoing):
        everyone = tuple(sorted({*voters, *half}))
        for granting in subsets(everyone):
            votes = {voter: voter in granting for voter in everyone}
            won = is_quorum(granting, voters, half)
            assert vote_result(voters, half, votes) is (VoteResult.WON if won else VoteResult.LOST)
            numbers = {voter: 7 if voter in granting else 3 for voter in everyone}
            assert acknowledged_by_quorum(voters, half, numbers) == (7 if won else 3)


def test_answers_of_strangers_do_not_count() -> None:
    """C5: who is no voter decides nothing."""
    voters = [NodeId(1), NodeId(2), NodeId(3)]
    strangers = {NodeId(7): True, NodeId(8): True, NodeId(1): True}
    assert vote_result(voters, [], strangers) is VoteResult.PENDING
    assert acknowledged_by_quorum(voters, [], {NodeId(7): 9, NodeId(8): 9, NodeId(1): 9}) == 0
