"""The conformance kit: what every codec promises, for each number in CODECS."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import zstandard

from lorareg.compress.codec import residual
from lorareg.compress.codec.codecs import CODECS, GENERATED, LOSSLESS, PREDICTED, RESIDUAL, LoadedGenerator, decode
from lorareg.compress.codec.container import NO_GENERATOR, Code, pack_code, unpack_code
from lorareg.compress.codec.encode import Draft, Encoded, Original, encode
from lorareg.compress.codec.extras import Extras, attach_extras
from lorareg.compress.codec.planes import pack_frame, unpack_frame
from lorareg.compress.factors.fidelity import measure
from lorareg.compress.factors.weights import read_weights, write_weights
from lorareg.registry.errors import (
    InvalidContainerError,
    LayoutMismatchError,
    LoraregError,
    NewerFormatError,
)
from lorareg.registry.safetensors_header import MAX_HEADER_BYTES
from lorareg.registry.types import ExtraTensor, Layout, sha256_hex

WHAT = "Adapter 'task@1'"
MOST_MEMORY_BYTES = 8 << 20  # codes of a few hundred bytes need a small part of it
WRONG_SEEDS = 101


GOLDEN = Path(__file__).parent / "golden"
WRITTEN = (LOSSLESS, GENERATED, RESIDUAL, PREDICTED)


@dataclass(frozen=True)
class Case:
    """One adapter encoded with one codec."""

    number: int
    original: Original
    draft: Draft | None
    tolerance: float
    encoded: Encoded

    @property
    def loaded(self) -> LoadedGenerator | None:
        return self.draft.loaded if self.encoded.uses_generator and self.draft else None

    def decode(self, code: bytes) -> bytes:
        return decode(code, self.original.layout, self.loaded, WHAT)


def build_case(number: int, make: ModuleType) -> Case:
    if number not in WRITTEN:
        return kept_case(number, make)
    layout = make.layout()
    draft, tolerance = None, 0.2
    if number == LOSSLESS:
        original, tolerance = make.original(layout), 0.0
    elif number == RESIDUAL:
        original = make.original(layout)
    else:
        made = make.loaded(layout, make.generator("slots", layout, coordinates="shared"))
        original, draft = make.near_prediction(layout, made, seed=1, distance=0.3 if number == PREDICTED else 0.0)
    encoded = encode(original, draft, tolerance)
    assert encoded.codec is CODECS[number]
    return Case(number, original, draft, tolerance, encoded)


def kept_case(number: int, make: ModuleType) -> Case:
    """A golden file of a codec that is written no more, and the adapter that `golden/make.py` made it of."""
    layout = make.layout()
    name = CODECS[number].name
    if name == "residual-1":
        original, draft, file = make.original(layout), None, "residual-1-F32.code"
    else:
        data = (GOLDEN / "slots.generator").read_bytes()
        loaded = LoadedGenerator.from_bytes(data, sha256_hex(data), layout)
        (original, draft), file = make.near_prediction(layout, loaded, 1, 0.3), "predicted-1-slots.code"
    code = (GOLDEN / file).read_bytes()
    output = decode(code, layout, draft.loaded if draft else None, WHAT)
    fidelity = measure(layout, original.factors, read_weights(output, layout))
    return Case(number, original, draft, 0.1, Encoded(CODECS[number], code, output, fidelity, None, draft is not None))


@pytest.fixture(scope="module", params=sorted(CODECS), ids=lambda number: CODECS[number].name)
def case(request: pytest.FixtureRequest, make: ModuleType) -> Case:
    """Each codec in turn."""
    return build_case(request.param, make)


def test_a_decoded_code_holds_its_tolerance(case: Case) -> None:
    assert case.decode(case.encoded.code) == case.encoded.output
    restored = read_weights(case.encoded.output, case.original.layout)
    original = np.concatenate([(f.b @ f.a).ravel() for f in case.original.factors])
    decoded = np.concatenate([(f.b @ f.a).ravel() for f in restored])
    error = float(np.linalg.norm(original - decoded) / np.linalg.norm(original))
    assert error <= case.tolerance
    assert case.encoded.fidelity.relative_error == pytest.approx(error, abs=1e-6)


@pytest.mark.parametrize("number", WRITTEN, ids=lambda number: CODECS[number].name)
def test_encoding_is_deterministic(number: int, make: ModuleType) -> None:
    case = build_case(number, make)
    again = encode(case.original, case.draft, case.tolerance)
    assert (again.code, again.output) == (case.encoded.code, case.encoded.output)


def test_lossy_codes_are_smaller_than_lossless(case: Case) -> None:
    lossless = encode(case.original, None, 0.0)
    assert lossless.output == case.original.data
    if case.number != LOSSLESS:
        assert len(case.encoded.code) < len(lossless.code)


def test_another_layout_is_refused(case: Case, make: ModuleType) -> None:
    other = make.layout(scale=3.0)
    with pytest.raises(LayoutMismatchError, match=f"layout {other.digest[:16]} is needed"):
        decode(case.encoded.code, other, case.loaded, WHAT)


def test_another_generator_is_refused(case: Case, make: ModuleType) -> None:
    layout = case.original.layout
    other = make.loaded(layout, make.generator("slots", layout, seed=WRONG_SEEDS))
    with pytest.raises(LayoutMismatchError, match=f"generator {other.digest[:16]} is needed"):
        decode(case.encoded.code, layout, other, WHAT)


def test_a_missing_generator_is_refused(case: Case) -> None:
    layout = case.original.layout
    if case.loaded is None:
        assert decode(case.encoded.code, layout, None, WHAT) == case.encoded.output
        return
    with pytest.raises(LayoutMismatchError, match=f"generator {NO_GENERATOR[:16]} is needed"):
        decode(case.encoded.code, layout, None, WHAT)
    nameless = pack_code(
        replace(unpack_code(case.encoded.code), layout_digest=layout.digest, generator_digest="00" * 8)
    )
    with pytest.raises(InvalidContainerError, match="made against a generator and names none"):
        decode(nameless, layout, None, WHAT)


def test_every_truncation_is_a_typed_error(case: Case) -> None:
    code = case.encoded.code
    for length in range(len(code)):
        with pytest.raises(InvalidContainerError, match=WHAT):
            case.decode(code[:length])


def test_bytes_after_the_end_are_a_typed_error(case: Case) -> None:
    with pytest.raises(InvalidContainerError, match="seal"):
        case.decode(case.encoded.code + b"\0")


def test_every_flipped_bit_is_a_typed_error(case: Case, make: ModuleType) -> None:
    code = case.encoded.code
    for bit in range(8 * len(code)):
        with pytest.raises(LoraregError):
            case.decode(make.flip(code, bit))


def _decode_or_refuse(case: Case, code: bytes) -> bool:
    """Decode hostile bytes; True where they gave an adapter of the right size. Anything but a LoraregError fails."""
    try:
        output = case.decode(code)
    except LoraregError:
        return False
    assert len(output) == len(case.original.data)
    if case.number != LOSSLESS:  # which gives back any head it is given; its digest is in the encoding's row
        assert all(
            np.isfinite(f.a).all() and np.isfinite(f.b).all() for f in read_weights(output, case.original.layout)
        )
    return True


def test_flipped_bits_under_a_valid_seal_decode_or_are_refused(case: Case, make: ModuleType) -> None:
    code = case.encoded.code
    for bit in range(8 * (len(code) - 8)):
        _decode_or_refuse(case, make.reseal(make.flip(code, bit)))


def test_damage_under_a_valid_seal_takes_no_more_memory(case: Case, make: ModuleType) -> None:
    code = case.encoded.code
    tracemalloc.start()
    try:
        for bit in range(0, 8 * (len(code) - 8), 11):
            _decode_or_refuse(case, make.reseal(make.flip(code, bit)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MOST_MEMORY_BYTES


def test_truncations_under_a_valid_seal_decode_or_are_refused(case: Case, make: ModuleType) -> None:
    code = case.encoded.code
    for length in range(len(code) - 8):
        _decode_or_refuse(case, make.reseal(code[:length] + bytes(8)))


def test_random_payloads_under_a_valid_seal_decode_or_are_refused(case: Case, make: ModuleType) -> None:
    random = np.random.default_rng(0)
    header, payload = case.encoded.code[:24], case.encoded.code[24:-8]
    for _ in range(300):
        kept = int(random.integers(0, len(payload)))
        noise = random.bytes(4 * int(random.integers(0, 30)) + len(payload) - kept)
        _decode_or_refuse(case, make.reseal(header + payload[:kept] + noise + bytes(8)))


# -- messages ------------------------------------------------------------------------------------


def _packed(case: Case, payload: bytes, number: int | None = None) -> bytes:
    generator = case.loaded.digest if case.loaded else NO_GENERATOR
    return pack_code(Code(number or case.number, case.original.layout.digest, generator, payload))


def test_a_later_codec_asks_for_an_upgrade(case: Case) -> None:
    with pytest.raises(NewerFormatError, match=f"codec 99; this lorareg reads up to codec {max(CODECS)}"):
        case.decode(_packed(case, b"", 99))


def test_a_later_container_asks_for_an_upgrade(case: Case, make: ModuleType) -> None:
    code = bytearray(case.encoded.code)
    code[4] = 2
    with pytest.raises(NewerFormatError, match="format 2; this lorareg reads up to 1"):
        case.decode(make.reseal(bytes(code)))


def test_what_is_no_code_is_named(case: Case) -> None:
    with pytest.raises(InvalidContainerError, match="it has 3 bytes"):
        case.decode(b"abc")
    with pytest.raises(InvalidContainerError, match="starts with b'PK12'"):
        case.decode(b"PK12" + case.encoded.code[4:])


def test_reserved_bytes_must_be_zero(case: Case, make: ModuleType) -> None:
    code = bytearray(case.encoded.code)
    code[6] = 1
    with pytest.raises(InvalidContainerError, match="seal"):
        case.decode(make.reseal(bytes(code)))


def test_a_code_file_unpacks_to_what_was_packed() -> None:
    code = Code(7, "ab" * 32, "cd" * 32, b"payload")
    assert unpack_code(pack_code(code)) == Code(7, "ab" * 8, "cd" * 8, b"payload")


def test_a_generated_code_ends_with_its_condition(make: ModuleType) -> None:
    case = build_case(GENERATED, make)
    payload = unpack_code(case.encoded.code).payload
    with pytest.raises(InvalidContainerError, match="2 bytes follow its latent and condition"):
        case.decode(_packed(case, payload + b"\0\0"))
    with pytest.raises(InvalidContainerError, match="ends within its latent and condition"):
        case.decode(_packed(case, payload[:-1]))


@pytest.mark.parametrize(("number", "prefix_bytes"), [(2, 4), (RESIDUAL, 6)])
def test_residual_numbers_out_of_range_are_named(number: int, prefix_bytes: int, make: ModuleType) -> None:
    case = build_case(number, make)
    prefix = bytes(prefix_bytes)
    for start in (b"\x30" + prefix[1:], prefix[:-1]):
        with pytest.raises(InvalidContainerError, match="table numbers that do not exist"):
            case.decode(_packed(case, start))
    with pytest.raises(InvalidContainerError, match="has 3 bytes, not whole words"):
        case.decode(_packed(case, prefix + b"abc"))


def test_a_weight_beyond_its_dtype_is_a_typed_error(make: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    case = build_case(RESIDUAL, make)
    monkeypatch.setattr(residual, "restore", lambda *_: make.factors(case.original.layout, size=1e300))
    with pytest.raises(InvalidContainerError, match="a weight does not fit F32"):
        case.decode(case.encoded.code)


# -- lossless ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "mixed"])
def test_lossless_gives_every_dtype_back(dtype: str, make: ModuleType) -> None:
    layout = make.layout(dtype=["F32", "F16"] * 4 if dtype == "mixed" else dtype)
    original = make.original(layout)
    encoded = encode(original, None, 0.0)
    assert decode(encoded.code, layout, None, WHAT) == original.data
    assert encoded.fidelity.exact


def test_lossless_keeps_what_is_no_factor(make: ModuleType) -> None:
    layout = make.layout()
    extras = (ExtraTensor("bias", "BF16", (3,)), ExtraTensor("count", "I64", ()), ExtraTensor("empty", "F32", (0, 2)))
    layout = Layout(layout.slots, layout.scales, extras)
    tensors = {"bias": b"\x01\x80\xff\x7e\x00\x00", "count": (7).to_bytes(8, "little"), "empty": b""}
    data = attach_extras(write_weights(layout, make.factors(layout)), layout, Extras(tensors, {"by": "a test"}))
    encoded = encode(Original(WHAT, lambda: data, layout), None, 0.0)
    assert decode(encoded.code, layout, None, WHAT) == data


def test_lossless_damage_is_named(make: ModuleType) -> None:
    case = build_case(LOSSLESS, make)
    payload = unpack_code(case.encoded.code).payload
    with pytest.raises(InvalidContainerError, match=r"a frame of .* bytes is cut short"):
        case.decode(_packed(case, payload[:-1]))
    with pytest.raises(InvalidContainerError, match="its payload is cut short"):
        case.decode(_packed(case, payload[:7]))
    with pytest.raises(InvalidContainerError, match="3 bytes are left over"):
        case.decode(_packed(case, payload + b"abc"))
    frame = payload.index(b"\x28\xb5\x2f\xfd")
    damaged = payload[: frame + 12] + b"\xff\xff" + payload[frame + 14 :]
    with pytest.raises(InvalidContainerError, match="zstd frame is damaged"):
        case.decode(_packed(case, damaged))


def test_lossless_head_is_held_to_the_layout(make: ModuleType) -> None:
    case = build_case(LOSSLESS, make)
    payload = unpack_code(case.encoded.code).payload
    head, tensors = unpack_frame(payload, None, WHAT, 1 << 20)
    slot = case.original.layout.slots[0]
    assert slot.key.encode() in head
    other = head.replace(slot.key.encode(), slot.key[:-1].encode() + b"!")
    with pytest.raises(InvalidContainerError, match="is not valid"):
        case.decode(_packed(case, pack_frame(other) + tensors))
    other = head.replace(slot.key.encode(), slot.key[:-1].encode() + b"X")
    with pytest.raises(InvalidContainerError, match="its head names other tensors than its layout"):
        case.decode(_packed(case, pack_frame(other) + tensors))
    with pytest.raises(InvalidContainerError, match="its head says another length than it has"):
        case.decode(_packed(case, pack_frame(b"\x01" + head[1:]) + tensors))


def test_lossless_head_bomb_is_refused_before_it_is_opened(make: ModuleType) -> None:
    case = build_case(LOSSLESS, make)
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(MAX_HEADER_BYTES + 9))
    with pytest.raises(InvalidContainerError, match="does not declare at most"):
        case.decode(_packed(case, len(bomb).to_bytes(8, "little") + bomb))


# -- the first lossless format -------------------------------------------------------------------


def test_damage_to_the_first_lossless_format_is_named() -> None:
    golden = Path(__file__).parent / "golden"
    layout = Layout.from_json(json.loads((golden / "index.json").read_text())["lossless-1-F32"]["layout"])
    code = unpack_code((golden / "lossless-1-F32.code").read_bytes())

    def decoded(payload: bytes) -> bytes:
        bound = replace(code, layout_digest=layout.digest, generator_digest=NO_GENERATOR, payload=payload)
        return decode(pack_code(bound), layout, None, WHAT)

    payload, body = code.payload, layout.body_bytes
    with pytest.raises(InvalidContainerError, match=f"announces {2**63} bytes where {body} belong"):
        decoded(payload[:9] + (2**63).to_bytes(8, "little") + payload[17:])
    with pytest.raises(InvalidContainerError, match="cut short"):
        decoded(payload[:10])
    with pytest.raises(InvalidContainerError, match="3 bytes are left over"):
        decoded(payload + b"abc")
    with pytest.raises(InvalidContainerError, match="declare the 7 bytes"):
        decoded(payload[:1] + (7).to_bytes(8, "little") + payload[9:])
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(1 << 20))
    head = payload[:1] + (1 << 28).to_bytes(8, "little") + payload[9:17]
    with pytest.raises(InvalidContainerError, match="announces"):
        decoded(head + len(bomb).to_bytes(8, "little") + bomb)
    frame = payload.index(b"\x28\xb5\x2f\xfd")
    with pytest.raises(InvalidContainerError, match="zstd frame is damaged"):
        decoded(payload[: frame + 12] + b"\xff\xff" + payload[frame + 14 :])
