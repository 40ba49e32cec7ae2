"""Replication: from a proposal to a committed entry on every node (§5.3, §5.4.2).

A leader sends entries before its own disk has them (thesis §10.2.1) and ahead of the followers'
acks; its own copy counts like any other, when it is durable. Appends are made in
`offer_appends`, once per Ready, so that all proposals of one turn share a message.
"""

from lockd.errors import CorruptData
from lockd.ids import NO_NODE, LogIndex, NodeId, Term
from lockd.raft.entries import EntryKind
from lockd.raft.messages import AppendEntries, AppendEntriesReply, Heartbeat, HeartbeatReply
from lockd.raft.progress import Pace, Progress
from lockd.raft.quorum import acknowledged_by_quorum
from lockd.raft.state import NotLeader, RaftState, Role, TooMuchUncommitted


def lead(state: RaftState) -> None:
    """Take office with an empty entry: it commits whatever earlier terms left (§5.4.2, §8)."""
    state.become_leader()
    state.log.append(state.term, EntryKind.NOOP, b"")


def propose(state: RaftState, kind: EntryKind, payload: bytes) -> tuple[Term, LogIndex]:
    """Append an entry to the leader's log; return what identifies it. It may yet be overwritten.

    Raises NotLeader, and TooMuchUncommitted when the uncommitted tail would exceed its limit;
    a single larger payload passes when nothing else waits.
    """
    if state.role is not Role.LEADER:
        raise NotLeader(state.leader_id)
    uncommitted = state.uncommitted_bytes + len(payload)
    if state.uncommitted_bytes and uncommitted > state.config.uncommitted_bytes_max:
        raise TooMuchUncommitted(f"{state.uncommitted_bytes} bytes of the log wait to be committed")
    state.uncommitted_bytes = uncommitted
    return state.term, state.log.append(state.term, kind, payload)


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
            _send_append(state, peer, progress)
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
        if reply.match_index <= state.log.last_index and progress.acknowledged(reply.match_index):
            advance_commit(state)
    else:
        # §5.3: the follower's hint skips its divergent terms, our own log skips ours.
        agreed, _ = state.log.largest_index_within(reply.hint_index, reply.hint_term)
        progress.refused(reply.rejected_index, agreed)


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


def _send_append(state: RaftState, peer: NodeId, progress: Progress) -> None:
    previous = LogIndex(progress.next_index - 1)
    # With a full window only the position is checked, which tells whether messages were lost.
    last = previous if progress.is_window_full else state.log.last_index
    run = state.log.slice(progress.next_index, last, state.config.append_bytes_max)
    state.send(
        AppendEntries(
            state.node_id, peer, state.term, previous, state.log.term_at(previous), run, state.commit_index
        )
    )
    progress.sent(len(run), sum(map(len, run.payloads)), state.commit_index)
