"""Bugs by which a node promises too early or too much: with a vote, an ack, an answer, a snapshot.

They were invented by readers who tried to get past the tests; the marked ones did.
"""

from tests.mutations.mutation import Mutation

_DURABILITY = "tests/raft/test_raft_rules_durability.py"
_ELECTIONS = "tests/raft/test_raft_rules_elections.py"
_MEMBERSHIP = "tests/raft/test_raft_rules_membership.py"
_REPLICATION = "tests/raft/test_raft_paper_replication.py"
_SNAPSHOTS = "tests/raft/test_raft_rules_snapshots.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "a late append is acknowledged with the whole log, also with what an earlier leader left there",
        "C3",
        "lockd/raft/replication.py",
        "        _reply(state, append.sender, state.commit_index)\n",
        "        _reply(state, append.sender, state.log.last_index)\n",
        # Only one seed of 80 of the simulator noticed.
        (f"{_REPLICATION}::test_c3_a_late_append_vouches_for_no_more_than_what_is_committed",),
    ),
    Mutation(
        "a follower commits its own tail along with what it was sent",
        "C3",
        "lockd/raft/replication.py",
        "state.commit_to(min(append.commit_index, last))",
        "state.commit_to(min(append.commit_index, state.log.last_index))",
        (f"{_REPLICATION}::test_5_3_a_follower_commits_no_further_than_it_was_shown_to_agree",),
    ),
    Mutation(
        "in joint mode the incoming voters alone confirm a read",
        "T3",
        "lockd/raft/reads.py",
        "acknowledged_by_quorum(configuration.voters, configuration.voters_outgoing, acknowledged)",
        "acknowledged_by_quorum(configuration.voters, (), acknowledged)",
        ("tests/raft/test_raft_rules_reads.py::test_c6_in_joint_mode_a_read_needs_a_quorum_of_both_halves",),
    ),
    Mutation(
        "a restart forgets a vote that was cast in the term of the last entry",
        "C4",
        "lockd/raft/state.py",
        "        self.voted_for = hard_state.voted_for\n",
        "        self.voted_for = hard_state.voted_for if hard_state.term > log.last_term else NO_NODE\n",
        (f"{_DURABILITY}::test_d2_term_and_vote_survive_a_restart",),
    ),
    Mutation(
        "an answer to any round of pre-votes counts",
        "C4",
        "lockd/raft/election.py",
        "return state.role is Role.PRE_CANDIDATE and reply.term == expected",
        "return state.role is Role.PRE_CANDIDATE",
        (f"{_ELECTIONS}::test_c4_votes_of_another_term_or_round_do_not_count",),
    ),
    Mutation(
        "a leader of an old term holds back the next election",
        "C5",
        "lockd/raft/node.py",
        "            case AppendEntries() | Heartbeat() | InstallSnapshot():\n"
        "                if self._state.config.pre_vote",
        "            case AppendEntries() | Heartbeat() | InstallSnapshot():\n"
        "                self._state.election_elapsed = 0\n"
        "                if self._state.config.pre_vote",
        (f"{_ELECTIONS}::test_c5_messages_of_an_old_term_suppress_no_election",),
    ),
    Mutation(
        "that a change of members is committed is not on the disk before the next entry is",
        "P3",
        "lockd/raft/node.py",
        " and not self._change_committed:",
        ":",
        # It was so until the simulator lost a voter's disk and then the power of all.
        (f"{_MEMBERSHIP}::test_p3_a_change_outlives_the_power_of_all_and_the_loss_of_a_voter_of_before",),
    ),
    Mutation(
        "writes of before a snapshot vouch for what follows it",
        "C9",
        "lockd/raft/log.py",
        "        self._writes = deque((t, i, _NO_INDEX) for t, i, _ in self._writes)\n",
        "",
        (f"{_SNAPSHOTS}::test_c9_writes_that_were_under_way_vouch_for_nothing_after_a_snapshot",),
    ),
    Mutation(
        "a write is told durable with the one before it",
        "C2",
        "lockd/server/writes.py",
        "self._pending[0].ticket <= ticket:",
        "self._pending[0].ticket <= ticket + 1:",
        # Nothing noticed: the simulated disk told of a write as soon as it was synced.
        ("tests/server/test_server_writes.py",),
    ),
    Mutation(
        "a round answers also those who came after it had begun",
        "C6",
        "lockd/server/reads.py",
        "[number for number in self._rounds if number <= read.sequence]",
        "list(self._rounds)",
        ("tests/server/test_server_read_rounds.py",),
    ),
    Mutation(
        "a node's own snapshot takes the place of a leader's later one",
        "C9",
        "lockd/server/checkpoints.py",
        "        if not self._is_overtaken(meta):\n            self._raft.snapshot_taken(meta)\n",
        "        if True:\n            self._raft.snapshot_taken(meta)\n",
        ("tests/server/test_server_checkpoints_overtaken.py",),
    ),
    Mutation(
        "a pause is made up for, an election timeout a turn",
        "T1",
        "lockd/server/leadership.py",
        "        self._seen_ms = now_ms\n",
        "        self._seen_ms += elapsed\n",
        ("tests/server/test_server_driver_clock.py::test_t1_one_turn_adds_at_most_an_election_timeout",),
    ),
    Mutation(
        "hashes of nodes that do not vote make a quorum",
        "C11",
        "lockd/server/checkpoints.py",
        "agreed = [voter for voter in voters if hashes.get(voter) == theirs]",
        "agreed = [node for node in hashes if hashes[node] == theirs]",
        ("tests/server/test_server_checkpoints.py::test_c11_those_who_do_not_vote_are_no_quorum",),
    ),
    Mutation(
        "a piece of a snapshot speaks in its sender's present term",
        "C2",
        "lockd/server/snapshots.py",
        "InstallSnapshot(self._node_id, peer, outgoing.term, outgoing.meta)",
        "InstallSnapshot(self._node_id, peer, self._raft.term, outgoing.meta)",
        ("tests/server/test_server_checkpoints.py",),
    ),
)
