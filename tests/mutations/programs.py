"""Bugs in what programs and people begin with: watches, elections and the command line."""

from tests.mutations.mutation import Mutation

_ELECTION = "tests/client/test_client_election.py"
_WATCH = "tests/client/test_client_watch.py"
_RUN = "tests/cli/test_cli_run.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "a watch goes on in a cluster that was restored",
        "G2",
        "lockd/client/watch.py",
        'self._incarnation and greeting.incarnation not in ("", self._incarnation)',
        "False",
        (f"{_WATCH}::test_g2_a_restored_cluster_is_another_past",),
    ),
    Mutation(
        "a forked child waits for its parent's watch",
        "K5",
        "lockd/client/feeds.py",
        "        if runtime.engine.is_closed:\n            raise StopIteration\n",
        "",
        (f"{_WATCH}::test_k5_a_forked_child_takes_nothing_of_its_parents_watch",),
        hangs=True,
    ),
    Mutation(
        "a leader that has lost its lease is not cancelled",
        "K3",
        "lockd/client/election.py",
        "OnLost.CANCEL",
        "OnLost.FLAG",
        (
            f"{_ELECTION}::test_a_leader_that_loses_its_lease_is_cancelled_and_leads_again_after_that_has_ended",
        ),
    ),
    Mutation(
        "a candidate that is stopped goes on waiting",
        "K4",
        "lockd/client/election.py",
        "        self._interrupt()\n",
        "",
        (f"{_ELECTION}::test_stopping_a_candidate_withdraws_it",),
    ),
    Mutation(
        "a candidate gives up when no node answers for a TTL",
        "K2",
        "lockd/client/election.py",
        "except (Unavailable, OutcomeUnknown, SessionExpired, NotHeld) as error:\n                if engine",
        "except (SessionExpired, NotHeld) as error:\n                if engine",
        (f"{_ELECTION}::test_k2_a_candidate_outlasts_a_cluster_that_does_not_answer",),
    ),
    Mutation(
        "a command that is paused with `lockd run` runs on past its lease",
        "K1",
        "lockd/cli/guard.py",
        "    child.send(signal.SIGKILL)\n",
        "",
        (f"{_RUN}::test_a_paused_lockd_run_does_not_keep_its_child_beyond_the_lease",),
    ),
    Mutation(
        "a command outlives a `lockd run` that is killed",
        "K6",
        "lockd/cli/guard.py",
        "            child.stop(kill_after=min(_UNTOLD_SECONDS, max(0.0, deadline - clock.now())))\n",
        "",
        (f"{_RUN}::test_a_killed_lockd_run_takes_its_child_with_it",),
    ),
    Mutation(
        "`lockd run` releases before what its command left behind has stopped",
        "K6",
        "lockd/cli/run.py",
        "                    self._stop(kill_after=min(LEFTOVER_SECONDS, lease.remaining()))\n",
        "",
        (f"{_RUN}::test_what_the_child_leaves_behind_is_stopped_before_the_release",),
    ),
    Mutation(
        "`lockd run` stops its command when the lease is over, and not before",
        "K1",
        "lockd/cli/run.py",
        "while (left := lease.remaining() - self._warning) > 0.0:",
        "while (left := lease.remaining()) > 0.0:",
        (f"{_RUN}::test_the_group_is_ended_before_the_cluster_passes_the_lock_on",),
    ),
    Mutation(
        "`lockd run` begins its command under a lease that is lost",
        "K3",
        "lockd/cli/run.py",
        "        self._lease.check()  # it may have been lost on the way here\n",
        "",
        (f"{_RUN}::test_a_command_is_not_begun_under_a_lease_that_is_lost_already",),
    ),
)
