"""Checkpoints of a training run: safetensors and JSON, so that resuming loads no pickle.

A checkpoint's file is named by everything that decides the result (adapters, configuration, seed),
so a run that differs starts anew. It is replaced atomically, and removed once the run's generator
is recorded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn


class Checkpoint:
    """The state of one training run, kept in one file."""

    def __init__(self, path: Path) -> None:
        """Name the file; it need not exist."""
        self.path = path

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, order: torch.Generator) -> None:
        """Write the state after `step` steps."""
        state = optimizer.state_dict()["state"]
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        for index, entries in state.items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in entries.items()}
        tensors |= {"order": order.get_state(), "step": torch.tensor(step)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(f".{os.getpid()}.tmp")
        save_file({k: v.cpu().contiguous().clone() for k, v in tensors.items()}, fresh)
        os.replace(fresh, self.path)

    def read(self) -> bytes:
        """The file's content; nothing where there is none."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""


def restore(data: bytes, model: nn.Module, optimizer: torch.optim.Optimizer, order: torch.Generator) -> int:
    """Restore the state in a checkpoint's content, if it fits; returns how many steps it has done."""
    if not data:
        return 0
    try:
        tensors = load(data)
        step = int(tensors.pop("step"))
        if not _fits(tensors, model):
            return 0
        _restore(tensors, model, optimizer, order)
    except (SafetensorError, KeyError, ValueError, RuntimeError):
        # A checkpoint saves time and nothing else: one that cannot be read is not worth failing for.
        return 0
    return step


def _restore(
    tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer, order: torch.Generator
) -> None:
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    order.set_state(tensors["order"])


def _fits(tensors: dict[str, Tensor], model: nn.Module) -> bool:
    """Whether a checkpoint is of this model; torch would restore the part that fits before it refuses."""
    own = {f"model.{name}": tensor.shape for name, tensor in model.state_dict().items()}
    return own == {name: tensor.shape for name, tensor in tensors.items() if name.startswith("model.")}
