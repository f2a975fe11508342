"""Small layouts, adapters and generators, made from numpy alone; the fixture `make` hands this module out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from lorareg.compress.codec.codecs import LoadedGenerator
from lorareg.compress.codec.encode import Draft, Original
from lorareg.compress.factors.weights import Factors, write_weights
from lorareg.compress.generators import conv1d_decoder, linear_decoder, mean_decoder, slots_decoder
from lorareg.compress.generators.generator import DECODERS, Generator, pack_generator, predict
from lorareg.compress.generators.grid import rank_of, width_of
from lorareg.compress.integers.tensors import IntTensor
from lorareg.compress.planning.coordinates import in_coordinates
from lorareg.registry.types import Layout, Slot, sha256_hex

SHAPES = ((10, 2, 12), (6, 2, 12), (10, 2, 12), (1, 2, 9))
"""Modules as (d_out, r, d_in): two of one shape, and one that is narrower than its rank."""

SEAL_BYTES = 8
SLOT_EXPONENT = -3


def layout(
    shapes: Sequence[tuple[int, int, int]] = SHAPES, dtype: str | Sequence[str] = "F32", scale: float = 2.0
) -> Layout:
    """A layout of alternating q_proj and v_proj modules; `dtype` is one name, or one a slot."""
    dtypes = [dtype] * (2 * len(shapes)) if isinstance(dtype, str) else list(dtype)
    slots = []
    for i, (d_out, rank, d_in) in enumerate(shapes):
        module = f"model.layers.{i // 2}.self_attn.{'qv'[i % 2]}_proj"
        key = f"base_model.model.{module}.lora_"
        slots.append(Slot(module, "A", (rank, d_in), dtypes[2 * i], f"{key}A.weight"))
        slots.append(Slot(module, "B", (d_out, rank), dtypes[2 * i + 1], f"{key}B.weight"))
    return Layout(tuple(slots), (scale,) * len(shapes))


def factors(of: Layout, seed: int = 0, size: float = 1.0) -> list[Factors]:
    """Random factors, their components falling in energy as those of trained adapters do."""
    random = np.random.default_rng(seed)
    modules = []
    for a, b in zip(of.slots[0::2], of.slots[1::2], strict=True):
        fall = 0.4 ** np.arange(a.shape[0])
        modules.append(Factors(b=random.normal(size=b.shape) * fall * size, a=random.normal(size=a.shape)))
    return modules


def original(of: Layout, modules: Sequence[Factors] | None = None, seed: int = 0, size: float = 1.0) -> Original:
    """An adapter to encode; its weights as its dtypes hold them."""
    data = write_weights(of, factors(of, seed, size) if modules is None else modules)
    return Original("Adapter 'task@1'", lambda: data, of)


def generator(
    arch: str,
    of: Layout,
    seed: int = 0,
    *,
    latent: int = 3,
    condition: int = 5,
    coordinates: Any = "raw",
    prior: bool = False,
) -> Generator:
    """A generator of random integers; with `prior`, of the latent given the condition (`slots` alone)."""
    random = np.random.default_rng(seed)
    if arch == mean_decoder.NAME:
        latent = condition = 0
    if arch == linear_decoder.NAME:
        condition = 0
    config = {"hidden": 6, "inner": 4} if arch == slots_decoder.NAME else {}
    if prior:
        config["prior"] = 1
    shapes = DECODERS[arch].tensor_shapes(of, latent, condition, config)
    whole = arch != conv1d_decoder.NAME
    return Generator(
        arch=arch,
        coordinates=coordinates,
        encoder="text:test" if condition else "",
        latent_size=latent,
        condition_size=condition,
        config=config,
        slot_exponents=(SLOT_EXPONENT,) * len(of.slots),
        tensors={name: IntTensor(_values(name, shape, random), _exponent(name)) for name, shape in shapes.items()},
        means=tuple(
            IntTensor(
                random.integers(-90, 91, (rank_of(of, i), width_of(of, i)) if whole else (1, 1)).astype(float), -6
            )
            for i in range(len(of.slots))
        ),
    )


def _values(name: str, shape: tuple[int, ...], random: np.random.Generator) -> Any:
    values = random.integers(-15, 16, shape).astype(float)
    if name.startswith("conv."):
        # Twelve full convolutions are a million weights; four channels that carry a signal are a few hundred.
        values[4:] = 0
        values[:, 4:] = 0
    return values


def _exponent(name: str) -> int:
    if name.startswith("basis."):
        return SLOT_EXPONENT
    return -5 if name.startswith(("conv.", "output")) else -4


def loaded(of: Layout, made: Generator) -> LoadedGenerator:
    """The generator as it comes back from its file."""
    data = pack_generator(made, of)
    return LoadedGenerator.from_bytes(data, sha256_hex(data), of)


def inputs(made: Generator, seed: int = 0) -> tuple[Any, Any]:
    """A latent and a condition for a generator."""
    random = np.random.default_rng(seed)
    return tuple(random.integers(-90, 91, size).astype(np.int8) for size in (made.latent_size, made.condition_size))


def near_prediction(of: Layout, made: LoadedGenerator, seed: int, distance: float) -> tuple[Original, Draft]:
    """An adapter at some distance from what the generator draws, and the draft to encode it with."""
    latent, condition = inputs(made.generator, seed)
    drawn = predict(made.generator, of, latent, condition).factors
    random = np.random.default_rng(seed)
    moved = [
        Factors(
            b=f.b + distance * random.normal(size=f.b.shape) * np.abs(f.b).max(),
            a=f.a + distance * random.normal(size=f.a.shape) * np.abs(f.a).max(),
        )
        for f in drawn
    ]
    adapter = original(of, moved)
    return adapter, Draft(made, latent, condition, partial(in_coordinates, adapter.factors, made.generator))


def reseal(data: bytes) -> bytes:
    """The same file with a seal that fits its bytes."""
    body = data[:-SEAL_BYTES]
    return body + hashlib.sha256(body).digest()[:SEAL_BYTES]


def flip(data: bytes, bit: int) -> bytes:
    """The same bytes with one bit turned."""
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)
