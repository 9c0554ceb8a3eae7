"""Reward model: a scalar for a prompt with a completion, learnt from preferences.

The policy's backbone with a linear head read at the last token (prompt and completion together, end token included).
Bradley-Terry says P(chosen is better) = σ(r_chosen - r_rejected), hence

    loss = -[y log σ(Δ) + (1-y) log σ(-Δ)] + λ (r_chosen + r_rejected)²,   Δ = r_chosen - r_rejected - margin

weighted by `weight`; y = `confidence` moved by the label smoothing ε to y(1-2ε) + ε. The loss knows only differences,
so the small centring term λ keeps the rewards around 0. After training, mean and deviation of the reward over the
training completions go into the model's config (`reward_mean`, `reward_std`), so that PPO sees centred, scaled scores.

With few pairs (`head_only`) the backbone stays frozen and only a linear head is fitted: see `probe.py`.

Deliberately left out: rankings of more than two as one element, ensembles, learnt annotator reliability.

    python -m workers.training reward --data pairs.jsonl --eval held_out.jsonl --model POLICY --out OUT
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workers.training import losses, nets, optimisation, probe
from workers.training.checkpoints import States, digest, fingerprint, finished, publish
from workers.training.comparisons import PairLabels, TokenComparison, encode, examples_of, pair_labels
from workers.training.errors import Interrupted
from workers.training.evaluation import wilson
from workers.training.layout import micro_batches
from workers.training.nets import Scorer
from workers.training.optimisation import Optimiser
from workers.training.recipes import RewardRecipe
from workers.training.records import check_enough, read_comparisons
from workers.training.report import Reporter


def train(
    recipe: RewardRecipe,
    data: Path,
    out: Path,
    report: Reporter,
    *,
    model: str,
    eval: Path | None = None,
    resume: bool = False,
) -> dict[str, float]:
    """Train a reward model on the backbone of `model` into `out/checkpoint`; returns the summary metrics."""
    run = digest(["reward", recipe.model_dump(), fingerprint(data), fingerprint(model), fingerprint(eval)])
    states = States(out, run)
    if resume and (done := finished(out / "checkpoint", run)):
        report.steps = done["step"]
        return dict(done["metrics"])
    if not resume:
        states.clear()

    rows = list(read_comparisons(data))  # before the model is loaded, so that bad data fails at once
    held_out_rows = list(read_comparisons(eval)) if eval else []
    check_enough(len(rows), recipe.min_pairs)
    scorer = nets.new_reward_model(model, recipe.seed, recipe.precision, recipe.lora)
    max_length = min(recipe.max_length, scorer.context_length)
    data_set = encode(scorer.codec, rows, max_length, report)
    held_out = encode(scorer.codec, held_out_rows, max_length, report)
    check_enough(len(data_set), recipe.min_pairs)

    if recipe.head_only:
        total = probe.fit(recipe, scorer, data_set, report)
        return _finish(recipe, scorer, data_set, held_out, out, {"stage": "reward", "step": total, "run": run})

    optimiser = Optimiser([(scorer.trainable(), recipe.learning_rate)], recipe)
    total, first = optimisation.total_steps(len(data_set), recipe), 0
    if resume and (saved := states.latest(report.log)):
        first, tensors, _ = saved
        optimiser.restore(tensors)

    report.begin()
    for step in range(first, total):
        batch = [data_set[i] for i in optimisation.step_items(len(data_set), recipe.batch_size, recipe.seed, step)]
        weight = max(sum(comparison.judged.weight for comparison in batch), 1e-9)
        loss = torch.zeros((), device=scorer.device)
        gaps: list[Tensor] = []
        for group in micro_batches([comparison.tokens for comparison in batch], recipe.micro_batch_tokens):
            part = [batch[i] for i in group]
            labels = pair_labels(part, scorer.device)
            scores = scorer.completion_scores(examples_of(part))
            share = _losses(recipe, labels, scores).sum() / weight
            share.backward()
            loss += share.detach()
            gaps.append((scores[labels.better] - scores[labels.worse]).detach())
        norm = optimiser.step(step, total)

        report.count(len(batch), sum(comparison.tokens for comparison in batch))
        gap = torch.cat(gaps)
        accuracy = ((gap > 0).float() + 0.5 * (gap == 0).float()).mean()
        metrics = {"loss": loss, "accuracy": accuracy, "margin": gap.mean(), "grad_norm": norm}
        report.step(step + 1, total, optimisation.to_floats(metrics))
        if report.stopping or (recipe.save_every and (step + 1) % recipe.save_every == 0):
            states.save(step + 1, optimiser.state(), {})
        if report.stopping:
            raise Interrupted(f"Stopped after step {step + 1} of {total}; --resume goes on from there.")

    report.steps = total
    summary = _finish(recipe, scorer, data_set, held_out, out, {"stage": "reward", "step": total, "run": run})
    states.clear()
    return summary


def _finish(
    recipe: RewardRecipe,
    scorer: Scorer,
    data_set: Sequence[TokenComparison],
    held_out: Sequence[TokenComparison],
    out: Path,
    facts: dict[str, Any],
) -> dict[str, float]:
    """Measure, normalise, publish; returns the summary metrics."""
    train_loss, train_accuracy, rewards = _measure(scorer, recipe, data_set)
    summary = {"loss": train_loss, "train_accuracy": train_accuracy[0] / max(1, train_accuracy[1])}
    scorer.normalise(float(rewards.mean()), float(rewards.std()))
    summary |= {"reward_mean": scorer.mean, "reward_std": scorer.std}
    if held_out:
        loss, (won, decided), _ = _measure(scorer, recipe, held_out)
        low, high = wilson(won, decided)
        summary |= {
            "accuracy": won / decided if decided else 0.5,
            "accuracy_low": low,
            "accuracy_high": high,
            "eval_pairs": decided,
            "eval_loss": loss,
        }
    publish(out / "checkpoint", scorer.save, {**facts, "metrics": summary})
    return summary


def _losses(recipe: RewardRecipe, labels: PairLabels, scores: Tensor) -> Tensor:
    """Weighted loss of each pair (P,) from the raw rewards of all completions (C,)."""
    better, worse = scores[labels.better], scores[labels.worse]
    target = labels.confidence * (1 - 2 * recipe.label_smoothing) + recipe.label_smoothing
    loss = losses.bradley_terry(better, worse, labels.margin, target)
    return labels.weight * (loss + recipe.centering * (better + worse).square())


@torch.no_grad()
def _measure(
    scorer: Scorer, recipe: RewardRecipe, data_set: Sequence[TokenComparison]
) -> tuple[float, tuple[float, int], Tensor]:
    """Mean loss, pairs won of pairs decided (ties of people left out), and the raw rewards of all completions."""
    loss, won, decided = 0.0, 0.0, 0
    rewards: list[Tensor] = []
    for group in micro_batches([comparison.tokens for comparison in data_set], recipe.micro_batch_tokens):
        part = [data_set[i] for i in group]
        labels = pair_labels(part, scorer.device)
        scores = scorer.completion_scores(examples_of(part))
        loss += float(_losses(recipe, labels, scores).sum())
        sure = labels.confidence != 0.5
        sign = torch.where(labels.confidence > 0.5, 1.0, -1.0)
        gap = (sign * (scores[labels.better] - scores[labels.worse]))[sure]
        won += float((gap > 0).sum() + 0.5 * (gap == 0).sum())
        decided += len(gap)
        rewards.append(scores)
    total = max(sum(comparison.judged.weight for comparison in data_set), 1e-9)
    return loss / total, (won, decided), torch.cat(rewards)
