"""Where the KL belongs: a bandit with a known optimum tells right from wrong.

Eight contexts, six actions, a tabular policy, one on-policy update per batch. With the penalty β KL(π‖π_ref) the
optimum is π* ∝ π_ref e^{R/β}. Right: k1 in the reward (RLOO), k2 or ratio · k3 in the loss (GRPO). Wrong: k1 in the
loss, whose gradient is 0 in expectation, and k3 in the loss without the ratio, which pulls the wrong way round.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from workers.training import baselines, losses
from workers.training.groups import Rollout
from workers.training.grpo import GRPO
from workers.training.recipes import GRPORecipe, RLOORecipe
from workers.training.rloo import RLOO

BETA, P, K, G = 0.5, 8, 6, 48
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # new, old, reference log π (B,) and rewards (P, G)


def ours(objective: GRPO | RLOO) -> Loss:
    """The objective as the trainer uses it, on completions of one token."""

    def loss(new: Tensor, old: Tensor, reference: Tensor, rewards: Tensor) -> Tensor:
        mask = torch.ones(P * G, 1, dtype=torch.bool)
        column = [values[:, None] for values in (new, old, reference)]
        rollout = Rollout([], rewards, mask, column[1], column[2], [], {})
        advantages = objective.advantages(rollout).flatten().float()
        return objective.losses(column[0], column[1], column[2], advantages, mask)[0].mean()

    return loss


def in_the_loss(estimate: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    def loss(new: Tensor, old: Tensor, reference: Tensor, rewards: Tensor) -> Tensor:
        advantages = baselines.relative_to_group(rewards, "none").flatten().float()
        return ((new - old).exp() * -advantages + BETA * estimate(new, reference)).mean()

    return loss


def distance(loss: Loss, seed: int) -> float:
    """Total variation between the learned policy and the optimum, averaged over the contexts."""
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(P, K, generator=generator).log_softmax(1)
    rewards = torch.randn(P, K, generator=generator)
    optimum = (reference + rewards / BETA).softmax(1)
    logits = reference.clone().requires_grad_(True)
    adam = torch.optim.Adam([logits], lr=0.1)
    for step in range(250):
        adam.param_groups[0]["lr"] = 0.1 * (1 - step / 250)
        policy = logits.log_softmax(1)
        drawn = torch.multinomial(policy.detach().exp(), G, replacement=True, generator=generator)
        new = policy.gather(1, drawn).flatten()
        value = loss(new, new.detach(), reference.gather(1, drawn).flatten(), rewards.gather(1, drawn).double())
        adam.zero_grad()
        value.backward()
        adam.step()
    return float(0.5 * (logits.detach().softmax(1) - optimum).abs().sum(1).mean())


@pytest.mark.parametrize("seed", range(3))
def test_grpo_and_rloo_reach_the_optimum_and_the_wrong_placements_do_not(seed: int) -> None:
    far = distance(in_the_loss(lambda new, reference: 0.0 * new), seed)
    assert far > 0.25
    recipe = {"scale": "none", "normalise": "sequences"}
    assert distance(ours(GRPO(GRPORecipe(beta=BETA, **recipe))), seed) < 0.05  # type: ignore[arg-type]
    assert distance(ours(RLOO(RLOORecipe(beta=BETA))), seed) < 0.05
    assert distance(in_the_loss(lambda new, reference: 0.5 * (new - reference).square()), seed) < 0.05
    assert distance(in_the_loss(lambda new, reference: new - reference), seed) > 0.8 * far
    assert distance(in_the_loss(losses.k3), seed) > 0.1


def test_k3_is_exact_where_the_policies_nearly_agree() -> None:
    """e^d - 1 - d is d²/2 for small d; computed naively in fp32 it is 0, or negative."""
    new = torch.tensor([1e-3, -1e-3])
    assert losses.k3(new, torch.zeros(2)).tolist() == pytest.approx([5e-7, 5e-7], rel=0.05)
    assert float(losses.k3(torch.tensor(-2.0), torch.tensor(-1.0))) == pytest.approx(2.718282 - 2.0)


def test_each_side_of_the_ratio_has_its_own_range() -> None:
    ratio, advantages = torch.tensor([1.5, 1.5, 0.5, 0.5]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert losses.surrogate(ratio, advantages, 0.2, 0.28).tolist() == pytest.approx([-1.28, 1.5, -0.5, 0.8])
