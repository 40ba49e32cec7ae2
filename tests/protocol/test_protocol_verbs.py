"""Words to requests: each verb's forms, and one line for each mistake (SAFETY P6)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockd.protocol.requests import (
    Auth,
    ClusterAdd,
    ClusterMembers,
    ClusterPromote,
    ClusterRemove,
    ClusterSnapshot,
    ClusterSnapshotPart,
    ClusterStatusRequest,
    ClusterTransfer,
    CommandCount,
    CommandInfo,
    Hello,
    LockAcquire,
    LockAcquireAll,
    LockBreak,
    LockCancel,
    LockInspect,
    LockList,
    LockMeta,
    LockQueue,
    LockRelease,
    LockReleaseAll,
    LockUnwatch,
    LockValidate,
    LockWatch,
    Ping,
    Request,
    RequestError,
    SessionKeepalive,
    SessionList,
    SessionOpen,
)
from lockd.protocol.verbs import VERBS, parse

S = "a" * 32
UUID = "6e0d56a2-93a4-4a8f-8ad3-0123456789ab"


def words(line: str | bytes) -> list[bytes]:
    return (line if isinstance(line, bytes) else line.encode()).split(b" ")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("HELLO", Hello(0)),
        ("hello 3 auth u p SetName n", Hello(3, "u", b"p", "n")),
        ("AUTH secret", Auth("default", b"secret")),
        ("auth u secret", Auth("u", b"secret")),
        ("PING", Ping(None)),
        ("ping x", Ping(b"x")),
        ("COMMAND", CommandInfo(None)),
        ("command count", CommandCount()),
        ("COMMAND INFO ping", CommandInfo(("PING",))),
        ("SESSION.OPEN 5000", SessionOpen(5000, "", "")),
        ('session.open 5000 meta {"a":1} name n', SessionOpen(5000, "n", '{"a":1}')),
        (f"SESSION.KEEPALIVE {S}", SessionKeepalive(S)),
        (f"LOCK.ACQUIRE k SESSION {S}", LockAcquire("k", S, 0, "", 0, 0, notify=False, meta="")),
        (
            f"lock.acquire k notify session {S} request 7 owner o wait forever meta [1]",
            LockAcquire("k", S, 0, "o", 7, None, notify=True, meta="[1]"),
        ),
        (
            f"LOCK.ACQUIRE k TTL 5000 WAIT 0 REQUEST {UUID}",
            LockAcquire("k", "", 5000, "", UUID, 0, notify=False, meta=""),
        ),
        (f"SESSION.KEEPALIVE {S} ACK 3", SessionKeepalive(S, 3)),
        ("SESSION.LIST", SessionList(0, 100)),
        ("session.list count 5 after 7", SessionList(7, 5)),
        (
            f"LOCK.ACQUIRE k SESSION {S} MODE shared MAXHOLD 9000",
            LockAcquire("k", S, 0, "", 0, 0, notify=False, meta="", mode="shared", max_hold_ms=9000),
        ),
        (
            f"LOCK.ACQUIRE k SESSION {S} mode EXCLUSIVE delay 5",
            LockAcquire("k", S, 0, "", 0, 0, notify=False, meta="", delay_ms=5),
        ),
        (
            "LOCK.ACQUIRE k TTL 5000 LIMIT 3 WEIGHT 3",
            LockAcquire("k", "", 5000, "", "", 0, notify=False, meta="", limit=3, weight=3),
        ),
        (
            f"LOCK.ACQUIREALL SESSION {S} 2 b a",
            LockAcquireAll(("b", "a"), S, "", 0, 0, notify=False, meta=""),
        ),
        (
            f"lock.acquireall notify owner 7 session {S} wait forever request 4 meta [] 1 1",
            LockAcquireAll(("1",), S, "7", 4, None, notify=True, meta="[]"),
        ),
        (f"LOCK.RELEASEALL 7 SESSION {S}", LockReleaseAll(7, S)),
        (f"LOCK.META k 7 SESSION {S} [1]", LockMeta("k", 7, S, "[1]")),
        ("LOCK.BREAK k 7 REASON stuck", LockBreak("k", 7, "stuck", now=False)),
        ("LOCK.BREAK k 7 now reason stuck", LockBreak("k", 7, "stuck", now=True)),
        ("LOCK.VALIDATE k 7", LockValidate("k", 7)),
        ("LOCK.QUEUE k", LockQueue("k", 100)),
        ("LOCK.QUEUE k COUNT 3", LockQueue("k", 3)),
        (f"LOCK.LIST SESSION {S}", LockList("", "", 100, S)),
        ("LOCK.WATCH a:", LockWatch("a:", None)),
        ("LOCK.WATCH a: FROM 0", LockWatch("a:", 0)),
        ("LOCK.WATCH ", LockWatch("", None)),
        ("LOCK.UNWATCH", LockUnwatch(None)),
        ("LOCK.UNWATCH a:", LockUnwatch("a:")),
        (f"LOCK.CANCEL k SESSION {S} REQUEST 7", LockCancel("k", S, 7)),
        (f"LOCK.CANCEL k SESSION {S} REQUEST {UUID}", LockCancel("k", S, UUID)),
        (f"LOCK.CANCEL k REQUEST {UUID}", LockCancel("k", "", UUID)),
        (f"LOCK.CANCEL k REQUEST {'1' * 32}", LockCancel("k", "", "1" * 32)),
        (f"LOCK.RELEASE k 9007199254740991 SESSION {S}", LockRelease("k", 2**53 - 1, S)),
        ("LOCK.INSPECT k", LockInspect("k", stale=False)),
        ("LOCK.INSPECT k stale", LockInspect("k", stale=True)),
        ("LOCK.LIST", LockList("", "", 100)),
        ("LOCK.LIST COUNT 5 PREFIX a: AFTER a:1", LockList("a:", "a:1", 5)),
        ("CLUSTER.STATUS", ClusterStatusRequest()),
        ("CLUSTER.MEMBERS", ClusterMembers()),
        ("CLUSTER.ADD 4 host:7421", ClusterAdd(4, "host:7421", learner=False, force=False)),
        ("cluster.add 4 [::1]:7421 force learner", ClusterAdd(4, "[::1]:7421", learner=True, force=True)),
        ("CLUSTER.PROMOTE 4", ClusterPromote(4, force=False)),
        ("CLUSTER.PROMOTE 4 FORCE", ClusterPromote(4, force=True)),
        ("CLUSTER.REMOVE 2147483647", ClusterRemove(2**31 - 1, force=False)),
        ("CLUSTER.REMOVE 4 force", ClusterRemove(4, force=True)),
        ("CLUSTER.TRANSFER", ClusterTransfer(0)),
        ("CLUSTER.TRANSFER 3", ClusterTransfer(3)),
        ("CLUSTER.SNAPSHOT", ClusterSnapshot()),
        ("CLUSTER.SNAPSHOT 0123456789abcdef 0 1048576", ClusterSnapshotPart("0123456789abcdef", 0, 2**20)),
        ("LOCK.INSPECT ключ", LockInspect("ключ", stale=False)),
    ],
)
def test_each_verb_is_read(line: str, expected: Request) -> None:
    assert parse(words(line)) == expected


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("FLUSHALL", "unknown command 'FLUSHALL'"),
        ("", "unknown command ''"),
        (b"\xff\xfe", "unknown command"),
        ("LOCK.NOPE p", "unknown command 'LOCK.NOPE'"),
        ("CLIENT", "takes a subcommand"),
        ("CLIENT KILL", "unknown subcommand 'KILL' of 'CLIENT'"),
        ("COMMAND NOPE", "unknown subcommand 'NOPE'"),
        ("PING a b", "wrong number of arguments for 'PING'; usage: PING [message]"),
        ("AUTH", "wrong number of arguments for 'AUTH'"),
        ("LOCK.ACQUIRE", "wrong number of arguments for 'LOCK.ACQUIRE'; usage: LOCK.ACQUIRE name"),
        ("CLUSTER.STATUS x", "wrong number of arguments"),
        ("HELLO x", "the protocol version: 'x' is not a whole number"),
        ("HELLO 4", "4 is not between 2 and 3"),
        ("HELLO 3 AUTH u", "unknown or incomplete option 'AUTH'"),
        ("SELECT 1", "there is only 0"),
        ("SESSION.OPEN ten", "'ten' is not a whole number"),
        ("SESSION.OPEN -5", "-5 is not between 1 and"),
        ("SESSION.OPEN 0", "0 is not between 1 and"),
        ("SESSION.OPEN 1_000", "'1_000' is not a whole number"),
        ("SESSION.OPEN \uff11\uff12", "is not a whole number"),
        ("SESSION.OPEN +5", "is not a whole number"),
        ("SESSION.OPEN 99999999999999", "is not between 1 and"),
        ("SESSION.OPEN " + "9" * 5000, "a number of 5000 digits is not between"),
        ("SESSION.OPEN 5000 NAME", "option NAME needs a value"),
        ("SESSION.OPEN 5000 META {", "META is not JSON"),
        ("SESSION.OPEN 5000 META " + "[" * 4000, "META is not JSON"),
        ("SESSION.OPEN 5000 META " + "1" * 4097, "META is longer than 4096 bytes"),
        ("SESSION.OPEN 5000 NAME " + "n" * 257, "NAME is longer than 256 bytes"),
        ("SESSION.KEEPALIVE", "wrong number of arguments"),
        ("SESSION.KEEPALIVE abc", "session 'abc' is not 32 lower-case hex digits"),
        (f"SESSION.KEEPALIVE {S} ACK 0", "ACK: 0 is not between 1 and"),
        ("LOCK.ACQUIRE k", "one of SESSION and TTL is needed"),
        (f"LOCK.ACQUIRE k SESSION {S} TTL 5", "and not both"),
        (f"LOCK.ACQUIRE k SESSION {S} SESSION {S}", "option SESSION is given twice"),
        (f"LOCK.ACQUIRE k SESSION {S} MODE both", "MODE 'both' is neither exclusive nor shared"),
        (f"LOCK.ACQUIRE k SESSION {S} WAIT long", "WAIT: 'long' is not a whole number"),
        (f"LOCK.ACQUIRE k SESSION {S} WAIT -1", "WAIT: -1 is not between 0 and"),
        (f"LOCK.ACQUIRE k SESSION {S} REQUEST 0", "REQUEST (of a session): 0 is not between 1 and"),
        (f"LOCK.ACQUIRE k SESSION {S} REQUEST {UUID}", "is not a whole number"),
        ("LOCK.ACQUIRE k TTL 5000 REQUEST 7", "REQUEST '7' is not a UUID"),
        (f"LOCK.ACQUIRE k SESSION {S} MODE shared LIMIT 2", "a semaphore, which has no MODE shared"),
        (f"LOCK.ACQUIRE k SESSION {S} LIMIT 0", "LIMIT: 0 is not between 1 and"),
        (f"LOCK.ACQUIRE k SESSION {S} WEIGHT 1", "WEIGHT is a semaphore's, which needs a LIMIT"),
        (f"LOCK.ACQUIRE k SESSION {S} LIMIT 2 WEIGHT 3", "WEIGHT 3 is above the LIMIT 2"),
        (f"LOCK.ACQUIRE k SESSION {S} LIMIT 2 WEIGHT 0", "WEIGHT: 0 is not between 1 and"),
        (f"LOCK.ACQUIRE k SESSION {S} MODE shared DELAY 5", "DELAY is for exclusive locks alone"),
        (f"LOCK.ACQUIRE k SESSION {S} LIMIT 2 DELAY 5", "DELAY is for exclusive locks alone"),
        (f"LOCK.ACQUIRE k SESSION {S} MAXHOLD 0", "MAXHOLD: 0 is not between 1 and"),
        (f"LOCK.ACQUIRE k SESSION {S} META " + "[" * 65 + "]" * 65, "META is nested deeper than 64 levels"),
        ("LOCK.ACQUIREALL 3 a b c", "SESSION is missing"),
        (f"LOCK.ACQUIREALL SESSION {S} 2 a", "n is 2, and 1 names follow"),
        (f"LOCK.ACQUIREALL SESSION {S} 1 a b", "n is 1, and 2 names follow"),
        (f"LOCK.ACQUIREALL SESSION {S} 2 a a", "lock 'a' is named twice"),
        (f"LOCK.ACQUIREALL SESSION {S} 0 a", "n: 0 is not between 1 and"),
        (f"LOCK.ACQUIREALL SESSION {S} OWNER o", "how many locks there are, and their names, are missing"),
        (f"LOCK.ACQUIREALL SESSION {S} a b", "unknown option 'a'"),
        (f"LOCK.ACQUIREALL SESSION {S} TTL 5 1 a", "unknown option 'TTL'"),
        (f"LOCK.ACQUIREALL SESSION {S} MODE shared 1 a", "unknown option 'MODE'"),
        ("LOCK.RELEASEALL 7", "SESSION is missing"),
        (f"LOCK.META k 7 SESSION {S} {{", "META is not JSON"),
        (f"LOCK.META k 7 {S} SESSION []", "unknown option"),
        ("LOCK.BREAK k 7", "REASON is missing"),
        ("LOCK.BREAK k 7 REASON ", "REASON is empty"),
        ("LOCK.BREAK k 7 REASON " + "x" * 257, "REASON is longer than 256 bytes"),
        ("LOCK.BREAK k 7 REASON a\nb", "REASON contains a control character"),
        ("LOCK.VALIDATE k x", "token: 'x' is not a whole number"),
        ("LOCK.QUEUE k COUNT 0", "COUNT: 0 is not between 1 and 1000"),
        ("LOCK.WATCH a FROM -1", "FROM: -1 is not between 0 and"),
        ("LOCK.WATCH " + "p" * 513, "the prefix is longer than 512 bytes"),
        ("SESSION.LIST AFTER x", "AFTER: 'x' is not a whole number"),
        ("LOCK.ACQUIRE k TTL -1", "TTL: -1 is not between 1 and"),
        ("LOCK.ACQUIRE  TTL 5000", "a lock's name can't be empty"),
        ("LOCK.ACQUIRE " + "k" * 513 + " TTL 5000", "the lock's name is longer than 512 bytes"),
        ("LOCK.ACQUIRE " + "é" * 257 + " TTL 5000", "the lock's name is longer than 512 bytes"),
        ("LOCK.ACQUIRE k\r\n+OK TTL 5000", "the lock's name contains a control character"),
        ("LOCK.ACQUIRE k\x9b TTL 5000", "the lock's name contains a control character"),
        (b"LOCK.ACQUIRE \xff TTL 5000", "the lock's name is not UTF-8"),
        (f"LOCK.RELEASE k SESSION {S}", "token: 'SESSION' is not a whole number"),
        (f"LOCK.RELEASE k 9007199254740992 SESSION {S}", "is not between 1 and 9007199254740991"),
        ("LOCK.RELEASE k 1", "SESSION is missing"),
        (f"LOCK.CANCEL k SESSION {S}", "REQUEST is missing"),
        ("LOCK.CANCEL k REQUEST 7", "SESSION is missing"),
        ("LOCK.CANCEL k REQUEST x", "REQUEST 'x' is not a UUID"),
        ("LOCK.INSPECT k NOW", "unknown option 'NOW'"),
        ("LOCK.LIST COUNT 1001", "COUNT: 1001 is not between 1 and 1000"),
        ("LOCK.LIST k", "unknown option 'k'"),
        ("CLUSTER.ADD 4", "wrong number of arguments for 'CLUSTER.ADD'; usage: CLUSTER.ADD id peer_addr"),
        ("CLUSTER.ADD 0 a:1", "the node's id: 0 is not between 1 and"),
        ("CLUSTER.ADD 2147483648 a:1", "the node's id: 2147483648 is not between 1 and"),
        ("CLUSTER.ADD 4 a", "'a' is not HOST:PORT"),
        ("CLUSTER.ADD 4 :7421", "':7421' is not HOST:PORT"),
        ("CLUSTER.ADD 4 ::1:7421", "an IPv6 host goes in brackets"),
        ("CLUSTER.ADD 4 a:70000", "the port: 70000 is not between 1 and 65535"),
        ("CLUSTER.ADD 4 0.0.0.0:7421", "is every address of a machine"),
        ("CLUSTER.ADD 4 [::]:7421", "is every address of a machine"),
        ("CLUSTER.ADD 4 a\x00:1", "the address contains a control character"),
        ("CLUSTER.ADD 4 a..b:7421", "'a..b' can't be the name of a host"),
        ("CLUSTER.ADD 4 " + "a" * 64 + ":1", "can't be the name of a host"),
        ("CLUSTER.ADD 4 \u3000:7421", "is not HOST:PORT"),
        ("CLUSTER.ADD 4 " + "a" * 300 + ":1", "the address is longer than 300 bytes"),
        ("CLUSTER.ADD 4 a:1 VOTER", "unknown option 'VOTER'"),
        ("CLUSTER.REMOVE x", "the node's id: 'x' is not a whole number"),
        ("CLUSTER.REMOVE 4 now", "unknown option 'now'"),
        ("CLUSTER.TRANSFER 0", "the node's id: 0 is not between 1 and"),
        ("CLUSTER.SNAPSHOT 0123456789abcdef", "id, offset and count go together"),
        ("CLUSTER.SNAPSHOT x 0 1", "id 'x' is not 16 lower-case hex digits"),
        ("CLUSTER.SNAPSHOT 0123456789abcdef -1 1", "offset: -1 is not between 0 and"),
        ("CLUSTER.SNAPSHOT 0123456789abcdef 0 1048577", "count: 1048577 is not between 1 and 1048576"),
    ],
)
def test_each_mistake_gets_a_line_that_names_it(line: str | bytes, text: str) -> None:
    """P6"""
    with pytest.raises(RequestError) as caught:
        parse(words(line))
    assert text in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_subcommand_is_two_words() -> None:
    with pytest.raises(RequestError, match="unknown command"):
        parse([b"CLIENT ID"])


def test_names_may_be_512_bytes() -> None:
    found = parse([b"LOCK.INSPECT", b"k" * 512])
    assert isinstance(found, LockInspect)


def test_every_verb_has_an_arity_and_a_text() -> None:
    for name, verb in VERBS.items():
        assert name == verb.name.encode() == name.upper()
        assert verb.summary.endswith(".")
        assert abs(verb.arity) >= len(verb.name.split())


known = st.sampled_from(
    [name for verb in VERBS for name in verb.split(b" ")]
    + [b"SESSION", b"TTL", b"WAIT", b"FOREVER", b"NOTIFY", b"META", b"REQUEST", b"COUNT", b"AUTH", b"STALE"]
    + [b"MODE", b"shared", b"LIMIT", b"WEIGHT", b"MAXHOLD", b"DELAY", b"ACK", b"FROM", b"REASON", b"NOW"]
    + [S.encode(), UUID.encode(), b"5000", b"1", b"{}", b"3"]
)


@settings(max_examples=500)
@given(st.lists(st.one_of(known, known, st.binary(max_size=6)), min_size=1, max_size=9))
def test_any_words_are_a_request_or_a_request_error(found: list[bytes]) -> None:
    """P6: nothing else comes out of parsing, whatever goes in."""
    try:
        parse(found)
    except RequestError as error:
        assert str(error)  # noqa: PT017 - most examples raise nothing
