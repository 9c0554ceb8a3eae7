"""From the rewards of a prompt's completions to their advantages: what each did better than its siblings.

Shapes: (P, G), P prompts with G completions each. NaN marks a completion that could not be scored: it is left out of
its group's mean and deviation, and its own advantage is 0.
"""

from typing import Literal

import torch
from torch import Tensor


def combine(scores: Tensor, weights: Tensor) -> Tensor:
    """Σ_c w_c s_c over the components of (P, G, C) scores, with (C,) weights → (P, G).

    A component that scores no completion of a group does not apply to that prompt and counts for nothing. One that
    scores some of them but not this one leaves this one unscorable: counting it as 0 would be a judgement.
    """
    known = ~scores.isnan()
    applies = known.any(1, keepdim=True)
    total = (scores.nan_to_num() * weights).sum(2)
    unscorable = (applies & ~known).any(2) | ~applies.any(2)
    return total.masked_fill(unscorable, torch.nan)


def relative_to_group(rewards: Tensor, scale: Literal["group", "batch", "none"] = "group") -> Tensor:
    """GRPO (Shao et al. 2024, §4.1.2): (R - mean) / (std + 1e-4), mean over the group, std (n-1) as `scale` says.

    `none` is Dr. GRPO (Liu et al. 2025): dividing by the group's std gives prompts that are nearly always or nearly
    never solved too much weight. `batch` divides by the std of all rewards.
    """
    gap = rewards - rewards.nanmean(1, keepdim=True)
    if scale == "group":
        gap = gap / (deviation(rewards, 1) + 1e-4)
    elif scale == "batch":
        gap = gap / (deviation(rewards.flatten(), 0) + 1e-4)
    return gap.nan_to_num()


def leave_one_out(rewards: Tensor) -> Tensor:
    """RLOO (Kool et al. 2019; Ahmadian et al. 2024): R_i less the mean of the others; 0 where there are no others."""
    others = (~rewards.isnan()).sum(1, keepdim=True) - 1
    baseline = (rewards.nansum(1, keepdim=True) - rewards) / others
    return (rewards - baseline).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def alike(rewards: Tensor) -> Tensor:
    """(P,) whether the scorable rewards of a group do not differ, so that it teaches nothing."""
    low, high = rewards.nan_to_num(nan=torch.inf).amin(1), rewards.nan_to_num(nan=-torch.inf).amax(1)
    return low >= high


def deviation(values: Tensor, dim: int) -> Tensor:
    """Standard deviation (n - 1) of what is not NaN, the dimension kept; 0 where fewer than two are."""
    known = ~values.isnan()
    count = known.sum(dim, keepdim=True)
    gap = (values - values.nanmean(dim, keepdim=True)).nan_to_num()
    return (gap.square().sum(dim, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
