"""skips carry a comment and can be undone

Revision: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("assignments", sa.Column("skip_comment", sa.String(), server_default="", nullable=False))
    op.add_column("assignments", sa.Column("skipped_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("assignments", "skipped_at")
    op.drop_column("assignments", "skip_comment")
