"""docs/FENCING.md answers every pitfall, by a test that is there or by a sentence."""

import re

import pytest

from tests.documents import NAMED_TEST, Document

FENCING = Document("FENCING.md")
PITFALLS = 28
SENTENCE_CHARACTERS = 40
"""So much at least says why a pitfall can't arise; "n/a" would not."""


def test_every_test_that_is_named_is_there() -> None:
    assert len(FENCING.named_tests) >= PITFALLS
    assert FENCING.missing_tests() == []


def test_nothing_else_looks_like_a_test() -> None:
    assert FENCING.misspelt_tests() == 0


@pytest.mark.parametrize("number", range(1, PITFALLS + 1))
def test_every_pitfall_has_a_test_named_for_it_or_a_sentence(number: int) -> None:
    (row,) = [row for row in FENCING.rows("The pitfalls, one by one") if row[0] == str(number)]
    _, pitfall, answer = row
    assert pitfall
    named = [name for _, name in NAMED_TEST.findall(answer)]
    for name in named:
        assert re.match(rf"test_pitfall_{number:02}_", name), f"{name} is not named for pitfall {number}"
    assert named or len(answer) >= SENTENCE_CHARACTERS


def test_the_pitfalls_are_all() -> None:
    rows = FENCING.rows("The pitfalls, one by one")
    assert [row[0] for row in rows] == [str(number) for number in range(1, PITFALLS + 1)]
