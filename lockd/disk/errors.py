"""What the log raises besides CorruptData (lockd.errors) and the operating system's OSError."""


class DataDirError(Exception):
    """The data directory can't be used as it is, and nothing on it is damaged.

    In use by another process, another node's, not a directory, no permission, or written by a
    newer version. The message is one line for the person who started the node.
    """


class LogClosedError(Exception):
    """The write was refused: the log is closing, or an earlier write or sync failed (SAFETY D1)."""
