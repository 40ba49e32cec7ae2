"""`lockd demo`: the whole path on real processes, and a check of every promise on the way.

Three `lockd serve` processes with their data on disk, two `lockd-scheduler serve` processes on one
database, and a worker that writes through a fenced table. The demo kills the Raft leader and the
active scheduler with SIGKILL, and stops the worker with SIGSTOP past its lease. It then reads the
real tables and asks the real cluster whether what was promised held; exit status 0 says that it did.

Start with `story`; `stage` has the processes, `verdicts` the checks, `screen` what is shown.
"""

import click

from lockd_scheduler.demo.story import play

__all__ = ["demo", "play"]


@click.command()
@click.option("--keep", is_flag=True, help="Leave everything running until Ctrl-C.")
@click.option("--db", metavar="URL", help="A PostgreSQL database instead of a SQLite file of its own.")
def demo(*, keep: bool, db: str | None) -> int:
    """Run a real cluster, two schedulers and a worker; break them; check every promise.

    Exits with 0 only if every promise held.
    """
    return play(keep=keep, db=db)
