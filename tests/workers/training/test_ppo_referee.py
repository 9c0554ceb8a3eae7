"""TRL 1.12.0, the last with PPO, as the referee: rewards, GAE, whitening, losses, gradients, statistics of an update.

The numbers are TRL's own (`referee_ppo_trl.py` writes them). In four places ours differ, and are shown to do so:
TRL puts the score of a completion that ended early one token *after* its end token, learns a value there too, averages
approximate KL and ratio over the padding as well, and whitens by the unbiased variance, n/(n-1) times ours (which is
that of Ziegler et al.'s code, and cannot divide by nothing).
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from workers.training import ppo
from workers.training.advantages import gae, shaped_rewards, whiten
from workers.training.episodes import Rollout
from workers.training.layout import Batch, collate
from workers.training.losses import ppo_value
from workers.training.recipes import PPORecipe
from workers.training.tokens import Example

CASES = json.loads((Path(__file__).parent / "fixtures" / "ppo_trl_1_12.json").read_text())


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-5, rtol=1e-5)


class Case:
    """TRL's numbers as tensors; `mask` true at the tokens of the completions, `mask_p1` at one more."""

    def __init__(self, name: str) -> None:
        values = CASES[name]
        self.settings, self.updates, self.metrics = values["settings"], values["updates"], values["metrics"]
        for field in ("logprobs", "ref_logprobs", "scores", "values", "rewards", "advantages", "returns"):
            setattr(self, field, torch.tensor(values[field]))
        self.mask, self.mask_p1 = ~torch.tensor(values["padding_mask"]), ~torch.tensor(values["padding_mask_p1"])
        self.examples = [
            Example([0, 1], ids[:length]) for ids, length in zip(values["completions"], values["lengths"], strict=True)
        ]
        s = self.settings
        self.recipe = PPORecipe(
            gamma=s["gamma"], lam=s["lam"], beta=s["kl_coef"], value_coef=s["vf_coef"], clip=s["cliprange"],
            value_clip=s["cliprange_value"], temperature=s["temperature"], whiten_rewards=s["whiten_rewards"],
        )  # fmt: skip

    @property
    def rollout(self) -> Rollout:
        zero = torch.zeros_like(self.logprobs)
        old, reference, values = (
            torch.where(self.mask, t, zero) for t in (self.logprobs, self.ref_logprobs, self.values)
        )
        return Rollout(self.examples, self.mask, old, reference, values, old, self.scores, torch.ones(8).bool())


class Given:
    """A policy and a value model whose outputs are given: the numbers themselves are the parameters."""

    def __init__(self, numbers: list[list[float]]) -> None:
        self.numbers = torch.nn.Parameter(torch.tensor(numbers))

    def trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [("numbers", self.numbers)]

    def passes(self, examples: Sequence[Example], _: int) -> Iterator[tuple[list[int], Batch]]:
        yield list(range(len(examples))), collate(examples)

    def log_probs_and_entropy(self, batch: Batch, _: float) -> tuple[Tensor, Tensor]:
        return self.numbers * batch.mask, self.numbers * 0

    def values(self, batch: Batch) -> Tensor:
        return self.numbers * batch.mask

    def reading(self) -> Any:
        return nullcontext()


def unbiased(whitened: Tensor, mask: Tensor) -> Tensor:
    """Whitened by the biased variance → by the unbiased one, the mean as it was."""
    mean, count = whitened[mask].mean(), int(mask.sum())
    return ((whitened - mean) * ((count - 1) / count) ** 0.5 + mean) * mask


def test_rewards_advantages_and_returns_are_trls() -> None:
    case = Case("even")
    lessons = ppo.Lessons.of(case.recipe, case.rollout, case.settings["kl_coef"])
    assert close(lessons.rewards, case.rewards)
    assert close(lessons.returns, case.returns)
    assert close(unbiased(lessons.advantages, case.mask), case.advantages)


def test_whitened_rewards_and_what_comes_of_them_are_trls() -> None:
    case = Case("whitened")
    lessons = ppo.Lessons.of(case.recipe, case.rollout, case.settings["kl_coef"])
    assert close(unbiased(lessons.rewards, case.mask), case.rewards)
    advantages, returns = gae(case.rewards, case.values, case.mask, case.settings["gamma"], case.settings["lam"])
    assert close(returns, case.returns)
    assert close(unbiased(whiten(advantages, case.mask), case.mask), case.advantages)


