"""Reward models end to end: ensembles, annotators, rankings, the report, and toy tasks whose optimum is known."""

import itertools
import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.training.nets_in_memory import Recorder, example, toy_pairs, write_jsonl
from workers.training import nets, reward, shared
from workers.training.comparisons import encode, examples_of
from workers.training.errors import Interrupted
from workers.training.judgements import Judgements
from workers.training.layout import Batch, collate
from workers.training.recipes import Lora, PPORecipe, RewardRecipe
from workers.training.records import Comparison
from workers.training.tokens import Example

EXAMPLES = [example("what is it", "a cat"), example("x", "nothing at all"), example("longer prompt than both", "y")]
SMALL: dict[str, Any] = {"batch_size": 8, "learning_rate": 1e-3, "micro_batch_tokens": 300, "max_length": 100}


def ensemble(directory: Path, conservative: float = 0.0, lora: Lora | None = None) -> nets.Scorer:
    scorer = nets.new_reward_model(str(directory), 3, heads=3, lora=lora)
    scorer.settle(torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 1.0]]), conservative)
    return scorer


def test_an_ensembles_score_is_the_mean_of_its_centred_heads_less_kappa_deviations(llama_dir: Path) -> None:
    """Centres 2, 2, ½. Heads 5, 2, .5 are 3, 0, 0 off: mean 1, deviation √2; with κ = ½: 1 - √2/2."""
    heads = torch.tensor([[5.0, 2.0, 0.5]])
    assert ensemble(llama_dir).combine(heads).tolist() == pytest.approx([1.0])
    careful = ensemble(llama_dir, conservative=0.5)
    assert careful.centres == pytest.approx([2.0, 2.0, 0.5])
    assert careful.combine(heads).tolist() == pytest.approx([1 - 2**0.5 / 2])


def test_where_the_heads_disagree_the_score_is_lower_and_the_disagreement_is_told(llama_dir: Path) -> None:
    plain, careful = ensemble(llama_dir), ensemble(llama_dir, conservative=2.0)
    careful.normalise(0.0, 0.5)
    plain.normalise(0.0, 0.5)
    heads = plain.rate_heads(EXAMPLES, 1000)
    spread = (heads - torch.tensor(plain.centres)).std(1, correction=0)
    assert plain.disagreement(EXAMPLES, 1000) == pytest.approx((spread / 0.5).tolist(), abs=1e-5)
    lower = torch.tensor(plain.rate(EXAMPLES, 1000)) - torch.tensor(careful.rate(EXAMPLES, 1000))
    assert torch.allclose(lower, 2 * spread / 0.5, atol=1e-5)
    assert float(spread.min()) > 0


def test_each_head_has_a_start_of_its_own_and_the_first_is_that_of_a_single_one(llama_dir: Path) -> None:
    heads = nets.new_reward_model(str(llama_dir), 3, heads=3).model.score.weight
    assert heads.shape == (3, 32)
    assert torch.equal(heads[0], nets.new_reward_model(str(llama_dir), 3).model.score.weight[0])
    assert float(torch.corrcoef(heads.detach()).fill_diagonal_(0).abs().max()) < 0.6


@pytest.mark.parametrize("lora", [None, Lora(r=2)])
def test_a_saved_ensemble_gives_the_same_scores_in_a_new_process(
    tmp_path: Path, llama_dir: Path, lora: Lora | None
) -> None:
    scorer = ensemble(llama_dir, conservative=0.7, lora=lora)
    with torch.no_grad():
        for _, parameter in scorer.trainable():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    before, spread = scorer.rate(EXAMPLES, 1000), scorer.disagreement(EXAMPLES, 1000)
    scorer.save(tmp_path / "rm")
    if lora is not None:  # one new process is enough to show it; the merged one is loaded here
        after = nets.load_reward_model(str(tmp_path / "rm"))
        assert after.rate(EXAMPLES, 1000) == pytest.approx(before, abs=1e-5)
        return
    program = (
        "import sys, json; from workers.training import nets; from workers.training.tokens import Example;"
        "s = nets.load_reward_model(sys.argv[1]); e = [Example(*e) for e in json.loads(sys.argv[2])];"
        "print(json.dumps([s.rate(e, 1000), s.disagreement(e, 1000)]))"
    )
    examples = json.dumps([[e.prompt, e.completion] for e in EXAMPLES])
    command = [sys.executable, "-c", program, str(tmp_path / "rm"), examples]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert told[0] == pytest.approx(before, abs=1e-6) and told[1] == pytest.approx(spread, abs=1e-6)


