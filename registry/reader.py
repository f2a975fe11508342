"""The decode path's view of a registry: read-only, with neither SQLAlchemy nor torch behind it.

A registry of an older schema is opened once through `store`, which migrates it; after that this reader continues on its
own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lorareg.registry.backend import backend_of
from lorareg.registry.home import resolve_home
from lorareg.registry.lookup import Lookup
from lorareg.registry.revision import is_current


class Reader(Lookup):
    """Reads a registry. Use it as a context manager, or `close` it."""

    def __init__(self, home: Path | None = None) -> None:
        """Open the registry at `home` (see `home.resolve_home`).

        Raises:
            RegistryError: there is none, or it cannot be read.
            NewerSchemaError: a newer lorareg wrote it.
        """
        self.home = resolve_home(home)
        self.backend = backend_of(self.home)
        if not is_current(self.backend):
            from lorareg.registry.store import Registry

            Registry.open(self.home, create=False).close()
        self._rows = self.backend.connect()

    def close(self) -> None:
        """Close the database."""
        self._rows.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fetch(self, sql: str, **parameters: object) -> Sequence[Mapping[str, Any]]:
        return self._rows.fetch(sql, parameters)
