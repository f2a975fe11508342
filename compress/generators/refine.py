"""Latents against a frozen decoder: refined by gradient descent from where the encoder or the prior puts them.

What is kept is the best that was seen of each adapter, as it will be stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lorareg.compress.generators.examples import MODULES, Examples
from lorareg.compress.generators.generator import LATENT_EXPONENT, Generator, Int8
from lorareg.compress.generators.prior import prior_latent
from lorareg.compress.progress import Reporter
from lorareg.registry.types import Layout


def refine(
    generator: Generator,
    layout: Layout,
    examples: Examples,
    start: Tensor,
    steps: int,
    batch_size: int,
    reporter: Reporter,
) -> tuple[Tensor, Tensor]:
    """Gradient descent on latents against the frozen decoder; the best seen of each.

    Args:
        generator: the decoder, as it is stored.
        layout: of the adapters.
        examples: m adapters.
        start: (m, k) latents.
        steps: of each batch.
        batch_size: adapters at a time.
        reporter: is told of every step.

    Returns:
        Latents (m, k) as they are stored, int8, and their losses (m,); both on the CPU.
    """
    module, parameters = MODULES[generator.arch], real_tensors(generator, examples.device)
    unit, latents, losses = 2.0**LATENT_EXPONENT, [], []
    parts = examples.parts(batch_size)
    reporter.start("refining latents", len(parts) * steps)
    for part in parts:
        z = start[part].to(examples.device).clamp(-127 * unit, 127 * unit).detach().clone().requires_grad_(True)
        best, best_z = torch.full((len(z),), torch.inf, device=z.device), z.detach().clone()
        optimizer, chosen = torch.optim.Adam([z], lr=unit), examples.batch(part)
        for _ in range(steps):
            stored = z + ((z / unit).round().clamp(-127, 127) * unit - z).detach()
            drawn = module.draw(layout, parameters, stored, examples.condition[part])
            loss = examples.objective(drawn, chosen, part)
            better = loss.detach() < best
            best = torch.where(better, loss.detach(), best)
            best_z[better] = stored.detach()[better]
            optimizer.zero_grad()
            loss.sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            reporter.advance(1, loss=float(best.mean()))
        latents.append((best_z / unit).round().to(torch.int8).cpu())
        losses.append(best.cpu())
    reporter.finish()
    if not latents:
        return torch.zeros((0, generator.latent_size), dtype=torch.int8), torch.zeros(0)
    return torch.cat(latents), torch.cat(losses)


def prior_means(generator: Generator, conditions: Sequence[Int8]) -> Tensor:
    """The latents (m, k) that conditions (c,) alone suggest: the prior's means, zeros where there is no prior."""
    found = [prior_latent(generator, condition) for condition in conditions]
    nothing = np.zeros(generator.latent_size, np.int8)
    stored = np.stack([nothing if latent is None else latent for latent in found])
    return torch.from_numpy(stored.astype(np.float32)) * 2.0**LATENT_EXPONENT


def losses_of(generator: Generator, layout: Layout, examples: Examples, latents: Tensor, batch_size: int) -> Tensor:
    """The losses (m,) of what a stored generator draws for latents (m, k), on the CPU."""
    parameters = real_tensors(generator, examples.device)
    losses = []
    for part in examples.parts(batch_size):
        z = latents[part].to(examples.device)
        drawn = MODULES[generator.arch].draw(layout, parameters, z, examples.condition[part])
        losses.append(examples.objective(drawn, examples.batch(part), part).detach().cpu())
    return torch.cat(losses) if losses else torch.zeros(0)


def real_tensors(generator: Generator, device: torch.device) -> dict[str, Tensor]:
    """A stored generator's tensors, float32."""
    return {
        name: torch.from_numpy(tensor.real.astype(np.float32)).to(device) for name, tensor in generator.tensors.items()
    }
