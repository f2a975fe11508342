"""Reading and writing weights files."""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load

from lorareg.compress.factors.weights import Factors, read_weights, write_weights
from lorareg.registry.types import Layout, Slot

DTYPES = ("F32", "F16", "BF16")
LARGEST = {"F32": float(np.finfo(np.float32).max), "F16": 65504.0, "BF16": 3.3895313892515355e38}

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def one_slot(values: np.ndarray, dtype: str) -> tuple[Layout, list[Factors]]:
    """A layout whose A holds `values` and whose B is zero."""
    slots = (
        Slot("m", "A", (1, len(values)), dtype, "m.lora_A.weight"),
        Slot("m", "B", (1, 1), dtype, "m.lora_B.weight"),
    )
    return Layout(slots, (1.0,)), [Factors(b=np.zeros((1, 1)), a=values.astype(np.float64)[None])]


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_come_back_bit_for_bit(dtype: str, make: ModuleType) -> None:
    layout = make.layout(dtype=dtype)
    file = write_weights(layout, make.factors(layout))
    again = write_weights(layout, read_weights(file, layout))
    assert again == file


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_16_bit_pattern_comes_back(dtype: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint32)
    values = bits.astype(np.uint16).view(np.float16) if dtype == "F16" else (bits << 16).view(np.float32)
    layout, modules = one_slot(values[np.isfinite(values)], dtype)
    (back,) = read_weights(write_weights(layout, modules), layout)
    np.testing.assert_array_equal(back.a, modules[0].a)
    np.testing.assert_array_equal(np.signbit(back.a), np.signbit(modules[0].a))


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_the_safetensors_library_reads_the_same(dtype: str, make: ModuleType) -> None:
    layout = make.layout(dtype=dtype)
    modules = make.factors(layout)
    tensors = load(write_weights(layout, modules))
    narrow = {"F32": np.float32, "F16": np.float16}[dtype]
    wanted = [tensor for f in modules for tensor in (f.a, f.b)]
    assert list(tensors) != []
    for slot, tensor in zip(layout.slots, wanted, strict=True):
        assert tensors[slot.key].dtype == narrow
        np.testing.assert_array_equal(tensors[slot.key], tensor.astype(narrow))


@settings(max_examples=100, deadline=None)
@given(st.lists(floats, min_size=1, max_size=40))
def test_bf16_rounds_as_torch_does(values: list[float]) -> None:
    torch = pytest.importorskip("torch")
    layout, modules = one_slot(np.array(values), "BF16")
    rounded = torch.tensor(values, dtype=torch.float32).to(torch.bfloat16)
    if not torch.isfinite(rounded).all():
        with pytest.raises(OverflowError, match="does not fit BF16"):
            write_weights(layout, modules)
        return
    (back,) = read_weights(write_weights(layout, modules), layout)
    np.testing.assert_array_equal(back.a[0], rounded.double().numpy())


def test_bf16_files_load_in_torch(make: ModuleType) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load as load_torch

    layout = make.layout(dtype="BF16")
    modules = make.factors(layout)
    tensors = load_torch(write_weights(layout, modules))
    wanted = torch.from_numpy(modules[0].a).float().to(torch.bfloat16)
    assert torch.equal(tensors[layout.slots[0].key], wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_weight_fits_and_a_larger_one_does_not(dtype: str) -> None:
    layout, modules = one_slot(np.array([LARGEST[dtype], -LARGEST[dtype]]), dtype)
    (back,) = read_weights(write_weights(layout, modules), layout)
    assert back.a.tolist() == [[LARGEST[dtype], -LARGEST[dtype]]]
    layout, modules = one_slot(np.array([1.01 * LARGEST[dtype]]), dtype)
    with pytest.raises(OverflowError, match=f"a weight does not fit {dtype}"):
        write_weights(layout, modules)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_never_written(dtype: str, value: float) -> None:
    layout, modules = one_slot(np.array([value]), dtype)
    with pytest.raises(OverflowError, match=f"does not fit {dtype}"):
        write_weights(layout, modules)


def test_the_header_has_one_form(make: ModuleType) -> None:
    layout = make.layout()
    file = write_weights(layout, make.factors(layout))
    (size,) = struct.unpack_from("<Q", file)
    text = file[8 : 8 + size]
    assert (8 + size) % 8 == 0
    header = json.loads(text)
    assert header.pop("__metadata__") == {"format": "pt"}
    assert text.rstrip(b" ").decode() == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    offsets = [header[slot.key]["data_offsets"] for slot in layout.slots]
    assert offsets[0][0] == 0
    assert all(end == start for (_, end), (start, _) in pairwise(offsets))
    assert offsets[-1][1] == len(file) - 8 - size


def test_files_that_other_tools_wrote_are_read(tmp_path: Path, make: ModuleType) -> None:
    from safetensors.numpy import save

    layout = make.layout()
    modules = read_weights(write_weights(layout, make.factors(layout)), layout)
    tensors = {
        slot.key: tensor.astype(np.float32)
        for slot, tensor in zip(layout.slots, [t for f in modules for t in (f.a, f.b)], strict=True)
    }
    back = read_weights(save(dict(sorted(tensors.items(), reverse=True))), layout)
    for f, g in zip(modules, back, strict=True):
        np.testing.assert_array_equal(f.a, g.a)
        np.testing.assert_array_equal(f.b, g.b)
