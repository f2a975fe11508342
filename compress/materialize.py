"""Giving an adapter back as a PEFT folder: the decode path from end to end.

    encoding row --> verified blobs --> numpy decode --> digest equals the recorded one
    --> temporary folder beside the target, synced --> rename

No torch, no SQLAlchemy. Whatever goes wrong before the rename leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorareg.compress.codec.codecs import LoadedGenerator, decode
from lorareg.compress.codec.extras import Extras, unpack_extras
from lorareg.compress.serving.engines import PEFT
from lorareg.registry.card import mark_reconstructed
from lorareg.registry.errors import IntegrityError, OutputExistsError, OutputInUseError
from lorareg.registry.files import make_folder, sync_folder
from lorareg.registry.lookup import Lookup
from lorareg.registry.meanwhile import look_again
from lorareg.registry.reader import Reader
from lorareg.registry.single_file import file_name_of
from lorareg.registry.types import (
    CARD_FILE,
    CONFIG_FILE,
    EVAL_FILE,
    EVAL_SUMMARY_FILE,
    EXTRAS_FOLDER,
    SAMPLES_FILE,
    WEIGHTS_FILE,
    Adapter,
    Encoding,
    Generator,
    Layout,
    NewEncoding,
    sha256_hex,
)

if TYPE_CHECKING:
    from lorareg.compress.serving.adapt import Adapted
    from lorareg.registry.unbundle import Parcel

ADAPTER_FILES = {WEIGHTS_FILE, CONFIG_FILE, CARD_FILE, SAMPLES_FILE, EVAL_FILE, EVAL_SUMMARY_FILE}
KEPT_GENERATORS = 2
"""Unpacked generators that a process holds: adapters that are decoded one after another mostly share theirs."""

EXACT = {"relative_error": 0.0, "cosine": 1.0, "exact": True}


@dataclass(frozen=True, slots=True)
class Materialized:
    """A written folder, how its weights were stored, and what was measured when they were encoded."""

    adapter: Adapter
    path: Path
    tier: str
    fidelity: dict[str, Any]
    output_digest: str
    elapsed_s: float
    profile: str = PEFT
    adapted: Adapted | None = None  # what was written in place of what is stored, where a profile asked for that


@dataclass(frozen=True, slots=True)
class Restored:
    """An adapter in the form that was asked for, before anything is written."""

    config: bytes
    weights: bytes
    adapted: Adapted | None  # what a profile made of it


def materialize(home: Path, ref: str, out: Path | None, *, force: bool = False, profile: str = PEFT) -> Materialized:
    """Write the adapter `ref` ("task", "task@3", "task@label") as a PEFT folder at `out` (default: ./task).

    Its decoded bytes are compared with their recorded digest before a profile brings them into an engine's form.

    Raises:
        ProfileError: the engine of that profile cannot compute what the adapter does.
        UnknownAdapterError: no such adapter.
        OutputExistsError: `out` exists and `force` was not given.
        OutputInUseError: `out` holds something else than an adapter, which `force` does not replace.
        IntegrityError: stored bytes are damaged, or decode to other bytes than recorded.
    """
    started = time.perf_counter()
    with Reader(home) as reader:

        def look() -> tuple[Adapter, Path, Encoding | None, Restored, dict[str, bytes]]:
            adapter = reader.adapter(ref)
            target = out if out is not None else Path(adapter.name.rpartition("/")[2])
            config = reader.read_file(adapter, CONFIG_FILE)
            lone_name = file_name_of(json.loads(config))
            expect_free(target, force, lone_name)
            encoding = reader.encoding(adapter.id)
            form = restore(reader, adapter, encoding, config, profile)
            files = {lone_name: form.weights} if lone_name else {CONFIG_FILE: form.config, WEIGHTS_FILE: form.weights}
            card = card_of(reader, adapter, encoding)
            return adapter, target, encoding, form, files if card is None else {**files, CARD_FILE: card}

        adapter, target, encoding, form, files = look_again(look)
    write_folder(target, files)
    return Materialized(
        adapter=adapter,
        path=target,
        tier=encoding.tier if encoding else "lossless",
        fidelity=json.loads(encoding.fidelity) if encoding else EXACT,
        output_digest=encoding.output_digest if encoding and form.adapted is None else sha256_hex(form.weights),
        elapsed_s=time.perf_counter() - started,
        profile=profile,
        adapted=form.adapted,
    )


def restore(
    lookup: Lookup, adapter: Adapter, encoding: Encoding | None, config: bytes, profile: str = PEFT
) -> Restored:
    """An adapter in the form of a profile: decoded, compared with its recorded digest, brought into that form.

    Raises:
        ProfileError: the engine of that profile cannot compute what the adapter does.
        IntegrityError: stored bytes are damaged, or decode to other bytes than recorded.
    """
    weights = restore_weights(lookup, adapter, encoding)
    if profile == PEFT:
        return Restored(config, weights, None)
    from lorareg.compress.serving.adapt import adapt

    layout = Layout.from_json(lookup.cohort(adapter.cohort_id).layout)
    adapted = adapt(profile, json.loads(config), layout, weights, f"adapter {adapter.ref!r}")
    return Restored(_dumped(adapted.config), adapted.weights, adapted)


def _dumped(config: Mapping[str, Any]) -> bytes:
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def card_of(reader: Lookup, adapter: Adapter, encoding: Encoding | None) -> bytes | None:
    """The model card: as ingested where the weights are, else with a mark that says what they are."""
    files = {file.path: file for file in reader.files(adapter)}
    card = reader.read_file(adapter, CARD_FILE) if CARD_FILE in files else None
    if encoding is None or encoding.output_digest == files[WEIGHTS_FILE].sha256:
        return card
    certificate = reader.certificate(encoding.id)
    fidelity = json.loads(encoding.fidelity)
    figures = [f"relative error of the weight update {float(fidelity['relative_error']):.4f}"]
    if "worst_module" in fidelity:
        figures.append(f"in its worst module {float(fidelity['worst_module_error']):.4f} ({fidelity['worst_module']})")
    if "kl_divergence" in fidelity:
        figures.append(f"divergence of predictions {float(fidelity['kl_divergence']):.5f} nats a token")
    if "gain_retained" in fidelity:
        figures.append(f"gain retained {100 * float(fidelity['gain_retained']):.2f}%")
    lines = [
        f"**Reconstructed by lorareg; these are not the original weights.** `{adapter.ref}`, decoded from a code of "
        f"{encoding.size_bytes} bytes (tier {encoding.tier}, codec {encoding.codec}).",
        f"Measured against the original when it was encoded: {', '.join(figures)}.",
        f"SHA-256 of these weights: `{encoding.output_digest}`.",
    ]
    if certificate is not None:
        lines.append(f"SHA-256 of their certificate: `{certificate.digest}`.")
    text = (card or b"").decode("utf-8", "surrogateescape")
    return mark_reconstructed(text, adapter.base_model, lines).encode("utf-8", "surrogateescape")


def restore_weights(lookup: Lookup, adapter: Adapter, encoding: Encoding | NewEncoding | None) -> bytes:
    """The weights file of an adapter: decoded, or as ingested where it has no encoding.

    Raises:
        IntegrityError: stored bytes are damaged, or decode to other bytes than recorded.
    """
    if encoding is None:
        return lookup.read_file(adapter, WEIGHTS_FILE)
    layout = Layout.from_json(lookup.cohort(adapter.cohort_id).layout)
    loaded = None
    if encoding.generator_id is not None:
        loaded = load_generator(lookup, lookup.generator(encoding.generator_id))
    what = f"Adapter {adapter.ref!r}"
    extras = restore_extras(lookup, adapter, layout) if encoding.tier != "lossless" else None
    output = decode(lookup.blobs.get(encoding.sha256), layout, loaded, what, extras)
    expect_output(output, encoding, what)
    return output


def restore_present(lookup: Lookup, adapter: Adapter) -> bytes:
    """As `restore_weights`, from whatever the adapter has now, if it is encoded anew meanwhile.

    Raises:
        IntegrityError: stored bytes are damaged, or decode to other bytes than recorded.
    """
    return look_again(lambda: restore_weights(lookup, adapter, lookup.encoding(adapter.id)))


def decode_parcel(parcel: Parcel, read: Callable[[str], bytes]) -> str:
    """The digest of what the code of an imported adapter decodes to.

    Raises:
        IntegrityError: it is damaged, or was not made for what came with it.
    """
    what, layout, loaded = f"Adapter {parcel.ref!r}", parcel.layout, None
    if parcel.generator is not None:
        assert parcel.drawn is not None
        loaded = _load(read(parcel.generator), parcel.generator, parcel.drawn)
    extras = None
    if parcel.encoding["tier"] != "lossless":
        extras = unpack_extras({path: read(digest) for path, digest in parcel.extras.items()}, layout, what)
    return sha256_hex(decode(read(parcel.encoding["sha256"]), layout, loaded, what, extras))


def load_generator(lookup: Lookup, record: Generator) -> LoadedGenerator:
    """A generator that is recorded, with the layout of the cohort it was made for.

    Raises:
        IntegrityError: its file is damaged or missing.
    """
    layout = Layout.from_json(lookup.cohort(record.cohort_id).layout)
    return _load(lookup.blobs.get(record.sha256), record.sha256, layout)


@lru_cache(maxsize=KEPT_GENERATORS)
def _load(data: bytes, sha256: str, layout: Layout) -> LoadedGenerator:
    """A generator whose file was read, and verified, just now: reading it again costs little, unpacking it a lot."""
    return LoadedGenerator.from_bytes(data, sha256, layout)


def restore_extras(lookup: Lookup, adapter: Adapter, layout: Layout) -> Extras:
    """What an adapter that has a code has beside factors.

    Raises:
        IntegrityError: stored bytes are damaged or missing.
    """
    kept = [file for file in lookup.files(adapter) if file.path.startswith(EXTRAS_FOLDER)]
    files = {file.path: lookup.blobs.get(file.sha256) for file in kept}
    return unpack_extras(files, layout, f"Adapter {adapter.ref!r}")


def expect_output(output: bytes, encoding: Encoding | NewEncoding, what: str) -> None:
    """Compare decoded bytes with the digest recorded when they were encoded.

    Raises:
        IntegrityError: they differ.
    """
    found = sha256_hex(output)
    if found != encoding.output_digest:
        raise IntegrityError(
            what=f"The decoded output of {what}",
            expected=f"sha256 {encoding.output_digest}",
            found=found,
            remedy="Nothing was written. Run `lorareg check --read-data`, and compare numpy and constriction versions.",
        )


def expect_free(target: Path, force: bool, lone_name: str | None = None) -> None:
    """Nothing is at `target`, or an adapter's folder that may be replaced; `lone_name` is its file's, if it is one.

    Raises:
        OutputExistsError: something is there and `force` was not given.
        OutputInUseError: it holds something else than an adapter.
    """
    if not target.exists() and not target.is_symlink():
        return
    if not force:
        raise OutputExistsError(path=target)
    if target.is_symlink() or not target.is_dir():
        raise OutputInUseError(path=target, found="something that is not a folder")
    own = ADAPTER_FILES | {lone_name}
    foreign = sorted(entry.name for entry in target.iterdir() if entry.name not in own or entry.is_dir())
    if foreign:
        raise OutputInUseError(path=target, found=repr(foreign[0]))


def write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Write files as a folder, all of them or none; what was at `target` is replaced."""
    with _replacing(target) as folder:
        for name, data in files.items():
            write_file(folder / name, data)


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place at the end, or vanishes on an error."""
    make_folder(target.parent)
    fresh = target.with_name(f".{target.name}.{os.getpid()}.new")
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    fresh.mkdir()
    try:
        yield fresh
        sync_folder(fresh)
        if target.exists():
            os.rename(target, old)
        os.rename(fresh, target)
        sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists() and not target.exists():
            os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_file(path: Path, data: bytes) -> None:
    """Write a new file, and make its content last."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
