"""What a task's page shows: one version of it, how exactly it comes back, its files, and how to use it."""

from __future__ import annotations

import json
import shlex
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from lorareg.cli.output import format_bytes, format_error
from lorareg.cli.plots import module_errors
from lorareg.cli.web.pages.overview import TaskLine, task_line
from lorareg.registry.certificate import Subject, compose, digest_of
from lorareg.registry.errors import UnknownAdapterError
from lorareg.registry.listings import Listed
from lorareg.registry.lookup import Lookup
from lorareg.registry.single_file import file_name_of
from lorareg.registry.types import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, Adapter, AdapterFile, Encoding

MAX_VERSIONS = 50
MAX_MODULE_ROWS = 400

_FIGURES = {
    "relative_error": "Relative error of ΔW",
    "cosine": "Cosine with the original ΔW",
    "worst_module_error": "Error of the worst module",
    "worst_module": "Worst module",
    "least_cosine": "Least cosine of a module",
    "max_error": "Largest error of a single weight of ΔW",
    "kl_divergence": "Divergence of predictions, nats a token",
    "gain_retained": "Gain retained",
    "not_a_number": "Weights that are no number",
    "infinite": "Weights that are infinite",
}
"""What is shown of a fidelity, and how it is called."""


@dataclass(frozen=True, slots=True)
class VersionLine:
    """A version in the list of versions."""

    line: TaskLine
    created_at: str
    labels: list[str]


@dataclass(frozen=True, slots=True)
class Download:
    """A file to be had; its size is None where it is only known once it is made."""

    path: str
    size_bytes: int | None
    about: str


@dataclass(frozen=True, slots=True)
class Proven:
    """A certificate as rows of a table. `modules` are (module, error), at most `MAX_MODULE_ROWS`, the worst if cut."""

    digest: str
    is_stale: bool
    measured_at: str
    figures: list[tuple[str, str]]
    digests: list[tuple[str, str]]
    module_count: int
    modules: list[tuple[str, float]]
    plot: str  # SVG, from `plots`


@dataclass(frozen=True, slots=True)
class Snippet:
    """Something to copy."""

    title: str
    about: str
    code: str


@dataclass(frozen=True, slots=True)
class TaskPage:
    """One version of a task. `digest` is of its config and weights as they were ingested."""

    line: TaskLine
    description: str
    base_model: str
    rank: int
    weight_count: int
    digest: str
    cohort: str
    generator: str | None
    created_at: str
    versions: list[VersionLine]
    version_count: int
    downloads: list[Download]
    proven: Proven | None
    snippets: list[Snippet]


def task_page(lookup: Lookup, name: str, version: str | None, address: str) -> TaskPage:
    """The page of a version ("3", or a label); without one, of the newest.

    Raises:
        InvalidNameError: name or version is no such thing.
        UnknownAdapterError: there is no such adapter.
        IntegrityError: rows or the config are damaged.
    """
    asked = lookup.adapter(name if version is None else f"{name}@{version}")
    every = lookup.versions(name)
    found = next((listed for listed in every if listed.adapter.id == asked.id), None)
    if found is None:
        raise UnknownAdapterError(name=asked.ref, home="the registry", hint="")
    adapter, encoding = found.adapter, found.encoding
    subject = None if encoding is None else Subject.of(lookup, adapter, encoding)
    generator = None if subject is None else subject.generator
    downloads = _downloads(lookup, adapter, encoding)
    return TaskPage(
        line=task_line(found),
        description=" ".join(adapter.description.split()),
        base_model=adapter.base_model,
        rank=adapter.rank,
        weight_count=adapter.weight_count,
        digest=adapter.digest,
        cohort=lookup.cohort(adapter.cohort_id).name,
        generator=None if generator is None else f"{generator.arch} v{generator.version}",
        created_at=adapter.created_at,
        versions=_versions(lookup, name, every),
        version_count=len(every),
        downloads=downloads,
        proven=None if subject is None else _proven(lookup, subject),
        snippets=_snippets(adapter, downloads, address),
    )


def _versions(lookup: Lookup, name: str, every: Sequence[Listed]) -> list[VersionLine]:
    labels: dict[int, list[str]] = {}
    for tag in lookup.labels(name):
        labels.setdefault(tag.adapter_id, []).append(tag.label)
    newest_first = list(reversed(every))[:MAX_VERSIONS]
    return [VersionLine(task_line(one), one.adapter.created_at, labels.get(one.adapter.id, [])) for one in newest_first]


