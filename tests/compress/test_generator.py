"""Generator files: round trips, hostile files, and what predict refuses."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lorareg.compress.generators.generator import DECODERS, pack_generator, predict, unpack_generator
from lorareg.registry.errors import InvalidContainerError, LayoutMismatchError, LoraregError, NewerFormatError

ARCHITECTURES = sorted(DECODERS)
START = struct.Struct("<4sB3xI")


def edited(file: bytes, make: ModuleType, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The file with another header and a seal that fits."""
    _, _, length = START.unpack_from(file)
    header = json.loads(file[START.size : START.size + length])
    changed = change(header)
    text = json.dumps(header if changed is None else changed).encode()
    return bytes(make.reseal(START.pack(b"LORG", 1, len(text)) + text + file[START.size + length :]))


@pytest.fixture(scope="module")
def slots_file(make: ModuleType) -> bytes:
    layout = make.layout()
    return pack_generator(make.generator("slots", layout), layout)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_generator_file_gives_the_generator_back(arch: str, make: ModuleType) -> None:
    layout = make.layout()
    made = make.generator(arch, layout)
    file = pack_generator(made, layout)
    back = unpack_generator(file, layout)
    assert back.header(layout) == made.header(layout)
    for name, tensor in made.tensors.items():
        np.testing.assert_array_equal(back.tensors[name].values, tensor.values)
    for mean, other in zip(back.means, made.means, strict=True):
        np.testing.assert_array_equal(mean.values, other.values)
    assert pack_generator(back, layout) == file


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_generator_draws_the_layout(arch: str, make: ModuleType) -> None:
    layout = make.layout()
    made = make.generator(arch, layout)
    prediction = predict(made, layout, *make.inputs(made))
    for (a, b), module in zip(
        zip(layout.slots[0::2], layout.slots[1::2], strict=True), prediction.modules, strict=True
    ):
        assert (module.a.shape, module.b.shape) == (a.shape, b.shape)
        for values in (module.a, module.b):
            assert np.array_equal(values, np.rint(values))
            assert np.abs(values).max() <= 2**30
    if arch != "mean":
        other = predict(made, layout, *make.inputs(made, seed=9))
        assert any(not np.array_equal(x.a, y.a) for x, y in zip(prediction.modules, other.modules, strict=True))


def test_inputs_of_another_size_are_refused(make: ModuleType) -> None:
    layout = make.layout()
    made = make.generator("slots", layout)
    latent, condition = make.inputs(made)
    with pytest.raises(LayoutMismatchError, match=r"latent of a code has layout 2 entries, but 3 entries is needed"):
        predict(made, layout, latent[:2], condition)
    with pytest.raises(LayoutMismatchError, match=r"condition of a code has layout 0 entries, but 5 entries"):
        predict(made, layout, latent, condition[:0])


# -- damaged and hostile files -------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["linear", "mean", "slots"])
def test_every_flipped_bit_and_truncation_is_a_typed_error(arch: str, make: ModuleType) -> None:
    layout = make.layout()
    file = pack_generator(make.generator(arch, layout), layout)
    for bit in range(8 * len(file)):
        with pytest.raises(LoraregError):
            unpack_generator(make.flip(file, bit), layout)
    for length in range(len(file)):
        with pytest.raises(InvalidContainerError):
            unpack_generator(file[:length], layout)


def _unpack_or_refuse(file: bytes, layout: Any, make: ModuleType) -> None:
    try:
        made = unpack_generator(file, layout)
    except LoraregError:
        return
    prediction = predict(made, layout, *make.inputs(made))
    assert all(np.isfinite(f.a).all() and np.isfinite(f.b).all() for f in prediction.factors)


@pytest.mark.parametrize("arch", ["linear", "mean", "slots"])
def test_flipped_bits_under_a_valid_seal_load_or_are_refused(arch: str, make: ModuleType) -> None:
    layout = make.layout(((4, 1, 5), (3, 2, 2)))
    file = pack_generator(make.generator(arch, layout, latent=2, condition=2), layout)
    for bit in range(8 * (len(file) - make.SEAL_BYTES)):
        _unpack_or_refuse(make.reseal(make.flip(file, bit)), layout, make)


def test_flipped_bits_in_the_paper_architecture_load_or_are_refused(make: ModuleType) -> None:
    layout = make.layout()
    file = pack_generator(make.generator("conv1d", layout), layout)
    random = np.random.default_rng(0)
    for bit in random.integers(0, 8 * (len(file) - make.SEAL_BYTES), 20):
        _unpack_or_refuse(make.reseal(make.flip(file, int(bit))), layout, make)


def test_truncations_under_a_valid_seal_load_or_are_refused(slots_file: bytes, make: ModuleType) -> None:
    layout = make.layout()
    for length in range(0, len(slots_file), 5):
        _unpack_or_refuse(make.reseal(slots_file[:length] + bytes(8)), layout, make)


HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list for a header": lambda h: [h],
    "a number for a header": lambda h: 7,
    "no arch": lambda h: h.pop("arch") and None,
    "arch a list": lambda h: h.update(arch=["slots"]),
    "layout a number": lambda h: h.update(layout=7),
    "huge latent": lambda h: h.update(latent_size=1 << 40),
    "negative latent": lambda h: h.update(latent_size=-1),
    "infinite latent": lambda h: h.update(latent_size=float("inf")),
    "latent not a number": lambda h: h.update(latent_size=float("nan")),
    "latent null": lambda h: h.update(latent_size=None),
    "latent a list": lambda h: h.update(latent_size=[1]),
    "negative condition": lambda h: h.update(condition_size=-5),
    "config a list": lambda h: h.update(config=[1, 2]),
    "config null": lambda h: h.update(config=None),
    "config empty": lambda h: h.update(config={}),
    "config nested": lambda h: h.update(config={"hidden": {}}),
    "huge hidden": lambda h: h["config"].update(hidden=1 << 62),
    "large hidden": lambda h: h["config"].update(hidden=1 << 16, inner=1 << 16),
    "large inputs": lambda h: h.update(
        latent_size=4096, condition_size=1 << 16, config={"hidden": 1 << 16, "inner": 1}
    ),
    "no inputs": lambda h: h.update(latent_size=0, condition_size=0),
    "zero hidden": lambda h: h["config"].update(hidden=0),
    "zero inner": lambda h: h["config"].update(inner=0),
    "negative hidden": lambda h: h["config"].update(hidden=-4),
    "exponents a number": lambda h: h.update(tensor_exponents=3),
    "too few exponents": lambda h: h.update(tensor_exponents=[0]),
    "too many exponents": lambda h: h.update(tensor_exponents=[0] * 99),
    "huge exponent": lambda h: h.update(tensor_exponents=[10**9] * len(h["tensor_exponents"])),
    "exponent a float": lambda h: h.update(mean_exponents=[0.5] * len(h["mean_exponents"])),
    "too few means": lambda h: h.update(mean_exponents=[-6]),
    "too many means": lambda h: h.update(mean_exponents=[-6] * 99),
    "too few slots": lambda h: h.update(slot_exponents=[-3]),
    "slots far from means": lambda h: h.update(slot_exponents=[40] * len(h["slot_exponents"])),
    "small means": lambda h: h.update(whole_means=False),
    "unknown coordinates": lambda h: h.update(coordinates="polar"),
    "coordinates a list": lambda h: h.update(coordinates=[]),
    "unknown prior": lambda h: h["config"].update(prior=7),
    "prior without tensors": lambda h: h["config"].update(prior=1),
    "no prior": lambda h: h["config"].update(prior=0),
    "encoder a number": lambda h: h.update(encoder=3),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_header_that_describes_no_generator_is_refused(name: str, slots_file: bytes, make: ModuleType) -> None:
    layout = make.layout()
    file = edited(slots_file, make, HOSTILE[name])
    tracemalloc.start()
    try:
        with pytest.raises(InvalidContainerError, match="Generator file cannot be decoded"):
            unpack_generator(file, layout)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_messages_name_what_was_found(slots_file: bytes, make: ModuleType) -> None:
    layout = make.layout()
    for change, message in (
        (lambda h: h.update(latent_size=5000), "sizes 5000, 5"),
        (lambda h: h.update(coordinates="polar"), "coordinates 'polar' are unknown"),
        (lambda h: h.update(slot_exponents=[40] * 8), "exponents -6 and 40 are too far apart"),
        (lambda h: h.update(mean_exponents=[77] * 8), r"exponent 77 is outside -60\.\.60"),
        (lambda h: h["config"].update(prior=7), "prior 7 is none that is known"),
        (lambda h: h.update(arch=["slots"]), "layout and architecture are no texts"),
    ):
        with pytest.raises(InvalidContainerError, match=message):
            unpack_generator(edited(slots_file, make, change), layout)
    with pytest.raises(InvalidContainerError, match="starts with b'PK12'"):
        unpack_generator(b"PK12" + slots_file[4:], layout)
    with pytest.raises(InvalidContainerError, match="seal does not match"):
        unpack_generator(slots_file[:-1] + bytes([slots_file[-1] ^ 1]), layout)
    with pytest.raises(NewerFormatError, match="format 9; this lorareg reads up to 1"):
        unpack_generator(slots_file[:4] + b"\x09" + slots_file[5:], layout)
    with pytest.raises(NewerFormatError, match="architecture 'transformer'; this lorareg reads up to conv1d, linear"):
        unpack_generator(edited(slots_file, make, lambda h: h.update(arch="transformer")), layout)


def test_another_layout_is_refused(slots_file: bytes, make: ModuleType) -> None:
    other = make.layout(scale=3.0)
    with pytest.raises(LayoutMismatchError, match=f"but {other.digest[:16]} is needed"):
        unpack_generator(slots_file, other)


def test_a_header_length_beyond_the_file_is_refused(slots_file: bytes, make: ModuleType) -> None:
    layout = make.layout()
    for length in (2**32 - 1, len(slots_file), 0):
        with pytest.raises(InvalidContainerError, match="header cannot be read"):
            unpack_generator(make.reseal(START.pack(b"LORG", 1, length) + slots_file[START.size :]), layout)


def test_a_deeply_nested_header_is_refused(slots_file: bytes, make: ModuleType) -> None:
    text = b"[" * 200_000
    with pytest.raises(InvalidContainerError, match="header cannot be read"):
        unpack_generator(make.reseal(START.pack(b"LORG", 1, len(text)) + text + bytes(8)), make.layout())


def test_left_over_symbols_are_refused(slots_file: bytes, make: ModuleType) -> None:
    noise = np.random.default_rng(0).bytes(400)
    with pytest.raises(InvalidContainerError, match="symbol"):
        unpack_generator(make.reseal(slots_file[:-8] + noise + bytes(8)), make.layout())
