"""What a server offers of an adapter: the files of a version with their digests, and the names it goes by.

All of it is told from rows: SHA-256 and size of a weights file were recorded when it was encoded, so listings and HEAD
decode nothing. A commit id is made of the rows that say what the files are, so it changes as soon as one of them does.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Lock
from typing import Any

from lorareg.compress.materialize import card_of
from lorareg.registry.listings import Listed
from lorareg.registry.lookup import Lookup
from lorareg.registry.single_file import file_name_of
from lorareg.registry.types import (
    CARD_FILE,
    CONFIG_FILE,
    EXTRAS_FOLDER,
    WEIGHTS_FILE,
    Adapter,
    AdapterFile,
    Encoding,
    canonical_json,
    sha256_hex,
)

MAIN = "main"
COMMIT_CHARS = 40
MOST_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class OfferedFile:
    """One file of a revision. `data` is None for weights, which are decoded when somebody asks for them."""

    name: str
    size_bytes: int
    sha256: str
    data: bytes | None

    @property
    def pointer(self) -> bytes:
        """What a repository of git has in place of weights (Git LFS)."""
        lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}", f"size {self.size_bytes}")
        return "".join(f"{line}\n" for line in lines).encode()

    @property
    def blob_id(self) -> str:
        """The id that git would give it; of weights, to the pointer that stands for them."""
        data = self.pointer if self.data is None else self.data
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()

    @property
    def etag(self) -> str:
        """What it is known by to whoever keeps a copy: SHA-256 of weights, git's id of the others."""
        return self.sha256 if self.data is None else self.blob_id


@dataclass(frozen=True, slots=True)
class Offer:
    """A version of an adapter as a revision of a repository."""

    adapter: Adapter
    encoding: Encoding | None
    files: Mapping[str, OfferedFile]
    commit: str

    @property
    def weights(self) -> OfferedFile:
        """The file that is decoded."""
        return next(file for file in self.files.values() if file.data is None)

    @property
    def is_lone(self) -> bool:
        """Whether it is one file and no folder of PEFT's."""
        return CONFIG_FILE not in self.files

    @property
    def revision(self) -> str:
        """What the version goes by."""
        return f"v{self.adapter.version}"


@dataclass(frozen=True, slots=True)
class Facts:
    """All rows that an offer is told from."""

    adapter: Adapter
    encoding: Encoding | None
    certified: str | None  # the digest of the encoding's certificate
    files: tuple[AdapterFile, ...]

    @property
    def commit(self) -> str:
        """The id of what is offered: another one as soon as a file of it is another, told without reading any."""
        code = self.encoding
        how = None if code is None else [code.output_digest, code.codec, code.tier, code.size_bytes, code.fidelity]
        files = [[file.path, file.sha256] for file in self.files]
        return sha256_hex(canonical_json([self.adapter.ref, files, how, self.certified]).encode())[:COMMIT_CHARS]


def facts_of(lookup: Lookup, listed: Sequence[Listed]) -> list[Facts]:
    """The rows of several versions, in a few queries.

    Raises:
        IntegrityError: a row is damaged.
    """
    files = lookup.files_of([one.adapter.id for one in listed])
    certificates = lookup.certificates_of([one.encoding.id for one in listed if one.encoding is not None])
    told = []
    for one in listed:
        certificate = None if one.encoding is None else certificates.get(one.encoding.id)
        kept = tuple(file for file in files[one.adapter.id] if not file.path.startswith(EXTRAS_FOLDER))
        told.append(Facts(one.adapter, one.encoding, None if certificate is None else certificate.digest, kept))
    return told


