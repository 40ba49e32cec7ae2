"""The acquisitions on their way: each has one end, by a reply, by a push or by its session's."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from lockd.client.demand import Demand
from lockd.client.link import Call
from lockd.client.queries import GrantReply, WaitEnd, Words, reading
from lockd.errors import (
    Deadlock,
    LimitMismatch,
    LockdError,
    LockTimeout,
    NotHeld,
    OutcomeUnknown,
    Rejected,
    SessionExpired,
    Unavailable,
)

CERTAIN = (LockTimeout, Deadlock, LimitMismatch, NotHeld, SessionExpired)
"""Answers that the lock machine gives to a request that holds nothing, however often it was asked.

Any other refusal is the node's that was asked, and says nothing of what became of the request at an
earlier one: a role that was taken away meanwhile, a limit of that node."""


class Wait:
    """One acquisition. `outcome` is a GrantReply, or the LockdError that was its end."""

    def __init__(self, words: Words, *, demand: Demand, session: str, request: int | str) -> None:
        self.words = words
        self.demand = demand
        self.session = session
        """"" for a request with a TTL until the cluster has told its private session."""
        self.request = request
        self.outcome: asyncio.Future[GrantReply] = asyncio.get_running_loop().create_future()
        self.call: Call | None = None
        self.on_queued: Callable[[], None] = lambda: None
        self.is_queued = False
        """It stands in the lock's queue, as far as is known: its end comes as a push."""
        self.was_refused = False
        """The cluster said that it does not hold: there is nothing to withdraw."""
        self._sends_before = 0

    @property
    def key(self) -> tuple[str, int | str]:
        """How pushes name it: numbers are within a session, a UUID stands for itself."""
        return (self.session if isinstance(self.request, int) else "", self.request)

    @property
    def sends(self) -> int:
        """How often its command has been sent, over all connections."""
        return self._sends_before + (0 if self.call is None else self.call.sends)

    @property
    def may_have_begun(self) -> bool:
        """Whether a node may have taken it up: it queues, or was sent and not refused."""
        return self.is_queued or (self.sends > 0 and not self.was_refused)

    def asked(self, call: Call) -> None:
        """It is asked by this call from now on."""
        self._sends_before = self.sends
        self.call = call

    def on_reply(self, reply: Any) -> None:
        """The reply to its command. It may be sent again after `queued`, and then it comes again."""
        if isinstance(reply, LockTimeout):
            if reply.lock and reply.lock not in self.demand.locks:
                reply = OutcomeUnknown(f"the node's answer is of another lock: {reply}")
            else:
                reply.lock = reply.lock or self.demand.lock
        if isinstance(reply, LockdError):
            self.refuse(reply)
        elif isinstance(reply, dict) and reply.get("status") == "queued":
            self.is_queued = True
            if isinstance(session := reply.get("session"), str) and not isinstance(self.request, int):
                self.session = session
            self.on_queued()
        else:
            self.grant(reply)

    def grant(self, reply: Any) -> None:
        if self.outcome.done():
            return
        try:
            self.outcome.set_result(reading(GrantReply)(reply))
        except OutcomeUnknown as error:
            self.outcome.set_exception(error)

    def refuse(self, error: LockdError) -> None:
        """The cluster answered that the lock is not held by this request, nor waited for."""
        first = self.sends <= 1 and not self.is_queued
        self.was_refused = isinstance(error, CERTAIN) or (first and isinstance(error, Rejected))
        self.give_up(error)

    def give_up(self, error: LockdError) -> None:
        """It ends here, whatever the cluster thinks of it."""
        if not self.outcome.done():
            self.outcome.set_exception(error)


class Waits:
    """All acquisitions on their way, as pushes find them."""

    def __init__(self) -> None:
        self._waits: dict[tuple[str, int | str], Wait] = {}

    def add(self, wait: Wait) -> None:
        self._waits[wait.key] = wait

    def remove(self, wait: Wait) -> None:
        self._waits.pop(wait.key, None)

    def queued(self) -> list[Wait]:
        """Those that stand in a queue: a new connection must ask for their pushes again."""
        return [wait for wait in self._waits.values() if wait.is_queued and not wait.outcome.done()]

    def any_queued(self) -> bool:
        return any(wait.is_queued for wait in self._waits.values())

    def of_session(self, session: str | None) -> list[Wait]:
        """Those of one session, or all."""
        return [wait for wait in self._waits.values() if session in (None, wait.session)]

    def on_push(self, kind: str, message: Any) -> Wait | None:
        """Take a push. Returns the wait that has to be asked for again, if it is that kind of news."""
        if kind not in ("lock.granted", "lock.timeout") or not isinstance(message, dict):
            return None
        session, request = message.get("session"), message.get("request")
        if not isinstance(request, int | str):
            return None
        wait = self._waits.get((str(session) if isinstance(request, int) else "", request))
        if wait is None:
            return None  # it was withdrawn meanwhile: CANCEL ends the grant as well
        if kind == "lock.granted":
            wait.grant(message)
            return None
        try:
            error = msgspec.convert(message, WaitEnd).error()
        except msgspec.ValidationError:
            return wait
        if isinstance(error, Unavailable | OutcomeUnknown):
            return wait
        wait.refuse(error)
        return None
