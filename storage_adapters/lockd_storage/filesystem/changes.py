"""What one block changes: prepared aside, then done all at once.

A changed file is written and synced under `.lockd`, and renamed into place when the block ends. Several
changes are first listed in a commit file. From the moment that file is on the disk the changes are
decided: whoever takes the lock next, after a crash, carries out those that are left, and an install does
so before it returns.
"""

import errno
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path, PurePath
from typing import BinaryIO

import msgspec

from lockd.errors import CorruptData, OutcomeUnknown, Unavailable
from lockd_storage.errors import NotFenceable, OutsideFence
from lockd_storage.filesystem.folder import (
    FOLDER,
    FenceFolder,
    explained,
    replace_durably,
    sync,
    sync_directory,
)


class Change(msgspec.Struct, frozen=True):
    """One file in its new state. Paths are relative to the protected directory."""

    path: str
    staged: str | None
    """Where its new content lies; None to delete it."""


class FileChanges:
    """The changes of one block: yielded by `FileFence.write`, done when the block is left."""

    def __init__(self, folder: FenceFolder, resource: str) -> None:
        self._folder = folder
        self._resource = resource
        self._staged = folder.staged_path(resource)
        self._changes: dict[str, Change] = {}
        self._prepared: list[Path] = []
        self._entered_in = os.getpid()
        self._has_ended = False

    def write(self, path: str | PurePath, data: bytes) -> None:
        """Make `data` the content of a file.

        `path` is relative to the directory, folders on the way are made, and the permissions of a file
        that is replaced stay. Raises ValueError for a path outside, Unavailable when it can't be written.
        """
        with explained(Path(path)), self.open(path) as file:
            file.write(data)

    @contextmanager
    def open(self, path: str | PurePath) -> Iterator[BinaryIO]:
        """A new, empty file, for what is too long for `write`; it replaces `path` when all is done.

        Its `name` can be handed to another program. Left with an error, it changes nothing.
        """
        target = self._target(path)
        staged = self._staged / str(len(self._prepared))  # free: what a crash left was removed before us
        with explained(staged):
            if not self._prepared:
                self._staged.mkdir(exist_ok=True)  # and it stays: to make it is dearer than to write there
            file = staged.open("xb")
        self._prepared.append(staged)
        try:
            yield file
            with explained(staged):
                file.flush()
                present = self._folder.root / target
                if present.exists():
                    shutil.copymode(present, staged)
                sync(file.fileno())
        finally:
            with explained(staged):  # what could not be flushed is tried again here
                file.close()
        self._changes[target] = Change(target, str(staged.relative_to(self._folder.root)))

    def delete(self, path: str | PurePath) -> None:
        """Remove a file, if it is there. Raises ValueError for a path outside."""
        target = self._target(path)
        self._changes[target] = Change(target, None)

    def commit(self) -> None:
        """Do all changes. Raises Unavailable, and OutcomeUnknown once they are decided and not all done."""
        if os.getpid() != self._entered_in:
            raise NotFenceable(
                f"this block was entered by process {self._entered_in}, and this is a child that it forked:"
                " leave the block in the parent alone"
            )
        changes = list(self._changes.values())
        _refuse_nested(self._changes)
        with explained(self._folder.root):
            for change in changes:
                if change.staged is not None:
                    _make_parents(self._folder.root, change.path)
                _refuse_undoable(self._folder.root / change.path)
        if len(changes) > 1:
            self._decide(changes)
            finish(self._folder, self._resource)
        elif changes:
            with _half_done(self._folder.root, self._resource):
                _carry_out(self._folder.root, changes)

    def drop(self) -> None:
        """Remove what was prepared, unless it is decided or another process's; nothing is taken any more."""
        self._has_ended = True
        if os.getpid() == self._entered_in and not self._folder.commit_path(self._resource).exists():
            for staged in self._prepared:
                with suppress(OSError):  # what stays is removed by the next block
                    staged.unlink(missing_ok=True)

    def _decide(self, changes: list[Change]) -> None:
        commit_path = self._folder.commit_path(self._resource)
        try:
            if self._staged.exists():
                # A staged file that the power cut took away would pass for one that was moved.
                sync_directory(self._staged)
            replace_durably(commit_path, msgspec.json.encode(changes))
        except OSError as error:
            if commit_path.exists():
                raise _undecided(commit_path, self._resource, error) from error
            raise Unavailable(f"{commit_path}: {error.strerror}. Nothing was written") from error

    def _target(self, path: str | PurePath) -> str:
        """The path as it is listed, if it leads to a place that this block may change."""
        if self._has_ended:
            raise NotFenceable(
                f"{str(path)!r} can't be changed any more: the block that this is of has ended"
            )
        given = PurePath(path)
        root = self._folder.root
        if given.is_absolute() or ".." in given.parts or not given.name:
            raise ValueError(f"{str(path)!r} is not a relative path to a file in {root}")
        try:
            with explained(root / given):
                place = (root / given).parent.resolve() / given.name
                self._refuse_place(place, str(path))
        except RuntimeError:  # Python before 3.13
            raise ValueError(f"{str(path)!r} leads through a symbolic link to itself") from None
        name = str(place.relative_to(root))
        name.encode()  # a name that is no UTF-8 can't be listed: ValueError
        return name

    def _refuse_place(self, place: Path, path: str) -> None:
        root = self._folder.root
        if not place.is_relative_to(root) or FOLDER in (
            part.lower() for part in place.parts[len(root.parts) :]
        ):
            raise ValueError(f"{path!r} leads out of {root}, or into a folder {FOLDER}")
        if place.is_dir():
            raise ValueError(f"{path!r} is a directory")
        present = next(parent for parent in place.parents if parent.exists())
        if not present.is_dir():
            raise ValueError(f"{path!r} leads through a file")
        if present.stat().st_dev != root.stat().st_dev:
            raise NotFenceable(f"{path!r} is on another file system than {root}: no rename leads there")
        for inner in takewhile(lambda parent: parent != root, place.parents):
            if (inner / FOLDER).exists():
                raise OutsideFence(
                    f"{path!r} is in {inner}, which has a fence of its own: write it through that one",
                    resource=self._resource,
                )


