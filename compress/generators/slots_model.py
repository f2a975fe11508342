"""The slots CVAE in torch: the decoder of `slots_decoder`, and the encoder that training needs.

    rows of every slot --> per kind: linear (width -> h), times one vector a token --> summed
    --> with the condition: linear, relu, linear --> mean and log variance of z (k)
    condition --> prior and prior_bias --> mean of the prior (k); its variance is learned too, one a dimension

A block is the rows of one kind over a batch of adapters, (m, tokens, width), as deviations from
the cohort's mean in units of the slot's scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from lorareg.compress.factors.weights import Float64
from lorareg.compress.generators import slots_decoder
from lorareg.compress.generators.grid import grid_of
from lorareg.registry.types import Layout


def blocks_of(layout: Layout, adapters: Sequence[Sequence[Float64]]) -> list[Tensor]:
    """Rows per adapter and slot -> one block per kind, (m, tokens, width) float32."""
    return [
        torch.from_numpy(
            np.stack([np.concatenate([rows[slot] for slot in kind.slots]) for rows in adapters]).astype(np.float32)
        )
        for kind in grid_of(layout).kinds
    ]


def draw(layout: Layout, parameters: Mapping[str, Tensor], z: Tensor, condition: Tensor) -> list[Tensor]:
    """Blocks for latents (m, k) and conditions (m, c); `parameters` as `slots_decoder.tensor_shapes` names them."""
    p = parameters
    u = relu(linear(z, p["latent_in"]) + linear(condition, p["condition_in"]) + p["input_bias"])  # (m, h)
    blocks = []
    for index, kind in enumerate(grid_of(layout).kinds):
        scale = p["layer_scale"][kind.layers] + p["row_scale"][kind.rows]  # (tokens, h)
        bias = p["layer_bias"][kind.layers] + p["row_bias"][kind.rows]
        tokens = u[:, None] * scale + bias  # (m, tokens, h)
        inner = relu(linear(tokens, p["inner_in"], p["inner_bias"]))
        blocks.append(linear(tokens + linear(inner, p["inner_out"]), p[f"head.{index}"]))
    return blocks


class Model(nn.Module):
    """Encoder and decoder, with the decoder's tensors under their stored names."""

    def __init__(self, layout: Layout, latent: int, condition: int, config: Mapping[str, int]) -> None:
        super().__init__()
        self.layout = layout
        hidden = config["hidden"]
        shapes = slots_decoder.tensor_shapes(layout, latent, condition, config)
        self.decoder = nn.ParameterDict(
            {name.replace(".", "_"): nn.Parameter(_initial(name, shape)) for name, shape in shapes.items()}
        )
        self.names = list(shapes)
        kinds = grid_of(layout).kinds
        self.projections = nn.ParameterList(
            [nn.Parameter(torch.randn(hidden, kind.width) / kind.width**0.5) for kind in kinds]
        )
        self.token_gates = nn.ParameterList(
            [nn.Parameter(torch.randn(len(kind.rows), hidden) / len(kind.rows) ** 0.5) for kind in kinds]
        )
        self.posterior = nn.Sequential(
            nn.Linear(len(kinds) * hidden + condition, 4 * hidden), nn.ReLU(), nn.Linear(4 * hidden, 2 * latent)
        )
        if "prior" in shapes:
            self.prior_log_variance = nn.Parameter(torch.zeros(latent))

    def encode(self, blocks: Sequence[Tensor], condition: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of z, each (m, k)."""
        pooled = [
            (linear(block, project) * gate).sum(dim=1)
            for project, gate, block in zip(self.projections, self.token_gates, blocks, strict=True)
        ]
        moments: Tensor = self.posterior(torch.cat([*pooled, condition], dim=1))
        half = moments.shape[1] // 2
        return moments[:, :half], moments[:, half:]

    def prior(self, condition: Tensor, stored: Callable[[str, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Mean (m, k) and log variance (k,) of z given the condition (m, c), the mean as it will be stored."""
        weight, bias = (stored(name, self.decoder[name]) for name in ("prior", "prior_bias"))
        return linear(condition, weight, bias), self.prior_log_variance

    def decode(self, z: Tensor, condition: Tensor, stored: Callable[[str, Tensor], Tensor]) -> list[Tensor]:
        """Blocks, drawn with every tensor as `stored` says it will be kept."""
        parameters = {name: stored(name, tensor) for name, tensor in self.export().items()}
        return draw(self.layout, parameters, z, condition)

    def export(self) -> dict[str, Tensor]:
        """The decoder's tensors by their stored names."""
        return {name: self.decoder[name.replace(".", "_")] for name in self.names}


def _initial(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.startswith("prior"):
        return torch.zeros(shape)  # N(0, 1), as without one
    if name.endswith("bias"):
        spread = 0.1
    elif name.endswith("scale"):
        spread = 0.7
    else:
        spread = (0.3 if name.startswith("head") else 1.0) / max(shape[-1], 1) ** 0.5
    return torch.randn(shape) * spread
