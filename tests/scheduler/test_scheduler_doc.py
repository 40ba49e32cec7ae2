"""docs/SCHEDULER.md names tests that are there, and answers every complaint."""

from pathlib import Path

import pytest

from lockd_scheduler.files import job_specs, read_files
from tests.documents import NAMED_TEST, Document

SCHEDULER = Document("SCHEDULER.md")
COMPLAINTS = 23
SENTENCE_CHARACTERS = 40


def test_every_test_that_is_named_is_there() -> None:
    assert len(SCHEDULER.named_tests) > COMPLAINTS
    assert SCHEDULER.missing_tests() == []


def test_nothing_else_looks_like_a_test() -> None:
    assert SCHEDULER.misspelt_tests() == 0


@pytest.mark.parametrize("number", range(1, COMPLAINTS + 1))
def test_every_complaint_has_an_answer(number: int) -> None:
    (row,) = [row for row in SCHEDULER.rows("What users of others complained of") if row[0] == str(number)]
    _, complaint, where, here = row
    assert complaint
    assert "#" in where
    assert NAMED_TEST.search(here) or len(here) >= SENTENCE_CHARACTERS


def test_the_complaints_are_all() -> None:
    rows = SCHEDULER.rows("What users of others complained of")
    assert [row[0] for row in rows] == [str(number) for number in range(1, COMPLAINTS + 1)]


def test_the_file_that_is_shown_is_one(tmp_path: Path) -> None:
    path = tmp_path / "jobs.yaml"
    path.write_text(SCHEDULER.text.split("```yaml\n")[1].split("```")[0])
    _, jobs = read_files([path])
    specs = job_specs(jobs, "ops")
    assert specs["report"].trigger.to_json() == {"type": "after", "job": "vacuum", "on": "succeeded"}
