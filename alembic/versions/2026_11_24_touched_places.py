"""The file itself that a touch is of, from whatever root it is seen, by an index."""

import sqlalchemy as sa
from alembic import op

revision = "0007_touched_places"
down_revision = "0006_touched_lines"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")  # fail rather than queue traffic behind us
    place = sa.Computed(
        "hashtextextended(coalesce(remote, ''::text) || '|'::text || rtrim(root, '/'::text)"
        " || '/'::text || path, 0::bigint)",
        persisted=True,
    )
    op.add_column("file_touches", sa.Column("place", sa.BigInteger(), place, nullable=True))
    op.create_index("file_touches_place_idx", "file_touches", ["owner", "project_id", "place", "touched_at"])


def downgrade() -> None:
    op.drop_index("file_touches_place_idx", table_name="file_touches")
    op.drop_column("file_touches", "place")