def test_with_early_ends_gae_and_whitening_are_trls_and_the_score_stands_one_token_earlier() -> None:
    case = Case("ragged")
    advantages, returns = gae(case.rewards, case.values, case.mask_p1, case.settings["gamma"], case.settings["lam"])
    assert close(unbiased(whiten(advantages, case.mask), case.mask), case.advantages)
    assert close(returns, torch.where(case.mask_p1, case.returns, torch.zeros(())))

    ours = shaped_rewards(case.scores, case.logprobs, case.ref_logprobs, case.mask, case.settings["kl_coef"])
    expected = case.rewards.clone()
    for row, example in enumerate(case.examples):
        if (after := len(example.completion)) < 6:
            assert case.rewards[row, after] == pytest.approx(float(case.scores[row]), abs=1e-6)
            expected[row, after - 1] += expected[row, after]
            expected[row, after] = 0.0
    assert any(len(example.completion) < 6 for example in case.examples)
    assert close(ours, expected)


@pytest.mark.parametrize("name", ["even", "ragged", "whitened"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_losses_gradients_and_statistics_of_an_update_are_trls(name: str, epoch: int) -> None:
    case, theirs = Case(name), CASES[name]["updates"][epoch]
    actor: Any = Given(theirs["new_logprobs"])
    critic: Any = Given(theirs["values"])
    lessons = ppo.Lessons(case.rewards, case.advantages, case.returns)
    learner = ppo.Learner(case.recipe, actor, critic, total=1)
    ours = learner._accumulate(case.rollout, lessons, list(range(8)), step=0, number=0)
    tokens = int(case.mask.sum())
    whole, padding = case.mask.numel(), case.mask.numel() - tokens
    assert float(ours["loss/policy_avg"]) == pytest.approx(theirs["pg_loss"], abs=1e-5)
    assert float(ours["policy/clipfrac_avg"]) == pytest.approx(theirs["pg_clipfrac"], abs=1e-6)
    assert float(ours["policy/approxkl_avg"]) == pytest.approx(theirs["approxkl"] * whole / tokens, abs=1e-5)
    assert float(ours["val/ratio"]) == pytest.approx((theirs["ratio"] * whole - padding) / tokens, abs=1e-5)
    assert close(actor.numbers.grad, torch.tensor(theirs["new_gradient"]))
    if epoch == 1:  # the test is one only if clips were at work
        assert 0.1 < theirs["pg_clipfrac"] < 0.9 and 0.1 < theirs["vf_clipfrac"] < 0.9

    if padding == 0:
        assert float(ours["loss/value_avg"]) == pytest.approx(theirs["vf_loss"], abs=1e-5)
        assert float(ours["val/clipfrac_avg"]) == pytest.approx(theirs["vf_clipfrac"], abs=1e-6)
        assert close(critic.numbers.grad, torch.tensor(theirs["value_gradient"]))
    else:  # over one token more than ours
        values = torch.tensor(theirs["values"])
        each = ppo_value(values, case.values, case.returns, case.settings["cliprange_value"])
        assert float(each[case.mask_p1].mean()) == pytest.approx(theirs["vf_loss"], abs=1e-5)


def test_the_figures_of_a_rollout_are_trls() -> None:
    case = Case("even")
    lessons = ppo.Lessons.of(case.recipe, case.rollout, case.settings["kl_coef"])
    ours = ppo._statistics(case.rollout, lessons, [{"grad_norm": 0.0}], case.settings["kl_coef"])
    names = ("kl", "entropy", "non_score_reward", "rlhf_reward", "scores")
    for name in names:
        assert float(ours[f"objective/{name}"]) == pytest.approx(case.metrics[f"objective/{name}"], abs=1e-4), name


def test_gae_over_a_mask_with_holes_is_verls() -> None:
    """verl's `compute_gae_advantage_return`, written out: a masked step hands on value and advantage of the next."""
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 5, 12, generator=generator)
    mask = torch.rand(5, 12, generator=generator) < 0.7
    gamma, lam = 0.95, 0.9
    expected = torch.zeros(5, 12)
    for row in range(5):
        following = next_value = 0.0
        for t in reversed(range(12)):
            if mask[row, t]:
                delta = float(rewards[row, t]) + gamma * next_value - float(values[row, t])
                following, next_value = delta + gamma * lam * following, float(values[row, t])
                expected[row, t] = following
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    assert close(advantages, expected)
    assert close(returns, (expected + values) * mask)
