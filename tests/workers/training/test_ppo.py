"""PPO's own promises: the end rule, guards, PPO-ptx, frozen starts, and resuming in the middle of a rollout."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.training.nets_in_memory import Recorder, example, policy, toy_prompts, write_jsonl
from workers.training import nets, ppo, shared
from workers.training.episodes import Rollout, end_rule, roll_out
from workers.training.errors import DataError, Interrupted
from workers.training.layout import collate
from workers.training.recipes import Lora, PPORecipe
from workers.training.tokens import Example

SMALL: dict[str, Any] = {
    "batch_size": 6, "learning_rate": 1e-3, "value_learning_rate": 1e-3, "micro_batch_tokens": 300, "max_length": 100,
    "steps": 2, "inner_epochs": 2, "minibatches": 2, "max_new_tokens": 6, "save_every": 1,
}  # fmt: skip


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "prompts.jsonl", toy_prompts(10))


@pytest.fixture
def demonstrations(tmp_path: Path) -> Path:
    rows = [{"prompt": f"say {i}", "completion": "ab" * (1 + i % 4)} for i in range(7)]
    return write_jsonl(tmp_path / "demonstrations.jsonl", rows)


class StopsAt(Recorder):
    """Asks to stop as soon as it has been asked `reads` times whether to."""

    def __init__(self, reads: int) -> None:
        self.reads = reads
        super().__init__()

    @property
    def stopping(self) -> bool:
        self.reads -= 1
        return self.reads < 0

    @stopping.setter
    def stopping(self, _: bool) -> None:
        pass


def test_a_completion_without_an_end_is_fined_or_scored_anew() -> None:
    scores, ended = torch.tensor([2.0, 3.0]), torch.tensor([True, False])
    fined = end_rule(PPORecipe(missing_eos_penalty=1.5), scores, ended)
    anew = end_rule(PPORecipe(missing_eos="replace", missing_eos_penalty=1.0), scores, ended)
    assert fined.tolist() == [2.0, 1.5]
    assert anew.tolist() == [2.0, -1.0]


@pytest.mark.parametrize("lora", [None, Lora(r=2)], ids=["full", "LoRA"])
def test_stopping_after_any_update_of_a_rollout_costs_no_bit(
    lora: Lora | None, tmp_path: Path, prompts: Path, demonstrations: Path, llama_dir: Path, reward_dir: Path
) -> None:
    recipe = PPORecipe(**SMALL, lora=lora, target_kl=0.5, kl_horizon=50, whiten_rewards=True, ptx_coef=0.3)
    on: dict[str, Any] = {"model": str(llama_dir), "reward_model": str(reward_dir), "ptx_data": demonstrations}
    straight = Recorder()
    expected = ppo.train(recipe, prompts, tmp_path / "straight", straight, **on)
    weights = (tmp_path / "straight/checkpoint/model.safetensors").read_bytes()
    for reads in (0, 1, 2, 3, 6, 7, 8):  # after each update; the end of a step asks twice more
        out, stopped, resumed = tmp_path / str(reads), StopsAt(reads), Recorder()
        with pytest.raises(Interrupted, match="--resume"):
            ppo.train(recipe, prompts, out, stopped, **on)
        assert ppo.train(recipe, prompts, out, resumed, resume=True, **on) == expected
        assert (out / "checkpoint/model.safetensors").read_bytes() == weights, reads
        assert stopped.steps_seen + resumed.steps_seen == straight.steps_seen


@dataclass
class Small:
    """A learner on random networks, and one rollout of its policy with given scores."""

    learner: ppo.Learner
    rollout: Rollout
    lessons: ppo.Lessons


def small(recipe: PPORecipe, ptx: list[Example] | None = None) -> Small:
    actor = policy()
    codec = actor.codec
    critic = nets.Scorer(shared.Headed(policy(seed=1).model.base_model, actor.model.config, torch.ones(1, 32)), codec)
    prompts = [example(text, "").prompt for text in ("say this", "and that", "x", "more words than before")]

    def rate(examples: Sequence[Example], _: int) -> list[float]:
        return [float(len(e.completion) + e.completion[0] % 3) for e in examples]

    rollout = roll_out(recipe, actor, policy(seed=2), rate, critic, prompts, step=0)
    return Small(ppo.Learner(recipe, actor, critic, 10, ptx or []), rollout, ppo.Lessons.of(recipe, rollout, 0.1))


def test_the_first_update_sees_ratio_one_and_no_kl_and_true_entropy() -> None:
    recipe = PPORecipe(**SMALL, temperature=0.7)
    s = small(recipe)
    seen = s.learner.update(s.rollout, s.lessons, 0, 0)
    assert seen["val/ratio"] == pytest.approx(1.0, abs=1e-5) and seen["val/ess"] == pytest.approx(1.0, abs=1e-5)
    assert seen["policy/approxkl_avg"] == pytest.approx(0.0, abs=1e-6)
    assert seen["policy/k3_avg"] == pytest.approx(0.0, abs=1e-6)
    assert seen["policy/clipfrac_avg"] == 0.0
    fresh, entropies = policy(), []
    for row in ppo._minibatch(4, 2, "0/0/0", 0):
        drawn = s.rollout.examples[row]
        with torch.no_grad():
            logits = fresh.model(torch.tensor([drawn.prompt + drawn.completion])).logits[0] / 0.7
        entropies.append(torch.distributions.Categorical(logits=logits[len(drawn.prompt) - 1 : -1]).entropy())
    assert seen["policy/entropy_avg"] == pytest.approx(float(torch.cat(entropies).mean()), abs=1e-4)


def test_with_ptx_the_gradient_is_that_of_ppo_plus_gamma_times_the_mean_nll() -> None:
    demonstrations = [example("say", "abc"), example("x", "d"), example("more", "ef ef ef")]
    recipe = PPORecipe(**(SMALL | {"minibatches": 1, "micro_batch_tokens": 64}), ptx_coef=0.7, ptx_batch_size=3)
    plain = small(recipe)
    plain.learner._accumulate(plain.rollout, plain.lessons, [0, 1, 2, 3], 0, 0)
    both = small(recipe, demonstrations)
    both.learner._accumulate(both.rollout, both.lessons, [0, 1, 2, 3], 0, 0)
    nll = both.learner._accumulate_ptx(0)
    alone = policy()
    expected = -alone.completion_log_probs(demonstrations).sum() / sum(len(e.completion) for e in demonstrations)
    expected.backward()
    assert float(nll) == pytest.approx(float(expected.detach()), abs=1e-5)
    parameters = zip(*(s.model.parameters() for s in (both.learner.policy, plain.learner.policy, alone)), strict=True)
    for summed, ppo_part, ptx_part in parameters:
        assert torch.allclose(summed.grad, ppo_part.grad + 0.7 * ptx_part.grad, atol=1e-5)


def _moved(s: Small, by: float) -> Small:
    """The same rollout as if the sampling policy had found every token `by` nats less likely."""
    return replace(s, rollout=replace(s.rollout, old=s.rollout.old - by * s.rollout.mask))


def test_an_update_is_skipped_when_the_mean_ratio_is_beyond_ten() -> None:
    recipe = PPORecipe(**SMALL)
    s = _moved(small(recipe), 2.4)  # e^2.4 = 11
    before = {name: p.clone() for name, p in s.learner.optimiser.named}
    seen = s.learner.update(s.rollout, s.lessons, 0, 1)
    assert "grad_norm" not in seen and seen["policy/stopped"] == 0.0
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in s.learner.optimiser.named)
    s = _moved(small(recipe), 2.2)  # 9.03
    assert "grad_norm" in s.learner.update(s.rollout, s.lessons, 0, 1)


def test_the_inner_epochs_stop_before_an_update_from_too_far_away() -> None:
    """All ratios e^0.3: k3 = e^0.3 - 1 - 0.3 = 0.049859 per token, whatever the padding."""
    for limit, stops in ((0.0498, True), (0.0499, False)):
        s = _moved(small(PPORecipe(**SMALL, max_approx_kl=limit)), 0.3)
        seen = s.learner.update(s.rollout, s.lessons, 0, 1)
        assert seen["policy/k3_avg"] == pytest.approx(0.049859, abs=1e-5)
        assert (seen["policy/stopped"] == 1.0) is stops and ("grad_norm" in seen) is not stops


def test_in_its_first_steps_the_value_model_alone_may_learn() -> None:
    s = small(PPORecipe(**SMALL, freeze_policy_steps=1))
    before = {name: p.clone() for name, p in s.learner.optimiser.named}
    s.learner.update(s.rollout, s.lessons, 0, 0)
    moved = {name for name, p in s.learner.optimiser.named if not torch.equal(p, before[name])}
    assert moved and all(name.startswith("value/") for name in moved)
    s.learner.update(s.rollout, s.lessons, 1, 0)
    assert any(not torch.equal(p, before[n]) for n, p in s.learner.optimiser.named if n.startswith("policy/"))


def test_a_value_model_without_a_past_says_nothing(llama_dir: Path, reward_dir: Path) -> None:
    actor = nets.load_policy(str(llama_dir))
    recipe = PPORecipe(value_init="zero")
    _, critic = shared.reward_and_value(recipe, actor, str(llama_dir), str(reward_dir))
    batch = collate([example("x", "abc")])
    assert not critic.values(batch).any()
    assert torch.allclose(critic.states(batch), actor.states(batch))
    assert not {id(p) for p in actor.model.parameters()} & {id(p) for _, p in critic.trainable()}


def test_where_sampler_and_trainer_round_differently_tokens_are_weighed_by_their_ratio(tmp_path: Path) -> None:
    """The weight min(π_trainer/π_sampler, cap) multiplies each token's loss: here e^0.1 everywhere, or the cap 1."""
    losses_ = []
    for cap in (None, 5.0, 1.0):
        s = small(PPORecipe(**SMALL, sampler_ratio_cap=cap))
        s = replace(s, rollout=replace(s.rollout, sampled=s.rollout.old - 0.1))
        losses_.append(s.learner.update(s.rollout, s.lessons, 0, 0)["loss/policy_avg"])
    assert losses_[1] == pytest.approx(losses_[0] * 1.105171, rel=1e-4)
    assert losses_[2] == pytest.approx(losses_[0], rel=1e-6)


def test_ptx_and_its_data_go_together(tmp_path: Path, prompts: Path, demonstrations: Path) -> None:
    on: dict[str, Any] = {"model": "nowhere", "reward_model": "nowhere"}
    with pytest.raises(DataError, match="go together"):
        ppo.train(PPORecipe(ptx_coef=1.0), prompts, tmp_path / "out", Recorder(), **on)
    with pytest.raises(DataError, match="go together"):
        ppo.train(PPORecipe(), prompts, tmp_path / "out", Recorder(), ptx_data=demonstrations, **on)
