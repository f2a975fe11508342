"""The stored generator: a decoder in integers and its shared tables, one immutable file.

                       condition (task vector, int8)
                                  |
    code: latent (int8) --> decoder network --> rows * 2^slot_exponent --+
                                                                         +--> prediction
    tables: mean of the cohort, one a slot ------------------------------+

    offset  bytes  field
    0       4      magic "LORG"
    4       1      format, 1
    5       3      zero
    8       4      length of the header
    12      h      header: canonical JSON (see `Generator.header`)
    12 + h  n      tensors, one range-coded stream: the network's in the order of `tensor_shapes`,
                   then the mean of every slot
    end-8   8      first 8 bytes of the SHA-256 of everything before

The mean table is the whole matrix of a slot, but for `conv1d`, where it is one number as in the
paper. Decoding needs numpy alone and gives the same integers on any machine (see `fixed_point`).
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from lorareg.compress.factors.canonical import Coordinates
from lorareg.compress.factors.weights import Float64
from lorareg.compress.generators import conv1d_decoder, linear_decoder, mean_decoder, slots_decoder
from lorareg.compress.generators.grid import rank_of, width_of
from lorareg.compress.generators.prediction import ModulePrediction, Prediction
from lorareg.compress.integers.entropy import SymbolDecoder, SymbolEncoder
from lorareg.compress.integers.fixed_point import ACTIVATION_EXPONENT, requantise
from lorareg.compress.integers.tensors import EXPONENTS, IntTensor, get_tensor, put_tensor
from lorareg.registry.errors import InvalidContainerError, LayoutMismatchError, NewerFormatError
from lorareg.registry.types import Layout, canonical_json

MAGIC = b"LORG"
FORMAT = 1
_START = struct.Struct("<4sB3xI")
_SEAL_BYTES = 8

DECODERS: dict[str, ModuleType] = {
    slots_decoder.NAME: slots_decoder,
    conv1d_decoder.NAME: conv1d_decoder,
    mean_decoder.NAME: mean_decoder,
    linear_decoder.NAME: linear_decoder,
}

LATENT_EXPONENT = -5
"""Latents are int8 in units of 2^-5: ±4, in steps of a thirty-second."""
CONDITION_EXPONENT = -5
"""Conditions are int8 in units of 2^-5: a task vector in standard deviations, clamped to ±4."""
MAX_LATENT = 4096
MAX_CONDITION = 1 << 16
MAX_SIZE = 1 << 16
MAX_WEIGHTS = 1 << 26
"""Of a network: half a GiB once decoded, whatever a header says."""
MAX_SHIFT = 12
"""Most bits a mean or a network output is shifted by when the two are added: keeps products exact."""

Int8 = NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Generator:
    """A generator as stored, ready to predict."""

    arch: str
    coordinates: Coordinates  # see `canonical`
    encoder: str  # of the task vectors it is conditioned on
    latent_size: int
    condition_size: int
    config: Mapping[str, int]  # sizes the architecture defines
    slot_exponents: tuple[int, ...]  # one a slot: what network outputs are scaled by
    tensors: Mapping[str, IntTensor]
    means: tuple[IntTensor, ...]  # one a slot, (r, width) or (1, 1)

    def header(self, layout: Layout) -> dict[str, Any]:
        return {
            "arch": self.arch,
            "condition_size": self.condition_size,
            "config": dict(self.config),
            "coordinates": self.coordinates,
            "encoder": self.encoder,
            "latent_size": self.latent_size,
            "layout": layout.digest,
            "mean_exponents": [mean.exponent for mean in self.means],
            "slot_exponents": list(self.slot_exponents),
            "tensor_exponents": [tensor.exponent for tensor in self.tensors.values()],
            "whole_means": self.means[0].values.size > 1,
        }


def predict(generator: Generator, layout: Layout, latent: Int8, condition: Int8) -> Prediction:
    """The adapter that the generator draws for a latent (k,) and a condition (c,); `layout` is its own.

    Raises:
        LayoutMismatchError: latent or condition has another size than the generator's.
    """
    expect_size("latent", latent, generator.latent_size)
    expect_size("condition", condition, generator.condition_size)
    network = DECODERS[generator.arch].decode(
        layout,
        generator.tensors,
        requantise(latent.astype(np.float64), LATENT_EXPONENT),
        requantise(condition.astype(np.float64), CONDITION_EXPONENT),
    )
    rows = [_add(*parts) for parts in zip(network, generator.slot_exponents, generator.means, strict=True)]
    pairs = zip(rows[0::2], rows[1::2], strict=True)
    return Prediction(tuple(ModulePrediction(b.T, a, b_exp, a_exp) for (a, a_exp), (b, b_exp) in pairs))


def expect_size(name: str, given: Int8, expected: int) -> None:
    """Refuse a latent or condition of another size than a generator's.

    Raises:
        LayoutMismatchError: it has another size.
    """
    if given.shape != (expected,):
        raise LayoutMismatchError(
            what=f"The {name} of a code",
            found=f"{given.size} entries",
            expected=f"{expected} entries",
            remedy="The code and the generator do not belong together; run `lorareg check`.",
        )


def _add(network: Float64, slot_exponent: int, mean: IntTensor) -> tuple[Float64, int]:
    """mean + network * 2^slot_exponent in integers of one exponent; exact, because shifts are bounded."""
    exponent = slot_exponent + ACTIVATION_EXPONENT
    common = min(exponent, mean.exponent)
    return network * 2.0 ** (exponent - common) + mean.values * 2.0 ** (mean.exponent - common), common


def pack_generator(generator: Generator, layout: Layout) -> bytes:
    """The bytes of a generator file."""
    header = canonical_json(generator.header(layout)).encode()
    encoder = SymbolEncoder()
    for tensor in (*generator.tensors.values(), *generator.means):
        put_tensor(encoder, tensor)
    sealed = _START.pack(MAGIC, FORMAT, len(header)) + header + encoder.finish()
    return sealed + hashlib.sha256(sealed).digest()[:_SEAL_BYTES]


def unpack_generator(data: bytes, layout: Layout, what: str = "Generator file") -> Generator:
    """The generator in a file's bytes.

    Raises:
        InvalidContainerError: not a generator file, or damaged.
        LayoutMismatchError: it was trained on another layout.
        NewerFormatError: written by a later lorareg.
    """
    header, stream = _open(data, what)
    if header["layout"] != layout.digest:
        raise LayoutMismatchError(
            what=what,
            found=header["layout"][:16],
            expected=layout.digest[:16],
            remedy="Use the generator of the adapter's own cohort.",
        )
    try:
        return _read(header, SymbolDecoder(stream, what), layout)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise InvalidContainerError(what=what, reason=f"its header does not describe a generator ({error})") from error


def _open(data: bytes, what: str) -> tuple[dict[str, Any], bytes]:
    if len(data) < _START.size + _SEAL_BYTES or data[:4] != MAGIC:
        raise InvalidContainerError(what=what, reason=f"it starts with {data[:4]!r}, not {MAGIC!r}")
    _, form, length = _START.unpack_from(data)
    if form > FORMAT:
        raise NewerFormatError(what=what, found=form, expected=FORMAT)
    if hashlib.sha256(data[:-_SEAL_BYTES]).digest()[:_SEAL_BYTES] != data[-_SEAL_BYTES:]:
        raise InvalidContainerError(what=what, reason="its seal does not match its bytes")
    try:
        header = json.loads(data[_START.size : _START.size + length])
        if not isinstance(header["layout"], str) or not isinstance(header["arch"], str):
            raise ValueError("layout and architecture are no texts")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidContainerError(what=what, reason=f"its header cannot be read ({error})") from error
    if header["arch"] not in DECODERS:
        found, expected = f"architecture {header['arch'][:40]!r}", ", ".join(sorted(DECODERS))
        raise NewerFormatError(what=what, found=found, expected=expected)
    return header, data[_START.size + length : -_SEAL_BYTES]


def _read(header: dict[str, Any], decoder: SymbolDecoder, layout: Layout) -> Generator:
    latent, condition = int(header["latent_size"]), int(header["condition_size"])
    config = {str(k): int(v) for k, v in header["config"].items()}
    sizes_fit = all(1 <= size <= MAX_SIZE for size in config.values())
    if not (0 <= latent <= MAX_LATENT and 0 <= condition <= MAX_CONDITION and sizes_fit):
        raise ValueError(f"sizes {latent}, {condition}, {config} are out of range")
    shapes = DECODERS[header["arch"]].tensor_shapes(layout, latent, condition, config)
    weight_count = sum(math.prod(shape) for shape in shapes.values())
    if weight_count > MAX_WEIGHTS:
        raise ValueError(f"a network of {weight_count} weights is more than the {MAX_WEIGHTS} that are read")
    exponents = [_exponent(e) for e in header["tensor_exponents"]]
    tensors = {
        name: get_tensor(decoder, shape, exponent)
        for (name, shape), exponent in zip(shapes.items(), exponents, strict=True)
    }
    whole = bool(header["whole_means"])
    mean_exponents = [_exponent(e) for e in header["mean_exponents"]]
    means = [
        get_tensor(decoder, (rank_of(layout, i), width_of(layout, i)) if whole else (1, 1), exponent)
        for i, exponent in zip(range(len(layout.slots)), mean_exponents, strict=True)
    ]
    decoder.finish()
    if header["coordinates"] not in get_args(Coordinates) or not isinstance(header["encoder"], str):
        raise ValueError(f"coordinates {header['coordinates']!r} are unknown")
    slot_exponents = tuple(_exponent(e) for e in header["slot_exponents"])
    for mean, slot in zip(mean_exponents, slot_exponents, strict=True):
        if abs(mean - slot - ACTIVATION_EXPONENT) > MAX_SHIFT:
            raise ValueError(f"exponents {mean} and {slot} are too far apart to add exactly")
    return Generator(
        arch=header["arch"],
        coordinates=header["coordinates"],
        encoder=header["encoder"],
        latent_size=latent,
        condition_size=condition,
        config=config,
        slot_exponents=slot_exponents,
        tensors=tensors,
        means=tuple(means),
    )


def _exponent(value: object) -> int:
    if not isinstance(value, int) or value not in EXPONENTS:
        raise ValueError(f"exponent {value!r} is outside {EXPONENTS[0]}..{EXPONENTS[-1]}")
    return value