def _downloads(lookup: Lookup, adapter: Adapter, encoding: Encoding | None) -> list[Download]:
    """What `materialize` writes."""
    files: dict[str, AdapterFile] = {file.path: file for file in lookup.files(adapter)}
    is_exact = encoding is None or encoding.output_digest == files[WEIGHTS_FILE].sha256
    weights_bytes = files[WEIGHTS_FILE].size_bytes if encoding is None else encoding.output_bytes
    about = "weights, as they were ingested" if is_exact else "weights, decoded when they are asked for"
    lone_name = file_name_of(json.loads(lookup.read_file(adapter, CONFIG_FILE)))
    if lone_name:
        found = [Download(lone_name, weights_bytes, about)]
    else:
        found = [
            Download(WEIGHTS_FILE, weights_bytes, about),
            Download(CONFIG_FILE, files[CONFIG_FILE].size_bytes, "PEFT config"),
        ]
    if not is_exact:
        found.append(Download(CARD_FILE, None, "model card, with a note on what was reconstructed"))
    elif CARD_FILE in files:
        found.append(Download(CARD_FILE, files[CARD_FILE].size_bytes, "model card"))
    return found


def _proven(lookup: Lookup, subject: Subject) -> Proven | None:
    certificate = lookup.certificate(subject.encoding.id)
    if certificate is None:
        return None
    try:
        statement = compose(subject, certificate)
    except (KeyError, ValueError, struct.error):  # as `certificate.is_stale`: it is of other rows than there are now
        return Proven(certificate.digest, True, "", [], [], 0, [], "")
    modules = list(statement["modules"].items())
    shown = modules if len(modules) <= MAX_MODULE_ROWS else sorted(modules, key=lambda one: -one[1])[:MAX_MODULE_ROWS]
    return Proven(
        digest=certificate.digest,
        is_stale=digest_of(statement) != certificate.digest,
        measured_at=str(statement.get("measured_at", "")),
        figures=_figures(statement),
        digests=_digests(statement),
        module_count=len(modules),
        modules=shown,
        plot=module_errors(modules),
    )


def _figures(statement: Mapping[str, Any]) -> list[tuple[str, str]]:
    fidelity = statement["fidelity"]
    rows = [(words, _value(key, fidelity[key])) for key, words in _FIGURES.items() if key in fidelity]
    held_to = ", ".join(
        f"{key.replace('_', ' ')} {_value(key, value)}" for key, value in statement["tolerance"].items()
    )
    projections = statement["projections"]
    return [
        *rows,
        ("Held to", held_to or "nothing"),
        ("Projections of the original", f"{projections['count']:,}" if projections else "none: output is the original"),
        ("Decoder", f"{statement['decoder']['codec']}, certified by lorareg {statement['decoder']['lorareg']}"),
    ]


def _value(key: str, value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    if key == "gain_retained":
        return f"{100 * value:.2f}%"
    return format_error(value) if key.endswith("error") and key != "max_error" else f"{value:.5g}"


def _digests(statement: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, SHA-256) of all that was compared."""
    original, stored, output = statement["original"], statement["stored"], statement["output"]
    rows = [
        (f"original weights, {format_bytes(original['weights_bytes'])}", original["weights_sha256"]),
        (f"stored code, {format_bytes(stored['code']['size_bytes'])}", stored["code"]["sha256"]),
        (f"decoded weights, {format_bytes(output['size_bytes'])}", output["sha256"]),
    ]
    if stored["generator"]:
        shared = stored["generator"]
        rows.insert(2, (f"generator, {format_bytes(shared['size_bytes'])}", shared["sha256"]))
    return rows


def _snippets(adapter: Adapter, downloads: Sequence[Download], address: str) -> list[Snippet]:
    """How to get the adapter and use it; whatever is not ours is quoted for the language it stands in."""
    task, revision = adapter.name.rpartition("/")[2], f"v{adapter.version}"
    root = f"{address}/{adapter.name}/resolve/{revision}"
    is_folder = any(file.path == CONFIG_FILE for file in downloads)
    urls = [shlex.quote(f"{root}/{quote(file.path)}") for file in downloads if file.path != CARD_FILE]
    curl = " \\\n  ".join([f"curl -fL --create-dirs --output-dir {task} --remote-name-all", *urls])
    fetch = f"HF_ENDPOINT={shlex.quote(address)} hf download {adapter.name} --revision {revision} --local-dir {task}"
    python = [
        "from huggingface_hub import snapshot_download",
        "",
        f"folder = snapshot_download({adapter.name!r}, revision={revision!r},",
        f"                           endpoint={address!r})",
    ]
    if is_folder:
        python = [
            *python[:1],
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            *python[1:],
            f"base = AutoModelForCausalLM.from_pretrained({adapter.base_model!a})",
            "model = PeftModel.from_pretrained(base, folder)",
        ]
    about = (
        "endpoint= asks this server for the adapter alone. Setting HF_ENDPOINT would ask it for the base model, too."
    )
    return [
        Snippet("Python", about if is_folder else "", "\n".join(python)),
        Snippet("Hugging Face command line", "Writes a folder that PEFT loads." if is_folder else "", fetch),
        Snippet("curl", 'A token, if the server wants one: -H "Authorization: Bearer $HF_TOKEN"', curl),
        Snippet(
            "lorareg",
            "Where the registry itself is at hand.",
            f"lorareg materialize {adapter.ref} -o {task}",
        ),
    ]
