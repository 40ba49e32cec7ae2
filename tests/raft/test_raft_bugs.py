"""Bugs that real systems had, and the tests that would find them here: one row each.

Where an older test has the scenario already, the row names it; the others are in
`test_raft_bugs_core` and `test_raft_bugs_layers`.

 1 | hashicorp/raft#695: a heartbeat on another thread moved the term in mid-leadership
   | test_raft_rules_durability::test_c1_a_leader_stamps_entries_only_with_the_term_it_leads
 2 | hazelcast#16643: the vote was deleted by a step-down in the same term
   | test_raft_rules_elections::test_c4_a_step_down_in_the_same_term_keeps_the_vote
 3 | PySyncObj#202: term and vote not on disk, committed data overwritten after a full restart
   | test_raft_bugs_core::test_bug_03_pysyncobj_202_a_restart_of_all_overwrites_nothing
   | test_raft_rules_durability::test_d2_term_and_vote_survive_a_restart
 4 | PySyncObj 0.3.17: one voter counted twice, acks without a term
   | test_raft_rules_elections::test_c4_one_voter_answering_twice_is_one_vote
   | test_raft_rules_log::test_c3_an_ack_from_another_term_does_not_count
 5 | butaneprotocol/oracles#32: heartbeats of an old term suppressed elections
   | test_raft_rules_elections::test_c5_messages_of_an_old_term_suppress_no_election
 6 | hashicorp/raft#605, #609: the own pre-vote refused; a granted pre-vote taken for contact
   | test_raft_bugs_core::test_bug_06_hashicorp_605_a_leader_of_before_counts_its_own_pre_vote
   | test_raft_paper_elections::test_5_4_1_only_a_granted_vote_restarts_the_timer
 7 | nebula#2419: the same vote asked for again in the same term was refused
   | test_raft_rules_elections::test_c4_the_same_candidate_is_granted_its_vote_again
 8 | logcabin#44: an old term's entry committed by counting (Figure 8)
   | test_raft_rules_log::test_c3_figure_8_an_old_entry_on_a_majority_is_not_committed_by_counting
 9 | PySyncObj: matching entries truncated by a late append
   | test_raft_rules_log::test_c3_a_late_or_repeated_append_truncates_nothing
10 | PySyncObj#167, #166, openraft#1501: match index or commit index went back
   | test_raft_rules_log::test_c3_a_late_ack_moves_neither_match_index_nor_commit_index_back
   | test_raft_rules_log::test_c3_a_late_refusal_moves_match_index_not_back
   | test_raft_rules_log::test_c3_a_repeated_heartbeat_moves_commit_index_not_back
11 | etcd-io/raft, async_storage_writes_append_aba_race: a stale storage ack
   | test_raft_rules_durability::test_c2_the_append_aba_race
   | test_raft_rules_snapshots::test_c9_writes_that_were_under_way_vouch_for_nothing_after_a_snapshot
12 | etcd-io/raft#149: Next <= Match
   | test_raft_bugs_core::test_bug_12_etcd_raft_pr_149_next_index_stays_above_match_index
13 | etcd#14370: a single voter acknowledged before its own fsync
   | test_raft_rules_durability::test_c2_a_single_voter_commits_after_its_own_sync
   | test_server_driver_durable::test_d1_a_single_node_answers_after_its_own_disk
14 | Ongaro, raft-dev 2015: two single-server changes across a leader change, disjoint quorums
   | test_raft_bugs_core::test_bug_14_ongaro_2015_no_disjoint_quorums_across_a_leader_change
   | test_raft_rules_membership::test_c7_no_change_before_the_leaders_no_op_is_committed
15 | etcd-io/raft#456: a campaign with a committed change that is not applied
   | test_raft_rules_membership::test_c7_no_campaign_with_a_change_that_is_committed_and_not_applied
   | test_raft_rules_membership::test_c7_the_commit_index_is_on_disk_with_the_entries_that_rest_on_it
16 | drmingdrmer/raft-rejoin-bug: removed and added again in one term, late acks count
   | test_raft_bugs_core::test_bug_16_rejoin_survey_a_late_ack_of_a_removed_node_moves_nobody
   | test_locks_members::test_c8_a_removed_id_is_never_used_again
   | test_server_membership::test_c8_an_id_is_used_once
17 | camunda#60086: an inherited joint configuration left before it was committed
   | test_raft_bugs_core::test_bug_17_camunda_60086_an_inherited_joint_mode_is_committed_before_it_is_left
18 | etcd-io/raft, campaign_learner_must_vote: a voter that takes itself for a learner refuses to vote
   | test_raft_paper_membership::test_a_voter_that_thinks_it_is_a_learner_votes
19 | matrixone#24966: a snapshot's stale membership won
   | test_raft_bugs_core::test_bug_19_matrixone_24966_a_stale_snapshots_membership_does_not_win
20 | etcd#7331, tikv#6340, #9239, redisraft#22: ReadIndex before the leader committed in its term
   | test_raft_rules_reads::test_c6_no_read_before_an_entry_of_the_own_term_is_committed
   | test_server_driver_reads::test_c6_a_new_leader_serves_none_before_an_entry_of_its_term_is_committed
21 | etcd#20418: late heartbeat acks confirmed a retried ReadIndex on a paused old leader
   | test_raft_rules_reads::test_c6_an_answer_to_an_earlier_round_does_not_confirm_a_later_read
   | test_raft_rules_reads::test_c6_a_leader_that_was_replaced_while_it_slept_confirms_nothing
22 | etcd#12704, etcd-io/raft#99, #166: a lease outlived by a transfer or a pause
   | test_raft_bugs_core::test_bug_22_etcd_12704_no_lease_outlives_a_transfer_or_a_pause
   | test_process_nemesis::test_t3_a_leader_that_slept_past_its_leases_says_nothing_of_them
23 | etcd#6378, #6379, #14098: a reordered or torn append left a node that does not start
   | test_disk_torn_or_damaged::test_d3_write_cut_at_any_byte_recovers_the_state_before_it
   | test_disk_torn_or_damaged::test_d3_any_subset_of_sectors_recovers_the_state_before_it
24 | Jepsen, NATS 2.12.1: lazy fsync and one power loss lost acknowledged data
   | test_disk_segments::test_d1_d2_d3_power_lost_at_every_step_loses_nothing_that_was_durable
   | test_server_driver_durable::test_d1_nothing_is_answered_before_a_quorum_has_it_on_disk
   | test_server_driver_durable::test_p3_what_was_answered_survives_the_power_loss_of_all
25 | Jepsen, NATS 2.12.1: a node with damaged data was elected and deleted the others' data
   | test_disk_torn_or_damaged::test_d3_every_flipped_bit_of_a_complete_batch_refuses_with_file_and_offset
   | test_disk_recovery::test_d3_a_log_that_became_zeros_refuses
   | test_disk_segments::test_d3_a_damaged_log_does_not_open_and_is_left_as_it_is
   | test_raft_rules_log::test_c3_a_leader_that_contradicts_a_committed_entry_stops_the_node
26 | etcd 3.5 postmortem, #13766, #13854: the applied index saved apart from the state
   | test_raft_bugs_layers::test_bug_26_etcd_13766_the_applied_index_and_the_state_are_one
27 | rqlite#2759, #2747: a failed restore applied twice; the index of a snapshot never restored
   | test_raft_paper_snapshots::test_7_c9_the_answer_leaves_when_the_snapshot_is_on_disk
   | test_disk_snapshots::test_c9_what_is_not_whole_is_thrown_away_and_never_gets_a_name
   | test_disk_compaction::test_d3_a_snapshot_that_is_missing_or_damaged_or_of_another_cluster_refuses
28 | PySyncObj#197: a commit index on disk past the journal's end, a start that never ends
   | test_raft_bugs_layers::test_bug_28_pysyncobj_197_no_crash_leaves_a_commit_index_past_the_log
   | test_raft_rules_durability::test_d3_a_disk_that_contradicts_itself_is_refused
29 | Jepsen, Redis-Raft 1b3fbf6: data loss on failover, split brain, stale and aborted reads
   | test_raft_chaos::test_the_promises_hold_through_chaos_and_progress_resumes
   | test_simulation::test_every_rule_holds_and_each_kind_of_trouble_is_met
   | test_process_nemesis::test_p1_p2_p3_histories_under_a_schedule_of_faults
30 | Jepsen, etcd 3.4.3: two holders after a pause
   | test_raft_bugs_layers::test_bug_30_jepsen_etcd_343_tokens_grow_over_restarts_and_restores
   | test_locks_restore::test_two_restores_of_one_backup_never_issue_the_same_tokens
   | test_client_cluster::test_p1_a_lease_ends_for_its_client_before_the_cluster_passes_it_on
31 | PySyncObj, batteries.py: expiry computed from the clients' clocks
   | test_locks_clock::test_t1_a_wait_ends_when_the_states_clock_says_so
   | test_server_driver_clock::test_t1_a_forwarded_command_is_stamped_by_the_leader_when_it_gets_there
   | test_process_nemesis::test_t1_clocks_that_jump_by_months_neither_end_leases_nor_freeze_them
"""

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]


def rows() -> dict[int, list[str]]:
    """Read the table: the tests of each bug, as file and function."""
    assert __doc__ is not None
    table: dict[int, list[str]] = {}
    number = 0
    for line in __doc__.splitlines():
        left, bar, text = line.partition(" | ")
        if bar and left.strip():
            number = int(left)
            assert number not in table
            table[number] = []
        elif bar:
            table[number].append(text.strip())
    return table


def functions_of(stem: str) -> set[str]:
    (path,) = TESTS.glob(f"*/{stem}.py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_bug_has_a_test_and_every_test_is_there() -> None:
    table = rows()
    assert list(table) == list(range(1, 32))
    missing = []
    for number, tests in table.items():
        assert tests, f"bug {number} has no test"
        for test in tests:
            stem, _, name = test.partition("::")
            if name not in functions_of(stem):
                missing.append(test)
    assert missing == []


def test_every_scenario_is_in_the_table() -> None:
    named = {test for tests in rows().values() for test in tests}
    for path in sorted((TESTS / "raft").glob("test_raft_bugs_*.py")):
        scenarios = {f"{path.stem}::{name}" for name in functions_of(path.stem) if name.startswith("test_")}
        assert scenarios <= named
