"""The evaluate stage: its report, what it compares with, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.training.nets_in_memory import Recorder, save_reward_model, toy_prompts, write_jsonl
from workers.training import evaluate
from workers.training.answers import Answers, of_suite
from workers.training.errors import DataError, RecordError
from workers.training.nets import load_policy, new_reward_model
from workers.training.recipes import EvaluateRecipe

RECIPE = EvaluateRecipe(max_new_tokens=8, max_length=64)


def run(tmp_path: Path, llama: Path, **options: Any) -> dict[str, Any]:
    prompts = write_jsonl(tmp_path / "prompts.jsonl", toy_prompts(6))
    evaluate.train(RECIPE, prompts, tmp_path, Recorder(), model=str(llama), baseline=str(llama), **options)
    report: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    return report


def test_a_policy_against_itself_is_equal_in_every_figure(tmp_path: Path, llama_dir: Path, reward_dir: Path) -> None:
    demonstrations = write_jsonl(tmp_path / "demos.jsonl", [{"prompt": "say", "completion": "abc"}])
    probes = write_jsonl(tmp_path / "probes.jsonl", [{"prompt": "a?", "prompt_with_opinion": "b. a?", "wrong": "b"}])
    other = save_reward_model(tmp_path / "held-out", llama_dir, seed=3)
    metrics = run(
        tmp_path, llama_dir, initial=str(llama_dir), reward_model=str(reward_dir), held_out_reward_model=str(other),
        demonstrations=demonstrations, sycophancy=probes,
    )["metrics"]  # fmt: skip
    baseline = {name.removeprefix("baseline_"): v for name, v in metrics.items() if name.startswith("baseline_")}
    assert baseline == {name: metrics[name] for name in baseline} and {"eval_loss", "sycophancy"} <= baseline.keys()
    assert metrics["kl"] == metrics["kl_per_token"] == metrics["kl_initial"] == metrics["sqrt_kl"] == 0.0
    assert metrics["reward_win_rate"] == metrics["held_out_reward_win_rate"] == 0.5
    assert metrics["reward_win_rate_at_equal_length"] == pytest.approx(0.5)
    assert metrics["reward_gain"] == metrics["reward_gain_low"] == metrics["reward_gain_high"] == 0.0
    assert metrics["held_out_reward"] != metrics["reward"]
    assert metrics["entropy"] > 0 and metrics["completions/max_length"] <= 8

    policy = load_policy(str(llama_dir))
    [example] = policy.codec.encode("say", "abc")
    expected = -float(policy.completion_log_probs([example]).detach()) / len(example.completion)
    assert metrics["eval_loss"] == pytest.approx(expected, abs=1e-4)


def test_an_ensemble_says_how_much_less_sure_it_is_of_the_new_completions(tmp_path: Path, llama_dir: Path) -> None:
    scorer = new_reward_model(str(llama_dir), 0, heads=3)
    scorer.settle(torch.tensor([[0.1, 0.0, 0.0], [0.0, 0.1, 0.0]]), conservative=0.5)
    scorer.save(tmp_path / "ensemble")
    told = run(tmp_path, llama_dir, reward_model=str(tmp_path / "ensemble"))
    assert told["metrics"]["reward_uncertainty_ratio"] > 2
    assert any("disagree" in sentence for sentence in told["alarms"])


def test_alarms_compare_with_earlier_reports(tmp_path: Path, llama_dir: Path) -> None:
    assert not any("entropy" in alarm for alarm in run(tmp_path, llama_dir)["alarms"])
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps({"metrics": {"entropy": 1000.0}}))
    assert any("entropy" in alarm for alarm in run(tmp_path, llama_dir, previous=[earlier])["alarms"])
    earlier.write_text("{}")
    with pytest.raises(DataError, match=r"earlier.json is not a report"):
        run(tmp_path, llama_dir, previous=[earlier])


def test_a_suite_is_scored_by_its_verifiers_and_only_where_it_can_be(tmp_path: Path, llama_dir: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "say", "verifier": "regex", "pattern": "."},
        {"prompt": "say", "verifier": "regex", "pattern": "never said"},
        {"prompt": "say"},  # no number to compare with: left out
    ]
    suite = write_jsonl(tmp_path / "sums.jsonl", rows)
    metrics = run(tmp_path, llama_dir, suite=[suite])["metrics"]
    assert metrics["suite/sums"] == metrics["baseline_suite/sums"] == 0.5 and metrics["suite/sums/regressed"] == 0.0
    with pytest.raises(DataError, match="verifier 'dance'"):
        run(tmp_path, llama_dir, suite=[write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "a", "verifier": "dance"}])])


def test_a_suite_has_regressed_on_the_records_that_both_could_be_scored_on() -> None:
    def with_scores(scores: list[float | None]) -> Answers:
        return Answers([], [], [], {}, {"sums": scores})

    right: list[float | None] = [1.0] * 40
    assert of_suite(with_scores([0.0] * 20 + [1.0] * 20), with_scores(right), "sums")
    assert not of_suite(with_scores([None] * 20 + [1.0] * 20), with_scores(right), "sums")


def test_a_probe_without_its_wrong_view_is_named(tmp_path: Path, llama_dir: Path) -> None:
    probes = write_jsonl(tmp_path / "probes.jsonl", [{"prompt": "a", "prompt_with_opinion": "b"}])
    with pytest.raises(RecordError, match=r"probes.jsonl, line 1, field 'wrong'"):
        run(tmp_path, llama_dir, sycophancy=probes)
