"""files that sessions write, and their collisions."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002_collisions"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")  # fail rather than queue traffic behind us
    op.create_table(
        "file_touches",
        sa.Column("session", sa.BigInteger(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("root", sa.Text(), nullable=False),
        sa.Column("remote", sa.Text(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("turn_id", sa.Text(), nullable=True),
        sa.Column("lines", postgresql.INT8MULTIRANGE(), nullable=True),
        sa.Column("touched_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("pending", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.CheckConstraint(
            "kind IN ('edit', 'write', 'delete', 'move', 'shell')", name=op.f("file_touches_kind_chk")
        ),
        sa.ForeignKeyConstraint(
            ["session"], ["agent_sessions.id"], name=op.f("file_touches_session_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("session", "path", name=op.f("file_touches_pkey")),
    )
    op.create_index("file_touches_file_idx", "file_touches", ["owner", "project_id", "path"])
    op.create_index(
        "file_touches_pending_idx",
        "file_touches",
        ["session", "touched_at"],
        postgresql_where=sa.text("pending"),
    )
    op.create_table(
        "collisions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("session_a", sa.BigInteger(), nullable=False),
        sa.Column("session_b", sa.BigInteger(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("overlap", sa.Text(), nullable=False),
        sa.Column("merge_conflict", sa.Boolean(), nullable=True),
        sa.Column("touches", postgresql.JSON(astext_type=sa.Text()), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("resolved_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("resolution", sa.Text(), nullable=True),
        sa.CheckConstraint("session_a < session_b", name=op.f("collisions_pair_chk")),
        sa.CheckConstraint("severity IN ('overwrite', 'merge')", name=op.f("collisions_severity_chk")),
        sa.CheckConstraint("overlap IN ('same_lines', 'same_file')", name=op.f("collisions_overlap_chk")),
        sa.CheckConstraint(
            "(resolved_at IS NULL) = (resolution IS NULL) "
            "AND resolution IN ('session_closed', 'session_idle')",
            name=op.f("collisions_resolution_chk"),
        ),
        sa.ForeignKeyConstraint(
            ["session_a"], ["agent_sessions.id"], name=op.f("collisions_session_a_fkey"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["session_b"], ["agent_sessions.id"], name=op.f("collisions_session_b_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("collisions_pkey")),
    )
    op.create_index(op.f("collisions_owner_opened_at_id_idx"), "collisions", ["owner", "opened_at", "id"])
    op.create_index(
        "collisions_one_open",
        "collisions",
        ["session_a", "session_b", "path"],
        unique=True,
        postgresql_where=sa.text("resolved_at IS NULL"),
    )
    op.create_index(op.f("collisions_session_a_idx"), "collisions", ["session_a"])
    op.create_index(op.f("collisions_session_b_idx"), "collisions", ["session_b"])


def downgrade() -> None:
    op.drop_table("collisions")
    op.drop_table("file_touches")