def test_a_value_model_of_an_ensemble_starts_as_its_mean_head(llama_dir: Path) -> None:
    scorer = ensemble(llama_dir)
    values = scorer.as_critic("fp32", None, 0).values(collate(EXAMPLES))
    assert torch.allclose(values, scorer.values(collate(EXAMPLES)) + (scorer.mean / scorer.std), atol=1e-5)


@pytest.mark.parametrize("directory", ["llama_dir", "gpt2_dir"])
def test_scores_depend_neither_on_padding_nor_on_order_and_adapters_switched_off_leave_the_base(
    directory: str, request: pytest.FixtureRequest
) -> None:
    where = str(request.getfixturevalue(directory))
    adapted, plain = nets.new_reward_model(where, 0, heads=2, lora=Lora(r=2)), nets.new_reward_model(where, 0, heads=2)
    expected = plain.rate_heads(EXAMPLES, 1)
    wide = collate([*EXAMPLES, Example([3] * 60, [4] * 40)])
    assert torch.allclose(plain.head_scores(wide)[:3], expected, atol=1e-4)
    wide.ids[wide.ids == 0] = 1  # what pads becomes the end token
    assert torch.allclose(plain.head_scores(wide)[:3], expected, atol=1e-4)
    assert torch.allclose(plain.rate_heads(EXAMPLES[::-1], 1000).flip(0), expected, atol=1e-4)
    with torch.no_grad():
        for name, parameter in adapted.trainable():
            parameter += 0.0 if "score" in name else 0.05
    assert not torch.allclose(adapted.rate_heads(EXAMPLES, 1000), expected, atol=1e-2)
    assert adapted.peft is not None
    with adapted.peft.disable_adapter():
        assert torch.allclose(adapted.rate_heads(EXAMPLES, 1000), expected, atol=1e-4)


