"""The tables of lorareg 0.1."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "cohort",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("base_model", sa.String(), nullable=False),
        sa.Column("layout_digest", sa.String(), nullable=False),
        sa.Column("layout", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("row_digest", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_cohort"),
        sa.UniqueConstraint("base_model", "layout_digest", name="uq_cohort_base_model_layout_digest"),
        sa.UniqueConstraint("name", name="uq_cohort_name"),
    )
    op.create_table(
        "adapter",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("cohort_id", sa.Integer(), nullable=False),
        sa.Column("base_model", sa.String(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("weight_count", sa.Integer(), nullable=False),
        sa.Column("original_bytes", sa.Integer(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("removed_at", sa.String(), nullable=True),
        sa.Column("row_digest", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["cohort_id"], ["cohort.id"], name="fk_adapter_cohort_id"),
        sa.PrimaryKeyConstraint("id", name="pk_adapter"),
        sa.UniqueConstraint("name", "version", name="uq_adapter_name_version"),
    )
    op.create_index("ix_adapter_cohort_id_name", "adapter", ["cohort_id", "name"])
    op.create_index("ix_adapter_digest", "adapter", ["digest"])
    op.create_table(
        "adapter_file",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("row_digest", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.id"], name="fk_adapter_file_adapter_id"),
        sa.PrimaryKeyConstraint("adapter_id", "path", name="pk_adapter_file"),
    )
    op.create_index("ix_adapter_file_sha256", "adapter_file", ["sha256"])
    op.create_table(
        "tag",
        sa.Column("adapter_name", sa.String(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("row_digest", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.id"], name="fk_tag_adapter_id"),
        sa.PrimaryKeyConstraint("adapter_name", "label", name="pk_tag"),
    )
    op.create_index("ix_tag_adapter_id", "tag", ["adapter_id"])
    op.create_table(
        "task_vector",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("encoder", sa.String(), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("row_digest", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.id"], name="fk_task_vector_adapter_id"),
        sa.PrimaryKeyConstraint("adapter_id", "encoder", name="pk_task_vector"),
    )
    _create_generator_and_encoding()


def _create_generator_and_encoding() -> None:
    op.create_table(
        "generator",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("cohort_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("arch", sa.String(), nullable=False),
        sa.Column("encoder", sa.String(), nullable=False),
        sa.Column("config", sa.String(), nullable=False),
        sa.Column("metrics", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("row_digest", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["cohort_id"], ["cohort.id"], name="fk_generator_cohort_id"),
        sa.PrimaryKeyConstraint("id", name="pk_generator"),
        sa.UniqueConstraint("cohort_id", "version", name="uq_generator_cohort_id_version"),
    )
    op.create_table(
        "encoding",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("generator_id", sa.Integer(), nullable=True),
        sa.Column("codec", sa.String(), nullable=False),
        sa.Column("tier", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("output_digest", sa.String(), nullable=False),
        sa.Column("output_bytes", sa.Integer(), nullable=False),
        sa.Column("tolerance", sa.String(), nullable=False),
        sa.Column("fidelity", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("superseded_at", sa.String(), nullable=True),
        sa.Column("row_digest", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.id"], name="fk_encoding_adapter_id"),
        sa.ForeignKeyConstraint(["generator_id"], ["generator.id"], name="fk_encoding_generator_id"),
        sa.PrimaryKeyConstraint("id", name="pk_encoding"),
    )
    op.create_index("ix_encoding_generator_id", "encoding", ["generator_id"])
    current = sa.text("superseded_at IS NULL")
    op.create_index(
        "uq_encoding_current",
        "encoding",
        ["adapter_id"],
        unique=True,
        sqlite_where=current,
        postgresql_where=current,
    )


def downgrade() -> None:
    """Drop every table, those that refer to others first."""
    for table in ("encoding", "generator", "task_vector", "tag", "adapter_file", "adapter", "cohort"):
        op.drop_table(table)
