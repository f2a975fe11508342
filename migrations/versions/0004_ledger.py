"""The ledger: how many rows each table has, and what their digests add up to. No other row changes."""

import hashlib
import json

import sqlalchemy as sa
from alembic import op

from lorareg.registry.schema import INTEGER, TEXT

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TABLES = (
    "cohort", "adapter", "adapter_file", "tag", "task_vector", "generator", "encoding", "certificate", "pin",
    "generator_copy", "retired_blob", "setting", "token",
)  # fmt: skip


def upgrade() -> None:
    """Create the table, and write down what is there."""
    ledger = op.create_table(
        "ledger",
        sa.Column("id", INTEGER, nullable=False),
        sa.Column("number", INTEGER, nullable=False),
        sa.Column("sums", TEXT, nullable=False),
        sa.Column("row_digest", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_ledger"),
    )
    sums = {}
    for table in TABLES:
        digests = op.get_bind().execute(sa.text(f"SELECT row_digest FROM {table}")).scalars().all()
        if digests:
            total = sum(int(digest, 16) for digest in digests) % (1 << 256)
            sums[table] = [len(digests), f"{total:064x}"]
    row = {"id": 1, "number": 1, "sums": _canonical(sums)}
    digest = hashlib.sha256(_canonical(["ledger", row]).encode()).hexdigest()
    op.bulk_insert(ledger, [{**row, "row_digest": digest}])


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def downgrade() -> None:
    """Drop the table: rows that go missing are no longer missed."""
    op.drop_table("ledger")
