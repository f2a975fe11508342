"""The adapters a benchmark runs on: one folder of PEFT adapters that share a layout."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorareg.compress.codec.encode import Original
    from lorareg.compress.generators.generator import Int8
    from lorareg.registry.types import Layout

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT.parent / "shared" / "adapters" / "same-seed", ROOT / "examples" / "adapters")
"""Where adapters are looked for when no folder is given; the first that exists is taken."""

OUTPUT = ROOT / "build" / "bench"


@dataclass(frozen=True, slots=True)
class BenchCohort:
    """Adapters of one layout, with the task vectors of their descriptions."""

    layout: Layout
    originals: tuple[Original, ...]
    conditions: tuple[Int8, ...]
    encoder: str  # that made the conditions
    folders: tuple[Path, ...]  # the originals', in the same order

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(original.what for original in self.originals)

    def part(self, names: Sequence[str]) -> BenchCohort:
        """The adapters of these names alone, in the cohort's order."""
        chosen = [index for index, name in enumerate(self.names) if name in names]
        return replace(
            self,
            originals=tuple(self.originals[index] for index in chosen),
            conditions=tuple(self.conditions[index] for index in chosen),
            folders=tuple(self.folders[index] for index in chosen),
        )

    @property
    def original_bytes(self) -> int:
        return sum(len(original.data) for original in self.originals)


def add_arguments(parser: ArgumentParser, name: str) -> None:
    """The options that all benchmarks share."""
    parser.add_argument("folder", nargs="?", type=Path, help=f"PEFT folders (default: {FOLDERS[0]}, else the examples)")
    parser.add_argument("--adapters", type=int, metavar="N", help="take the first N only")
    parser.add_argument("--json", type=Path, default=OUTPUT / f"{name}.json", metavar="FILE", help="where results go")
    parser.add_argument("--fresh", action="store_true", help="measure anew what an earlier run measured")


def find_folders(folder: Path | None, count: int | None) -> list[Path]:
    """The adapter folders to use; ends the program with a message where there are none."""
    chosen = folder or next((path for path in FOLDERS if path.is_dir()), FOLDERS[-1])
    found = sorted(path.parent for path in chosen.glob("*/adapter_config.json"))[:count]
    if len(found) < 2:
        sys.exit(f"{chosen}: {len(found)} adapters here, at least 2 are needed. Give a folder that holds PEFT folders.")
    return found


def samples_of(folder: Path) -> list[str]:
    """The texts of an adapter's task, as they lie beside it; none where there are none."""
    from lorareg.registry.types import SAMPLES_FILE

    file = folder / SAMPLES_FILE
    return [str(text) for text in json.loads(file.read_text())] if file.exists() else []


def load_cohort(folders: list[Path]) -> BenchCohort:
    """Read the adapters; ends the program with a message where their layouts differ.

    Each is named by its path below what all the folders have in common.
    """
    from lorareg.compress.codec.encode import Original
    from lorareg.compress.tasks.task_vectors import TextEncoder
    from lorareg.registry.peft_format import read_folder
    from lorareg.registry.types import WEIGHTS_FILE

    read = [read_folder(folder) for folder in folders]
    layout = read[0].layout
    for folder in read:
        if folder.layout != layout:
            sys.exit(f"{folder.path} has another layout than {read[0].path}. Give a folder of one cohort.")
    top = os.path.commonpath([folder.path.parent for folder in read])
    names = [folder.path.relative_to(top).as_posix() for folder in read]
    data = [(folder.path / WEIGHTS_FILE).read_bytes() for folder in read]
    return BenchCohort(
        layout=layout,
        originals=tuple(Original(name, partial(bytes, held), layout) for name, held in zip(names, data, strict=True)),
        conditions=tuple(TextEncoder().encode(f.description, ()) for f in read),
        encoder=TextEncoder.name,
        folders=tuple(folder.path for folder in read),
    )
