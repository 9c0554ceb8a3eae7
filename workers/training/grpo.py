"""Group relative policy optimisation: completions of a prompt compete with one another, no value model.

    advantage  A_i = (R_i - mean R) / (std R + 1e-4)   over the G completions of the prompt
    ratio      ρ_t = exp(log π_new - log π_old), of each token, or their geometric mean over the sequence (GSPO)
    loss       Σ_i Σ_t [max(-A_i ρ_t, -A_i clip(ρ_t, 1-ε, 1+ε_high)) + β ρ_t k3_t] / normaliser
    k3         e^d - 1 - d,  d = log π_ref - log π_new

Shao et al. 2024 (GRPO); Liu et al. 2025 (Dr. GRPO: scale=none, normalise=constant); Yu et al. 2025 (DAPO:
clip_high=0.28, normalise=tokens, mask_truncated, max_draws, the `length` component); Zheng et al. 2025 (GSPO).

The KL term is multiplied by the ratio and differentiated through it: without, k3's gradient is that of the reversed
divergence, and the optimum is missed. With β = 0, the default, no reference is loaded. Rewards come from components
(`rewards.py`); a completion that cannot be scored has advantage 0 and is in no mean.

Deliberately left out: entropy bonus, importance weights between sampler and trainer (they are the same network here,
and a ratio other than 1 at the start is an error), generation in another process.

    python -m workers.training grpo --data prompts.jsonl --model POLICY --rewards rewards.json --out OUT
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from workers.training import baselines, groups, losses
from workers.training.groups import Rollout
from workers.training.recipes import GRPORecipe
from workers.training.report import Reporter


@dataclass(frozen=True)
class GRPO:
    """The objective."""

    recipe: GRPORecipe
    stage: str = "grpo"

    @property
    def kl_in_loss(self) -> bool:
        return self.recipe.beta > 0

    @property
    def ratio_of_sequence(self) -> bool:
        return self.recipe.ratio == "sequence"

    def advantages(self, rollout: Rollout) -> Tensor:
        return baselines.relative_to_group(rollout.rewards, self.recipe.scale)

    def losses(
        self, new: Tensor, old: Tensor, reference: Tensor | None, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        recipe, lengths = self.recipe, mask.sum(1).clamp(min=1)
        moved = new - old
        if self.ratio_of_sequence:
            moved = ((moved * mask).sum(1) / lengths)[:, None]
        ratio = moved.clamp(-20.0, 20.0).exp()
        high = recipe.clip if recipe.clip_high is None else recipe.clip_high
        each = losses.surrogate(ratio, advantages[:, None], recipe.clip, high)
        if reference is not None:
            each = each + recipe.beta * ratio * losses.k3(new, reference)
        total = (each * mask).sum(1)
        return total / lengths if recipe.normalise == "sequences" else total, ratio

    def normaliser(self, lengths: Sequence[int]) -> float:
        if self.recipe.normalise == "tokens":
            return float(max(1, sum(lengths)))
        each = self.recipe.max_new_tokens if self.recipe.normalise == "constant" else 1
        return float(max(1, len(lengths) * each))


def train(
    recipe: GRPORecipe,
    data: Path,
    out: Path,
    report: Reporter,
    *,
    model: str,
    reward_model: str | None = None,
    rewards: Path | None = None,
    resume: bool = False,
) -> dict[str, float]:
    """Improve `model` on the prompts of `data` into `out/checkpoint`; returns the last metrics."""
    return groups.train(GRPO(recipe), recipe, recipe.beta, data, out, report, model, reward_model, rewards, resume)
