"""GRPO and RLOO as stages: learning, exact resuming in the middle of a rollout, what counts and what does not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.workers.training.nets_in_memory import Recorder, toy_prompts, write_jsonl
from workers.training import groups, grpo, nets, optimisation, rewards, rloo
from workers.training.errors import DataError, Interrupted, TrainingError
from workers.training.recipes import GRPORecipe, Lora, RLOORecipe

SMALL: dict[str, Any] = {
    "batch_size": 4, "group_size": 3, "steps": 4, "inner_epochs": 2, "minibatches": 2, "learning_rate": 1e-3,
    "max_new_tokens": 8, "micro_batch_tokens": 300, "max_length": 100,
}  # fmt: skip
STAGES: dict[str, Any] = {
    "grpo": (grpo, GRPORecipe(**SMALL)),
    "grpo with KL, adapters and redrawing": (
        grpo, GRPORecipe(**SMALL, beta=0.1, lora=Lora(r=2), max_draws=2, mask_truncated=True),
    ),
    "rloo": (rloo, RLOORecipe(**SMALL)),
}  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    rows = [row | {"answer": str(i)} for i, row in enumerate(toy_prompts(10))]
    components = [
        {"kind": "regex", "pattern": "[a-z]", "name": "letter"},
        {"kind": "length", "max_tokens": 8, "buffer": 8, "weight": 0.3},
    ]
    path = tmp_path / "rewards.json"
    path.write_text(json.dumps(components))
    return {"data": write_jsonl(tmp_path / "prompts.jsonl", rows), "rewards": path}


def run(stage: str, files: dict[str, Path], out: Path, model: Path, report: Recorder, resume: bool = False) -> Any:
    module, recipe = STAGES[stage]
    return module.train(recipe, files["data"], out, report, model=str(model), rewards=files["rewards"], resume=resume)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("updates", [4, 6])
def test_a_run_stopped_after_any_update_resumes_to_the_bytes_of_the_uninterrupted_one(
    stage: str, updates: int, files: dict[str, Path], tmp_path: Path, llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four updates use up a rollout, six end in the middle of the second one."""
    straight, stopped, resumed = Recorder(), Recorder(), Recorder()
    expected = run(stage, files, tmp_path / "straight", llama_dir, straight)
    step, count = optimisation.Optimiser.step, 0

    def counting(self: Any, *where: int) -> torch.Tensor:
        nonlocal count
        count += 1
        stopped.stopping = stopped.stopping or count == updates
        return step(self, *where)

    def report_only(*_: Any) -> None:
        stopped.steps_seen.append(dict(_[2]))

    with monkeypatch.context() as patch:
        patch.setattr(optimisation.Optimiser, "step", counting)
        patch.setattr(stopped, "step", report_only)
        with pytest.raises(Interrupted, match=f"update {updates} of 16.*--resume"):
            run(stage, files, tmp_path / "stopped", llama_dir, stopped)
    assert run(stage, files, tmp_path / "stopped", llama_dir, resumed, resume=True) == expected
    assert stopped.steps_seen + resumed.steps_seen == straight.steps_seen
    one, other = (tmp_path / name / "checkpoint" / "model.safetensors" for name in ("straight", "stopped"))
    assert one.read_bytes() == other.read_bytes()


def test_the_share_of_completions_that_pass_rises(files: dict[str, Path], tmp_path: Path, llama_dir: Path) -> None:
    recipe = GRPORecipe(
        batch_size=8, group_size=6, steps=40, learning_rate=3e-3, max_new_tokens=6, schedule="constant", beta=0.01
    )
    report = Recorder()
    path = tmp_path / "letter.json"
    path.write_text(json.dumps([{"kind": "regex", "pattern": "[a-m]", "name": "early letter"}]))
    grpo.train(recipe, files["data"], tmp_path / "out", report, model=str(llama_dir), rewards=path)
    first, last = report.steps_seen[0], report.steps_seen[-1]
    assert first["rewards/early letter/pass_rate"] < 0.35
    assert last["rewards/early letter/pass_rate"] > 0.9 and last["reward"] > 0.9
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-3) and last["objective/kl"] > 0.3
    assert {
        "reward", "reward_std", "frac_reward_zero_std", "kl", "entropy", "clip_ratio/low_mean", "clip_ratio/low_min",
        "clip_ratio/high_mean", "clip_ratio/high_max", "clip_ratio/region_mean", "completions/mean_length",
        "completions/min_length", "completions/max_length", "completions/clipped_ratio",
        "completions/mean_terminated_length", "completions/min_terminated_length",
        "completions/max_terminated_length", "rewards/early letter/mean", "rewards/early letter/std",
        "rewards/early letter/pass_at_k", "rewards/early letter/error_rate", "loss", "grad_norm",
    } <= set(last)  # fmt: skip


