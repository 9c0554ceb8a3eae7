"""What the loops of all trainers share about steps: order, learning rate, AdamW, and its state as plain tensors.

The order of the data is a pure function of seed and epoch, and the position in it is the step: a resumed run needs no
saved sampler, no random state, and cannot drift from the uninterrupted one.
"""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workers.training import parallel
from workers.training.recipes import Recipe

Named = Sequence[tuple[str, nn.Parameter]]


def total_steps(items: int, recipe: Recipe) -> int:
    """Optimiser steps of a run over `items` items."""
    return max(1, round(recipe.epochs * math.ceil(items / recipe.batch_size)))


def step_items(items: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Indices of the items of step `step` (from 0): a slice of the epoch's shuffle; an epoch's last may be short."""
    per_epoch = math.ceil(items / batch_size)
    epoch, place = divmod(step, per_epoch)
    order = list(range(items))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order[place * batch_size : (place + 1) * batch_size]


def learning_rate_factor(step: int, total: int, recipe: Recipe) -> float:
    """Share of the peak learning rate at step `step` (from 0): linear warm-up, then the schedule down to 0."""
    warmup = round(recipe.warmup_ratio * total)
    if step < warmup:
        return (step + 1) / warmup
    if recipe.schedule == "constant":
        return 1.0
    left = (total - step) / max(1, total - warmup)
    return left if recipe.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)


class Optimiser:
    """AdamW over named parameters with clipping; one learning rate per group of names, scaled by the schedule."""

    def __init__(self, groups: Sequence[tuple[Named, float]], recipe: Recipe) -> None:
        self.recipe = recipe
        self.named = [pair for named, _ in groups for pair in named]
        self.peaks = [rate for _, rate in groups]
        # eps as in Ziegler et al.: PyTorch's Adam is more aggressive in its first steps than the one tuned for
        self.adam = torch.optim.AdamW(
            [{"params": [p for _, p in named], "lr": rate} for named, rate in groups],
            eps=1e-5,
            weight_decay=recipe.weight_decay,
            foreach=False if parallel.sharded() else None,  # it cannot mix sharded and whole parameters
        )

    def step(self, step: int, total: int) -> Tensor:
        """Clip each group, update, zero the gradients; returns the first group's gradient norm before clipping.

        Gradients are summed over the processes of the run first.
        """
        parallel.sum_gradients(p for _, p in self.named)
        factor = learning_rate_factor(step, total, self.recipe)
        norms = []
        for group, peak in zip(self.adam.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
            norms.append(parallel.clip(group["params"], self.recipe.max_grad_norm))
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return norms[0]

    def state(self) -> dict[str, Tensor]:
        """Weights and moments by name, plus the random state, for `States.save`."""
        tensors: dict[str, Tensor] = {"random": torch.get_rng_state()}
        for name, parameter in self.named:
            tensors[f"weight/{name}"] = parallel.full(parameter.data)
            for key, value in self.adam.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = parallel.full(value)
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put a saved state back."""
        torch.set_rng_state(tensors["random"])
        for name, parameter in self.named:
            parallel.fill(parameter.data, tensors[f"weight/{name}"])
            if f"step/{name}" in tensors:
                moments: dict[str, Any] = {"step": tensors[f"step/{name}"]}
                for key in ("exp_avg", "exp_avg_sq"):
                    moments[key] = torch.zeros_like(parameter.data)
                    parallel.fill(moments[key], tensors[f"{key}/{name}"])
                self.adam.state[parameter] = moments


def to_floats(metrics: Mapping[str, Tensor | float]) -> dict[str, float]:
    """All metrics of a step as numbers, with one transfer from the device."""
    tensors = [name for name, value in metrics.items() if isinstance(value, Tensor)]
    values: list[float] = []
    if tensors:
        values = torch.stack([metrics[n].detach().float().reshape(()) for n in tensors]).tolist()  # type: ignore[union-attr]
    floats = dict(zip(tensors, values, strict=True))
    return {name: floats[name] if name in floats else float(value) for name, value in metrics.items()}
