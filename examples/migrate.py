"""Replicas that all start with `python migrate.py alembic.ini`: one of them migrates, the others wait.

Needs `pip install 'lockd[sqlalchemy]'`.
"""

import sys

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

import lockd


def main(ini: str) -> None:
    """Bring the database of that file to the newest revision."""
    config = Config(ini)
    engine = create_engine(config.get_main_option("sqlalchemy.url") or "")
    head = ScriptDirectory.from_config(config).get_current_head()
    with lockd.Client(ttl=30) as client, client.lock("example/migrations", wait=300) as lease:
        with engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
        if found == head:
            print(f"at {head} already")
            return
        lease.check(need=10.0)
        command.upgrade(config, "head")
        print(f"migrated from {found} to {head}, under token {lease.token}")


if __name__ == "__main__":
    main(sys.argv[1])
