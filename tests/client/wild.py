"""An honest little cluster of one behind a node that does mischief with what it says.

The locks, sessions and deadlines are kept by the rules (P1, T2, G3) on a clock that the test turns; what is
lost, late, twice, in disorder, garbled or made up happens on the way to the client. So whatever a
client believes can be held against what is true.
"""

import asyncio
import enum
from dataclasses import dataclass, field
from typing import Any

from lockd.protocol.resp import Reply, encode, encode_error
from tests.client.peer import Error, Peer, locks_of, option

TTL_MS = 10_000
HUGE = 2**62
ACQUISITIONS = ("LOCK.ACQUIRE", "LOCK.ACQUIREALL")


Said = Reply | Error


class Mischief(enum.Enum):
    """What befalls the next answer."""

    LOSE_COMMAND = "the connection ends before the command is heard"
    LOSE_ANSWER = "the connection ends before the answer is sent"
    LATE = "the answer, and what is behind it, comes when the test says so"
    DISORDER = "the answer changes places with the next one"
    TWICE = "the answer comes twice"
    SILENCE = "there is no answer"
    GARBAGE = "the answer is no RESP"
    UNAVAILABLE = "the command is not carried out, and that is said"
    UNKNOWN_DONE = "the command is carried out, and UNKNOWN is said"
    UNKNOWN_UNDONE = "the command is not carried out, and UNKNOWN is said"
    OTHER_LOCK = "a grant is one of another lock"
    OTHER_MODE = "a grant is in another mode"
    HUGE_TTL = "a TTL is longer than any"
    ENDED_UNKNOWN = "a keepalive tells of the end of grants that nobody has"
    STRANGE = "the answer is of another kind"


STRANGE: list[Any] = [
    *(None, "OK", -1, [], ["ended"], {}, {"status": "granted"}, {"status": "queued"}, {"session": 1}),
    *({"members": [1, {"client": 2}]}, {"ttl_ms": "soon", "ended": []}, {"ttl_ms": -5, "ended": []}),
    *({"ttl_ms": 5000, "ended": 1}, {"ttl_ms": 5000}, {"ttl_ms": 5000, "ended": [[1]]}),
]
STRANGE_PUSHES: list[Any] = [
    *(None, [], {"request": []}, {"request": {}}, {"session": 5, "request": 1}),
    *({"request": "nobody's", "session": ""}, {"request": 1, "session": None, "code": 7}),
    {"lock": "a", "session": "f" * 32, "request": 1, "token": 1},
]


@dataclass
class Holding:
    """A grant. Revoked, it is passed on when it is acknowledged or `free_at` has come."""

    token: int
    session: str
    request: str
    locks: tuple[str, ...]
    is_shared: bool
    notice: int = 0
    free_at: float = 0.0


@dataclass
class Life:
    """A session: until when the cluster waits for it."""

    until: float
    requests: dict[str, str] = field(default_factory=dict)
    """What became of each that is over: granted, cancelled."""


