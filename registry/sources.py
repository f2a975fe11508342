"""Where adapters come from: folders, lone files, archives, and what of these lies below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from lorareg.registry.archives import is_archive, unpacked
from lorareg.registry.errors import InvalidAdapterError, LoraregError
from lorareg.registry.names import natural_key
from lorareg.registry.peft_format import find_adapters


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """An adapter that was found, or why there is none."""

    root: Path  # what names are told from
    path: Path  # a PEFT folder or a lone file
    shown: str  # what a person calls it: a path, or ARCHIVE!PATH
    error: LoraregError | None = None

    def named(self, error: LoraregError) -> LoraregError:
        """An error about this adapter, about what a person knows of it rather than a temporary folder."""
        found = error.fields.get("path")
        if not isinstance(error, InvalidAdapterError) or not isinstance(found, Path) or self.shown == str(self.path):
            return error
        inner = "" if found == self.path else f"/{found.relative_to(self.path)}"
        return type(error)(**{**error.fields, "path": self.shown + inner})


def find_sources(paths: Iterable[Path], stack: ExitStack) -> Iterator[AdapterSource]:
    """Every adapter at or below the paths; archives are unpacked until `stack` is closed."""
    for path in paths:
        try:
            yield from _in_archive(path, stack) if path.is_file() and is_archive(path) else _in_folder(path, stack)
        except LoraregError as error:
            yield AdapterSource(path, path, str(path), error)


def _in_folder(root: Path, stack: ExitStack) -> Iterator[AdapterSource]:
    adapters = [AdapterSource(root, found, str(found)) for found in find_adapters(root)]
    archives = sorted(_archives(root), key=lambda path: natural_key(path.as_posix()))
    if not adapters and not archives:
        raise InvalidAdapterError(
            path=root,
            reason="no adapter here or below",
            remedy="Give a folder that holds adapter_config.json and adapter_model.safetensors.",
        )
    yield from adapters
    for archive in archives:
        try:
            yield from _in_archive(archive, stack)
        except LoraregError as error:
            yield AdapterSource(archive, archive, str(archive), error)


def _in_archive(archive: Path, stack: ExitStack) -> Iterator[AdapterSource]:
    folder = stack.enter_context(unpacked(archive))
    found = find_adapters(folder)
    if not found:
        raise InvalidAdapterError(
            path=archive,
            reason="no adapter is in it (archives within archives are not entered)",
            remedy="Pack folders that hold adapter_config.json and adapter_model.safetensors.",
        )
    for path in found:
        inner = "" if path == folder else f"!{path.relative_to(folder)}"
        yield AdapterSource(folder, path, f"{archive}{inner}")


def _archives(root: Path) -> Iterator[Path]:
    """Archives below a folder; hidden folders and links are not entered, as `find_adapters` enters none."""
    if not root.is_dir():
        return
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found = (Path(folder, name) for name in files)
        yield from (path for path in found if is_archive(path) and not path.is_symlink())
