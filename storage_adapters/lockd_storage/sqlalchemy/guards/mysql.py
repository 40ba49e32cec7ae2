"""Guards on MariaDB and MySQL: row triggers that compare what the session presents with the fence row.

A fenced transaction leaves `@lockd_fenced` on its session: for each resource two NULs, its name, a NUL,
the fence, a NUL. User variables outlive transactions and go with the connection to the pool's next
borrower, so the trigger believes it only as far as the mark agrees, and share-locks the mark: a leftover
lets nobody write under a token that is not the installed one (SAFETY S6). The adapter clears it before
the transaction ends; whoever sets it by hand should do so too.

Stopped: INSERT, UPDATE, DELETE, REPLACE, LOAD DATA and ON DUPLICATE KEY UPDATE of a row, from anywhere,
also with IGNORE, and also from another table's trigger.

Not stopped, since the server runs no trigger for them: rows that a foreign key's cascade changes or
deletes (guard the parent too), TRUNCATE (an application's role needs DROP for it: don't grant that), and
a statement that touches no row, whatever `level` says; `truncate` and `always` mean nothing here. A row
of a table without transactions, such as MyISAM's, stays although the statement fails. A replica that
applies rows runs no triggers. Whoever owns the table may drop them.

The table must be in the database that holds lockd's own. Creating triggers needs TRIGGER, and with binary
logging SUPER or `log_bin_trust_function_creators`; they read the mark with their creator's rights.
"""

from hashlib import md5

from sqlalchemy import Connection, text

from lockd_storage.sqlalchemy.guards.guard import Guard

_SIDES = {"insert": ("NEW",), "update": ("OLD", "NEW"), "delete": ("OLD",)}
_NAME_MAX = 64
_MESSAGE_MAX = 128  # of MESSAGE_TEXT: a longer one is another error
_NUL = "CHAR(0 USING utf8mb4)"
# The mark's own collation, or its index could not be used and the trigger would lock every mark. Each
# server runs the comment that is meant for it.
_TEXT = "CHARACTER SET utf8mb4 COLLATE /*M!100202 utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */"


def create(guard: Guard) -> list[str]:
    """The statements that guard a table, in place of any guard that it has. One for each trigger.

    Raises ValueError for a table of another database.
    """
    if guard.schema is not None:
        raise ValueError(
            f"table {guard.schema}.{guard.table} can't be guarded: on MariaDB a guarded table is in the"
            " database that holds lockd's own tables, and named without a schema"
        )
    return [*drop(guard), *(_trigger(guard, verb) for verb in _SIDES)]


def drop(guard: Guard) -> list[str]:
    """The statements that take any guard of this table away."""
    return [f"DROP TRIGGER IF EXISTS {_quoted(_name(guard, verb))}" for verb in _SIDES]


def existing(connection: Connection) -> list[Guard]:
    """The guards of this database. One with a trigger missing no longer holds and is left out."""
    found: dict[str, list[Guard]] = {}
    for table, body in connection.execute(_TRIGGERS):
        guard = Guard.from_note(body, table=table)
        if guard is not None:
            found.setdefault(table, []).append(guard)
    return [guards[0] for guards in found.values() if len(guards) == len(_SIDES)]


def _trigger(guard: Guard, verb: str) -> str:
    # AFTER: only then is an AUTO_INCREMENT known, and what other triggers have changed. An error
    # there undoes the statement as well.
    refusal = (
        f"lockd: {verb.upper()} of {guard.table} needs the fence of {guard.resource}, which is not begun here"
    )
    sides = _SIDES[verb] if guard.columns else _SIDES[verb][:1]
    refusal = refusal.replace("\\", "/")[:_MESSAGE_MAX]  # MESSAGE_TEXT takes a plain literal alone
    checks = "\n".join(_check(guard, side, refusal) for side in sides)
    return (
        f"CREATE TRIGGER {_quoted(_name(guard, verb))} AFTER {verb.upper()} ON {_quoted(guard.table)}"
        f" FOR EACH ROW\nBEGIN /* {guard.note()} */\n"
        f"DECLARE v_fenced LONGTEXT {_TEXT} DEFAULT COALESCE(@lockd_fenced, '');\n"
        f"DECLARE v_resource VARCHAR(512) {_TEXT};\n"
        "DECLARE v_held INT DEFAULT 0;\n"
        f"{checks}\nEND"
    )


def _check(guard: Guard, side: str, refusal: str) -> str:
    return (
        f"SET v_resource = {_resource(guard, side)};\n"
        "SELECT COUNT(*) INTO v_held FROM lockd_fence f WHERE f.resource = v_resource"
        f" AND LOCATE(CONCAT({_NUL}, {_NUL}, f.resource, {_NUL}, f.cluster, '/', f.incarnation, '/',"
        f" f.token, {_NUL}), v_fenced) > 0 LOCK IN SHARE MODE;\n"
        f"IF v_held = 0 THEN SIGNAL SQLSTATE 'LF007' SET MESSAGE_TEXT = {_literal(refusal)}; END IF;"
    )


def _resource(guard: Guard, side: str) -> str:
    """The resource whose fence a row needs, as an expression; NULL, which no mark has, if there is none."""
    if guard.prefix is not None:
        start = f"LOCATE(CONCAT({_NUL}, {_NUL}, {_literal(guard.prefix)}), v_fenced)"
        return f"IF({start} = 0, NULL, SUBSTRING_INDEX(SUBSTRING(v_fenced, {start} + 2), {_NUL}, 1))"
    parts = (
        _literal(part) if kind == "text" else f"CAST({side}.{_quoted(part)} AS CHAR CHARACTER SET utf8mb4)"
        for kind, part in guard.pieces
    )
    return f"CONCAT({', '.join(parts)})"


def _name(guard: Guard, verb: str) -> str:
    name = f"lockd_guard_{verb}_{guard.table}"
    if len(name) > _NAME_MAX:
        name = f"lockd_guard_{verb}_{md5(guard.table.encode(), usedforsecurity=False).hexdigest()}"
    return name


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _literal(words: str) -> str:
    # A backslash would be read by one SQL mode and not by another.
    hexadecimal = words.encode().hex()
    return (
        f"CONVERT(x'{hexadecimal}' USING utf8mb4)" if "\\" in words else "'" + words.replace("'", "''") + "'"
    )


_TRIGGERS = text(
    "SELECT event_object_table, action_statement FROM information_schema.triggers"
    " WHERE trigger_schema = DATABASE() AND event_object_schema = DATABASE()"
    " ORDER BY event_object_table, trigger_name"
)
