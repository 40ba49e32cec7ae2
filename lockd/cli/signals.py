"""The signals that would end a command: first they end its wait, later its work gets them."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

_SIGNALS: Final = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2),
)


class Interrupted(BaseException):
    """A signal came while nothing was there to be told of it."""

    def __init__(self, number: int) -> None:
        self.number = number


class Signals:
    """Catches the signals that would end this process, but for those that are ignored (nohup).

    Until `deliver` is set they raise Interrupted, which ends a wait for a lock.
    """

    def __init__(self) -> None:
        self.deliver: Callable[[int], None] = self._interrupt
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Signals":
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.deliver(number)

    @staticmethod
    def _interrupt(number: int) -> None:
        raise Interrupted(number)
