"""The one place where an error becomes a sentence on stderr and an exit code.

Errors of lorareg bring both along. What the machine refuses (disk full, no permission) exits with
74, anything unforeseen with 70. LORAREG_DEBUG=1 shows the traceback of either.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import traceback

from lorareg.cli.output import print_error
from lorareg.registry.errors import LoraregError

EXIT_UNFORESEEN = 70
EXIT_MACHINE = 74

_ADVICE = {
    errno.ENOSPC: "Free some space and run the same command again; nothing half-written is used.",
    errno.EDQUOT: "Free some space and run the same command again; nothing half-written is used.",
    errno.EACCES: "Check the permissions, or choose another folder.",
    errno.EPERM: "Check the permissions, or choose another folder.",
    errno.EROFS: "The file system is read-only; choose another folder.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
}


def describe(error: Exception) -> tuple[str, int]:
    """What to tell the user, and what to exit with."""
    if isinstance(error, LoraregError):
        return str(error), error.exit_code
    database_error = getattr(error, "orig", error)  # what SQLAlchemy wraps
    if isinstance(database_error, sqlite3.Error) or type(database_error).__module__.startswith("psycopg"):
        return f"The registry's database says: {database_error}. Nothing was recorded.", EXIT_MACHINE
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        advice = _ADVICE.get(error.errno or 0, "")
        return f"{error.strerror or error}{where}. {advice}".rstrip(), EXIT_MACHINE
    if isinstance(error, MemoryError):
        return "Not enough memory.", EXIT_MACHINE
    return (
        f"Unforeseen {type(error).__name__}: {error}. Run again with LORAREG_DEBUG=1 for the traceback, "
        "and please report it.",
        EXIT_UNFORESEEN,
    )


def handle(error: Exception) -> int:
    """Report `error` on stderr and return the exit code."""
    if os.environ.get("LORAREG_DEBUG") == "1":
        traceback.print_exception(error)
    message, exit_code = describe(error)
    print_error(message)
    return exit_code
