"""The table of what each request does: whose it is to make, what it may overlap with, who does it."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from lockd.locks.commands import Refused
from lockd.protocol import requests
from lockd.server.auth import BREAK, LOCK, OPERATOR, User, Users
from lockd.server.greeting import Greeting
from lockd.server.locking import Locking
from lockd.server.looking import Looking
from lockd.server.operating import Operating
from lockd.server.port import Driver
from lockd.server.turns import Client, Kind, Turn
from lockd.server.watching import Watching

_ANYONE: frozenset[str] = frozenset()
_LOOK = frozenset({LOCK, OPERATOR})
_USE = frozenset({LOCK})
_OPERATE = frozenset({OPERATOR})
_FORCE = frozenset({BREAK})


_FOR_STRANGERS = (requests.Hello, requests.Auth, requests.Quit, requests.StreamError)


class _Rule(NamedTuple):
    """A request's row."""

    start: Callable[[Any, Client, Turn], None]
    kind: Kind
    roles: frozenset[str]
    """Any one of these is enough; none is needed when empty, but to have been let in."""


class Service:
    """The verbs, on top of one driver."""

    def __init__(self, driver: Driver, users: Users | None, *, count_clients: Callable[[], int]) -> None:
        self.numbers = itertools.count(1)
        """Of the connections of this process, from whichever side they come in."""
        self._driver = driver
        self._watching = watching = Watching(driver.history)
        greeting = Greeting(driver, users, count_clients=count_clients, count_watches=lambda: watching.count)
        locking, looking = Locking(driver), Looking(driver)
        self._operating = operating = Operating(driver)
        self._rules: dict[type[Any], _Rule] = {
            requests.Hello: _Rule(greeting.hello, Kind.ALONE, _ANYONE),
            requests.Auth: _Rule(greeting.auth, Kind.ALONE, _ANYONE),
            requests.Ping: _Rule(greeting.ping, Kind.LOCAL, _ANYONE),
            requests.Quit: _Rule(greeting.quit, Kind.LAST, _ANYONE),
            requests.Info: _Rule(greeting.info, Kind.LOCAL, _ANYONE),
            requests.Select: _Rule(greeting.select, Kind.LOCAL, _ANYONE),
            requests.ClientSetName: _Rule(greeting.client_setname, Kind.LOCAL, _ANYONE),
            requests.ClientGetName: _Rule(greeting.client_getname, Kind.LOCAL, _ANYONE),
            requests.ClientId: _Rule(greeting.client_id, Kind.LOCAL, _ANYONE),
            requests.ClientSetInfo: _Rule(greeting.client_setinfo, Kind.LOCAL, _ANYONE),
            requests.CommandInfo: _Rule(greeting.command_info, Kind.LOCAL, _ANYONE),
            requests.CommandCount: _Rule(greeting.command_count, Kind.LOCAL, _ANYONE),
            requests.CommandDocs: _Rule(greeting.command_docs, Kind.LOCAL, _ANYONE),
            requests.ClusterStatusRequest: _Rule(greeting.cluster_status, Kind.LOCAL, _ANYONE),
            requests.SessionOpen: _Rule(locking.session_open, Kind.LOG, _USE),
            requests.SessionKeepalive: _Rule(locking.session_keepalive, Kind.KEEPALIVE, _USE),
            requests.SessionClose: _Rule(locking.session_close, Kind.LOG, _USE),
            requests.LockAcquire: _Rule(locking.acquire, Kind.LOG, _USE),
            requests.LockAcquireAll: _Rule(locking.acquire_all, Kind.LOG, _USE),
            requests.LockCancel: _Rule(locking.cancel, Kind.LOG, _USE),
            requests.LockRelease: _Rule(locking.release, Kind.LOG, _USE),
            requests.LockReleaseAll: _Rule(locking.release_all, Kind.LOG, _USE),
            requests.LockMeta: _Rule(locking.change_meta, Kind.LOG, _USE),
            requests.LockBreak: _Rule(locking.break_grant, Kind.LOG, _FORCE),
            requests.LockInspect: _Rule(looking.inspect, Kind.READ, _LOOK),
            requests.LockValidate: _Rule(looking.validate, Kind.READ, _LOOK),
            requests.LockQueue: _Rule(looking.queue, Kind.ALONE, _LOOK),
            requests.LockList: _Rule(looking.list_locks, Kind.ALONE, _LOOK),
            requests.SessionList: _Rule(looking.list_sessions, Kind.ALONE, _LOOK),
            requests.LockWatch: _Rule(watching.watch, Kind.ALONE, _LOOK),
            requests.LockUnwatch: _Rule(watching.unwatch, Kind.ALONE, _LOOK),
            requests.ClusterMembers: _Rule(operating.members, Kind.LOCAL, _OPERATE),
            requests.ClusterAdd: _Rule(operating.add, Kind.ALONE, _OPERATE),
            requests.ClusterPromote: _Rule(operating.promote, Kind.ALONE, _OPERATE),
            requests.ClusterRemove: _Rule(operating.remove, Kind.ALONE, _OPERATE),
            requests.ClusterTransfer: _Rule(operating.transfer, Kind.ALONE, _OPERATE),
            requests.ClusterSnapshot: _Rule(operating.snapshot, Kind.ALONE, _OPERATE),
            requests.ClusterSnapshotPart: _Rule(operating.snapshot_part, Kind.ALONE, _OPERATE),
        }

    def kind_of(self, request: requests.Request | requests.RequestError) -> Kind:
        """What it may overlap with."""
        if isinstance(request, requests.RequestError):
            return Kind.LAST if isinstance(request, requests.StreamError) else Kind.LOCAL
        if isinstance(request, requests.LockAcquire | requests.LockAcquireAll):
            return Kind.LOG if request.wait_ms == 0 or request.notify else Kind.WAIT
        return self._rules[type(request)].kind

    def start(self, turn: Turn, client: Client) -> None:
        """Begin a command; `turn.answer` follows, maybe before this returns.

        Whoever has not been let in learns nothing, not even whether a command exists.
        """
        user, request = client.user, turn.request
        if user is None and not isinstance(request, _FOR_STRANGERS):
            turn.refuse(Refused("NOAUTH", "authentication required: AUTH user password"))
            return
        if isinstance(request, requests.RequestError):
            turn.refuse(Refused("ERR", str(request)))
            return
        objection = None if user is None else self.objection_to(request, user)
        if objection is not None:
            turn.refuse(objection)
            return
        self._rules[type(request)].start(request, client, turn)

    def objection_to(self, request: requests.Request, user: User) -> Refused | None:
        """Why this user may not ask this, if so."""
        rule = self._rules[type(request)]
        if user.has_any(rule.roles):
            return None
        roles = " or ".join(sorted(rule.roles))
        return Refused("NOPERM", f"user '{user.name}' needs the role {roles}")

    def gone(self, client: Client) -> None:
        """The connection has ended with log commands unanswered or waits open (G4)."""
        self._driver.connection_gone(client.number)

    def ended(self, client: Client) -> None:
        """The connection has ended: let go of what it had open."""
        self._operating.ended(client)
        self._watching.ended(client)

    def room(self, client: Client) -> None:
        """The output of a connection whose watches are behind has room again."""
        self._watching.room(client)
