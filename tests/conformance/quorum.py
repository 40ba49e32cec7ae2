"""etcd's tables of majorities and joint majorities, answered by lockd.raft.quorum.

Of a `committed` table the number is compared, not the bars drawn beside it. As in etcd each
question is asked in every form that must have the same answer: the two halves exchanged, a
plain majority joined with nobody and with itself.
"""

from collections.abc import Sequence

from lockd.ids import NodeId
from lockd.raft.quorum import UNBOUNDED, VoteResult, acknowledged_by_quorum, vote_result
from tests.conformance.datadriven import Command, Directive

_VOTES = {VoteResult.PENDING: "VotePending", VoteResult.LOST: "VoteLost", VoteResult.WON: "VoteWon"}


def play(directive: Directive) -> tuple[str, str]:
    """Return the expected and the actual answer. Raises ValueError for an unknown command."""
    command = directive.command
    voters = _ids(command, "cfg")
    joint = command.values("cfgj") is not None
    outgoing = [] if command.values("cfgj") == ("zero",) else _ids(command, "cfgj")
    halves = [(voters, outgoing), (outgoing, voters)]
    if not joint:
        halves.append((voters, voters))
    key = "idx" if command.name == "committed" else "votes"
    answers = dict(zip(dict.fromkeys([*voters, *outgoing]), command.values(key) or (), strict=True))
    known = {node: answer for node, answer in answers.items() if answer != "_"}
    match command.name:
        case "committed":
            numbers = {node: int(answer) for node, answer in known.items()}
            found = {_number(acknowledged_by_quorum(one, two, numbers)) for one, two in halves}
        case "vote":
            votes = {node: answer == "y" for node, answer in known.items()}
            found = {_VOTES[vote_result(one, two, votes)] for one, two in halves}
        case name:
            raise ValueError(f"unknown command {name!r}")
    # Of no voters etcd draws a text without a line of its own.
    expected = directive.expected.splitlines()[-1].strip().removeprefix("<empty majority quorum>")
    return expected, " and ".join(sorted(found))


def _ids(command: Command, key: str) -> Sequence[NodeId]:
    return [NodeId(int(value)) for value in command.values(key) or ()]


def _number(index: int) -> str:
    return "∞" if index == UNBOUNDED else str(index)
