"""T2, T3, T4: the leader's own deadlines."""

import random

from lockd.ids import SessionId
from lockd.locks.commands import ClearSilent, MarkSilent
from lockd.locks.events import LeaseChange, LeaseEvent
from lockd.locks.leases import LeaseBook, RenewalVerdict
from lockd.locks.views import SessionView
from tests.locks.cluster_state import ClusterState

S1, S2, S3 = SessionId("s1"), SessionId("s2"), SessionId("s3")


def view(session: SessionId, ttl_ms: int, *, silent_ms: int = 0, lease_running: bool = True) -> SessionView:
    return SessionView(
        id=session,
        number=1,
        user="ann",
        name="",
        meta="",
        ttl_ms=ttl_ms,
        lease_running=lease_running,
        silent_ms=silent_ms,
        is_private=False,
        requests=0,
        waiting=0,
    )


def empty(now_ms: int = 0) -> LeaseBook:
    return LeaseBook(now_ms, ())


def test_t2_a_lease_runs_for_its_full_ttl() -> None:
    book = empty()
    book.opened(S1, 10_000, now_ms=500)
    assert book.choose_expired(10_499, 10) == ()
    assert book.choose_expired(10_500, 10) == (S1,)


def test_t2_a_new_leader_gives_the_full_ttl_from_its_start() -> None:
    book = LeaseBook(1_000_000, [view(S1, 10_000), view(S2, 5_000)])
    assert book.choose_expired(1_004_999, 10) == ()
    assert book.choose_expired(1_005_000, 10) == (S2,)
    assert book.choose_expired(1_010_000, 10) == (S1,)


def test_t2_less_the_silence_that_was_logged() -> None:
    book = LeaseBook(1_000_000, [view(S1, 10_000, silent_ms=6_000)])
    assert book.choose_expired(1_003_999, 10) == ()
    assert book.choose_expired(1_004_000, 10) == (S1,)


def test_t2_a_row_of_elections_cannot_stretch_a_dead_session_for_ever() -> None:
    """etcd#9888: each leader lives for 4 s, and the session, of 10 s, is silent throughout."""
    state = ClusterState()
    state.open("s1", ttl_ms=10_000)
    now_ms = 0
    for leaders in range(1, 9):
        book = LeaseBook(now_ms, state.machine.lease_sessions())
        for _ in range(40):
            now_ms += 100
            if book.choose_expired(now_ms, 1):
                assert leaders > 2, "T2: never early"
                return
            silences = book.silent(now_ms)
            if silences:
                state.send(MarkSilent(silences), user="")
        # One leader in three lives longer, so that it sees half a TTL pass.
        if leaders % 3 == 1:
            now_ms += 1_500
            silences = book.silent(now_ms)
            state.send(MarkSilent(silences), user="")
    raise AssertionError("stretched for ever")


def test_t2_silence_is_named_after_half_the_ttl_and_again_as_the_rest_runs_out() -> None:
    book = LeaseBook(0, [view(S1, 8_000), view(S2, 80_000)])
    assert book.silent(3_999) == ()
    assert book.silent(4_000) == ((S1, 4_000),)
    assert book.silent(4_001) == ()
    assert book.silent(6_000) == ((S1, 6_000),)
    assert book.silent(7_000) == ((S1, 7_000),)
    assert book.silent(7_999) == ()
    assert book.silent(40_000)[-1] == (S2, 40_000)


def test_t2_a_renewal_of_a_marked_session_waits_for_the_clearing_entry() -> None:
    state = ClusterState()
    state.open("s1", ttl_ms=8_000)
    book = LeaseBook(0, state.machine.lease_sessions())
    assert book.renew(S1, 100) is RenewalVerdict.RENEWED
    silences = book.silent(4_100)
    assert silences == ((S1, 4_000),)
    # The entry is not applied yet, and counts already: it may be in the log.
    assert book.renew(S1, 4_200) is RenewalVerdict.RENEWED_MARKED
    state.send(MarkSilent(silences), user="")
    assert book.renew(S1, 4_300) is RenewalVerdict.RENEWED_MARKED
    state.send(ClearSilent(), session="s1")
    book.learn(state.machine.lease_changes, 4_400)
    assert book.renew(S1, 4_500) is RenewalVerdict.RENEWED
    state.send(ClearSilent(), session="s1")  # the second renewal had one of its own
    book.learn(state.machine.lease_changes, 4_600)
    assert book.silent(8_499) == ()
    assert book.silent(8_500) == ((S1, 4_000),), "and it is watched again"


def test_t2_a_mark_from_the_last_leader_counts_as_one() -> None:
    book = LeaseBook(0, [view(S1, 8_000, silent_ms=4_000)])
    assert book.renew(S1, 10) is RenewalVerdict.RENEWED_MARKED
    book.cleared(S1)
    assert book.renew(S1, 20) is RenewalVerdict.RENEWED


def test_t2_no_mark_follows_a_clearing_that_is_on_its_way() -> None:
    """It would be cleared in the book by the earlier entry, and stay in the log."""
    book = LeaseBook(0, [view(S1, 8_000)])
    book.silent(4_000)
    assert book.renew(S1, 4_100) is RenewalVerdict.RENEWED_MARKED
    assert book.silent(10_200) == (), "the log has been slow for most of a TTL"
    book.cleared(S1)
    assert book.silent(11_201) == ((S1, 7_101),)


