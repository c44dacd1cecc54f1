"""Which session of a provider a session had adopted before its agent was lost and replaced."""

import sqlalchemy as sa
from alembic import op

revision = "0008_former_adoption"
down_revision = "0007_touched_places"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")  # fail rather than queue traffic behind us
    op.add_column("agent_sessions", sa.Column("former_provider_session_id", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("agent_sessions", "former_provider_session_id")
