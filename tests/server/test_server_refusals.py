"""The facts behind a refusal: one line of ASCII that reads as JSON, whatever names and metadata hold (P6)."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lockd.locks.commands import Refused
from lockd.server.refusals import encode_refusal

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
metas: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**40), 2**40), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)


@given(texts, texts, texts, metas, st.booleans(), st.sampled_from([None, 1]), texts)
def test_p6_the_facts_are_what_follows_the_last_bar(
    lock: str, holder: str, owner: str, meta: Any, plain: bool, indent: int | None, text: str
) -> None:
    written = json.dumps(meta, ensure_ascii=plain, indent=indent)
    refused = Refused("BUSY", text, lock, holder, owner, written, held_ms=7, queue_length=2)
    line = encode_refusal(refused)
    assert line.count(b"\r") == line.count(b"\n") == 1
    tail = line.removesuffix(b"\r\n").rpartition(b" | ")[2]
    assert tail.isascii()
    assert tail.decode().isprintable()
    assert json.loads(tail) == {
        "lock": lock,
        "holder": holder,
        "owner": owner,
        "meta": meta,
        "held_ms": 7,
        "queue_length": 2,
    }


def test_a_long_text_is_cut_and_the_facts_are_whole() -> None:
    refused = Refused("TIMEOUT", "x" * 5_000, "k" * 512, meta='"' + "é" * 250 + '"')
    head, _, tail = encode_refusal(refused).rpartition(b" | ")
    assert len(head) < 1_100
    assert json.loads(tail)["meta"] == "é" * 250


def test_without_metadata_it_is_null() -> None:
    assert json.loads(encode_refusal(Refused("BUSY", "t", "k")).rpartition(b" | ")[2])["meta"] is None


def test_other_refusals_have_no_facts() -> None:
    assert encode_refusal(Refused("LIMIT", "no", "k")) == b"-LIMIT no\r\n"
