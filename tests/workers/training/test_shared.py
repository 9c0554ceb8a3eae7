"""Networks on one trunk: one copy of the weights, and the numbers that each would give on a trunk of its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.workers.training.nets_in_memory import Recorder, example, toy_prompts, write_jsonl
from workers.training import nets, ppo, shared
from workers.training.errors import ModelError
from workers.training.layout import collate
from workers.training.nets import Net, Policy, Scorer
from workers.training.recipes import Lora, PPORecipe

RECIPE = PPORecipe(
    lora=Lora(r=2), batch_size=6, steps=2, max_new_tokens=6, learning_rate=1e-2, value_learning_rate=1e-2
)
BATCH = collate([example("what is it", "a cat"), example("x", "nothing at all")])


@pytest.fixture
def adapter_dir(tmp_path: Path, llama_dir: Path) -> Path:
    """A reward model saved as an adapter on the policy's own base."""
    scorer = nets.new_reward_model(str(llama_dir), 3, lora=Lora(r=3, save_adapter=True))
    _perturb(scorer)
    scorer.normalise(0.2, 0.7)
    directory = tmp_path / "adapter"
    directory.mkdir()
    scorer.save(directory)
    return directory


def _perturb(net: Net, seed: int = 0) -> None:
    """Adapters start without effect: give them one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in net.trainable():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


def _weights(*modules: nn.Module) -> int:
    """Numbers held by all modules together, those that they share counted once, adapters and heads left out."""
    held = {id(p): p for m in modules for n, p in m.named_parameters() if "lora_" not in n and "score" not in n}
    return sum(p.numel() for p in held.values())


def _base(directory: Path) -> int:
    return _weights(nets.load_policy(str(directory)).model)


def _all(policy: Policy, scorer: Scorer, critic: Scorer) -> dict[str, Tensor]:
    with torch.no_grad():
        with policy.as_reference():
            reference = policy.log_probs(BATCH)
        found = {"policy": policy.log_probs(BATCH), "reference": reference, "values": critic.values(BATCH)}
        return found | {"scores": scorer.scores(BATCH)}


def test_a_value_model_from_nothing_is_an_adapter_on_the_policys_trunk(llama_dir: Path, reward_dir: Path) -> None:
    recipe = RECIPE.model_copy(update={"value_init": "zero"})
    policy = nets.load_policy(str(llama_dir), lora=recipe.lora)
    own = policy.trainable()
    scorer, critic = shared.reward_and_value(recipe, policy, str(llama_dir), str(reward_dir))
    assert _weights(policy.model, critic.model) == _base(llama_dir)
    assert [n for n, _ in policy.trainable()] == [n for n, _ in own]
    assert not {id(p) for _, p in own} & {id(p) for _, p in critic.trainable()}
    before = _all(policy, scorer, critic)
    assert not before["values"].any()
    _perturb(critic)
    after = _all(policy, scorer, critic)
    assert after.pop("values").any() and before.pop("values") is not None
    assert all(torch.equal(after[name], before[name]) for name in after)


def test_a_whole_reward_model_is_the_trunk_of_its_value_model(llama_dir: Path, reward_dir: Path) -> None:
    policy = nets.load_policy(str(llama_dir), lora=RECIPE.lora)
    alone = nets.load_reward_model(str(reward_dir))
    expected = alone.scores(BATCH).detach()
    separate = alone.as_critic("fp32", RECIPE.lora, RECIPE.seed)
    scorer, critic = shared.reward_and_value(RECIPE, policy, str(llama_dir), str(reward_dir))
    assert _weights(scorer.model, critic.model) == _weights(alone.model)
    _perturb(separate)
    weights = {name.split(".", 1)[-1]: p for name, p in separate.trainable()}
    with torch.no_grad():
        for name, parameter in critic.trainable():
            parameter.copy_(weights[name.split(".", 1)[-1]])
    found = _all(policy, scorer, critic)
    assert torch.allclose(found["values"], separate.values(BATCH), atol=1e-6)
    assert torch.allclose(found["scores"], expected, atol=1e-6)
    assert not torch.allclose(found["values"], alone.as_critic("fp32", None, 0).values(BATCH), atol=1e-2)


def test_with_an_adapter_as_reward_model_all_four_networks_hold_one_base(llama_dir: Path, adapter_dir: Path) -> None:
    policy = nets.load_policy(str(llama_dir), lora=RECIPE.lora)
    alone = nets.new_reward_model(str(llama_dir), 3, lora=Lora(r=3))
    _perturb(alone)
    alone.normalise(0.2, 0.7)
    plain = policy.log_probs(BATCH).detach()
    scorer, critic = shared.reward_and_value(RECIPE, policy, str(llama_dir), str(adapter_dir))
    assert _weights(policy.model, scorer.model, critic.model) == _base(llama_dir)
    items = [example("what is it", "a cat"), example("x", "nothing at all")]
    assert scorer.rate(items, 100) == pytest.approx(alone.rate(items, 100), abs=1e-5)
    found = _all(policy, scorer, critic)
    assert torch.allclose(found["values"], alone.values(BATCH), atol=1e-5)  # it starts as the reward model
    _perturb(critic)
    moved = _all(policy, scorer, critic)
    assert not torch.allclose(moved["values"], found["values"], atol=1e-2)
    assert torch.equal(moved["scores"], found["scores"]) and torch.equal(moved["policy"], plain)


def test_a_reward_adapter_is_one_that_peft_reads(llama_dir: Path, adapter_dir: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    alone = nets.new_reward_model(str(llama_dir), 3, lora=Lora(r=3))
    _perturb(alone)
    base = AutoModelForSequenceClassification.from_pretrained(llama_dir, num_labels=1)
    theirs = PeftModel.from_pretrained(base, adapter_dir).merge_and_unload()
    assert torch.allclose(Scorer(theirs, alone.codec).scores(BATCH), alone.scores(BATCH), atol=1e-5)


def test_a_reward_adapter_loads_as_a_reward_model_like_any_other(llama_dir: Path, adapter_dir: Path) -> None:
    alone = nets.new_reward_model(str(llama_dir), 3, lora=Lora(r=3))
    _perturb(alone)
    alone.normalise(0.2, 0.7)
    items = [example("what is it", "a cat"), example("x", "nothing at all")]
    assert nets.load_reward_model(str(adapter_dir)).rate(items, 100) == pytest.approx(alone.rate(items, 100), abs=1e-5)


def test_a_policy_saved_as_an_adapter_leaves_the_others_of_its_trunk_behind(
    tmp_path: Path, llama_dir: Path, reward_dir: Path
) -> None:
    recipe = RECIPE.model_copy(update={"value_init": "zero", "lora": Lora(r=2, save_adapter=True)})
    policy = nets.load_policy(str(llama_dir), lora=recipe.lora)
    shared.reward_and_value(recipe, policy, str(llama_dir), str(reward_dir))
    (tmp_path / "saved").mkdir()
    policy.save(tmp_path / "saved")
    assert not (tmp_path / "saved/value").exists()
    assert torch.allclose(
        nets.load_policy(str(tmp_path / "saved")).log_probs(BATCH), policy.log_probs(BATCH), atol=1e-6
    )


@pytest.mark.parametrize("value_init", ["reward", "zero"])
def test_each_learns_in_its_turn_and_nobody_else_moves(value_init: str, llama_dir: Path, adapter_dir: Path) -> None:
    recipe = RECIPE.model_copy(update={"value_init": value_init})
    policy = nets.load_policy(str(llama_dir), lora=recipe.lora)
    scorer, critic = shared.reward_and_value(recipe, policy, str(llama_dir), str(adapter_dir))
    mine, theirs = [p for _, p in policy.trainable()], [p for _, p in critic.trainable()]
    with critic.reading():
        (critic.values(BATCH) - 1).square().sum().backward()
    assert all(p.grad is None for p in mine) and theirs[-1].grad is not None and theirs[-1].grad.any()
    gradients = [None if p.grad is None else p.grad.clone() for p in theirs]
    policy.log_probs(BATCH).sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in mine)
    for parameter, gradient in zip(theirs, gradients, strict=True):
        assert gradient is None or torch.equal(parameter.grad, gradient)
    trained = {id(p) for p in (*mine, *theirs)}
    assert all(p.grad is None for m in (policy, scorer, critic) for p in m.model.parameters() if id(p) not in trained)


def test_learning_outside_ones_turn_is_refused(llama_dir: Path, adapter_dir: Path) -> None:
    policy = nets.load_policy(str(llama_dir), lora=RECIPE.lora)
    _, critic = shared.reward_and_value(RECIPE, policy, str(llama_dir), str(adapter_dir))
    with pytest.raises(RuntimeError, match="belong inside reading"):
        critic.values(BATCH)


def test_ppo_runs_on_one_base_and_saves_an_ordinary_policy(tmp_path: Path, llama_dir: Path, adapter_dir: Path) -> None:
    prompts = write_jsonl(tmp_path / "prompts.jsonl", toy_prompts(6))
    report = Recorder()
    on: dict[str, Any] = {"model": str(llama_dir), "reward_model": str(adapter_dir)}
    ppo.train(RECIPE, prompts, tmp_path / "out", report, **on)
    assert report.steps_seen[0]["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    saved = nets.load_policy(str(tmp_path / "out/checkpoint"))
    assert not any("lora" in name for name, _ in saved.model.named_parameters())
    assert not torch.allclose(saved.log_probs(BATCH), nets.load_policy(str(llama_dir)).log_probs(BATCH), atol=1e-3)


def test_an_adapter_needs_adapters(llama_dir: Path, adapter_dir: Path) -> None:
    recipe = RECIPE.model_copy(update={"lora": None})
    with pytest.raises(ModelError, match="set lora"):
        shared.reward_and_value(recipe, nets.load_policy(str(llama_dir)), str(llama_dir), str(adapter_dir))
