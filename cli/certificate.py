"""`lorareg certificate`: what was proven of an adapter, as JSON that stands on its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lorareg.cli.options import AsJson, Home, Quiet, Task
from lorareg.cli.output import Output
from lorareg.registry.errors import SignatureError


def certificate(
    task: Task,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", show_default=False, help="Write it to a file.")
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option(
            "--sign",
            metavar="KEY.pem",
            show_default=False,
            help="Sign it with an Ed25519 key, such as `openssl genpkey -algorithm ed25519` makes.",
        ),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check",
            metavar="FILE",
            show_default=False,
            help="Instead: compare an exported certificate, and its signature, with what is stored.",
        ),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Print an adapter's certificate as JSON, or check one.

    It holds the digests of original, stored bytes and decoded output, what was measured, and seeded
    projections of original and decoded weights, which anyone can redo from the digests alone.

    Raises:
        SignatureError: the certificate to check is of something else than what is stored.
    """
    from lorareg.compress.proofs.verify import certified_statement
    from lorareg.registry.reader import Reader

    if check is not None and (out or sign):
        raise typer.BadParameter("takes neither --out nor --sign.", param_hint="--check")
    with Reader(home) as registry:
        adapter = registry.adapter(task)
        exported = certified_statement(registry, adapter)
    if check is not None:
        _check(check, adapter.ref, exported, Output(as_json, quiet))
        return
    if sign is not None:
        from lorareg.registry.signatures import sign as sign_export

        exported = sign_export(exported, sign)
    text = json.dumps(exported, indent=2, allow_nan=False)
    if out is None:
        print(text)
    else:
        out.write_text(text + "\n", encoding="utf-8")
        data = {"written": str(out), "digest": exported["digest"]}
        Output(as_json, quiet).show(data, f"{adapter.ref}: certificate {exported['digest']} written to {out}")


def _check(path: Path, ref: str, stored: dict[str, Any], output: Output) -> None:
    """Raises SignatureError where the file is damaged, or is about something else than what is stored."""
    from lorareg.registry.signatures import check_export

    found = check_export(path)
    if found["digest"] != stored["digest"]:
        what = ", ".join(key for key, value in stored["statement"].items() if found["statement"].get(key) != value)
        raise SignatureError(
            what=str(path),
            reason=f"it is not the certificate of {ref} as it is stored now: they differ in {what}",
            remedy="It may be of an earlier code, or of another adapter.",
        )
    key = found.get("signature", {}).get("public_key")
    signed = f"signed by the key {key}" if key else "not signed"
    data = {"holds": True, "digest": found["digest"], "public_key": key}
    output.show(data, f"{path} is the certificate of {ref} as it is stored now; {signed}.")
