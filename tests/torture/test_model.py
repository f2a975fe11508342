"""A registry against a model of it: whatever is done to it, in whatever order, it answers as a few lists would.

The model knows names, versions, descriptions, labels, what is removed, pinned, in quarantine or gone, and the bytes
that each version gives back. After every step the registry must check clean, and a reader must answer exactly so and
give back all bytes; every fifth time the registry that was open all along must answer so as well, and every tenth time
the check hashes each blob.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from registry_model import Model, Version
from safetensors.numpy import load
from shared_sql import share_compiled_sql

from lorareg.compress.contracts.contract import CompressOptions, Contract
from lorareg.compress.materialize import decode_parcel, materialize, restore_weights
from lorareg.compress.pipeline import compress
from lorareg.compress.progress import Silent
from lorareg.compress.proofs import prune as prune_module
from lorareg.compress.proofs.prune import plan_of, prune
from lorareg.compress.proofs.verify import verify
from lorareg.registry.bundle import make_bundle, selected, write_bundle
from lorareg.registry.bundle_file import BundleFile
from lorareg.registry.errors import TokenError, UnknownAdapterError
from lorareg.registry.ingest import IngestRequest
from lorareg.registry.lookup import Lookup
from lorareg.registry.peft_format import PeftFolder, read_folder
from lorareg.registry.reader import Reader
from lorareg.registry.replicate import blobs_to_copy, repair, replicate
from lorareg.registry.store import Registry
from lorareg.registry.sweep import delete_orphans, sweep
from lorareg.registry.tokens import create_token, find_token, revoke_token
from lorareg.registry.types import CARD_FILE, WEIGHTS_FILE, sha256_hex
from lorareg.registry.unbundle import import_bundle

STEPS_A_RUN = 50
NAMES = ("a", "b", "team/c")
LABELS = ("stable", "next")
SEEDS, CARDS = 4, 2
NO_GRACE = timedelta(0)
SEED = st.integers(0, SEEDS - 1)


def error_of(found: bytes, original: bytes) -> float:
    """The relative error of ΔW over all modules, worked out here on its own."""
    was, now = load(original), load(found)
    off = total = 0.0
    for a in (key for key in was if key.endswith("lora_A.weight")):
        b = a.replace("lora_A", "lora_B")
        update = was[b].astype(np.float64) @ was[a]
        off += float(np.sum((now[b].astype(np.float64) @ now[a] - update) ** 2))
        total += float(np.sum(update**2))
    return float(np.sqrt(off / total))


def verify_here(home: Path, refs: list[str]) -> list[dict[str, Any]]:
    """What `prune` starts a process for, in this one: starting it takes a hundred times as long as the rest."""
    with Registry.open(home, create=False) as registry:
        by_ref = {adapter.ref: adapter for adapter in registry.adapters(include_removed=True)}
        return [verify(registry, by_ref[ref]).to_dict() for ref in refs]


class Hands(RuleBasedStateMachine):
    """Everything that may be done to a registry; `steps` counts what was."""

    base: ClassVar[Path]
    folders: ClassVar[dict[tuple[int, int], PeftFolder]]
    originals: ClassVar[dict[int, bytes]]
    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(dir=self.base))
        self.home, self.copy = self.root / "home", self.root / "copy"
        self.registry, self.model = Registry.open(self.home, create=True), Model()

    def teardown(self) -> None:
        self.registry.close()
        shutil.rmtree(self.root)

    def adapter(self, one: Version) -> Any:
        (found,) = [a for a in self.registry.adapters(name=one.name, include_removed=True) if a.version == one.number]
        return found

    def has_time(self) -> bool:
        """In two steps of ten, for what takes ten times as long as the rest: three quarters of all time otherwise."""
        return bool(self.model.live()) and self.model.steps % 10 in (0, 1)

    # -- coming in ------------------------------------------------------------------------------

    @initialize(seeds=st.lists(st.integers(0, SEEDS - 1), min_size=1, max_size=len(NAMES)))
    def begin(self, seeds: list[int]) -> None:
        for name, seed in zip(NAMES, seeds, strict=False):
            self.take_in(name, seed, 0, False)

    @rule(name=st.sampled_from(NAMES), seed=SEED, card=st.integers(0, CARDS - 1), many=st.booleans())
    def ingest(self, name: str, seed: int, card: int, many: bool) -> None:
        self.take_in(name, seed, card, many)

    def take_in(self, name: str, seed: int, card: int, many: bool) -> None:
        folder = self.folders[seed, card]
        if many:
            (outcome,) = self.registry.ingest_each([IngestRequest(folder.path, name)])
        else:
            outcome = self.registry.ingest(folder, name=name)
        versions = self.model.of(name)
        same = [one for one in versions if one.seed == seed]
        if same:
            (version,) = same
            expected = "revived" if version.removed_at else "updated" if version.card != card else "known"
            if version.card != card:
                version.card, version.description = card, folder.description
            version.removed_at = 0
        else:
            expected = "version" if versions else "new"
            number = len(versions) + 1
            version = Version(name, number, seed, card, folder.description, self.originals[seed])
            self.model.versions.append(version)
        self.model.bring_back(seed)
        self.model.gone.discard(seed)
        self.model.cards.add(card)
        assert (outcome.kind, outcome.adapter.ref) == (expected, version.ref)

    @precondition(lambda self: self.has_time())
    @rule(data=st.data())
    def export_and_import(self, data: st.DataObject) -> None:
        """Into a registry of its own, and back here, where nothing changes."""
        path, other = self.root / "bundle.tar", self.root / "other"
        with Reader(self.home) as reader, path.open("wb") as file:
            bundle = make_bundle(reader, selected(reader, [], []), originals=data.draw(st.booleans()))
            write_bundle(bundle, reader.blobs.get, file, lambda _: None)
        with BundleFile.open(path) as opened:
            back = import_bundle(self.registry, opened, decode_parcel, lambda _: None)
            assert (back.added, back.codes) == ([], 0)
            with Registry.open(other, create=True) as second:
                done = import_bundle(second, opened, decode_parcel, lambda _: None)
                assert sorted(done.added) == sorted(one.ref for one in self.model.live())
                self.expect_given(second)
                assert not [one for one in second.check(read_data=True) if one.severity == "error"]
        # What came back is here again, where it was in the bundle.
        for seed in {one.seed for one in self.model.live()}:
            if self.weights(seed) in self.registry.blobs:
                self.model.gone.discard(seed)
        shutil.rmtree(other)

    # -- rows -----------------------------------------------------------------------------------

    @precondition(lambda self: self.model.live())
    @rule(data=st.data(), label=st.sampled_from(LABELS))
    def tag(self, data: st.DataObject, label: str) -> None:
        one = data.draw(st.sampled_from(self.model.live()))
        self.registry.tag(self.adapter(one), label)
        self.model.labels[one.name, label] = one

    @precondition(lambda self: self.model.versions)
    @rule(data=st.data(), label=st.sampled_from(LABELS))
    def untag(self, data: st.DataObject, label: str) -> None:
        one = data.draw(st.sampled_from(self.model.versions))
        was_there = self.model.labels.get((one.name, label)) is one
        assert self.registry.untag(self.adapter(one), label) == was_there
        if was_there:
            del self.model.labels[one.name, label]

    @precondition(lambda self: self.model.versions)
    @rule(data=st.data(), text=st.sampled_from(["Translate.", "Sum up."]))
    def describe(self, data: st.DataObject, text: str) -> None:
        one = data.draw(st.sampled_from(self.model.versions))
        self.registry.describe(self.adapter(one), text)
        one.description = text

    @precondition(lambda self: self.model.live())
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.model.live()))
        self.registry.remove(self.adapter(one))
        one.removed_at = self.model.steps

    @precondition(lambda self: self.model.versions)
    @rule(data=st.data(), by_name=st.booleans())
    def restore(self, data: st.DataObject, by_name: bool) -> None:
        one = data.draw(st.sampled_from(self.model.versions))
        if by_name:
            one = max(self.model.of(one.name), key=lambda version: (version.removed_at, version.number))
        try:
            restored = self.registry.restore(one.name if by_name else one.ref)
        except UnknownAdapterError:
            assert not one.removed_at
            assert one.seed not in self.model.waiting
            return
        assert (restored.adapter.ref, restored.was_removed) == (one.ref, bool(one.removed_at))
        one.removed_at = 0
        self.model.bring_back(one.seed)

    @precondition(lambda self: any(one.seed not in self.model.gone for one in self.model.versions))
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([one for one in self.model.versions if one.seed not in self.model.gone]))
        one.pin = self.registry.put_pin(self.adapter(one), "a customer").reason
        self.model.bring_back(one.seed)

    @precondition(lambda self: self.model.versions)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.model.versions))
        assert self.registry.take_pin(self.adapter(one)) == (one.pin is not None)
        one.pin = None

    @rule(name=st.sampled_from(["reader", "writer"]), revoke=st.booleans())
    def tokens(self, name: str, revoke: bool) -> None:
        if revoke and name in self.model.tokens:
            revoke_token(self.registry, name)
            self.model.tokens[name] = self.model.tokens[name][0], False
        elif name in self.model.tokens:
            with pytest.raises(TokenError, match="there is one of that name"):
                create_token(self.registry, name, "read", "*")
        else:
            self.model.tokens[name] = create_token(self.registry, name, "read", "*")[1], True

    # -- codes ----------------------------------------------------------------------------------

    @precondition(lambda self: self.has_time())
    @rule(tolerance=st.sampled_from([0.0, 0.1, 0.3]))
    def compress_alone(self, tolerance: float) -> None:
        self.encode(tolerance, "none")

    @precondition(lambda self: self.has_time())
    @rule(tolerance=st.sampled_from([0.1, 0.3]), copied=st.booleans())
    def compress_together(self, tolerance: float, copied: bool) -> None:
        self.encode(tolerance, "mean")
        if copied:
            self.make_copy(originals=False)

    def encode(self, tolerance: float, arch: str) -> None:
        before = {one.ref: error_of(one.given, self.originals[one.seed]) for one in self.model.versions}
        compress(self.registry, (), CompressOptions(Contract(tolerance=tolerance), arch=arch), Silent())
        for one in self.model.live():
            adapter = self.adapter(one)
            encoding = self.registry.encoding(adapter.id)
            assert encoding is not None
            one.encoding_id, one.generator_id = encoding.id, encoding.generator_id
            one.given = restore_weights(self.registry, adapter, encoding)
            error, original = error_of(one.given, self.originals[one.seed]), self.originals[one.seed]
            assert encoding.tier != "lossless" or one.given == original or one.seed in self.model.gone
            most = tolerance if one.seed not in self.model.gone else max(tolerance, before[one.ref])
            assert error <= most + 1e-6

    @precondition(lambda self: self.model.live())
    @rule(data=st.data())
    def materialize(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.model.live()))
        out = self.root / "out"
        materialize(self.home, one.ref, out, force=True)
        assert (out / WEIGHTS_FILE).read_bytes() == one.given

    # -- a second copy ---------------------------------------------------------------------------

    @precondition(lambda self: self.model.versions and self.has_time())
    @rule(originals=st.booleans())
    def replicate(self, originals: bool) -> None:
        self.make_copy(originals)
        with Reader(self.copy) as copied:
            self.expect_given(copied)
        if originals:
            self.lose_and_repair()

    def make_copy(self, originals: bool) -> None:
        replicate(self.registry, str(self.copy), originals, lambda _: None)
        generators, used = self.registry.generators(), {one.generator_id for one in self.model.versions}
        digests = {generator.sha256 for generator in generators if generator.id in used}
        self.model.copied |= {generator.id for generator in generators if generator.sha256 in digests}

    def lose_and_repair(self) -> None:
        needed, _ = blobs_to_copy(self.registry, originals=True)
        lost = sorted(needed)[self.model.steps % len(needed)]
        self.registry.blobs.path(lost).unlink()
        assert repair(self.registry, str(self.copy), lambda _: None) == [lost]

    # -- letting go -----------------------------------------------------------------------------

    @precondition(lambda self: self.model.deletable() - self.model.waiting.keys())
    @rule()
    def quarantine(self) -> None:
        going = self.model.deletable() - self.model.waiting.keys()
        retired, _ = prune(self.registry, Silent())
        assert {blob.sha256 for blob in retired if blob.kind == "original"} == {self.weights(seed) for seed in going}
        for seed in going:
            self.model.waiting[seed] = self.model.codes(seed)

    @precondition(lambda self: self.model.waiting)
    @rule(days=st.sampled_from([0, 0, 7]))
    def sweep(self, days: int) -> None:
        """Within the grace nothing goes; after it, what still may."""
        swept = sweep(self.registry, timedelta(days=days))
        going: set[int] = set()
        if days == 0:
            may = self.model.deletable()
            going = {
                seed for seed, codes in self.model.waiting.items() if seed in may and codes == self.model.codes(seed)
            }
            self.model.waiting.clear()
        assert {blob.sha256 for blob in swept.deleted if blob.kind == "original"} == {self.weights(s) for s in going}
        self.model.gone |= going

    @rule(data=st.binary(min_size=1, max_size=8))
    def keep_house(self, data: bytes) -> None:
        """What no row names goes, and nothing else; whoever opens the registry anew finds it so."""
        used = {version.card for version in self.model.versions}
        nobodys = {
            sha256_hex((self.folders[0, card].path / CARD_FILE).read_bytes()) for card in self.model.cards - used
        }
        assert {one.sha256 for one in delete_orphans(self.registry, NO_GRACE)} == nobodys
        self.model.cards &= used
        orphan = self.registry.blobs.put_bytes(b"orphan" + data)
        assert [one.sha256 for one in delete_orphans(self.registry, NO_GRACE)] == [orphan]
        self.registry.close()
        self.registry = Registry.open(self.home, create=False)

    # -- what always holds ----------------------------------------------------------------------

    @invariant()
    def checks_clean(self) -> None:
        self.model.steps += 1
        Hands.steps += 1
        found = list(self.registry.check(read_data=self.model.steps % 10 == 0))
        assert not [one for one in found if one.severity == "error"], found

    @invariant()
    def answers_as_the_model(self) -> None:
        with Reader(self.home) as reader:
            self.expect_rows(reader)
            if self.model.steps % 5 == 0:
                self.expect_rows(self.registry)
            self.expect_given(reader)
            for seed in {one.seed for one in self.model.versions}:
                assert (self.weights(seed) in reader.blobs) == (seed not in self.model.gone)
            for text, holds in self.model.tokens.values():
                assert (find_token(reader, text) is not None) == holds

    @invariant()
    def lets_go_of_what_the_model_does_without(self) -> None:
        planned = {blob.sha256 for blob in plan_of(self.registry).fresh if blob.kind == "original"}
        assert planned == {self.weights(seed) for seed in self.model.deletable() - self.model.waiting.keys()}

    def expect_rows(self, lookup: Lookup) -> None:
        live = sorted(self.model.live(), key=lambda one: (one.name, one.number))
        assert [(a.ref, a.description) for a in lookup.adapters()] == [(one.ref, one.description) for one in live]
        everything = sorted(self.model.versions, key=lambda one: (one.name, one.number))
        assert [a.ref for a in lookup.adapters(include_removed=True)] == [one.ref for one in everything]
        names = sorted({one.name for one in live})
        assert lookup.names() == names
        newest = {name: self.model.live(name)[-1].ref for name in names}
        assert {listed.adapter.name: listed.adapter.ref for listed in lookup.newest(names)} == newest
        for name in names:
            assert lookup.adapter(name).ref == newest[name]
            assert [one.adapter.ref for one in lookup.versions(name)] == [one.ref for one in self.model.live(name)]
        for one in self.model.versions:
            if one.removed_at:
                with pytest.raises(UnknownAdapterError):
                    lookup.adapter(one.ref)
        for (name, label), one in self.model.labels.items():
            if not one.removed_at:
                assert lookup.adapter(f"{name}@{label}").ref == one.ref

    def expect_given(self, lookup: Lookup) -> None:
        """Every live version gives back, byte for byte, what it did when it was ingested or encoded last."""
        for one in self.model.live():
            adapter = lookup.adapter(one.ref)
            assert restore_weights(lookup, adapter, lookup.encoding(adapter.id)) == one.given, one.ref

    def weights(self, seed: int) -> str:
        return sha256_hex(self.originals[seed])


@pytest.mark.parametrize("part", range(8))
def test_a_registry_is_what_a_model_says(
    part: int, torture: Any, tmp_path: Path, make_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    torture.promise(
        "Whatever is done in whatever order (ingest, tag, remove, restore, pin, tokens, compress, prune, gc, export, "
        "import, replicate, repair, reopen): a registry answers as a model of it, and checks clean after every step"
    )
    monkeypatch.setattr(prune_module, "_verify_cold", verify_here)
    share_compiled_sql(monkeypatch.setattr)
    cards = ["# Task\n\nContinue the text.\n", "# Task\n\nAnswer the question.\n"]
    Hands.base, Hands.steps = tmp_path, 0
    Hands.folders = {
        (seed, card): read_folder(
            make_adapter(f"{seed}-{card}", seed=seed, card=cards[card], width=6 + 2 * (seed == 3))
        )
        for seed in range(SEEDS)
        for card in range(CARDS)
    }
    Hands.originals = {seed: (Hands.folders[seed, 0].path / WEIGHTS_FILE).read_bytes() for seed in range(SEEDS)}
    steps = torture.runs(20, 12_500)
    machine = seeded(torture.seed * 8 + part)(Hands)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=-(-steps // STEPS_A_RUN),
            stateful_step_count=min(steps, STEPS_A_RUN),
            deadline=None,
            database=None,
            print_blob=True,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
    torture.held(Hands.steps)
