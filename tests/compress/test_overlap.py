"""What a generator of one layout has for an adapter of another."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from lorareg.compress.generators.generator import predict
from lorareg.compress.generators.overlap import overlap_of
from lorareg.compress.planning.coordinates import covers, draft_of, in_coordinates, latent_of

SOURCE = ((10, 3, 12), (6, 3, 12), (10, 3, 12))
TARGETS = {
    "another scale and dtype": (SOURCE, {"dtype": "F16", "scale": 0.5}),
    "a smaller rank": (tuple((d, 2, k) for d, _, k in SOURCE), {}),
    "a larger rank": (tuple((d, 5, k) for d, _, k in SOURCE), {}),
    "fewer modules": (SOURCE[:2], {}),
    "more modules": ((*SOURCE, (6, 3, 12)), {}),
    "a module of another width": ((SOURCE[0], (7, 3, 12), SOURCE[2]), {}),
}


@pytest.mark.parametrize("arch", ["mean", "linear", "slots", "conv1d"])
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_what_both_have_is_drawn_as_it_is_and_the_rest_is_zero(target: object, arch: str, make: ModuleType) -> None:
    shapes, options = target  # type: ignore[misc]
    own, other = make.layout(SOURCE), make.layout(shapes, **options)
    loaded = make.loaded(own, make.generator(arch, own))
    inputs = make.inputs(loaded.generator)
    whole, drawn = predict(loaded.generator, own, *inputs), loaded.draw(other, *inputs)
    for module, (d_out, rank, d_in) in enumerate(shapes):
        got = drawn.modules[module]
        assert got.b.shape, got.a.shape == ((d_out, rank), (rank, d_in))
        if module >= len(SOURCE) or SOURCE[module][0] != d_out:
            assert not got.b.any()
            assert not got.a.any()
            continue
        wanted, both = whole.modules[module], min(rank, 3)
        assert (got.a_exponent, got.b_exponent) == (wanted.a_exponent, wanted.b_exponent)
        np.testing.assert_array_equal(got.b[:, :both], wanted.b[:, :both])
        np.testing.assert_array_equal(got.a[:both], wanted.a[:both])
        assert not got.b[:, both:].any()
        assert not got.a[both:].any()


def test_the_last_prediction_is_kept_for_its_own_layout_alone(make: ModuleType) -> None:
    own, other = make.layout(SOURCE), make.layout(SOURCE[:2])
    loaded = make.loaded(own, make.generator("mean", own))
    inputs = make.inputs(loaded.generator)
    first = loaded.draw(own, *inputs)
    assert loaded.draw(own, *inputs) is first
    assert len(loaded.draw(other, *inputs).modules) == 2
    assert len(loaded.draw(own, *inputs).modules) == 3


def test_the_share_that_is_covered_counts_weights(make: ModuleType) -> None:
    own = make.layout(SOURCE)
    assert overlap_of(own, make.layout(SOURCE[:2])).covered_share == 1
    more = make.layout((*SOURCE, (6, 3, 12)))
    counts = [3 * (d_out + d_in) for d_out, _, d_in in (*SOURCE, (6, 3, 12))]
    assert overlap_of(own, more).covered_share == pytest.approx(sum(counts[:3]) / sum(counts))
    assert overlap_of(own, make.layout(((5, 3, 4),))).covered_share == 0


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_turning_an_adapter_changes_nothing_of_what_it_does(target: object, make: ModuleType) -> None:
    shapes, options = target  # type: ignore[misc]
    own, other = make.layout(SOURCE), make.layout(shapes, **options)
    generator = make.generator("mean", own, coordinates="shared")
    factors = make.factors(other)
    turned = in_coordinates(factors, generator, overlap_of(own, other))
    for before, after in zip(factors, turned, strict=True):
        np.testing.assert_allclose(after.b @ after.a, before.b @ before.a, atol=1e-9)


def test_a_latent_is_found_from_the_modules_that_both_have(make: ModuleType) -> None:
    own, other = make.layout(SOURCE), make.layout((*SOURCE[:2], (9, 3, 9)))
    loaded = make.loaded(own, make.generator("linear", own))
    latent, nothing = make.inputs(loaded.generator)
    drawn = loaded.draw(other, latent, nothing).factors
    elsewhere = make.factors(other, seed=5)[2]
    found = latent_of(loaded.generator, [*drawn[:2], elsewhere], loaded.overlap(other))
    np.testing.assert_array_equal(found, latent)


def test_only_what_began_alike_is_covered(make: ModuleType) -> None:
    own, other = make.layout(SOURCE), make.layout((*SOURCE[:2], (9, 3, 9)))
    loaded = make.loaded(own, make.generator("mean", own, coordinates="shared"))
    overlap = loaded.overlap(other)
    assert overlap is not None
    near = [*loaded.draw(other, *make.inputs(loaded.generator)).factors[:2], make.factors(other, seed=5)[2]]
    assert covers(loaded.generator, near, overlap)
    assert not covers(loaded.generator, make.factors(other, seed=5), overlap)
    nowhere = make.layout(((5, 3, 4),))
    assert not covers(loaded.generator, make.factors(nowhere), overlap_of(own, nowhere))


def test_a_draft_of_another_layout_is_in_its_own_shapes(make: ModuleType) -> None:
    own, other = make.layout(SOURCE), make.layout(((10, 2, 12), (9, 2, 9)))
    loaded = make.loaded(own, make.generator("mean", own, coordinates="shared"))
    draft = draft_of(loaded, make.original(other), *make.inputs(loaded.generator))
    assert [f.b.shape for f in draft.turned] == [(10, 2), (9, 2)]
    assert [f.a.shape for f in draft.prediction(other).factors] == [(2, 12), (2, 9)]
