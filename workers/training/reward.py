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
from workers.training.errors import Interrupted
from workers.training.evaluation import wilson, wins
from workers.training.nets import Scorer
from workers.training.optimisation import Optimiser
from workers.training.recipes import RewardRecipe
from workers.training.records import Pair, check_enough, read_pairs
from workers.training.report import Reporter
from workers.training.tokens import Codec, TokenPair, encode_pairs, micro_batches


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

    rows = list(read_pairs(data))  # before the model is loaded, so that bad data fails at once
    held_out_rows = list(read_pairs(eval)) if eval else []
    check_enough(len(rows), recipe.min_pairs)
    scorer = nets.new_reward_model(model, recipe.seed, recipe.precision, recipe.lora)
    max_length = min(recipe.max_length, scorer.context_length)
    pairs = _encode(scorer.codec, rows, max_length, report)
    held_out = _encode(scorer.codec, held_out_rows, max_length, report)
    check_enough(len(pairs), recipe.min_pairs)

    if recipe.head_only:
        total = probe.fit(recipe, scorer, pairs, report)
        return _finish(recipe, scorer, pairs, held_out, out, {"stage": "reward", "step": total, "run": run})

    optimiser = Optimiser([(scorer.trainable(), recipe.learning_rate)], recipe)
    total, first = optimisation.total_steps(len(pairs), recipe), 0
    if resume and (saved := states.latest(report.log)):
        first, tensors, _ = saved
        optimiser.restore(tensors)

    report.begin()
    for step in range(first, total):
        batch = [pairs[i] for i in optimisation.step_items(len(pairs), recipe.batch_size, recipe.seed, step)]
        weight = max(sum(pair.weight for pair in batch), 1e-9)
        loss = torch.zeros((), device=scorer.device)
        gaps: list[Tensor] = []
        for group in micro_batches([2 * len(pair) for pair in batch], recipe.micro_batch_tokens):
            part = [batch[i] for i in group]
            chosen, rejected = _scores(scorer, part)
            share = _losses(recipe, part, chosen, rejected).sum() / weight
            share.backward()
            loss += share.detach()
            gaps.append((chosen - rejected).detach())
        norm = optimiser.step(step, total)

        report.count(len(batch), sum(pair.tokens for pair in batch))
        gap = torch.cat(gaps)
        accuracy = ((gap > 0).float() + 0.5 * (gap == 0).float()).mean()
        metrics = {"loss": loss, "accuracy": accuracy, "margin": gap.mean(), "grad_norm": norm}
        report.step(step + 1, total, optimisation.to_floats(metrics))
        if report.stopping or (recipe.save_every and (step + 1) % recipe.save_every == 0):
            states.save(step + 1, optimiser.state(), {})
        if report.stopping:
            raise Interrupted(f"Stopped after step {step + 1} of {total}; --resume goes on from there.")

    report.steps = total
    summary = _finish(recipe, scorer, pairs, held_out, out, {"stage": "reward", "step": total, "run": run})
    states.clear()
    return summary


def _finish(
    recipe: RewardRecipe,
    scorer: Scorer,
    pairs: Sequence[TokenPair],
    held_out: Sequence[TokenPair],
    out: Path,
    facts: dict[str, Any],
) -> dict[str, float]:
    """Measure, normalise, publish; returns the summary metrics."""
    train_loss, better, worse = _measure(scorer, recipe, pairs)
    summary = {"loss": train_loss, "train_accuracy": wins(better, worse) / len(pairs)}
    rewards = torch.tensor(better + worse)
    scorer.normalise(float(rewards.mean()), float(rewards.std()))
    summary |= {"reward_mean": scorer.mean, "reward_std": scorer.std}
    if held_out:
        summary |= _held_out(scorer, recipe, held_out)
    publish(out / "checkpoint", scorer.save, {**facts, "metrics": summary})
    return summary


def _encode(codec: Codec, rows: Sequence[Pair], max_length: int, report: Reporter) -> list[TokenPair]:
    pairs, dropped = encode_pairs(codec, rows, max_length)
    if dropped:
        report.log(f"{dropped} of {len(rows)} pairs left out: their prompt alone fills {max_length} tokens.")
    return pairs


def _scores(scorer: Scorer, pairs: Sequence[TokenPair]) -> tuple[Tensor, Tensor]:
    """Raw rewards of chosen and rejected completions, each (B,), with gradients."""
    examples = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    chosen, rejected = scorer.completion_scores(examples).chunk(2)
    return chosen, rejected


def _losses(recipe: RewardRecipe, pairs: Sequence[TokenPair], chosen: Tensor, rejected: Tensor) -> Tensor:
    """Weighted loss of each pair (B,)."""
    columns = [(pair.margin, pair.confidence, pair.weight) for pair in pairs]
    margin, confidence, weight = torch.tensor(columns, device=chosen.device).unbind(1)
    target = confidence * (1 - 2 * recipe.label_smoothing) + recipe.label_smoothing
    loss = losses.bradley_terry(chosen, rejected, margin, target)
    return weight * (loss + recipe.centering * (chosen + rejected).square())


@torch.no_grad()
def _measure(
    scorer: Scorer, recipe: RewardRecipe, pairs: Sequence[TokenPair]
) -> tuple[float, list[float], list[float]]:
    """Mean loss, and the raw rewards of chosen and rejected in the order of `pairs`."""
    chosen, rejected, loss = [0.0] * len(pairs), [0.0] * len(pairs), 0.0
    for group in micro_batches([2 * len(pair) for pair in pairs], recipe.micro_batch_tokens):
        part = [pairs[i] for i in group]
        better, worse = _scores(scorer, part)
        loss += float(_losses(recipe, part, better, worse).sum())
        for index, b, w in zip(group, better.tolist(), worse.tolist(), strict=True):
            chosen[index], rejected[index] = b, w
    return loss / max(sum(pair.weight for pair in pairs), 1e-9), chosen, rejected


def _held_out(scorer: Scorer, recipe: RewardRecipe, pairs: Sequence[TokenPair]) -> dict[str, float]:
    """Loss, and accuracy with its 95 % interval over the pairs that people did not call a tie."""
    loss, chosen, rejected = _measure(scorer, recipe, pairs)
    decided = [i for i, pair in enumerate(pairs) if pair.confidence != 0.5]
    up = [chosen[i] if pairs[i].confidence > 0.5 else rejected[i] for i in decided]
    down = [rejected[i] if pairs[i].confidence > 0.5 else chosen[i] for i in decided]
    won = wins(up, down)
    low, high = wilson(won, len(decided))
    accuracy = won / len(decided) if decided else 0.5
    return {
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "eval_pairs": len(decided),
        "eval_loss": loss,
    }
