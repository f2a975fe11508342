"""Which schema a registry's database has, found without SQLAlchemy or Alembic."""

from __future__ import annotations

from lorareg.registry.backend import BASE_REVISION, Backend
from lorareg.registry.errors import NewerSchemaError, RegistryError
from lorareg.registry.rows import SCHEMA_REVISION


def is_current(backend: Backend) -> bool:
    """Whether a registry's database has the schema that this lorareg knows.

    Raises:
        RegistryError: there is no registry, or its database cannot be read.
        NewerSchemaError: a newer lorareg wrote it.
    """
    if not backend.is_there():
        raise RegistryError(
            home=backend.home,
            reason="there is no registry here",
            remedy="`lorareg ingest PATH` makes one; --home names another.",
        )
    return read_revision(backend) == SCHEMA_REVISION


def read_revision(backend: Backend) -> str:
    """The schema revision of a database, `BASE_REVISION` if it has no tables.

    Raises:
        RegistryError: it cannot be read, or is not a registry's.
        NewerSchemaError: a newer lorareg wrote it.
    """
    revision = backend.revision()
    if revision != BASE_REVISION and revision > SCHEMA_REVISION:
        raise NewerSchemaError(home=backend.home, found=revision, expected=SCHEMA_REVISION)
    return revision
