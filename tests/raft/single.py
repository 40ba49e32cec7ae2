"""One node driven by hand: its peers are the test."""

from collections.abc import Sequence

from lockd.ids import NO_NODE, LogIndex, NodeId, Term
from lockd.raft.entries import Configuration, EntryKind, EntryRun, HardState, SnapshotMeta
from lockd.raft.log import Log
from lockd.raft.membership import Change, ChangeKind, ConfigurationChange, Transition, decode_change
from lockd.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
)
from lockd.raft.node import RaftConfig, RaftNode, Ready, Role

ELECTION_TICKS = 10
LATEST = 2 * ELECTION_TICKS - 1


def latest(_low: int, high: int) -> int:
    """Draw the longest timeout."""
    return high


def run_of(first: int, terms: Sequence[int]) -> EntryRun:
    """Make entries whose payload says which entry it is."""
    return EntryRun(
        LogIndex(first),
        tuple(map(Term, terms)),
        (EntryKind.COMMANDS,) * len(terms),
        tuple(f"{first + i}.{term}".encode() for i, term in enumerate(terms)),
    )


def make_node(
    terms: Sequence[int] = (),
    *,
    node_id: int = 1,
    voters: Sequence[int] = (1, 2, 3),
    learners: Sequence[int] = (),
    outgoing: Sequence[int] = (),
    term: int | None = None,
    voted_for: int = NO_NODE,
    commit: int = 0,
    log: EntryRun | None = None,
    config: RaftConfig | None = None,
) -> RaftNode:
    """Start a node from a disk with a log of those terms, or that `log`."""
    if term is None:
        term = terms[-1] if terms else 0
    return RaftNode(
        config or RaftConfig(NodeId(node_id)),
        configuration=configuration_of(voters, outgoing=outgoing, learners=learners),
        hard_state=HardState(Term(term), NodeId(voted_for), LogIndex(commit)),
        log=Log.from_run(log or run_of(1, terms)),
        draw=latest,
    )


def configuration_of(
    voters: Sequence[int] = (1, 2, 3), *, outgoing: Sequence[int] = (), learners: Sequence[int] = ()
) -> Configuration:
    incoming, before, listening = (tuple(map(NodeId, ids)) for ids in (voters, outgoing, learners))
    return Configuration(incoming, before, listening, auto_leave=bool(outgoing))


def change_of(words: str = "", transition: Transition = Transition.AUTO) -> ConfigurationChange:
    """Read a change as etcd writes it: v4 adds a voter, l4 a learner, r4 removes, u4 changes nothing."""
    kinds = dict(zip("vlru", ChangeKind, strict=True))
    changes = (Change(kinds[word[0]], NodeId(int(word[1:]))) for word in words.split())
    return ConfigurationChange(tuple(changes), transition)


def readies(node: RaftNode) -> list[Ready]:
    """Take what is ready, without a disk: nothing becomes durable."""
    found = []
    while (ready := node.ready()) is not None:
        found.append(ready)
        node.check_invariants()
    return found


def finish(node: RaftNode, ready: Ready) -> list[Message]:
    """Let the disk and the state machine finish a Ready; return what may leave only then."""
    if ready.append.terms:
        node.persisted(ready.append.terms[-1], ready.append.last)
    for kind, payload in zip(ready.committed.kinds, ready.committed.payloads, strict=True):
        if kind is EntryKind.CONFIGURATION:
            node.apply_change(decode_change(payload))
    if ready.committed.terms:
        node.applied(ready.committed.last)
    outgoing = []
    for message in ready.send_after_durable:
        if message.receiver == message.sender:
            node.step(message)
        else:
            outgoing.append(message)
    node.check_invariants()
    return outgoing


def settle(node: RaftNode) -> list[Message]:
    """Run the node with an instant disk until it rests; return all it sent to others."""
    sent: list[Message] = []
    while (ready := node.ready()) is not None:
        sent += ready.send_now
        sent += finish(node, ready)
    return sent


def tick(node: RaftNode, times: int = 1) -> list[Message]:
    """Let time pass with an instant disk; return what was sent."""
    sent: list[Message] = []
    for _ in range(times):
        node.tick()
        sent += settle(node)
    return sent


def step(node: RaftNode, *messages: Message) -> list[Message]:
    """Hand in messages with an instant disk; return what was sent."""
    for message in messages:
        node.step(message)
        node.check_invariants()
    return settle(node)


def make_candidate(node: RaftNode) -> list[Message]:
    """Bring a node with three or five voters into a real election; return its requests."""
    tick(node, LATEST)
    assert node.role is Role.PRE_CANDIDATE
    others = [voter for voter in node.configuration.voters if voter != 1]
    majority = len(node.configuration.voters) // 2
    return step(node, *(pre_vote_from(voter, node.term + 1) for voter in others[:majority]))


def make_leader(node: RaftNode) -> list[Message]:
    """Get a node elected; return what it sent on taking office."""
    make_candidate(node)
    others = [voter for voter in node.configuration.voters if voter != 1]
    majority = len(node.configuration.voters) // 2
    sent = step(node, *(vote_from(voter, node.term) for voter in others[:majority]))
    assert node.role is Role.LEADER
    return sent


