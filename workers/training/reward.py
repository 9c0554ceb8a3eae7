"""Reward model: a scalar for a prompt with a completion, learnt from preferences.

The policy's backbone with a linear head read at the last token (prompt and completion together, end token included).
Bradley-Terry says P(chosen is better) = σ(r_chosen - r_rejected), hence

    loss = -[y log σ(Δ) + (1-y) log σ(-Δ)] + λ (r_chosen + r_rejected)²,   Δ = r_chosen - r_rejected - margin

weighted by `weight`; y = `confidence` moved by the label smoothing ε to y(1-2ε) + ε. The loss knows only differences,
so the small centring term λ keeps the rewards around 0. After training, mean and deviation of the reward over the
training completions go into the model's config (`reward_mean`, `reward_std`), so that PPO sees centred, scaled scores.
Ties with a probability of their own, rankings as one choice after another and reliabilities of annotators that are
learnt along: see `judgements.py`.

With few pairs (`head_only`) the backbone stays frozen and only a linear head is fitted: see `probe.py`.

An `ensemble` is M heads on the one backbone, each with its own start and its own bootstrap: comparison i counts for
head m as often as it was drawn in N draws with replacement. Training minimises the mean of the heads' losses.

`report.json` beside the checkpoint says how good the model is, and where it is not: see `reward_report.py`.

Deliberately left out: ensembles of adapters or of whole models (several runs with other seeds), and a normalisation
on demonstrations (their rewards' mean at 0), because comparisons come without them.

    python -m workers.training reward --data pairs.jsonl --eval held_out.jsonl --model POLICY --out OUT
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workers.training import nets, optimisation, parallel, probe, reward_report
from workers.training.checkpoints import States, digest, fingerprint, finished, publish
from workers.training.comparisons import TokenComparison, encode, examples_of
from workers.training.errors import Interrupted
from workers.training.judgements import Judgements
from workers.training.layout import collate, micro_batches
from workers.training.nets import Scorer
from workers.training.optimisation import Optimiser
from workers.training.recipes import RewardRecipe
from workers.training.records import check_enough, read_comparisons
from workers.training.report import Reporter

_LOOKED_AT = 32  # completions whose rewards are computed a second time, each alone


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
    scorer = nets.new_reward_model(model, recipe.seed, recipe.precision, recipe.lora, recipe.ensemble)
    scorer.prepare(recipe, report)
    max_length = min(recipe.max_length, scorer.context_length)
    data_set = encode(scorer.codec, rows, max_length, report)
    held_out = encode(scorer.codec, held_out_rows, max_length, report)
    check_enough(len(data_set), recipe.min_pairs)
    counts = _bootstrap(len(data_set), recipe).to(scorer.device)
    where, dtype = ("cpu", torch.float64) if recipe.head_only else (scorer.device, torch.float32)
    judgements = Judgements(recipe, [comparison.judged for comparison in data_set], where, dtype)
    facts = {"stage": "reward", "run": run}

    if recipe.head_only:
        total = probe.fit(recipe, scorer, data_set, counts, judgements, report)
        return _finish(recipe, scorer, judgements, data_set, held_out, out, facts | {"step": total})

    groups = [(scorer.trainable(), recipe.learning_rate), (judgements.trainable(), recipe.annotator_learning_rate)]
    optimiser = Optimiser([group for group in groups if group[0]], recipe)
    total, first = optimisation.total_steps(len(data_set), recipe), 0
    if resume and (saved := states.latest(report.log)):
        first, tensors, _ = saved
        optimiser.restore(tensors)

    report.begin()
    for step in range(first, total):
        items = optimisation.step_items(len(data_set), recipe.batch_size, recipe.seed, step)
        weight = max(sum(data_set[i].judged.weight for i in items), 1e-9)
        mine = parallel.share(items)
        loss = torch.zeros((), device=scorer.device)
        gaps: list[Tensor] = []
        for group in parallel.level(micro_batches([data_set[i].tokens for i in mine], recipe.micro_batch_tokens)):
            part = [data_set[mine[i]] for i in group]
            labels = judgements.labels(part)
            heads = scorer.completion_head_scores(examples_of(part))
            times = counts[[mine[i] for i in group]]
            each = [times[:, m] @ judgements.losses(labels, heads[:, m], recipe.centering) for m in range(scorer.heads)]
            share = torch.stack(each).mean() / weight
            share.backward()
            loss += share.detach()
            scores = scorer.combine(heads.detach())
            gaps.append(scores[labels.pairs.better] - scores[labels.pairs.worse])
        if judgements.annotators and parallel.first():
            judgements.prior().backward()
        norm = optimiser.step(step, total)

        report.count(len(items), sum(data_set[i].tokens for i in items))
        gap = parallel.joined(torch.cat([loss.new_zeros(0), *gaps]))
        accuracy = ((gap > 0).float() + 0.5 * (gap == 0).float()).mean()
        metrics = {"loss": parallel.total(loss), "accuracy": accuracy, "margin": gap.mean(), "grad_norm": norm}
        report.step(step + 1, total, optimisation.to_floats(metrics))
        if report.stopping or (recipe.save_every and (step + 1) % recipe.save_every == 0):
            states.save(step + 1, optimiser.state(), {})
        if report.stopping:
            raise Interrupted(f"Stopped after step {step + 1} of {total}; --resume goes on from there.")

    report.steps = total
    summary = _finish(recipe, scorer, judgements, data_set, held_out, out, facts | {"step": total})
    states.clear()
    return summary


def _bootstrap(comparisons: int, recipe: RewardRecipe) -> Tensor:
    """How often each comparison counts for each head (N, M): once, or in an ensemble as often as it was drawn."""
    if recipe.ensemble == 1:
        return torch.ones(comparisons, 1)
    generator = torch.Generator().manual_seed(recipe.seed)
    drawn = torch.randint(comparisons, (recipe.ensemble, comparisons), generator=generator)
    return torch.stack([row.bincount(minlength=comparisons) for row in drawn], dim=1).float()


@dataclass(frozen=True)
class _Measured:
    """A model on some comparisons: its rewards (C,), the mean training loss, and what the report says."""

    rewards: Tensor
    loss: float
    section: dict[str, Any]


def _finish(
    recipe: RewardRecipe,
    scorer: Scorer,
    judgements: Judgements,
    data_set: Sequence[TokenComparison],
    held_out: Sequence[TokenComparison],
    out: Path,
    facts: dict[str, Any],
) -> dict[str, float]:
    """Normalise, measure, publish; returns the summary metrics."""
    heads = scorer.rate_heads(examples_of(data_set), recipe.micro_batch_tokens)
    train = _measure(recipe, scorer, judgements, data_set, scorer.settle(heads, recipe.conservative))
    summary = {"loss": train.loss, "train_accuracy": train.section["accuracy"] if train.section["decided"] else 0.0}
    summary |= {"reward_mean": scorer.mean, "reward_std": scorer.std}
    findings = judgements.findings()
    told: dict[str, Any] = {"stage": "reward", "metrics": summary, **findings, "train": train.section}
    if scorer.heads > 1:
        told["train"]["disagreement"] = scorer.usual_disagreement
    if held_out:
        tokens = recipe.micro_batch_tokens
        heads = scorer.rate_heads(examples_of(held_out), tokens)
        measured = _measure(recipe, scorer, judgements, held_out, scorer.combine(heads))
        section = measured.section
        section["pad_invariance"] = _alone_differs(scorer, held_out, measured.rewards)
        told |= {"eval": section, "alarms": reward_report.alarms(section)}
        summary |= {name: section[name] for name in ("accuracy", "accuracy_low", "accuracy_high")}
        summary |= {"eval_pairs": section["decided"], "eval_loss": measured.loss}
        summary |= {name: section[name] for name in ("log_loss", "ece")}
        told["metrics"] = summary
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
    publish(out / "checkpoint", scorer.save, {**facts, **findings, "metrics": summary})
    return summary


@torch.no_grad()
def _measure(
    recipe: RewardRecipe,
    scorer: Scorer,
    judgements: Judgements,
    data_set: Sequence[TokenComparison],
    rewards: Tensor,
) -> _Measured:
    """What the report says of `rewards` (C,), the raw ones of all completions of `data_set`."""
    each = judgements.losses(judgements.labels(data_set), rewards.to(judgements.device), recipe.centering)
    weight = max(sum(comparison.judged.weight for comparison in data_set), 1e-9)
    values = rewards.tolist()
    section = {
        "loss": float(each.sum()) / weight,
        **reward_report.quality(reward_report.judged_pairs(data_set, values)),
        **reward_report.rewards_summary(data_set, values),
        **reward_report.repeated_judgements(data_set),
    }
    return _Measured(rewards, section["loss"], section)


@torch.no_grad()
def _alone_differs(scorer: Scorer, comparisons: Sequence[TokenComparison], rewards: Tensor) -> float:
    """Largest difference between the rewards of the first completions and what each gets alone, without padding."""
    examples = examples_of(comparisons)[:_LOOKED_AT]
    alone = torch.stack([scorer.scores(collate([example], scorer.device))[0] for example in examples])
    return float((alone - rewards[: len(examples)]).abs().max())
