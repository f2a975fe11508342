"""What a registry of so many adapters takes: bytes, hours and machines, worked out from what was measured of one.

    python bench/capacity.py [--adapters 1000000] [--cores 64] [--disk-mb-s 200]

The adapters are those of Llama-3-8B: rank 8 on q and v, which bench/llama8b.py measured, and rank 16 on all linear
layers, which are 12.3 times the weights and are taken to cost 12.3 times as much. What is measured stands in MEASURED
with where it is from; nothing here is run.
"""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import dataclass

from results import print_table

LAYERS, HIDDEN, KEYS, WIDE = 32, 4096, 1024, 14336
Q, K, V, OUT = (HIDDEN, HIDDEN), (HIDDEN, KEYS), (HIDDEN, KEYS), (HIDDEN, HIDDEN)
GATE, UP, DOWN = (HIDDEN, WIDE), (HIDDEN, WIDE), (WIDE, HIDDEN)


@dataclass(frozen=True, slots=True)
class Case:
    """A kind of adapter."""

    name: str
    rank: int
    modules: tuple[tuple[int, int], ...]
    weight_bytes: int

    @property
    def weights(self) -> int:
        """Of one adapter."""
        return LAYERS * self.rank * sum(d_in + d_out for d_in, d_out in self.modules)


MEASURED_CASE = Case("rank 8, q and v, float32", 8, (Q, V), 4)
CASES = (MEASURED_CASE, Case("rank 16, all linear, bfloat16", 16, (Q, K, V, OUT, GATE, UP, DOWN), 2))
MEASURED = {
    "code_bytes": 314_300,  # beside a mean table at tolerance 0.2: docs/paper.md, from bench/llama8b.py
    "generator_bytes": 1_386_000,  # likewise
    "encode_s": 3.3,  # of a core: docs/paper.md
    "decode_s": 0.165,  # of a core: docs/paper.md
    "side_bytes": 5_000,  # certificate, config, card: bench/main_job.py
    "row_bytes": 1_700,  # in SQLite, at 10^5: bench/scale.py
}


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--cores", type=int, default=64, metavar="N", help="that encode")
    parser.add_argument("--disk-mb-s", type=float, default=200.0, metavar="MB", help="that originals are read at")
    arguments = parser.parse_args()
    plans = [plan(case, arguments.adapters, arguments.cores, arguments.disk_mb_s) for case in CASES]
    print_table(
        (f"{arguments.adapters:,} adapters", *(case.name for case in CASES)),
        [(what, *(one[what] for one in plans)) for what in plans[0]],
    )


def plan(case: Case, adapters: int, cores: int, disk_mb_s: float) -> dict[str, str]:
    """What so many adapters of a kind take."""
    larger = case.weights / MEASURED_CASE.weights
    original, code = case.weights * case.weight_bytes, MEASURED["code_bytes"] * larger
    encode_h, decode_s = MEASURED["encode_s"] * larger * adapters / 3600, MEASURED["decode_s"] * larger
    return {
        "weights of an adapter": f"{case.weights:,}",
        "an original": f"{original / 1e6:.1f} MB",
        "originals": f"{original * adapters / 1e12:.1f} TB",
        "a code": f"{code / 1e6:.2f} MB",
        "codes": f"{code * adapters / 1e12:.2f} TB, {100 * code / original:.1f}%",
        "generator": f"{MEASURED['generator_bytes'] * larger / 1e6:.1f} MB",
        "certificates, configs, cards": f"{MEASURED['side_bytes'] * adapters / 1e9:.0f} GB",
        "rows": f"{MEASURED['row_bytes'] * adapters / 1e9:.1f} GB",
        f"ingest, reading at {disk_mb_s:.0f} MB/s": f"{original * adapters / disk_mb_s / 1e6 / 3600:.0f} h",
        "encode": f"{encode_h:,.0f} core hours",
        f"encode, {cores} cores": f"{encode_h / cores:.0f} h",
        "decode one": f"{decode_s:.2f} s of a core",
        "served by a core": f"{1 / decode_s:.1f}/s",
        "check --read-data, decoding nothing": f"{code * adapters / disk_mb_s / 1e6 / 3600:.1f} h",
        "verify all from the disk": f"{decode_s * adapters / 3600:,.0f} core hours",
    }


if __name__ == "__main__":
    main()