def ready_leader(*voters: int, config: RaftConfig | None = None) -> RaftNode:
    """Return a leader of term 1, by default of three, whose no-op all the others have acknowledged."""
    node = make_node(voters=voters or (1, 2, 3), config=config)
    make_leader(node)
    step(node, *(ack_from(peer, 1, 1) for peer in node.configuration.voters if peer != 1))
    assert node.is_leader_ready
    return node


def joint_leader() -> RaftNode:
    """Return a leader of term 1 while voters 1 to 3 come and 3 to 5 go; nothing is committed yet."""
    node = make_node(voters=(1, 2, 3), outgoing=(3, 4, 5))
    tick(node, LATEST)
    step(node, *(pre_vote_from(peer, 1) for peer in (2, 3, 4)))
    step(node, *(vote_from(peer, 1) for peer in (2, 3, 4)))
    assert node.role is Role.LEADER
    return node


def terms_of(node: RaftNode) -> list[int]:
    """Return the terms in the node's log, from index 1."""
    return [node.log.term_at(LogIndex(i)) for i in range(1, node.log.last_index + 1)]


def propose(node: RaftNode, payload: bytes = b"x") -> LogIndex:
    return node.propose(EntryKind.COMMANDS, payload)[1]


def pre_vote_from(sender: int, term: int, *, granted: bool = True, receiver: int = 1) -> RequestVoteReply:
    return RequestVoteReply(NodeId(sender), NodeId(receiver), Term(term), granted, pre_vote=True)


def vote_from(
    sender: int, term: int, *, granted: bool = True, receiver: int = 1, commit: tuple[int, int] = (0, 0)
) -> RequestVoteReply:
    """`commit` is (index, term) of the last entry that the voter knows to be committed."""
    index, index_term = LogIndex(commit[0]), Term(commit[1])
    return RequestVoteReply(
        NodeId(sender),
        NodeId(receiver),
        Term(term),
        granted,
        pre_vote=False,
        commit_index=index,
        commit_term=index_term,
    )


def vote_request(
    sender: int,
    term: int,
    *,
    last: tuple[int, int] = (0, 0),
    commit: tuple[int, int] = (0, 0),
    pre_vote: bool = False,
    transfer: bool = False,
    receiver: int = 1,
) -> RequestVote:
    """`last` and `commit` are (index, term) of the candidate's last and last committed entry."""
    return RequestVote(
        NodeId(sender),
        NodeId(receiver),
        Term(term),
        LogIndex(last[0]),
        Term(last[1]),
        pre_vote,
        transfer,
        LogIndex(commit[0]),
        Term(commit[1]),
    )


def append_from(
    sender: int,
    term: int,
    *,
    prev: tuple[int, int] = (0, 0),
    terms: Sequence[int] = (),
    commit: int = 0,
    receiver: int = 1,
) -> AppendEntries:
    """`prev` is (index, term) of the entry before; `terms` those of the entries."""
    return AppendEntries(
        NodeId(sender),
        NodeId(receiver),
        Term(term),
        LogIndex(prev[0]),
        Term(prev[1]),
        run_of(prev[0] + 1, terms),
        LogIndex(commit),
    )


def ack_from(sender: int, term: int, match: int, *, receiver: int = 1) -> AppendEntriesReply:
    return AppendEntriesReply(
        NodeId(sender), NodeId(receiver), Term(term), success=True, match_index=LogIndex(match)
    )


def refusal_from(
    sender: int, term: int, rejected: int, hint: tuple[int, int], *, receiver: int = 1
) -> AppendEntriesReply:
    """`hint` is (index, term) of where the follower may agree."""
    return AppendEntriesReply(
        NodeId(sender),
        NodeId(receiver),
        Term(term),
        success=False,
        match_index=LogIndex(0),
        rejected_index=LogIndex(rejected),
        hint_index=LogIndex(hint[0]),
        hint_term=Term(hint[1]),
    )


def heartbeat_from(sender: int, term: int, *, commit: int = 0, sequence: int = 0) -> Heartbeat:
    return Heartbeat(NodeId(sender), NodeId(1), Term(term), LogIndex(commit), sequence)


def heartbeat_reply_from(sender: int, term: int, sequence: int = 0) -> HeartbeatReply:
    return HeartbeatReply(NodeId(sender), NodeId(1), Term(term), sequence)


def snapshot_from(
    sender: int, term: int, at: tuple[int, int], *, configuration: Configuration | None = None
) -> InstallSnapshot:
    """`at` is (index, term) of the last entry that the snapshot stands for."""
    meta = SnapshotMeta(LogIndex(at[0]), Term(at[1]), configuration or configuration_of())
    return InstallSnapshot(NodeId(sender), NodeId(1), Term(term), meta)


def timeout_now_from(sender: int, term: int) -> TimeoutNow:
    return TimeoutNow(NodeId(sender), NodeId(1), Term(term))