def unfinished(folder: FenceFolder, resource: str) -> bool:
    """Whether a block ended without its process having tidied up. Asked while no block is under way."""
    return folder.commit_path(resource).exists() or bool(_left_staged(folder, resource))


def finish(folder: FenceFolder, resource: str) -> None:
    """Carry out changes that were decided, drop those that were not. The lock is held exclusively.

    Raises OutcomeUnknown when the operating system refuses; they stay decided. CorruptData for a commit
    file that can't be read.
    """
    commit_path = folder.commit_path(resource)
    with _half_done(commit_path, resource):
        if commit_path.exists():
            _carry_out(folder.root, _read_changes(commit_path))
            commit_path.unlink()
            # Before anybody else changes those files: the list must not come back after a power cut.
            sync_directory(commit_path.parent)
        for staged in _left_staged(folder, resource):
            staged.unlink(missing_ok=True)


def _refuse_nested(paths: Collection[str]) -> None:
    """Raise ValueError when one of the paths is a folder of another: no order of renames does both."""
    for path in paths:
        for parent in PurePath(path).parents:
            if str(parent) in paths:
                raise ValueError(f"{str(parent)!r} can't be a file and the folder of {path!r} in one block")


def _refuse_undoable(target: Path) -> None:
    """Raise OSError for what could not be carried out once it is decided, as far as can be seen."""
    if target.is_dir() and not target.is_symlink():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if target.parent.exists() and not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target.parent))


def _left_staged(folder: FenceFolder, resource: str) -> list[Path]:
    staged = folder.staged_path(resource)
    return list(staged.iterdir()) if staged.exists() else []


@contextmanager
def _half_done(path: Path, resource: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _undecided(path, resource, error) from error


def _undecided(path: Path, resource: str, error: OSError) -> OutcomeUnknown:
    return OutcomeUnknown(
        f"{error.filename or path}: {error.strerror}. Changes under resource {resource!r} may be done in"
        " part; the next install or write carries out those that were decided, once this is cured"
    )


def _carry_out(root: Path, changes: list[Change]) -> None:
    """Again and again with the same end: a staged file that is gone has been moved already."""
    for change in changes:
        target = root / change.path
        if change.staged is None:
            target.unlink(missing_ok=True)
        elif (root / change.staged).exists():
            os.replace(root / change.staged, target)  # noqa: PTH105  watched by the tests of a crash
    for parent in {(root / change.path).parent for change in changes}:
        if parent.exists():
            sync_directory(parent)


def _read_changes(path: Path) -> list[Change]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Change])
    except msgspec.DecodeError as error:
        raise CorruptData(
            f"{path} is not a list of changes ({error}): put it back from a copy, or remove it after looking"
            " which files of the last block are old and which new"
        ) from error


def _make_parents(root: Path, path: str) -> None:
    place = root
    for part in PurePath(path).parent.parts:
        place /= part
        if not place.is_dir():
            place.mkdir(exist_ok=True)
            sync_directory(place.parent)
