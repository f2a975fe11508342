"""What training sees: the adapters of a group as blocks of rows, their conditions, and the loss they are judged by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorareg.compress.factors.scratch import scratch_arrays
from lorareg.compress.generators import conv1d_decoder, conv1d_model, slots_decoder, slots_model
from lorareg.compress.generators.generator import CONDITION_EXPONENT, Int8
from lorareg.compress.generators.grid import factor_rows
from lorareg.compress.generators.group import Group
from lorareg.compress.generators.objective import MeanSquare, ResidualBits, row_costs

MODULES: dict[str, ModuleType] = {slots_decoder.NAME: slots_model, conv1d_decoder.NAME: conv1d_model}
Objective = Callable[[Sequence[Tensor], Sequence[Tensor], Any], Tensor]
MOST_OF_MEMORY = 0.5
"""Of what a GPU has free: blocks that take more stay where they are, and each batch is copied."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Adapters (m of them) ready for training, all on one device or batch by batch on their way to it."""

    arch: str
    blocks: Sequence[Tensor]  # (m, tokens, width) each
    condition: Tensor  # (m, c)
    objective: Objective
    device: torch.device

    @staticmethod
    def of(group: Group, arch: str, device: torch.device | None = None) -> Examples:
        """The adapters of a group, for one architecture."""
        device = device or torch.device("cpu")
        blocks = blocks_of(group, arch)
        objective = objective_of(group, arch, blocks)
        if device.type == "cuda":
            objective = objective.to(device)
            size_bytes = sum(block.numel() * block.element_size() for block in blocks)
            if size_bytes <= MOST_OF_MEMORY * torch.cuda.mem_get_info(device)[0]:
                blocks = [block.to(device) for block in blocks]
        return Examples(arch, blocks, stacked(group.conditions).to(device), objective, device)

    def __len__(self) -> int:
        return len(self.condition)

    def batch(self, part: Tensor | slice) -> list[Tensor]:
        """The blocks of some adapters, on the device."""
        return [block[part].to(self.device) for block in self.blocks]

    def parts(self, size: int) -> list[slice]:
        """All adapters, so many at a time."""
        return [slice(start, start + size) for start in range(0, len(self), size)]


def blocks_of(group: Group, arch: str) -> list[Tensor]:
    """Rows less the mean table, in units of each slot's scale, as the architecture groups them."""
    blocks: list[Tensor] = []
    for index, adapter in enumerate(group.adapters):
        deviations = [
            np.ldexp(rows - mean.real, -exponent)
            for rows, mean, exponent in zip(factor_rows(adapter), group.means, group.slot_exponents, strict=True)
        ]
        own = MODULES[arch].blocks_of(group.layout, [deviations])
        if not blocks:
            shapes = [(len(group.adapters), *block.shape[1:]) for block in own]
            blocks = [torch.from_numpy(array) for array in scratch_arrays(shapes, group.scratch)]
        for block, rows in zip(blocks, own, strict=True):
            block[index] = rows[0]
    return blocks


def objective_of(group: Group, arch: str, blocks: Sequence[Tensor]) -> MeanSquare | ResidualBits:
    """The loss of an architecture, per adapter."""
    if arch == conv1d_decoder.NAME:
        return MeanSquare()
    costs = [row_costs(group.layout, adapter, group.slot_exponents) for adapter in group.adapters]
    return ResidualBits.of(blocks, MODULES[arch].blocks_of(group.layout, costs), group.tolerance)


def stacked(conditions: Sequence[Int8]) -> Tensor:
    """Conditions as the decoder sees them, (m, c) float32."""
    return torch.from_numpy(np.stack(conditions).astype(np.float32)) * 2.0**CONDITION_EXPONENT
