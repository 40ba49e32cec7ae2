"""Looking at sessions, locks and queues: reads, which write nothing.

They first ask the driver for a barrier, so they show everything that was acknowledged before they were
asked (SAFETY C6); STALE ones show what this node has applied.
"""

from collections.abc import Callable

from lockd.ids import SessionId
from lockd.locks.commands import Refused
from lockd.locks.machine import LockMachine
from lockd.protocol import requests
from lockd.protocol.resp import Reply
from lockd.server import replies
from lockd.server.port import Driver
from lockd.server.turns import Client, Turn


class Looking:
    """The verbs that read, on top of one driver."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def inspect(self, request: requests.LockInspect, _client: Client, turn: Turn) -> None:
        def look(machine: LockMachine) -> Reply:
            return replies.lock(machine.inspect(request.lock))

        if request.stale:
            turn.answer(look(self._driver.machine))
        else:
            self._read(turn, look)

    def validate(self, request: requests.LockValidate, _client: Client, turn: Turn) -> None:
        self._read(turn, lambda machine: machine.validate(request.lock, request.token))

    def queue(self, request: requests.LockQueue, _client: Client, turn: Turn) -> None:
        self._read(turn, lambda machine: replies.queue(machine.queue(request.lock, request.count)))

    def list_locks(self, request: requests.LockList, client: Client, turn: Turn) -> None:
        user, session = client.user_name, SessionId(request.session)

        def look(machine: LockMachine) -> Reply | Refused:
            page = (request.prefix, request.after, request.count)
            if not session:
                views = machine.locks(*page)
            elif (found := machine.session(session)) is None or found.user != user:
                return Refused("NOSESSION", "no such session: it has expired, was closed, or never was")
            else:
                views = machine.locks_of(session, *page)
            return replies.locks(views, count=request.count, revision=machine.revision)

        self._read(turn, look)

    def list_sessions(self, request: requests.SessionList, _client: Client, turn: Turn) -> None:
        def look(machine: LockMachine) -> Reply:
            return replies.sessions(machine.sessions(request.after, request.count), count=request.count)

        self._read(turn, look)

    def _read(self, turn: Turn, look: Callable[[LockMachine], Reply | Refused]) -> None:
        def ready(refused: Refused | None) -> None:
            found = refused or look(self._driver.machine)
            if isinstance(found, Refused):
                turn.refuse(found)
            else:
                turn.answer(found)

        self._driver.read(ready)
