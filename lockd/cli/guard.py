"""Who ends the command of `lockd run` when `lockd run` itself can't: it was killed, or is paused.

A process of its own that is told, over a pipe, until when the command's process group may run. If
the pipe closes it sends TERM, and KILL soon; if the time passes without another word it sends KILL.
It is forked before any thread is started, and holds nothing but the pipe. `lockd run` ends it when it
is not needed any more.
"""

import contextlib
import math
import os
import select
import signal
import struct
from types import TracebackType
from typing import Final, Self

from lockd.cli.children import ProcessGroup
from lockd.client import clock

_WORD: Final = struct.Struct("<d")
"""A deadline in seconds of the client's clock. It goes through the pipe whole."""
_UNTOLD_SECONDS: Final = 5.0
"""Between TERM and KILL when `lockd run` is gone, however much is left of the lease."""
_LOOK_SECONDS: Final = 0.25
"""The deadline is looked at at least this often: its clock counts suspend, and select() does not."""


class Guard:
    """The end of the pipe that `lockd run` holds. Leaving the block ends the guard."""

    def __init__(self, child: ProcessGroup) -> None:
        """Fork. No thread may have been started yet. The child may run for ever until `allow`."""
        reading, self._pipe = os.pipe()
        self._group = child.group
        self._process = os.fork()
        if self._process == 0:
            try:
                _detach(reading)
                _watch(reading, child)
            finally:
                os._exit(0)
        os.close(reading)
        os.set_blocking(self._pipe, False)  # a guard that somebody paused must not pause us

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.kill(self._process, signal.SIGKILL)  # also when somebody has paused it
        os.close(self._pipe)
        os.waitpid(self._process, 0)

    def allow(self, seconds: float) -> None:
        """The child's group may run for so long from now, unless this is called again."""
        # BrokenPipeError: somebody ended the guard. BlockingIOError: it is paused.
        with contextlib.suppress(BrokenPipeError, BlockingIOError):
            os.write(self._pipe, _WORD.pack(clock.now() + seconds))


def _detach(pipe: int) -> None:
    """What the terminal sends is not for the guard, and it keeps nobody's pipe open but its own."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    os.closerange(3, pipe)
    os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))


def _watch(pipe: int, child: ProcessGroup) -> None:
    deadline = math.inf
    while (left := deadline - clock.now()) > 0.0:
        if not select.select([pipe], [], [], min(left, _LOOK_SECONDS))[0]:
            continue
        words = os.read(pipe, 256 * _WORD.size)
        if not words:
            child.stop(kill_after=min(_UNTOLD_SECONDS, max(0.0, deadline - clock.now())))
            return
        (deadline,) = _WORD.unpack(words[-_WORD.size :])
    child.send(signal.SIGKILL)