def test_a_reward_model_alone_is_enough(
    files: dict[str, Path], tmp_path: Path, llama_dir: Path, reward_dir: Path
) -> None:
    recipe = RLOORecipe(**(SMALL | {"steps": 1}))
    metrics = rloo.train(
        recipe, files["data"], tmp_path / "o", Recorder(), model=str(llama_dir), reward_model=str(reward_dir)
    )
    assert metrics["reward"] == pytest.approx(metrics["rewards/reward_model/mean"])


@pytest.mark.parametrize("stage", ["grpo", "rloo"])
def test_training_is_refused_when_sampler_and_trainer_disagree(
    stage: str, files: dict[str, Path], tmp_path: Path, llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_probs = nets.Policy.log_probs
    monkeypatch.setattr(nets.Policy, "log_probs", lambda self, batch, t=1.0: log_probs(self, batch, t * 1.5))
    with pytest.raises(TrainingError, match="sampler and trainer differ"):
        run(stage, files, tmp_path / "out", llama_dir, Recorder())


def test_what_scores_alike_or_not_at_all_leaves_the_policy_where_it_was(
    files: dict[str, Path], tmp_path: Path, llama_dir: Path
) -> None:
    """No row has `pattern`, so the first component knows nothing; the second says 0 to everything."""
    path = tmp_path / "nothing.json"
    path.write_text(json.dumps([{"kind": "regex"}, {"kind": "length", "max_tokens": 99, "buffer": 1}]))
    for rewards_file, unscorable in ((path, 0.0), (_only_first(path), 1.0)):
        report = Recorder()
        grpo.train(
            GRPORecipe(**SMALL), files["data"], tmp_path / "out", report, model=str(llama_dir), rewards=rewards_file
        )
        assert report.steps_seen[-1]["frac_reward_zero_std"] == 1.0
        assert report.steps_seen[-1]["frac_unscorable"] == unscorable
        before = load_file(llama_dir / "model.safetensors")
        after = load_file(tmp_path / "out/checkpoint/model.safetensors")
        assert all(torch.equal(before[name], after[name]) for name in before)


def _only_first(path: Path) -> Path:
    other = path.with_name("first.json")
    other.write_text(json.dumps(json.loads(path.read_text())[:1]))
    return other


def test_gradients_do_not_depend_on_how_a_step_is_cut_into_micro_batches(
    files: dict[str, Path], tmp_path: Path, llama_dir: Path
) -> None:
    """With 64 tokens a pass every group stands alone; unequal lengths stay weighted."""
    for normalise in ("tokens", "sequences"):
        seen = []
        for budget in (64, 100_000):
            report = Recorder()
            recipe = GRPORecipe(
                **(SMALL | {"micro_batch_tokens": budget, "steps": 1, "minibatches": 1}),
                normalise=normalise, beta=0.1, temperature=0.7,
            )  # fmt: skip
            grpo.train(recipe, files["data"], tmp_path / "o", report, model=str(llama_dir), rewards=files["rewards"])
            seen.append([report.steps_seen[0][name] for name in ("loss", "grad_norm", "reward", "kl")])
        assert seen[0] == pytest.approx(seen[1], rel=2e-4, abs=1e-6)
        assert report.steps_seen[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)  # the temperature is everywhere


def test_redrawing_keeps_only_groups_that_differ_and_reports_on_all_that_were_drawn(
    files: dict[str, Path], llama_dir: Path
) -> None:
    policy = nets.load_policy(str(llama_dir))
    recipe = GRPORecipe(**(SMALL | {"group_size": 2, "max_draws": 9}))
    components = [rewards.Component(kind="regex", pattern="[a-z]")]
    sampler = groups._Sampler(
        recipe, list(groups.read_prompts(files["data"])), policy, None, rewards.Rewards(components, policy, 8, 999)
    )
    rollout = sampler.draw()
    assert 1 < sampler.drawn <= 9 and len(rollout.rewards) == 4
    assert all(set(group) == {0.0, 1.0} for group in rollout.rewards.tolist())
    assert 0.0 < rollout.facts["frac_reward_zero_std"] < 1.0
    prompts = [example.prompt for example in rollout.examples]
    assert prompts[0::2] == prompts[1::2]


def test_truncated_completions_are_left_out_of_the_updates_when_asked() -> None:
    rollout = groups.Rollout([], torch.zeros(2, 2), torch.zeros(4, 1), torch.zeros(4, 1), None, [True, False] * 2, {})
    for mask_truncated, items in ((False, [0, 1, 2, 3]), (True, [0, 2])):
        recipe = GRPORecipe(mask_truncated=mask_truncated, group_size=2)
        assert sorted(groups._minibatch(recipe, rollout, 0, 0)) == items


def test_nothing_to_reward_is_an_error(files: dict[str, Path], tmp_path: Path, llama_dir: Path) -> None:
    with pytest.raises(DataError, match="nothing to reward: give --rewards"):
        grpo.train(GRPORecipe(), files["data"], tmp_path / "o", Recorder(), model=str(llama_dir))