class WildPeer(Peer):
    """See the module's text. `now` is its clock, in seconds."""

    def __init__(self) -> None:
        super().__init__(ttl_ms=TTL_MS)
        self.now = 1000.0
        self._lives: dict[str, Life] = {}
        self._holdings: dict[int, Holding] = {}
        self._waiting: list[list[str]] = []
        self._notices = 0
        self._made_up: list[Reply] = []
        self._mischief: list[tuple[str, Mischief, Reply]] = []
        self._late: dict[asyncio.StreamWriter, list[bytes]] = {}
        self._in_disorder: dict[asyncio.StreamWriter, tuple[bytes, list[str]]] = {}

    # What is true.

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for session in [session for session, life in self._lives.items() if life.until <= self.now]:
            self._end(session)
        for holding in list(self._holdings.values()):
            if holding.notice and holding.free_at <= self.now:
                del self._holdings[holding.token]
        self._pass_on()

    def revoke(self, lock: str) -> None:
        """As LOCK.BREAK: its holders are told, and the lock is passed on later."""
        for holding in self._holdings.values():
            if lock in holding.locks and not holding.notice:
                self._notices += 1
                holding.notice = self._notices
                holding.free_at = self.now + TTL_MS / 1000

    def is_held(self, session: str, locks: tuple[str, ...], token: int) -> bool:
        """Whether the cluster keeps everybody else out for that grant."""
        holding = self._holdings.get(token)
        return holding is not None and (holding.session, holding.locks) == (session, locks)

    def lives_until(self, session: str) -> float:
        """When the cluster ends that session unless it is renewed; 0.0 when it is over."""
        return self._lives[session].until if session in self._lives else 0.0

    def is_busy(self, session: str) -> bool:
        """It holds or waits for something."""
        holds = any(holding.session == session for holding in self._holdings.values())
        return holds or any(option(words, "SESSION") == session for words in self._waiting)

    def is_idle(self) -> bool:
        """Nobody holds or waits for anything."""
        return not self._holdings and not self._waiting

    def carry_out(self, words: list[str]) -> Said:
        """Do what a command says, honestly."""
        session = option(words, "SESSION") or (words[1] if len(words) > 1 else "")
        match words[0]:
            case "SESSION.OPEN":
                opened = next(self._sessions)
                self._lives[opened] = Life(self.now + TTL_MS / 1000)
                return {"session": opened, "ttl_ms": TTL_MS}
            case "HELLO":
                return {"cluster": self.cluster, "incarnation": self.incarnation, "node": 1, "proto": 3}
            case "PING" | "CLUSTER.STATUS":
                return {"members": []}
        if session not in self._lives:
            return Error("NOSESSION no such session")
        match words[0]:
            case "SESSION.KEEPALIVE":
                return self._keepalive(session, int(option(words, "ACK") or 0))
            case "SESSION.CLOSE":
                self._end(session)
                self._pass_on()
                return 1
            case "LOCK.ACQUIRE" | "LOCK.ACQUIREALL":
                return self._acquire(words, self._lives[session])
            case "LOCK.CANCEL":
                return self._cancel(session, option(words, "REQUEST"))
            case "LOCK.RELEASE" | "LOCK.RELEASEALL":
                return self._release(session, int(words[2 if words[0] == "LOCK.RELEASE" else 1]))
        return Error(f"ERR unknown command {words[0]}")

    def _keepalive(self, session: str, acknowledged: int) -> Said:
        self._lives[session].until = self.now + TTL_MS / 1000
        mine = [held for held in self._holdings.values() if held.session == session and held.notice]
        for holding in mine:
            if holding.notice <= acknowledged:
                del self._holdings[holding.token]
        self._pass_on()
        ended: list[Reply] = [
            [held.notice, held.locks[0], held.token, "broken: wild"]
            for held in mine
            if held.notice > acknowledged
        ]
        return {"ttl_ms": TTL_MS, "ended": [*ended, *self._made_up]}

    def _make_up_notice(self) -> None:
        """Of a grant that nobody has. Numbers are the cluster's own: what stands behind one was told too."""
        self._notices += 1
        self._made_up.append([self._notices, "a", 2**50 + self._notices, "broken: nobody's"])

    def _acquire(self, words: list[str], life: Life) -> Said:
        session, request = option(words, "SESSION"), option(words, "REQUEST")
        for holding in self._holdings.values():
            if (holding.session, holding.request) == (session, request):
                return self._grant_of(words, holding)
        if request in life.requests:
            return Error("NOTHELD the grant of this request has ended")
        if words not in self._waiting:
            if not self._is_free(words, self._waiting):
                if "WAIT" not in words:
                    named = f'{{"lock":"{locks_of(words)[0]}","holder":"wild"}}'
                    return Error(f"BUSY held | {named}")
                self._waiting.append(words)
                return self.queued(words)
            return self._grant_of(words, self._hold(words))
        return self.queued(words)

    def _is_free(self, words: list[str], ahead: list[list[str]]) -> bool:
        locks, is_shared = set(locks_of(words)), option(words, "MODE") == "shared"
        held = [holding for holding in self._holdings.values() if locks & set(holding.locks)]
        blocked = any(locks & set(locks_of(other)) for other in ahead)
        return not blocked and (not held or (is_shared and all(each.is_shared for each in held)))

    def _hold(self, words: list[str]) -> Holding:
        reply = self.grant(words)
        holding = Holding(
            token=self._tokens,
            session=option(words, "SESSION"),
            request=option(words, "REQUEST"),
            locks=tuple(locks_of(words)),
            is_shared=reply["mode"] == "shared",
        )
        self._holdings[holding.token] = holding
        self._lives[holding.session].requests[holding.request] = "granted"
        return holding

    def _grant_of(self, words: list[str], holding: Holding) -> dict[str, Reply]:
        before, self._tokens = self._tokens, holding.token - 1
        reply = self.grant(words)
        self._tokens = before
        return reply

    def _cancel(self, session: str, request: str) -> int:
        self._lives[session].requests[request] = "cancelled"
        waiting = [words for words in self._waiting if _is_of(words, session, request)]
        held = [
            each for each in self._holdings.values() if (each.session, each.request) == (session, request)
        ]
        for words in waiting:
            self._waiting.remove(words)
        for holding in held:
            del self._holdings[holding.token]
        self._pass_on()
        return int(bool(waiting or held))

    def _release(self, session: str, token: int) -> int:
        holding = self._holdings.get(token)
        if holding is None or holding.session != session:
            return 0
        del self._holdings[token]
        self._pass_on()
        return len(holding.locks)

    def _end(self, session: str) -> None:
        self._lives.pop(session, None)
        self._waiting = [words for words in self._waiting if option(words, "SESSION") != session]
        for holding in list(self._holdings.values()):
            if holding.session == session:
                del self._holdings[holding.token]

    def _pass_on(self) -> None:
        ahead: list[list[str]] = []
        for words in list(self._waiting):
            if self._is_free(words, ahead):
                self._waiting.remove(words)
                holding = self._hold(words)
                self.push("lock.granted", {**self._grant_of(words, holding), **self.wait_of(words)})
            else:
                ahead.append(words)

    # What is said.

    def make_mischief(self, verb: str, kind: Mischief, strange: Reply = None) -> None:
        """To the next answer to that verb, "" for any but the greeting."""
        self._mischief.append((verb, kind, strange))

    def behave(self) -> None:
        """No more mischief; what is late is said now."""
        self._mischief.clear()
        self.say_late()

    def say_late(self) -> None:
        late, self._late = self._late, {}
        for writer, said in late.items():
            if writer in self._writers:
                writer.write(b"".join(said))

    async def _do(self, words: list[str], writer: asyncio.StreamWriter) -> bool:
        async with self._news:
            self.commands.append(words)
            self._news.notify_all()
        kind, strange = self._next_mischief(words)
        if kind is Mischief.LOSE_COMMAND:
            return False
        if kind is Mischief.ENDED_UNKNOWN:
            self._make_up_notice()
        done = kind not in (Mischief.UNAVAILABLE, Mischief.UNKNOWN_UNDONE)
        answer = self._garbled(self.carry_out(words) if done else 0, kind, strange)
        if kind is Mischief.LOSE_ANSWER:
            return False
        if kind is Mischief.SILENCE:
            self._muted.add(writer)
        if kind is Mischief.LATE:
            self._late.setdefault(writer, [])
        if writer not in self._muted:
            # A number or a refusal says too little of what it answers: only TCP's order tells it apart.
            count = 2 if kind is Mischief.TWICE and answer.startswith(b"%") else 1
            self._say(answer * count, writer, words, waits=kind is Mischief.DISORDER)
        return True

    def _next_mischief(self, words: list[str]) -> tuple[Mischief | None, Reply]:
        for each in self._mischief if words[0] != "HELLO" else ():
            if each[0] in ("", words[0]):
                self._mischief.remove(each)
                return each[1:]
        return None, None

    def _garbled(self, answer: Said, kind: Mischief | None, strange: Reply) -> bytes:
        match kind:
            case Mischief.GARBAGE:
                return b"HTTP/1.1 400 Bad Request\r\n\r\n"
            case Mischief.UNAVAILABLE:
                answer = Error("UNAVAILABLE no leader is known")
            case Mischief.UNKNOWN_DONE | Mischief.UNKNOWN_UNDONE:
                answer = Error("UNKNOWN the leader changed")
            case Mischief.STRANGE:
                answer = strange
        if isinstance(answer, dict):
            answer = {**answer, **_lie(answer, kind)}
        if isinstance(answer, Error):
            code, _, text = answer.partition(" ")
            return encode_error(code, text)
        return encode(answer, 3)

    def _say(self, said: bytes, writer: asyncio.StreamWriter, words: list[str], *, waits: bool) -> None:
        earlier = self._in_disorder.pop(writer, None)
        if waits and earlier is None:
            self._in_disorder[writer] = (said, words)
            return
        if earlier is not None:
            # Two answers to one lock's requests can't be told apart but by their order, which TCP keeps.
            said = earlier[0] + said if _compete(earlier[1], words) else said + earlier[0]
        if writer in self._late:
            self._late[writer].append(said)
        else:
            writer.write(said)


def _lie(answer: dict[str, Reply], kind: Mischief | None) -> dict[str, Reply]:
    is_grant = answer.get("status") == "granted"
    match kind:
        case Mischief.OTHER_LOCK if is_grant:
            return {"lock": "other"}
        case Mischief.OTHER_MODE if is_grant:
            return {"mode": "semaphore"}
        case Mischief.HUGE_TTL if "ttl_ms" in answer:
            return {"ttl_ms": HUGE}
    return {}


def _compete(first: list[str], second: list[str]) -> bool:
    both = first[0] in ACQUISITIONS and second[0] in ACQUISITIONS
    return both and bool(set(locks_of(first)) & set(locks_of(second)))


def _is_of(words: list[str], session: str, request: str) -> bool:
    return (option(words, "SESSION"), option(words, "REQUEST")) == (session, request)
