"""Puts the commands together, and turns each error into one line and an exit status."""

import sys

import click
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from lockd.errors import LockdError, Unavailable
from lockd_scheduler.cli import asking, declaring, importing, looking, serving
from lockd_scheduler.worker import first_line
from lockd_scheduler.written import BadFile


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def commands() -> None:
    """Run each scheduled job once, and keep a ledger of every fire."""


for part in (serving, looking, asking, declaring, importing):
    for command in part.COMMANDS:
        commands.add_command(command)


def main() -> None:
    """Run the command; every error is one line on stderr."""
    try:
        commands.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except Unavailable as error:
        _fail(first_line(error), 3)
    except BadFile as error:
        _fail("\nError: ".join(str(mistake) for mistake in error.mistakes), 2)
    except LockdError as error:
        _fail(first_line(error), 2)
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        _fail(f"the ledger's database does not answer: {_cause(error)}", 3)
    except (SQLAlchemyError, OSError) as error:
        _fail(_cause(error), 1)


def _cause(error: BaseException) -> str:
    return first_line(error.orig if isinstance(error, DBAPIError) and error.orig is not None else error)


def _fail(text: str, status: int) -> None:
    click.echo(f"Error: {text}", err=True)
    sys.exit(status)
