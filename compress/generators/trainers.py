"""The processes that train one network together, by torch.distributed: data parallel, each with a part of the adapters.

Trainer t of n holds adapters t, t + n, t + 2n, ... Every step draws one batch for all, and each takes its own
adapters of it, so the gradient that DistributedDataParallel sums is that of the whole batch whatever n is, up to
the order in which floating-point numbers are added.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def default_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, slots=True)
class Trainers:
    """This process among those that train; by default the only one."""

    index: int = 0
    count: int = 1
    device: torch.device = field(default_factory=default_device)
    group: Any = None  # torch.distributed's; None for the only process of a run that is not distributed

    @property
    def own(self) -> slice:
        """Which of all adapters this process holds."""
        return slice(self.index, None, self.count)

    def is_own(self, adapters: Tensor) -> Tensor:
        """Which of some adapters, by their places among all, are this process's."""
        return adapters % self.count == self.index

    def places(self, adapters: Tensor) -> Tensor:
        """Where those of this process lie among its own."""
        return adapters[self.is_own(adapters)] // self.count

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over all trainers, and its parameters those of the first."""
        return module if self.group is None else DistributedDataParallel(module, process_group=self.group)

    def sum(self, tensor: Tensor) -> Tensor:
        """A tensor summed over all trainers."""
        if self.group is None:
            return tensor
        total = tensor.detach().to(self.device, copy=True)
        dist.all_reduce(total, group=self.group)
        return total.to(tensor.device)

    def gathered(self, own: Tensor, total: int) -> Tensor:
        """The rows of all `total` adapters, from each trainer's own."""
        rows = torch.zeros((total, *own.shape[1:]), dtype=own.dtype, device=own.device)
        rows[self.own] = own
        return self.sum(rows)

    def first(self, data: bytes) -> bytes:
        """The bytes that the first trainer gave."""
        if self.group is None:
            return data
        source = dist.get_global_rank(self.group, 0)
        size = torch.tensor([len(data)], device=self.device)
        dist.broadcast(size, source, self.group)
        content = torch.empty(int(size), dtype=torch.uint8, device=self.device)
        if self.index == 0:
            content.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else content)
        dist.broadcast(content, source, self.group)
        return content.cpu().numpy().tobytes()
