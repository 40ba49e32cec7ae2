"""What an operator changes: who the members are, and which of them leads (SAFETY C7).

Only the leader can do either. A node that is not asks the leader, and holds the wish until one is
known. The leader checks what can be checked before anything is in the log: a change is refused when
it would leave too few voters that answer now (unless forced), when another is under way, when the
id was ever used before. A node always joins as a learner; one that is to vote is promoted by the
leader, whoever that is by then, once it has caught up.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from lockd.ids import NO_NODE, NodeId, Term
from lockd.locks.codec import encode_batch
from lockd.locks.commands import AddMember, Batch, Changed, Outcome, PromoteMember, Refused, RemoveMember
from lockd.locks.machine import LockMachine
from lockd.raft.membership import Change, ChangeKind, ConfigurationChange
from lockd.raft.node import ChangeRefused, NotLeader, RaftNode, Role, TooMuchUncommitted
from lockd.server import frames
from lockd.server.leadership import Leadership
from lockd.server.proposals import Asked, Proposals

CAUGHT_UP_ENTRIES = 64
"""A learner that lacks no more than this of what is committed may vote."""
TRANSFER_TIMEOUTS = 2
"""Election timeouts after which a transfer that has not happened is given up."""
ASK_TIMEOUTS = 4
"""Election timeouts after which a wish that no leader was there for is given up. An election takes two."""
_NOT_ASKED = Term(0)

MemberOperation = AddMember | PromoteMember | RemoveMember
Wish = frames.ChangeMembers | frames.Transfer
Answer = Callable[[Outcome | None], None]
"""Gets the outcome, or None when this node does not lead."""


@dataclass(slots=True)
class _Question:
    ask_by_ms: int
    deadline_ms: int
    user: str
    wish: Wish
    done: Callable[[Outcome], None]
    asked: Term = _NOT_ASKED
    """The term whose leader was asked. It is not asked of another: that may do it a second time."""
    asked_of: NodeId = NO_NODE
    """That leader."""


@dataclass(slots=True)
class _Handover:
    to: NodeId
    deadline_ms: int
    asked: list[tuple[NodeId, Answer]]
    """Who asked for it, each with the target that was named; NO_NODE: whoever takes over."""


class Membership:
    """The operators' wishes at one node, and their fulfilment where it leads."""

    def __init__(
        self,
        *,
        node_id: NodeId,
        boot: int,
        raft: RaftNode,
        machine: Callable[[], LockMachine],
        proposals: Proposals,
        send: Callable[[NodeId, frames.Frame], bool],
        clock_ms: Callable[[], int],
        election_timeout_ms: int,
        hears: Callable[[NodeId], bool],
        leadership: Callable[[], Leadership | None],
    ) -> None:
        """`hears(node)`: the leader has heard of it within an election timeout."""
        self._node_id = node_id
        self._raft = raft
        self._machine = machine
        self._proposals = proposals
        self._send = send
        self._clock_ms = clock_ms
        self._election_timeout_ms = election_timeout_ms
        self._hears = hears
        self._leadership = leadership
        self._numbers = itertools.count(boot)
        self._open: dict[int, _Question] = {}
        self._handover: _Handover | None = None

    # What this node's operators ask.

    def ask(self, wish: Wish, *, user: str, deadline_ms: int, done: Callable[[Outcome], None]) -> None:
        """Have it done by the leader; `done` is called once."""
        ask_by_ms = self._clock_ms() + ASK_TIMEOUTS * self._election_timeout_ms
        self._open[next(self._numbers)] = _Question(ask_by_ms, deadline_ms, user, wish, done)

    def on_reply(self, number: int, outcome: Outcome | None) -> None:
        """The leader has answered; None: it does not lead, ask again."""
        question = self._open.get(number)
        if question is None:
            return
        if outcome is None:
            question.asked = _NOT_ASKED
            return
        del self._open[number]
        question.done(outcome)

    def fail_all(self, reason: str) -> None:
        for number, question in list(self._open.items()):
            code = "UNAVAILABLE" if question.asked == _NOT_ASKED else "UNKNOWN"
            self.on_reply(number, Refused(code, reason))

    def tick(self) -> None:
        """Ask the leader what is to be asked, give up what is overdue, promote who has caught up."""
        now_ms = self._clock_ms()
        for number, question in list(self._open.items()):
            if question.asked == _NOT_ASKED:
                if now_ms >= question.ask_by_ms:
                    self.on_reply(number, Refused("UNAVAILABLE", "no leader took it up"))
                else:
                    self._route(number, question)
            elif now_ms >= question.deadline_ms:
                self.on_reply(number, Refused("UNKNOWN", "the leader has not answered in time"))
            elif question.asked != self._raft.term:
                self._leader_has_changed(number, question)
        if self._leadership() is not None:
            self._promote_who_caught_up()
        self._settle_handover(now_ms)

    def _route(self, number: int, question: _Question) -> None:
        if self._raft.role is Role.LEADER:
            question.asked, question.asked_of = self._raft.term, self._node_id
            self.lead(question.wish, user=question.user, answer=lambda found: self.on_reply(number, found))
        elif self._raft.leader_id != NO_NODE:
            request = frames.OperatorRequest(number, question.user, question.wish)
            if self._send(self._raft.leader_id, request):
                question.asked, question.asked_of = self._raft.term, self._raft.leader_id

    def _leader_has_changed(self, number: int, question: _Question) -> None:
        """That is what a transfer was to bring about. What became of a change, the members tell."""
        leader = self._raft.leader_id
        if isinstance(question.wish, frames.ChangeMembers):
            refusal = Refused(
                "UNKNOWN", "the leader changed meanwhile: look at the members before asking again"
            )
            self.on_reply(number, refusal)
        elif leader != NO_NODE:
            self.on_reply(number, _taken_over(leader, question.asked_of, NodeId(question.wish.target)))

    # What the leader does.

    def lead(self, wish: Wish, *, user: str, answer: Answer) -> None:
        """Do it as the leader. `answer` is called once, maybe at once."""
        leadership = self._leadership()
        if leadership is None or not self._raft.is_leader_ready:
            answer(None)
            return
        match wish:
            case frames.Transfer(target):
                self._hand_over(NodeId(target), answer)
            case frames.ChangeMembers(operation, force):
                refusal = self._objection(operation, force=force)
                if refusal is not None:
                    answer(refusal)
                elif self._leaves_first(operation):
                    answer(None)  # the next leader is asked again
                else:
                    self._propose(operation, user, leadership, answer)

    def _leaves_first(self, operation: MemberOperation) -> bool:
        """Hand over before this leader is removed itself, if anyone can take over; tell whether it does.

        With two voters the other one could not go on: it needs this one's word that the removal is
        committed, and this one has left the cluster as soon as it knows.
        """
        others = self._other_voters()
        if not isinstance(operation, RemoveMember) or operation.node != self._node_id or not others:
            return False
        self._raft.transfer_leadership(self._newest(others))
        return True

    def _other_voters(self) -> list[NodeId]:
        """Those that answer."""
        voters = self._raft.configuration.voters
        return [node for node in voters if node != self._node_id and self._hears(node)]

    def _newest(self, nodes: list[NodeId]) -> NodeId:
        return max(nodes, key=lambda node: self._raft.progress[node].match_index)

    def _objection(self, operation: MemberOperation, *, force: bool) -> Refused | None:
        refusal = self._machine().objection_to(operation)
        if refusal is not None:
            return refusal
        configuration = self._raft.configuration
        node = NodeId(operation.node)
        is_member = node in configuration.members
        if isinstance(operation, AddMember):
            if is_member:
                return Refused("ERR", f"node {node} is a member already")
            return self._address_in_use(operation.peer_address)
        voters = {*configuration.voters}
        if isinstance(operation, PromoteMember):
            if node not in configuration.learners:
                return Refused("ERR", f"node {node} is {'a voter already' if is_member else 'no member'}")
            if not force and not self._has_caught_up(node):
                text = f"node {node} has not caught up with the log yet"
                if not self._hears(node):
                    return self._silence(f"{text}, and does not answer: start it, or say FORCE")
                return Refused("UNAVAILABLE", text)
            voters.add(node)
        else:
            if not is_member:
                return Refused("ERR", f"node {node} is no member")
            voters.discard(node)
            if not voters:
                return Refused("ERR", f"node {node} is the last voter: a cluster can't be without one")
        return None if force else self._too_few_answer(voters)

    def _too_few_answer(self, voters: set[NodeId]) -> Refused | None:
        silent = sorted(node for node in voters if node != self._node_id and not self._hears(node))
        needed = len(voters) // 2 + 1
        if len(voters) - len(silent) >= needed:
            return None
        names = ", ".join(map(str, silent))
        return self._silence(
            f"of the {len(voters)} voters after this change {needed} must answer, and nodes {names} do not: "
            "bring them back first, or say FORCE",
        )

    def _silence(self, text: str) -> Refused:
        """Refuse because a node is silent; a leader that is new may yet hear of it: ask again."""
        leadership = self._leadership()
        is_certain = leadership is not None and leadership.has_listened(self._election_timeout_ms)
        return Refused("ERR" if is_certain else "UNAVAILABLE", text)

    def _address_in_use(self, address: str) -> Refused | None:
        machine = self._machine()
        for node in self._raft.configuration.members:
            known, member = machine.nodes.get(node), machine.members.get(node)
            if address in {known.peer_address if known else "", member.peer_address if member else ""}:
                return Refused("ERR", f"{address} is the address of node {node}")
        return None

    def _propose(
        self,
        operation: MemberOperation,
        user: str,
        leadership: Leadership,
        answer: Answer,
    ) -> None:
        kind = {
            AddMember: ChangeKind.ADD_LEARNER,
            PromoteMember: ChangeKind.ADD_VOTER,
            RemoveMember: ChangeKind.REMOVE,
        }[type(operation)]
        command = self._proposals.begin(Asked(operation, user=user), answer)
        stamp_ms = leadership.clock_ms
        context = encode_batch(Batch(Batch.VERSION, stamp_ms, (command,)))
        change = ConfigurationChange((Change(kind, NodeId(operation.node)),), context=context)
        try:
            self._raft.propose_change(change)
        except (ChangeRefused, NotLeader, TooMuchUncommitted) as error:
            self._proposals.calls.complete(command.origin.operation, Refused("UNAVAILABLE", str(error)))
        else:
            leadership.stamped(stamp_ms)

    def _promote_who_caught_up(self) -> None:
        raft = self._raft
        if raft.has_change_pending:
            return
        for node in raft.configuration.learners:
            member = self._machine().members.get(node)
            if member is not None and member.wants_vote and self._has_caught_up(node):
                wish = frames.ChangeMembers(PromoteMember(node), force=False)
                self.lead(wish, user="", answer=lambda _: None)
                return

    def _has_caught_up(self, node: NodeId) -> bool:
        progress = self._raft.progress.get(node)
        if progress is None or not self._hears(node) or not progress.match_index:
            return False
        return progress.match_index + CAUGHT_UP_ENTRIES >= self._raft.commit_index

    # Handing over.

    def _hand_over(self, target: NodeId, answer: Answer) -> None:
        raft = self._raft
        others = self._other_voters()
        if target == self._node_id:
            answer(Changed(0))
        elif target != NO_NODE and target not in raft.configuration.voters:
            answer(Refused("ERR", f"node {target} is no voter: it can't lead"))
        elif self._handover is not None and target in {NO_NODE, self._handover.to}:
            self._handover.asked.append((target, answer))
        elif not others or target not in {NO_NODE, *others}:
            silent = f"node {target} does not answer" if target != NO_NODE else "no other voter answers"
            answer(self._silence(f"{silent}: leadership stays here"))
        elif self._handover is not None:
            answer(Refused("UNAVAILABLE", f"leadership is being handed to node {self._handover.to} already"))
        else:
            to = self._newest(others) if target == NO_NODE else target
            deadline_ms = self._clock_ms() + TRANSFER_TIMEOUTS * self._election_timeout_ms
            self._handover = _Handover(to, deadline_ms, [(target, answer)])
            raft.transfer_leadership(to)

    def _settle_handover(self, now_ms: int) -> None:
        handover = self._handover
        if handover is None:
            return
        leader = self._raft.leader_id
        if leader not in {NO_NODE, self._node_id}:
            self._handover = None
            for target, answer in handover.asked:
                answer(_taken_over(leader, self._node_id, target))
        elif now_ms >= handover.deadline_ms:
            self._handover = None
            for _, answer in handover.asked:
                answer(Refused("UNKNOWN", f"node {handover.to} has not taken over in time"))


def _taken_over(leader: NodeId, before: NodeId, target: NodeId) -> Outcome:
    """What a transfer from `before` has come to, now that `leader` leads; target NO_NODE: to anyone."""
    if leader == target or (target == NO_NODE and leader != before):
        return Changed(1)
    return Refused("UNKNOWN", f"node {leader} leads now")
