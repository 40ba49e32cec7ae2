"""One mutation in one copy of the tree, and the run of its tests."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.mutations.mutation import ROOT, Mutation

TRIAL_SECONDS = 60
"""After this the tests of a mutation count as not ending."""
CONTROL_SECONDS = 300

_SOURCES = (".", "scheduler", "storage_adapters", "migrations")
_NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "lockd-data", "docs", "*.egg-info"
)
_IMPORTS = "import lockd, tests; print(lockd.__file__, tests.__file__)"
_QUIETLY = ("-q", "--tb=no", "-p", "no:cacheprovider", f"--timeout={TRIAL_SECONDS}")
_ALL_PASSED = re.compile(r"^\d+ passed", re.MULTILINE)
_FAILURE = re.compile(r"^(?:FAILED|ERROR) (tests/.+?)(?: - (.*))?$", re.MULTILINE)
_DID_NOT_END = "did not end"
_TIMED_OUT = re.compile(rf"^{_DID_NOT_END}|Timeout \(>")
_NONSENSE = ("NameError", "UnboundLocalError", "SyntaxError", "ImportError", "TypeError", "AttributeError")
"""Raised by a mutation that is no program any more: that it is noticed proves nothing."""


class CopyError(Exception):
    """The copy is not what is tested, or its tests fail without any mutation."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a trial. `caught_by` is the first test that failed, None when none did."""

    mutation: Mutation
    caught_by: str | None
    said: str
    seconds: float


class Copy:
    """A copy of the tree to break, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.root = folder

    @classmethod
    def of_tree(cls, folder: Path) -> "Copy":
        """Copy the tree at hand. Raises CopyError when Python would still import the original."""
        shutil.copytree(ROOT, folder, ignore=_NOT_COPIED)
        copy = cls(folder)
        found = copy._python("-c", _IMPORTS, seconds=TRIAL_SECONDS)
        if found.count(f"{folder}{os.sep}") != 2:
            raise CopyError(f"the copy in {folder} is not what is imported: {found}")
        return copy

    def another(self, folder: Path) -> "Copy":
        """A copy of this copy, with the bytecode that its control has left."""
        shutil.copytree(self.root, folder)
        return Copy(folder)

    def control(self, tests: Sequence[str]) -> None:
        """Run tests without any mutation. Raises CopyError when one fails."""
        # Bytecode is written here alone: it is of the code as it is.
        options = ("-m", "pytest", *_QUIETLY, "-n", "2", "--dist", "worksteal", *tests)
        said = self._python(*options, seconds=CONTROL_SECONDS, writes_bytecode=True)
        if failures := _FAILURE.findall(said):
            failed = "\n".join(f"  {test} - {why}" for test, why in failures)
            raise CopyError(f"without any mutation these fail:\n{failed}")
        if not _ALL_PASSED.search(said):
            raise CopyError(f"the control did not run:\n{said}")

    def try_out(self, mutation: Mutation) -> Verdict:
        """Put the bug in, run its tests until one fails, take it out."""
        start = time.monotonic()
        options = ("-m", "pytest", *_QUIETLY, "-x", "-n", "0", *mutation.tests)
        with self._mutated(mutation):
            try:
                said = self._python(*options, seconds=TRIAL_SECONDS)
            except subprocess.TimeoutExpired:
                said = f"FAILED {mutation.tests[0]} - {_DID_NOT_END}"
        return _judge(mutation, said, time.monotonic() - start)

    @contextmanager
    def _mutated(self, mutation: Mutation) -> Iterator[None]:
        path = self.root / mutation.file
        original, times = path.read_bytes(), path.stat()
        path.write_text(original.decode().replace(mutation.old, mutation.new), encoding="utf-8")
        try:
            yield
        finally:
            path.write_bytes(original)
            # With its old time the file is again what its bytecode was made from.
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    def _python(self, *arguments: str, seconds: float, writes_bytecode: bool = False) -> str:
        """What that Python says. Raises TimeoutExpired, with its children killed."""
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.root,
            env=os.environ
            | {
                "PYTHONPATH": os.pathsep.join(str(self.root / source) for source in _SOURCES),
                "PYTHONDONTWRITEBYTECODE": "" if writes_bytecode else "1",
                "PYTHONHASHSEED": "0",
                "COLUMNS": "400",  # pytest cuts what a test said to the width of the terminal
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            return process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise


def _judge(mutation: Mutation, said: str, seconds: float) -> Verdict:
    failure = _FAILURE.search(said)
    if failure is None:
        what = (
            "its tests passed"
            if _ALL_PASSED.search(said)
            else f"its tests did not run: {said.strip()[-200:]}"
        )
        return Verdict(mutation, None, what, seconds)
    test, why = failure[1], failure[2] or ""
    if _TIMED_OUT.search(why) and not mutation.hangs:
        return Verdict(mutation, None, f"{test} {_DID_NOT_END}, which was not foreseen", seconds)
    if why.startswith(_NONSENSE):
        return Verdict(mutation, None, f"{test} met no bug but nonsense: {why}", seconds)
    return Verdict(mutation, test, why, seconds)
