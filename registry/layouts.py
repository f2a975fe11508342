"""Which tensors of a weights file are the factors of weight updates, and which are kept as they are.

A grammar says what a tensor's name means in a format. Two tensors that are factor A and factor B of one
module become its slots; a convolution's are taken for matrices, their last axes together, because
B (d_out, r, 1, 1) after A (r, d_in, k, k) is the product of (d_out, r) and (r, d_in k k). All others are
extras, which the format must allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path

from lorareg.registry.errors import InvalidAdapterError
from lorareg.registry.names import natural_key
from lorareg.registry.safetensors_header import TensorInfo
from lorareg.registry.types import ExtraTensor, Factor, Layout, Slot

Grammar = Callable[[str], tuple[str, Factor] | None]
"""From a tensor's name to its module and factor; None for what is no factor."""

FACTOR_DTYPES = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""What a factor may be stored as to be coded."""

_SAVE_REMEDY = "Save the adapter again, from the program that trained it."


def split_tensors(
    path: Path, tensors: Iterable[TensorInfo], grammar: Grammar
) -> tuple[dict[str, dict[Factor, TensorInfo]], list[TensorInfo]]:
    """Factors by module, and the other tensors.

    Raises:
        InvalidAdapterError: two tensors are the same factor of a module.
    """
    modules: dict[str, dict[Factor, TensorInfo]] = {}
    others = []
    for tensor in tensors:
        found = grammar(tensor.name)
        if found is None:
            others.append(tensor)
            continue
        module, factor = found
        factors = modules.setdefault(module, {})
        if factor in factors:
            reason = f"tensors {factors[factor].name} and {tensor.name} are the same factor of module {module}"
            raise InvalidAdapterError(path=path, reason=reason, remedy=_SAVE_REMEDY)
        factors[factor] = tensor
    return modules, others


def expect_pair(path: Path, module: str, factors: dict[Factor, TensorInfo]) -> int:
    """Check that the factors of a module can be multiplied; return their rank.

    Raises:
        InvalidAdapterError: one is missing or empty, or their ranks differ.
    """
    if len(factors) == 1:
        (present,) = factors
        reason = f"module {module} has lora_{present} but no lora_{'B' if present == 'A' else 'A'}"
        raise InvalidAdapterError(path=path, reason=reason, remedy=_SAVE_REMEDY)
    a, b = factors["A"], factors["B"]
    if 0 in (*a.shape, *b.shape):
        reason = f"module {module} has no weights: its tensors are empty, as ZeRO's shards are before they are gathered"
        raise InvalidAdapterError(path=path, reason=reason, remedy=_SAVE_REMEDY)
    if len(a.shape) < 2 or len(b.shape) < 2:
        reason = f"module {module} has factors of shape {list(a.shape)} and {list(b.shape)}, which are no matrices"
        raise InvalidAdapterError(path=path, reason=reason, remedy=_SAVE_REMEDY)
    if a.shape[0] != b.shape[1]:
        reason = f"module {module} has rank {a.shape[0]} in lora_A but {b.shape[1]} in lora_B"
        raise InvalidAdapterError(path=path, reason=reason, remedy=_SAVE_REMEDY)
    return a.shape[0]


def is_product(factors: dict[Factor, TensorInfo]) -> bool:
    """Whether the update of a module is the product of its two factors, and both can be coded."""
    a, b = factors["A"], factors["B"]
    fits = len(a.shape) == len(b.shape) >= 2 and a.shape[0] == b.shape[1] and set(b.shape[2:]) <= {1}
    return fits and a.dtype in FACTOR_DTYPES and b.dtype in FACTOR_DTYPES


def make_layout(
    modules: dict[str, dict[Factor, TensorInfo]], scales: dict[str, float], others: Iterable[TensorInfo]
) -> Layout:
    """The layout of paired factors, the scale of each module, and everything else."""
    slots = []
    names = sorted(modules, key=natural_key)
    for module in names:
        for factor in ("A", "B"):
            tensor = modules[module][factor]
            shape = (tensor.shape[0], prod(tensor.shape[1:]))
            file_shape = tensor.shape if tensor.shape != shape else ()
            slots.append(Slot(module, factor, shape, tensor.dtype, tensor.name, file_shape))
    extras = sorted((ExtraTensor(tensor.name, tensor.dtype, tensor.shape) for tensor in others), key=lambda e: e.key)
    return Layout(tuple(slots), tuple(scales[module] for module in names), tuple(extras))
