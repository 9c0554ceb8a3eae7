"""REINFORCE leave-one-out: each completion is measured against the mean of the prompt's others.

    reward     R_i = r_i - β Σ_t (log π_old - log π_ref)_t   (KL estimator k1, summed, in the reward)
    advantage  A_i = R_i - mean of the other R_j of the prompt
    ratio      ρ_i = exp(Σ_t (log π_new - log π_old)_t)
    loss       max(-A_i ρ_i, -A_i clip(ρ_i, 1-ε, 1+ε_high)), averaged over completions

Kool et al. 2019; Ahmadian et al. 2024. The whole completion is one action: with one update per rollout ρ is 1 and this
is REINFORCE with an unbiased baseline. With several, ρ of a long completion leaves the clip range almost at once: use
GRPO for those. k1 belongs into the reward; in the loss its gradient is 0 in expectation.

Deliberately left out: normalised advantages, and what `grpo.py` leaves out.

    python -m workers.training rloo --data prompts.jsonl --model POLICY --reward-model RM --out OUT
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from workers.training import baselines, groups, losses
from workers.training.groups import Rollout
from workers.training.recipes import RLOORecipe
from workers.training.report import Reporter


@dataclass(frozen=True)
class RLOO:
    """The objective."""

    recipe: RLOORecipe
    stage: str = "rloo"
    kl_in_loss: bool = False
    ratio_of_sequence: bool = True

    def advantages(self, rollout: Rollout) -> Tensor:
        rewards = rollout.rewards
        if rollout.reference is not None:
            kl = ((rollout.old - rollout.reference) * rollout.mask).sum(1)
            rewards = rewards - self.recipe.beta * kl.view(rewards.shape).to(rewards)
        return baselines.leave_one_out(rewards)

    def losses(
        self, new: Tensor, old: Tensor, reference: Tensor | None, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        ratio = ((new - old) * mask).sum(1).clamp(-20.0, 20.0).exp()
        high = self.recipe.clip if self.recipe.clip_high is None else self.recipe.clip_high
        return losses.surrogate(ratio, advantages, self.recipe.clip, high), ratio[:, None]

    def normaliser(self, lengths: Sequence[int]) -> float:
        return float(max(1, len(lengths)))


def train(
    recipe: RLOORecipe,
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
    return groups.train(RLOO(recipe), recipe, recipe.beta, data, out, report, model, reward_model, rewards, resume)
