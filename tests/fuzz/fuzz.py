"""Coverage-guided fuzzing of everything that reads bytes from strangers (atheris, which is libFuzzer for Python).

    pip install -e '.[fuzz]'
    python tests/fuzz/fuzz.py TARGET [--runs N] [--corpus DIR]

A target may give a value or the error it promises; anything else, a hang of 5 seconds or 4 GB of memory stops the run
with the input in a file. Seeds are the golden files. Codes and generators are sealed again after they were changed: a
seal is no secret.

| target | reads |
|---|---|
| header | the JSON of a safetensors header |
| config | adapter_config.json |
| single | a lone file of diffusers or kohya-ss: header, alphas, layout |
| code | a code file of each codec, decoded |
| lent | a code file decoded against the generator of another layout |
| generator | a generator file of each architecture, and what it draws |
| extras | what an adapter has beside factors |
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lorareg"]):
    from lorareg.compress.codec.codecs import LoadedGenerator, decode
    from lorareg.compress.codec.container import NO_GENERATOR, Code, pack_code, unpack_code
    from lorareg.compress.codec.extras import Extras, pack_extras, unpack_extras
    from lorareg.compress.generators.generator import predict, unpack_generator
    from lorareg.registry.errors import LoraregError
    from lorareg.registry.peft_config import parse_config
    from lorareg.registry.peft_layout import peft_layout
    from lorareg.registry.safetensors_header import Header, parse_header
    from lorareg.registry.single_file import format_of, single_file_layout
    from lorareg.registry.types import ExtraTensor, Layout

import numpy as np

GOLDEN = Path(__file__).parents[1] / "compress" / "golden"
INDEX = json.loads((GOLDEN / "index.json").read_text())
HERE = Path("fuzzed")
EXTRAS = Layout((), (), (ExtraTensor("a", "F32", (3,)), ExtraTensor("b", "BF16", (2, 2)), ExtraTensor("c", "I64", ())))
PATHS = ("extras/metadata", "extras/small", "extras/tensor-00000")

Target = tuple[Callable[[bytes], object], Callable[[], Sequence[bytes]], tuple[type[Exception], ...]]


def read_header(data: bytes) -> None:
    """The first two bytes say how long the file's body is."""
    parse_header.__wrapped__(data[2:], 8 + len(data[2:]) + int.from_bytes(data[:2], "little"))


def header_seeds() -> list[bytes]:
    seeds = []
    for name in ("lossless-1-F32", "lossless-2-mixed"):
        layout, code = Layout.from_json(INDEX[name]["layout"]), (GOLDEN / f"{name}.code").read_bytes()
        output = decode(code, layout, None, name)
        length = int.from_bytes(output[:8], "little")
        seeds.append((len(output) - 8 - length).to_bytes(2, "little") + output[8 : 8 + length])
    return seeds


def read_config(data: bytes) -> None:
    """A config, and the layout it gives to the tensors of a header."""
    _, lora = parse_config(HERE, data)
    peft_layout.__wrapped__(_header(["base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"]), lora)


def config_seeds() -> list[bytes]:
    plain = {"peft_type": "LORA", "base_model_name_or_path": "m", "r": 2, "lora_alpha": 4, "use_rslora": True}
    patterns = {"rank_pattern": {"q": 2}, "alpha_pattern": {"layers\\.[0-9]+.*": 3}, "modules_to_save": ["head"]}
    return [json.dumps(config).encode() for config in (plain, {**plain, **patterns}, {**plain, "peft_type": "IA3"})]


def read_single(data: bytes) -> None:
    """A header of a lone file; alphas are taken for 1."""
    header = parse_header.__wrapped__(data[2:], 8 + len(data[2:]) + int.from_bytes(data[:2], "little"))
    form = format_of(header)
    if form is not None:
        single_file_layout(HERE, header, form, {})


def single_seeds() -> list[bytes]:
    kohya = ["lora_unet_a.lora_down.weight", "lora_unet_a.lora_up.weight", "lora_unet_a.alpha"]
    diffusers = ["unet.a.lora_A.weight", "unet.a.lora_B.weight"]
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 4})}
    return [_header_bytes(kohya, {}), _header_bytes(diffusers, metadata)]


def read_code(data: bytes) -> None:
    """The first byte chooses the golden file whose payload is replaced."""
    name = sorted(INDEX)[data[0] % len(INDEX)] if data else sorted(INDEX)[0]
    layout, loaded, code = _golden(name)
    generator = loaded.digest if loaded else NO_GENERATOR
    decode(pack_code(Code(code.codec, layout.digest, generator, data[1:])), layout, loaded, name)


def code_seeds() -> list[bytes]:
    return [bytes([index]) + _golden(name)[2].payload for index, name in enumerate(sorted(INDEX))]


