"""`lockd snapshot`: a cluster's state as one file, and a new cluster of one from such a file (SAFETY G2).

Every file is read as a whole and checked before it counts for anything: after a save before it gets
its name, and before a restore touches the disk. A damaged file is status 1, wrong usage 2.
"""

import errno
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from lockd.cli.exits import DamagedFileError, RefusedError
from lockd.cli.members import PeerAddress
from lockd.cli.options import Access, WholeNumber, as_json, with_access
from lockd.cli.output import duration, show_facts, show_json
from lockd.client import cluster
from lockd.disk.errors import DamagedFile, DataDirError
from lockd.disk.reading import read_data_dir
from lockd.disk.snapshot_file import StoredSnapshot, decode_snapshot
from lockd.disk.wal import create_from_snapshot
from lockd.errors import AccessDenied, CorruptData, Rejected, Unavailable
from lockd.ids import NODE_ID_MAX, Incarnation, InstanceId, NodeId
from lockd.protocol.cluster_verbs import SNAPSHOT_PART_BYTES_MAX
from lockd.server.backups import (
    Clients,
    NothingToSave,
    RestoreRefused,
    backup_of,
    contents_of,
    restored_from,
)

SAVE_PATIENCE_SECONDS: Final = 120.0
"""A node writes its whole state before it answers."""
DEFAULT_PEER_ADDRESS: Final = "127.0.0.1:7421"

_NO_HARD_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})
"""How file systems without them answer: those of USB sticks, and many that lie behind a network."""

_FILE: Final = click.Path(path_type=Path, dir_okay=False)
_DIRECTORY: Final = click.Path(path_type=Path, file_okay=False)


@click.group()
def snapshot() -> None:
    """Save the cluster's state to a file, look into such a file, make a new cluster from it.

    A file holds the ids of live sessions: keep it as you keep passwords.
    """


@snapshot.command()
@click.argument("file", type=_FILE)
@click.option(
    "--data-dir",
    type=_DIRECTORY,
    metavar="DIR",
    help="Read this directory of a node that does not run, instead of asking the cluster.",
)
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@as_json
@with_access
@click.pass_context
def save(
    context: click.Context, *, access: Access, file: Path, data_dir: Path | None, force: bool, as_json: bool
) -> None:
    """Save the state to FILE: of the running cluster, or with --data-dir of a node that is stopped.

    A last survivor is saved with all entries of its log, also those it does not know to be
    committed: an acknowledged grant may be in them, and its token must not be issued again.
    """
    if data_dir and context.get_parameter_source("endpoints") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--data-dir reads the disk and --endpoints asks the cluster: give one")
    if file.exists() and not force:
        raise RefusedError(f"{file} exists: take another name, or --force")
    if data_dir is not None:
        stored = _write(file, _read_directory(data_dir), force=force)
    else:
        stored = _write(file, _download(access), force=force)
    if as_json:
        show_json(_about(stored) | {"file": str(file)})
    else:
        index, term = stored.header.meta.index, stored.header.meta.term
        click.echo(f"{file}: {stored.file_bytes} bytes, the state up to entry {index} of term {term}")


@snapshot.command()
@click.argument("file", type=_FILE)
@as_json
def inspect(*, file: Path, as_json: bool) -> None:
    """Check all of FILE and show what it holds. Exits with 1 if it is damaged."""
    stored, state = _load(file)
    try:
        contents = contents_of(stored, state)
    except CorruptData as error:
        raise DamagedFileError(f"{file}: {error}") from error
    facts = _about(stored) | asdict(contents)
    if as_json:
        show_json(facts)
        return
    taken = datetime.fromtimestamp(stored.header.taken_unix_s, UTC)
    show_facts(
        {name.replace("_", " "): _shown(value) for name, value in facts.items() if name != "taken_unix_s"}
        | {"taken": f"{taken:%Y-%m-%d %H:%M:%S} UTC"}
    )


