"""What the adapter for files does beyond the contract (SAFETY S1, S2, S5), with real processes."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest

from lockd.errors import CorruptData, LeaseLost, OutcomeUnknown, StaleToken, Unavailable
from lockd.ids import ClusterId
from lockd_storage import NotFenceable, NotInstalled, WrongCluster
from lockd_storage.fencing import Floor
from lockd_storage.filesystem import FileFence
from lockd_storage.filesystem.folder import file_system
from lockd_storage.records import NAME_BYTES_MAX, plain_name
from tests.storage.leases import CLUSTER, OTHER_CLUSTER, GivenLease

WRITER = ("-m", "tests.storage.file_writer")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def fence(tmp_path: Path) -> FileFence:
    fence = FileFence(tmp_path)
    fence.install(GivenLease(33))
    return fence


def written(folder: Path) -> dict[str, str]:
    """The files outside .lockd with what they hold."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and ".lockd" not in path.parts
    }


def put(fence: FileFence, lease: GivenLease, **files: str) -> None:
    with fence.write(lease) as changes:
        for name, text in files.items():
            changes.write(name, text.encode())


def test_s1_after_a_crash_at_any_call_a_block_has_happened_or_has_not(tmp_path: Path) -> None:
    """kill -9 before each call that changes the disk, of an install and a block of four changes."""
    done = subprocess.run(
        [sys.executable, *WRITER, "crash", tmp_path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    points = done.stdout.split("\n")[:-1]
    assert len(points) > 25
    assert {"open", "replace", "fsync", "mkdir", "unlink", "pwrite"} == {p[4:] for p in points}
    before = {"a": "1", "b": "1", "gone": "1"}
    after = {"a": "2", "b": "2", "folder/c": "2"}
    seen = []
    half_done = 0
    for point in points:
        folder = tmp_path / point[:3]
        half_done += written(folder) not in (before, after)
        fence = FileFence(folder)
        if int(point[:3]) % 2:
            fence.install(GivenLease(35))
        else:
            with fence.read("orders") as root:
                assert root == folder.resolve()
        assert written(folder) in (before, after), f"half a block was seen after a crash at {point}"
        assert not list(folder.glob(".lockd/*.staged/*"))
        assert not list(folder.glob(".lockd/*.commit"))
        seen.append(written(folder) == after)
        fence.install(GivenLease(36))
        put(fence, GivenLease(36), a="3")
        assert written(folder)["a"] == "3"
    assert seen == sorted(seen)  # from one point on it has happened
    assert {*seen} == {False, True}
    assert half_done > 0, "no crash fell between two renames: the test has lost its point"


class Dwindling(GivenLease):
    """A lease that has a little less left each time it is asked."""

    def remaining(self) -> float:
        self.seconds -= 0.04
        return self.seconds


@contextmanager
def stopped_writer(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A holder of 33 that is stopped between its check and its rename."""
    with subprocess.Popen([sys.executable, *WRITER, "stop", folder], cwd=ROOT) as writer:
        try:
            _, status = os.waitpid(writer.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            yield writer
        finally:
            writer.kill()


def test_s5_a_stopped_holder_blocks_the_install_which_names_its_process(
    fence: FileFence, tmp_path: Path
) -> None:
    with stopped_writer(tmp_path) as writer:
        with pytest.raises(Unavailable, match=f"process {writer.pid} took it last"):
            fence.install(GivenLease(34), timeout=0.05)
        for lease, error in (
            (GivenLease(34, seconds=0.05), Unavailable),
            (Dwindling(34, seconds=0.1), LeaseLost),
        ):
            with pytest.raises(error), fence.write(lease):
                pytest.fail("two blocks at once")
        with pytest.raises(StaleToken), fence.write(GivenLease(33)):
            pytest.fail("the mark was not raised before waiting")
        writer.kill()
        writer.wait()
        fence.install(GivenLease(34))
    assert written(tmp_path) == {}
    put(fence, GivenLease(34), a="34")


def test_s1_a_stopped_holder_that_goes_on_is_waited_for(fence: FileFence, tmp_path: Path) -> None:
    seen: list[dict[str, str]] = []

    def install() -> None:
        fence.install(GivenLease(34), timeout=30)
        seen.append(written(tmp_path))

    thread = Thread(target=install)
    with stopped_writer(tmp_path) as writer:
        thread.start()
        while (mark := fence.mark("orders")) is None or mark.token != 34:
            pass  # the gate is shut before it waits
        assert thread.is_alive()
        writer.send_signal(signal.SIGCONT)
        thread.join(30)
    assert seen == [{"a": "33"}]
    assert written(tmp_path) == {"a": "33"}


def test_s1_processes_that_race_lose_no_write(fence: FileFence, tmp_path: Path) -> None:
    put(fence, GivenLease(33), number="0")
    command = [sys.executable, *WRITER, "add", str(tmp_path)]
    racers = [
        subprocess.Popen([*command, str(token)], cwd=ROOT, stdout=subprocess.PIPE)
        for token in (34, 35, 36, 36)
    ]
    done = [int(racer.communicate(timeout=60)[0]) for racer in racers]
    assert done[2:] == [20, 20]
    assert written(tmp_path)["number"] == str(sum(done))


def test_s1_an_install_is_not_starved_by_blocks_that_follow_each_other(fence: FileFence) -> None:
    """The mark is raised first, so none of a dozen eager writers gets in once more."""
    ended: list[int] = []

    def write_until_refused() -> None:
        try:
            while True:
                with fence.write(GivenLease(33)):
                    pass
        except StaleToken as refused:
            ended.append(refused.mark)

    threads = [Thread(target=write_until_refused) for _ in range(12)]
    for thread in threads:
        thread.start()
    fence.install(GivenLease(34), timeout=10)
    for thread in threads:
        thread.join(20)
    assert ended == [34] * 12


def test_s1_a_block_that_waited_its_turn_is_compared_again(fence: FileFence, tmp_path: Path) -> None:
    asked = Event()

    class Asked(GivenLease):
        def remaining(self) -> float:
            asked.set()  # after the first comparison
            return 30.0

    refused: list[int] = []

    def write_in_turn() -> None:
        try:
            put(fence, Asked(33), a="33")
        except StaleToken as error:
            refused.append(error.mark)

    thread = Thread(target=write_in_turn)
    with fence.write(GivenLease(33)):
        thread.start()
        assert asked.wait(20)
        with pytest.raises(Unavailable):
            fence.install(GivenLease(34), timeout=0.01)
    thread.join(20)
    assert refused == [34]
    assert written(tmp_path) == {}


def test_d2_content_is_on_the_disk_before_its_name_and_the_name_before_the_block_has_ended(
    fence: FileFence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut can't be had here, so the order of the calls is what is looked at."""
    calls: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(file: int) -> None:
        calls.append("sync " + Path(f"/proc/self/fd/{file}").readlink().name)
        real_fsync(file)

    def replace(source: Path, target: Path) -> None:
        calls.append(f"rename {Path(source).name} {Path(target).name}")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    fence.install(GivenLease(34))
    mark = ["sync orders.mark.new", "rename orders.mark.new orders.mark", "sync .lockd"]
    assert calls == mark
    calls.clear()
    put(fence, GivenLease(34), a="x")
    assert calls == ["sync 0", "rename 0 a", f"sync {tmp_path.name}"]
    calls.clear()
    put(fence, GivenLease(34), a="x", b="x")
    commit = ["sync orders.commit.new", "rename orders.commit.new orders.commit", "sync .lockd"]
    moves = ["rename 0 a", "rename 1 b", f"sync {tmp_path.name}", "sync .lockd"]
    assert calls == ["sync 0", "sync 1", "sync orders.staged", *commit, *moves]


def test_changes_are_seen_when_the_block_ends_and_not_when_it_fails(fence: FileFence, tmp_path: Path) -> None:
    lease = GivenLease(33)
    (tmp_path / "secret").write_text("old")
    (tmp_path / "secret").chmod(0o600)
    with fence.write(lease) as files:
        files.write("secret", b"new")
        files.delete("never there")
        with files.open("deep/er/long") as file:
            for _ in range(3):
                file.write(b"x")
        files.write("twice", b"1")
        files.write("twice", b"2")
        assert written(tmp_path) == {"secret": "old"}
    assert written(tmp_path) == {"secret": "new", "deep/er/long": "xxx", "twice": "2"}
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600

    def fail() -> None:
        with fence.write(lease) as files:
            files.write("secret", b"newer")
            with files.open("other"):
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert written(tmp_path)["secret"] == "new"
    assert not list(tmp_path.glob(".lockd/*.staged/*"))


def test_paths_that_lead_out_are_refused(fence: FileFence, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "out").symlink_to(tmp_path.parent)
    paths = ["/etc/passwd", "../x", "a/../../x", "", ".", "out/x", ".lockd/orders.mark", ".LOCKD/x", "folder"]
    with fence.write(GivenLease(33)) as files:
        for path in [*paths, "file/x", "\udc80"]:
            with pytest.raises(ValueError, match=r"path|leads|directory|surrogates"):
                files.write(path, b"")
            with pytest.raises(ValueError, match=r"path|leads|directory|surrogates"):
                files.delete(path)
    assert written(tmp_path) == {"file": ""}


def test_a_child_that_was_forked_in_a_block_leaves_it_to_its_parent(fence: FileFence, tmp_path: Path) -> None:
    def in_child(results: "multiprocessing.SimpleQueue[str]") -> None:
        try:
            block.__exit__(None, None, None)
        except NotFenceable as error:
            results.put(str(error))

    block = fence.write(GivenLease(33))
    files = block.__enter__()
    files.write("a", b"x")
    context = multiprocessing.get_context("fork")
    results: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
    child = context.Process(target=in_child, args=(results,))
    child.start()
    assert "forked" in results.get()
    child.join(20)
    with pytest.raises(Unavailable):
        fence.install(GivenLease(34), timeout=0.02)
    block.__exit__(None, None, None)
    assert written(tmp_path) == {"a": "x"}


def test_s9_changes_that_are_decided_and_stopped_half_way_are_unknown_and_then_done(
    fence: FileFence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.replace

    def rename_and_hinder(source: Path, target: Path) -> None:
        rename(source, target)
        if target.name == "orders.commit":
            (tmp_path / "b").mkdir()  # by other means, and only now

    monkeypatch.setattr(os, "replace", rename_and_hinder)
    with pytest.raises(OutcomeUnknown, match="may be done in part"):
        put(fence, GivenLease(33), a="1", b="1")
    (tmp_path / "b").rmdir()
    fence.install(GivenLease(34))
    assert written(tmp_path) == {"a": "1", "b": "1"}


def test_pitfall_13_the_mark_is_on_the_disk_and_nowhere_else(fence: FileFence, tmp_path: Path) -> None:
    with pytest.raises(StaleToken):
        FileFence(tmp_path).install(GivenLease(32))
    assert fence.marks() == [fence.mark("orders")]
    assert fence.marks("in") == []


def test_pitfall_16_a_token_of_another_cluster_is_told_apart_from_an_old_one(fence: FileFence) -> None:
    with pytest.raises(WrongCluster):
        fence.install(GivenLease(2**53 - 1, cluster=OTHER_CLUSTER))


def test_pitfall_14_a_floor_outlives_the_marks_that_it_removes(fence: FileFence) -> None:
    fence.install(GivenLease(50), "invoices")
    assert [mark.token for mark in fence.raise_floor(40)] == [33]
    assert fence.floor() == Floor(40)
    with pytest.raises(NotInstalled), fence.write(GivenLease(33)):
        pytest.fail("written under the floor")
    with pytest.raises(StaleToken) as refused:
        fence.install(GivenLease(40))
    assert refused.value.mark == 40
    fence.install(GivenLease(41))
    assert fence.raise_floor(20, cluster=CLUSTER) == []  # never lowered
    assert fence.floor() == Floor(40, ClusterId(CLUSTER))
    with pytest.raises(WrongCluster):
        fence.install(GivenLease(99, cluster=OTHER_CLUSTER), "new")
    with pytest.raises(WrongCluster):
        fence.raise_floor(60, cluster=OTHER_CLUSTER)
    for token in (0, 2**53):
        with pytest.raises(ValueError, match="token"):
            fence.raise_floor(token)
    with fence.write(GivenLease(41)), pytest.raises(Unavailable):
        fence.raise_floor(45, timeout=0.02)  # its block is waited for


def test_s2_restored_files_with_an_old_mark_are_cured_by_the_floor(fence: FileFence, tmp_path: Path) -> None:
    """The floor counts for writes too: a mark that comes back under it lets nobody in."""
    mark = tmp_path / ".lockd" / "orders.mark"
    copy = mark.read_bytes()
    fence.raise_floor(40)
    mark.write_bytes(copy)
    with pytest.raises(NotInstalled), fence.write(GivenLease(33)):
        pytest.fail("written under a mark of before the restore")


@pytest.mark.parametrize("name", ["orders.mark", "FLOOR", "orders.commit"])
def test_s2_what_cannot_be_read_lets_nobody_write(fence: FileFence, tmp_path: Path, name: str) -> None:
    (tmp_path / ".lockd" / name).write_bytes(b'{"resource":"orders","lo')
    with pytest.raises(CorruptData, match=re.escape(name)), fence.write(GivenLease(33)):
        pytest.fail("written beside damage")
    with pytest.raises(CorruptData):
        fence.install(GivenLease(34))
    if name == "orders.mark":
        with pytest.raises(CorruptData):
            fence.marks()


def test_what_is_no_local_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFenceable, match="not a directory"):
        FileFence(tmp_path / "missing")
    mounts = (
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        "40 22 0:52 / /mnt/n rw,relatime shared:9 master:1 - nfs4 host:/export rw,vers=4.2\n"
    )
    assert file_system(mounts, os.makedev(0, 52)) == "nfs4"
    assert file_system(mounts, os.makedev(254, 0)) == "ext4"
    assert file_system(mounts, os.makedev(8, 1)) == ""


def test_no_room_and_no_right_are_said_so(fence: FileFence, tmp_path: Path) -> None:
    mark = tmp_path / ".lockd" / "orders.mark.new"
    mark.mkdir()  # also root can't write to that
    with pytest.raises(Unavailable, match=r"orders\.mark\.new: Is a directory\. Nothing was written"):
        fence.install(GivenLease(34))
    mark.rmdir()
    (tmp_path / ".lockd" / "orders.staged").touch()
    with pytest.raises(OutcomeUnknown, match="Not a directory"), fence.write(GivenLease(33)):
        pytest.fail("began beside what it can't tidy up")


def test_resources_have_files_of_their_own_whatever_they_are_called() -> None:
    resources = [
        "a",
        "A",
        "a.",
        ".a",
        "..",
        "a/b",
        "a%2fb",
        "a:b",
        "é",
        "x" * 512,
        "x" * 511 + "y",
        "é" * 256,
        "%",
    ]
    names = [plain_name(resource) for resource in resources]
    assert len({name.lower() for name in names}) == len(resources)
    for name in names:
        assert re.fullmatch(r"[a-z0-9_%~-][a-z0-9_%~.-]*", name)
        assert len(name) <= NAME_BYTES_MAX
    assert plain_name("orders") == "orders"
    assert plain_name("orders:42") == "orders%3a42"
