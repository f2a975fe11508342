"""The source paper's CVAE in torch: ICM-LoRA (IJCAI 2025), encoder and decoder.

The encoder mirrors `conv1d_decoder`: twelve convolutions of kernel 7 and stride 2 with batch norm
and leaky ReLU, a linear layer to the latent size, then two more for mean and log variance, each
taking the condition as well. A block is the flattened adapter, (m, n).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, conv_transpose1d, elu, linear, pad

from lorareg.compress.factors.weights import Float64
from lorareg.compress.generators.conv1d_decoder import (
    ENCODER_CHANNELS,
    KERNEL,
    STRIDE_ALL,
    decoder_channels,
    padded_length,
)
from lorareg.registry.types import Layout


def blocks_of(layout: Layout, adapters: Sequence[Sequence[Float64]]) -> list[Tensor]:
    """Rows per adapter and slot -> one block, (m, n) float32."""
    flat = [np.concatenate([rows.ravel() for rows in slots]) for slots in adapters]
    return [torch.from_numpy(np.stack(flat).astype(np.float32))]


def draw(layout: Layout, parameters: Mapping[str, Tensor], z: Tensor, condition: Tensor) -> list[Tensor]:
    """The block for latents (m, k) and conditions (m, c), from stored tensors (batch norm folded in)."""
    p = parameters
    signal = linear(torch.cat([z, condition], dim=1), p["input"], p["input_bias"])
    signal = signal.view(len(z), ENCODER_CHANNELS[-1], -1)
    for i in range(len(ENCODER_CHANNELS)):
        kernel = p[f"conv.{i}"].flip(2).transpose(0, 1)
        signal = elu(conv_transpose1d(signal, kernel, p[f"conv_bias.{i}"], 2, KERNEL // 2, output_padding=1))
    signal = conv1d(signal, p["output"], p["output_bias"], padding=KERNEL // 2)
    return [signal[:, 0, : layout.weight_count]]


class Model(nn.Module):
    """Encoder and decoder as published."""

    def __init__(self, layout: Layout, latent: int, condition: int, config: Mapping[str, int]) -> None:
        super().__init__()
        self.layout = layout
        length = padded_length(layout.weight_count)
        start = ENCODER_CHANNELS[-1] * (length // STRIDE_ALL)
        self.padding = length - layout.weight_count
        channels = zip((1, *ENCODER_CHANNELS), ENCODER_CHANNELS, strict=False)
        self.encoder = nn.Sequential(*[_encoder_stage(a, b) for a, b in channels])
        self.to_latent = nn.Linear(start, latent)
        self.to_mean = nn.Linear(latent + condition, latent)
        self.to_log_variance = nn.Linear(latent + condition, latent)
        self.input = nn.Linear(latent + condition, start)
        self.convolutions = nn.ModuleList(
            [nn.ConvTranspose1d(a, b, KERNEL, 2, KERNEL // 2, output_padding=1) for a, b in decoder_channels()]
        )
        self.norms = nn.ModuleList([nn.BatchNorm1d(b) for _, b in decoder_channels()])
        self.output = nn.Conv1d(ENCODER_CHANNELS[0], 1, KERNEL, padding=KERNEL // 2)

    def encode(self, blocks: Sequence[Tensor], condition: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of z, each (m, k)."""
        signal = self.encoder(pad(blocks[0], (0, self.padding))[:, None])
        features = torch.cat([self.to_latent(signal.flatten(1)), condition], dim=1)
        return self.to_mean(features), self.to_log_variance(features)

    def decode(self, z: Tensor, condition: Tensor, stored: Callable[[str, Tensor], Tensor]) -> list[Tensor]:
        """Blocks, as the paper trains them: in floating point, `stored` is not applied."""
        signal = self.input(torch.cat([z, condition], dim=1)).view(len(z), ENCODER_CHANNELS[-1], -1)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            signal = elu(norm(convolution(signal)))
        return [self.output(signal)[:, 0, : self.layout.weight_count]]

    def export(self) -> dict[str, Tensor]:
        """The decoder's tensors by their stored names: batch norm folded, kernels as convolutions."""
        tensors = {"input": self.input.weight, "input_bias": self.input.bias}
        stages: list[tuple[Any, Any]] = list(zip(self.convolutions, self.norms, strict=True))
        for i, (convolution, norm) in enumerate(stages):
            gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            kernel = convolution.weight.transpose(0, 1).flip(2)  # (out, in, 7)
            tensors[f"conv.{i}"] = kernel * gain[:, None, None]
            tensors[f"conv_bias.{i}"] = (convolution.bias - norm.running_mean) * gain + norm.bias
        assert self.output.bias is not None
        return {**tensors, "output": self.output.weight, "output_bias": self.output.bias}


def _encoder_stage(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(channels_in, channels_out, KERNEL, 2, KERNEL // 2), nn.BatchNorm1d(channels_out), nn.LeakyReLU()
    )
