"""Guards: a table refuses writes that come from outside a fence (SAFETY S6).

A fence keeps old holders out, as long as everybody writes under one. A guard is what makes everybody
do so. It has two halves:

    in the database   Triggers. On PostgreSQL they stop every statement from anywhere, psql too. On
                      SQLite and MariaDB as far as those go; each module says how far.
    in Python         `guard_engine(engine)`: the same refusal earlier, with the name of the table and
                      no round trip, for what SQLAlchemy builds. It can't see into text.

Guards stop accidents and holders that have been paused. They don't stop somebody who means to get
around them: whoever owns a table may drop its triggers.

Start reading at `guard`, the value that says which table wants which fence.
"""

from lockd_storage.sqlalchemy.guards.guard import Guard, declared_guard
from lockd_storage.sqlalchemy.guards.net import guard_engine

__all__ = ["Guard", "declared_guard", "guard_engine"]
