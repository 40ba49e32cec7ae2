"""A command's place in the order of its connection, and the connection as its commands see it."""

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from lockd.locks.commands import Refused
from lockd.protocol.requests import Request, RequestError
from lockd.protocol.resp import Reply, encode
from lockd.server.auth import User
from lockd.server.refusals import encode_refusal

Unsent = Callable[[], None]
"""What to do when a reply certainly never left this node."""


class Kind(enum.Enum):
    """What the answer to a command depends on, and so what it may overlap with."""

    LOCAL = enum.auto()
    """Answered at once, from facts that no other command changes."""
    LOG = enum.auto()
    WAIT = enum.auto()
    """As LOG, but it may take for ever, and nothing behind it starts before."""
    READ = enum.auto()
    KEEPALIVE = enum.auto()
    ALONE = enum.auto()
    """Changes the connection, or has a large answer: nothing overlaps with it."""
    LAST = enum.auto()
    """Its reply is written when all before it are answered, and then the connection ends."""

    def overlaps(self, running: "Kind") -> bool:
        """Whether it may start while commands of kind `running` are not answered."""
        if self is running:
            return self is not Kind.ALONE
        return self is Kind.WAIT and running is Kind.LOG


class Turn(Protocol):
    """A command as those who carry it out see it, from its start to its one answer."""

    @property
    def request(self) -> Request | RequestError:
        """What was asked."""

    def answer(self, value: Reply, unsent: Unsent | None = None) -> None:
        """Reply; `unsent` is called should the reply certainly not leave this node."""

    def refuse(self, refused: Refused) -> None:
        """Reply that it is not done, and what the client may conclude."""


@dataclass(slots=True)
class Client:
    """A connection as its commands see it."""

    number: int
    """Counts up within this process; the machine knows the connection by it."""
    user: User | None
    """None until it has authenticated."""
    push: Callable[[bytes, Unsent | None], None]
    """Sends an out-of-band message (RESP3)."""
    resp: int = 2
    name: str = ""
    library: dict[str, str] = field(default_factory=dict)
    waits: int = 0
    """NOTIFY waits that are open."""
    watches: int = 0
    has_room: Callable[[], bool] = lambda: True
    """Whether its output has room for events."""
    wants_room: bool = False
    """A watch of it is behind: `Service.room` is to be called when it has room."""

    @property
    def user_name(self) -> str:
        """Under whom its commands go into the log (G11). Strangers have none to send."""
        assert self.user is not None, "a stranger's command"
        return self.user.name


class CommandTurn:
    """A command's place in the order of its connection, from its arrival to its reply."""

    __slots__ = ("_client", "_on_answer", "kind", "reply", "request", "unsent")

    def __init__(
        self,
        request: Request | RequestError,
        kind: Kind,
        client: Client,
        on_answer: Callable[["CommandTurn"], None],
    ) -> None:
        self.request = request
        self.kind = kind
        self.reply: bytes | None = None
        self.unsent: Unsent | None = None
        self._client = client
        self._on_answer = on_answer

    def answer(self, value: Reply, unsent: Unsent | None = None) -> None:
        self._settle(encode(value, self._client.resp), unsent)

    def refuse(self, refused: Refused) -> None:
        self._settle(encode_refusal(refused), None)

    def _settle(self, reply: bytes, unsent: Unsent | None) -> None:
        assert self.reply is None, "a command is answered once"
        self.reply = reply
        self.unsent = unsent
        self._on_answer(self)
