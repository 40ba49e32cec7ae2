"""Keeps the client's session alive, and says so at once when it is lost.

The rules are `session`'s; this file has the timers and the commands. A keepalive goes out every
third of the TTL, at once on every new connection, and whenever somebody needs more time than is
left. One timer stands at the deadline: a loss is told when it happens, not at the next call (K2).
"""

import asyncio
import logging
from collections.abc import Callable

from lockd.client import queries
from lockd.client.lease import Clock, Grant
from lockd.client.link import Call, Link
from lockd.client.options import ClientOptions
from lockd.client.session import Session, Tell
from lockd.errors import LeaseLost, LockdError, SessionExpired, Unavailable
from lockd.ids import SessionId

log = logging.getLogger("lockd.client")

_RENEWALS_TRIED = 2
_REFUSED_PAUSE = 0.1
"""Share of the TTL after which a keepalive that was refused, but not as expired, is tried again."""


class Keeper:
    """The one session of a client at a time. `on_end` is told which session is over, and why."""

    def __init__(
        self, options: ClientOptions, clock: Clock, link: Link, *, on_end: Callable[[Session, str], None]
    ) -> None:
        self.session: Session | None = None
        self._options = options
        self._clock = clock
        self._link = link
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._opening: asyncio.Task[Session] | None = None
        self._renewal: Call | None = None
        self._acknowledging = 0
        """What the renewal that is on its way acknowledges."""
        self._renew_timer: asyncio.TimerHandle | None = None
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._need_renewal: list[asyncio.Future[None]] = []
        self._is_closed = False

    async def current(self) -> Session:
        """The session that lives, or a new one. Raises Unavailable, AccessDenied, Rejected."""
        self.check_deadline()
        if self.session is not None:
            return self.session
        if self._opening is None:
            self._opening = self._loop.create_task(self._open(), name="lockd-open-session")
            self._opening.add_done_callback(self._opened)
        # Others may be waiting for the same one: who is cancelled here cancels nobody else.
        return await asyncio.shield(self._opening)

    async def _open(self) -> Session:
        query = queries.open_session(ttl_ms=round(self._options.ttl * 1000), name=self._options.name)
        call = await self._link.ask(query.words, patience=self._options.ttl, changes=False)
        reply = query.read(call.reply)
        if self._is_closed:
            raise Unavailable("the client was closed")
        session = Session(SessionId(reply.session), sent_at=call.sent_at, ttl=reply.ttl_ms / 1000)
        if not session.may_be_relied_on(self._clock()):
            raise Unavailable("the session was opened too slowly to be relied on")
        self.session = session
        self._set_timers(session)
        return session

    def _opened(self, task: asyncio.Task[Session]) -> None:
        self._opening = None
        if not task.cancelled():
            task.exception()  # those who asked have it; maybe all have been cancelled

    def renew_now(self) -> None:
        """Send a keepalive, in place of one that is on its way."""
        session = self.session
        if session is None:
            return
        if self._renewal is not None:
            self._link.forget(self._renewal)
        number = self._acknowledging = session.to_acknowledge()
        words = queries.keepalive(session.id, acknowledge=number).words
        self._renewal = self._link.call(
            words, lambda call: self._on_renewed(session, call, number), is_urgent=True, must_arrive=True
        )

    def acknowledge(self) -> None:
        """Somebody has left a lease: if it was revoked, the cluster may pass its lock on now (K6)."""
        if self._renewal is not None and self._acknowledging:
            return  # the next one goes when that is answered: a crowd that stops at once sends two
        if self.session is not None and self.session.to_acknowledge():
            self.renew_now()

    def lose(self, grant: Grant, because: str) -> None:
        """The cluster says that this grant has ended; its session goes on."""
        if self.session is not None and self.session.id == grant.session:
            tell_all(self.session.lose(grant, because))

    async def renew(self, grant: Grant, need: float) -> None:
        """Return when the grant has `need` seconds left. Raises LeaseLost when it can't be assured."""
        for _ in range(_RENEWALS_TRIED):
            grant.check(self._clock())
            renewed: asyncio.Future[None] = self._loop.create_future()
            self._need_renewal.append(renewed)
            self.renew_now()
            await renewed
            grant.check(self._clock())
            if grant.remaining(self._clock()) >= need:
                return
        text = f"lock {grant.lock!r}: renewals are too slow to assure {need} s to the lease {grant.token}"
        raise LeaseLost(text, lock=grant.lock, token=grant.token)

    def suspend(self) -> None:
        """The connection is gone (K2)."""
        if self.session is not None:
            self.session.suspend()

    def end(self, session: Session, because: str) -> None:
        """The session is over. Its leases are lost, and whoever wanted to know is told now (K3)."""
        tell = session.end(because)
        if session is not self.session:
            return
        self.session = None
        self._clear_timers()
        if self._renewal is not None:
            self._link.forget(self._renewal)
            self._renewal = None
        self._wake()
        tell_all(tell)
        self._on_end(session, because)

    def close(self) -> None:
        """No session is opened any more."""
        self._is_closed = True

    def _on_renewed(self, session: Session, call: Call, acknowledged: int) -> None:
        self._renewal = None
        if session is not self.session:
            return
        try:
            if isinstance(call.reply, LockdError):
                raise call.reply
            reply = queries.keepalive(session.id).read(call.reply)
        except SessionExpired as error:
            self.end(session, f"the cluster ended the session: {error}")
        except LockdError as error:
            log.warning("a keepalive was refused: %s", error)
            self._renew_timer = self._loop.call_later(_REFUSED_PAUSE * session.trust.ttl, self._renew_if_due)
        else:
            if session.renewed(sent_at=call.sent_at, ttl=reply.ttl_ms / 1000, now=self._clock()):
                self._set_timers(session)
                session.acknowledged(acknowledged)
                tell_all(session.revoked(reply.ended))
                self._wake()
                self.acknowledge()
            else:
                self.check_deadline()

    def _wake(self) -> None:
        waiting, self._need_renewal = self._need_renewal, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def _set_timers(self, session: Session) -> None:
        self._clear_timers()
        now = self._clock()
        self._renew_timer = self._loop.call_later(max(0.0, session.renew_at() - now), self._renew_if_due)
        self._deadline_timer = self._loop.call_later(
            max(0.0, session.trust.deadline - now), self._at_deadline, session
        )

    def _clear_timers(self) -> None:
        for timer in (self._renew_timer, self._deadline_timer):
            if timer is not None:
                timer.cancel()

    def _renew_if_due(self) -> None:
        self.check_deadline()
        if self._renewal is None:
            self.renew_now()

    def check_deadline(self) -> None:
        """End the session if its deadline has passed."""
        session = self.session
        if session is not None and not session.may_be_relied_on(self._clock()):
            self.end(session, "its deadline passed without an answered renewal")

    def look_at_clock(self, then: Callable[[], None]) -> None:
        """It was turned: end the session or renew it, if that is due, and call `then` after that."""
        self.check_deadline()
        if self.session is None or self._clock() < self.session.renew_at():
            then()
        else:
            self.ask_what_is_left(then)

    def ask_what_is_left(self, then: Callable[[], None]) -> None:
        """Renew the session, or learn that it is over, and call `then` after that."""
        if self.session is None:
            then()
            return
        renewed: asyncio.Future[None] = self._loop.create_future()
        renewed.add_done_callback(lambda _: then())
        self._need_renewal.append(renewed)
        self.renew_now()

    def _at_deadline(self, session: Session) -> None:
        self.check_deadline()
        if session is self.session:
            # The loop's clock is ahead of ours by a little.
            self._set_timers(session)


def tell_all(tell: Tell) -> None:
    """Call everyone who wanted to know of a loss, whatever becomes of the others."""
    for callback in tell:
        try:
            callback()
        except Exception:
            log.exception("a callback that was told of a lost lease failed")
