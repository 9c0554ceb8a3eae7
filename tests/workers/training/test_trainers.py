"""What all trainers promise: learning, bit-exact resuming, ordinary directories, refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.workers.training.nets_in_memory import Recorder, example, save_model, toy_pairs, toy_prompts, write_jsonl
from workers.training import dpo, losses, nets, optimisation, ppo, reward, sft
from workers.training.checkpoints import verify
from workers.training.comparisons import TokenComparison, encode
from workers.training.errors import Interrupted, TooFewError
from workers.training.layout import collate
from workers.training.recipes import DPORecipe, Lora, PPORecipe, RewardRecipe, SFTRecipe
from workers.training.records import read_comparisons

Train = Callable[[Path, Recorder, bool], dict[str, float]]
SMALL = {"batch_size": 8, "learning_rate": 1e-3, "micro_batch_tokens": 300, "max_length": 100}


@pytest.fixture
def stages(tmp_path: Path, llama_dir: Path, reward_dir: Path) -> dict[str, Train]:
    """Each stage on toy data as one call: where to, whom to tell, whether to resume."""
    pairs = write_jsonl(tmp_path / "pairs.jsonl", toy_pairs(24))
    held_out = write_jsonl(tmp_path / "held_out.jsonl", toy_pairs(10, offset=24))
    prompts = write_jsonl(tmp_path / "prompts.jsonl", toy_prompts(16))
    demonstrations = write_jsonl(
        tmp_path / "demonstrations.jsonl", [{"prompt": r["prompt"], "completion": r["chosen"]} for r in toy_pairs(24)]
    )
    on: dict[str, Any] = {"model": str(llama_dir)}
    few = PPORecipe(
        **(SMALL | {"batch_size": 6}), steps=5, inner_epochs=2, minibatches=2, max_new_tokens=8, save_every=2,
        target_kl=1.0, kl_horizon=50, whiten_rewards=True,
    )  # fmt: skip
    return {
        "sft": lambda out, report, resume: sft.train(
            SFTRecipe(**SMALL, epochs=2, save_every=2), demonstrations, out, report, resume=resume, **on
        ),
        "reward": lambda out, report, resume: reward.train(
            RewardRecipe(**SMALL, epochs=2, save_every=2), pairs, out, report, eval=held_out, resume=resume, **on
        ),
        "dpo": lambda out, report, resume: dpo.train(
            DPORecipe(**SMALL, epochs=2, save_every=2), pairs, out, report, eval=held_out, resume=resume, **on
        ),
        "dpo with LoRA": lambda out, report, resume: dpo.train(
            DPORecipe(**SMALL, lora=Lora(r=2), epochs=2, save_every=2), pairs, out, report, resume=resume, **on
        ),
        "ppo": lambda out, report, resume: ppo.train(
            few, prompts, out, report, reward_model=str(reward_dir), resume=resume, **on
        ),
        "ppo with LoRA": lambda out, report, resume: ppo.train(
            few.model_copy(update={"lora": Lora(r=2)}),
            prompts,
            out,
            report,
            reward_model=str(reward_dir),
            resume=resume,
            **on,
        ),
    }


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "dpo with LoRA", "ppo", "ppo with LoRA"])
def test_a_resumed_run_ends_with_the_bytes_of_the_uninterrupted_one(
    stages: dict[str, Train], stage: str, tmp_path: Path
) -> None:
    train, straight, stopped = stages[stage], Recorder(), Recorder(stop_after=3)
    expected = train(tmp_path / "straight", straight, False)
    with pytest.raises(Interrupted, match="--resume"):
        train(tmp_path / "stopped", stopped, False)
    assert not (tmp_path / "stopped" / "checkpoint").exists()
    resumed = Recorder()
    assert train(tmp_path / "stopped", resumed, True) == expected
    assert stopped.steps_seen + resumed.steps_seen == straight.steps_seen
    one, other = (tmp_path / name / "checkpoint" / "model.safetensors" for name in ("straight", "stopped"))
    assert one.read_bytes() == other.read_bytes()
    assert not (tmp_path / "stopped" / "state").exists()


def test_a_torn_state_costs_only_the_steps_since_the_one_before_it(stages: dict[str, Train], tmp_path: Path) -> None:
    straight = stages["reward"](tmp_path / "straight", Recorder(), False)
    with pytest.raises(Interrupted):
        stages["reward"](tmp_path / "torn", Recorder(stop_after=4), False)
    newest = max((tmp_path / "torn" / "state").iterdir())
    (newest / "state.safetensors").write_bytes(b"torn")
    report = Recorder()
    assert stages["reward"](tmp_path / "torn", report, True) == straight
    assert len(report.steps_seen) == 4  # of six: the state after step two was whole


def test_resuming_a_finished_run_does_nothing_and_says_the_same(stages: dict[str, Train], tmp_path: Path) -> None:
    metrics = stages["dpo"](tmp_path / "out", Recorder(), False)
    report = Recorder()
    assert stages["dpo"](tmp_path / "out", report, True) == metrics
    assert report.steps_seen == [] and report.steps == 6


def test_the_reward_model_learns_and_reports_its_interval(stages: dict[str, Train], tmp_path: Path) -> None:
    metrics = stages["reward"](tmp_path / "out", Recorder(), False)
    assert metrics["accuracy"] == 1.0 and metrics["train_accuracy"] == 1.0
    assert metrics["accuracy_low"] == pytest.approx(0.7225, abs=1e-3)  # Wilson, 10 of 10
    assert metrics["accuracy_high"] == pytest.approx(1.0) and metrics["eval_pairs"] == 10
    assert metrics["eval_loss"] < 0.6
    scorer = nets.load_reward_model(str(tmp_path / "out" / "checkpoint"))
    assert (scorer.mean, scorer.std) == pytest.approx((metrics["reward_mean"], metrics["reward_std"]))
    examples = [e for row in toy_pairs(24) for e in scorer.codec.encode(row["prompt"], row["chosen"], row["rejected"])]
    scores = torch.tensor(scorer.rate(examples, 1000))
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(scores.std()) == pytest.approx(1.0, abs=1e-4)


def test_ties_count_for_the_loss_and_not_for_the_accuracy(tmp_path: Path, llama_dir: Path) -> None:
    pairs = write_jsonl(tmp_path / "pairs.jsonl", toy_pairs(12))
    rows = toy_pairs(6)
    held_out = write_jsonl(tmp_path / "eval.jsonl", [*rows[:4], *({**r, "confidence": 0.5} for r in rows[4:])])
    metrics = reward.train(
        RewardRecipe(**SMALL), pairs, tmp_path / "o", Recorder(), model=str(llama_dir), eval=held_out
    )
    assert metrics["eval_pairs"] == 4


def test_dpo_starts_at_log_two_and_raises_the_margin_on_pairs_it_never_saw(
    stages: dict[str, Train], tmp_path: Path
) -> None:
    report = Recorder()
    metrics = stages["dpo"](tmp_path / "out", report, False)
    first, last = report.steps_seen[0], report.steps_seen[-1]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert last["rewards/margins"] > 0.3 and last["loss"] < first["loss"]
    assert metrics["eval_accuracy"] == 1.0 and metrics["eval_margin"] > 0.3
    assert set(first) == {
        "loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected", "logps/chosen",
        "logps/rejected", "grad_norm",
    }  # fmt: skip


def test_supervised_fine_tuning_lowers_the_loss(stages: dict[str, Train], tmp_path: Path) -> None:
    report = Recorder()
    stages["sft"](tmp_path / "out", report, False)
    assert report.steps_seen[-1]["loss"] < 0.8 * report.steps_seen[0]["loss"]


def test_ppo_raises_a_toy_reward_and_starts_with_ratio_one_and_no_kl(
    tmp_path: Path, llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reward is the share of the byte 'e' (an id) in the completion: it must rise well above chance."""
    wanted = 5 + ord("e")
    prompts = write_jsonl(tmp_path / "prompts.jsonl", toy_prompts(32))
    scorer = nets.new_reward_model(str(llama_dir), 0)
    scorer.save(tmp_path / "rm")

    def rate(_: object, examples: Any, tokens: int) -> list[float]:
        return [10.0 * sum(t % 7 == wanted % 7 for t in e.completion) / len(e.completion) for e in examples]

    monkeypatch.setattr(nets.Scorer, "rate", rate)
    recipe = PPORecipe(
        batch_size=64, steps=25, learning_rate=3e-3, value_learning_rate=3e-3, max_new_tokens=8, beta=0.02,
        inner_epochs=2, minibatches=2, missing_eos_penalty=0.0, schedule="constant", warmup_ratio=0.0,
    )  # fmt: skip
    report = Recorder()
    ppo.train(recipe, prompts, tmp_path / "out", report, model=str(llama_dir), reward_model=str(tmp_path / "rm"))
    first, last = report.steps_seen[0], report.steps_seen[-1]
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-3)
    assert first["objective/scores"] < 3.0
    assert last["objective/scores"] > 8.0
    assert last["objective/kl"] > 1.0
    assert last["objective/entropy"] < first["objective/entropy"]


