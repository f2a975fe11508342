"""Packages that store adapters, run as they are through what they export: zipnn, vlora-dev, lorashare.

What is counted are the files they write, but for copies of the adapter's config, which no method
here counts. Each package gets the adapters as PEFT folders of float32 weights.
"""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from coding import in_dtype, shapes_of
from cohort import BenchCohort
from methods import Alone, Method

from lorareg.compress.codec.encode import Original
from lorareg.compress.factors.weights import Factors, read_weights, write_weights
from lorareg.registry.types import CONFIG_FILE, WEIGHTS_FILE, Layout

COMPONENTS = (8, 16, 32)
TASK = "task"
ZIPNN_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Absent:
    """A method that cannot run here, and why."""

    name: str
    reason: str


def package_methods() -> list[Method | Absent]:
    """The methods of every package, or the reason why there are none."""
    methods: list[Method | Absent] = []
    for name, module, made in (
        ("zipnn", "zipnn", [ZipNN(as_bf16=False), ZipNN(as_bf16=True)]),
        ("vlora-dev", "vlora", [*(VLora(k, False) for k in COMPONENTS), *(VLora(k, True) for k in COMPONENTS)]),
        ("lorashare", "lorashare", [LoraShare(k) for k in COMPONENTS]),
    ):
        missing = [needed for needed in (module, "torch") if importlib.util.find_spec(needed) is None]
        reason = f"not run: {' and '.join(missing)} not installed (pip install -e '.[train,bench]')"
        methods += [Absent(name, reason)] if missing else made
    return methods


@dataclass(frozen=True, slots=True)
class ZipNN(Alone):
    """zipnn on the weights alone, without the file's header; as they are, or rounded to bfloat16."""

    as_bf16: bool

    @property
    def name(self) -> str:
        return "zipnn, bf16" if self.as_bf16 else "zipnn, lossless"

    def encode(self, original: Original, shared: bytes) -> bytes:
        layout = self._stored(original.layout)
        # It reorders bits inside the buffer that it is given.
        return bytes(self._codec(layout).compress(bytearray(_split(write_weights(layout, original.factors))[1])))

    def decode(self, data: bytes, shared: bytes, layout: Layout) -> Sequence[Factors]:
        stored = self._stored(layout)
        header, _ = _split(write_weights(stored, _zeros(layout)))
        return read_weights(header + bytes(self._codec(stored).decompress(data)), stored)

    def _stored(self, layout: Layout) -> Layout:
        return in_dtype(layout, "BF16") if self.as_bf16 else layout

    def _codec(self, layout: Layout) -> Any:
        import zipnn

        return zipnn.ZipNN(input_format="byte", bytearray_dtype=ZIPNN_DTYPES[layout.slots[0].dtype], threads=1)


@dataclass(frozen=True, slots=True)
class VLora:
    """vlora-dev: a basis of whole factors for each module, `components` coefficients a factor and adapter.

    `packed` is its `save_quantized`, which keeps the basis as NF4. An adapter that the basis was not
    made from is projected on it.
    """

    components: int
    packed: bool

    @property
    def name(self) -> str:
        return f"vlora-dev{' packed' if self.packed else ''}, k = {self.components}"

    def share(self, cohort: BenchCohort) -> bytes:
        import vlora

        with _folders(cohort.originals) as folders:
            adapters = [vlora.load_adapter(folder) for folder in folders]
        subspace = vlora.SharedSubspace.from_adapters(adapters, num_components=self.components)
        subspace.tasks.clear()
        with TemporaryDirectory() as folder:
            (subspace.save_quantized if self.packed else subspace.save)(folder)
            return _joined(Path(folder), self._names())

    def encode(self, original: Original, shared: bytes) -> bytes:
        import vlora
        from safetensors.torch import save

        with _folders([original]) as folders:
            projection = self._subspace(shared).project(vlora.load_adapter(folders[0]), TASK)
        sides = {"a": projection.loadings_a, "b": projection.loadings_b}
        layers = projection.loadings_a
        return bytes(save({f"{layer}.loadings_{s}": sides[s][layer].contiguous() for layer in layers for s in "ab"}))

    def decode(self, data: bytes, shared: bytes, layout: Layout) -> Sequence[Factors]:
        import vlora
        from safetensors.torch import load

        subspace, stored = self._subspace(shared), load(data)
        loadings = ({layer: stored[f"{layer}.loadings_{s}"] for layer in subspace.layer_names} for s in "ab")
        subspace.add_task(vlora.TaskProjection(TASK, *loadings))
        weights = subspace.reconstruct(TASK)
        found = {}
        for layer in subspace.layer_names:
            found[f"{layer}.A"], found[f"{layer}.B"] = weights.lora_a[layer], weights.lora_b[layer]
        return _factors(layout, [found[f"{_layer(slot.module)}.{slot.factor}"] for slot in layout.slots])

    def _names(self) -> tuple[str, ...]:
        if self.packed:
            return ("subspace_nf4.safetensors", "subspace_float.safetensors", "subspace_meta.json")
        return ("subspace.safetensors", "subspace_meta.json")

    def _subspace(self, shared: bytes) -> Any:
        return _load_vlora(shared, self._names())


