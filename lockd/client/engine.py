"""The client itself: its locks, waits and releases, over one session and one link.

Everything here runs on one event loop. AsyncClient and Client are two faces of it, and hold no
logic of their own. What may be believed, and until when, is `lease`'s and `session`'s to say.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakValueDictionary

from lockd.client import fork, inspection, queries
from lockd.client.acquiring import Acquiring
from lockd.client.clock import TurnedClock
from lockd.client.demand import Demand
from lockd.client.duties import Duties, Duty
from lockd.client.inspection import LockInfo, SessionInfo
from lockd.client.keeper import Keeper, tell_all
from lockd.client.lease import Clock, Grant, LeaseView
from lockd.client.link import CLOSED, Link
from lockd.client.options import ClientOptions
from lockd.client.queries import GrantReply, Greeting, Query
from lockd.client.session import Session
from lockd.client.waits import Wait
from lockd.client.watch import Watcher
from lockd.errors import LockdError, SessionExpired

log = logging.getLogger("lockd.client")
T = TypeVar("T")

ENDED_ELSEWHERE = "the cluster had ended it"


class Engine:
    """One client on one event loop: made there, and used from there alone."""

    def __init__(self, options: ClientOptions, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._link = Link(
            options,
            clock,
            is_needed=lambda: self._keeper.session is not None or self._acquiring.any_queued(),
            accept=self._accept,
            on_up=self._on_up,
            on_down=lambda: self._keeper.suspend(),
            on_push=lambda kind, message: self._acquiring.on_push(kind, message),
        )
        self._keeper = Keeper(options, clock, self._link, on_end=self._on_session_end)
        self._cluster = ""
        self._incarnation = ""
        self._duties = Duties(self._link)
        self._acquiring = Acquiring(options, self._link, self._duties, accept=self._accept)
        self._entered: WeakValueDictionary[tuple[object, ...], Grant] = WeakValueDictionary()
        """What each owner may enter again. A lost grant stays while its holder has it in hand."""
        self._watchers: set[Watcher] = set()
        self.is_closed = False
        # Not only the client's: a lease may outlive the client that it came from.
        fork.watch(self)
        if isinstance(clock, TurnedClock):
            clock.lead(self)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where it runs."""
        return self._loop

    @property
    def clock(self) -> Clock:
        """By which its leases end."""
        return self._clock

    # Locks.

    async def acquire(self, demand: Demand, *, owner: str) -> Grant:
        """Hold what is demanded as `owner`, or enter it once more.

        Raises LockTimeout, Deadlock, LimitMismatch, LeaseLost (this owner has lost it and has not
        left it yet), Unavailable and OutcomeUnknown (no node answered for a TTL), SessionExpired
        (the session ended while this waited), NotHeld (it was broken before it arrived), Rejected.
        Whatever is raised, this call holds nothing (K4).
        """
        self._check_open()
        held = self._entered.get((owner, demand.reentry))
        if held is not None:
            held.enter(self._clock())
            return held
        try:
            return await self._acquire_in_session(demand, owner=owner)
        except _SessionWasGone:
            # The cluster had forgotten a session in which this had not begun to wait: nothing is
            # lost by asking in another. One that may hold there until that session ends would stand
            # in its own way.
            return await self._acquire_in_session(demand, owner=owner)

    async def _acquire_in_session(self, demand: Demand, *, owner: str) -> Grant:
        session = await self._keeper.current()
        request = session.next_request()
        # An owner that is nobody else's waits for nobody, as far as the cluster can see (G8).
        told = f"{owner}/{request}" if demand.may_be_handed_on else owner
        words = demand.words(("SESSION", session.id), owner=told, request=request)
        acquisition = Wait(words, demand=demand, session=session.id, request=request)
        try:
            fence = await self._acquiring.obtain(acquisition)
            if not session.may_be_relied_on(self._clock()):
                self._keeper.check_deadline()
                raise SessionExpired(f"the session ended while {demand.lock!r} was granted; nothing is held")
            grant, tell = session.granted(demand, owner=owner, fence=fence)
        except SessionExpired as error:
            self._keeper.end(session, f"the cluster ended the session: {error}")
            if acquisition.may_have_begun or self.is_closed:
                raise
            raise _SessionWasGone(str(error)) from error
        except BaseException:
            self._acquiring.withdraw(acquisition)
            raise
        tell_all(tell)
        if demand.reentry is not None:
            self._entered[owner, demand.reentry] = grant
        return grant

    async def acquire_private(self, demand: Demand, *, ttl: float, request: str) -> GrantReply:
        """Hold it in a session of its own with that TTL, which nobody keeps alive unless asked to.

        `request` is a UUID; the same one again finds the same grant. Raises as `acquire`.
        """
        self._check_open()
        words = demand.words(("TTL", round(ttl * 1000)), owner="", request=request)
        acquisition = Wait(words, demand=demand, session="", request=request)
        self._acquiring.probe_while_waiting(acquisition)
        try:
            await self._acquiring.obtain(acquisition)
            return acquisition.outcome.result()
        except BaseException:
            # Nobody renews it: once its TTL has passed there is nothing left to withdraw.
            self._acquiring.withdraw(acquisition, at_most=ttl + self._options.ttl)
            raise

    async def release(self, lease: LeaseView) -> bool:
        """Give one entry back. True: it was held until now. False: it was lost or left before.

        Goes on when cancelled (K4). Raises OutcomeUnknown when no answer came while the session
        lived: the lock ends with the session then.
        """
        return lease.leave() and await self.give_back(lease.grant)

    async def give_back(self, grant: Grant) -> bool:
        """As `release`, for an entry that has no lease in anybody's hand."""
        if not grant.leave():
            return grant.remaining(self._clock()) > 0.0
        entered = (grant.owner, grant.demand.reentry)
        if self._entered.get(entered) is grant:
            del self._entered[entered]
        session = self._keeper.session
        if not grant.release(self._clock()):
            self._keeper.acknowledge()
            if session is not None and session.waits_to_acknowledge(grant):
                self._begin_release(grant)
            return False
        if session is not None:
            session.released(grant)
        query, duty = self._begin_release(grant)
        reply = await asyncio.shield(duty.done)
        if isinstance(reply, LockdError):
            raise reply
        # A repeat finds nothing to release when the first one got through.
        return query.read(reply) >= 1 or duty.was_repeated

    def _begin_release(self, grant: Grant) -> tuple[Query[int], Duty]:
        query = (
            queries.release_all(token=grant.token, session=grant.session)
            if grant.demand.of_several
            else queries.release(grant.lock, token=grant.token, session=grant.session)
        )
        return query, self._duties.begin(query.words, session=grant.session)

    async def update_meta(self, lease: LeaseView, meta: str) -> None:
        """Have the lease's locks show this JSON text. Raises LeaseLost, OutcomeUnknown, Rejected."""
        lease.assured(0.0)
        grant = lease.grant
        for lock in grant.locks:
            query = inspection.change_meta(lock, token=grant.token, session=grant.session, meta=meta)
            try:
                is_held = await self.ask(query) == 1
            except SessionExpired:
                is_held = False  # the keepalive, which is due, will find out for the others
                self._keeper.renew_now()
            if not is_held:
                self._keeper.lose(grant, ENDED_ELSEWHERE)
                raise grant.lost_error(ENDED_ELSEWHERE)

    async def assure(self, lease: LeaseView, need: float) -> None:
        """Return when `need` seconds are left to the lease. Raises LeaseLost, ValueError."""
        if not lease.assured(need):
            await self._keeper.renew(lease.grant, need)

    async def ask(self, query: Query[T]) -> T:
        """Carry out one query. Raises what its reply says, Unavailable, OutcomeUnknown."""
        self._check_open()
        call = await self._link.ask(query.words, patience=self._options.ttl, changes=query.changes)
        return query.read(call.reply)

    async def locks(self, prefix: str) -> list[LockInfo]:
        """All locks whose names begin with `prefix` and that are held or waited for, page by page."""
        found: list[LockInfo] = []
        after: str | None = ""
        while after is not None:
            page = await self.ask(inspection.list_locks(prefix=prefix, after=after))
            found += page.locks
            after = page.next
        return found

    async def sessions(self) -> list[SessionInfo]:
        """All sessions that live, page by page."""
        found: list[SessionInfo] = []
        after: int | None = 0
        while after is not None:
            page = await self.ask(inspection.list_sessions(after=after))
            found += page.sessions
            after = page.next
        return found

    def watch(self, prefix: str, revision: int | None) -> Watcher:
        """Begin to watch the locks with that prefix; ends with the client at the latest."""
        self._check_open()
        watcher = Watcher(
            self._options,
            self._clock,
            prefix=prefix,
            revision=revision,
            accept=self._accept,
            on_over=self._watchers.discard,
        )
        self._watchers.add(watcher)
        return watcher

    async def close(self) -> None:
        """End the session, and with it everything that is held or waited for. Idempotent."""
        if self.is_closed:
            return
        session = self._end()
        for watcher in list(self._watchers):
            await watcher.close()
        try:
            if session is not None:
                query = queries.close_session(session.id)
                await self._link.ask(query.words, patience=self._link.answer_timeout, changes=True)
        except LockdError as error:
            log.warning("the session was not closed, and ends with its TTL: %s", error)
        finally:
            self._link.stop()
        await self._link.close()

    def abandon(self, then: Callable[[], None] = lambda: None) -> None:
        """As `close`, but without anybody who waits; `then` is called when all is over.

        Nobody has the client or a lease in hand any more: it would renew its session for ever.
        """
        if self.is_closed:
            then()
            return
        log.info("a client was dropped without being closed")
        for watcher in list(self._watchers):
            watcher.close_soon()
        session = self._end()

        def over() -> None:
            if timer is not None:
                timer.cancel()
            self._link.stop()
            then()

        timer: asyncio.TimerHandle | None = None
        if session is None:
            over()
        else:
            timer = self._loop.call_later(self._link.answer_timeout, over)
            self._link.call(queries.close_session(session.id).words, lambda _: over())

    def _end(self) -> Session | None:
        """Nothing is held or waited for any more. Returns the session, which the cluster still has."""
        self.is_closed = True
        self._keeper.close()
        session = self._keeper.session
        for wait in self._acquiring.of_session(None):
            wait.give_up(SessionExpired(CLOSED))
        if session is not None:
            self._keeper.end(session, CLOSED)
        return session

    def after_fork(self) -> object:
        """Rely on nothing any more, and touch nothing: in a forked child all is the parent's (K5)."""
        self.is_closed = True
        if self._keeper.session is not None:
            self._keeper.session.trust.end(fork.FORKED)
        return self

    def clock_was_turned(self, then: Callable[[], None]) -> None:
        """End or renew the session, if that is due by the clock, and call `then` after that. Any thread."""
        self._loop.call_soon_threadsafe(self._keeper.look_at_clock, then)

    def ask_what_is_left(self, then: Callable[[], None]) -> None:
        """Have the session renewed, or learn that it is over, and call `then` after that. Any thread."""
        self._loop.call_soon_threadsafe(self._keeper.ask_what_is_left, then)

    def _check_open(self) -> None:
        if self.is_closed:
            raise RuntimeError(CLOSED)

    # What the link and the session tell.

    def _accept(self, greeting: Greeting) -> str:
        """What is wrong with a node that calls itself so; "" for nothing (SAFETY G2).

        The cluster stays the same for the client's life, the incarnation for the session's.
        """
        if self._cluster and greeting.cluster not in ("", self._cluster):
            return f"it belongs to cluster {greeting.cluster}, and this client to {self._cluster}"
        restored = self._incarnation and greeting.incarnation not in ("", self._incarnation)
        if restored and self._keeper.session is not None:
            return f"its cluster was restored: incarnation {greeting.incarnation}, not {self._incarnation}"
        self._cluster = greeting.cluster or self._cluster
        self._incarnation = greeting.incarnation or self._incarnation
        return ""

    def _on_up(self) -> None:
        self._keeper.renew_now()
        self._acquiring.ask_for_pushes()

    def _on_session_end(self, session: Session, because: str) -> None:
        for wait in self._acquiring.of_session(session.id):
            wait.give_up(
                SessionExpired(f"the session ended while waiting for {wait.demand.lock!r}: {because}")
            )
        self._duties.of_ended_session(session.id, because)


class _SessionWasGone(SessionExpired):
    """The session had ended before the request reached it."""
