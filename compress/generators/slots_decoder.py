"""The slots decoder: one small network that draws every row of every factor.

    z (k), condition (c) --> u = relu(Wz z + Wc c + bias)                       (h,)
    for each token:  t = u * scale[token] + bias[token]                         (h,)
                     t = t + Wo relu(Wi t + bias)                               (h,)
                     row = head[kind] t                                         (width,)

Scales and biases of a token are the sum of one vector for its layer and one for its row within its
kind, so the network's size does not depend on how many layers share it. This file is the decoder
in integers; `slots_model` is the same network in torch, with the encoder that training needs.

With `"prior": 1` in its config, a prior of the latent given the condition is stored beside the network
(see `prior`); drawing an adapter does not look at it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lorareg.compress.factors.weights import Float64
from lorareg.compress.generators.grid import Grid, grid_of, rank_of
from lorareg.compress.integers.fixed_point import ACTIVATION_EXPONENT, relu, requantise
from lorareg.compress.integers.tensors import IntTensor
from lorareg.registry.types import Layout

NAME = "slots"


def tensor_shapes(layout: Layout, latent: int, condition: int, config: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the decoder, in the order they are stored.

    Raises:
        ValueError: the config's `prior` is neither absent nor 1.
    """
    grid, hidden, inner = grid_of(layout), config["hidden"], config["inner"]
    return {
        "latent_in": (hidden, latent),
        "condition_in": (hidden, condition),
        "input_bias": (hidden,),
        "layer_scale": (grid.layer_count, hidden),
        "row_scale": (grid.row_count, hidden),
        "layer_bias": (grid.layer_count, hidden),
        "row_bias": (grid.row_count, hidden),
        "inner_in": (inner, hidden),
        "inner_bias": (inner,),
        "inner_out": (hidden, inner),
        **{f"head.{i}": (kind.width, hidden) for i, kind in enumerate(grid.kinds)},
        **_prior_shapes(latent, condition, config),
    }


def _prior_shapes(latent: int, condition: int, config: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    if "prior" not in config:
        return {}
    if config["prior"] != 1:
        raise ValueError(f"prior {config['prior']} is none that is known: it is 1 where there is one")
    return {"prior": (latent, condition), "prior_bias": (latent,)}


def decode(layout: Layout, tensors: Mapping[str, IntTensor], latent: Float64, condition: Float64) -> list[Float64]:
    """Every slot's rows (r, width) as activations, in layout order, from integer inputs in activation units."""
    grid = grid_of(layout)
    inputs = _product(tensors["latent_in"], latent) + _product(tensors["condition_in"], condition)
    u = relu(_clamped(inputs + _constant(tensors["input_bias"])))
    slots: list[Float64] = [np.zeros(0)] * len(layout.slots)
    for index, kind in enumerate(grid.kinds):
        tokens = _tokens(grid, index, tensors, u)
        rows = _product(tensors[f"head.{index}"], tokens)
        offset = 0
        for slot in kind.slots:
            rank = rank_of(layout, slot)
            slots[slot] = rows[offset : offset + rank]
            offset += rank
    return slots


def _tokens(grid: Grid, index: int, tensors: Mapping[str, IntTensor], u: Float64) -> Float64:
    """The hidden vectors (tokens, h) of one kind."""
    kind = grid.kinds[index]
    scales = _constant(tensors["layer_scale"])[kind.layers] + _constant(tensors["row_scale"])[kind.rows]
    biases = _constant(tensors["layer_bias"])[kind.layers] + _constant(tensors["row_bias"])[kind.rows]
    tokens = _clamped(requantise(scales * u, 2 * ACTIVATION_EXPONENT) + biases)
    inner = relu(_clamped(_product(tensors["inner_in"], tokens) + _constant(tensors["inner_bias"])))
    return _clamped(tokens + _product(tensors["inner_out"], inner))


def _product(weight: IntTensor, activations: Float64) -> Float64:
    """activations @ weight.T as activations."""
    return requantise(activations @ weight.values.T, ACTIVATION_EXPONENT + weight.exponent)


def _constant(tensor: IntTensor) -> Float64:
    return requantise(tensor.values, tensor.exponent)


def _clamped(activations: Float64) -> Float64:
    return requantise(activations, ACTIVATION_EXPONENT)
