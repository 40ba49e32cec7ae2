"""Bugs in the driver and between nodes: lockd/server."""

from tests.mutations.mutation import Mutation

_CLOCK = "tests/server/test_server_driver_clock.py"
_DURABLE = "tests/server/test_server_driver_durable.py"
_FRAMES = "tests/server/test_server_frames.py"
_ORIGINS = "tests/server/test_server_driver_origins.py"
_CHECKPOINTS = "tests/server/test_server_checkpoints.py"
_MEMBERSHIP = "tests/server/test_server_membership.py"
_MUTANTS = "tests/server/test_server_mutants.py"
_PEERS = "tests/server/test_server_peers.py"
_READS = "tests/server/test_server_driver_reads.py"
_RENEWALS = "tests/server/test_server_driver_renewals.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "a leader stamps with its machine's clock",
        "T1",
        "lockd/server/leadership.py",
        "        base = machine.clock_ms\n",
        "        base = now_ms\n",
        (f"{_CLOCK}::test_t1_a_new_leaders_stamps_go_on_from_the_states_clock_whatever_its_own_clock_says",),
    ),
    Mutation(
        "a leader stamps before its no-op is applied",
        "T1",
        "lockd/server/leadership.py",
        "        if self._raft.role is Role.LEADER:\n            return False\n",
        "        if self._raft.role is Role.LEADER:\n"
        "            if self.now is None:\n"
        "                self.begin()\n"
        "            return False\n",
        (f"{_CLOCK}::test_t1_nothing_is_stamped_before_the_leaders_no_op_is_applied",),
    ),
    Mutation(
        "a leader that was paused makes the clock jump",
        "T1",
        "lockd/server/leadership.py",
        "        elapsed = min(max(now_ms - self._seen_ms, 0), self.turn_ms_max)\n",
        "        elapsed = max(now_ms - self._seen_ms, 0)\n",
        (f"{_CLOCK}::test_t1_one_turn_adds_at_most_an_election_timeout",),
    ),
    Mutation(
        "a new leader counts a second of the one before it against every session",
        "T2",
        "lockd/server/leadership.py",
        "        book = LeaseBook(base, machine.lease_sessions(), machine.revoked())\n",
        "        book = LeaseBook(base - 1_000, machine.lease_sessions(), machine.revoked())\n",
        (f"{_CLOCK}::test_t2_a_new_leader_gives_every_session_its_full_ttl_from_its_own_no_op",),
    ),
    Mutation(
        "a renewal of a marked session is answered at once",
        "T2",
        "lockd/server/renewals.py",
        "                    on_outcome=lambda outcome: answer(self._with_notices(outcome)),\n                )\n",
        "                )\n                answer(SessionOpened(view.id, view.ttl_ms))\n",
        (f"{_RENEWALS}::test_t2_a_renewal_of_a_marked_session_is_answered_once_the_clearing_is_applied",),
    ),
    Mutation(
        "a keepalive is answered without a round of the quorum",
        "T3",
        "lockd/server/renewals.py",
        "        self._reads.lead_round(confirmed)\n",
        "        confirmed(self._raft.commit_index if self._raft.is_leader_ready else None)\n",
        (f"{_RENEWALS}::test_t3_an_isolated_leader_never_answers_even_though_it_still_takes_itself_for_one",),
    ),
    Mutation(
        "a round that is confirmed renews although the leader has lost office since",
        "T3",
        "lockd/server/renewals.py",
        "            if leadership is None or leadership.term != term:\n                answer(None)\n",
        "            if leadership is None or leadership.term != term:\n"
        "                answer(SessionOpened(session, view.ttl_ms) if view else None)\n",
        (
            f"{_RENEWALS}::test_t3_a_confirmed_leader_that_loses_office_before_it_has_applied_so_far_does_not_answer",
        ),
    ),
    Mutation(
        "an expiry that its leader could not log is logged by the next one",
        "T3",
        "lockd/server/proposals.py",
        "            elif is_decision(command):\n",
        "            elif False:\n",
        (f"{_RENEWALS}::test_t3_a_choice_that_its_leader_did_not_log_dies_with_the_leadership",),
    ),
    Mutation(
        "after an election all dead sessions end at once",
        "T4",
        "lockd/server/leadership.py",
        "        budget = min(self._expiry_credit_ms * EXPIRIES_PER_SECOND // 1000, EXPIRIES_PER_ENTRY)\n",
        "        budget = 1_000_000\n",
        (f"{_CLOCK}::test_t4_after_an_election_dead_sessions_end_at_a_limited_rate",),
    ),
    Mutation(
        "what Raft holds back for the disk is sent at once",
        "C2",
        "lockd/server/driver.py",
        "            self._writes.submit(write, last=last, messages=ready.send_after_durable)\n",
        "            self._writes.submit(write, last=last)\n"
        "            self._send_all(ready.send_after_durable)\n",
        (_DURABLE,),
    ),
    Mutation(
        "messages without a write of their own overtake the writes before them",
        "C2",
        "lockd/server/writes.py",
        "        if not self._pending:\n            self._send(messages)\n",
        "        if True:\n            self._send(messages)\n",
        (f"{_DURABLE}::test_c2_an_append_is_acknowledged_after_the_disk_has_it_also_when_it_is_repeated",),
    ),
    Mutation(
        "a committed entry is applied and answered before the own disk has it",
        "D1",
        "lockd/raft/state.py",
        "        return min(self.commit_index, self.log.persisted_index)\n",
        "        return self.commit_index\n",
        (f"{_DURABLE}::test_d1_what_is_committed_is_applied_and_answered_from_the_own_disk_alone",),
    ),
    Mutation(
        "a write is told durable when the disk took it",
        "D1",
        "lockd/server/writes.py",
        "        self._disk.submit(write)\n",
        "        self._disk.submit(write)\n        self.on_durable(write.ticket)\n",
        (f"{_DURABLE}::test_d1_nothing_is_answered_before_a_quorum_has_it_on_disk",),
    ),
    Mutation(
        "a command is answered when one node has it",
        "P3",
        "lockd/raft/quorum.py",
        "    return numbers[(len(numbers) - 1) // 2]\n",
        "    return numbers[-1]\n",
        (f"{_MUTANTS}::test_p3_what_was_answered_survives_the_loss_of_any_one_of_three",),
    ),
    Mutation(
        "a node that takes commands on a full disk",
        "D4",
        "lockd/server/driver.py",
        "        elif self.disk_is_full:\n",
        "        elif False:\n",
        (f"{_MEMBERSHIP}::test_d4_a_leader_whose_disk_is_full_hands_over_and_refuses_until_there_is_room",),
    ),
    Mutation(
        "a follower serves a read before it has applied what the leader had committed",
        "C6",
        "lockd/server/reads.py",
        "            self.when_applied(index, lambda: self._finish(number, None))\n",
        "            self._finish(number, None)\n",
        (f"{_READS}::test_c6_a_follower_serves_a_read_once_it_has_applied_what_the_leader_had_committed",),
    ),
    Mutation(
        "a late answer to an earlier boot answers a read of this one",
        "C6",
        "lockd/server/reads.py",
        "itertools.count(boot)",
        "itertools.count(1)",
        (f"{_READS}::test_c6_a_late_reply_to_an_earlier_boot_answers_nothing_of_the_next_one",),
    ),
    Mutation(
        "a node is added as a voter",
        "C7",
        "lockd/server/membership.py",
        "            AddMember: ChangeKind.ADD_LEARNER,\n",
        "            AddMember: ChangeKind.ADD_VOTER,\n",
        (f"{_MEMBERSHIP}::test_c7_a_node_joins_as_a_learner_and_votes_once_it_has_caught_up",),
    ),
    Mutation(
        "a learner is promoted before it has caught up",
        "C7",
        "lockd/server/membership.py",
        "            if not force and not self._has_caught_up(node):\n",
        "            if False:\n",
        (f"{_MUTANTS}::test_c7_a_learner_that_lags_behind_is_promoted_by_force_alone",),
    ),
    Mutation(
        "a change is begun whose new quorum can't be reached",
        "C7",
        "lockd/server/membership.py",
        "        return None if force else self._too_few_answer(voters)\n",
        "        return None\n",
        (f"{_MEMBERSHIP}::test_c7_a_change_whose_new_quorum_does_not_answer_is_refused_unless_forced",),
    ),
    Mutation(
        "a peer counts before its instance is bound durably",
        "C8",
        "lockd/server/driver.py",
        "        self._writes.submit(write, notify=(on_bound,))\n",
        "        self._writes.submit(write)\n        on_bound()\n",
        (f"{_DURABLE}::test_c8_a_peer_is_bound_once_the_disk_has_it",),
    ),
    Mutation(
        "another data directory is taken for a node whose id it has (the disk was lost)",
        "C8",
        "lockd/server/handshake.py",
        "    if bound is not None and bound != header.instance:\n        return frames.Refusal(",
        "    if False:\n        return frames.Refusal(",
        (f"{_PEERS}::test_c8_another_instance_under_a_bound_id_is_refused_and_told_that_it_is_replaced",),
    ),
    Mutation(
        "a node of another cluster is welcome",
        "C8",
        "lockd/server/handshake.py",
        "    if header.cluster and cluster and header.cluster != cluster:\n        return frames.Refusal(",
        "    if False:\n        return frames.Refusal(",
        (f"{_PEERS}::test_c8_whoever_does_not_belong_is_told_why",),
    ),
    Mutation(
        "a removed node is welcome",
        "C8",
        "lockd/server/handshake.py",
        "    if local.is_removed(sender):\n",
        "    if False:\n",
        (f"{_PEERS}::test_c8_set_peers_cuts_a_removed_node_off_and_tells_it_when_it_dials_again",),
    ),
    Mutation(
        "a node from before a restore is welcome",
        "G2",
        "lockd/server/handshake.py",
        "    if hello.incarnation and incarnation and hello.incarnation != incarnation:\n",
        "    if False:\n",
        (f"{_PEERS}::test_c8_whoever_does_not_belong_is_told_why",),
    ),
    Mutation(
        "a file is installed that is not the snapshot that was announced",
        "C9",
        "lockd/server/snapshots.py",
        "        if stored is None or stored.header.meta != meta:\n",
        "        if stored is None:\n",
        (f"{_MUTANTS}::test_c9_a_file_that_is_not_the_snapshot_that_was_announced_is_not_installed",),
    ),
    Mutation(
        "a piece of a snapshot that comes twice is taken twice",
        "C9",
        "lockd/server/snapshots.py",
        "        if chunk.offset == partial.received_bytes and chunk.data:\n",
        "        if chunk.data:\n",
        (f"{_MUTANTS}::test_c9_a_piece_that_arrives_twice_is_taken_once",),
    ),
    Mutation(
        "a node restarts at the state of its snapshot and applies from the log's beginning",
        "C9",
        "lockd/server/recovering.py",
        "        applied=snapshot.index if snapshot else None,\n",
        "        applied=None,\n",
        (
            f"{_MUTANTS}::test_c9_a_node_applies_after_its_restart_what_follows_its_snapshot_and_nothing_twice",
        ),
    ),
    Mutation(
        "a node whose state differs from the quorum's goes on",
        "C11",
        "lockd/server/checkpoints.py",
        "            if ours is not None and len(agreed) > len(voters) // 2:\n",
        "            if False:\n",
        (f"{_CHECKPOINTS}::test_c11_a_node_whose_state_differs_from_a_quorums_stops",),
    ),
    Mutation(
        "frames of another version are read as if they were of this one",
        "C11",
        "lockd/server/frames.py",
        "    if version != VERSION:\n",
        "    if version < VERSION:\n",
        (f"{_FRAMES}::test_c11_another_version_is_told_by_the_first_bytes",),
    ),
    Mutation(
        "the waits of a connection that is gone are not withdrawn",
        "G4",
        "lockd/server/proposals.py",
        "        if self.calls.connection_gone(connection):\n",
        "        if self.calls.connection_gone(connection) and False:\n",
        (f"{_ORIGINS}::test_g4_the_wait_of_a_gone_connection_ends_a_ttl_later",),
    ),
    Mutation(
        "the leader leaves the waits of a dead node",
        "G4",
        "lockd/server/leadership.py",
        "            elif node not in self._announced_gone:\n",
        "            elif False:\n",
        (f"{_ORIGINS}::test_g4_the_leader_withdraws_the_waits_of_a_dead_node",),
    ),
)
