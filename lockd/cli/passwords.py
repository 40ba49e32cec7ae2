"""`lockd hash-password`: what goes into the auth file."""

import sys

import click

from lockd import passwords
from lockd.cli.exits import RefusedError
from lockd.cli.options import as_json
from lockd.cli.output import show_json


@click.command("hash-password")
@as_json
def hash_password(*, as_json: bool) -> None:
    """Hash a password for `password_scrypt` in --auth-file.

    It is asked for on a terminal, else it is the first line of standard input.
    """
    if sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise RefusedError("the password is empty")
    hashed = passwords.hash_password(password)
    if as_json:
        show_json({"password_scrypt": hashed})
    else:
        click.echo(hashed)
