"""The command `lockd-scheduler`: what people type.

Exit status: 0 done; 1 not all of it (attempts still ran, a run that was waited for failed, a fire was
missed); 2 wrong usage or configuration; 3 the database does not answer.

`serving` runs the service and makes its tables, `looking` reads the ledger, `asking` writes requests into
it, `declaring` brings schedules from files. They share `options` and `output`.
"""

import sys

EXTRA_MISSING = "lockd-scheduler needs its extra: pip install 'lockd[scheduler]' (missing: {})"

try:
    from lockd_scheduler.cli.command import main
except ModuleNotFoundError as error:
    if (error.name or "").startswith("lockd"):
        raise
    print(EXTRA_MISSING.format((error.name or "").partition(".")[0]), file=sys.stderr)
    sys.exit(2)

__all__ = ["main"]
