"""The prior of a generator: stored beside the network, read back, and exact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lorareg.compress.generators.generator import pack_generator, predict, unpack_generator
from lorareg.compress.generators.prior import prior_latent
from lorareg.compress.integers.tensors import IntTensor
from lorareg.registry.errors import LayoutMismatchError, LoraregError

GOLDEN = Path(__file__).parent / "golden" / "slots-prior.generator"
GOLDEN_CONDITION = np.array([90, -64, 32, 7, -3], np.int8)
GOLDEN_LATENT = [-71, -55, -27]


def test_the_prior_is_affine_in_the_condition(make: ModuleType) -> None:
    layout = make.layout()
    made = make.generator("slots", layout, prior=True)
    for seed in range(20):
        _, condition = make.inputs(made, seed)
        found = prior_latent(made, condition)
        assert found is not None
        assert (found.dtype, found.shape) == (np.int8, (made.latent_size,))
        wanted = made.tensors["prior"].real @ (condition / 32) + made.tensors["prior_bias"].real
        assert np.abs(found / 32 - np.clip(wanted, -127 / 32, 127 / 32)).max() <= 1 / 64 + 1 / 1024


def test_the_prior_comes_back_from_the_file(make: ModuleType) -> None:
    layout = make.layout()
    made = make.generator("slots", layout, prior=True)
    file = pack_generator(made, layout)
    back = unpack_generator(file, layout)
    assert back.config["prior"] == 1
    latent, condition = make.inputs(made)
    np.testing.assert_array_equal(prior_latent(back, condition), prior_latent(made, condition))
    assert pack_generator(back, layout) == file
    for module, other in zip(
        predict(back, layout, latent, condition).modules, predict(made, layout, latent, condition).modules, strict=True
    ):
        np.testing.assert_array_equal(module.a, other.a)


def test_the_network_draws_the_same_with_and_without_a_prior(make: ModuleType) -> None:
    layout = make.layout()
    made = make.generator("slots", layout, prior=True)
    bare = replace(
        made,
        config={name: size for name, size in made.config.items() if name != "prior"},
        tensors={name: tensor for name, tensor in made.tensors.items() if not name.startswith("prior")},
    )
    assert len(pack_generator(bare, layout)) < len(pack_generator(made, layout))
    inputs = make.inputs(made)
    for module, other in zip(
        predict(made, layout, *inputs).modules, predict(bare, layout, *inputs).modules, strict=True
    ):
        np.testing.assert_array_equal(module.b, other.b)


@pytest.mark.parametrize("arch", ["slots", "mean", "linear", "conv1d"])
def test_a_generator_without_a_prior_has_none(arch: str, make: ModuleType) -> None:
    made = make.generator(arch, make.layout())
    _, condition = make.inputs(made)
    assert prior_latent(made, condition) is None


def test_a_large_prior_is_clamped_to_what_a_latent_holds(make: ModuleType) -> None:
    made = make.generator("slots", make.layout(), prior=True)
    limit = float((1 << 15) - 1)
    huge = IntTensor(np.full((3, 5), limit) * [[1], [-1], [0]], 20)
    made = replace(made, tensors={**made.tensors, "prior": huge, "prior_bias": IntTensor(np.zeros(3), 0)})
    found = prior_latent(made, np.full(5, 127, np.int8))
    assert found is not None
    assert found.tolist() == [127, -127, 0]


def test_a_condition_of_another_size_is_refused(make: ModuleType) -> None:
    made = make.generator("slots", make.layout(), prior=True)
    with pytest.raises(LayoutMismatchError, match=r"condition of a code has layout 4 entries, but 5 entries"):
        prior_latent(made, np.zeros(4, np.int8))


def test_a_golden_prior_gives_its_latent(make: ModuleType) -> None:
    layout, file = make.layout(), GOLDEN.read_bytes()
    generator = unpack_generator(file, layout)
    found = prior_latent(generator, GOLDEN_CONDITION)
    assert found is not None
    assert found.tolist() == GOLDEN_LATENT
    assert pack_generator(generator, layout) == file


def test_flipped_bits_under_a_valid_seal_load_or_are_refused(make: ModuleType) -> None:
    layout = make.layout(((4, 1, 5), (3, 2, 2)))
    file = pack_generator(make.generator("slots", layout, latent=2, condition=2, prior=True), layout)
    loaded = 0
    for bit in range(8 * (len(file) - make.SEAL_BYTES)):
        try:
            made = unpack_generator(make.reseal(make.flip(file, bit)), layout)
        except LoraregError:
            continue
        loaded += 1
        found = prior_latent(made, np.zeros(made.condition_size, np.int8))
        assert found is None or found.shape == (made.latent_size,)
    assert loaded > 0
