"""Integer arithmetic, and the decoders that rest on it: the same bytes on every machine."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lorareg.compress.factors.canonical import Coordinates
from lorareg.compress.generators.generator import CONDITION_EXPONENT, LATENT_EXPONENT, predict
from lorareg.compress.generators.grid import factor_rows, grid_of
from lorareg.compress.integers.fixed_point import ACTIVATION_LIMIT, elu, relu, requantise

GOLDEN = Path(__file__).parent / "golden"

DECODE_SCRIPT = """
import hashlib, json, pathlib, sys
from lorareg.compress.codec.codecs import LoadedGenerator, decode
from lorareg.registry.types import Layout, sha256_hex
folder = pathlib.Path(sys.argv[1])
for name, entry in sorted(json.loads((folder / "index.json").read_text()).items()):
    layout, loaded = Layout.from_json(entry["layout"]), None
    if entry["generator"]:
        file = (folder / entry["generator"]).read_bytes()
        loaded = LoadedGenerator.from_bytes(file, sha256_hex(file), layout)
    output = sha256_hex(decode((folder / f"{name}.code").read_bytes(), layout, loaded, name))
    assert output == entry["output"], name
assert "torch" not in sys.modules and "sqlalchemy" not in sys.modules
print("same")
"""


def test_requantising_rounds_to_nearest_with_ties_up() -> None:
    halves = np.array([-1.5, -0.5, 0.5, 1.5, 0.49, -0.51]) * 2
    assert requantise(halves, -11).tolist() == [-1, 0, 1, 2, 0, -1]
    assert requantise(np.array([3.0]), -9).tolist() == [6.0]


def test_requantising_clamps() -> None:
    assert requantise(np.array([1e12, -1e12, 2.0**52]), -10).tolist() == [
        ACTIVATION_LIMIT,
        -ACTIVATION_LIMIT,
        ACTIVATION_LIMIT,
    ]
    assert requantise(np.array([-ACTIVATION_LIMIT - 1]), -10).tolist() == [-ACTIVATION_LIMIT]


def test_relu_is_the_positive_part() -> None:
    assert relu(np.array([-3.0, 0.0, 5.0])).tolist() == [0, 0, 5]


def test_the_elu_table_is_within_a_unit_of_the_real_thing() -> None:
    inputs = np.arange(-ACTIVATION_LIMIT, 2000)
    wanted = np.array([x if x >= 0 else math.expm1(x / 1024) * 1024 for x in inputs])
    found = elu(inputs)
    assert np.abs(found - wanted).max() <= 1
    assert np.array_equal(found, np.rint(found))


def test_products_do_not_depend_on_the_order_of_sums() -> None:
    random = np.random.default_rng(0)
    weights = random.integers(-(1 << 15), 1 << 15, (40, 3000)).astype(float)
    inputs = random.integers(-(1 << 15), 1 << 15, 3000).astype(float)
    order = random.permutation(3000)
    np.testing.assert_array_equal(weights @ inputs, weights[:, order] @ inputs[order])
    np.testing.assert_array_equal(weights @ inputs, [math.fsum(row * inputs) for row in weights])


@pytest.mark.parametrize(("arch", "coordinates"), [("slots", "shared"), ("conv1d", "raw")])
def test_the_stored_decoder_draws_what_torch_draws(arch: str, coordinates: Coordinates, make: ModuleType) -> None:
    torch = pytest.importorskip("torch")
    from lorareg.compress.generators.examples import MODULES

    layout = make.layout()
    made = make.generator(arch, layout, coordinates=coordinates)
    latent, condition = make.inputs(made)
    parameters = {name: torch.from_numpy(t.real.astype(np.float32)) for name, t in made.tensors.items()}
    z, c = (
        torch.from_numpy(x.astype(np.float32))[None] * 2.0**e
        for x, e in ((latent, LATENT_EXPONENT), (condition, CONDITION_EXPONENT))
    )
    with torch.no_grad():
        drawn = MODULES[arch].draw(layout, parameters, z, c)
    rows = factor_rows(predict(made, layout, latent, condition).factors)
    deviations = [
        np.ldexp(slot - mean.real, -exponent)
        for slot, mean, exponent in zip(rows, made.means, made.slot_exponents, strict=True)
    ]
    blocks = MODULES[arch].blocks_of(layout, [deviations])
    signal = float(torch.cat([block.flatten() for block in drawn]).abs().max())
    assert signal > 0.05
    for block, other in zip(drawn, blocks, strict=True):
        assert float((block - other).abs().max()) < 0.02 * max(signal, 1)


def test_the_grid_numbers_every_row(make: ModuleType) -> None:
    layout = make.layout(((10, 2, 12), (6, 3, 12), (10, 2, 12)))
    grid = grid_of(layout)
    assert grid.layer_count == 2
    assert sorted(slot for kind in grid.kinds for slot in kind.slots) == list(range(6))
    assert sum(len(kind.rows) for kind in grid.kinds) == 2 * (2 + 3 + 2)
    assert grid.row_count == 2 * (2 + 3)
    for kind in grid.kinds:
        assert kind.rows.max() < grid.row_count


def decode_golden_files(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DECODE_SCRIPT, str(GOLDEN)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize("threads", ["1", "2"])
def test_decoding_is_the_same_for_any_number_of_threads(threads: str) -> None:
    ran = decode_golden_files(OPENBLAS_NUM_THREADS=threads, OMP_NUM_THREADS=threads)
    assert ran.stdout == "same\n", ran.stderr


@pytest.mark.parametrize("core", ["Prescott", "Nehalem", "Haswell", "Zen", "SkylakeX"])
def test_decoding_is_the_same_for_any_processor(core: str) -> None:
    ran = decode_golden_files(OPENBLAS_CORETYPE=core)
    if ran.returncode < 0:
        pytest.skip(f"this processor cannot run the kernels for {core}")
    assert ran.stdout == "same\n", ran.stderr
