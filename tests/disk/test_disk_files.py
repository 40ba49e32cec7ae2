"""One suite for both implementations of the port `Files`, and what only the real one has to do."""

import errno
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from lockd.disk.errors import DataDirError
from lockd.disk.files import Files, OsFiles
from tests.disk.memory import MemoryFiles


@pytest.fixture(params=["os", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Files]:
    opened: Files = OsFiles(tmp_path) if request.param == "os" else MemoryFiles()
    yield opened
    opened.close()


def test_a_file_reads_as_it_was_written(files: Files) -> None:
    file = files.create("a")
    file.write_at(4, b"later")
    file.write_at(0, b"zer")
    file.sync()
    file.close()
    assert files.read("a") == b"zer\0later"
    again = files.open("a")
    again.write_at(1, b"E")
    again.close()
    assert files.read("a") == b"zEr\0later"


def test_create_empties_a_file_that_was_there(files: Files) -> None:
    for content in (b"long content", b"short"):
        file = files.create("a")
        file.write_at(0, content)
        file.close()
    assert files.read("a") == b"short"


def test_names_follow_create_rename_and_remove(files: Files) -> None:
    for name in ("c", "a", "b"):
        file = files.create(name)
        file.write_at(0, name.encode())
        file.close()
    assert files.names() == ["a", "b", "c"]
    files.rename("c", "a")
    files.remove("b")
    files.sync_directory()
    assert files.names() == ["a"]
    assert files.read("a") == b"c"


def test_path_is_for_messages(files: Files) -> None:
    assert files.path("a").endswith("/a")


def test_a_directory_is_made_with_its_parents_for_its_owner_only(tmp_path: Path) -> None:
    directory = tmp_path / "srv" / "lockd-data"
    files = OsFiles(directory)
    files.create("a").close()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "a").stat().st_mode & 0o777 == 0o600
    files.close()


def test_c9_a_file_that_is_open_stays_what_it_was_when_another_takes_its_name(files: Files) -> None:
    """What is read back and checked must not be cut short meanwhile by who begins anew under its name."""
    before = files.create("a")
    before.write_at(0, b"before")
    after = files.create("a")
    after.write_at(0, b"after")
    assert before.read_at(0, 10) == b"before"
    assert files.read("a") == b"after"
    before.close()
    after.close()


@pytest.mark.parametrize("call", ["pread", "pwrite", "fdatasync"])
def test_an_error_says_which_file_it_is_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A call by descriptor does not; and a person has to know which disk to look at."""

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    files = OsFiles(tmp_path)
    file = files.create("a")
    monkeypatch.setattr(os, call, fails)
    calls: dict[str, Callable[[], object]] = {
        "pread": partial(file.read_at, 0, 1),
        "pwrite": partial(file.write_at, 0, b"x"),
    }
    with pytest.raises(OSError, match=re.escape(f"Input/output error: '{tmp_path / 'a'}'")):
        calls.get(call, file.sync)()
    file.close()
    files.close()


def test_a_directory_in_use_is_refused_until_it_is_closed(tmp_path: Path) -> None:
    first = OsFiles(tmp_path)
    with pytest.raises(DataDirError, match=f"^data directory {tmp_path} is in use by another lockd process$"):
        OsFiles(tmp_path)
    first.close()
    OsFiles(tmp_path).close()


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "data"
    place.write_text("not a directory")
    with pytest.raises(DataDirError, match=f"^data directory {place}: Not a directory$"):
        OsFiles(place)
    with pytest.raises(DataDirError, match="Not a directory"):
        OsFiles(place / "below")


def test_d2_each_new_directory_is_synced_into_the_one_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
    )
    files = OsFiles(tmp_path / "a" / "b")
    assert synced == [tmp_path.parent, tmp_path, tmp_path / "a"]
    files.sync_directory()
    assert synced[3:] == [tmp_path / "a" / "b"]
    files.close()


def test_d2_a_directory_that_is_there_may_still_have_to_be_synced_into_the_one_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever made it, a start that was killed or an operator a second ago, need not have done so."""
    synced: list[Path] = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
    )
    OsFiles(tmp_path).close()
    assert synced == [tmp_path.parent]


def test_a_short_write_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, content, at: whole_write(fd, content[:700], at))
    files = OsFiles(tmp_path)
    file = files.create("a")
    content = random.Random(1).randbytes(3000)
    file.write_at(100, content)
    file.close()
    assert files.read("a") == bytes(100) + content
    files.close()


HOLD = """
import sys
from pathlib import Path
from lockd.disk.files import OsFiles
files = OsFiles(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(DataDirError, match="in use"):
            OsFiles(tmp_path)
        process.kill()
        process.wait()
    OsFiles(tmp_path).close()
