"""The Node clients, as `npm ci` installs them: exact versions with their hashes, once for each checkout."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

MANIFEST = Path(__file__).with_name("node")
_NODE_MIN = 20
_INSTALL_S = 50.0
"""Two test processes may try one after the other within one test's time."""
_NPM_CI = [
    *("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"),
    *("--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-timeout=20000"),
]


def install(cache: Path) -> Path:
    """The folder node_modules with what node/package-lock.json names, in `cache`.

    Skips the test when this machine lacks Node or npm, or (but not where CI is set) when npm can't
    install. Test processes that want it at a time wait for the one that installs.
    """
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"NODE CLIENTS NOT TESTED: there is no `{program}` on this machine")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.strip().removeprefix("v").partition(".")[0]) < _NODE_MIN:
        pytest.skip(f"NODE CLIENTS NOT TESTED: they need Node {_NODE_MIN}, this is {version.strip()}")
    wanted = hashlib.sha256((MANIFEST / "package-lock.json").read_bytes()).hexdigest()
    installed = cache / "installed"
    with (cache / "lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not installed.exists() or installed.read_text() != wanted:
            _npm_ci(cache)
            installed.write_text(wanted)
    return cache / "node_modules"


def _npm_ci(folder: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copy(MANIFEST / name, folder)
    try:
        done = subprocess.run(
            _NPM_CI,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_INSTALL_S,
            check=False,
        )
        errors = [line for line in done.stderr.splitlines() if line.startswith("npm error")]
        failure = "" if done.returncode == 0 else "; ".join(errors[:3]) or "it does not say why"
    except subprocess.TimeoutExpired:
        failure = f"not within {_INSTALL_S:.0f} s"
    if failure and os.environ.get("CI"):
        pytest.fail(f"npm can't install the Node clients: {failure}")
    if failure:
        pytest.skip(f"NODE CLIENTS NOT TESTED: npm can't install them: {failure}")