@snapshot.command()
@click.argument("file", type=_FILE)
@click.option("--data-dir", type=_DIRECTORY, metavar="DIR", required=True, help="New or empty.")
@click.option(
    "--node-id",
    type=WholeNumber(1, NODE_ID_MAX),
    default=1,
    show_default=True,
    metavar="N",
    help="The node that it becomes the data of; no id that was ever removed.",
)
@click.option(
    "--advertise-peer",
    type=PeerAddress(),
    default=DEFAULT_PEER_ADDRESS,
    show_default=True,
    metavar="HOST:PORT",
    help="Where nodes that join will dial it.",
)
@click.option(
    "--clients-stopped",
    is_flag=True,
    help="Every client of the old cluster is stopped: grant at once. If one is not, two may hold a lock.",
)
@as_json
def restore(
    *,
    file: Path,
    data_dir: Path,
    node_id: int,
    advertise_peer: str,
    clients_stopped: bool,
    as_json: bool,
) -> None:
    """Make a data directory of a cluster of one from FILE.

    The new cluster goes on with the old one's id and settings and with higher tokens. It has a new
    incarnation, so that nodes and clients of before are refused; no session and no lock; and it
    grants nothing for the longest TTL, since leases of before may still be trusted. Stop the old
    cluster for good first.

    Then start it with `lockd serve --node-id N --data-dir DIR`. Further nodes join with empty
    directories under ids that the old cluster never had: `lockd members add`.
    """
    stored, state = _load(file)
    try:
        restored = restored_from(
            stored,
            state,
            now_unix_s=int(time.time()),
            node=NodeId(node_id),
            instance=InstanceId(secrets.token_hex(16)),
            incarnation=Incarnation(secrets.token_hex(4)),
            peer_address=advertise_peer,
            clients=Clients.ARE_STOPPED if clients_stopped else Clients.MAY_RUN,
        )
        create_from_snapshot(
            data_dir, identity=restored.identity, address=advertise_peer, snapshot=restored.snapshot
        )
    except RestoreRefused as error:
        raise RefusedError(f"{file}: {error}") from error
    except DataDirError as error:
        raise RefusedError(str(error)) from error
    except CorruptData as error:
        raise DamagedFileError(f"{file}: {error}") from error
    identity, contents = restored.identity, restored.contents
    if as_json:
        whose = {"cluster": identity.cluster, "incarnation": identity.incarnation}
        show_json({"data_dir": str(data_dir), "node": node_id} | whose | asdict(contents))
        return
    click.echo(f"{data_dir} has the data of node {node_id}, alone, as incarnation {identity.incarnation}")
    if contents.quiet_ms:
        click.echo(f"nothing will be granted until it has run for {duration(contents.quiet_ms)}")
    if contents.removed:
        click.echo(f"ids that are never used again: {_shown(contents.removed)}")
    click.echo(f"start it: lockd serve --node-id {node_id} --data-dir {data_dir}")


def _load(file: Path) -> tuple[StoredSnapshot, bytes]:
    try:
        return decode_snapshot(file.read_bytes(), name=str(file))
    except OSError as error:
        raise RefusedError(f"{file}: {error.strerror or error}") from error
    except DataDirError as error:
        raise RefusedError(str(error)) from error
    except CorruptData as error:
        raise DamagedFileError(str(error)) from error


def _read_directory(data_dir: Path) -> Iterator[bytes]:
    try:
        return backup_of(read_data_dir(data_dir), taken_unix_s=int(time.time()))
    except NothingToSave as error:
        raise RefusedError(f"data directory {data_dir}: {error}") from error
    except DataDirError as error:
        raise RefusedError(str(error)) from error
    except DamagedFile as error:
        raise DamagedFileError(str(error)) from error
    except CorruptData as error:
        raise DamagedFileError(f"data directory {data_dir}: {error}") from error


def _download(access: Access) -> Iterator[bytes]:
    """The file's bytes from a node. The node keeps the copy as long as the connection."""
    with access.client() as client:
        client.ask(cluster.status())  # if no node answers, that is soon told
    with access.client(ttl=SAVE_PATIENCE_SECONDS) as client:
        made = client.ask(cluster.make_backup())
        offset = 0
        while offset < made.bytes:
            try:
                part = client.ask(cluster.read_backup(made.id, offset, SNAPSHOT_PART_BYTES_MAX))
            except AccessDenied:
                raise
            except Rejected as error:
                # The client has gone on over another connection, whose node knows of no such copy.
                lost = f"the connection was lost at {offset} of {made.bytes} bytes: save again"
                raise Unavailable(lost) from error
            if not part:
                raise DamagedFileError(f"the node's copy ends at {offset} of {made.bytes} bytes")
            yield part
            offset += len(part)


def _write(file: Path, content: Iterable[bytes], *, force: bool) -> StoredSnapshot:
    """Write, sync, read back, check, and only then give it its name."""
    unfinished = file.with_name(f".{file.name}.{secrets.token_hex(4)}.new")
    try:
        with open(unfinished, "xb", opener=_for_us_alone) as out:
            out.writelines(content)
            out.flush()
            os.fsync(out.fileno())
        stored, _ = decode_snapshot(unfinished.read_bytes(), name=str(file))
        if force:
            unfinished.replace(file)
        else:
            _name_anew(unfinished, file)
        _sync_directory(file.absolute().parent)
    except OSError as error:
        raise RefusedError(f"{file}: {error.strerror or error}") from error
    except DataDirError as error:  # of a node of a later version
        raise RefusedError(str(error)) from error
    except CorruptData as error:
        raise DamagedFileError(f"what was saved is not what it should be: {error}") from error
    finally:
        with suppress(FileNotFoundError):
            unfinished.unlink()
    return stored


def _name_anew(unfinished: Path, file: Path) -> None:
    """Raises FileExistsError if someone has made `file` meanwhile."""
    try:
        file.hardlink_to(unfinished)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        file.touch(exist_ok=False)
        unfinished.replace(file)


def _for_us_alone(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _about(stored: StoredSnapshot) -> dict[str, Any]:
    header = stored.header
    configuration = header.meta.configuration
    return {
        "cluster": header.cluster,
        "incarnation": header.incarnation,
        "index": header.meta.index,
        "term": header.meta.term,
        "taken_unix_s": header.taken_unix_s,
        "voters": list(configuration.voters),
        "learners": list(configuration.learners),
        "addresses": {str(node): address for node, address in header.addresses},
        "bytes": stored.file_bytes,
        "state_hash": stored.state_hash,
    }


def _shown(value: object) -> object:
    match value:
        case dict():
            return ", ".join(f"{key}={each}" for key, each in value.items()) or "-"
        case list() | tuple():
            return ", ".join(map(str, value)) or "-"
        case _:
            return value
