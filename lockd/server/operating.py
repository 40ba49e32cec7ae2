"""What an operator asks of the cluster: its members, who leads, and a copy of its state.

A change is made by the leader and answered when this node has applied it (SAFETY C7). Each is logged
with the user who asked. A copy is read in parts over the connection that had it made, and is let go
of with that connection or the next copy.
"""

import logging
import secrets
from collections.abc import Callable
from functools import partial

from lockd.ids import NodeId
from lockd.locks.commands import AddMember, Changed, Outcome, PromoteMember, Refused, RemoveMember
from lockd.protocol import requests
from lockd.server import replies
from lockd.server.port import Backup, Driver
from lockd.server.turns import Client, Turn

log = logging.getLogger(__name__)

COPIES_MAX = 8
"""Each is a file as large as the state, and an open descriptor."""


class _Copy:
    """A backup that a connection has asked for, before and after there is one."""

    def __init__(self) -> None:
        self.name = secrets.token_hex(8)
        self.backup: Backup | None = None
        self.is_over = False
        """The connection has ended, or has another one."""


class Operating:
    """The verbs of operators, on top of one driver."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._copies: dict[int, _Copy] = {}
        """At most one of each connection, by its number."""
        self._kept = 0
        """Those, and the ones that are being made for connections which have ended."""

    def members(self, _: requests.ClusterMembers, _client: Client, turn: Turn) -> None:
        turn.answer(replies.members(self._driver.status()))

    # Changes.

    def add(self, request: requests.ClusterAdd, client: Client, turn: Turn) -> None:
        operation = AddMember(request.node, request.peer_address, wants_vote=not request.learner)
        kind = "learner" if request.learner else "node"
        what = f"to add {kind} {request.node} at {request.peer_address!r}"
        self._change(operation, what, client, turn, force=request.force)

    def promote(self, request: requests.ClusterPromote, client: Client, turn: Turn) -> None:
        what = f"to promote node {request.node}"
        self._change(PromoteMember(request.node), what, client, turn, force=request.force)

    def remove(self, request: requests.ClusterRemove, client: Client, turn: Turn) -> None:
        what = f"to remove node {request.node}"
        self._change(RemoveMember(request.node), what, client, turn, force=request.force)

    def transfer(self, request: requests.ClusterTransfer, client: Client, turn: Turn) -> None:
        what = f"that node {request.node} leads" if request.node else "that another node leads"
        self._driver.transfer(
            target=NodeId(request.node), on_outcome=_logged(what, client, partial(_answer, turn))
        )

    def _change(
        self,
        operation: AddMember | PromoteMember | RemoveMember,
        what: str,
        client: Client,
        turn: Turn,
        *,
        force: bool,
    ) -> None:
        what += ", forced" if force else ""
        self._driver.change_members(
            user=client.user_name,
            operation=operation,
            force=force,
            on_outcome=_logged(what, client, partial(_answer, turn)),
        )

    # Copies of the state.

    def snapshot(self, _: requests.ClusterSnapshot, client: Client, turn: Turn) -> None:
        self.ended(client)
        if self._kept >= COPIES_MAX:
            turn.refuse(Refused("LIMIT", f"this node has {self._kept} snapshots open, and keeps no more"))
            return
        copy = self._copies[client.number] = _Copy()
        self._kept += 1

        def ready(backup: Backup | Refused) -> None:
            if isinstance(backup, Refused):
                self._kept -= 1
                turn.refuse(backup)
                return
            copy.backup = backup
            if copy.is_over:  # the connection has ended meanwhile
                self._let_go(copy)
            turn.answer(replies.backup(copy.name, backup))

        log.info("user '%s' makes a copy of the state", client.user_name)
        self._driver.backup(ready)

    def snapshot_part(self, request: requests.ClusterSnapshotPart, client: Client, turn: Turn) -> None:
        copy = self._copies.get(client.number)
        if copy is None or copy.backup is None or copy.name != request.backup:
            text = f"no snapshot '{request.backup}' was made over this connection, or a later one was"
            turn.refuse(Refused("ERR", text))
            return
        reader = copy.backup.reader
        if request.offset > reader.size:
            turn.refuse(Refused("ERR", f"offset {request.offset} is behind the end at {reader.size}"))
            return
        turn.answer(reader.read(request.offset, request.count))

    def ended(self, client: Client) -> None:
        """Let go of the copy that the connection has, if any."""
        copy = self._copies.pop(client.number, None)
        if copy is not None:
            copy.is_over = True
            self._let_go(copy)

    def _let_go(self, copy: _Copy) -> None:
        """One that is still being made counts until it is ready."""
        if copy.backup is not None:
            copy.backup.reader.close()
            self._kept -= 1


def _logged(what: str, client: Client, then: Callable[[Outcome], None]) -> Callable[[Outcome], None]:
    """Log the wish of an operator now, and what came of it before `then` hears of it."""
    user = client.user_name
    log.info("user '%s' asks %s", user, what)

    def done(outcome: Outcome) -> None:
        log.info("user '%s' asked %s: %s", user, what, replies.told(outcome))
        then(outcome)

    return done


def _answer(turn: Turn, outcome: Outcome) -> None:
    match outcome:
        case Refused():
            turn.refuse(outcome)
        case Changed(count):
            turn.answer(count)
        case _:
            raise AssertionError(f"{outcome!r} does not answer an operator")
