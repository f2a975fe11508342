"""What `llama8b` prints of its rows: the synthetic adapters, memory, totals, and seconds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from results import Results, Row, print_table

from lorareg.compress.generators import train

SLOTS = "slots"
TOLERANCE = 0.2
CHOICES = ("at first", "within half of that")


def report(results: Results, planned: Sequence[int], batch: int, widths: Sequence[int], adapters: int) -> None:
    rows = results.rows
    real, synthetic = (rows["spectra"][name] for name in ("real", "synthetic"))
    print("\nThe synthetic adapters beside the measured ones, at the measured ones' layout\n")
    print_table(("", "measured", "synthetic"), spectra_lines(real, synthetic))
    tables = rows["tables"]
    preset = train.PRESETS[SLOTS]
    print(
        f"\nPlanning: what is held of {tables['weights']} weights, {tables['adapter_bytes'] / 1e6:.1f} MB an adapter\n"
    )
    print_table(
        ("adapters", "on disk MB", "memory of its own MB", "with pages of files MB", "s an adapter"),
        [
            (
                str(count),
                f"{rows[f'plan {count}']['slots_bytes'] / 1e6:.0f}",
                f"{rows[f'plan {count}']['own_bytes'] / 1e6:.0f}",
                f"{rows[f'plan {count}']['resident_bytes'] / 1e6:.0f}",
                f"{rows[f'plan {count}']['elapsed_s'] / count:.2f}",
            )
            for count in planned
        ],
    )
    original_bytes = adapters * tables["adapter_bytes"]
    print(f"\n{adapters} adapters, {original_bytes / 1e9:.1f} GB; tolerance {TOLERANCE}; totals in MB\n")
    print_table(
        ("generator", "weights", "file kB", "code kB", "total", "% of originals", "at best: code kB", "total"),
        total_lines(rows, widths, adapters, original_bytes),
    )
    print(f"\nOne core: training batches of {batch}, {preset.steps} steps of {preset.batch_size} in a full run\n")
    print_table(
        ("network", "step s", "spread", "adapters/s", "hours to train", "to refine", "own MB", "encode s", "decode ms"),
        [time_line(f"slots {hidden}", rows[f"width {hidden}"], adapters) for hidden in widths],
    )
    for name in ("alone", "mean"):
        row = tables[name]
        print(f"{name}: encode {row['encode_s']:.1f} s, decode {1e3 * row['decode_s']:.0f} ms an adapter")
    choice = rows["choice"]
    for one in (choice[name] for name in CHOICES if name in choice):
        print(
            f"\nWithin {one['cap_bytes']} bytes ({choice['adapter_bytes'] / 1e6:.2f} MB an adapter): {one['message']}"
        )
        assert one["file_bytes"] <= one["cap_bytes"], "a generator keeps its limit"
    results.save()
    print(f"\nWritten: {results.path}")


def spectra_lines(real: Row, synthetic: Row) -> list[tuple[str, str, str]]:
    lines = []
    for kind in real["kinds"]:
        for name in ("singular", "rows_b", "moved_a"):
            both = [" ".join(f"{x:.3f}" for x in of["kinds"][kind][name][:4]) for of in (real, synthetic)]
            lines.append((f"{kind} {name}", *both))
        for name in ("mean_a", "mean_b"):
            lines.append((f"{kind} {name}", *(f"{of['kinds'][kind][name]:.3f}" for of in (real, synthetic))))
    for name in ("shared_a", "shared_b"):
        lines.append(
            (f"{name} 1, 4, 16", *(" ".join(f"{of[name][k]:.3f}" for k in (0, 3, 15)) for of in (real, synthetic)))
        )
    for name, what in (("alone_percent", "code alone, %"), ("mean_percent", "code beside a mean table, %")):
        lines.append((what, *(f"{of[name]:.2f}" for of in (real, synthetic))))
    return lines


def total_lines(
    rows: dict[str, Row], widths: Sequence[int], adapters: int, original_bytes: int
) -> list[tuple[str, ...]]:
    tables = rows["tables"]

    def line(name: str, weights: str, file: float, code: float, best: float | None) -> tuple[str, ...]:
        total = file + adapters * code
        at_best = ("", "") if best is None else (f"{best / 1e3:.1f}", f"{(file + adapters * best) / 1e6:.1f}")
        share = f"{100 * total / original_bytes:.2f}"
        return (name, weights, f"{file / 1e3:.0f}", f"{code / 1e3:.1f}", f"{total / 1e6:.1f}", share, *at_best)

    lines = [
        line("none", "0", 0, tables["alone_code_bytes"], None),
        line("mean", "0", tables["mean_file_bytes"], tables["mean_code_bytes"], None),
    ]
    for hidden in widths:
        row, best = rows[f"width {hidden}"], rows[f"ceiling {hidden}"]["code_bytes"]
        lines.append(line(f"slots {hidden}", str(row["weights"]), row["file_bytes"], row["code_bytes"], best))
    best = rows["ceiling all"]["code_bytes"]
    lines.append(("all that is shared", "", "", "", "", "", f"{best / 1e3:.1f}", f"{adapters * best / 1e6:.1f}"))
    return lines


def time_line(name: str, row: Row, adapters: int) -> tuple[str, ...]:
    """A network's seconds, and the hours of a full run: the preset's steps, then every latent refined."""
    preset, step_s = train.PRESETS[SLOTS], median(row["step_s"])
    train_h = preset.steps * preset.batch_size / row["batch"] * step_s / 3600
    refine_h = adapters / row["batch"] * preset.refine_steps * median(row["refine_step_s"]) / 3600
    return (
        name,
        f"{step_s:.2f}",
        f"{min(row['step_s']):.2f}-{max(row['step_s']):.2f}",
        f"{row['batch'] / step_s:.1f}",
        f"{train_h:.1f}",
        f"{refine_h:.1f}",
        f"{row['own_bytes'] / 1e6:.0f}",
        f"{row['encode_s']:.1f}",
        f"{1e3 * row['decode_s']:.0f}",
    )
