"""`lorareg show`: all that is known about one adapter."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lorareg.cli.options import AsJson, Home, Quiet, Task
from lorareg.cli.output import MISSING, Output, Table, format_bytes

if TYPE_CHECKING:
    from lorareg.registry.reader import Reader
    from lorareg.registry.types import Adapter, Certificate


def _encoding(registry: Reader, adapter: Adapter) -> dict[str, Any] | None:
    encoding = registry.encoding(adapter.id)
    if encoding is None:
        return None
    fields = asdict(encoding)
    fields["fidelity"] = json.loads(encoding.fidelity)
    fields["tolerance"] = json.loads(encoding.tolerance)
    generator = None if encoding.generator_id is None else registry.generator(encoding.generator_id)
    fields["generator"] = None if generator is None else f"{generator.arch} v{generator.version}"
    for internal in ("id", "adapter_id", "generator_id", "superseded_at"):
        del fields[internal]
    return fields


def _certificate(registry: Reader, adapter: Adapter) -> Certificate | None:
    encoding = registry.encoding(adapter.id)
    return None if encoding is None else registry.certificate(encoding.id)


def _lines(data: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [
        ("adapter", f"{data['name']}@{data['version']}"),
        ("task", " ".join(data["description"].split()) or MISSING),
        ("cohort", data["cohort"]),
        ("base model", data["base_model"]),
        ("rank, weights", f"{data['rank']}, {data['weight_count']}"),
        ("versions", ", ".join(str(version) for version in data["versions"])),
        ("tags", ", ".join(data["tags"]) or MISSING),
        ("task vectors", "; ".join(f"{v['size']} by {v['encoder']}" for v in data["task_vectors"]) or MISSING),
        ("original", data["original"] + ("" if data["pin"] is None else f", pinned {data['pin']}".rstrip())),
        ("source", data["source"]),
        ("ingested", data["created_at"]),
        ("digest", data["digest"]),
    ]
    encoding = data["encoding"]
    if encoding is None:
        return [
            *facts,
            ("stored", f"{format_bytes(data['original_bytes'])}, as it came; `lorareg compress` encodes it"),
        ]
    sizes = f"{format_bytes(encoding['size_bytes'])} for {format_bytes(data['original_bytes'])}"
    return [
        *facts,
        ("stored", f"{sizes}; tier {encoding['tier']}, codec {encoding['codec']}"),
        ("generator", encoding["generator"] or MISSING),
        ("tolerance", _pairs(encoding["tolerance"])),
        ("fidelity", _pairs(encoding["fidelity"])),
        ("output sha256", encoding["output_digest"]),
        ("certificate", data["certificate"] or MISSING),
    ]


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )


def show(task: Task, home: Home = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Show all about one adapter.

    Where it came from, its files, how it is stored, and how exactly it comes back.
    """
    from lorareg.registry.reader import Reader

    with Reader(home) as registry:
        adapter = registry.adapter(task)
        files = registry.files(adapter)
        data: dict[str, Any] = asdict(adapter)
        for internal in ("id", "cohort_id"):
            del data[internal]
        data |= {
            "cohort": registry.cohort(adapter.cohort_id).name,
            "versions": [other.version for other in registry.adapters(name=adapter.name)],
            "tags": [tag.label for tag in registry.tags(adapter)],
            "files": [{"path": f.path, "sha256": f.sha256, "size_bytes": f.size_bytes} for f in files],
            "task_vectors": [
                {"encoder": v.encoder, "size": len(v.vector), "created_at": v.created_at}
                for v in registry.task_vectors(adapter.id)
            ],
            "pin": None if (pin := registry.pin(adapter.id)) is None else pin.reason,
            "original": registry.original(adapter),
            "certificate": None if (proof := _certificate(registry, adapter)) is None else proof.digest,
            "encoding": _encoding(registry, adapter),
        }
    table = Table(
        ("file", "size", "sha256"),
        [(file.path, format_bytes(file.size_bytes), file.sha256) for file in files],
        numbers=frozenset({"size"}),
    )
    facts = [f"{label:<14} {value}" for label, value in _lines(data)]
    Output(as_json, quiet).show(data, *facts, table, brief=[adapter.ref])
