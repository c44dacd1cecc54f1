"""Indexes of lists and of sweeps; at most one open turn a task."""

import sqlalchemy as sa
from alembic import op

revision = "0005_list_indexes"
down_revision = "0004_tasks"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")  # fail rather than queue traffic behind us
    op.create_index(op.f("tasks_created_at_id_idx"), "tasks", ["created_at", "id"])
    op.create_index(
        op.f("collisions_owner_project_id_opened_at_id_idx"),
        "collisions",
        ["owner", "project_id", "opened_at", "id"],
    )
    op.create_index(
        "collisions_open_idx",
        "collisions",
        ["owner", "opened_at", "id"],
        postgresql_where=sa.text("resolved_at IS NULL"),
    )
    op.create_index(op.f("file_touches_touched_at_idx"), "file_touches", ["touched_at"])
    op.create_index(
        "turns_one_open_a_task",
        "turns",
        ["task"],
        unique=True,
        postgresql_where=sa.text("task IS NOT NULL AND ended_at IS NULL"),
    )


def downgrade() -> None:
    op.drop_index("turns_one_open_a_task", table_name="turns")
    op.drop_index(op.f("file_touches_touched_at_idx"), table_name="file_touches")
    op.drop_index("collisions_open_idx", table_name="collisions")
    op.drop_index(op.f("collisions_owner_project_id_opened_at_id_idx"), table_name="collisions")
    op.drop_index(op.f("tasks_created_at_id_idx"), table_name="tasks")
