"""The tables of lorareg 0.1."""

import sqlalchemy as sa
from alembic import op

from lorareg.registry.schema import INTEGER, TEXT

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "cohort",
        sa.Column("id", INTEGER, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("base_model", TEXT, nullable=False),
        sa.Column("layout_digest", TEXT, nullable=False),
        sa.Column("layout", TEXT, nullable=False),
        sa.Column("created_at", TEXT, nullable=False),
        sa.Column("row_digest", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_cohort"),
        sa.UniqueConstraint("base_model", "layout_digest", name="uq_cohort_base_model_layout_digest"),
        sa.UniqueConstraint("name", name="uq_cohort_name"),
    )
    op.create_table(
        "adapter",
        sa.Column("id", INTEGER, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("version", INTEGER, nullable=False),
        sa.Column("digest", TEXT, nullable=False),
        sa.Column("cohort_id", INTEGER, nullable=False),
        sa.Column("base_model", TEXT, nullable=False),
        sa.Column("rank", INTEGER, nullable=False),
        sa.Column("weight_count", INTEGER, nullable=False),
        sa.Column("original_bytes", INTEGER, nullable=False),
        sa.Column("description", TEXT, nullable=False),
        sa.Column("source", TEXT, nullable=False),
        sa.Column("created_at", TEXT, nullable=False),
        sa.Column("removed_at", TEXT, nullable=True),
        sa.Column("row_digest", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["cohort_id"], ["cohort.id"], name="fk_adapter_cohort_id"),
        sa.PrimaryKeyConstraint("id", name="pk_adapter"),
        sa.UniqueConstraint("name", "version", name="uq_adapter_name_version"),
    )
    op.create_index("ix_adapter_cohort_id_name", "adapter", ["cohort_id", "name"])
    op.create_index("ix_adapter_digest", "adapter", ["digest"])
    op.create_table(
        "adapter_file",
        sa.Column("adapter_id", INTEGER, nullable=False),
        sa.Column("path", TEXT, nullable=False),
        sa.Column("sha256", TEXT, nullable=False),
        sa.Column("size_bytes", INTEGER, nullable=False),
        sa.Column("row_digest", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.id"], name="fk_adapter_file_adapter_id"),
        sa.PrimaryKeyConstraint("adapter_id", "path", name="pk_adapter_file"),
    )
    op.create_index("ix_adapter_file_sha256", "adapter_file", ["sha256"])
    op.create_table(
        "tag",
        sa.Column("adapter_name", TEXT, nullable=False),
        sa.Column("label", TEXT, nullable=False),
        sa.Column("adapter_id", INTEGER, nullable=False),
        sa.Column("created_at", TEXT, nullable=False),
        sa.Column("row_digest", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.id"], name="fk_tag_adapter_id"),
        sa.PrimaryKeyConstraint("adapter_name", "label", name="pk_tag"),
    )
    op.create_index("ix_tag_adapter_id", "tag", ["adapter_id"])
    op.create_table(
        "task_vector",
        sa.Column("adapter_id", INTEGER, nullable=False),
        sa.Column("encoder", TEXT, nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", TEXT, nullable=False),
        sa.Column("row_digest", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.id"], name="fk_task_vector_adapter_id"),
        sa.PrimaryKeyConstraint("adapter_id", "encoder", name="pk_task_vector"),
    )
    _create_generator_and_encoding()


def _create_generator_and_encoding() -> None:
    op.create_table(
        "generator",
        sa.Column("id", INTEGER, nullable=False),
        sa.Column("cohort_id", INTEGER, nullable=False),
        sa.Column("version", INTEGER, nullable=False),
        sa.Column("sha256", TEXT, nullable=False),
        sa.Column("size_bytes", INTEGER, nullable=False),
        sa.Column("arch", TEXT, nullable=False),
        sa.Column("encoder", TEXT, nullable=False),
        sa.Column("config", TEXT, nullable=False),
        sa.Column("metrics", TEXT, nullable=False),
        sa.Column("created_at", TEXT, nullable=False),
        sa.Column("row_digest", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["cohort_id"], ["cohort.id"], name="fk_generator_cohort_id"),
        sa.PrimaryKeyConstraint("id", name="pk_generator"),
        sa.UniqueConstraint("cohort_id", "version", name="uq_generator_cohort_id_version"),
    )
    op.create_table(
        "encoding",
        sa.Column("id", INTEGER, nullable=False),
        sa.Column("adapter_id", INTEGER, nullable=False),
        sa.Column("generator_id", INTEGER, nullable=True),
        sa.Column("codec", TEXT, nullable=False),
        sa.Column("tier", TEXT, nullable=False),
        sa.Column("sha256", TEXT, nullable=False),
        sa.Column("size_bytes", INTEGER, nullable=False),
        sa.Column("output_digest", TEXT, nullable=False),
        sa.Column("output_bytes", INTEGER, nullable=False),
        sa.Column("tolerance", TEXT, nullable=False),
        sa.Column("fidelity", TEXT, nullable=False),
        sa.Column("created_at", TEXT, nullable=False),
        sa.Column("superseded_at", TEXT, nullable=True),
        sa.Column("row_digest", TEXT, nullable=False),
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
