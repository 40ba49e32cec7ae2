"""The client itself: its locks, waits and releases, over one session and one link.

Everything here runs on one event loop. AsyncClient and Client are two faces of it, and hold no
logic of their own. What may be believed, and until when, is `lease`'s and `session`'s to say.
"""

import asyncio
import logging
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from lockd.client import fork, inspection, queries
from lockd.client.connection import Reply
from lockd.client.inspection import LockInfo, SessionInfo
from lockd.client.keeper import Keeper
from lockd.client.lease import Clock, Grant, LeaseView
from lockd.client.link import Call, Link
from lockd.client.options import ClientOptions
from lockd.client.queries import GrantReply, Greeting, Query, Words
from lockd.client.session import Session
from lockd.client.waits import Wait, Waits
from lockd.errors import LockdError, LockTimeout, OutcomeUnknown, SessionExpired
from lockd.ids import Fence

log = logging.getLogger("lockd.client")
T = TypeVar("T")

CLOSED = "the client was closed"
NO_SESSION = "0" * 32
"""Where the protocol wants a session and the request's UUID says it all."""
ASK_AGAIN_SECONDS = 0.02


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
        self._duties: dict[asyncio.Future[Reply], tuple[Call, str]] = {}
        """Releases and withdrawals: sent until they are answered or their session is over."""
        self._entered: WeakValueDictionary[tuple[str, str], Grant] = WeakValueDictionary()
        """What each (owner, lock) holds. A lost grant stays while its holder has it in hand."""
        self.is_closed = False
        # Not only the client's: a lease may outlive the client that it came from.
        fork.watch(self)

    # Locks.

    async def acquire(self, lock: str, *, owner: str, wait: float | None, meta: str) -> Grant:
        """Hold `lock` as `owner`, or enter it once more. `wait` in seconds; None for ever.

        Raises LockTimeout, LeaseLost (this owner has lost it and has not left it yet), Unavailable
        and OutcomeUnknown (no node answered for a TTL), SessionExpired (the session ended while
        this waited), Rejected. Whatever is raised, this call holds nothing (K4).
        """
        self._check_open()
        held = self._entered.get((owner, lock))
        if held is not None:
            held.enter(self._clock())
            return held
        try:
            return await self._acquire_in_session(lock, owner=owner, wait=wait, meta=meta)
        except _SessionWasGone:
            # The cluster had forgotten a session in which this had not begun to wait: nothing is
            # lost by asking in another. One that may hold there until that session ends would stand
            # in its own way.
            return await self._acquire_in_session(lock, owner=owner, wait=wait, meta=meta)

    async def _acquire_in_session(self, lock: str, *, owner: str, wait: float | None, meta: str) -> Grant:
        session = await self._keeper.current()
        request = session.next_request()
        words = queries.acquire_words(
            lock, scope=("SESSION", session.id), owner=owner, request=request, wait=wait, meta=meta
        )
        acquisition = Wait(words, lock=lock, session=session.id, request=request)
        try:
            fence = self._fence_of(await self._obtain(acquisition, wait), lock)
        except SessionExpired as error:
            self._keeper.end(session, f"the cluster ended the session: {error}")
            if acquisition.may_have_begun or self.is_closed:
                raise
            raise _SessionWasGone(str(error)) from error
        except BaseException:
            self._withdraw(acquisition)
            raise
        if not session.may_be_relied_on(self._clock()):
            self._keeper.check_deadline()
            raise SessionExpired(f"the session ended while {lock!r} was granted; nothing is held")
        grant = session.granted(lock=lock, owner=owner, fence=fence)
        self._entered[owner, lock] = grant
        return grant

    async def acquire_private(
        self, lock: str, *, ttl: float, wait: float | None, request: str, meta: str
    ) -> GrantReply:
        """Hold `lock` in a session of its own with that TTL, which nobody keeps alive unless asked to.

        `request` is a UUID; the same one again finds the same grant. Raises as `acquire`.
        """
        self._check_open()
        words = queries.acquire_words(
            lock, scope=("TTL", round(ttl * 1000)), owner="", request=request, wait=wait, meta=meta
        )
        acquisition = Wait(words, lock=lock, session="", request=request)
        self._probe_while_waiting(acquisition)
        try:
            return await self._obtain(acquisition, wait)
        except BaseException:
            self._withdraw(acquisition)
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
        if self._entered.get((grant.owner, grant.lock)) is grant:
            del self._entered[grant.owner, grant.lock]
        if not grant.release(self._clock()):
            return False
        if self._keeper.session is not None:
            self._keeper.session.released(grant)
        query = queries.release(grant.lock, token=grant.token, session=grant.session)
        done = self._duty(query.words, session=grant.session)
        call, _ = self._duties[done]
        reply = await asyncio.shield(done)
        if isinstance(reply, LockdError):
            raise reply
        # A repeat finds nothing to release when the first one got through.
        return query.read(reply) == 1 or call.sends > 1

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

    async def close(self) -> None:
        """End the session, and with it everything that is held or waited for. Idempotent."""
        if self.is_closed:
            return
        self.is_closed = True
        session = self._keeper.session
        for wait in self._waits.of_session(None):
            wait.give_up(SessionExpired(CLOSED))
        if session is not None:
            self._keeper.end(session, CLOSED)
            query = queries.close_session(session.id)
            try:
                await self._link.ask(query.words, patience=self._link.answer_timeout, changes=True)
            except LockdError as error:
                log.warning("the session was not closed, and ends with its TTL: %s", error)
        await self._link.close()

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

    async def _obtain(self, acquisition: Wait, wait: float | None) -> GrantReply:
        began = self._loop.time()
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
            text = (
                f"{acquisition.lock!r} was not granted within {wait} s; the cluster did not say who holds it"
            )
            raise LockTimeout(text, lock=acquisition.lock) from None
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
        acquisition.call = self._link.call(acquisition.words, lambda call: acquisition.on_reply(call.reply))

    def _probe_while_waiting(self, acquisition: Wait) -> None:
        """Find out whether the node is still there: no keepalive does so for a wait without our session."""
        if acquisition.is_queued:
            self._link.call(("PING",), lambda _: None)
        if not acquisition.outcome.done():
            self._loop.call_later(self._link.answer_timeout, self._probe_while_waiting, acquisition)

    def _withdraw(self, acquisition: Wait) -> None:
        """See to it that an acquisition which was given up holds nothing, now or later (K4)."""
        if acquisition.was_refused or acquisition.call is None or acquisition.call.sends == 0:
            return
        query = queries.cancel(
            acquisition.lock, session=acquisition.session or NO_SESSION, request=acquisition.request
        )
        self._duty(query.words, session=acquisition.session)

    def _duty(self, words: Words, *, session: str) -> asyncio.Future[Reply]:
        """Send a command until it is answered or its session is over, whoever still waits for it."""
        done: asyncio.Future[Reply] = self._loop.create_future()

        def on_reply(call: Call) -> None:
            del self._duties[done]
            done.set_result(call.reply)

        self._duties[done] = (self._link.call(words, on_reply), session)
        return done

    def _fence_of(self, reply: GrantReply, lock: str) -> Fence:
        if reply.lock != lock:
            raise OutcomeUnknown(f"the node's answer is of another lock: {reply.lock!r}, not {lock!r}")
        try:
            fence = Fence.parse(reply.fence)
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
            wait.give_up(SessionExpired(f"the session ended while waiting for {wait.lock!r}: {because}"))
        for done, (call, of_session) in list(self._duties.items()):
            if of_session == session.id:
                self._link.forget(call)
                del self._duties[done]
                done.set_result(OutcomeUnknown(f"{call.words[0]} was not answered before {because}"))


class _SessionWasGone(SessionExpired):
    """The session had ended before the request reached it."""
