"""The fence store: one mark for each resource, one floor, and on PostgreSQL the two verbs.

The functions are SECURITY DEFINER with a pinned search_path, and PUBLIC may not call them
(SAFETY S3): an application's role gets EXECUTE on both and SELECT on `lockd_fence`, and no way to
move a mark by hand. No text of theirs holds a percent sign: drivers read it as a placeholder.
"""

import sqlalchemy as sa
from alembic import op

revision = "fence_0001"
down_revision = None
branch_labels = ("fence",)
depends_on = None

TOKEN_MAX = 2**53 - 1

INSTALL_SIGNATURE = "lockd_fence_install(text, text, text)"
BEGIN_SIGNATURE = "lockd_fence_begin(text, text, integer, integer)"


def upgrade() -> None:
    op.create_table(
        "lockd_fence",
        sa.Column("resource", sa.String(512), primary_key=True),
        sa.Column("lock", sa.String(512), nullable=False),
        sa.Column("cluster", sa.String(32), nullable=False),
        sa.Column("incarnation", sa.String(8), nullable=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("installed_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.CheckConstraint(f"token BETWEEN 1 AND {TOKEN_MAX}", name="lockd_fence_token_range"),
        # Sharers write their lock into the row: room on its page keeps those updates in place.
        postgresql_with={"fillfactor": "50"},
    )
    floor = op.create_table(
        "lockd_fence_floor",
        sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.CheckConstraint("id = 1", name="lockd_fence_floor_one_row"),
        sa.CheckConstraint(f"token BETWEEN 0 AND {TOKEN_MAX}", name="lockd_fence_floor_token_range"),
    )
    op.bulk_insert(floor, [{"id": 1, "token": 0}])
    if op.get_context().dialect.name == "postgresql":
        _create_functions()


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute(f"DROP FUNCTION {BEGIN_SIGNATURE}")
        op.execute(f"DROP FUNCTION {INSTALL_SIGNATURE}")
    op.drop_table("lockd_fence_floor")
    op.drop_table("lockd_fence")


def _create_functions() -> None:
    schema = op.get_bind().scalar(sa.select(sa.func.quote_ident(sa.func.current_schema())))
    for signature, body in ((INSTALL_SIGNATURE, INSTALL), (BEGIN_SIGNATURE, BEGIN)):
        op.execute(body.replace("SCHEMA", str(schema)))
        op.execute(f"REVOKE ALL ON FUNCTION {signature} FROM PUBLIC")


# Refusals carry a SQLSTATE of class LF and end in "mark <number>" where there is a mark:
#   LF001 stale token · LF002 not installed · LF003 another cluster · LF004 another lock
#   LF005 install outside READ COMMITTED · LF006 not a fence

INSTALL = """
CREATE FUNCTION lockd_fence_install(p_resource text, p_lock text, p_fence text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = SCHEMA, pg_temp AS $lockd$
DECLARE
  v_cluster text;
  v_incarnation text;
  v_token bigint;
  v_floor bigint;
  v_mark lockd_fence;
BEGIN
  IF p_fence !~ '^[0-9a-f]{32}/[0-9a-f]{8}/[1-9][0-9]{0,15}$' OR p_fence IS NULL THEN
    RAISE EXCEPTION USING ERRCODE = 'LF006', MESSAGE = 'lockd: not a fence: ' || coalesce(p_fence, 'NULL');
  END IF;
  v_cluster := split_part(p_fence, '/', 1);
  v_incarnation := split_part(p_fence, '/', 2);
  v_token := split_part(p_fence, '/', 3)::bigint;
  -- S4: work that follows in this transaction under a later isolation level would read the past.
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION USING ERRCODE = 'LF005',
      MESSAGE = 'lockd: install needs a READ COMMITTED transaction of its own';
  END IF;
  IF current_setting('synchronous_commit') NOT IN ('on', 'remote_apply') THEN
    PERFORM set_config('synchronous_commit', 'on', true);
  END IF;
  SELECT f.token INTO STRICT v_floor FROM lockd_fence_floor f WHERE f.id = 1 FOR SHARE;
  LOOP
    -- Read without a lock first. Marks only rise, so a refusal seen here is final, and an old
    -- holder that installs again neither waits for the new one's transactions nor ends them.
    SELECT * INTO v_mark FROM lockd_fence f WHERE f.resource = p_resource;
    IF FOUND THEN
      IF v_mark.cluster <> v_cluster THEN
        RAISE EXCEPTION USING ERRCODE = 'LF003', MESSAGE = 'lockd: resource ' || quote_ident(p_resource)
          || ' belongs to cluster ' || v_mark.cluster || ', not ' || v_cluster || ': mark ' || v_mark.token;
      ELSIF v_mark.lock <> p_lock THEN
        RAISE EXCEPTION USING ERRCODE = 'LF004', MESSAGE = 'lockd: resource ' || quote_ident(p_resource)
          || ' belongs to lock ' || quote_ident(v_mark.lock) || ', not ' || quote_ident(p_lock)
          || ': mark ' || v_mark.token;
      ELSIF v_mark.token = v_token AND v_mark.incarnation = v_incarnation THEN
        RETURN v_token;
      END IF;
    END IF;
    IF v_token <= greatest(v_floor, v_mark.token) THEN
      RAISE EXCEPTION USING ERRCODE = 'LF001', MESSAGE = 'lockd: stale token ' || v_token || ' for resource '
        || quote_ident(p_resource) || ': mark ' || greatest(v_floor, v_mark.token);
    END IF;
    IF v_mark.resource IS NULL THEN
      INSERT INTO lockd_fence (resource, lock, cluster, incarnation, token)
        VALUES (p_resource, p_lock, v_cluster, v_incarnation, v_token) ON CONFLICT (resource) DO NOTHING;
    ELSE
      -- Waits until every transaction that shares the row has ended. Only the mark that was
      -- judged above may be replaced: if it has moved meanwhile, judge again.
      UPDATE lockd_fence f
        SET incarnation = v_incarnation, token = v_token, installed_at = now()
        WHERE f.resource = p_resource AND f.token = v_mark.token;
    END IF;
    IF FOUND THEN
      RETURN v_token;
    END IF;
  END LOOP;
END
$lockd$
"""

BEGIN = """
CREATE FUNCTION lockd_fence_begin(p_resource text, p_fence text, p_idle_ms integer, p_statement_ms integer)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = SCHEMA, pg_temp AS $lockd$
DECLARE
  v_mark lockd_fence;
  v_limit numeric;
BEGIN
  SELECT * INTO v_mark FROM lockd_fence f WHERE f.resource = p_resource FOR SHARE;
  IF NOT FOUND THEN
    RAISE EXCEPTION USING ERRCODE = 'LF002',
      MESSAGE = 'lockd: no token is installed for resource ' || coalesce(quote_ident(p_resource), 'NULL');
  ELSIF p_fence IS DISTINCT FROM v_mark.cluster || '/' || v_mark.incarnation || '/' || v_mark.token THEN
    IF p_fence !~ '^[0-9a-f]{32}/[0-9a-f]{8}/[1-9][0-9]{0,15}$' OR p_fence IS NULL THEN
      RAISE EXCEPTION USING ERRCODE = 'LF006', MESSAGE = 'lockd: not a fence: ' || coalesce(p_fence, 'NULL');
    ELSIF split_part(p_fence, '/', 1) <> v_mark.cluster THEN
      RAISE EXCEPTION USING ERRCODE = 'LF003', MESSAGE = 'lockd: resource ' || quote_ident(p_resource)
        || ' belongs to cluster ' || v_mark.cluster || ', not ' || split_part(p_fence, '/', 1)
        || ': mark ' || v_mark.token;
    ELSIF split_part(p_fence, '/', 3)::bigint > v_mark.token THEN
      RAISE EXCEPTION USING ERRCODE = 'LF002', MESSAGE = 'lockd: token ' || split_part(p_fence, '/', 3)
        || ' is not installed for resource ' || quote_ident(p_resource) || ': mark ' || v_mark.token;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'LF001', MESSAGE = 'lockd: stale token ' || split_part(p_fence, '/', 3)
      || ' for resource ' || quote_ident(p_resource) || ': mark ' || v_mark.token;
  END IF;
  -- S5: a paused holder is ended by the server, by a duration and not by a clock. A limit that is
  -- already tighter stays.
  v_limit := extract(epoch FROM current_setting('idle_in_transaction_session_timeout')::interval) * 1000;
  IF v_limit = 0 OR v_limit > p_idle_ms THEN
    PERFORM set_config('idle_in_transaction_session_timeout', greatest(p_idle_ms, 1)::text, true);
  END IF;
  v_limit := extract(epoch FROM current_setting('statement_timeout')::interval) * 1000;
  IF v_limit = 0 OR v_limit > p_statement_ms THEN
    PERFORM set_config('statement_timeout', greatest(p_statement_ms, 1)::text, true);
  END IF;
  RETURN v_mark.token;
END
$lockd$
"""