@dataclass(frozen=True, slots=True)
class LoraShare:
    """lorashare: for each factor of each module a basis of directions, and every adapter's factors in it.

    An adapter that the basis was not made from is added by its fast path, which projects it.
    """

    components: int

    @property
    def name(self) -> str:
        return f"lorashare, k = {self.components}"

    def share(self, cohort: BenchCohort) -> bytes:
        from lorashare import SHAREModel

        with _folders(cohort.originals) as folders, TemporaryDirectory() as folder:
            paths = {path.name: str(path) for path in folders}
            SHAREModel.from_adapters(paths, num_components=self.components, device="cpu").save_pretrained(folder)
            return _joined(Path(folder), _SHARE_FILES)

    def encode(self, original: Original, shared: bytes) -> bytes:
        from safetensors.torch import save

        model = _load_lorashare(shared)
        with _folders([original]) as folders:
            known = "reference"  # it wants an adapter that it knows, to compare configs with
            model.all_loadings = {known: {}}
            model.adapter_configs = {known: _config(original.layout)}
            added = model.add_adapter(str(folders[0]), name=TASK, variance_threshold=0.0)
        assert added["method"] == "projection", added
        return bytes(save(model.all_loadings[TASK]))

    def decode(self, data: bytes, shared: bytes, layout: Layout) -> Sequence[Factors]:
        from safetensors.torch import load

        model = _load_lorashare(shared)
        model.all_loadings = {TASK: load(data)}
        weights = model.reconstruct(TASK)
        return _factors(
            layout, [weights[f"base_model.model.{_layer(s.module)}.lora_{s.factor}.weight"] for s in layout.slots]
        )


_SHARE_FILES = ("shared_components.safetensors", "share_config.json")


@lru_cache(maxsize=1)
def _load_vlora(shared: bytes, names: tuple[str, ...]) -> Any:
    import vlora

    with _written(shared, names) as folder:
        return vlora.SharedSubspace.load(folder)


@lru_cache(maxsize=1)
def _load_lorashare(shared: bytes) -> Any:
    from lorashare import SHAREModel

    with _written(shared, _SHARE_FILES) as folder:
        return SHAREModel.from_pretrained(folder)


@contextmanager
def _folders(originals: Sequence[Original]) -> Iterator[list[Path]]:
    """The adapters as PEFT folders of float32 weights, until the block ends."""
    with TemporaryDirectory() as top:
        folders = [Path(top) / f"adapter-{index:04}" for index in range(len(originals))]
        for folder, original in zip(folders, originals, strict=True):
            folder.mkdir()
            (folder / WEIGHTS_FILE).write_bytes(write_weights(in_dtype(original.layout, "F32"), original.factors))
            (folder / CONFIG_FILE).write_text(json.dumps(_config(original.layout)))
        yield folders


def _config(layout: Layout) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": "base",
        "r": max(rank for rank, _ in shapes_of(layout)),
        "target_modules": sorted({module.rpartition(".")[2] for module in layout.modules}),
    }


def _layer(module: str) -> str:
    return module.removeprefix("base_model.model.")


def _factors(layout: Layout, tensors: Sequence[Any]) -> list[Factors]:
    """Torch tensors in the order of the layout's slots, as factors."""
    for slot, tensor in zip(layout.slots, tensors, strict=True):
        if tuple(tensor.shape) != slot.shape:
            raise ValueError(f"{slot.key} came back as {tuple(tensor.shape)}, not as {slot.shape}")
    arrays = [tensor.double().numpy() for tensor in tensors]
    return [Factors(b=b, a=a) for a, b in zip(arrays[0::2], arrays[1::2], strict=True)]


def _zeros(layout: Layout) -> list[Factors]:
    pairs = zip(layout.slots[0::2], layout.slots[1::2], strict=True)
    return [Factors(b=np.zeros(b.shape), a=np.zeros(a.shape)) for a, b in pairs]


def _split(data: bytes) -> tuple[bytes, bytes]:
    """The header of a safetensors file, and what follows it."""
    end = 8 + struct.unpack("<Q", data[:8])[0]
    return data[:end], data[end:]


def _joined(folder: Path, names: Sequence[str]) -> bytes:
    """Files one after another: those in safetensors tell their own length, so nothing is added."""
    return b"".join((folder / name).read_bytes() for name in names)


@contextmanager
def _written(shared: bytes, names: Sequence[str]) -> Iterator[Path]:
    """The files that `_joined` joined, in a folder of their own, until the block ends."""
    with TemporaryDirectory() as top:
        folder = Path(top)
        for name in names[:-1]:
            header, rest = _split(shared)
            tensors = json.loads(header[8:])
            end = max((info["data_offsets"][1] for key, info in tensors.items() if key != "__metadata__"), default=0)
            (folder / name).write_bytes(header + rest[:end])
            shared = rest[end:]
        (folder / names[-1]).write_bytes(shared)
        yield folder
