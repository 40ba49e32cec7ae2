"""Runs one server process and ends it when whoever asked for it is gone, even by kill -9.

    python guardian.py DIRECTORY SIGNAL USER COMMAND...

The asker holds the other end of our standard input. When that closes, for whatever reason, the
server gets SIGNAL, then KILL after a grace period, and DIRECTORY is removed. USER is "-" or the
uid:gid that the server runs as. Runs as a script: it imports nothing of ours.
"""

import os
import select
import shutil
import signal
import subprocess
import sys

GRACE_SECONDS = 10.0


def main(directory: str, stop_signal: str, user: str, command: list[str]) -> int:
    uid, gid = (None, None) if user == "-" else map(int, user.split(":"))
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        cwd=directory,
        user=uid,
        group=gid,
        extra_groups=None if uid is None else (),
    )
    try:
        ended = os.pidfd_open(server.pid)
        select.select([sys.stdin, ended], [], [])
        if server.poll() is None:
            server.send_signal(signal.Signals[stop_signal])
        try:
            server.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return int(server.returncode)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]))
