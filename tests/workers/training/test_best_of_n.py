"""Best of n: what is kept, what it earns, how far it is from the policy."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.training.nets_in_memory import Recorder, toy_prompts, write_jsonl
from workers.training import best_of_n
from workers.training.best_of_n import Candidate, chosen, expected_best, kl, reward_curve
from workers.training.recipes import BestOfNRecipe
from workers.training.records import read_comparisons, read_demonstrations


def test_the_expected_best_is_the_mean_over_all_subsets() -> None:
    rewards = [0.3, -1.0, 2.0, 2.0, 0.7]
    for k in range(1, 6):
        subsets = [max(subset) for subset in itertools.combinations(rewards, k)]
        assert expected_best(rewards, k) == pytest.approx(sum(subsets) / len(subsets))


def test_for_pass_or_fail_it_is_the_usual_estimate_of_pass_at_k() -> None:
    n, passed, k = 10, 3, 4
    expected = 1 - math.comb(n - passed, k) / math.comb(n, k)
    assert expected_best([1.0] * passed + [0.0] * (n - passed), k) == pytest.approx(expected)


def test_the_divergence_is_the_one_that_is_simulated() -> None:
    """The best of n uniform numbers has density n xⁿ⁻¹; the KL to the uniform one is its mean logarithm."""
    best = torch.rand(200_000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).amax(1)
    assert float((math.log(5) + 4 * best.log()).mean()) == pytest.approx(kl(5), abs=0.01)
    assert kl(1) == 0.0


def test_prompts_with_too_few_scored_completions_are_not_in_the_curve() -> None:
    curve = reward_curve([[1.0, 3.0, 5.0], [10.0]], 3)
    assert curve == {1: 6.5, 2: pytest.approx((3 + 5 + 5) / 3), 3: 5.0}


def test_best_and_worst_are_kept_and_the_rest_is_not() -> None:
    message = [{"role": "user", "content": "hi"}]
    groups = [
        [Candidate("bad", -1.0), Candidate("good", 2.0), Candidate("cut", 9.0, ended=False), Candidate("lost", None)],
        [Candidate("same", 1.0), Candidate("same too", 1.0)],
        [Candidate("lost", None), Candidate("cut", 1.0, ended=False)],
    ]
    demonstrations, pairs = chosen([message, "two", "three"], groups, BestOfNRecipe())
    good, bad = ([{"role": "assistant", "content": text}] for text in ("good", "bad"))
    assert demonstrations == [
        {"prompt": message, "completion": good, "reward": 2.0}, {"prompt": "two", "completion": "same", "reward": 1.0}
    ]  # fmt: skip
    assert pairs == [{"prompt": message, "chosen": good, "rejected": bad, "margin": 3.0}]
    assert chosen([message], groups[:1], BestOfNRecipe(ended_only=False))[1][0]["margin"] == 10.0
    assert chosen([message, "two"], groups[:2], BestOfNRecipe(min_reward=1.5)) == (demonstrations[:1], pairs)


def test_the_stage_writes_files_that_the_other_stages_read(tmp_path: Path, llama_dir: Path) -> None:
    data = write_jsonl(tmp_path / "prompts.jsonl", toy_prompts(6))
    rewards = tmp_path / "rewards.json"
    rewards.write_text(json.dumps([{"kind": "length", "max_tokens": 12, "buffer": 12}, {"kind": "regex"}]))
    recipe = BestOfNRecipe(n=4, max_new_tokens=12, ended_only=False)

    def run(place: str) -> Any:
        return best_of_n.train(recipe, data, tmp_path / place, Recorder(), model=str(llama_dir), rewards=rewards)

    metrics = run("one")
    demonstrations = list(read_demonstrations(tmp_path / "one" / "demonstrations.jsonl"))
    pairs = list(read_comparisons(tmp_path / "one" / "pairs.jsonl"))
    assert len(demonstrations) == metrics["demonstrations"] == 6 and len(pairs) == metrics["pairs"]
    assert metrics["kl"] == pytest.approx(math.log(4) - 0.75)
    assert metrics["reward/best_of_1"] <= metrics["reward/best_of_2"] <= metrics["reward/best_of_4"]
    assert metrics["reward/best_of_1"] == pytest.approx(metrics["rewards/length/mean"])
    assert metrics["rewards/regex/error_rate"] == 1.0 and metrics["frac_unscorable"] == 0.0
    assert run("two") == metrics
    for name in ("demonstrations.jsonl", "pairs.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
