"""etcd's tables of configuration changes, answered by lockd.raft.membership.

The configuration is compared whole, and so is each member's progress. That is made by the
state of a leader who is no member, whose log grows by an entry with each directive: in etcd's tables
`next` tells in which directive a member was added.
"""

from lockd.ids import NO_NODE, LogIndex, NodeId, Term
from lockd.raft.entries import Configuration, EntryKind, HardState
from lockd.raft.log import Log
from lockd.raft.membership import MembershipError, enter_joint, leave_joint, simple
from lockd.raft.state import RaftConfig, RaftState, Role
from tests.conformance.datadriven import Directive
from tests.conformance.wording import OBJECTIONS, PACES, changes_of, describe_configuration

_OBSERVER = NodeId(1_000_000)


class Changer:
    """The tables' subject: a configuration, empty at first, and the progress of its members."""

    def __init__(self) -> None:
        self._state = RaftState(
            RaftConfig(_OBSERVER),
            configuration=Configuration(()),
            hard_state=HardState(Term(0), NO_NODE, LogIndex(0)),
            log=Log(),
            draw=max,
            applied=None,
        )
        self._state.role = Role.LEADER

    def play(self, directive: Directive) -> tuple[str, str]:
        """Return the expected and the actual text. Raises ValueError for an unknown command."""
        try:
            self._state.change_configuration(self._changed(directive))
            actual = self._describe()
        except MembershipError as error:
            actual = OBJECTIONS[error.objection]
        self._state.log.append(Term(0), EntryKind.COMMANDS, b"")
        return directive.expected.strip(), actual

    def _changed(self, directive: Directive) -> Configuration:
        configuration = self._state.configuration
        changes = changes_of(directive.input)
        match directive.command.name:
            case "simple":
                return simple(configuration, changes)
            case "enter-joint":
                auto_leave = directive.command.value("autoleave") == "true"
                return enter_joint(configuration, changes, auto_leave=auto_leave)
            case "leave-joint":
                return leave_joint(configuration)
            case name:
                raise ValueError(f"unknown command {name!r}")

    def _describe(self) -> str:
        lines = [describe_configuration(self._state.configuration)]
        for peer, progress in self._state.progress.items():
            line = f"{peer}: {PACES[progress.pace]} match={progress.match_index} next={progress.next_index}"
            lines.append(f"{line} learner" if peer in self._state.configuration.learners else line)
        return "\n".join(lines)
