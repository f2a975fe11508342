"""What would go wrong with an adapter once it is served, told before: nothing is changed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lorareg.compress.factors.fidelity import energy
from lorareg.compress.factors.weights import Factors, read_weights
from lorareg.compress.serving.adapt import adapt
from lorareg.compress.serving.engines import CHANGE_THE_BASE, ENGINES
from lorareg.registry.errors import InvalidAdapterError, ProfileError
from lorareg.registry.peft_format import read_adapter
from lorareg.registry.types import LONE_SUFFIX, WEIGHTS_FILE, Layout

Level = Literal["error", "warning", "note"]

RULES: dict[str, tuple[Level, str]] = {
    "cannot-be-read": ("error", "the adapter is malformed: what `lorareg ingest` would refuse, for its reason"),
    "not-finite": ("error", "weights are NaN or infinite"),
    "has-no-effect": ("warning", "every update is zero: B was never trained, or was saved before it was"),
    "dead-modules": ("warning", "the update of some modules is zero"),
    "changes-the-base": (
        "warning",
        "its initialisation changed the base model: on the plain one it acts otherwise",
    ),
    "target-modules-missing": ("warning", "target_modules says nothing"),
    "target-without-tensors": ("note", "a module that target_modules names has no tensors"),
    "tensors-without-target": ("warning", "target_modules does not name the module of a tensor, and loaders skip it"),
    "scale-stands-out": ("note", "the update of a module is over a hundred times larger than the usual one"),
    "overflows-float16": ("warning", "a factor, or B with its scale, is beyond 65504 and becomes infinite in float16"),
    "kept-exactly": ("note", "nothing in it is a factor of LoRA: it is stored as it is, and engines do not take it"),
    **{f"not-for-{name}": ("note", f"{engine.name} cannot compute it") for name, engine in ENGINES.items()},
}
"""Every finding there is: how grave it is, and what it means. With `--profile` that engine's is an error."""

STANDS_OUT = 100.0
_MOST_NAMED = 3
_HALF_MAX = 65504.0


@dataclass(frozen=True, slots=True)
class LintFinding:
    """One thing about an adapter."""

    rule: str
    level: Level
    found: str


def lint_path(path: Path, profile: str | None = None) -> list[LintFinding]:
    """What is to be said of a PEFT folder or lone file, also one that `ingest` would refuse."""
    try:
        adapter = read_adapter(path, "unknown" if path.suffix == LONE_SUFFIX else None)
    except InvalidAdapterError as error:
        return [_finding("cannot-be-read", str(error))]
    source = next(file.source for file in adapter.files if file.path == WEIGHTS_FILE)
    return lint_weights(adapter.config, adapter.layout, source.read_bytes(), profile, adapter.opaque)


def lint_weights(
    config: Mapping[str, Any], layout: Layout, weights: bytes, profile: str | None = None, opaque: str = ""
) -> list[LintFinding]:
    """What is to be said of an adapter.

    Args:
        config: its adapter_config.json.
        layout: its layout.
        weights: its weights file.
        profile: an engine it is meant for, whose refusal is an error then.
        opaque: why it has no factors, where it has none.
    """
    found = list(_findings(config, layout, read_weights(weights, layout), opaque))
    if not any(finding.level == "error" for finding in found):
        found += _engines(config, layout, weights, profile)
    order = ("error", "warning", "note")
    return sorted(found, key=lambda finding: order.index(finding.level))


def _findings(
    config: Mapping[str, Any], layout: Layout, modules: Sequence[Factors], opaque: str
) -> Iterator[LintFinding]:
    if not layout.slots:
        yield _finding("kept-exactly", opaque or "it has no factors")
        return
    broken = [m for m, f in zip(layout.modules, modules, strict=True) if not _is_finite(f)]
    if broken:
        yield _finding("not-finite", _some(broken))
        return
    yield from _sizes(layout, modules)
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(CHANGE_THE_BASE):
        yield _finding("changes-the-base", f"init_lora_weights={init!r}")
    yield from _targets(config, layout)


def _sizes(layout: Layout, modules: Sequence[Factors]) -> Iterator[LintFinding]:
    norms = {m: abs(s) * math.sqrt(energy(f)) for m, s, f in zip(layout.modules, layout.scales, modules, strict=True)}
    dead = [module for module, norm in norms.items() if norm == 0]
    if len(dead) == len(norms):
        yield _finding("has-no-effect", f"{len(dead)} modules of update zero")
        return
    if dead:
        yield _finding("dead-modules", _some(dead))
    usual = float(np.median([norm for norm in norms.values() if norm > 0]))
    large = [f"{module} ({norm / usual:.0f} times)" for module, norm in norms.items() if norm > STANDS_OUT * usual]
    if large:
        yield _finding("scale-stands-out", _some(large))
    over = [
        module
        for module, scale, factors in zip(layout.modules, layout.scales, modules, strict=True)
        if max(np.abs(factors.a).max(), np.abs(factors.b).max() * max(abs(scale), 1.0)) > _HALF_MAX
    ]
    if over:
        yield _finding("overflows-float16", _some(over))


def _targets(config: Mapping[str, Any], layout: Layout) -> Iterator[LintFinding]:
    if "lorareg_format" in config:
        return
    named = config.get("target_modules")
    if not named:
        yield _finding("target-modules-missing", f"target_modules is {named!r}")
        return
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        return  # a regular expression: which modules the base model has is not known here
    bare = [
        name for name in named if not any(module == name or module.endswith(f".{name}") for module in layout.modules)
    ]
    if bare:
        yield _finding("target-without-tensors", _some(bare))
    stray = [m for m in layout.modules if not any(m == name or m.endswith(f".{name}") for name in named)]
    if stray:
        yield _finding("tensors-without-target", _some(stray))


def _engines(config: Mapping[str, Any], layout: Layout, weights: bytes, profile: str | None) -> Iterator[LintFinding]:
    if profile is None and (not layout.slots or "lorareg_format" in config):
        return  # nobody would have these engines serve it
    for name in ENGINES if profile is None else [profile]:
        try:
            adapt(name, config, layout, weights, "this adapter")
        except (ProfileError, OverflowError) as error:
            yield LintFinding(f"not-for-{name}", "note" if profile is None else "error", str(error))


def _finding(rule: str, found: str) -> LintFinding:
    return LintFinding(rule, RULES[rule][0], found)


def _is_finite(factors: Factors) -> bool:
    return bool(np.isfinite(factors.a).all() and np.isfinite(factors.b).all())


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
