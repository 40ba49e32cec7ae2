"""What launchers of real servers share: an unprivileged user, and a guardian that ends them."""

import os
import pwd
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

GUARDIAN = Path(__file__).with_name("guardian.py")


def unprivileged() -> pwd.struct_passwd | None:
    """Whom servers run as when the tests run as root; None when the tests' own user will do."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def run_as(
    user: pwd.struct_passwd | None,
    home: Path,
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
) -> None:
    """Run a program to its end. Raises RuntimeError with what it said; PermissionError if out of reach."""
    done = subprocess.run(
        command,
        cwd=home,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        user=None if user is None else user.pw_uid,
        group=None if user is None else user.pw_gid,
        extra_groups=None if user is None else (),
    )
    if done.returncode != 0:
        raise RuntimeError(f"{Path(command[0]).name} failed:\n{done.stdout}{done.stderr}")


def start_guarded(
    command: Sequence[str | Path],
    *,
    home: Path,
    stop_signal: str,
    user: pwd.struct_passwd | None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a server under the guardian, which removes `home` when the server has ended.

    What the server says goes to the file `home`/log.
    """
    identity = "-" if user is None else f"{user.pw_uid}:{user.pw_gid}"
    with (home / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-I", GUARDIAN, home, stop_signal, identity, *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=env,
            start_new_session=True,  # Ctrl-C is for pytest, which then stops the server in order
        )


def stop(guardian: subprocess.Popen[bytes]) -> None:
    assert guardian.stdin is not None
    guardian.stdin.close()
    guardian.wait(timeout=30)
