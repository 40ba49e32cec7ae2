"""Replication: from a proposal to a committed entry on every node (§5.3, §5.4.2).

A leader sends entries before its own disk has them (thesis §10.2.1) and ahead of the followers'
acks; its own copy counts like any other, when it is durable. Appends are made in
`offer_appends`, once per Ready, so that all proposals of one turn share a message.
"""

from lockd.errors import CorruptData
from lockd.ids import NO_NODE, LogIndex, NodeId, Term
from lockd.raft.entries import EntryKind
from lockd.raft.membership import (
    LEAVE_JOINT,
    ConfigurationChange,
    MembershipError,
    apply_change,
    encode_change,
)
from lockd.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    TimeoutNow,
)
from lockd.raft.progress import Pace, Progress
from lockd.raft.quorum import acknowledged_by_quorum
from lockd.raft.state import ChangeRefused, NotLeader, RaftState, Role, TooMuchUncommitted


def lead(state: RaftState) -> None:
    """Take office with an empty entry: it commits whatever earlier terms left (§5.4.2, §8)."""
    state.become_leader()
    state.log.append(state.term, EntryKind.NOOP, b"")


def propose(state: RaftState, kind: EntryKind, payload: bytes) -> tuple[Term, LogIndex]:
    """Append an entry to the leader's log; return what identifies it. It may yet be overwritten.

    Raises NotLeader, also for a leader that is handing over or is no member any more, and
    TooMuchUncommitted when the uncommitted tail would exceed its limit; a single larger payload
    passes when nothing else waits.
    """
    if state.role is not Role.LEADER or state.transferee != NO_NODE or state.node_id not in state.progress:
        raise NotLeader(state.leader_id if state.role is not Role.LEADER else state.transferee)
    uncommitted = state.uncommitted_bytes + len(payload)
    if state.uncommitted_bytes and uncommitted > state.config.uncommitted_bytes_max:
        raise TooMuchUncommitted(f"{state.uncommitted_bytes} bytes of the log wait to be committed")
    return state.term, _append(state, kind, payload)


def propose_change(state: RaftState, change: ConfigurationChange) -> tuple[Term, LogIndex]:
    """As `propose`, for a membership change, which then has no other beside it until it is applied.

    Raises ChangeRefused as well: before the leader's first entry is committed, while another change
    is pending, or when this one can't follow the present configuration (SAFETY C7).
    """
    if state.role is not Role.LEADER:
        raise NotLeader(state.leader_id)
    if not state.is_leader_ready:
        raise ChangeRefused("this leader has not committed an entry of its own yet")
    if state.pending_change_index > state.last_applied:
        raise ChangeRefused(f"another change is under way, in entry {state.pending_change_index}")
    try:
        apply_change(state.configuration, change)
    except MembershipError as error:
        raise ChangeRefused(str(error)) from error
    return propose(state, EntryKind.CONFIGURATION, encode_change(change))


def configuration_applied(state: RaftState) -> None:
    """After a change took effect: quorums may be smaller now, and this node may have left (SAFETY C7)."""
    if state.role is not Role.LEADER:
        return
    configuration = state.configuration
    if state.config.step_down_on_removal and not state.is_voter:
        state.become_follower(state.term, NO_NODE)
        return
    if state.transferee not in {*configuration.voters, *configuration.voters_outgoing}:
        state.transferee = NO_NODE
    advance_commit(state)


def leave_joint_if_due(state: RaftState) -> None:
    """Have a leader end a joint mode that is to end by itself, once the entry that began it is applied.

    Not before: a joint configuration that is not committed must not be left (camunda#60086).
    """
    if (
        state.role is Role.LEADER
        and state.configuration.auto_leave
        and state.last_applied >= state.pending_change_index
    ):
        _append(state, EntryKind.CONFIGURATION, encode_change(LEAVE_JOINT))


def transfer_leadership(state: RaftState, to: NodeId) -> None:
    """Hand over to a voter once it has the whole log; nothing is accepted until it leads or time is over.

    Raises NotLeader. Who already leads, is asked already, or has no vote: nothing happens.
    """
    if state.role is not Role.LEADER:
        raise NotLeader(state.leader_id)
    voters = {*state.configuration.voters, *state.configuration.voters_outgoing}
    if to in {state.node_id, state.transferee} or to not in voters:
        return
    state.transferee = to
    state.election_elapsed = 0
    _hand_over_when_caught_up(state, to)


