"""Certificates, pins, second copies of generators, blobs on their way out, and settings.

Only new tables: no row of an older registry changes, so no digest has to be written anew.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "certificate",
        sa.Column("encoding_id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("facts", sa.String(), nullable=False),
        sa.Column("module_errors", sa.LargeBinary(), nullable=False),
        sa.Column("projections", sa.LargeBinary(), nullable=False),
        sa.Column("row_digest", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["encoding_id"], ["encoding.id"], name="fk_certificate_encoding_id"),
        sa.PrimaryKeyConstraint("encoding_id", name="pk_certificate"),
    )
    op.create_table(
        "pin",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("row_digest", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.id"], name="fk_pin_adapter_id"),
        sa.PrimaryKeyConstraint("adapter_id", name="pk_pin"),
    )
    op.create_table(
        "generator_copy",
        sa.Column("generator_id", sa.Integer(), nullable=False),
        sa.Column("location", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("row_digest", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["generator_id"], ["generator.id"], name="fk_generator_copy_generator_id"),
        sa.PrimaryKeyConstraint("generator_id", "location", name="pk_generator_copy"),
    )
    op.create_table(
        "retired_blob",
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("proof", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("retired_at", sa.String(), nullable=False),
        sa.Column("deleted_at", sa.String(), nullable=True),
        sa.Column("row_digest", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_retired_blob"),
    )
    op.create_index("ix_retired_blob_state", "retired_blob", ["state"])
    op.create_table(
        "setting",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("row_digest", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_setting"),
    )


def downgrade() -> None:
    """Drop the tables. Blobs that were deleted stay deleted, so their originals are then missing."""
    for table in ("setting", "retired_blob", "generator_copy", "pin", "certificate"):
        op.drop_table(table)
