"""Replies as bytes: what a client reads is what was meant, and nothing breaks out of its line (P6)."""

from typing import Any

import hiredis
from hypothesis import given
from hypothesis import strategies as st

from lockd.protocol.resp import OK, PONG, Reply, Simple, encode, encode_error, encode_push


def decode(data: bytes) -> Any:
    """What another implementation reads: exactly one reply."""
    reader = hiredis.Reader(encoding="utf-8", errors="strict")
    reader.feed(data)
    found = reader.gets()
    assert found is not False, "not a whole reply"
    assert not reader.has_data(), "more than one reply"
    return found


def flat(value: Any) -> Any:
    """As RESP2 shows it: maps become flat arrays."""
    if isinstance(value, dict):
        return [item for key, entry in value.items() for item in (key, flat(entry))]
    return [flat(item) for item in value] if isinstance(value, list) else value


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
replies = st.recursive(
    st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)


@given(replies)
def test_replies_are_read_as_they_were_meant(value: Reply) -> None:
    assert decode(encode(value, 3)) == value
    assert decode(encode(value, 2)) == flat(value)


def test_bytes_are_bulk_strings() -> None:
    assert encode(b"\xff\r\n", 2) == b"$3\r\n\xff\r\n\r\n"


def test_null_has_a_form_in_each_protocol() -> None:
    assert (encode(None, 2), encode(None, 3)) == (b"$-1\r\n", b"_\r\n")


def test_a_push_is_out_of_band() -> None:
    found = decode(encode_push("lock.granted", {"token": 7}))
    assert type(found) is hiredis.PushNotification
    assert list(found) == ["lock.granted", {"token": 7}]


def test_fixed_replies() -> None:
    """Redis clients compare with these, and redis-cli insists that flags are such strings."""
    assert (encode(OK, 2), encode(PONG, 3)) == (b"+OK\r\n", b"+PONG\r\n")
    assert encode([Simple("a\r\nb"), "c"], 3) == b"*2\r\n+a b\r\n$1\r\nc\r\n"


@given(st.text(max_size=2000))
def test_an_error_is_one_line_whatever_is_in_it(text: str) -> None:
    """P6: no CR or LF of a name gets into the stream, where it would stand as another reply."""
    data = encode_error("ERR", text)
    assert data.startswith(b"-ERR ")
    assert data.endswith(b"\r\n")
    assert data.count(b"\r") == data.count(b"\n") == 1
    assert len(data) < 5000
    reader = hiredis.Reader(encoding="utf-8", errors="strict")
    reader.feed(data)
    assert isinstance(reader.gets(), hiredis.ReplyError)
    assert not reader.has_data()


def test_an_injected_reply_stays_text() -> None:
    """P6"""
    data = encode_error("ERR", "unknown command 'x\r\n+OK\r\n:1'")
    assert data == b"-ERR unknown command 'x +OK :1'\r\n"
