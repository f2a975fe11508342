"""Task vectors as ICM-LoRA takes them: last-layer, last-token hidden states, averaged over samples of a task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from cohort import samples_of
from gains import load_model

from lorareg.compress.factors.weights import read_weights
from lorareg.compress.generators.generator import Int8
from lorareg.compress.tasks.task_vectors import MAX_TOKENS, standardised

if TYPE_CHECKING:
    from paper import RankStudy


def hidden_states(path: Path, study: RankStudy, samples: int, *, adapted: bool) -> tuple[Mapping[str, Int8], str]:
    """The vector of each task, by the base model or by the model with the task's last checkpoint, and who made them."""
    model, layout = load_model(path), study.cohort.layout
    vectors = {}
    for task, last in study.last.items():
        texts = samples_of(study.cohort.folders[last].parent)[:samples]
        weights = {}
        if adapted:
            weights = model.weights_of(layout, read_weights(study.cohort.originals[last].data, layout))
        states = []
        with torch.no_grad(), model.adapted(weights):
            for text in texts:
                tokens = torch.tensor([model.tokens(text)[:MAX_TOKENS]])
                states.append(model.model.model(input_ids=tokens).last_hidden_state[0, -1].double().numpy())
        vectors[task] = standardised(np.mean(states, axis=0))
    return vectors, f"hidden-{'after' if adapted else 'before'}"
