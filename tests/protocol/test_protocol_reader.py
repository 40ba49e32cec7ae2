"""Bytes to commands: limits come first, and how the stream is cut makes no difference (SAFETY P6)."""

import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lockd.protocol.resp import LIMITS, CommandReader, FrameLimits

SMALL = FrameLimits(words_max=4, word_bytes_max=24, frame_bytes_max=64)


def pack(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def read(pieces: list[bytes], limits: FrameLimits = LIMITS) -> tuple[list[list[bytes]], str | None, bool]:
    """Commands, violation, and whether one is left half read."""
    reader = CommandReader(limits)
    commands = [command for piece in pieces for command in reader.feed(piece)]
    return commands, reader.violation, reader.partial


def one_by_one(stream: bytes) -> list[bytes]:
    return [stream[at : at + 1] for at in range(len(stream))]


def test_whole_commands_are_read() -> None:
    stream = pack(b"PING") + pack(b"LOCK.INSPECT", b"\r\n\x00$5") + pack() + pack(b"")
    expected = [[b"PING"], [b"LOCK.INSPECT", b"\r\n\x00$5"], [b""]]
    assert read([stream]) == (expected, None, False)
    assert read(one_by_one(stream)) == (expected, None, False)


@pytest.mark.parametrize(
    ("stream", "text"),
    [
        (b"PING\r\n", "expected '*', got b'P'"),
        (b"GET / HTTP/1.1\r\n\r\n", "expected '*', got b'G'"),
        (b"\x16\x03\x01\x02\x00\x01", "expected '*'"),
        (b"\r\n", "expected '*'"),
        (b"*2147483647\r\n", "more than 1024 words"),
        (b"*1025\r\n", "more than 1024 words"),
        (b"*99999999999999999999999\r\n", "not a number of a few digits"),
        (b"*-1\r\n", "not a number of a few digits"),
        (b"*+1\r\n", "not a number of a few digits"),
        (b"*01\r\n", "not a number of a few digits"),
        (b"* 1\r\n", "not a number of a few digits"),
        (b"*\r\n", "not a number of a few digits"),
        (b"*1" + b"\x00" * 20, "not a number of a few digits"),
        (b"*1\r\n*1\r\n$4\r\nPING\r\n", "expected '$', got b'*'"),
        (b"*2\r\n$4\r\nPING\r\n*2147483647\r\n", "expected '$', got b'*'"),
        (b"*1\r\n+PING\r\n", "expected '$', got b'+'"),
        (b"*1\r\n=8\r\ntxt:PING\r\n", "expected '$', got b'='"),
        (b"*1\r\n:1\r\n", "expected '$', got b':'"),
        (b"~1\r\n$4\r\nPING\r\n", "expected '*', got b'~'"),
        (b"%1\r\n$1\r\na\r\n$1\r\nb\r\n", "expected '*', got b'%'"),
        (b"*1\r\n$-1\r\n", "not a number of a few digits"),
        (b"*1\r\n$65537\r\n", "more than 65536 bytes"),
        (b"*1\r\n$4\r\nPINGxx", "not followed by CR LF"),
        (b"*1\r\n$4\r\nPI\r\nNG\r\n", "not followed by CR LF"),
        (b"*17\r\n" + b"$65536\r\n%b\r\n" % (b"x" * 65536) * 16, "more than 1048576 bytes"),
    ],
)
def test_what_is_no_command_ends_the_stream(stream: bytes, text: str) -> None:
    """P6: the same violation however it arrives; commands before it count, none after it do."""
    before, after = pack(b"PING", b"1"), pack(b"PING", b"2")
    for pieces in ([before + stream + after], [before, stream, after], one_by_one(before + stream)):
        commands, violation, _ = read(pieces)
        assert commands == [[b"PING", b"1"]]
        assert violation is not None
        assert violation.startswith("Protocol error: ")
        assert text in violation


def test_a_large_count_costs_no_memory() -> None:
    """P6: hiredis would allocate a list of the announced size; it must not get to see the count."""
    for stream in (
        b"*2147483647\r\n",
        pack(b"PING") * 5 + b"*214748364\r\n",
        b"*2\r\n$4\r\nPING\r\n*21474836\r\n",
        b"%2147483647\r\n",
        b"*1\r\n~2147483647\r\n",
    ):
        for cut in range(len(stream)):
            tracemalloc.start()
            _, violation, _ = read([stream[:cut], stream[cut:]])
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert violation is not None
            assert peak < 1_000_000


def test_words_may_look_like_large_counts() -> None:
    commands = [[b"PING", b"*2147483647\r\n"], [b"PING", b"%99999"], [b"PING", b"\r\n*9999999\r\n$5\r\n"]]
    stream = b"".join(pack(*command) for command in commands)
    for cut in range(len(stream)):
        assert read([stream[:cut], stream[cut:]]) == (commands, None, False)


def test_limits_are_reached_and_not_passed() -> None:
    word = b"w" * LIMITS.word_bytes_max
    assert read([pack(b"PING", word)]) == ([[b"PING", word]], None, False)
    most = [b"x"] * LIMITS.words_max
    assert read([pack(*most)]) == ([most], None, False)
    assert read([pack(*most, b"x")])[1] is not None


def test_limits_can_be_widened_between_commands() -> None:
    reader = CommandReader(SMALL)
    assert reader.feed(pack(b"AUTH", b"secret")) == [[b"AUTH", b"secret"]]
    reader.limits = LIMITS
    assert reader.feed(pack(*[b"x"] * 9)) == [[b"x"] * 9]


def test_half_a_command_is_partial() -> None:
    stream = pack(b"PING", b"hello")
    reader = CommandReader()
    for cut in range(1, len(stream)):
        reader = CommandReader()
        assert reader.feed(stream[:cut]) == []
        assert reader.partial
        assert reader.feed(stream[cut:]) == [[b"PING", b"hello"]]
        assert not reader.partial


words = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([b"", b"\r\n", b"$3\r\n", b"*1\r\n", b"*99999\r\n", b"+OK\r\n", b"PING"]),
)
commands = st.lists(words, max_size=5).map(lambda found: pack(*found))
headers = st.builds(
    lambda kind, number, end: kind + number + end,
    st.sampled_from([b"*", b"$", b"+", b"-", b":", b"%", b"~", b">", b"_", b"(", b"=", b"", b"x"]),
    st.one_of(
        st.integers(-2, 2**64).map(lambda number: str(number).encode()),
        st.sampled_from([b"0", b"1", b"2", b"01", b"+1", b" 1", b"", b"1.5", "\uff11".encode()]),
    ),
    st.sampled_from([b"\r\n", b"\n", b"\r", b"", b"xx"]),
)
streams = st.lists(st.one_of(commands, commands, headers, st.binary(max_size=8)), max_size=6).map(b"".join)


@settings(max_examples=600, deadline=None)
@given(streams, st.data(), st.sampled_from([LIMITS, SMALL]))
@example(b"*1\r\n$4\r\nPINGxx+OK\r\n", None, LIMITS)
def test_cutting_the_stream_changes_nothing(
    stream: bytes, data: st.DataObject | None, limits: FrameLimits
) -> None:
    """P6: any bytes, cut anywhere: the same commands and the same violation, and no exception."""
    whole = read([stream], limits)
    assert read(one_by_one(stream), limits) == whole
    if data is not None:
        cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=5)))
        pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        assert read(pieces, limits) == whole


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.binary(max_size=6), min_size=1, max_size=4), max_size=6), st.integers(0, 200))
def test_what_is_packed_is_read(found: list[list[bytes]], cut: int) -> None:
    stream = b"".join(pack(*command) for command in found)
    assert read([stream[:cut], stream[cut:]], SMALL) == (found, None, False)
