"""Synthetic adapters, and the benchmark of an 8B model's layout at a size that takes seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

MODULES = tuple(f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in "qv")
COUNT = 6


@pytest.fixture
def folder(make_adapter: Callable[..., Path]) -> Path:
    """A few adapters of rank 2 that share their random A."""
    for index in range(COUNT):
        shared, own = np.random.default_rng(0), np.random.default_rng(1 + index)
        tensors = {}
        for module in MODULES:
            key = f"base_model.model.{module}.lora_"
            a = shared.normal(size=(2, 32)) + 0.2 * own.normal(size=(2, 32))
            b = (0.5 * shared.normal(size=(34, 2)) + own.normal(size=(34, 2))) * [1, 0.3]
            tensors |= {f"{key}A.weight": a.astype(np.float32), f"{key}B.weight": b.astype(np.float32)}
        path = make_adapter(f"task-{index}", modules=MODULES, width=32, tensors=tensors)
    return path.parent


def test_the_benchmark_runs_and_goes_on(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import llama8b

    output = tmp_path / "out.json"
    arguments = ["--size", "smoke", "--spectra", str(folder), "--hidden", "16", "--adapters", "50"]
    arguments += ["--json", str(output), "--scratch", str(tmp_path)]
    llama8b.main(arguments)
    said = capsys.readouterr().out
    rows = json.loads(output.read_text())["rows"]
    assert list(rows) == ["spectra", "plan 4", "plan 8", "tables", "ceiling all", "choice", "width 16", "ceiling 16"]
    tables, network = rows["tables"], rows["width 16"]
    total_mb = 50 * tables["mean_code_bytes"] / 1e6 + tables["mean_file_bytes"] / 1e6
    assert f"  {total_mb:.1f}  " in next(line for line in said.splitlines() if line.startswith("mean "))
    assert rows["plan 8"]["slots_bytes"] == 8 * 4 * tables["weights"]
    assert rows["plan 8"]["own_bytes"] > 0
    assert len(network["step_s"]) == 1
    assert network["decode_s"] > 0
    assert network["file_bytes"] > tables["mean_file_bytes"]
    assert rows["ceiling all"]["code_bytes"] <= rows["ceiling 16"]["code_bytes"]
    assert "Within 283000000 bytes" in said
    llama8b.main([*arguments, "--adapters", "100"])  # nothing is measured anew
    assert "measuring" not in capsys.readouterr().err


def test_the_largest_network_is_the_widest_that_is_read_back(folder: Path, tmp_path: Path) -> None:
    import llama8b

    from lorareg.compress.generators.generator import MAX_WEIGHTS

    bench = llama8b.Bench([path for path in sorted(folder.iterdir())], llama8b.SIZES["smoke"], 0, tmp_path)
    width = bench.largest_width()
    assert bench._weights(width) <= MAX_WEIGHTS < bench._weights(width + 16)


def test_synthetic_adapters_have_the_spectra_they_are_made_from() -> None:
    from synthetic import KindSpectra, Spectra, Synthesiser, llama_layout, measure_spectra

    kinds = {
        "q_proj": KindSpectra([0.8, 0.2], [0.7, 0.3], [0.75, 0.25], 0.9, 0.3, [0.3, 0.3]),
        "v_proj": KindSpectra([0.9, 0.1], [0.85, 0.15], [0.6, 0.4], 0.85, 0.4, [0.1, 0.3]),
    }
    wanted = Spectra(kinds, [0.1] * 16, [0.05] * 16, 0.1, 30)
    layout = llama_layout(2, 256, 128, 2)
    made = Synthesiser(wanted, layout, 3)
    found = measure_spectra([made.original(index) for index in range(24)])
    for name, kind in kinds.items():
        assert found.kinds[name].singular == pytest.approx(kind.singular, abs=0.06)
        assert found.kinds[name].mean_a == pytest.approx(kind.mean_a, abs=0.05)
        assert found.kinds[name].mean_b == pytest.approx(kind.mean_b, abs=0.15)
        assert found.kinds[name].layer_energy == pytest.approx(kind.layer_energy, abs=0.06)
    assert 0.02 < found.shared_a[0] < 0.2
    assert 0.03 < found.norm_spread < 0.2


def test_a_number_decides_an_adapter() -> None:
    from synthetic import KindSpectra, Spectra, Synthesiser, llama_layout

    kinds = {name: KindSpectra([1.0], [1.0], [1.0], 0.9, 0.3, [0.5]) for name in ("q_proj", "v_proj")}
    spectra = Spectra(kinds, [0.1] * 16, [0.05] * 16, 0.1, 30)
    layout = llama_layout(1, 16, 8, 1)
    first, again = (Synthesiser(spectra, layout, seed=5) for _ in range(2))
    assert first.original(7).data == again.original(7).data != first.original(8).data
    assert first.original(7).data != Synthesiser(spectra, layout, seed=6).original(7).data
    assert np.array_equal(first.condition(2), again.condition(2))
    with pytest.raises(SystemExit, match="of rank 1"):
        Synthesiser(spectra, llama_layout(1, 16, 8, 2), seed=0)


def test_memory_is_watched() -> None:
    from memory import Peak

    with Peak() as idle:
        pass
    with Peak() as busy:
        held = np.ones(1 << 24)
        held += 1
    assert busy.own_bytes >= idle.own_bytes + held.nbytes / 2
    assert busy.resident_bytes >= busy.own_bytes
