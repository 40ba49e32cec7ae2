"""The examples of docs/TESTING_YOUR_CODE.md, run as a user's tests by a pytest of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "TESTING_YOUR_CODE.md"
_BLOCK = re.compile(r"^```python\n# (\S+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_pytest(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """What pytest says in that folder, with every warning an error."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.process
@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_the_examples_pass(tmp_path: Path, options: tuple[str, ...]) -> None:
    blocks = _BLOCK.findall(DOCS.read_text())
    assert len(blocks) == DOCS.read_text().count("```python")
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    done = run_pytest(tmp_path, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout


def test_an_example_fails_when_the_code_does_not_look_at_its_lease(tmp_path: Path) -> None:
    files = dict(_BLOCK.findall(DOCS.read_text()))
    (tmp_path / "test_reports.py").write_text(files["test_reports.py"])
    (tmp_path / "reports.py").write_text(files["reports.py"].replace("lease.check()", "pass"))
    done = run_pytest(tmp_path)
    assert "2 failed" in done.stdout, done.stdout
