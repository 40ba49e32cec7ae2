"""Gathers what attempts say, and writes it to the ledger from one thread, a few times a second.

A job never waits for the database when it says something, also not inside of its own transaction. So the
text is kept here until it is written: at most OUTPUT_CHARACTERS_MAX of an attempt, and the last of
what is over that, since the end tells why.
"""

import codecs
import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from lockd_scheduler.outputs import write_output

logger = logging.getLogger("lockd_scheduler")

FLUSH_SECONDS = 0.5
FLUSH_CHARACTERS = 16_000
"""Also the most of a row: in UTF-8 it fits into MariaDB's TEXT."""
OUTPUT_CHARACTERS_MAX = 1 << 20
TAIL_CHARACTERS = 4_096
OURS = "lockd"
"""The stream of what we say about an attempt ourselves."""


class Output:
    """What one attempt says. Safe between threads."""

    def __init__(self, writer: "OutputWriter", attempt_id: int) -> None:
        self.attempt_id = attempt_id
        self.is_closing = False
        self.last_line = ""
        """The last line that was not empty, shortened."""
        self.total = 0
        self._writer = writer
        self._lock = threading.Lock()
        self._decoders: dict[str, codecs.IncrementalDecoder] = {}
        self._kept = 0
        self._tail = ""
        self._new: list[tuple[str, str]] = []
        self._unsent: list[dict[str, Any]] = []
        self._rows = 0

    def feed(self, stream: str, data: bytes) -> None:
        """Take bytes as UTF-8; what isn't becomes a replacement character."""
        decoder = self._decoders.setdefault(stream, codecs.getincrementaldecoder("utf-8")("replace"))
        self.write(stream, decoder.decode(data))

    def write(self, stream: str, text: str) -> None:
        """Take a text; returns at once. Once this is closed it is dropped: it comes from work given up."""
        # PostgreSQL's text has no NUL, and UTF-8 no surrogates.
        clean = text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
        with self._lock:
            if not clean or self.is_closing:
                return
            room = OUTPUT_CHARACTERS_MAX - self._kept
            self.total += len(clean)
            self._tail = (self._tail + clean[room:])[-TAIL_CHARACTERS:]
            self._keep(stream, clean[:room])
            self.last_line = clean.rstrip().rpartition("\n")[2].strip()[-200:] or self.last_line
            is_much = sum(len(piece) for _, piece in self._new) >= FLUSH_CHARACTERS
        self._writer.attend(self, at_once=is_much)

    def close(self) -> None:
        """Nothing more comes. Returns when all of it is written, or was left behind with the service."""
        for stream, decoder in self._decoders.items():
            self.write(stream, decoder.decode(b"", final=True))
        with self._lock:
            self.is_closing = True
            if self._tail:
                cut = self.total - self._kept - len(self._tail)
                self._new.append((OURS, f"\n[{cut} characters are cut here; the last {len(self._tail)}:]\n"))
                self._new.append((OURS, self._tail))
        if self.total:
            self._writer.wait_written(self)

    def unsent(self, now: datetime) -> list[dict[str, Any]]:
        """The rows that are not known to be written, their numbers fixed."""
        with self._lock:
            for stream, text in self._new:
                for start in range(0, len(text), FLUSH_CHARACTERS):
                    self._rows += 1
                    piece = text[start : start + FLUSH_CHARACTERS]
                    self._unsent.append(
                        {
                            "attempt_id": self.attempt_id,
                            "number": self._rows,
                            "stream": stream,
                            "written_at": now,
                            "text": piece,
                        }
                    )
            self._new.clear()
            return list(self._unsent)

    def sent(self, rows: int) -> bool:
        """The first so many of those are written; whether nothing more is to be."""
        with self._lock:
            del self._unsent[:rows]
            return self.is_closing and not self._unsent and not self._new

    def _keep(self, stream: str, text: str) -> None:
        if not text:
            return
        self._kept += len(text)
        if self._new and self._new[-1][0] == stream:
            text = self._new.pop()[1] + text
        self._new.append((stream, text))


class OutputWriter:
    """Writes what many attempts say; its thread lives as long as there is something to write."""

    def __init__(self, engine: Engine, *, now: Callable[[], datetime], abandoned: threading.Event) -> None:
        self._engine = engine
        self._now = now
        self._abandoned = abandoned
        self._changed = threading.Condition()
        self._attended: dict[int, Output] = {}
        self._is_urgent = self._is_alive = False

    def open(self, attempt_id: int) -> Output:
        """For an attempt that starts. Costs nothing until it says something."""
        return Output(self, attempt_id)

    def attend(self, output: Output, *, at_once: bool) -> None:
        """It has something to be written."""
        with self._changed:
            self._attended[output.attempt_id] = output
            if not self._is_alive:
                self._is_alive = True
                threading.Thread(target=self._write_on, name="lockd-scheduler-output", daemon=True).start()
            if at_once:
                self._is_urgent = True
                self._changed.notify_all()

    def wait_written(self, output: Output) -> None:
        """Return when all that it said is written, or the service leaves it behind."""
        with self._changed:
            self._is_urgent = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: output.attempt_id not in self._attended)

    def _write_on(self) -> None:
        is_told = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_urgent, FLUSH_SECONDS)
                self._is_urgent = False
                if self._abandoned.is_set():
                    self._attended.clear()
                self._changed.notify_all()
                if not self._attended:
                    self._is_alive = False
                    return
                outputs = list(self._attended.values())
            try:
                self._flush(outputs)
                is_told = False
            except SQLAlchemyError as error:
                if not is_told:
                    text = next(iter(str(error).splitlines()), "")
                    logger.warning("output not written, trying on: %s", text)
                    is_told = True
            except Exception:  # the boundary of this thread: attempts wait for it
                logger.exception("output of %d attempts is dropped by a fault", len(outputs))
                self._let_go(outputs)

    def _flush(self, outputs: Sequence[Output]) -> None:
        try:
            self._write(outputs)
        except IntegrityError:
            for output in outputs:
                try:
                    self._write([output])
                except IntegrityError:  # its attempt was forgotten meanwhile: it had been given up
                    self._let_go([output])

    def _write(self, outputs: Sequence[Output]) -> None:
        closing = {output.attempt_id: output.total for output in outputs if output.is_closing}
        rows = {output.attempt_id: output.unsent(self._now()) for output in outputs}
        everything = [row for some in rows.values() for row in some]
        if everything or closing:
            write_output(self._engine, everything, closing)
        self._let_go(
            [
                output
                for output in outputs
                if output.sent(len(rows[output.attempt_id])) and output.attempt_id in closing
            ]
        )

    def _let_go(self, outputs: Sequence[Output]) -> None:
        with self._changed:
            for output in outputs:
                self._attended.pop(output.attempt_id, None)
            self._changed.notify_all()
