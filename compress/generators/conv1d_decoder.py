"""The source paper's decoder, in integers: ICM-LoRA (IJCAI 2025), twelve transposed convolutions.

    z (k), condition (c) --> linear --> (8, length / 4096)
    --> 12 x [ transposed conv, kernel 7, stride 2; batch norm; ELU ]
        channels 8-16-32-64-128-256-256-128-64-32-16-8, then 8 again
    --> conv 8 -> 1, kernel 7 --> the flattened adapter, normalised per tensor

Batch norm is folded into the convolutions when the generator is stored. `conv1d_model` is the same
network in torch, with the paper's encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from lorareg.compress.factors.weights import Float64
from lorareg.compress.generators.grid import rank_of, width_of
from lorareg.compress.integers.fixed_point import ACTIVATION_EXPONENT, elu, requantise
from lorareg.compress.integers.tensors import IntTensor
from lorareg.registry.types import Layout

NAME = "conv1d"
ENCODER_CHANNELS = (8, 16, 32, 64, 128, 256, 256, 128, 64, 32, 16, 8)
KERNEL = 7
STRIDE_ALL = 1 << len(ENCODER_CHANNELS)
_BLOCK = 1 << 15  # output positions at a time, to keep the unrolled input within a few MiB


def padded_length(weight_count: int) -> int:
    """The flattened length, rounded up to a multiple of 4096."""
    return -(-weight_count // STRIDE_ALL) * STRIDE_ALL


def decoder_channels() -> list[tuple[int, int]]:
    """(in, out) channels of the twelve transposed convolutions."""
    path = (*reversed(ENCODER_CHANNELS), ENCODER_CHANNELS[0])
    return list(pairwise(path))


def tensor_shapes(layout: Layout, latent: int, condition: int, config: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the decoder, in the order they are stored."""
    start = ENCODER_CHANNELS[-1] * (padded_length(layout.weight_count) // STRIDE_ALL)
    shapes: dict[str, tuple[int, ...]] = {"input": (start, latent + condition), "input_bias": (start,)}
    for i, (wide, narrow) in enumerate(decoder_channels()):
        shapes[f"conv.{i}"] = (narrow, wide, KERNEL)
        shapes[f"conv_bias.{i}"] = (narrow,)
    return {**shapes, "output": (1, ENCODER_CHANNELS[0], KERNEL), "output_bias": (1,)}


def decode(layout: Layout, tensors: Mapping[str, IntTensor], latent: Float64, condition: Float64) -> list[Float64]:
    """Every slot's rows (r, width) as activations, in layout order."""
    weight = tensors["input"]
    flat = np.concatenate([latent, condition]) @ weight.values.T
    flat = requantise(flat, ACTIVATION_EXPONENT + weight.exponent) + _constant(tensors["input_bias"])
    signal = requantise(flat, ACTIVATION_EXPONENT).reshape(ENCODER_CHANNELS[-1], -1)
    for i in range(len(ENCODER_CHANNELS)):
        signal = elu(_convolve(_stretched(signal), tensors[f"conv.{i}"], tensors[f"conv_bias.{i}"]))
    flat = _convolve(signal, tensors["output"], tensors["output_bias"])[0]
    slots, offset = [], 0
    for index, slot in enumerate(layout.slots):
        rows = flat[offset : offset + slot.weight_count]
        slots.append(rows.reshape(rank_of(layout, index), width_of(layout, index)))
        offset += slot.weight_count
    return slots


def _stretched(signal: Float64) -> Float64:
    """A zero after every sample: a transposed convolution of stride 2 is a convolution of this."""
    wide = np.zeros((signal.shape[0], 2 * signal.shape[1]))
    wide[:, ::2] = signal
    return wide


def _convolve(signal: Float64, weight: IntTensor, bias: IntTensor) -> Float64:
    """Same-length convolution (out, in, 7), as one matrix product a block."""
    out, channels, kernel = weight.values.shape
    flat = weight.values.reshape(out, channels * kernel)
    padded = np.pad(signal, ((0, 0), (kernel // 2, kernel // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=1)  # (in, length, 7)
    result = np.empty((out, signal.shape[1]))
    block = max(64, _BLOCK * 8 // channels // kernel)
    for start in range(0, signal.shape[1], block):
        part = windows[:, start : start + block].transpose(0, 2, 1).reshape(channels * kernel, -1)
        result[:, start : start + block] = requantise(flat @ part, ACTIVATION_EXPONENT + weight.exponent)
    return requantise(result + _constant(bias)[:, None], ACTIVATION_EXPONENT)


def _constant(tensor: IntTensor) -> Float64:
    return requantise(tensor.values, tensor.exponent)
