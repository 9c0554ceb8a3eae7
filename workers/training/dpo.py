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
from workers.training.errors import Interrupted
from workers.training.evaluation import wilson, wins
from workers.training.nets import Policy
from workers.training.optimisation import Optimiser
from workers.training.recipes import DPORecipe
from workers.training.records import Pair, check_enough, read_pairs
from workers.training.report import Reporter
from workers.training.tokens import Codec, TokenPair, encode_pairs, micro_batches


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

    rows = list(read_pairs(data))  # before the model is loaded, so that bad data fails at once
    held_out_rows = list(read_pairs(eval)) if eval else []
    check_enough(len(rows), recipe.min_pairs)
    policy = nets.load_policy(model, recipe.precision, recipe.lora, recipe.seed)
    max_length = min(recipe.max_length, policy.context_length)
    pairs = _encode(policy.codec, rows, max_length, report)
    held_out = _encode(policy.codec, held_out_rows, max_length, report)
    check_enough(len(pairs), recipe.min_pairs)
    reference = _all_log_probs(policy, recipe, pairs)
    held_out_reference = _all_log_probs(policy, recipe, held_out)

    optimiser = Optimiser([(policy.trainable(), recipe.learning_rate)], recipe)
    total, first = optimisation.total_steps(len(pairs), recipe), 0
    metrics: dict[str, float] = {}
    if resume and (saved := states.latest(report.log)):
        first, tensors, metrics = saved
        optimiser.restore(tensors)

    report.begin()
    for step in range(first, total):
        items = optimisation.step_items(len(pairs), recipe.batch_size, recipe.seed, step)
        weight = max(sum(pairs[i].weight for i in items), 1e-9)
        loss = torch.zeros((), device=policy.device)
        seen: list[Tensor] = []
        for group in micro_batches([2 * len(pairs[i]) for i in items], recipe.micro_batch_tokens):
            part = [items[g] for g in group]
            batch = [pairs[i] for i in part]
            chosen, rejected = _log_probs(policy, batch)
            each, up, down = _losses(recipe, batch, chosen, rejected, reference[part].to(policy.device))
            share = each.sum() / weight
            share.backward()
            loss += share.detach()
            seen.append(torch.stack([up, down, chosen.detach(), rejected.detach()]))
        norm = optimiser.step(step, total)

        report.count(len(items), sum(pairs[i].tokens for i in items))
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


def _encode(codec: Codec, rows: Sequence[Pair], max_length: int, report: Reporter) -> list[TokenPair]:
    pairs, dropped = encode_pairs(codec, rows, max_length)
    if dropped:
        report.log(f"{dropped} of {len(rows)} pairs left out: their prompt alone fills {max_length} tokens.")
    return pairs


def _log_probs(policy: Policy, pairs: Sequence[TokenPair]) -> tuple[Tensor, Tensor]:
    """Summed log π of chosen and rejected completions, each (B,), with gradients."""
    examples = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    chosen, rejected = policy.completion_log_probs(examples).chunk(2)
    return chosen, rejected


@torch.no_grad()
def _all_log_probs(policy: Policy, recipe: DPORecipe, pairs: Sequence[TokenPair]) -> Tensor:
    """(N, 2) log-probabilities of chosen and rejected under the policy as it is now, on the host."""
    result = torch.zeros(len(pairs), 2)
    for group in micro_batches([2 * len(pair) for pair in pairs], recipe.micro_batch_tokens):
        result[group] = torch.stack(_log_probs(policy, [pairs[i] for i in group]), dim=1).cpu()
    return result


def _losses(
    recipe: DPORecipe, pairs: Sequence[TokenPair], chosen: Tensor, rejected: Tensor, reference: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted loss and implied rewards of each pair, all (B,); `reference` is (B, 2)."""
    columns = torch.tensor([(pair.confidence, pair.weight) for pair in pairs], device=chosen.device)
    each, up, down = losses.dpo(
        chosen, rejected, reference[:, 0], reference[:, 1], recipe.beta, columns[:, 0], recipe.label_smoothing
    )
    return columns[:, 1] * each, up, down


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


def _held_out(policy: Policy, recipe: DPORecipe, pairs: Sequence[TokenPair], reference: Tensor) -> dict[str, float]:
    """Loss and implied-reward accuracy, with its 95 % interval, on pairs that were not trained on."""
    chosen, rejected = _all_log_probs(policy, recipe, pairs).unbind(1)
    each, up, down = _losses(recipe, pairs, chosen, rejected, reference)
    won = wins(up.tolist(), down.tolist())
    low, high = wilson(won, len(pairs))
    return {
        "eval_loss": float(each.sum()) / max(sum(pair.weight for pair in pairs), 1e-9),
        "eval_accuracy": won / len(pairs),
        "eval_accuracy_low": low,
        "eval_accuracy_high": high,
        "eval_margin": float((up - down).mean()),
        "eval_pairs": len(pairs),
    }
