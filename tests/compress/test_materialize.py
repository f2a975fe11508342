"""Giving adapters back as folders, and checking that everything stored still decodes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorareg.compress import materialize as materialize_module
from lorareg.compress.contracts.contract import CompressOptions
from lorareg.compress.factors.fidelity import compare_folders
from lorareg.compress.materialize import materialize
from lorareg.compress.pipeline import compress
from lorareg.compress.progress import Silent
from lorareg.compress.proofs.verify import check_encodings
from lorareg.registry.errors import (
    IntegrityError,
    MissingBlobError,
    OutputExistsError,
    OutputInUseError,
    UnknownAdapterError,
)
from lorareg.registry.peft_format import read_folder
from lorareg.registry.reader import Reader
from lorareg.registry.store import Registry
from lorareg.registry.types import WEIGHTS_FILE, NewEncoding, sha256_hex

NAMES = ("alpha", "beta", "gamma")
MOST_MEMORY_KIB = 200 * 1024


@pytest.fixture
def encoded(
    home: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, add_group: Callable[..., None]
) -> Iterator[Registry]:
    """Three adapters encoded against a mean table: made once, then copied."""
    kept = tmp_path_factory.getbasetemp() / "encoded"
    if kept.exists():
        shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    else:
        with Registry.open(home, create=True) as registry:
            add_group(registry, *NAMES)
            compress(registry, (), CompressOptions(arch="mean"), Silent())
        shutil.copytree(tmp_path, kept)
    with Registry.open(home, create=False) as registry:
        yield registry


def damage(registry: Registry, sha256: str) -> None:
    path = registry.blobs.path(sha256)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def leftovers(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []


def encoding_of(registry: Registry, ref: str) -> Any:
    encoding = registry.encoding(registry.adapter(ref).id)
    assert encoding is not None
    return encoding


# -- what is written -----------------------------------------------------------------------------


def test_a_folder_holds_what_was_recorded(encoded: Registry, tmp_path: Path) -> None:
    done = materialize(encoded.home, "alpha", tmp_path / "out" / "alpha")
    weights = (done.path / WEIGHTS_FILE).read_bytes()
    encoding = encoding_of(encoded, "alpha")
    assert sha256_hex(weights) == done.output_digest == encoding.output_digest
    assert (done.tier, done.adapter.ref) == ("residual", "alpha@1")
    assert done.fidelity == json.loads(encoding.fidelity)
    assert leftovers(tmp_path / "out") == ["alpha"]
    assert leftovers(done.path) == ["README.md", "adapter_config.json", WEIGHTS_FILE]
    measured = compare_folders(tmp_path / "adapters" / "alpha", done.path)
    assert measured.relative_error == pytest.approx(done.fidelity["relative_error"], abs=1e-9)
    original = tmp_path / "adapters" / "alpha" / "adapter_config.json"
    assert (done.path / "adapter_config.json").read_bytes() == original.read_bytes()


def test_what_is_not_encoded_comes_back_as_it_was(
    registry: Registry, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_adapter("plain", card=None)
    registry.ingest(read_folder(path), name="plain")
    done = materialize(registry.home, "plain", tmp_path / "out")
    assert (done.path / WEIGHTS_FILE).read_bytes() == (path / WEIGHTS_FILE).read_bytes()
    assert (done.tier, done.fidelity["exact"]) == ("lossless", True)
    assert leftovers(done.path) == ["adapter_config.json", WEIGHTS_FILE]


def test_the_default_folder_is_the_task(
    encoded: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_adapter: Callable[..., Path]
) -> None:
    encoded.ingest(read_folder(make_adapter("plain")), name="team/plain")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    materialize(encoded.home, "alpha", None)
    materialize(encoded.home, "team/plain", None)
    assert leftovers(tmp_path / "here") == ["alpha", "plain"]


def test_versions_and_tags_are_found(registry: Registry, make_adapter: Callable[..., Path], tmp_path: Path) -> None:
    paths = [make_adapter(f"v{seed}", seed=seed) for seed in (1, 2)]
    first, _ = (registry.ingest(read_folder(path), name="task").adapter for path in paths)
    registry.tag(first, "stable")
    for ref, path in (("task@1", paths[0]), ("task@2", paths[1]), ("task", paths[1]), ("task@stable", paths[0])):
        done = materialize(registry.home, ref, tmp_path / ref)
        assert (done.path / WEIGHTS_FILE).read_bytes() == (path / WEIGHTS_FILE).read_bytes()


def test_an_unknown_task_names_near_ones(encoded: Registry, tmp_path: Path) -> None:
    with pytest.raises(UnknownAdapterError, match=r"No adapter 'alfa'.* Did you mean 'alpha'"):
        materialize(encoded.home, "alfa", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- what is replaced ----------------------------------------------------------------------------


def test_an_existing_folder_is_replaced_only_by_force(encoded: Registry, tmp_path: Path) -> None:
    target = tmp_path / "out" / "alpha"
    materialize(encoded.home, "beta", target)
    before = (target / WEIGHTS_FILE).read_bytes()
    with pytest.raises(OutputExistsError, match=f"{target} exists already"):
        materialize(encoded.home, "alpha", target)
    assert (target / WEIGHTS_FILE).read_bytes() == before
    (target / "samples.json").write_text("[]")  # as an ingested folder may have
    materialize(encoded.home, "alpha", target, force=True)
    assert sha256_hex((target / WEIGHTS_FILE).read_bytes()) == encoding_of(encoded, "alpha").output_digest
    assert leftovers(tmp_path / "out") == ["alpha"]
    assert "samples.json" not in leftovers(target)


def test_force_never_replaces_what_is_no_adapter(encoded: Registry, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputInUseError, match=r"holds 'thesis.tex'"):
        materialize(encoded.home, "alpha", work, force=True)
    (work / "thesis.tex").unlink()
    (work / WEIGHTS_FILE).mkdir()
    with pytest.raises(OutputInUseError, match=f"holds '{WEIGHTS_FILE}'"):
        materialize(encoded.home, "alpha", work, force=True)
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(OutputInUseError, match="not a folder"):
        materialize(encoded.home, "alpha", file, force=True)
    assert file.read_text() == "x"


@pytest.mark.parametrize("exists", [True, False])
def test_force_never_follows_a_link(exists: bool, encoded: Registry, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    if exists:
        elsewhere.mkdir()
    link = tmp_path / "link"
    link.symlink_to(elsewhere)
    with pytest.raises(OutputExistsError, match=str(link)):
        materialize(encoded.home, "alpha", link)
    with pytest.raises(OutputInUseError, match="not a folder"):
        materialize(encoded.home, "alpha", link, force=True)
    assert link.is_symlink()
    assert leftovers(elsewhere) == []


# -- failures leave nothing behind ---------------------------------------------------------------


@pytest.mark.parametrize("what", ["code", "generator", "config"])
def test_damaged_blobs_leave_nothing_behind(what: str, encoded: Registry, tmp_path: Path) -> None:
    encoding = encoding_of(encoded, "alpha")
    files = {file.path: file.sha256 for file in encoded.files(encoded.adapter("alpha"))}
    sha256 = {
        "code": encoding.sha256,
        "generator": encoded.generator(encoding.generator_id).sha256,
        "config": files["adapter_config.json"],
    }[what]
    damage(encoded, sha256)
    with pytest.raises(IntegrityError, match=sha256):
        materialize(encoded.home, "alpha", tmp_path / "out" / "alpha")
    assert leftovers(tmp_path / "out") == []


def test_a_missing_blob_leaves_nothing_behind(encoded: Registry, tmp_path: Path) -> None:
    sha256 = encoding_of(encoded, "alpha").sha256
    encoded.blobs.path(sha256).unlink()
    with pytest.raises(MissingBlobError, match=sha256):
        materialize(encoded.home, "alpha", tmp_path / "out" / "alpha")
    assert leftovers(tmp_path / "out") == []


def test_other_output_than_recorded_is_refused(
    encoded: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = materialize_module.decode
    monkeypatch.setattr(materialize_module, "decode", lambda *arguments: real(*arguments) + b"!")
    digest = encoding_of(encoded, "alpha").output_digest
    with pytest.raises(IntegrityError, match=rf"decoded output of Adapter 'alpha@1'.*expected sha256 {digest}"):
        materialize(encoded.home, "alpha", tmp_path / "out" / "alpha")
    assert leftovers(tmp_path / "out") == []


@pytest.mark.parametrize("force", [True, False])
def test_a_failing_write_leaves_what_was_there(
    force: bool, encoded: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out" / "alpha"
    if force:
        materialize(encoded.home, "beta", target)
        before = (target / WEIGHTS_FILE).read_bytes()

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(materialize_module, "write_file", full)
    with pytest.raises(OSError, match="No space left"):
        materialize(encoded.home, "alpha", target, force=force)
    assert leftovers(tmp_path / "out") == (["alpha"] if force else [])
    if force:
        assert (target / WEIGHTS_FILE).read_bytes() == before


def test_a_failing_rename_puts_the_old_folder_back(
    encoded: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out" / "alpha"
    materialize(encoded.home, "beta", target)
    before = (target / WEIGHTS_FILE).read_bytes()
    real = materialize_module.os.rename

    def stubborn(source: Path, destination: Path) -> None:
        if Path(source).name.endswith(".new"):
            raise OSError(5, "Input/output error")
        real(source, destination)

    monkeypatch.setattr(materialize_module.os, "rename", stubborn)
    with pytest.raises(OSError, match="Input/output error"):
        materialize(encoded.home, "alpha", target, force=True)
    assert leftovers(tmp_path / "out") == ["alpha"]
    assert (target / WEIGHTS_FILE).read_bytes() == before


# -- light, and loadable -------------------------------------------------------------------------

LIGHT = r"""
import re, sys
from pathlib import Path
from lorareg.compress.materialize import materialize
materialize(Path(sys.argv[1]), "alpha", Path(sys.argv[2]))
heavy = {"torch", "sqlalchemy", "alembic", "transformers", "peft", "rich"} & set(sys.modules)
assert not heavy, heavy
print(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_materializing_is_light(encoded: Registry, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", LIGHT, str(encoded.home), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < MOST_MEMORY_KIB


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # between peft and transformers
def test_peft_loads_a_folder_and_computes_with_its_delta(encoded: Registry, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    from lorareg.compress.factors.weights import read_weights

    done = materialize(encoded.home, "alpha", tmp_path / "alpha")
    folder = read_folder(done.path)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=48, intermediate_size=32, num_hidden_layers=2, num_attention_heads=1,
        num_key_value_heads=1, head_dim=50, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    plain = transformers.LlamaForCausalLM(config).eval()
    tokens = torch.arange(12)[None] % 64
    with torch.no_grad():
        untouched = plain(tokens).logits
        factors = read_weights((done.path / WEIGHTS_FILE).read_bytes(), folder.layout)
        modules = dict(plain.named_modules())
        original = {name: modules[name].weight.clone() for name in folder.layout.modules}
        for name, scale, f in zip(folder.layout.modules, folder.layout.scales, factors, strict=True):
            modules[name].weight += scale * torch.from_numpy(f.b @ f.a).float()
        wanted = plain(tokens).logits
        for name, weight in original.items():
            modules[name].weight.copy_(weight)
        adapted = peft.PeftModel.from_pretrained(plain, str(done.path)).eval()
        found = adapted(tokens).logits
    assert float((wanted - untouched).abs().max()) > 1e-2
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)


# -- checking ------------------------------------------------------------------------------------


def test_sound_encodings_have_no_findings(encoded: Registry) -> None:
    assert list(check_encodings(encoded)) == []
    with Reader(encoded.home) as reader:
        assert list(check_encodings(reader)) == []


def test_a_swapped_code_is_found(encoded: Registry) -> None:
    """The rows and blobs are sound, each by itself; only decoding shows that they do not belong together."""
    alpha, beta = encoding_of(encoded, "alpha"), encoding_of(encoded, "beta")
    encoded.record_encoding(
        NewEncoding(
            adapter_id=alpha.adapter_id,
            generator_id=alpha.generator_id,
            codec=alpha.codec,
            tier=alpha.tier,
            sha256=beta.sha256,
            size_bytes=beta.size_bytes,
            output_digest=alpha.output_digest,
            output_bytes=alpha.output_bytes,
            tolerance={},
            fidelity={},
        )
    )
    assert list(encoded.check(read_data=True)) == [f for f in encoded.check(read_data=True) if f.severity != "error"]
    (finding,) = check_encodings(encoded)
    assert finding.what == "adapter alpha@1"
    assert alpha.output_digest in finding.problem
    assert "--retrain" in finding.remedy


def test_damage_is_found_per_adapter(encoded: Registry) -> None:
    damage(encoded, encoding_of(encoded, "beta").sha256)
    assert [finding.what for finding in check_encodings(encoded)] == ["adapter beta@1"]
    damage(encoded, encoded.generator(encoding_of(encoded, "alpha").generator_id).sha256)
    assert len(list(check_encodings(encoded))) == 3


def test_removed_adapters_are_checked_and_unencoded_ones_are_not(
    encoded: Registry, add_group: Callable[..., None]
) -> None:
    add_group(encoded, "delta")
    encoded.remove(encoded.adapter("beta"))
    damage(encoded, encoding_of_removed(encoded))
    assert [finding.what for finding in check_encodings(encoded)] == ["adapter beta@1"]


def encoding_of_removed(registry: Registry) -> str:
    (removed,) = [a for a in registry.adapters(include_removed=True) if a.removed_at]
    encoding = registry.encoding(removed.id)
    assert encoding is not None
    return encoding.sha256


def test_a_decoded_sample_is_what_numpy_says(encoded: Registry, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    done = materialize(encoded.home, "alpha", tmp_path / "out")
    tensors = load_file(done.path / WEIGHTS_FILE)
    assert all(np.isfinite(tensor).all() and tensor.dtype == np.float32 for tensor in tensors.values())
    assert set(tensors) == set(load_file(tmp_path / "adapters" / "alpha" / WEIGHTS_FILE))
