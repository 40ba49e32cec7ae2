"""While a user's file is imported to find its jobs, it must not serve them.

Otherwise a script that serves at its top level would start another scheduler within each attempt that
finds its function in a process of its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from lockd_scheduler.errors import BadSchedule

_under_way: list[str] = []


@contextmanager
def finding_jobs(place: str) -> Iterator[None]:
    """Whoever would serve inside of this block is refused. `place`: the file or module, for the error."""
    _under_way.append(place)
    try:
        yield
    finally:
        _under_way.pop()


def refuse_while_finding() -> None:
    """Raises BadSchedule while a file is imported for its jobs."""
    if _under_way:
        raise BadSchedule(
            f"jobs are served while {_under_way[-1]} is imported to find them: serve under"
            ' if __name__ == "__main__":'
        )
