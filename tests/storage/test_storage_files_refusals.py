"""What a block of files can't do is refused before it is decided: no resource gets stuck (SAFETY S1, S9)."""

import os
import resource
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from lockd.errors import StaleToken, Unavailable
from lockd_storage import NotFenceable, OutsideFence
from lockd_storage.filesystem import FileFence
from tests.servers.valkey import wait_until
from tests.storage.leases import GivenLease

LEASE = GivenLease(33)
ROOM = 4096


@pytest.fixture
def fence(tmp_path: Path) -> FileFence:
    fence = FileFence(tmp_path)
    fence.install(LEASE)
    return fence


@pytest.fixture(autouse=True)
def goes_on(fence: FileFence, tmp_path: Path) -> Iterator[None]:
    """Whatever was refused, the next holder installs and writes."""
    yield
    fence.install(GivenLease(50))
    with fence.write(GivenLease(50)) as files:
        files.write("after", b"")
    assert (tmp_path / "after").exists()


@pytest.mark.parametrize(
    "paths", [("a", "a/b"), ("a/b", "a"), ("a/b", "-a"), ("-a/b", "a"), ("-a", "a/b/c")], ids=" ".join
)
def test_s1_no_path_is_a_file_and_a_folder_in_one_block(
    fence: FileFence, tmp_path: Path, paths: tuple[str, ...]
) -> None:
    """Decided, no order of renames could carry it out, and nobody could install any more."""

    def write() -> None:
        with fence.write(LEASE) as files:
            for path in paths:
                if path.startswith("-"):
                    files.delete(path[1:])
                else:
                    files.write(path, b"")

    with pytest.raises(ValueError, match="can't be a file and the folder of"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == [".lockd"]


@pytest.mark.parametrize("name", ["a", "folder/" + 300 * "a"])
def test_s9_what_turns_out_to_be_impossible_is_known_not_to_be_written(
    fence: FileFence, tmp_path: Path, name: str
) -> None:
    def write() -> None:
        with fence.write(LEASE) as files:
            files.write("first", b"")
            files.write(name, b"")
            (tmp_path / "a").mkdir()  # by other means, and only now

    with pytest.raises(Unavailable, match=r"(directory|too long)\. Nothing was written"):
        write()
    assert not (tmp_path / "first").exists()


def test_s9_a_folder_without_the_right_to_write_is_known_before(
    fence: FileFence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root has every right, so the answer of the operating system is a given one here."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: path != folder)

    def write() -> None:
        with fence.write(LEASE) as files:
            files.write("first", b"")
            files.write("theirs/x", b"")

    with pytest.raises(Unavailable, match=r"theirs: Permission denied\. Nothing was written"):
        write()
    assert not (tmp_path / "first").exists()


@contextmanager
def little_room() -> Iterator[None]:
    """No file grows beyond ROOM bytes, which the operating system says as it says that a disk is full."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [ROOM + 1, 100 * ROOM], ids=["in the buffer", "at once"])
def test_a_full_disk_is_said_so(fence: FileFence, tmp_path: Path, size: int) -> None:
    def write() -> None:
        with fence.write(LEASE) as files:
            files.write("a", size * b"x")

    def write_bit_by_bit() -> None:
        with fence.write(LEASE) as files, files.open("a") as file:
            for _ in range(size):
                file.write(b"x")

    for attempt in (write, write_bit_by_bit):
        with pytest.raises(Unavailable, match=r"too large\. Nothing was written"), little_room():
            attempt()
    assert not (tmp_path / "a").exists()


def test_a_list_of_changes_that_does_not_fit_changes_nothing(fence: FileFence, tmp_path: Path) -> None:
    def write() -> None:
        with fence.write(LEASE) as files:
            for number in range(ROOM // 10):
                files.delete(f"number-{number}")

    with pytest.raises(Unavailable, match=r"orders\.commit: .*Nothing was written"), little_room():
        write()
    assert not list(tmp_path.glob(".lockd/*.commit"))


def test_a_directory_within_that_has_a_fence_of_its_own_is_left_to_that(
    fence: FileFence, tmp_path: Path
) -> None:
    (tmp_path / "inner" / "deep").mkdir(parents=True)
    inner = FileFence(tmp_path / "inner")
    inner.install(GivenLease(50))
    with fence.write(LEASE) as files:
        for path in ("inner/x", "inner/deep/x", "inner/new/x"):
            with pytest.raises(OutsideFence, match="has a fence of its own"):
                files.write(path, b"")
        for path in ("inner/.lockd/orders.mark", "inner/.lockd/x/y", "new/.lockd/x"):
            with pytest.raises(ValueError, match=r"into a folder \.lockd"):
                files.delete(path)
    with inner.write(GivenLease(50)) as files:
        files.write("deep/x", b"")


def test_s1_an_install_that_was_overtaken_while_it_waited_is_stale(fence: FileFence) -> None:
    """34 waits for 33's block; meanwhile 40 raises the mark, and is too impatient to wait."""
    with ThreadPoolExecutor(1) as pool:
        with fence.write(LEASE):
            waiting = pool.submit(fence.install, GivenLease(34))
            wait_until(lambda: standing(fence) == 34)
            with pytest.raises(Unavailable):
                fence.install(GivenLease(40), timeout=0.01)
        with pytest.raises(StaleToken, match="mark is 40"):
            waiting.result(20)


def standing(fence: FileFence) -> int | None:
    mark = fence.mark("orders")
    return None if mark is None else mark.token


def test_a_link_is_replaced_and_not_followed(fence: FileFence, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.write_text("theirs")
    (tmp_path / "link").symlink_to(outside)
    (tmp_path / "hard").hardlink_to(outside)
    with fence.write(LEASE) as files:
        files.write("link", b"ours")
        files.write("hard", b"ours")
    assert (tmp_path / "link").read_text() == (tmp_path / "hard").read_text() == "ours"
    assert outside.read_text() == "theirs"


def test_a_link_to_itself_is_refused(fence: FileFence, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with fence.write(LEASE) as files, pytest.raises(ValueError, match="leads through"):
        files.write("loop/x", b"")


def test_what_is_kept_of_a_block_that_has_ended_takes_nothing(fence: FileFence, tmp_path: Path) -> None:
    with fence.write(LEASE) as files:
        kept = files
    with pytest.raises(NotFenceable, match="has ended"):
        kept.write("a", b"")
    with pytest.raises(NotFenceable, match="has ended"):
        kept.delete("a")
    assert not (tmp_path / "a").exists()
