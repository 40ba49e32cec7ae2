"""Others' data: each file of `../shared/conformance` is a test; without the folder they are skipped."""

import pytest

from tests.conformance.suite import DEFAULT_FOLDER, PARTS, Check

CHECKS = [check for part in PARTS for check in part.find(DEFAULT_FOLDER)]
REASON = f"NO CONFORMANCE DATA: {DEFAULT_FOLDER} is not there, nothing of it was checked"


@pytest.mark.skipif(not CHECKS, reason=REASON)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_our_code_agrees_with_the_file(check: Check) -> None:
    assert check.run()


@pytest.mark.skipif(not CHECKS, reason=REASON)
def test_every_part_is_there() -> None:
    """The folder is whole: a renamed subfolder must not turn the tests off unseen."""
    counted = {part.folder: len(part.find(DEFAULT_FOLDER)) for part in PARTS}
    assert counted == {
        "etcd-raft/interaction": 16,
        "etcd-raft/quorum": 4,
        "etcd-raft/confchange": 9,
        "porcupine": 66,
    }
