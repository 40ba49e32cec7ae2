"""Sessions and locks: requests become commands of the lock state machine, outcomes replies.

What changes anything goes through the log, under the user that this node has let in (SAFETY G11).
What only looks is in `looking`.
"""

import logging
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lockd.locks.commands import (
    WAIT_FOREVER,
    AcknowledgeNotices,
    Acquire,
    AcquireAll,
    Break,
    Cancel,
    Changed,
    ChangeMeta,
    CloseSession,
    Granted,
    OpenSession,
    Operation,
    Outcome,
    Queued,
    Refused,
    Release,
    ReleaseAll,
    RequestOrphaned,
    SessionOpened,
)
from lockd.protocol import requests, resp
from lockd.protocol.resp import encode_push
from lockd.server import replies
from lockd.server.port import Driver
from lockd.server.turns import Client, Turn

log = logging.getLogger(__name__)

WAITS_PER_CONNECTION_MAX = 1024
"""NOTIFY waits that one connection may have open."""


class Locking:
    """The verbs of sessions and locks, on top of one driver."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    # Through the log.

    def session_open(self, request: requests.SessionOpen, client: Client, turn: Turn) -> None:
        self._submit(
            client,
            OpenSession(request.ttl_ms, request.name, request.meta),
            partial(_answer_plainly, turn),
            session=secrets.token_hex(16),
        )

    def session_close(self, request: requests.SessionClose, client: Client, turn: Turn) -> None:
        self._submit(client, CloseSession(), partial(_answer_plainly, turn), session=request.session)

    def session_keepalive(self, request: requests.SessionKeepalive, client: Client, turn: Turn) -> None:
        """What is acknowledged goes into the log first: the renewal then tells what is left (K7)."""

        def renew() -> None:
            self._driver.keepalive(user=client.user_name, session=request.session, on_outcome=renewed)

        def renewed(outcome: Outcome) -> None:
            if isinstance(outcome, SessionOpened):
                turn.answer(replies.renewed(outcome))
            else:
                _answer_plainly(turn, outcome)

        def acknowledged(outcome: Outcome) -> None:
            if isinstance(outcome, Refused):
                turn.refuse(outcome)
            else:
                renew()

        if request.acknowledged:
            operation = AcknowledgeNotices(request.acknowledged)
            self._submit(client, operation, acknowledged, session=request.session)
        else:
            renew()

    def acquire(self, request: requests.LockAcquire, client: Client, turn: Turn) -> None:
        session, name = request.session, request.request
        if request.ttl_ms:
            session, name = secrets.token_hex(16), name or str(uuid.uuid4())
        operation = Acquire(
            request.lock,
            request.ttl_ms,
            _wait_ms(request.wait_ms),
            request.meta,
            request.notify,
            mode=request.mode,
            limit=request.limit,
            weight=request.weight,
            max_hold_ms=request.max_hold_ms,
            delay_ms=request.delay_ms,
        )
        self._ask(
            _Asked(self, request.lock, request, client, client.user_name, turn, name), operation, session
        )

    def acquire_all(self, request: requests.LockAcquireAll, client: Client, turn: Turn) -> None:
        operation = AcquireAll(request.locks, _wait_ms(request.wait_ms), request.meta, request.notify)
        asked = _Asked(self, min(request.locks), request, client, client.user_name, turn, request.request)
        self._ask(asked, operation, request.session)

    def _ask(self, asked: "_Asked", operation: Acquire | AcquireAll, session: str) -> None:
        client, turn = asked.client, asked.turn
        if operation.notify and client.resp != 3:
            turn.refuse(Refused("ERR", "NOTIFY needs RESP3: send HELLO 3 first"))
        elif operation.notify and client.waits >= WAITS_PER_CONNECTION_MAX:
            text = f"NOTIFY waits of one connection: at most {WAITS_PER_CONNECTION_MAX}"
            turn.refuse(Refused("LIMIT", text))
        else:
            self._submit(
                client,
                operation,
                asked.on_outcome,
                session=session,
                owner=asked.request.owner,
                request=asked.name,
            )

    def cancel(self, request: requests.LockCancel, client: Client, turn: Turn) -> None:
        self._submit(
            client,
            Cancel(request.lock),
            partial(_answer_plainly, turn),
            session=request.session,
            request=request.request,
        )

    def release(self, request: requests.LockRelease, client: Client, turn: Turn) -> None:
        self._submit(
            client,
            Release(request.lock, request.token),
            partial(_answer_plainly, turn),
            session=request.session,
        )

    def release_all(self, request: requests.LockReleaseAll, client: Client, turn: Turn) -> None:
        operation = ReleaseAll(request.token)
        self._submit(client, operation, partial(_answer_plainly, turn), session=request.session)

    def change_meta(self, request: requests.LockMeta, client: Client, turn: Turn) -> None:
        operation = ChangeMeta(request.lock, request.token, request.meta)
        self._submit(client, operation, partial(_answer_plainly, turn), session=request.session)

    def break_grant(self, request: requests.LockBreak, client: Client, turn: Turn) -> None:
        """Who took a grant from its holder, and why, is in this node's log whatever comes of it."""
        user = client.user_name
        what = f"lock {request.lock!r}, token {request.token}{', now' if request.now else ''}"
        log.warning("user '%s' breaks %s: %s", user, what, request.reason)

        def broken(outcome: Outcome) -> None:
            log.warning("user '%s' has asked to break %s: %s", user, what, replies.told(outcome))
            _answer_plainly(turn, outcome)

        operation = Break(request.lock, request.token, request.reason, request.now)
        self._submit(client, operation, broken, session="")

    def grant(self, granted: Granted, asked: "_Asked") -> dict[str, resp.Reply]:
        machine = self._driver.machine
        grant = replies.grant(granted, machine.cluster, machine.incarnation)
        return (
            grant | {"locks": granted.locks} if isinstance(asked.request, requests.LockAcquireAll) else grant
        )

    def give_back(self, asked: "_Asked", granted: Granted) -> None:
        """A grant reached nobody: it ends, unless its client asks for it again in time (G4)."""
        self._driver.submit(
            user=asked.user,
            session=granted.session,
            owner=asked.request.owner,
            request=asked.name,
            operation=RequestOrphaned(granted.lock, asked.client.number),
            connection=0,
            on_outcome=_ignore,
        )

    def _submit(
        self,
        client: Client,
        operation: Operation,
        on_outcome: Callable[[Outcome], None],
        *,
        session: str,
        owner: str = "",
        request: int | str = 0,
    ) -> None:
        self._driver.submit(
            user=client.user_name,
            session=session,
            owner=owner,
            request=request,
            operation=operation,
            connection=client.number,
            on_outcome=on_outcome,
        )


