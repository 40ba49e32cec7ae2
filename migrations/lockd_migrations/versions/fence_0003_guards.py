"""Guards on PostgreSQL: tables refuse writes of transactions that have begun no fence (SAFETY S6).

lockd_fence_begin leaves a marker, the setting `lockd.fenced`: the transaction's id, then each resource
after a chr(31). It is local to the transaction, so a savepoint that is rolled back takes marker and
lock away together; and as it carries the id, nothing of it counts in a later transaction.

Triggers compare with it. They are made by `lockd_storage.sqlalchemy.guards.postgresql`, and call

    lockd_guard_table(resource)          "orders", or "orders:*" for any that begins with "orders:"
    lockd_guard_row(resource)            "orders:{id}": refuses whatever the trigger's WHEN lets through

Their SQLSTATE is LF007. Triggers run with the rights of whoever writes, who needs none to fire them;
lockd_fenced() in a WHEN is run by everybody, and tells nothing but what its caller did itself.
"""

from alembic import op
from sqlalchemy import func, select

from lockd_migrations.versions.fence_0001_marks import BEGIN as BEGIN_0001

revision = "fence_0003"
down_revision = "fence_0002"
branch_labels = None
depends_on = None

# The triggers call these: while a table is guarded, DROP FUNCTION and so the downgrade is refused.
GUARD_SIGNATURES = ("lockd_guard_row()", "lockd_guard_table()", "lockd_fenced(text)")


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        _replace_begin(BEGIN)
        for body in (FENCED, GUARD_TABLE, GUARD_ROW):
            op.execute(body)
        op.execute("GRANT EXECUTE ON FUNCTION lockd_fenced(text) TO PUBLIC")


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        for signature in GUARD_SIGNATURES:
            op.execute(f"DROP FUNCTION {signature}")
        _replace_begin(BEGIN_0001)


def _replace_begin(body: str) -> None:
    schema = op.get_bind().scalar(select(func.quote_ident(func.current_schema())))
    replacing = body.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")
    op.execute(replacing.replace("SCHEMA", str(schema)))


# A resource with the separator in it is left out, and so opens no guard: it could pass for two.
MARKER = """
  v_marker := current_setting('lockd.fenced', true);
  IF v_marker IS NULL OR NOT starts_with(v_marker, pg_current_xact_id()::text || chr(31)) THEN
    v_marker := pg_current_xact_id()::text;
  END IF;
  IF position(chr(31) IN p_resource) = 0
    AND position(chr(31) || p_resource || chr(31) IN v_marker || chr(31)) = 0 THEN
    PERFORM set_config('lockd.fenced', v_marker || chr(31) || p_resource, true);
  END IF;
  RETURN v_mark.token;
"""

BEGIN = BEGIN_0001.replace("  v_limit numeric;\n", "  v_limit numeric;\n  v_marker text;\n").replace(
    "  RETURN v_mark.token;\n", MARKER.lstrip("\n")
)

# Its body is parsed here and now, so that no search_path of a caller can change what it means.
FENCED = """
CREATE FUNCTION lockd_fenced(p_resource text) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE
RETURN position(chr(31) IN p_resource) = 0
  AND starts_with(current_setting('lockd.fenced', true), pg_current_xact_id_if_assigned()::text || chr(31))
  AND position(chr(31) || p_resource || chr(31) IN current_setting('lockd.fenced', true) || chr(31)) > 0
"""

# On the path of every write to a guarded table: one expression, no query, no SET clause.
GUARD_TABLE = r"""
CREATE FUNCTION lockd_guard_table() RETURNS trigger LANGUAGE plpgsql AS $lockd$
DECLARE
  v_marker text := current_setting('lockd.fenced', true) || chr(31);
  v_fenced boolean := starts_with(v_marker, pg_current_xact_id_if_assigned()::text || chr(31))
    AND position(chr(31) || CASE right(TG_ARGV[0], 1) WHEN '*' THEN left(TG_ARGV[0], -1)
                                                      ELSE TG_ARGV[0] || chr(31) END IN v_marker) > 0;
BEGIN
  IF v_fenced THEN
    RETURN NULL;
  END IF;
  RAISE EXCEPTION USING ERRCODE = 'LF007', SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME,
    MESSAGE = 'lockd: ' || TG_OP || ' of ' || TG_RELID::regclass
      || ' needs the fence of resource ' || TG_ARGV[0] || ', which this transaction has not begun',
    HINT = 'Write inside fenced(session, fence, lease) of lockd_storage, or begin the transaction with'
      || ' SELECT lockd_fence_begin(resource, fence, idle_ms, statement_ms).';
END
$lockd$
"""

# Only ever refuses, so it may be slow: it names the resource of the first row that no fence covers.
GUARD_ROW = r"""
CREATE FUNCTION lockd_guard_row() RETURNS trigger LANGUAGE plpgsql AS $lockd$
DECLARE
  v_old jsonb := to_jsonb(OLD);
  v_new jsonb := to_jsonb(NEW);
  v_row jsonb;
  v_column text;
  v_resource text;
BEGIN
  FOREACH v_row IN ARRAY ARRAY[v_new, v_old] LOOP
    CONTINUE WHEN v_row IS NULL OR v_row = 'null';
    v_resource := TG_ARGV[0];
    FOR v_column IN SELECT piece[1] FROM regexp_matches(TG_ARGV[0], '\{([^{}]*)\}', 'g') AS piece LOOP
      v_resource := replace(v_resource, '{' || v_column || '}', coalesce(v_row ->> v_column, 'NULL'));
    END LOOP;
    EXIT WHEN lockd_fenced(v_resource) IS NOT TRUE;
  END LOOP;
  RAISE EXCEPTION USING ERRCODE = 'LF007', SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME,
    MESSAGE = 'lockd: ' || TG_OP || ' of ' || TG_RELID::regclass
      || ' needs the fence of resource ' || coalesce(v_resource, TG_ARGV[0])
      || ', which this transaction has not begun',
    HINT = CASE TG_OP
      WHEN 'TRUNCATE' THEN 'Each row needs a fence of its own, and TRUNCATE looks at none: use DELETE.'
      ELSE 'Write inside fenced(session, fence, lease) of lockd_storage, or begin the transaction with'
        || ' SELECT lockd_fence_begin(resource, fence, idle_ms, statement_ms).' END;
END
$lockd$
"""