def test_t2_no_mark_comes_between_two_clearings() -> None:
    """The second one would clear it in the book, though in the log it may stand behind both."""
    book = LeaseBook(0, [view(S1, 8_000, silent_ms=4_000)])
    assert book.renew(S1, 100) is RenewalVerdict.RENEWED_MARKED
    assert book.renew(S1, 200) is RenewalVerdict.RENEWED_MARKED
    book.cleared(S1)
    assert book.silent(7_000) == (), "the log has been slow for most of a TTL"
    book.cleared(S1)
    assert book.silent(8_001) == ((S1, 7_801),)


def test_t3_a_session_chosen_for_expiry_is_not_renewed() -> None:
    book = LeaseBook(0, [view(S1, 5_000)])
    assert book.choose_expired(5_000, 10) == (S1,)
    assert book.renew(S1, 5_001) is RenewalVerdict.EXPIRING
    assert book.choose_expired(9_000, 10) == (), "chosen once"
    book.ended(S1)
    assert book.renew(S1, 9_001) is RenewalVerdict.UNKNOWN


def test_t2_a_late_renewal_before_the_choice_counts() -> None:
    book = LeaseBook(0, [view(S1, 5_000)])
    assert book.renew(S1, 7_000) is RenewalVerdict.RENEWED
    assert book.choose_expired(11_999, 10) == ()


def test_a_renewal_never_shortens_a_lease() -> None:
    book = LeaseBook(0, [view(S1, 5_000)])
    book.renew(S1, 4_000)
    book.renew(S1, 3_000)
    assert book.choose_expired(8_999, 10) == ()


def test_t4_mass_expiry_comes_in_portions_the_longest_overdue_first() -> None:
    book = LeaseBook(0, [view(SessionId(f"s{n:04}"), 5_000 + n) for n in range(1_000)])
    first = book.choose_expired(100_000, 250)
    assert first == tuple(SessionId(f"s{n:04}") for n in range(250))
    rest = [book.choose_expired(100_000, 250) for _ in range(4)]
    assert [len(portion) for portion in rest] == [250, 250, 250, 0]
    assert book.choose_expired(100_000, 0) == ()


def test_a_waiting_private_session_has_no_deadline_until_its_grant() -> None:
    book = LeaseBook(0, [view(S1, 5_000, lease_running=False)])
    assert book.renew(S1, 1) is RenewalVerdict.UNKNOWN
    book.learn([LeaseChange(LeaseEvent.BEGAN, S1, 5_000)], 7_000)
    assert book.choose_expired(11_999, 1) == ()
    assert book.choose_expired(12_000, 1) == (S1,)
    book.learn([LeaseChange(LeaseEvent.ENDED, S1, 5_000)], 12_001)
    assert book.renew(S1, 12_002) is RenewalVerdict.UNKNOWN


def test_what_is_learnt_twice_does_no_harm() -> None:
    book = LeaseBook(100, [view(S1, 5_000)])
    book.opened(S1, 5_000, now_ms=200)
    assert book.choose_expired(5_199, 9) == ()
    assert book.choose_expired(5_200, 9) == (S1,)
    for _ in range(2):
        book.ended(S1)
        book.cleared(S1)
    assert book.choose_expired(99_999, 9) == ()


def test_the_book_agrees_with_a_plain_one() -> None:
    """T2, T3 over random renewals, closings and choices, and the heaps stay small."""
    draw = random.Random(11)
    book, plain, chosen = empty(), {}, set()
    ttl = {S1: 3_000, S2: 7_000, S3: 11_000}
    now_ms = 0
    for _ in range(20_000):
        now_ms += draw.randrange(200)
        session = draw.choice((S1, S2, S3))
        match draw.randrange(8):
            case 0 if session not in plain:
                book.opened(session, ttl[session], now_ms)
                plain[session] = now_ms + ttl[session]
            case 1:
                book.ended(session)
                plain.pop(session, None)
                chosen.discard(session)
            case 2:
                expired = book.choose_expired(now_ms, 10)
                due = {s for s, deadline in plain.items() if deadline <= now_ms and s not in chosen}
                assert set(expired) == due
                chosen |= due
            case 3:
                for gone in sorted(chosen):  # ExpireSessions is applied
                    book.ended(gone)
                    plain.pop(gone)
                chosen.clear()
            case 4:
                for marked, silent_ms in book.silent(now_ms):
                    assert 2 * silent_ms >= ttl[marked]
                    assert now_ms + ttl[marked] - silent_ms >= plain[marked], "T2: never early"
            case 5:
                book.cleared(session)
            case _:
                verdict = book.renew(session, now_ms)
                if session not in plain:
                    assert verdict is RenewalVerdict.UNKNOWN
                elif session in chosen:
                    assert verdict is RenewalVerdict.EXPIRING
                else:
                    assert verdict in {RenewalVerdict.RENEWED, RenewalVerdict.RENEWED_MARKED}
                    plain[session] = now_ms + ttl[session]
    assert len(book._deadlines) < 100
    assert len(book._marks) < 100