def read_lent(data: bytes) -> None:
    """As `read_code`, for an adapter that has one module less than the layout its generator was made for."""
    name = sorted(INDEX)[data[0] % len(INDEX)] if data else sorted(INDEX)[0]
    layout, loaded, code = _golden(name)
    other = Layout(layout.slots[2:], layout.scales[1:])
    generator = loaded.digest if loaded else NO_GENERATOR
    decode(pack_code(Code(code.codec, other.digest, generator, data[1:])), other, loaded, name)


def read_generator(data: bytes) -> None:
    """What precedes a generator's seal; what loads must draw."""
    layout = _golden("predicted-2-mean")[0]
    generator = unpack_generator(data + hashlib.sha256(data).digest()[:8], layout, "fuzzed")
    inputs = (np.zeros(generator.latent_size, np.int8), np.zeros(generator.condition_size, np.int8))
    predict(generator, layout, *inputs)


def generator_seeds() -> list[bytes]:
    return [path.read_bytes()[:-8] for path in GOLDEN.glob("*.generator") if path.stat().st_size < 2000]


def read_extras(data: bytes) -> None:
    """The first four bytes say where the second and third file begin."""
    first, second = sorted((int.from_bytes(data[:2], "little"), int.from_bytes(data[2:4], "little")))
    parts = (data[4 : 4 + first], data[4 + first : 4 + second], data[4 + second :])
    unpack_extras({path: part for path, part in zip(PATHS, parts, strict=True) if part}, EXTRAS, "fuzzed")


def extras_seeds() -> list[bytes]:
    tensors = {"a": bytes(12), "b": bytes(range(8)), "c": bytes(8)}
    files = pack_extras(Extras(tensors, {"by": "hand"}), EXTRAS)
    metadata, small = files["extras/metadata"], files["extras/small"]
    begins = len(metadata).to_bytes(2, "little") + (len(metadata) + len(small)).to_bytes(2, "little")
    return [begins + metadata + small]


TARGETS: dict[str, Target] = {
    "header": (read_header, header_seeds, (ValueError,)),
    "config": (read_config, config_seeds, (LoraregError,)),
    "single": (read_single, single_seeds, (LoraregError, ValueError)),
    "code": (read_code, code_seeds, (LoraregError,)),
    "lent": (read_lent, code_seeds, (LoraregError,)),
    "generator": (read_generator, generator_seeds, (LoraregError,)),
    "extras": (read_extras, extras_seeds, (LoraregError,)),
}

_LOADED: dict[str, tuple[Layout, LoadedGenerator | None, Code]] = {}


def _golden(name: str) -> tuple[Layout, LoadedGenerator | None, Code]:
    if name not in _LOADED:
        layout, loaded = Layout.from_json(INDEX[name]["layout"]), None
        if INDEX[name]["generator"]:
            file = (GOLDEN / INDEX[name]["generator"]).read_bytes()
            loaded = LoadedGenerator.from_bytes(file, hashlib.sha256(file).hexdigest(), layout)
        _LOADED[name] = (layout, loaded, unpack_code((GOLDEN / f"{name}.code").read_bytes()))
    return _LOADED[name]


def _header_bytes(names: Sequence[str], metadata: dict[str, str]) -> bytes:
    fields: dict[str, object] = {"__metadata__": metadata}
    for index, name in enumerate(names):
        shape = [] if name.endswith("alpha") else [2, 2]
        size = 4 * (1 if name.endswith("alpha") else 4)
        fields[name] = {"dtype": "F32", "shape": shape, "data_offsets": [16 * index, 16 * index + size]}
    body_bytes = 16 * len(names) - (12 if names[-1].endswith("alpha") else 0)
    return body_bytes.to_bytes(2, "little") + json.dumps(fields).encode()


def _header(names: Sequence[str]) -> Header:
    data = _header_bytes(names, {})
    return parse_header(data[2:], 8 + len(data[2:]) + int.from_bytes(data[:2], "little"))


def main() -> None:
    """Fuzz one target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--corpus", type=Path, help="keep what was found here, and go on from it")
    arguments = parser.parse_args()
    read, seeds, promised = TARGETS[arguments.target]

    def one_input(data: bytes) -> None:
        try:
            read(data)
        except promised:
            return

    with tempfile.TemporaryDirectory() as temporary:
        corpus = arguments.corpus or Path(temporary)
        corpus.mkdir(parents=True, exist_ok=True)
        for index, seed in enumerate(seeds()):
            (corpus / f"seed-{index}").write_bytes(seed)
        limits = ["-timeout=5", "-rss_limit_mb=4096", "-max_len=4096", "-print_final_stats=1"]
        limits.append(f"-runs={arguments.runs}")
        atheris.Setup([sys.argv[0], *limits, str(corpus)], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
