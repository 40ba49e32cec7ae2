"""Sessions and locks: requests become commands of the lock state machine, outcomes replies.

What changes anything goes through the log, under the user that this node has let in (SAFETY G11).
Reads first ask the driver for a barrier (C6).
"""

import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lockd.locks.commands import (
    WAIT_FOREVER,
    Acquire,
    Cancel,
    Changed,
    CloseSession,
    Granted,
    OpenSession,
    Operation,
    Outcome,
    Queued,
    Refused,
    Release,
    RequestOrphaned,
    SessionOpened,
)
from lockd.protocol import requests, resp
from lockd.protocol.resp import encode, encode_error, encode_push
from lockd.server import replies
from lockd.server.port import Driver
from lockd.server.turns import Client, Turn

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
            partial(_answer_plainly, client, turn),
            session=secrets.token_hex(16),
        )

    def session_close(self, request: requests.SessionClose, client: Client, turn: Turn) -> None:
        self._submit(client, CloseSession(), partial(_answer_plainly, client, turn), session=request.session)

    def session_keepalive(self, request: requests.SessionKeepalive, client: Client, turn: Turn) -> None:
        def renewed(outcome: Outcome) -> None:
            if isinstance(outcome, SessionOpened):
                turn.answer(encode({"ttl_ms": outcome.ttl_ms, "ended": []}, client.resp))
            else:
                _answer_plainly(client, turn, outcome)

        self._driver.keepalive(user=client.user_name, session=request.session, on_outcome=renewed)

    def acquire(self, request: requests.LockAcquire, client: Client, turn: Turn) -> None:
        if request.notify and client.resp != 3:
            turn.answer(encode_error("ERR", "NOTIFY needs RESP3: send HELLO 3 first"))
            return
        if request.notify and client.waits >= WAITS_PER_CONNECTION_MAX:
            text = f"NOTIFY waits of one connection: at most {WAITS_PER_CONNECTION_MAX}"
            turn.answer(encode_error("LIMIT", text))
            return
        session, name = request.session, request.request
        if request.ttl_ms:
            session, name = secrets.token_hex(16), name or str(uuid.uuid4())
        wait_ms = WAIT_FOREVER if request.wait_ms is None else request.wait_ms
        asked = _Asked(self, request, client, client.user_name, turn, name)
        self._submit(
            client,
            Acquire(request.lock, request.ttl_ms, wait_ms, request.meta, request.notify),
            asked.on_outcome,
            session=session,
            owner=request.owner,
            request=name,
        )

    def cancel(self, request: requests.LockCancel, client: Client, turn: Turn) -> None:
        self._submit(
            client,
            Cancel(request.lock),
            partial(_answer_plainly, client, turn),
            session=request.session,
            request=request.request,
        )

    def release(self, request: requests.LockRelease, client: Client, turn: Turn) -> None:
        self._submit(
            client,
            Release(request.lock, request.token),
            partial(_answer_plainly, client, turn),
            session=request.session,
        )

    def grant(self, granted: Granted) -> dict[str, resp.Reply]:
        machine = self._driver.machine
        return replies.grant(granted, machine.cluster, machine.incarnation)

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

    # Reads.

    def inspect(self, request: requests.LockInspect, client: Client, turn: Turn) -> None:
        def look(refused: Refused | None = None) -> None:
            if refused is not None:
                turn.answer(replies.refusal(refused))
            else:
                turn.answer(encode(replies.lock(self._driver.machine.inspect(request.lock)), client.resp))

        if request.stale:
            look()
        else:
            self._driver.read(look)

    def list_locks(self, request: requests.LockList, client: Client, turn: Turn) -> None:
        def look(refused: Refused | None) -> None:
            if refused is not None:
                turn.answer(replies.refusal(refused))
                return
            machine = self._driver.machine
            views = machine.locks(request.prefix, request.after, request.count)
            page = replies.locks(views, count=request.count, revision=machine.revision)
            turn.answer(encode(page, client.resp))

        self._driver.read(look)

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
    """A LOCK.ACQUIRE on its way: one reply, or under NOTIFY a reply and a push."""

    locking: Locking
    request: requests.LockAcquire
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
                self.turn.answer(encode(replies.queued(outcome, self.name), self.client.resp))
        elif self.queued_in:
            self.client.waits -= 1
            self._push_end(outcome)
        elif isinstance(outcome, Granted):
            reply = encode(self.locking.grant(outcome), self.client.resp)
            self.turn.answer(reply, partial(self.locking.give_back, self, outcome))
        else:
            _answer_plainly(self.client, self.turn, outcome)

    def _push_end(self, outcome: Outcome) -> None:
        if isinstance(outcome, Granted):
            message = self.locking.grant(outcome) | {"request": self.name}
            self.client.push(
                encode_push("lock.granted", message), partial(self.locking.give_back, self, outcome)
            )
        else:
            assert isinstance(outcome, Refused), outcome
            ended = replies.wait_ended(
                outcome, lock=self.request.lock, session=self.queued_in, request=self.name
            )
            self.client.push(encode_push("lock.timeout", ended), None)


def _ignore(_: Outcome) -> None:
    """The driver sees to it that a RequestOrphaned gets into the log."""


def _answer_plainly(client: Client, turn: Turn, outcome: Outcome) -> None:
    """The reply to everything but a grant or a queued wait."""
    match outcome:
        case Refused():
            turn.answer(replies.refusal(outcome))
        case Changed(count):
            turn.answer(encode(count, client.resp))
        case SessionOpened(session, ttl_ms):
            turn.answer(encode({"session": session, "ttl_ms": ttl_ms}, client.resp))
        case _:
            raise AssertionError(f"{outcome!r} does not answer a {turn.kind}")