class Offers:
    """Offers of one registry, remembered for as long as the rows they were told from say the same."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._known: OrderedDict[Facts, Offer] = OrderedDict()

    def of(self, lookup: Lookup, adapter: Adapter) -> Offer:
        """The files of a version.

        Raises:
            IntegrityError: a row or a small file is damaged.
        """
        (facts,) = facts_of(lookup, [Listed(adapter, lookup.encoding(adapter.id))])
        with self._lock:
            if facts in self._known:
                self._known.move_to_end(facts)
                return self._known[facts]
        offer = _told(lookup, facts)
        with self._lock:
            self._known[facts] = offer
            if len(self._known) > MOST_REMEMBERED:
                self._known.popitem(last=False)
        return offer

    def find(self, lookup: Lookup, name: str, revision: str) -> Offer | None:
        """A version by what a client calls it: `main`, `v3`, `3`, a tag, or a commit id; None if there is none.

        Raises:
            UnknownAdapterError: there is no task of that name.
            InvalidNameError: it is no name.
        """
        newest = lookup.adapter(name)
        if revision == MAIN:
            return self.of(lookup, newest)
        versions = lookup.adapters(name=newest.name)
        number = revision.removeprefix("v")
        labelled = {tag.adapter_id for tag in lookup.labels(newest.name) if tag.label == revision}
        for version in reversed(versions):
            if str(version.version) == number or version.id in labelled:
                return self.of(lookup, version)
        if len(revision) == COMMIT_CHARS:
            told = facts_of(lookup, [Listed(version, lookup.encoding(version.id)) for version in reversed(versions)])
            return next((self.of(lookup, facts.adapter) for facts in told if facts.commit == revision), None)
        return None


def _told(lookup: Lookup, facts: Facts) -> Offer:
    adapter, encoding = facts.adapter, facts.encoding
    config = lookup.read_file(adapter, CONFIG_FILE)
    lone_name = file_name_of(json.loads(config))
    if encoding is None:
        stored = next(file for file in facts.files if file.path == WEIGHTS_FILE)
        digest, size_bytes = stored.sha256, stored.size_bytes
    else:
        digest, size_bytes = encoding.output_digest, encoding.output_bytes
    small = {} if lone_name else {CONFIG_FILE: config}
    card = card_of(lookup, adapter, encoding)
    if card is not None:
        small[CARD_FILE] = card
    files = [OfferedFile(name, len(data), sha256_hex(data), data) for name, data in small.items()]
    files.append(OfferedFile(lone_name or WEIGHTS_FILE, size_bytes, digest, None))
    return Offer(adapter, encoding, {file.name: file for file in sorted(files, key=lambda f: f.name)}, facts.commit)


def summary(adapter: Adapter, commit: str) -> dict[str, Any]:
    """What the Hub's API says of a model in a list."""
    return {
        "_id": commit[:24],
        "id": adapter.name,
        "modelId": adapter.name,
        "author": adapter.name.partition("/")[0] if "/" in adapter.name else None,
        "sha": commit,
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "createdAt": hub_time(adapter.created_at),
        "lastModified": hub_time(adapter.created_at),
        "library_name": "peft",
        "tags": tags_of(adapter),
        "cardData": {"base_model": adapter.base_model},
    }


def model_info(offer: Offer, *, with_sizes: bool = False) -> dict[str, Any]:
    """What the Hub's API says of one model."""
    siblings = [_sibling(file, with_sizes) for file in offer.files.values()]
    return {**summary(offer.adapter, offer.commit), "siblings": siblings}


def hub_time(time: str) -> str:
    """A stored time in the one form that clients of the Hub read: milliseconds and a Z."""
    return datetime.fromisoformat(time).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def tags_of(adapter: Adapter) -> list[str]:
    """What a model can be filtered by."""
    return [
        "peft",
        "safetensors",
        "lora",
        f"base_model:{adapter.base_model}",
        f"base_model:adapter:{adapter.base_model}",
    ]


def tree(offer: Offer) -> list[dict[str, Any]]:
    """The files of a revision, as the Hub lists a folder."""
    return [
        {"type": "file", "path": file.name, "size": file.size_bytes, "oid": file.blob_id, **_lfs(file, "oid")}
        for file in offer.files.values()
    ]


def _sibling(file: OfferedFile, with_sizes: bool) -> dict[str, Any]:
    sizes = {"size": file.size_bytes, "blobId": file.blob_id, **_lfs(file, "sha256")} if with_sizes else {}
    return {"rfilename": file.name, **sizes}


def _lfs(file: OfferedFile, digest_name: str) -> dict[str, Any]:
    if file.data is not None:
        return {}
    return {"lfs": {digest_name: file.sha256, "size": file.size_bytes, "pointerSize": len(file.pointer)}}
