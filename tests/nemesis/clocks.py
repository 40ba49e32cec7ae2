"""Nodes whose monotonic clock is far from everybody else's: Linux time namespaces.

A process in a time namespace has CLOCK_MONOTONIC and CLOCK_BOOTTIME shifted by a constant, fixed for its
life. So a node's clock jumps between two of its lives, forwards or back, as it does when a machine reboots
or a data directory moves to another one. A running process can't be moved: there SIGSTOP stands for a clock
that jumps ahead. The wall clock can't be shifted in this way and is not touched: it belongs to
the whole machine, and lockd's replicated state never reads it (T1).
"""

import functools
import os
import shutil
import subprocess
import sys
import time

SHIFT_S_MAX = 400 * 24 * 3600
_READ_CLOCK = "import time; print(time.monotonic())"


def shifted(command: list[str], shift_s: int) -> list[str]:
    """The command, run with its monotonic clocks `shift_s` seconds ahead. The process id stays the same."""
    if shift_s == 0:
        return command
    unshare, setpriv = _program("unshare"), _program("setpriv")
    # A user namespace of its own gives the right where we are not root. Entering it clears the order
    # to die with the parent: it is given again.
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    clocks = ["--time", "--monotonic", str(shift_s), "--boottime", str(shift_s)]
    return [unshare, *rights, *clocks, setpriv, "--pdeathsig", "KILL", *command]


@functools.cache
def why_not() -> str:
    """Why this machine can't shift a process's clocks; "" when it can."""
    try:
        command = shifted([sys.executable, "-S", "-E", "-c", _READ_CLOCK], SHIFT_S_MAX)
    except FileNotFoundError as error:
        return str(error)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return f"no time namespace: {done.stderr.strip()}"
    if float(done.stdout) < time.monotonic() + SHIFT_S_MAX / 2:
        return "no time namespace: the clocks were not shifted"
    return ""


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} (of util-linux) is not here")
    return found
