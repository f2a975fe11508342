"""SQL that is compiled once for every registry in SQLite that one process opens: compiling it takes longer than all
else, and registries here live for a second.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy
from sqlalchemy.dialects.sqlite.base import SQLiteDialect


def share_compiled_sql(patch: Any) -> None:
    """From here on; `patch` is pytest's, or `setattr` itself.

    SQLAlchemy keeps what it compiled by engine, and by dialect: those of SQLite are all alike here.
    """
    compiled: dict[Any, Any] = {}
    create_engine = sqlalchemy.create_engine

    def create(*arguments: Any, **options: Any) -> Any:
        engine = create_engine(*arguments, **options)
        if engine.dialect.name == "sqlite":
            engine.update_execution_options(compiled_cache=compiled)
        return engine

    patch(sqlalchemy, "create_engine", create)
    patch(SQLiteDialect, "__hash__", lambda dialect: hash(type(dialect)))
    patch(SQLiteDialect, "__eq__", lambda dialect, other: type(dialect) is type(other))