def tick_leader(state: RaftState) -> None:
    """Send heartbeats when they are due; each lets a stalled follower be sent one more append."""
    state.heartbeat_elapsed += 1
    if state.heartbeat_elapsed < state.config.heartbeat_ticks:
        return
    state.heartbeat_elapsed = 0
    for progress in state.progress.values():
        progress.resume_on_heartbeat = True
    state.broadcast_heartbeat()


def offer_appends(state: RaftState) -> None:
    """Send every follower what it lacks: entries as its window allows, or news of the commit index."""
    for peer, progress in state.progress.items():
        if peer == state.node_id:
            continue
        while not progress.paused and progress.next_index <= state.log.last_index:
            if not _send_append(state, peer, progress):
                break
        if not progress.paused and progress.lacks_commit(state.commit_index):
            _send_append(state, peer, progress)


def handle_append(state: RaftState, append: AppendEntries) -> None:
    """Take over entries of this term's leader (§5.3). The reply leaves when they are on disk.

    Raises CorruptData when the leader contradicts what is committed here: one of the two has
    lost data, and going on would spread it.
    """
    _follow(state, append.sender)
    log = state.log
    if append.prev_log_index < state.commit_index:
        # Committed entries are the same everywhere: agree on all of them, look at none.
        _reply(state, append.sender, state.commit_index)
    elif log.matches(append.prev_log_index, append.prev_log_term):
        last = log.merge(append.entries, commit_index=state.commit_index)
        state.commit_to(min(append.commit_index, last))
        _reply(state, append.sender, last)
    else:
        hint_index, hint_term = log.largest_index_within(append.prev_log_index, append.prev_log_term)
        state.send(
            AppendEntriesReply(
                state.node_id,
                append.sender,
                state.term,
                success=False,
                match_index=LogIndex(0),
                rejected_index=append.prev_log_index,
                hint_index=hint_index,
                hint_term=hint_term,
            )
        )


def handle_heartbeat(state: RaftState, heartbeat: Heartbeat) -> None:
    """Follow this term's leader, commit what it says, and confirm its ReadIndex round.

    Raises CorruptData when the leader counts on entries that this node has acknowledged and no
    longer has.
    """
    _follow(state, heartbeat.sender)
    if heartbeat.commit_index > state.log.last_index:
        raise CorruptData(
            f"this node has acknowledged entry {heartbeat.commit_index}, and its log ends at "
            f"{state.log.last_index}: this disk has lost entries. Replace this node; do not restart it."
        )
    state.commit_to(heartbeat.commit_index)
    state.send(HeartbeatReply(state.node_id, heartbeat.sender, state.term, heartbeat.read_sequence))


def refuse_old_leader(state: RaftState, sender: NodeId) -> None:
    """Tell a leader of an old term the present one, so that it steps down (SAFETY C5).

    With pre-vote a node in a higher term can't depose it by an election: that node would ignore
    the leader, and its pre-votes would be ignored by those who hear the leader.
    """
    state.send(AppendEntriesReply(state.node_id, sender, state.term, success=False, match_index=LogIndex(0)))


def handle_append_reply(state: RaftState, reply: AppendEntriesReply) -> None:
    """Move a follower's position, and the commit index with it."""
    progress = state.progress.get(reply.sender)
    if progress is None:
        return
    progress.active = True
    if reply.success:
        # Nobody can have more of this term than its leader: such an ack is not one of ours.
        known = reply.match_index <= state.log.last_index
        if known and progress.acknowledged(reply.match_index, log_base=state.log.base):
            advance_commit(state)
        _hand_over_when_caught_up(state, reply.sender)
    else:
        # §5.3: the follower's hint skips its divergent terms, our own log skips ours.
        agreed = reply.hint_index
        if agreed >= state.log.base:
            agreed, _ = state.log.largest_index_within(agreed, reply.hint_term)
        progress.refused(reply.rejected_index, agreed)


def handle_snapshot(state: RaftState, message: InstallSnapshot) -> None:
    """Take over a snapshot that this node's owner has whole, unless the log has all of it (§7).

    The answer leaves when it is durable. Unlike etcd this takes a snapshot whose configuration
    lacks this node, too: who has just been added finds itself in an entry after it, and until
    then it has no vote and stands for nothing.
    """
    _follow(state, message.sender)
    snapshot = message.snapshot
    if snapshot.index > state.commit_index:
        if state.log.matches(snapshot.index, snapshot.term):
            state.commit_to(snapshot.index)
        else:
            state.restore(snapshot)
    _reply(state, message.sender, state.commit_index)


