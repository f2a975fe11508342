"""Makes the golden files beside it: run `python tests/compress/golden/make.py` from the repository's root.

Run it once for each new codec or architecture, never to make a failing test pass: the files stand
for what users have stored. Names that exist already are left alone. It can no longer make the files
of lossless-1, residual-1 and predicted-1, which are decoded for ever and written no more: never delete those.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorareg.compress.codec.codecs import decode
from lorareg.compress.codec.encode import Original, encode
from lorareg.compress.codec.extras import Extras, attach_extras
from lorareg.compress.factors.canonical import Coordinates
from lorareg.compress.factors.weights import write_weights
from lorareg.compress.generators.generator import pack_generator
from lorareg.registry.types import ExtraTensor, sha256_hex

HERE = Path(__file__).parent
GENERATORS: tuple[tuple[str, Coordinates], ...] = (
    ("mean", "shared"),
    ("slots", "shared"),
    ("conv1d", "raw"),
    ("linear", "shared"),
)


def load_builders() -> Any:
    """The makers of `builders.py`."""
    spec = importlib.util.spec_from_file_location("builders", HERE.parents[1] / "support" / "builders.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Folder:
    """The golden folder, with the index of what each file decodes to."""

    def __init__(self) -> None:
        self.index_path = HERE / "index.json"
        self.index: dict[str, Any] = json.loads(self.index_path.read_text()) if self.index_path.exists() else {}

    def add_code(self, name: str, code: bytes, layout: Any, loaded: Any, generator_file: str | None) -> None:
        if name in self.index:
            return
        output = decode(code, layout, loaded, name)
        (HERE / f"{name}.code").write_bytes(code)
        self.index[name] = {"layout": layout.to_json(), "generator": generator_file, "output": sha256_hex(output)}

    def save(self) -> None:
        self.index_path.write_text(json.dumps(self.index, indent=1, sort_keys=True) + "\n")


def main() -> None:
    """Write what is missing."""
    make, folder = load_builders(), Folder()
    for dtype in ("F32", "F16", "BF16"):
        layout = make.layout(dtype=dtype)
        original = make.original(layout)
        folder.add_code(f"lossless-2-{dtype}", encode(original, None, 0.0).code, layout, None, None)
        folder.add_code(f"residual-2-{dtype}", encode(original, None, 0.1).code, layout, None, None)
    beside = (ExtraTensor("magnitude", "F32", (5,)), ExtraTensor("tokens", "I64", (2,)))
    layout = replace(make.layout(dtype="BF16"), extras=beside)
    tensors = {"magnitude": bytes(range(20)), "tokens": bytes(range(16))}
    data = attach_extras(write_weights(layout, make.factors(layout)), layout, Extras(tensors, {"made": "by hand"}))
    mixed = encode(Original("mixed", lambda: data, layout), None, 0.0)
    folder.add_code("lossless-2-mixed", mixed.code, layout, None, None)
    layout = make.layout()
    for arch, coordinates in GENERATORS:
        made = make.generator(arch, layout, coordinates=coordinates)
        loaded, file = make.loaded(layout, made), f"{arch}.generator"
        if not (HERE / file).exists():
            (HERE / file).write_bytes(pack_generator(made, layout))
        for codec, distance in (("predicted-2", 0.3), ("generated-1", 0.0)):
            original, draft = make.near_prediction(layout, loaded, 1, distance)
            encoded = encode(original, draft, 0.1)
            assert encoded.codec.name == codec, (arch, encoded.codec.name)
            folder.add_code(f"{codec}-{arch}", encoded.code, layout, loaded, file)
    with_prior = HERE / "slots-prior.generator"
    if not with_prior.exists():
        with_prior.write_bytes(pack_generator(make.generator("slots", layout, prior=True), layout))
    folder.save()


if __name__ == "__main__":
    main()
