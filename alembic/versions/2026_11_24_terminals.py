"""terminals."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003_terminals"
down_revision = "0002_collisions"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")  # fail rather than queue traffic behind us
    op.create_table(
        "terminals",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("session", sa.BigInteger(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("handle", sa.Text(), nullable=True),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("command", sa.Text(), nullable=True),
        sa.Column(
            "args", postgresql.JSON(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False
        ),
        sa.Column("cwd", sa.Text(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("cols", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("gone", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.CheckConstraint("NOT gone OR closed_at IS NOT NULL", name=op.f("terminals_gone_chk")),
        sa.CheckConstraint("kind IN ('paseo', 'tmux')", name=op.f("terminals_kind_chk")),
        sa.ForeignKeyConstraint(
            ["session"], ["agent_sessions.id"], name=op.f("terminals_session_fkey"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("terminals_pkey")),
    )
    op.create_index(op.f("terminals_session_created_at_id_idx"), "terminals", ["session", "created_at", "id"])
    op.create_index("terminals_unsettled_idx", "terminals", ["place"], postgresql_where=sa.text("NOT gone"))


def downgrade() -> None:
    op.drop_index("terminals_unsettled_idx", table_name="terminals", postgresql_where=sa.text("NOT gone"))
    op.drop_index(op.f("terminals_session_created_at_id_idx"), table_name="terminals")
    op.drop_table("terminals")
