"""The header `Fencing-Token`: what is read, what is written, and what can't be read in two ways."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockd.ids import TOKEN_MAX, ClusterId, Fence, FencingToken, Incarnation
from lockd_storage.errors import MalformedToken
from lockd_storage.http import fencing_header, parse_header
from lockd_storage.http.header import FENCES_MAX, HEADER_CHARACTERS_MAX, PresentedFence, write_header
from tests.storage.leases import GivenLease

LEASE = GivenLease(123456)
FENCE = Fence.parse(LEASE.fence)
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=80)
FENCES = st.builds(
    Fence,
    cluster=st.text("0123456789abcdef", min_size=32, max_size=32).map(ClusterId),
    incarnation=st.text("0123456789abcdef", min_size=8, max_size=8).map(Incarnation),
    token=st.integers(1, TOKEN_MAX).map(FencingToken),
)


@st.composite
def presented_fences(draw: st.DrawFn) -> list[PresentedFence]:
    resources = draw(st.lists(st.none() | NAMES, min_size=1, max_size=3, unique=True))
    return [
        PresentedFence(
            draw(FENCES),
            resource,
            draw(st.just(resource) | NAMES),
            draw(st.sampled_from(["exclusive", "shared", "semaphore"])),
        )
        for resource in resources
    ]


@given(presented_fences())
def test_what_is_written_is_read_back(presented: list[PresentedFence]) -> None:
    text = write_header(presented)
    assert text.isascii()
    assert text.isprintable()
    assert parse_header([text]) == presented


@given(st.binary(max_size=300))
def test_p6_any_bytes_are_read_or_refused(raw: bytes) -> None:
    _read_or_refused(raw.decode("latin-1"))


@given(
    st.lists(st.sampled_from([f'"{FENCE}"', str(FENCE), ";", ",", "resource", "=", '"a"', '%"%c3%a9"', " "]))
)
def test_p6_any_order_of_its_parts_is_read_or_refused(parts: list[str]) -> None:
    _read_or_refused("".join(parts))


def _read_or_refused(text: str) -> None:
    try:
        found = parse_header([text])
    except MalformedToken:
        return
    assert parse_header([write_header(found)]) == found


@pytest.mark.parametrize(
    "text",
    [
        f'"{FENCE}";resource="orders"',
        f'"{FENCE}"; resource="orders"',
        f'"{FENCE}", resource="orders"',
        f"{FENCE};resource=orders",
        f'"{FENCE}";resource=%"orders"',
        f'"{FENCE}";later=?1;resource="orders";also',
    ],
)
def test_the_forms_that_mean_one_thing(text: str) -> None:
    assert parse_header([text]) == [PresentedFence(FENCE, "orders", "orders")]


def test_the_fence_that_lockd_run_gives_a_command() -> None:
    assert parse_header([LEASE.fence]) == [PresentedFence(FENCE)]
    assert parse_header([f"{LEASE.fence};mode=shared"]) == [PresentedFence(FENCE, mode="shared")]


def test_pitfall_17_the_token_is_text_to_its_last_digit() -> None:
    """An integer of RFC 9651 ends at 15 digits, a token at 16."""
    lease = GivenLease(TOKEN_MAX)
    header = fencing_header(lease)
    assert header == {"Fencing-Token": f'"{lease.fence}";resource="orders"'}
    (read,) = parse_header(header.values())
    assert read.fence.token == TOKEN_MAX
    with pytest.raises(MalformedToken, match=r"between 1 and 2\*\*53-1|9007199254740991"):
        parse_header([f'"{FENCE.cluster}/{FENCE.incarnation}/{TOKEN_MAX + 1}"'])


def test_leases_are_presented_for_their_locks_or_for_a_resource() -> None:
    (both,) = fencing_header(LEASE, GivenLease(7, lock="stock:1", mode="shared")).values()
    assert [(each.resource, each.lock, each.mode) for each in parse_header([both])] == [
        ("orders", "orders", "exclusive"),
        ("stock:1", "stock:1", "shared"),
    ]
    (other,) = fencing_header(LEASE, resource='a"b\\é').values()
    assert parse_header([other]) == [PresentedFence(FENCE, 'a"b\\é', "orders")]
    with pytest.raises(ValueError, match="one lease"):
        fencing_header(LEASE, GivenLease(7), resource="orders")
    with pytest.raises(ValueError, match="resource"):
        fencing_header(LEASE, resource="")


def test_lines_are_one_list() -> None:
    lines = [f'"{FENCE}";resource="a"', f'"{FENCE}";resource="b"']
    assert [each.resource for each in parse_header(lines)] == ["a", "b"]


def test_the_schedulers_header_is_told_from_a_fence() -> None:
    """`run.headers` carries an attempt's pair (SAFETY R4)."""
    with pytest.raises(MalformedToken, match=r"'7\.1' is the token of a scheduler's attempt"):
        parse_header(["7.1"])


OTHER = f"{FENCE.cluster}/{FENCE.incarnation}/7"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected a fence"),
        ("123456", "not a fence"),
        (f'"{FENCE}', "expected a fence"),
        (f'"{FENCE}",', "expected a fence"),
        (f'"{FENCE}" x', "expected a comma or the end, found 'x'"),
        (f'"{FENCE}";resource', "resource has 1 to"),
        (f'"{FENCE}";resource=', "expected a parameter's value"),
        (f'"{FENCE}";resource="a";resource="b"', "given twice"),
        (f'"{FENCE}";resource="a\\0"', "expected a parameter's value"),
        (f'"{FENCE}";resource=%"%ff"', "not UTF-8"),
        (f'"{FENCE}";resource=%"%00"', "no NUL"),
        (f'"{FENCE}";;', "expected a parameter's name"),
        (f'"{FENCE}";mode=owner', "'owner' is none of"),
        (f'"{FENCE}", "{OTHER}"', "without a resource"),
        (f'"{FENCE}";resource="a", "{OTHER}";resource="a"', "two different fences for 'a'"),
        (f'"{FENCE}".upper()', "expected a comma"),
        (f'"{str(FENCE).upper()}"', "hex digits"),
        ("x" * (HEADER_CHARACTERS_MAX + 1), "longer than"),
        (", ".join([f'"{FENCE}"'] * (FENCES_MAX + 1)), "at most"),
    ],
)
def test_anything_else_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(MalformedToken, match=reason):
        parse_header([text])


def test_the_same_fence_twice_is_one() -> None:
    assert parse_header([f'"{FENCE}", "{FENCE}"']) == [PresentedFence(FENCE)]
