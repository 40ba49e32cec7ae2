"""Runs a command that the kernel kills when whoever started it is gone, even by kill -9.

    python tied.py PARENT COMMAND...

PARENT is the starter's process id. Runs as a script: it imports nothing of ours, and becomes the
command, so that the process id stays the same.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != int(sys.argv[1]):
        sys.exit("its parent was gone before it began")
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - what it was given to run
