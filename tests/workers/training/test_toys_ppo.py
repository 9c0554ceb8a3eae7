"""PPO, its own rollouts and updates, finds the optimum of small worlds; with its KL misplaced it does not.

Every run is deterministic: a seed, one thread.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.workers.training.toys import ACTIONS, Bandit, copied, table, tiny_policy
from workers.training import losses, ppo, shared
from workers.training.advantages import shaped_rewards
from workers.training.episodes import Rate, roll_out
from workers.training.nets import Policy, Scorer
from workers.training.recipes import PPORecipe

BETA, CONTEXTS, WIDTH = 0.5, 6, 32


def learn(
    recipe: PPORecipe, policy: Policy, reference: Policy, rate: Rate, prompts: list[list[int]], enough: float = math.inf
) -> list[float]:
    """PPO as the trainer does it, `recipe.steps` rollouts or until their mean score is `enough`; those scores."""
    trunk = tiny_policy(99, 0.2, WIDTH).model.base_model
    critic = Scorer(shared.Headed(trunk, policy.model.config, torch.zeros(1, WIDTH)), policy.codec)
    assert recipe.steps is not None
    learner = ppo.Learner(recipe, policy, critic, recipe.steps)
    scores: list[float] = []
    for step in range(recipe.steps):
        rollout = roll_out(recipe, policy, reference, rate, critic, prompts, step)
        scores.append(float(rollout.scores.mean()))
        if scores[-1] > enough:
            break
        lessons = ppo.Lessons.of(recipe, rollout, recipe.beta)
        for number in range(learner.updates):
            learner.update(rollout, lessons, step, number)
    return scores


def bandit(seed: int, steps: int, beta: float = BETA) -> tuple[Bandit, Tensor]:
    """The world, and log π of what one update per batch, strictly on policy, has made of the reference in it."""
    policy, reference = tiny_policy(seed, 0.35, WIDTH), tiny_policy(seed, 0.35, WIDTH)
    reference.freeze()
    rewards = torch.randn(CONTEXTS, ACTIONS, generator=torch.Generator().manual_seed(seed + 100))
    world = Bandit(table(reference, CONTEXTS), rewards, BETA)
    recipe = PPORecipe(
        batch_size=96, steps=steps, learning_rate=1.5e-2, value_learning_rate=1.5e-2, warmup_ratio=0, beta=beta,
        inner_epochs=1, max_new_tokens=1, missing_eos_penalty=0, micro_batch_tokens=65536, seed=seed,
    )  # fmt: skip

    def rate(examples: object, tokens: int) -> list[float]:
        return world.rate(examples, tokens)  # type: ignore[arg-type]

    learn(recipe, policy, reference, rate, [[row * CONTEXTS // 96] for row in range(96)])
    return world, table(policy, CONTEXTS)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_k1_in_the_reward_ppo_finds_the_optimum_of_the_penalised_bandit(seed: int) -> None:
    """π* ∝ π_ref e^{R/β}; the penalty costs about a nat, so that the optimum is far from reference and argmax alike."""
    world, found = bandit(seed, steps=260)
    assert world.kl(world.best) > 0.9
    assert world.gap_closed(found) >= 0.99
    assert world.distance(found) < 0.02
    assert world.kl(found) == pytest.approx(world.kl(world.best), abs=0.05)


def k3_in_the_reward(patch: pytest.MonkeyPatch) -> float:
    def shaped(scores: Tensor, new: Tensor, reference: Tensor, mask: Tensor, beta: float) -> Tensor:
        return shaped_rewards(scores, losses.k3(new, reference), torch.zeros_like(new), mask, beta)

    patch.setattr(ppo, "shaped_rewards", shaped)
    return BETA


def k1_in_the_loss(patch: pytest.MonkeyPatch) -> float:
    """+ β (log π - log π_ref) per token; log π_ref has no gradient and is left out."""
    right = losses.ppo_policy

    def penalised(new: Tensor, old: Tensor, advantages: Tensor, *limits: float) -> tuple[Tensor, Tensor]:
        loss, ratio = right(new, old, advantages, *limits)
        return loss + BETA * new, ratio

    patch.setattr(losses, "ppo_policy", penalised)
    return 0.0


def no_kl_at_all(_: pytest.MonkeyPatch) -> float:
    return 0.0


@pytest.mark.parametrize("misplaced", [k3_in_the_reward, k1_in_the_loss, no_kl_at_all], ids=lambda f: f.__name__)
def test_with_the_kl_misplaced_it_ends_far_from_the_optimum(
    misplaced: Callable[[pytest.MonkeyPatch], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """k3 in the reward and k1 in the loss do about as badly as no penalty at all."""
    world, found = bandit(0, steps=100, beta=misplaced(monkeypatch))
    assert world.gap_closed(found) < 0.5
    assert world.distance(found) > 0.3
    assert world.kl(found) > 1.5 * world.kl(world.best)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_learns_to_copy(seed: int) -> None:
    """Eight times the prompt's token: from about a twelfth to more than 0.95, with four inner epochs."""
    policy, reference = tiny_policy(seed, 0.1, WIDTH), tiny_policy(seed, 0.1, WIDTH)
    recipe = PPORecipe(
        batch_size=88, steps=60, learning_rate=4e-3, value_learning_rate=4e-3, warmup_ratio=0, schedule="constant",
        beta=0.0, max_new_tokens=8, missing_eos_penalty=0, micro_batch_tokens=65536, seed=seed,
    )  # fmt: skip
    prompts = [[row % (ACTIONS - 1)] for row in range(88)]
    scores = learn(recipe, policy, reference, copied, prompts, enough=0.95)
    assert scores[0] < 0.2
    assert scores[-1] > 0.95
