"""docs/COMPARISON.md names tests that are there, and answers every complaint."""

import re

import pytest

from tests.documents import NAMED_TEST, Document

COMPARISON = Document("COMPARISON.md")

COMPLAINTS = {
    1: "etcd-io/etcd#11456",
    2: "etcd-io/etcd#11457",
    3: "etcd-io/etcd#6127",
    4: "awslabs/amazon-dynamodb-lock-client#1",
    5: "redisson/redisson#5044",
    6: "redisson/redisson#6510",
    7: "etcd-io/etcd#9888",
    8: "hashicorp/consul#912",
    9: "hashicorp/consul#1843",
    10: "kragniz/python-etcd3#599",
    11: "redis/redis-py#3847",
    12: "python-zk/kazoo#760",
    13: "apache/curator#1121",
    14: "kubernetes/kubernetes#139991",
    15: "redisson/redisson#4595",
}


def test_every_test_that_is_named_is_there() -> None:
    assert len(COMPARISON.named_tests) > 60
    assert COMPARISON.missing_tests() == []


def test_nothing_else_looks_like_a_test() -> None:
    """A name that is spelt in another way would be held to nothing."""
    assert COMPARISON.misspelt_tests() == 0


@pytest.mark.parametrize(("number", "reference"), COMPLAINTS.items())
def test_every_complaint_has_an_answer_and_a_test(number: int, reference: str) -> None:
    (row,) = [row for row in COMPARISON.rows("What users of others complained of") if row[0] == str(number)]
    _, complaint, where, here, tests = row
    assert complaint
    assert re.match(rf"{re.escape(reference)}\b", where)
    assert here
    assert NAMED_TEST.search(tests)


def test_the_complaints_are_all() -> None:
    assert [row[0] for row in COMPARISON.rows("What users of others complained of")] == [
        str(key) for key in COMPLAINTS
    ]


def test_the_table_of_features_is_whole() -> None:
    """As many cells in each row, each with something in it; and every note is there and referred to."""
    table = COMPARISON.rows("Features")
    for row in table:
        assert len(row) == 9, row
        assert row[0].startswith("**") or all(row), row
    section = COMPARISON.text.split("\n## Features\n", 1)[1].split("\n## ", 1)[0]
    referred_to = {int(number) for number in re.findall(r"\[(\d+)\]", section)}
    notes = [int(number) for number in re.findall(r"^(\d+)\. ", section, re.MULTILINE)]
    assert notes == list(range(1, len(notes) + 1))
    assert referred_to == set(notes)
