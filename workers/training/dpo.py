"""Direct preference optimisation: the policy itself from preferences, without a reward model.

The policy that is best under a reward and a KL penalty β to the reference has r(x, y) = β log π(y|x)/π_ref(y|x) + c(x).
Put into Bradley-Terry, c(x) cancels (Rafailov et al. 2023, eq. 7):

    z = β [(log π - log π_ref)(chosen) - (log π - log π_ref)(rejected)],   loss = -[y log σ(z) + (1-y) log σ(-z)]

with sums, not means, of token log-probabilities over the completion, end token included. y is the pair's confidence,
moved by the label smoothing ε (conservative DPO). The reference is the starting model; its log-probabilities never
change, so they are computed once, before the first step, with the same forward pass as in training.

Watch `logps/chosen`: DPO may raise the margin by pushing both completions down (likelihood displacement).

Deliberately left out: other members of the family (IPO, SimPO, KTO, …), a moving reference.

    python -m workers.training dpo --data pairs.jsonl --model POLICY --out OUT [--eval held_out.jsonl]
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from workers.training import losses, nets, optimisation
from workers.training.checkpoints import States, digest, fingerprint, finished, publish
from workers.training.comparisons import PairLabels, TokenComparison, encode, examples_of, pair_labels
from workers.training.errors import Interrupted
from workers.training.evaluation import log_prob_sums, wilson
from workers.training.layout import micro_batches
from workers.training.nets import Policy
from workers.training.optimisation import Optimiser
from workers.training.recipes import DPORecipe
from workers.training.records import check_enough, read_comparisons
from workers.training.report import Reporter


def train(
    recipe: DPORecipe,
    data: Path,
    out: Path,
    report: Reporter,
    *,
    model: str,
    eval: Path | None = None,
    resume: bool = False,
) -> dict[str, float]:
    """Train `model` on preference pairs into `out/checkpoint`; returns the summary metrics."""
    run = digest(["dpo", recipe.model_dump(), fingerprint(data), fingerprint(model), fingerprint(eval)])
    states = States(out, run)
    if resume and (done := finished(out / "checkpoint", run)):
        report.steps = done["step"]
        return dict(done["metrics"])
    if not resume:
        states.clear()

    rows = list(read_comparisons(data))  # before the model is loaded, so that bad data fails at once
    held_out_rows = list(read_comparisons(eval)) if eval else []
    check_enough(len(rows), recipe.min_pairs)
    policy = nets.load_policy(model, recipe.precision, recipe.lora, recipe.seed)
    max_length = min(recipe.max_length, policy.context_length)
    data_set = encode(policy.codec, rows, max_length, report)
    held_out = encode(policy.codec, held_out_rows, max_length, report)
    check_enough(len(data_set), recipe.min_pairs)
    reference = _log_probs(policy, recipe, data_set)
    held_out_reference = _log_probs(policy, recipe, held_out)

    optimiser = Optimiser([(policy.trainable(), recipe.learning_rate)], recipe)
    total, first = optimisation.total_steps(len(data_set), recipe), 0
    metrics: dict[str, float] = {}
    if resume and (saved := states.latest(report.log)):
        first, tensors, metrics = saved
        optimiser.restore(tensors)

    report.begin()
    for step in range(first, total):
        items = optimisation.step_items(len(data_set), recipe.batch_size, recipe.seed, step)
        weight = max(sum(data_set[i].judged.weight for i in items), 1e-9)
        loss = torch.zeros((), device=policy.device)
        seen: list[Tensor] = []
        for group in micro_batches([data_set[i].tokens for i in items], recipe.micro_batch_tokens):
            part = [items[g] for g in group]
            batch = [data_set[i] for i in part]
            labels = pair_labels(batch, policy.device)
            log_probs = policy.completion_log_probs(examples_of(batch))
            referred = torch.cat([reference[i] for i in part]).to(policy.device)
            each, up, down = _losses(recipe, labels, log_probs, referred)
            share = each.sum() / weight
            share.backward()
            loss += share.detach()
            pairs = log_probs.detach()
            seen.append(torch.stack([up, down, pairs[labels.better], pairs[labels.worse]]))
        norm = optimiser.step(step, total)

        report.count(len(items), sum(data_set[i].tokens for i in items))
        metrics = optimisation.to_floats({"loss": loss, **_statistics(torch.cat(seen, dim=1)), "grad_norm": norm})
        report.step(step + 1, total, metrics)
        if report.stopping or (recipe.save_every and (step + 1) % recipe.save_every == 0):
            states.save(step + 1, optimiser.state(), metrics)
        if report.stopping:
            raise Interrupted(f"Stopped after step {step + 1} of {total}; --resume goes on from there.")

    summary = dict(metrics)
    if held_out:
        summary |= _held_out(policy, recipe, held_out, held_out_reference)
    publish(out / "checkpoint", policy.save, {"stage": "dpo", "step": total, "run": run, "metrics": summary})
    states.clear()
    report.steps = total
    return summary


@torch.no_grad()
def _log_probs(policy: Policy, recipe: DPORecipe, data_set: Sequence[TokenComparison]) -> list[Tensor]:
    """log π of the completions of each comparison, (K,) each, under the policy as it is now, on the host."""
    sums = torch.tensor(log_prob_sums(policy, examples_of(data_set), recipe.micro_batch_tokens))
    return list(sums.split([len(comparison.examples) for comparison in data_set]))


def _losses(
    recipe: DPORecipe, labels: PairLabels, log_probs: Tensor, reference: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted loss and implied rewards of each pair, all (P,), from log π of all completions (C,)."""
    (chosen, rejected), (old_chosen, old_rejected) = (
        (values[labels.better], values[labels.worse]) for values in (log_probs, reference)
    )
    each, up, down = losses.dpo(
        chosen, rejected, old_chosen, old_rejected, recipe.beta, labels.confidence, recipe.label_smoothing
    )
    return labels.weight * each, up, down


def _statistics(seen: Tensor) -> dict[str, Tensor]:
    """TRL's names for what the (4, B) stacked rewards and log-probabilities show."""
    up, down, chosen, rejected = seen
    return {
        "rewards/accuracies": ((up > down).float() + 0.5 * (up == down).float()).mean(),
        "rewards/margins": (up - down).mean(),
        "rewards/chosen": up.mean(),
        "rewards/rejected": down.mean(),
        "logps/chosen": chosen.mean(),
        "logps/rejected": rejected.mean(),
    }


@torch.no_grad()
def _held_out(
    policy: Policy, recipe: DPORecipe, data_set: Sequence[TokenComparison], reference: Sequence[Tensor]
) -> dict[str, float]:
    """Loss and implied-reward accuracy, with its 95 % interval, on comparisons that were not trained on."""
    labels = pair_labels(data_set)
    each, up, down = _losses(
        recipe, labels, torch.cat(_log_probs(policy, recipe, data_set)), torch.cat(list(reference))
    )
    sure = labels.confidence != 0.5
    gap = torch.where(labels.confidence > 0.5, up - down, down - up)[sure]
    won = float((gap > 0).sum() + 0.5 * (gap == 0).sum())
    low, high = wilson(won, len(gap))
    return {
        "eval_loss": float(each.sum()) / max(sum(comparison.judged.weight for comparison in data_set), 1e-9),
        "eval_accuracy": won / len(gap) if len(gap) else 0.5,
        "eval_accuracy_low": low,
        "eval_accuracy_high": high,
        "eval_margin": float((up - down).mean()),
        "eval_pairs": len(gap),
    }
