"""The client itself: its locks, waits and releases, over one session and one link.

Everything here runs on one event loop. AsyncClient and Client are two faces of it, and hold no
logic of their own. What may be believed, and until when, is `lease`'s and `session`'s to say.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from lockd.client import fork, inspection, queries
from lockd.client.demand import Demand
from lockd.client.duties import Duties
from lockd.client.inspection import LockInfo, SessionInfo
from lockd.client.keeper import Keeper, tell_all
from lockd.client.lease import Clock, Grant, LeaseView
from lockd.client.link import Link
from lockd.client.options import ClientOptions
from lockd.client.queries import GrantReply, Greeting, Query
from lockd.client.session import Session
from lockd.client.waits import Wait, Waits
from lockd.client.watch import Watcher
from lockd.errors import LockdError, LockTimeout, OutcomeUnknown, SessionExpired
from lockd.ids import ClusterId, Fence, FencingToken, Incarnation

log = logging.getLogger("lockd.client")
T = TypeVar("T")

CLOSED = "the client was closed"
NO_SESSION = "0" * 32
"""Where the protocol wants a session and the request's UUID says it all."""
ASK_AGAIN_SECONDS = 0.02
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
            is_needed=lambda: self._keeper.session is not None or self._waits.any_queued(),
            accept=self._accept,
            on_up=self._on_up,
            on_down=lambda: self._keeper.suspend(),
            on_push=self._on_push,
        )
        self._keeper = Keeper(options, clock, self._link, on_end=self._on_session_end)
        self._cluster = ""
        self._incarnation = ""
        self._waits = Waits()
        self._duties = Duties(self._link)
        self._entered: WeakValueDictionary[tuple[object, ...], Grant] = WeakValueDictionary()
        """What each owner may enter again. A lost grant stays while its holder has it in hand."""
        self._watchers: set[Watcher] = set()
        self.is_closed = False
        # Not only the client's: a lease may outlive the client that it came from.
        fork.watch(self)

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
            fence = self._fence_of(await self._obtain(acquisition), demand)
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
            self._withdraw(acquisition)
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
        self._probe_while_waiting(acquisition)
        try:
            reply = await self._obtain(acquisition)
            self._fence_of(reply, demand)
        except BaseException:
            # Nobody renews it: once its TTL has passed there is nothing left to withdraw.
            self._withdraw(acquisition, at_most=ttl + self._options.ttl)
            raise
        return reply

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
        if not grant.release(self._clock()):
            self._keeper.acknowledge()
            return False
        if self._keeper.session is not None:
            self._keeper.session.released(grant)
        query = (
            queries.release_all(token=grant.token, session=grant.session)
            if grant.demand.of_several
            else queries.release(grant.lock, token=grant.token, session=grant.session)
        )
        duty = self._duties.begin(query.words, session=grant.session)
        reply = await asyncio.shield(duty.done)
        if isinstance(reply, LockdError):
            raise reply
        # A repeat finds nothing to release when the first one got through.
        return query.read(reply) >= 1 or duty.was_repeated

    async def update_meta(self, lease: LeaseView, meta: str) -> None:
        """Have the lease's locks show this JSON text. Raises LeaseLost, OutcomeUnknown, Rejected."""
        lease.assured(0.0)
        grant = lease.grant
        for lock in grant.locks:
            query = inspection.change_meta(lock, token=grant.token, session=grant.session, meta=meta)
            if await self.ask(query) != 1:
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
        for wait in self._waits.of_session(None):
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

    def _check_open(self) -> None:
        if self.is_closed:
            raise RuntimeError(CLOSED)

    # One acquisition, from its command to its end.

    async def _obtain(self, acquisition: Wait) -> GrantReply:
        began, wait = self._loop.time(), acquisition.demand.wait
        try:
            async with asyncio.timeout(self._options.ttl) as limit:

                def on_queued() -> None:
                    if not limit.expired():
                        limit.reschedule(None if wait is None else began + wait + self._link.answer_timeout)

                acquisition.on_queued = on_queued
                self._waits.add(acquisition)
                self._send(acquisition)
                return await acquisition.outcome
        except TimeoutError:
            assert acquisition.call is not None, "it was sent"
            if not acquisition.is_queued:
                raise self._link.unanswered(acquisition.call, changes=True) from None
            lock = acquisition.demand.lock
            text = f"{lock!r} was not granted within {wait} s; the cluster did not say who holds it"
            raise LockTimeout(text, lock=lock) from None
        finally:
            acquisition.outcome.cancel()
            self._waits.remove(acquisition)
            if acquisition.call is not None:
                self._link.forget(acquisition.call)

    def _send(self, acquisition: Wait) -> None:
        """Ask for it, or for what has become of it: the request id is the same (G3)."""
        if acquisition.outcome.done():
            return
        if acquisition.call is not None:
            self._link.forget(acquisition.call)
        acquisition.asked(self._link.call(acquisition.words, lambda call: acquisition.on_reply(call.reply)))

    def _probe_while_waiting(self, acquisition: Wait) -> None:
        """Find out whether the node is still there: no keepalive does so for a wait without our session."""
        if acquisition.is_queued:
            self._link.call(("PING",), lambda _: None)
        if not acquisition.outcome.done():
            self._loop.call_later(self._link.answer_timeout, self._probe_while_waiting, acquisition)

    def _withdraw(self, acquisition: Wait, *, at_most: float | None = None) -> None:
        """See to it that an acquisition which was given up holds nothing, now or later (K4)."""
        if acquisition.was_refused or acquisition.sends == 0:
            return
        session = acquisition.session
        query = queries.cancel(
            acquisition.demand.lock, session=session or NO_SESSION, request=acquisition.request
        )
        if not self.is_closed:
            self._duties.begin(query.words, session=session, at_most=at_most)

    def _fence_of(self, reply: GrantReply, demand: Demand) -> Fence:
        """The fence of a grant of what was demanded. Raises OutcomeUnknown for any other."""
        what = (reply.lock, reply.mode, reply.locks if demand.of_several else ())
        if what != (demand.lock, demand.mode, demand.locks if demand.of_several else ()):
            text = f"{reply.mode} {reply.lock!r}, not {demand.mode} {demand.lock!r}"
            raise OutcomeUnknown(f"the node's answer is of another lock: {text}")
        try:
            token = FencingToken(reply.token)
            fence = Fence(ClusterId(reply.cluster), Incarnation(reply.incarnation), token)
            if reply.fence and Fence.parse(reply.fence) != fence:
                raise ValueError(f"{reply.fence!r} is not {fence}")
        except ValueError as error:
            raise OutcomeUnknown(f"the node's answer can't be read: {error}") from None
        objection = self._accept(Greeting(fence.cluster, fence.incarnation))
        if objection:
            raise OutcomeUnknown(f"a grant of another cluster: {objection}")
        return fence

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
        for wait in self._waits.queued():
            self._send(wait)

    def _on_push(self, kind: str, message: Any) -> None:
        wait = self._waits.on_push(kind, message)
        if wait is not None:
            self._loop.call_later(ASK_AGAIN_SECONDS, self._send, wait)

    def _on_session_end(self, session: Session, because: str) -> None:
        for wait in self._waits.of_session(session.id):
            wait.give_up(
                SessionExpired(f"the session ended while waiting for {wait.demand.lock!r}: {because}")
            )
        self._duties.of_ended_session(session.id, because)


class _SessionWasGone(SessionExpired):
    """The session had ended before the request reached it."""
