"""One acquisition, from its command to its end, whichever way that comes (SAFETY G3, K4)."""

import asyncio
from collections.abc import Callable
from typing import Any

from lockd.client import queries
from lockd.client.demand import Demand
from lockd.client.duties import Duties
from lockd.client.link import Link
from lockd.client.options import ClientOptions
from lockd.client.queries import GrantReply, Greeting
from lockd.client.waits import Wait, Waits
from lockd.errors import LockTimeout, OutcomeUnknown
from lockd.ids import ClusterId, Fence, FencingToken, Incarnation

NO_SESSION = "0" * 32
"""Where the protocol wants a session and the request's UUID says it all."""
ASK_AGAIN_SECONDS = 0.02


class Acquiring:
    """All acquisitions of one client that are on their way."""

    def __init__(
        self, options: ClientOptions, link: Link, duties: Duties, *, accept: Callable[[Greeting], str]
    ) -> None:
        """`accept` says what is wrong with a cluster and incarnation, "" for nothing."""
        self._options = options
        self._link = link
        self._duties = duties
        self._accept = accept
        self._loop = asyncio.get_running_loop()
        self._waits = Waits()

    def any_queued(self) -> bool:
        """Whether an end is to come as a push, for which a connection is needed."""
        return self._waits.any_queued()

    def of_session(self, session: str | None) -> list[Wait]:
        """Those of one session, or all."""
        return self._waits.of_session(session)

    async def obtain(self, acquisition: Wait) -> Fence:
        """Ask, wait, and return the fence of the grant. Raises what its end was.

        Whoever is told an error, or is cancelled, withdraws it.
        """
        began, wait = self._loop.time(), acquisition.demand.wait
        try:
            async with asyncio.timeout(self._options.ttl) as limit:

                def on_queued() -> None:
                    if not limit.expired():
                        limit.reschedule(None if wait is None else began + wait + self._link.answer_timeout)

                acquisition.on_queued = on_queued
                self._waits.add(acquisition)
                self._send(acquisition)
                return self._fence_of(await acquisition.outcome, acquisition.demand)
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

    def probe_while_waiting(self, acquisition: Wait) -> None:
        """Find out whether the node is still there: no keepalive does so for a wait without our session."""
        if acquisition.is_queued:
            self._link.call(("PING",), lambda _: None)
        if not acquisition.outcome.done():
            self._loop.call_later(self._link.answer_timeout, self.probe_while_waiting, acquisition)

    def withdraw(self, acquisition: Wait, *, at_most: float | None = None) -> None:
        """See to it that an acquisition which was given up holds nothing, now or later (K4)."""
        if acquisition.was_refused or acquisition.sends == 0:
            return
        session = acquisition.session
        query = queries.cancel(
            acquisition.demand.lock, session=session or NO_SESSION, request=acquisition.request
        )
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

    # What the link tells.

    def ask_for_pushes(self) -> None:
        """A new connection: it gets the pushes of those that wait once they have been asked for there."""
        for wait in self._waits.queued():
            self._send(wait)

    def on_push(self, kind: str, message: Any) -> None:
        """Take a push; one that is no news of a wait of ours is nobody's."""
        wait = self._waits.on_push(kind, message)
        if wait is not None:
            self._loop.call_later(ASK_AGAIN_SECONDS, self._ask_again, wait, wait.sends)

    def _ask_again(self, wait: Wait, sends: int) -> None:
        """Unless a new connection has asked meanwhile.

        Where it is asked twice over one connection, the first is told that the answer goes to the
        second. That is the same news again, and would be without end.
        """
        if wait.sends == sends:
            self._send(wait)
