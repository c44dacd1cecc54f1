"""The lines of a touch, before the first of them and after the last; who touched a file last, by an index."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006_touched_lines"
down_revision = "0005_list_indexes"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")  # fail rather than queue traffic behind us
    op.add_column("file_touches", sa.Column("lines_now", postgresql.INT8MULTIRANGE(), nullable=True))
    op.add_column("file_touches", sa.Column("hunks", postgresql.JSON(astext_type=sa.Text()), nullable=True))
    op.add_column(
        "file_touches",
        sa.Column("first_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
    )
    op.drop_index("file_touches_file_idx", table_name="file_touches")
    op.create_index("file_touches_file_idx", "file_touches", ["owner", "project_id", "path", "touched_at"])


def downgrade() -> None:
    op.drop_index("file_touches_file_idx", table_name="file_touches")
    op.create_index("file_touches_file_idx", "file_touches", ["owner", "project_id", "path"])
    op.drop_column("file_touches", "first_at")
    op.drop_column("file_touches", "hunks")
    op.drop_column("file_touches", "lines_now")