def report_unreachable(state: RaftState, peer: NodeId) -> None:
    """Messages to the peer were lost: probe where it is, instead of sending on ahead."""
    progress = state.progress.get(peer)
    if progress is not None and progress.pace is Pace.REPLICATE:
        progress.become_probe()


def report_snapshot_failed(state: RaftState, peer: NodeId) -> None:
    """The snapshot did not arrive. The peer is probed again when it is heard of."""
    progress = state.progress.get(peer)
    if progress is not None and progress.pace is Pace.SNAPSHOT:
        progress.become_probe()
        progress.paused = True


def handle_heartbeat_reply(state: RaftState, reply: HeartbeatReply) -> None:
    """Note that the follower lives; once per heartbeat let a stalled flow of appends resume.

    Only a follower that lacks something or is being probed is sent an append, maybe an empty
    one: its answer shows where the follower is if the messages before were lost.
    """
    progress = state.progress.get(reply.sender)
    if progress is None:
        return
    progress.active = True
    if not progress.resume_on_heartbeat:
        return
    progress.resume_on_heartbeat = False
    if progress.pace is Pace.SNAPSHOT:
        return
    if progress.pace is Pace.PROBE or progress.match_index < state.log.last_index:
        _send_append(state, reply.sender, progress)


def acknowledge_own(state: RaftState) -> None:
    """Count the leader's own copy, as far as its disk has it (SAFETY C2; etcd#14370)."""
    progress = state.progress.get(state.node_id)
    if progress is not None and progress.acknowledged(state.log.persisted_index):
        advance_commit(state)


def advance_commit(state: RaftState) -> None:
    """Commit what a quorum has on disk, if it is of the leader's own term.

    §5.4.2, Figure 8: entries of earlier terms are committed only along with one of ours.
    """
    configuration = state.configuration
    matched = {peer: progress.match_index for peer, progress in state.progress.items()}
    index = LogIndex(acknowledged_by_quorum(configuration.voters, configuration.voters_outgoing, matched))
    if index > state.commit_index and state.log.term_at(index) == state.term:
        state.commit_to(index)


def _append(state: RaftState, kind: EntryKind, payload: bytes) -> LogIndex:
    state.uncommitted_bytes += len(payload)
    index = state.log.append(state.term, kind, payload)
    if kind is EntryKind.CONFIGURATION:
        state.pending_change_index = index
    return index


def _hand_over_when_caught_up(state: RaftState, peer: NodeId) -> None:
    if peer == state.transferee and state.progress[peer].match_index == state.log.last_index:
        state.send(TimeoutNow(state.node_id, peer, state.term))


def _follow(state: RaftState, leader_id: NodeId) -> None:
    if state.role is Role.LEADER or (
        state.role is Role.FOLLOWER and state.leader_id not in {NO_NODE, leader_id}
    ):
        raise CorruptData(
            f"nodes {state.leader_id} and {leader_id} both lead term {state.term}: a voter has lost its "
            "vote. A node was restored from an old disk or its id is used twice; find it before going on."
        )
    if state.role is Role.FOLLOWER:
        state.leader_id = leader_id
        state.election_elapsed = 0
    else:
        state.become_follower(state.term, leader_id)


def _reply(state: RaftState, leader_id: NodeId, match_index: LogIndex) -> None:
    state.send(
        AppendEntriesReply(state.node_id, leader_id, state.term, success=True, match_index=match_index)
    )


def _send_append(state: RaftState, peer: NodeId, progress: Progress) -> bool:
    """Send what comes next, or a snapshot when the log no longer has it; False if neither can be sent."""
    previous = LogIndex(progress.next_index - 1)
    if previous < state.log.base:
        return _send_snapshot(state, peer, progress)
    # With a full window only the position is checked, which tells whether messages were lost.
    last = previous if progress.is_window_full else state.log.last_index
    run = state.log.slice(progress.next_index, last, state.config.append_bytes_max)
    state.send(
        AppendEntries(
            state.node_id, peer, state.term, previous, state.log.term_at(previous), run, state.commit_index
        )
    )
    progress.sent(len(run), sum(map(len, run.payloads)), state.commit_index)
    return True


def _send_snapshot(state: RaftState, peer: NodeId, progress: Progress) -> bool:
    """Not to a peer that is silent: it would cost much and could not arrive."""
    snapshot = state.snapshot
    if snapshot is None or snapshot.index < state.log.base or not progress.active:
        return False
    state.send(InstallSnapshot(state.node_id, peer, state.term, snapshot))
    progress.become_snapshot(snapshot.index)
    return True