@dataclass(slots=True)
class _Asked:
    """A request for locks on its way: one reply, or under NOTIFY a reply and a push."""

    locking: Locking
    lock: str
    """The one that stands for all of an ACQUIREALL: the first by name."""
    request: requests.LockAcquire | requests.LockAcquireAll
    client: Client
    user: str
    """Who asked; the client may have become someone else since."""
    turn: Turn
    name: int | str
    """The request's id; a UUID drawn here when a TTL request brought none."""
    queued_in: str = ""
    """The session in which a NOTIFY wait is open."""

    def on_outcome(self, outcome: Outcome) -> None:
        if isinstance(outcome, Queued):
            # A blocking WAIT is told nothing until its end.
            if self.request.notify and not self.queued_in:
                self.queued_in = outcome.session
                self.client.waits += 1
                self.turn.answer(replies.queued(outcome, self.name))
        elif self.queued_in:
            self.client.waits -= 1
            self._push_end(outcome)
        elif isinstance(outcome, Granted):
            self.turn.answer(
                self.locking.grant(outcome, self), partial(self.locking.give_back, self, outcome)
            )
        else:
            _answer_plainly(self.turn, outcome)

    def _push_end(self, outcome: Outcome) -> None:
        if isinstance(outcome, Granted):
            message = self.locking.grant(outcome, self) | {"request": self.name}
            self.client.push(
                encode_push("lock.granted", message), partial(self.locking.give_back, self, outcome)
            )
        else:
            assert isinstance(outcome, Refused), outcome
            ended = replies.wait_ended(outcome, lock=self.lock, session=self.queued_in, request=self.name)
            self.client.push(encode_push("lock.timeout", ended), None)


def _wait_ms(asked: int | None) -> int:
    return WAIT_FOREVER if asked is None else asked


def _ignore(_: Outcome) -> None:
    """The driver sees to it that a RequestOrphaned gets into the log."""


def _answer_plainly(turn: Turn, outcome: Outcome) -> None:
    """The reply to everything but a grant, a queued wait or a renewal."""
    match outcome:
        case Refused():
            turn.refuse(outcome)
        case Changed(count):
            turn.answer(count)
        case SessionOpened():
            turn.answer(replies.opened(outcome))
        case _:
            raise AssertionError(f"{outcome!r} does not answer {turn.request!r}")