@pytest.mark.parametrize("directory", ["llama_dir", "gpt2_dir"])
def test_a_ranking_is_worth_its_pairs_with_each_completion_read_once(
    directory: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four completions: loss and gradient are the mean over the six pairs, each pair read by itself."""
    answers = ("aaaa", "b", "ccc", "ddddd")
    ranking = Comparison("what is it", answers, ((2,), (0,), (3,), (1,)))
    pairs = [
        Comparison("what is it", (answers[a], answers[b]), weight=1 / 6)
        for a, b in itertools.combinations((2, 0, 3, 1), 2)
    ]
    results = []
    for rows in ([ranking], pairs):
        scorer = nets.new_reward_model(str(request.getfixturevalue(directory)), 0)
        read: list[int] = []
        states = scorer.states

        def counted(batch: Batch, read: list[int] = read, states: Any = states) -> torch.Tensor:
            read.append(batch.ids.numel())
            return states(batch)  # type: ignore[no-any-return]

        monkeypatch.setattr(scorer, "states", counted)
        encoded = encode(scorer.codec, rows, 160, Recorder())
        judgements = Judgements(RewardRecipe(), rows)
        scores = scorer.completion_scores(examples_of(encoded))
        loss = judgements.losses(judgements.labels(encoded), scores, 0.01).sum()
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in scorer.model.parameters() if p.grad is not None])
        results.append((float(loss.detach()), gradients, sum(read)))
    (once, gradient, tokens), (apart, expected, more) = results
    assert once == pytest.approx(apart, abs=1e-5)
    assert float((gradient - expected).norm() / expected.norm()) < 1e-5
    assert tokens < more


OPTIONS: dict[str, dict[str, Any]] = {
    "an ensemble": {"ensemble": 3, "conservative": 0.5},
    "learnt annotators and ties": {"annotators": "learned", "ties": "davidson"},
    "an ensemble of adapters' heads on rankings": {"ensemble": 2, "ranking_loss": "plackett_luce", "lora": Lora(r=2)},
}


def mixed_rows() -> list[dict[str, Any]]:
    """Pairs and rankings with ties, by two annotators."""
    rows = [row | {"annotator": f"a{i % 2}"} for i, row in enumerate(toy_pairs(20))]
    rows[3]["confidence"] = 0.5
    ranked = [
        {
            "prompt": row["prompt"],
            "completions": [row["rejected"], row["chosen"], row["chosen"]],
            "ranking": [[1, 2], 0],
        }
        for row in toy_pairs(4, offset=20)
    ]
    return [*rows, *ranked]


@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_run_ends_with_the_bytes_of_the_uninterrupted_one(name: str, tmp_path: Path, llama_dir: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", mixed_rows())
    recipe = RewardRecipe(**SMALL, **OPTIONS[name], epochs=2, save_every=2)

    def train(out: str, report: Recorder, resume: bool = False) -> dict[str, float]:
        return reward.train(recipe, data, tmp_path / out, report, model=str(llama_dir), resume=resume, eval=data)

    expected = train("straight", Recorder())
    with pytest.raises(Interrupted):
        train("stopped", Recorder(stop_after=3))
    assert train("stopped", Recorder(), resume=True) == expected
    for file in ("checkpoint/model.safetensors", "report.json"):
        assert (tmp_path / "straight" / file).read_bytes() == (tmp_path / "stopped" / file).read_bytes()
    manifests = [json.loads((tmp_path / o / "checkpoint/MANIFEST.json").read_text()) for o in ("straight", "stopped")]
    assert manifests[0] == manifests[1]
    if "annotators" in OPTIONS[name]:
        assert set(manifests[0]["annotators"]) == {"", "a0", "a1"} and manifests[0]["tie_nu"] > 0


def test_the_report_says_how_good_the_model_is_and_where(tmp_path: Path, llama_dir: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", mixed_rows())
    recipe = RewardRecipe(**SMALL, epochs=6, ensemble=2)
    metrics = reward.train(recipe, data, tmp_path / "out", Recorder(), model=str(llama_dir), eval=data)
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    section = told["eval"]
    assert section["decided"] == metrics["eval_pairs"] == 19 + 8 and section["ties"] == 1 + 4
    assert section["accuracy"] == metrics["accuracy"] == 1.0
    assert section["accuracy_ties_half"] == pytest.approx((27 + 2.5) / 32)
    assert section["ece"] == metrics["ece"] and section["log_loss"] == metrics["log_loss"] < 0.3
    assert set(section["slices"]["annotator"]) == {"", "a0", "a1"}
    assert section["min_reward"] < section["mean_reward"] < section["max_reward"]
    assert section["pad_invariance"] < 1e-4
    assert told["train"]["disagreement"] > 0 and told["alarms"] == []


@pytest.mark.parametrize("value_init", ["reward", "zero"])
@pytest.mark.parametrize("adapter", [False, True])
def test_ppo_reads_an_ensemble_as_it_was_trained_whether_whole_or_an_adapter(
    tmp_path: Path, llama_dir: Path, adapter: bool, value_init: str
) -> None:
    lora = Lora(r=2, save_adapter=adapter)
    alone = ensemble(llama_dir, conservative=0.7, lora=lora if adapter else None)
    expected, batch = alone.rate(EXAMPLES, 1000), collate(EXAMPLES)
    alone.conservative, alone.mean = 0.0, 0.0
    values = alone.values(batch)
    alone.recall(alone.model.config)
    directory = tmp_path / "rm"
    directory.mkdir()
    alone.save(directory)
    recipe = PPORecipe(lora=lora, value_init=value_init)
    policy = nets.load_policy(str(llama_dir), lora=lora)
    scorer, critic = shared.reward_and_value(recipe, policy, str(llama_dir), str(directory))
    assert scorer.rate(EXAMPLES, 1000) == pytest.approx(expected, abs=1e-5)
    with torch.no_grad():
        start = critic.values(batch)
    assert torch.allclose(start, values if value_init == "reward" else torch.zeros_like(start), atol=1e-4)


def test_several_linear_heads_are_each_fitted_on_their_own_bootstrap(tmp_path: Path, gpt2_dir: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", mixed_rows())
    recipe = RewardRecipe(head_only=True, ridge=2.0, ensemble=3, annotators="learned", conservative=0.3)
    metrics = reward.train(recipe, data, tmp_path / "o", Recorder(), model=str(gpt2_dir), eval=data)
    assert metrics["accuracy"] > 0.9
    scorer = nets.load_reward_model(str(tmp_path / "o" / "checkpoint"))
    assert torch.tensor(scorer.likelihood).shape == (3, 2)
    assert min(scorer.disagreement(EXAMPLES, 1000)) > 0
    told = json.loads((tmp_path / "o" / "report.json").read_text())
    assert all(one["reliability"] > 0.85 for one in told["annotators"].values())


FEW, MANY = "abcd", "kfbqhtnpaxdrmgwcljsvieou"  # letters, the worthless first, those worth most last


def worth(text: str, letters: str) -> float:
    """Of five letters; as far apart as makes labels as noisy as they should be: E σ(|Δ|) = .818 for few letters."""
    return sum(0.755 * 3 * letters.index(letter) / (len(letters) - 1) for letter in text)


def chance(one: str, other: str, letters: str) -> float:
    return 1 / (1 + math.exp(worth(other, letters) - worth(one, letters)))


def random_pair(draw: random.Random, letters: str) -> tuple[str, str]:
    return "".join(draw.choices(letters, k=5)), "".join(draw.choices(letters, k=5))


def bradley_terry_rows(count: int, seed: int, letters: str, flips: float = 0.0) -> list[dict[str, Any]]:
    """Pairs labelled with the odds of their worth; then so many labels turned round."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        one, other = random_pair(draw, letters)
        wins = (draw.random() < chance(one, other, letters)) != (draw.random() < flips)
        rows.append({"prompt": "q", "chosen": one if wins else other, "rejected": other if wins else one})
    return rows


def expected_accuracy(scorer: nets.Scorer, letters: str) -> tuple[float, float]:
    """Accuracy on new labels of true odds, their noise averaged out; and that of somebody who knows the odds."""
    draw = random.Random(10_000)
    pairs = [random_pair(draw, letters) for _ in range(2000)]
    examples = [scorer.codec.encode("q", text)[0] for pair in pairs for text in pair]
    rewards = scorer.rate(examples, 20_000)
    right = [chance(one, other, letters) for one, other in pairs]
    found = [p if a > b else 1 - p for p, a, b in zip(right, rewards[::2], rewards[1::2], strict=True)]
    return sum(found) / len(pairs), sum(max(p, 1 - p) for p in right) / len(pairs)


def fitted(place: Path, model: Path, rows: list[dict[str, Any]], **options: Any) -> nets.Scorer:
    data = write_jsonl(place / "rows.jsonl", rows)
    recipe = RewardRecipe(batch_size=64, learning_rate=3e-3, micro_batch_tokens=65536, **options)
    reward.train(recipe, data, place / "out", Recorder(), model=str(model))
    return nets.load_reward_model(str(place / "out" / "checkpoint"))


@pytest.mark.parametrize(("flips", "least"), [(0.0, 0.81), (0.1, 0.80)])
def test_four_thousand_noisy_labels_are_enough_to_come_near_to_what_can_be_known(
    tmp_path: Path, llama_dir: Path, flips: float, least: float
) -> None:
    for seed in range(3):
        rows = bradley_terry_rows(4000, seed, FEW, flips)
        scorer = fitted(tmp_path, llama_dir, rows, seed=seed, label_smoothing=flips)
        accuracy, best = expected_accuracy(scorer, FEW)
        assert best == pytest.approx(0.818, abs=0.004)
        assert accuracy >= least


def test_annotators_who_say_the_opposite_are_found_out(tmp_path: Path, llama_dir: Path) -> None:
    """Three of ten turn every answer round. Believed alike they cost accuracy; learnt, their answers are of use."""
    gains = []
    for seed in range(3):
        rows, draw = bradley_terry_rows(1000, seed, MANY), random.Random(f"who/{seed}")
        for row in rows:
            row["annotator"] = str(draw.randrange(10))
            if row["annotator"] in "012":
                row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        found = {}
        for how in ("equal", "learned"):
            scorer = fitted(tmp_path, llama_dir, rows, seed=seed, annotators=how, epochs=3)
            found[how], _ = expected_accuracy(scorer, MANY)
        gains.append(found["learned"] - found["equal"])
        told = json.loads((tmp_path / "out" / "report.json").read_text())["annotators"]
        assert max(told[name]["reliability"] for name in "012") < 0.5
        assert min(told[name]["reliability"] for name in "3456789") > 0.8
    assert min(gains) > 0.02 and sum(gains) / 3 > 0.04, gains
