"""obstore, which speaks to object stores, as this process can use it.

Its threads serve every request, and a fork does not take them along: in a process that was forked from one that had
made requests, each would wait for ever. So it is loaded there once more, from a copy of its files, since a library's
own state belongs to the file it was loaded from; that gives it threads of this process.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType

_loaded: tuple[int, ModuleType] | None = None
_installed = Path()  # where it is, whichever copy is loaded


def object_library() -> ModuleType:
    """The package `obstore`, not loaded in another process.

    Raises:
        ImportError: it is not installed, or cannot be loaded from a copy.
        OSError: there is no room for the copy.
    """
    global _loaded, _installed
    if _loaded is None:
        import obstore.store

        _loaded, _installed = (os.getpid(), obstore), Path(obstore.__file__).parent
    if was_forked():
        _loaded = (os.getpid(), _load_again(_installed))
    return _loaded[1]


def was_forked() -> bool:
    """Whether it was loaded before this process was forked, and not since."""
    return _loaded is not None and _loaded[0] != os.getpid()


def _load_again(package: Path) -> ModuleType:
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == package.name}
    with tempfile.TemporaryDirectory(prefix="lorareg-") as folder:
        shutil.copytree(package, Path(folder) / package.name)
        for name in before:
            del sys.modules[name]
        sys.path.insert(0, folder)
        try:
            import obstore.store
        except ImportError:
            sys.modules.update(before)
            raise
        finally:
            sys.path.remove(folder)
    return obstore