def test_ppo_refuses_to_train_when_sampler_and_trainer_disagree(
    stages: dict[str, Train], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.training.errors import TrainingError

    log_probs = losses.token_log_probs
    monkeypatch.setattr(losses, "token_log_probs", lambda logits, targets, t=1.0: log_probs(logits, targets, t * 1.5))
    with pytest.raises(TrainingError, match="sampler and trainer differ"):
        stages["ppo"](tmp_path / "out", Recorder(), False)


def test_without_advantage_ppo_leaves_the_policy_where_it_was(
    stages: dict[str, Train], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama_dir: Path
) -> None:
    monkeypatch.setattr(ppo, "whiten", lambda values, mask, keep_mean=False: torch.zeros_like(values))
    stages["ppo"](tmp_path / "out", Recorder(), False)
    before, after = load_file(llama_dir / "model.safetensors"), load_file(tmp_path / "out/checkpoint/model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_three_pairs_are_too_few(stage: str, tmp_path: Path, llama_dir: Path) -> None:
    pairs = write_jsonl(tmp_path / "pairs.jsonl", toy_pairs(3))
    module: Any = {"reward": (reward, RewardRecipe), "dpo": (dpo, DPORecipe)}[stage]
    with pytest.raises(TooFewError, match="3 preferences are too few to train on: at least 10"):
        module[0].train(module[1](), pairs, tmp_path / "out", Recorder(), model=str(llama_dir))


def test_a_checkpoint_is_an_ordinary_transformers_directory(stages: dict[str, Train], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    stages["dpo with LoRA"](tmp_path / "out", Recorder(), False)
    directory = tmp_path / "out" / "checkpoint"
    manifest = verify(directory)
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(manifest["files"])
    assert (manifest["stage"], manifest["step"]) == ("dpo", 6)
    assert AutoTokenizer.from_pretrained(directory).chat_template
    assert AutoModelForCausalLM.from_pretrained(directory).config.vocab_size
    json.dumps(manifest["metrics"], allow_nan=False)


def test_gradients_do_not_depend_on_how_a_step_is_cut_into_micro_batches(tmp_path: Path, llama_dir: Path) -> None:
    pairs = write_jsonl(tmp_path / "pairs.jsonl", toy_pairs(12))
    norms = []
    for budget in (64, 200, 100_000):
        report = Recorder()
        recipe = RewardRecipe(**(SMALL | {"micro_batch_tokens": budget}))
        reward.train(recipe, pairs, tmp_path / str(budget), report, model=str(llama_dir))
        norms.append([(s["loss"], s["grad_norm"]) for s in report.steps_seen])
    for other in norms[1:]:
        assert torch.allclose(torch.tensor(other), torch.tensor(norms[0]), rtol=1e-4)


def test_each_epoch_visits_every_item_once_in_another_order() -> None:
    epochs = [[i for s in range(3) for i in optimisation.step_items(10, 4, 7, s + 3 * epoch)] for epoch in range(2)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_the_learning_rate_warms_up_and_falls_to_nothing() -> None:
    recipe = SFTRecipe(warmup_ratio=0.2)
    factors = [optimisation.learning_rate_factor(step, 10, recipe) for step in range(10)]
    assert factors == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])
    cosine = [
        optimisation.learning_rate_factor(s, 10, SFTRecipe(warmup_ratio=0, schedule="cosine")) for s in (0, 5, 10)
    ]
    assert cosine == pytest.approx([1.0, 0.5, 0.0])


def test_a_head_on_a_frozen_backbone_finds_the_optimum_of_its_convex_loss(tmp_path: Path, gpt2_dir: Path) -> None:
    """At the optimum the gradient of the penalised loss by the weights, worked out here again, is nothing."""
    rows = toy_pairs(30)
    rows[3] |= {"confidence": 0.2, "weight": 2.0, "margin": 0.5}
    pairs = write_jsonl(tmp_path / "pairs.jsonl", rows)
    recipe = RewardRecipe(head_only=True, ridge=2.0, label_smoothing=0.1)
    metrics = reward.train(recipe, pairs, tmp_path / "o", Recorder(), model=str(gpt2_dir), eval=pairs)
    assert metrics["accuracy"] > 0.9

    scorer = nets.load_reward_model(str(tmp_path / "o" / "checkpoint"))
    assert scorer.likelihood is not None
    encoded = encode(scorer.codec, list(read_comparisons(pairs)), 160, Recorder())
    with torch.no_grad():
        gaps = torch.stack(
            [
                scorer.features(collate([c.examples[0]]))[0] - scorer.features(collate([c.examples[1]]))[0]
                for c in encoded
            ]
        ).double()
    scale = gaps.square().mean(0).sqrt()
    scale[-2:] /= 3.0
    raw = torch.cat([scorer.model.score.weight[0].detach(), torch.tensor(scorer.likelihood[0])]).double()
    weights = (raw * scale).requires_grad_(True)
    loss = 0.5 * 2.0 * weights @ weights
    for pair, gap in zip((c.judged for c in encoded), gaps / scale, strict=True):
        y = 0.9 * pair.confidence + 0.1 * (1 - pair.confidence)
        p = torch.sigmoid(gap @ weights - pair.margin)
        loss = loss - pair.weight * (y * p.log() + (1 - y) * (1 - p).log())
    (gradient,) = torch.autograd.grad(loss, weights)
    assert float(gradient.abs().max()) < 1e-2
    assert torch.allclose(gaps.float() @ raw.float(), torch.tensor(_gaps(scorer, encoded)), atol=1e-3)


def test_features_are_the_mean_hidden_state_and_the_likelihood_of_the_completion(tmp_path: Path) -> None:
    ours = nets.load_policy(str(save_model(tmp_path / "gpt2", "gpt2")))  # its output layer is tied
    scorer = nets.new_reward_model(str(tmp_path / "gpt2"), 0)
    items = [example("what is it", "a cat"), example("x", "nothing at all")]
    features = scorer.features(collate(items))
    for row, item in zip(features.detach(), items, strict=True):
        states = ours.model.transformer(input_ids=torch.tensor([item.prompt + item.completion]))[0][0]
        log_probs = ours.log_probs(collate([item]))[0]
        assert torch.allclose(row[:-2], states[len(item.prompt) :].mean(0), atol=1e-5)
        assert row[-2:].tolist() == pytest.approx([float(log_probs.sum()), float(log_probs.min())], abs=1e-4)


def test_ppo_runs_on_a_head_only_reward_model_with_a_value_model_that_starts_at_zero(
    tmp_path: Path, llama_dir: Path
) -> None:
    pairs = write_jsonl(tmp_path / "pairs.jsonl", toy_pairs(12))
    reward.train(RewardRecipe(head_only=True), pairs, tmp_path / "rm", Recorder(), model=str(llama_dir))
    prompts = write_jsonl(tmp_path / "prompts.jsonl", toy_prompts(6))
    where = str(tmp_path / "rm" / "checkpoint")
    critic = nets.load_reward_model(where).as_critic("fp32", None, 0)
    assert not critic.values(collate([example("x", "abc")])).any()
    report = Recorder()
    recipe = PPORecipe(batch_size=6, steps=2, max_new_tokens=6)
    ppo.train(recipe, prompts, tmp_path / "ppo", report, model=str(llama_dir), reward_model=where)
    assert len(report.steps_seen) == 2


def _gaps(scorer: nets.Scorer, encoded: list[TokenComparison]) -> list[float]:
    chosen, rejected = (scorer.rate([c.examples[side] for c in encoded], 1000) for side in (0, 1))
    return [(c - r) * scorer.std for c, r in zip(chosen, rejected, strict=True)]
