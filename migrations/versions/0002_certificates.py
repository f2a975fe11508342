"""Certificates, pins, second copies of generators, blobs on their way out, and settings.

Only new tables: no row of an older registry changes, so no digest has to be written anew.
"""

import sqlalchemy as sa
from alembic import op

from lorareg.registry.schema import INTEGER, TEXT

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "certificate",
        sa.Column("encoding_id", INTEGER, nullable=False),
        sa.Column("digest", TEXT, nullable=False),
        sa.Column("facts", TEXT, nullable=False),
        sa.Column("module_errors", sa.LargeBinary(), nullable=False),
        sa.Column("projections", sa.LargeBinary(), nullable=False),
        sa.Column("row_digest", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["encoding_id"], ["encoding.id"], name="fk_certificate_encoding_id"),
        sa.PrimaryKeyConstraint("encoding_id", name="pk_certificate"),
    )
    op.create_table(
        "pin",
        sa.Column("adapter_id", INTEGER, nullable=False),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("created_at", TEXT, nullable=False),
        sa.Column("row_digest", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.id"], name="fk_pin_adapter_id"),
        sa.PrimaryKeyConstraint("adapter_id", name="pk_pin"),
    )
    op.create_table(
        "generator_copy",
        sa.Column("generator_id", INTEGER, nullable=False),
        sa.Column("location", TEXT, nullable=False),
        sa.Column("created_at", TEXT, nullable=False),
        sa.Column("row_digest", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["generator_id"], ["generator.id"], name="fk_generator_copy_generator_id"),
        sa.PrimaryKeyConstraint("generator_id", "location", name="pk_generator_copy"),
    )
    op.create_table(
        "retired_blob",
        sa.Column("sha256", TEXT, nullable=False),
        sa.Column("size_bytes", INTEGER, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("proof", TEXT, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("retired_at", TEXT, nullable=False),
        sa.Column("deleted_at", TEXT, nullable=True),
        sa.Column("row_digest", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_retired_blob"),
    )
    op.create_index("ix_retired_blob_state", "retired_blob", ["state"])
    op.create_table(
        "setting",
        sa.Column("name", TEXT, nullable=False),
        sa.Column("value", TEXT, nullable=False),
        sa.Column("created_at", TEXT, nullable=False),
        sa.Column("row_digest", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_setting"),
    )


def downgrade() -> None:
    """Drop the tables. Blobs that were deleted stay deleted, so their originals are then missing."""
    for table in ("setting", "retired_blob", "generator_copy", "pin", "certificate"):
        op.drop_table(table)
