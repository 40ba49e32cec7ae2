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

REFUSE_SIGNATURE = "lockd_fence_refuse(text, text)"
# The triggers call these: while a table is guarded, DROP FUNCTION and so the downgrade is refused.
GUARD_SIGNATURES = ("lockd_guard_row()", "lockd_guard_table()", "lockd_fenced(text)")


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        _create(REFUSE)
        op.execute(f"REVOKE ALL ON FUNCTION {REFUSE_SIGNATURE} FROM PUBLIC")
        _create(BEGIN)
        for body in (FENCED, GUARD_TABLE, GUARD_ROW):
            op.execute(body)
        op.execute("GRANT EXECUTE ON FUNCTION lockd_fenced(text) TO PUBLIC")


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        for signature in GUARD_SIGNATURES:
            op.execute(f"DROP FUNCTION {signature}")
        _create(BEGIN_0001.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))
        op.execute(f"DROP FUNCTION {REFUSE_SIGNATURE}")


def _create(body: str) -> None:
    schema = op.get_bind().scalar(select(func.quote_ident(func.current_schema())))
    op.execute(body.replace("SCHEMA", str(schema)))


# Every fenced transaction pays for this, so it is one query, and has no SET search_path, which would cost
# more than the comparison. Instead each name is qualified, operators too (keywords such as bigint, interval
# and greatest are nobody's to replace): whatever search_path a caller has, it means the same.
# The row is locked before the settings are looked at. A tighter limit stays (SAFETY S5). A resource with
# the separator in it leaves no marker, and so opens no guard: it could pass for two.
BEGIN = r"""
CREATE OR REPLACE FUNCTION lockd_fence_begin(
  p_resource text, p_fence text, p_idle_ms integer, p_statement_ms integer
) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER AS $lockd$
DECLARE
  v_token bigint;
  v_idle pg_catalog.text;
  v_statement pg_catalog.text;
  v_marker pg_catalog.text;
BEGIN
  LOOP
    SELECT held.token,
      CASE WHEN pg_catalog.current_setting('idle_in_transaction_session_timeout') OPERATOR(pg_catalog.=) '0'
        OR pg_catalog.date_part('epoch',
          pg_catalog.current_setting('idle_in_transaction_session_timeout')::interval)
          OPERATOR(pg_catalog.*) 1000 OPERATOR(pg_catalog.>) p_idle_ms
      THEN pg_catalog.set_config(
        'idle_in_transaction_session_timeout', greatest(p_idle_ms, 1)::pg_catalog.text, true) END,
      CASE WHEN pg_catalog.current_setting('statement_timeout') OPERATOR(pg_catalog.=) '0'
        OR pg_catalog.date_part('epoch',
          pg_catalog.current_setting('statement_timeout')::interval)
          OPERATOR(pg_catalog.*) 1000 OPERATOR(pg_catalog.>) p_statement_ms
      THEN pg_catalog.set_config('statement_timeout', greatest(p_statement_ms, 1)::pg_catalog.text, true) END,
      CASE WHEN pg_catalog.strpos(p_resource, E'\x1f') OPERATOR(pg_catalog.>) 0 THEN NULL
      ELSE pg_catalog.set_config('lockd.fenced', CASE
        WHEN pg_catalog.starts_with(held.marker, held.xid OPERATOR(pg_catalog.||) E'\x1f') THEN
          CASE WHEN pg_catalog.strpos(held.marker OPERATOR(pg_catalog.||) E'\x1f',
            E'\x1f' OPERATOR(pg_catalog.||) p_resource OPERATOR(pg_catalog.||) E'\x1f')
            OPERATOR(pg_catalog.>) 0 THEN held.marker
          ELSE held.marker OPERATOR(pg_catalog.||) E'\x1f' OPERATOR(pg_catalog.||) p_resource END
        ELSE held.xid OPERATOR(pg_catalog.||) E'\x1f' OPERATOR(pg_catalog.||) p_resource END, true) END
    INTO v_token, v_idle, v_statement, v_marker
    FROM (
      SELECT f.token,
        pg_catalog.current_setting('lockd.fenced', true) AS marker,
        pg_catalog.pg_current_xact_id()::pg_catalog.text AS xid
      FROM SCHEMA.lockd_fence f
      WHERE f.resource OPERATOR(pg_catalog.=) p_resource
        AND p_fence OPERATOR(pg_catalog.=) pg_catalog.concat_ws('/', f.cluster, f.incarnation, f.token)
      FOR SHARE
    ) held;
    IF FOUND THEN
      RETURN v_token;
    END IF;
    PERFORM SCHEMA.lockd_fence_refuse(p_resource, p_fence);
  END LOOP;
END
$lockd$
"""

# Returns only if the mark has become this fence just now, and then holds it.
REFUSE = """
CREATE FUNCTION lockd_fence_refuse(p_resource text, p_fence text) RETURNS void
LANGUAGE plpgsql SET search_path = SCHEMA, pg_temp AS $lockd$
DECLARE
  v_mark lockd_fence;
BEGIN
  SELECT * INTO v_mark FROM lockd_fence f WHERE f.resource = p_resource FOR SHARE;
  IF NOT FOUND THEN
    RAISE EXCEPTION USING ERRCODE = 'LF002',
      MESSAGE = 'lockd: no token is installed for resource ' || coalesce(quote_ident(p_resource), 'NULL');
  ELSIF p_fence !~ '^[0-9a-f]{32}/[0-9a-f]{8}/[1-9][0-9]{0,15}$' OR p_fence IS NULL THEN
    RAISE EXCEPTION USING ERRCODE = 'LF006', MESSAGE = 'lockd: not a fence: ' || coalesce(p_fence, 'NULL');
  ELSIF split_part(p_fence, '/', 1) <> v_mark.cluster THEN
    RAISE EXCEPTION USING ERRCODE = 'LF003', MESSAGE = 'lockd: resource ' || quote_ident(p_resource)
      || ' belongs to cluster ' || v_mark.cluster || ', not ' || split_part(p_fence, '/', 1)
      || ': mark ' || v_mark.token;
  ELSIF split_part(p_fence, '/', 3)::bigint > v_mark.token THEN
    RAISE EXCEPTION USING ERRCODE = 'LF002', MESSAGE = 'lockd: token ' || split_part(p_fence, '/', 3)
      || ' is not installed for resource ' || quote_ident(p_resource) || ': mark ' || v_mark.token;
  ELSIF p_fence <> v_mark.cluster || '/' || v_mark.incarnation || '/' || v_mark.token THEN
    RAISE EXCEPTION USING ERRCODE = 'LF001', MESSAGE = 'lockd: stale token ' || split_part(p_fence, '/', 3)
      || ' for resource ' || quote_ident(p_resource) || ': mark ' || v_mark.token;
  END IF;
END
$lockd$
"""

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
