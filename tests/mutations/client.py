"""Bugs by which a client believes too much, or leaves something held behind."""

from tests.mutations.mutation import Mutation

_CANCEL = "tests/client/test_client_steps.py"
_DEADLINES = "tests/client/test_client_deadlines.py"
_DENIED = "tests/client/test_client_denied.py"
_DROPPED = "tests/client/test_client_dropped.py"
_FAILOVER = "tests/client/test_client_failover.py"
_LEASE = "tests/client/test_client_lease.py"
_MODES = "tests/client/test_client_modes.py"
_OWNERS = "tests/client/test_client_owners.py"
_REVOKED = "tests/client/test_client_revoked.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "a client counts its lease from when the answer came",
        "K1",
        "lockd/client/keeper.py",
        "session.renewed(sent_at=call.sent_at, ttl=reply.ttl_ms / 1000, now=self._clock())",
        "session.renewed(sent_at=self._clock(), ttl=reply.ttl_ms / 1000, now=self._clock())",
        (_DEADLINES,),
    ),
    Mutation(
        "a client takes no margin off its lease",
        "K1",
        "lockd/client/lease.py",
        "    return sent_at + ttl - margin(ttl)\n",
        "    return sent_at + ttl\n",
        (_LEASE,),
    ),
    Mutation(
        "a lost connection is a lost lease",
        "K2",
        "lockd/client/keeper.py",
        "            self.session.suspend()\n",
        '            self.end(self.session, "the connection is gone")\n',
        (f"{_FAILOVER}::test_k2_a_lost_connection_is_not_a_lost_lease",),
    ),
    Mutation(
        "a renewal that is answered after the deadline brings the lease back",
        "K3",
        "lockd/client/lease.py",
        "        if self.remaining(now) <= 0.0:\n            return False\n",
        "",
        (_LEASE,),
    ),
    Mutation(
        "an acquisition that was given up is not withdrawn",
        "K4",
        "lockd/client/acquiring.py",
        "        self._duties.begin(query.words, session=session, at_most=at_most)\n",
        "        del query, session, at_most\n",
        (f"{_CANCEL}::test_k4_in_a_session_that_is_open",),
    ),
    Mutation(
        "a node that lets nobody in answers for what another connection took",
        "K4",
        "lockd/client/link.py",
        "                if call.sends == 0 and not call.must_arrive:\n",
        "                if call.sends >= 0:\n",
        (_DENIED,),
    ),
    Mutation(
        "a refusal of the second asking is taken for one of the first",
        "K4",
        "lockd/client/waits.py",
        "        first = self.sends <= 1 and not self.is_queued\n",
        "        first = True\n",
        (_DENIED,),
    ),
    Mutation(
        "a forked child goes on to trust its parent's lease",
        "K5",
        "lockd/client/engine.py",
        "            self._keeper.session.trust.end(fork.FORKED)\n",
        "            pass\n",
        (f"{_OWNERS}::test_k5_a_forked_child_holds_nothing_of_a_client_that_is_out_of_hand",),
    ),
    Mutation(
        "a revoked lease is acknowledged while its holder still works",
        "K6",
        "lockd/client/session.py",
        "            if grant is not None and not grant.is_left:\n",
        "            if grant is not None and not grant.is_left and number < 0:\n",
        (_REVOKED,),
    ),
    Mutation(
        "a client is led to a socket of its own machine by what a node reports",
        "K6",
        "lockd/client/options.py",
        "if not endpoint.path and endpoint.host not in _WILDCARDS",
        "if endpoint.host not in _WILDCARDS",
        ("tests/client/test_client_options.py",),
    ),
    Mutation(
        "a client does not read which of its grants were revoked",
        "K7",
        "lockd/client/keeper.py",
        "                tell_all(session.revoked(reply.ended))\n",
        "",
        (f"{_REVOKED}::test_k7_a_grant_that_arrives_after_its_notice_is_not_believed",),
    ),
    Mutation(
        "a grant that arrives after its notice is believed",
        "K7",
        "lockd/client/session.py",
        "                self._remember_unseen(notice)\n",
        "",
        (_REVOKED,),
    ),
    Mutation(
        "two owners of one client are both told that they hold the lock",
        "P1",
        "lockd/client/session.py",
        "        tell = [callback for other in conflicting for callback in self.lose(other, because)]\n",
        "        tell = list[Callable[[], None]]()\n",
        (f"{_MODES}::test_p2_a_second_grant_ends_the_first_and_an_older_one_is_refused",),
    ),
    Mutation(
        "a client that was dropped renews its session for ever",
        "K7",
        "lockd/client/threads.py",
        "        portal.stop_after(engine.abandon)\n",
        "        pass\n",
        (f"{_DROPPED}::test_a_dropped_client_closes_its_session_and_its_thread_ends",),
    ),
)
