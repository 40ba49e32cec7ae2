"""An optional column that tells under which token a row was last written: for people, and no fence.

The check is made by `fenced`; this column only remembers. It is filled by inserts and updates that go
through SQLAlchemy's ORM or Core. One outside a fence leaves NULL, so what was written around the fence
shows. SQL as text and other clients leave the column as it is.
"""

from typing import Any

from sqlalchemy import BigInteger, Column

from lockd_storage.sqlalchemy.held import TOKENS


def token_column(name: str = "lockd_token", *, resource: str | None = None) -> Column[int | None]:
    """A nullable BIGINT column for a table, or as `lockd_token = token_column()` in a declarative class.

    Tokens have up to 53 bits, so INTEGER would be too narrow.

    `resource` names whose token it is when a transaction is fenced by several leases. Without it such
    a transaction leaves NULL.
    """

    def current(context: Any) -> int | None:
        connection = context.root_connection
        tokens: dict[str, int]
        transaction, tokens = connection.info.get(TOKENS, (None, {}))
        if transaction is None or transaction is not connection.get_transaction():
            return None
        if resource is not None:
            return tokens.get(resource)
        return next(iter(tokens.values())) if len(tokens) == 1 else None

    return Column(name, BigInteger, nullable=True, default=current, onupdate=current)
