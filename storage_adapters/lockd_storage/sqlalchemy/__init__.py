"""Fenced transactions through SQLAlchemy: PostgreSQL, MariaDB and MySQL, and SQLite; blocking and asyncio.

`SqlFence` installs; `fenced` wraps a Session, a Connection, or an asyncio one, so that every
transaction it begins is checked and holds the mark until it ends. The marks live in the same
database as the data, in tables that `lockd_storage.schema.upgrade(engine)` makes.

    fence = SqlFence(engine)                     # of an AsyncEngine: the same verbs, awaited
    fence.install(lease)
    with fenced(session, fence, lease, *more):   # several leases: their marks are taken in one order
        ...

    fenced(..., check="late")                    # compared just before each COMMIT
    fenced(..., access="read")                   # a shared lease reads; writes are refused

On PostgreSQL both verbs are functions, so that other clients can take part:

    BEGIN;                                      -- READ COMMITTED, and nothing else in it
    SELECT lockd_fence_install('orders', 'orders', 'cluster/incarnation/token');
    COMMIT;

    BEGIN;                                      -- any isolation level; this comes first
    SELECT lockd_fence_begin('orders', 'cluster/incarnation/token', 8000, 8000);
    ...                                         -- at most 8000 ms idle, and 8000 ms a statement
    COMMIT;

The first arguments are the resource and, for install, the lock's name. They refuse with these
SQLSTATEs: LF001 stale token, LF002 not installed, LF003 another cluster, LF004 another lock, LF005
not READ COMMITTED, LF006 not a fence; the triggers of guarded tables with LF007, outside a fence. The
resource stays locked FOR SHARE until the transaction ends.

On SQLite the database has one writer at a time: a fenced transaction takes the write lock first,
then compares. A holder that is paused inside a transaction blocks everyone until its process goes on
or ends; no server is there to end it. Behind aiosqlite, a block whose task is cancelled inside a SELECT of
its own may keep the file locked until Python's garbage collector comes: SQLAlchemy leaves the cursor open,
and SQLite keeps a closed connection's locks for it. An install that is cancelled doesn't.
MariaDB and MySQL are described in `mysql`.

Start reading at `fence`. `block` watches the transactions and `held` says what must hold of them;
`postgresql`, `mysql` and `sqlite` speak to the database, by way of `marks`, their port.
"""

try:
    import sqlalchemy as _installed  # noqa: F401  the test is whether it can be imported
except ImportError as error:
    raise ImportError('lockd_storage.sqlalchemy needs SQLAlchemy: pip install "lockd[sqlalchemy]"') from error

from lockd_storage.sqlalchemy.fence import AsyncSqlFence, SqlFence, fenced

__all__ = ["AsyncSqlFence", "SqlFence", "fenced"]
