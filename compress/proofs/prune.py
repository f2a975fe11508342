"""Verifying what `prune` would let go: in a new process, from bytes that come from the disk.

A new process shares no cache of ours with the one that encoded, and drops each file's pages from the
system's before it reads it. Only what it says of an encoding that is still the current one counts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorareg.compress.progress import Reporter
from lorareg.registry.errors import LoraregError, RegistryError
from lorareg.registry.prune import Plan, Removable, plan
from lorareg.registry.replicate import is_inside, open_location
from lorareg.registry.store import Registry
from lorareg.registry.sweep import retire
from lorareg.registry.types import RetiredBlob

BATCH = 200
"""Adapters to a process."""


def prune(registry: Registry, reporter: Reporter) -> tuple[list[RetiredBlob], list[str]]:
    """Verify all that could go and quarantine what passes; also gives back what did not, and why.

    Raises:
        RegistryError: the verifying process failed as a whole.
    """
    found = plan_of(registry)
    owners = sorted({owner for blob in found.fresh for owner in blob.owners})
    refs = {adapter.id: adapter.ref for adapter in registry.adapters(include_removed=True) if adapter.id in owners}
    verdicts: dict[int, Mapping[str, Any]] = {}
    reporter.start("verifying in a new process", len(refs))
    for start in range(0, len(owners), BATCH):
        batch = [refs[owner] for owner in owners[start : start + BATCH]]
        for verdict in _verify_cold(registry.home, batch):
            verdicts[int(verdict["adapter_id"])] = verdict
            reporter.advance(1)
    reporter.finish()
    copies = {number: _copy_problem(registry, number) for blob in found.fresh for number in blob.generators}
    refused = [problem for blob in found.fresh for problem in _problems(blob, verdicts, copies)]
    passed = {blob.sha256: blob.proof for blob in found.fresh if not list(_problems(blob, verdicts, copies))}
    return retire(registry, passed), list(dict.fromkeys(refused))


def plan_of(registry: Registry) -> Plan:
    """What could go now."""
    with registry.snapshot() as frozen:
        return plan(frozen.fetch)


def _problems(blob: Removable, verdicts: Mapping[int, Mapping[str, Any]], copies: Mapping[int, str]) -> Iterator[str]:
    """Why a blob must stay, after its adapters were verified."""
    for owner, encoding_id in blob.owners.items():
        verdict = verdicts.get(owner)
        if verdict is None:
            yield f"{blob.what}: was not verified"
        elif verdict["problems"]:
            yield f"{verdict['ref']}: {verdict['problems'][0]}"
        elif verdict["encoding_id"] != encoding_id:
            yield f"{verdict['ref']}: was encoded anew meanwhile"
    for number in blob.generators:
        if copies[number]:
            yield f"{blob.what}: {copies[number]}"


def _copy_problem(registry: Registry, generator_id: int) -> str:
    """Why no second copy of a generator can be read back; empty if one can."""
    generator = registry.generator(generator_id)
    problem = f"generator {generator.arch} v{generator.version} has no second copy"
    for copy in registry.generator_copies(generator_id):
        if is_inside(registry, copy.location):  # blobs were moved to it since
            problem = f"the second copy of generator {generator.arch} v{generator.version} is the registry's own store"
            continue
        try:
            open_location(copy.location).get(generator.sha256)
        except (LoraregError, OSError) as error:
            problem = f"the second copy of generator {generator.arch} v{generator.version} cannot be read: {error}"
        else:
            return ""
    return problem


def _verify_cold(home: Path, refs: Sequence[str]) -> list[Mapping[str, Any]]:
    """`lorareg verify` on adapters, in a new process.

    Raises:
        RegistryError: it did not say anything.
    """
    command = [
        sys.executable,
        "-m",
        "lorareg.cli",
        "verify",
        "--cold",
        "--removed",
        "--home",
        str(home),
        "--json",
        *refs,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        verdicts: list[Mapping[str, Any]] = json.loads(done.stdout)["adapters"]
    except (ValueError, KeyError) as error:
        reason = f"the process that was to verify it failed ({done.stderr.strip()[-300:] or done.returncode})"
        raise RegistryError(home=home, reason=reason, remedy="Nothing was changed.") from error
    return verdicts
