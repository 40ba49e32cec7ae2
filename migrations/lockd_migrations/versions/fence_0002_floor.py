"""The floor knows its cluster: once it is set, no lease of another may install anything here.

A mark names its cluster, but a resource without one took whoever came first. `adopt` sets the
floor's (SAFETY S2, `lockd_storage.sqlalchemy.upkeep`). NULL, as in every store that was never
adopted, changes nothing.

On PostgreSQL only the body of lockd_fence_install is new, with what it compares: signature, owner
and rights stay.
"""

import sqlalchemy as sa
from alembic import op

from lockd_migrations.versions.fence_0001_marks import INSTALL as INSTALL_0001

revision = "fence_0002"
down_revision = "fence_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("lockd_fence_floor", sa.Column("cluster", sa.String(32), nullable=True))
    _replace_install(INSTALL)


def downgrade() -> None:
    _replace_install(INSTALL_0001.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))
    op.drop_column("lockd_fence_floor", "cluster")


def _replace_install(body: str) -> None:
    if op.get_context().dialect.name == "postgresql":
        schema = op.get_bind().scalar(sa.select(sa.func.quote_ident(sa.func.current_schema())))
        op.execute(body.replace("SCHEMA", str(schema)))


INSTALL = """
CREATE OR REPLACE FUNCTION lockd_fence_install(p_resource text, p_lock text, p_fence text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = SCHEMA, pg_temp AS $lockd$
DECLARE
  v_cluster text;
  v_incarnation text;
  v_token bigint;
  v_floor lockd_fence_floor;
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
  SELECT * INTO STRICT v_floor FROM lockd_fence_floor f WHERE f.id = 1 FOR SHARE;
  IF v_floor.cluster <> v_cluster THEN
    RAISE EXCEPTION USING ERRCODE = 'LF003', MESSAGE = 'lockd: this fence store belongs to cluster '
      || v_floor.cluster || ', not ' || v_cluster;
  END IF;
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
    IF v_token <= greatest(v_floor.token, v_mark.token) THEN
      RAISE EXCEPTION USING ERRCODE = 'LF001', MESSAGE = 'lockd: stale token ' || v_token || ' for resource '
        || quote_ident(p_resource) || ': mark ' || greatest(v_floor.token, v_mark.token);
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
