"""`lockd log`: a look into a data directory, also of a node that does not start."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from lockd.cli.exits import ExitStatus, RefusedError
from lockd.cli.options import as_json
from lockd.cli.output import show_facts, show_json, show_table
from lockd.disk.errors import DataDirError
from lockd.disk.inspection import Inspection, SnapshotView, describe_entry, inspect_data_dir

_USES: Final = {True: "in force", False: "left over, a start removes it", None: "not known"}


@click.group()
def log() -> None:
    """Look into a node's log on disk."""


@log.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--entries", "with_entries", is_flag=True, help="Also show the entries, one a line.")
@as_json
def inspect(*, directory: Path, with_entries: bool, as_json: bool) -> ExitStatus:
    """Show what a data directory holds. Locks nothing and changes nothing.

    It shows whose data it is, term and vote, the snapshot that the log rests on, segments, entries,
    and where the log ends. Exits with 1 when something is damaged, after showing what can be read, and
    with 2 when there is no data directory.
    """
    try:
        found = inspect_data_dir(directory)
    except DataDirError as error:
        raise RefusedError(str(error)) from error
    if as_json:
        document = _document(directory, found)
        if with_entries:
            document["entries"] = list(_entries(found))
        show_json(document)
    else:
        _show(directory, found)
        if with_entries:
            _show_entries(found)
        for damage in found.damages:
            click.echo(f"damaged: {damage.file} at offset {damage.offset}: {damage.found}")
    return ExitStatus.NOT_OBTAINED if found.damages else ExitStatus.DONE


def _document(directory: Path, found: Inspection) -> dict[str, Any]:
    tail = {"file": found.tail[0], "offset": found.tail[1], "torn": found.torn} if found.tail else None
    return {
        "directory": str(directory),
        **_identity(found),
        "log": {
            "first": int(found.entries.first),
            "last": int(found.entries.last),
            "base_term": int(found.base_term),
            "end": tail,
        },
        "segments": found.segments,
        "snapshots": [_snapshot_document(view) for view in found.snapshots],
        "damage": found.damages,
    }


def _identity(found: Inspection) -> dict[str, Any]:
    """Null throughout where not even the first batch can be read."""
    stream = found.stream
    identity = stream.identity if stream else None
    hard = stream.hard_state if stream else None
    mark = stream.mark if stream else None
    return {
        "node": identity and identity.node_id,
        "instance": identity and identity.instance,
        "cluster": identity and identity.cluster,
        "incarnation": identity and identity.incarnation,
        "founders": identity and identity.founders,
        "term": hard and hard.term,
        "voted_for": hard and hard.voted_for,
        "commit": hard and hard.commit,
        "snapshot": mark and {"index": mark.index, "term": mark.term},
        "bindings": {str(node): bound for node, bound in sorted(stream.bindings.items())} if stream else {},
        "addresses": {str(node): text for node, text in sorted(stream.addresses.items())} if stream else {},
    }


def _snapshot_document(view: SnapshotView) -> dict[str, Any]:
    stored = view.stored
    header = stored.header if stored else None
    return {
        "file": view.file,
        "file_bytes": view.file_bytes,
        "in_force": view.in_force,
        "state_hash": stored and stored.state_hash,
        "header": header,
    }


def _entries(found: Inspection) -> Iterator[dict[str, Any]]:
    run = found.entries
    for at, (term, kind, payload) in enumerate(zip(run.terms, run.kinds, run.payloads, strict=True)):
        yield {
            "index": int(run.first) + at,
            "term": int(term),
            "kind": kind.name.lower(),
            "bytes": len(payload),
            "commands": describe_entry(kind, payload),
        }


def _show(directory: Path, found: Inspection) -> None:
    run = found.entries
    log_holds = f"entries {run.first} to {run.last}" if run else "no entries"
    if run.first > 1:
        log_holds += f", after entry {run.first - 1} of term {found.base_term}"
    show_facts({"directory": directory, **_facts(found), "log": log_holds, "ends": _end(found)})
    click.echo()
    show_table(
        ("SEGMENT", "BYTES", "BATCHES", "ENTRIES", "USE"),
        ((view.file, view.file_bytes, view.batches, view.entries, view.use) for view in found.segments),
    )
    if found.snapshots:
        click.echo()
        show_table(("SNAPSHOT", "BYTES", "STATE HASH", "USE"), map(_snapshot_row, found.snapshots))


def _facts(found: Inspection) -> dict[str, object]:
    stream = found.stream
    if stream is None:
        return {"node": "not readable"}
    identity, hard, mark = stream.identity, stream.hard_state, stream.mark
    return {
        "node": f"{identity.node_id} (instance {identity.instance})",
        "cluster": identity.cluster or "not known yet",
        "incarnation": identity.incarnation or "-",
        "founders": ", ".join(map(str, identity.founders)) or "-",
        "term": hard.term,
        "voted for": f"node {hard.voted_for}" if hard.voted_for else "-",
        "commit": hard.commit,
        "bindings": _pairs(stream.bindings),
        "addresses": _pairs(stream.addresses),
        "snapshot": f"entry {mark.index} of term {mark.term}" if mark else "-",
    }


def _pairs(pairs: Any) -> str:
    return ", ".join(f"{node}={text}" for node, text in sorted(pairs.items())) or "-"


def _end(found: Inspection) -> str:
    if found.tail is None:
        return "not found: the log is damaged"
    file, offset = found.tail
    unfinished = "; a batch lies there that was never acknowledged, a start cuts it off" if found.torn else ""
    return f"{file} at offset {offset}{unfinished}"


def _snapshot_row(view: SnapshotView) -> tuple[object, ...]:
    state_hash = view.stored.state_hash if view.stored else "-"
    return (view.file, view.file_bytes, state_hash, _USES[view.in_force])


def _show_entries(found: Inspection) -> None:
    click.echo()
    columns = ("index", "term", "kind", "bytes")
    rows = ((*(entry[name] for name in columns), ", ".join(entry["commands"])) for entry in _entries(found))
    show_table(("INDEX", "TERM", "KIND", "BYTES", "COMMANDS"), rows)
