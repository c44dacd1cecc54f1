"""tasks."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004_tasks"
down_revision = "0003_terminals"
branch_labels = None
depends_on = None

STATUSES = "status IN ('pending', 'running', 'completed', 'failed', 'cancelled', 'timed_out')"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")  # fail rather than queue traffic behind us
    op.create_table(
        "tasks",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("session", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("current", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("version", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(STATUSES, name=op.f("tasks_status_chk")),
        sa.CheckConstraint(
            "(ended_at IS NOT NULL) = (status IN ('completed', 'failed', 'cancelled', 'timed_out'))",
            name=op.f("tasks_ended_chk"),
        ),
        sa.ForeignKeyConstraint(
            ["session"], ["agent_sessions.id"], name=op.f("tasks_session_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("tasks_pkey")),
    )
    op.create_index(op.f("tasks_session_created_at_id_idx"), "tasks", ["session", "created_at", "id"])
    op.create_index("tasks_open_idx", "tasks", ["session"], postgresql_where=sa.text("ended_at IS NULL"))
    op.create_table(
        "task_steps",
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("deadline_s", sa.Double(), nullable=False),
        sa.Column("max_attempts", sa.BigInteger(), nullable=False),
        sa.Column("on_failure", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("attempts", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("turn_ids", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("error", postgresql.JSON(astext_type=sa.Text()), nullable=True),
        sa.CheckConstraint(STATUSES, name=op.f("task_steps_status_chk")),
        sa.CheckConstraint("on_failure IN ('stop', 'continue')", name=op.f("task_steps_on_failure_chk")),
        sa.ForeignKeyConstraint(
            ["task"], ["tasks.id"], name=op.f("task_steps_task_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("task", "position", name=op.f("task_steps_pkey")),
    )
    op.add_column("turns", sa.Column("task", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("turns", "task")
    op.drop_table("task_steps")
    op.drop_index("tasks_open_idx", table_name="tasks", postgresql_where=sa.text("ended_at IS NULL"))
    op.drop_index(op.f("tasks_session_created_at_id_idx"), table_name="tasks")
    op.drop_table("tasks")
