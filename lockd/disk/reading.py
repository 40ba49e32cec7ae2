"""Read a data directory whose node does not run, and change nothing in it."""

from pathlib import Path

from lockd.disk.errors import DataDirError, unreachable
from lockd.disk.files import OsFiles
from lockd.disk.recovery import Recovered, read_log, segment_number
from lockd.disk.segments import with_snapshot
from lockd.disk.snapshots import SnapshotStore


def read_data_dir(path: Path) -> Recovered:
    """Everything that the node would start from, whichever node it is.

    A batch that was cut short by a crash is passed over and stays where it is. Raises DataDirError
    when there is no log, or a running node has it; CorruptData when the log or its snapshot is damaged.
    """
    if not path.is_dir():
        raise DataDirError(f"data directory {path}: there is none")
    files = OsFiles(path)
    try:
        segments = [name for name in files.names() if segment_number(name)]
        if not segments:
            raise DataDirError(f"data directory {path} holds no log")
        image = read_log((files.path(name), files.read(name)) for name in segments)
        return with_snapshot(image, SnapshotStore(files), files)
    except OSError as error:
        raise unreachable(str(path), error) from error
    finally:
        files.close()
