"""KTO: the policy from completions that somebody called good or bad, one by one, without pairs.

    l = log π(y|x) - log π_ref(y|x),   loss = λ_D [1 - σ(β(l - KL))] if desirable, λ_U [1 - σ(β(KL - l))] if not

with log-probabilities summed over the completion, end token included, and the mean over the whole optimiser step
(Ethayarajh et al. 2024,). KL is the reference point: what the policy gains on answers
that have nothing to do with the prompt,

    KL = max(0, mean over i of [log π(y_{i-1}|x_i) - log π_ref(y_{i-1}|x_i)])

over the examples of the whole step, each prompt with the completion of the one before it, without gradient. The step
needs two examples for that; where an epoch leaves one over, it borrows the completion of the next example of the data.

The reference is the starting model, or `--reference-model`. Which completion meets which prompt is known beforehand
(`optimisation.step_items`), so all of its log-probabilities are computed before the first step and kept
(`reference.py`), and no second model stays in memory.

Deliberately left out: weights and soft labels of single examples, drawing the mismatched completions so that equal
prompts never meet, APO.

    python -m workers.training kto --data labelled.jsonl --model POLICY --out OUT [--eval held_out.jsonl]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from workers.training import dpo_losses, nets, optimisation, parallel, reference
from workers.training.checkpoints import States, digest, fingerprint, finished, publish
from workers.training.errors import Interrupted, TooFewError
from workers.training.evaluation import wilson
from workers.training.nets import Policy
from workers.training.optimisation import Optimiser
from workers.training.recipes import KTORecipe
from workers.training.records import Labelled, read_labelled
from workers.training.report import Reporter
from workers.training.tokens import Codec, Example, truncate


def train(
    recipe: KTORecipe,
    data: Path,
    out: Path,
    report: Reporter,
    *,
    model: str,
    reference_model: str | None = None,
    eval: Path | None = None,
    resume: bool = False,
) -> dict[str, float]:
    """Train `model` on labelled completions into `out/checkpoint`; returns the summary metrics."""
    inputs = [fingerprint(path) for path in (data, model, eval, reference_model)]
    run = digest(["kto", recipe.model_dump(), *inputs])
    states = States(out, run)
    if resume and (done := finished(out / "checkpoint", run)):
        report.steps = done["step"]
        return dict(done["metrics"])
    if not resume:
        states.clear()

    rows = list(read_labelled(data))  # before the model is loaded, so that bad data fails at once
    held_out_rows = list(read_labelled(eval)) if eval else []
    _check_enough(len(rows), recipe.min_examples)
    policy = nets.load_policy(model, recipe.precision, recipe.lora, recipe.seed)
    policy.prepare(recipe, report)
    max_length = min(recipe.max_length, policy.context_length)
    data_set = _encode(policy.codec, rows, max_length, report)
    held_out = _encode(policy.codec, held_out_rows, max_length, report)
    _check_enough(len(data_set), recipe.min_examples)
    _check_balance(recipe, data_set, report)

    total, first = optimisation.total_steps(len(data_set), recipe), 0
    steps = [optimisation.step_items(len(data_set), recipe.batch_size, recipe.seed, step) for step in range(total)]
    crossed = [mismatched(data_set, items, max_length) for items in steps]
    held_out_crossed = mismatched(held_out, range(len(held_out)), max_length)
    parts = [_examples(data_set), *crossed, _examples(held_out), held_out_crossed]
    referred = reference.log_probs(
        policy,
        inputs[3] or inputs[1],
        [example for part in parts for example in part],
        recipe.micro_batch_tokens,
        out,
        report,
        instead=reference_model,
    )
    matched, *referred_crossed, held_out_matched, held_out_referred = (
        part.to(policy.device) for part in referred.split([len(part) for part in parts])
    )

    optimiser = Optimiser([(policy.trainable(), recipe.learning_rate)], recipe)
    metrics: dict[str, float] = {}
    if resume and (saved := states.latest(report.log)):
        first, tensors, metrics = saved
        optimiser.restore(tensors)

    report.begin()
    for step in range(first, total):
        batch, tokens = [data_set[i] for i in steps[step]], recipe.micro_batch_tokens
        kl = _kl(policy, crossed[step], referred_crossed[step], tokens)
        loss = torch.zeros((), device=policy.device)
        log_probs, ratios = torch.zeros(2, len(batch), device=policy.device)
        desirable = torch.tensor([item.desirable for item in batch], device=policy.device)
        mine = parallel.share(range(len(batch)))
        for part_of, part in policy.passes([batch[place].example for place in mine], tokens):
            places = [mine[index] for index in part_of]
            here = policy.log_probs(part).sum(1)
            ratio = here - matched[[steps[step][place] for place in places]]
            share = _losses(recipe, ratio, desirable[places], kl).sum() / len(batch)
            share.backward()
            loss += share.detach()
            log_probs[places], ratios[places] = here.detach(), ratio.detach()
        norm = optimiser.step(step, total)

        report.count(len(batch), sum(len(item.example) for item in batch))
        loss, log_probs, ratios = (parallel.total(value) for value in (loss, log_probs, ratios))
        figures = _statistics(recipe.beta * ratios, log_probs, [item.desirable for item in batch])
        metrics = optimisation.to_floats({"loss": loss, "kl": kl, **figures, "grad_norm": norm})
        report.step(step + 1, total, metrics)
        if report.stopping or (recipe.save_every and (step + 1) % recipe.save_every == 0):
            states.save(step + 1, optimiser.state(), metrics)
        if report.stopping:
            raise Interrupted(f"Stopped after step {step + 1} of {total}; --resume goes on from there.")

    summary = dict(metrics)
    if held_out:
        held_out_kl = _kl(policy, held_out_crossed, held_out_referred, recipe.micro_batch_tokens)
        summary |= _held_out(policy, recipe, held_out, held_out_matched, held_out_kl)
    publish(out / "checkpoint", policy.save, {"stage": "kto", "step": total, "run": run, "metrics": summary})
    states.clear()
    report.steps = total
    return summary


@dataclass(frozen=True)
class Item:
    """A completion as tokens, and whether it is a good one."""

    example: Example
    desirable: bool


def mismatched(data_set: Sequence[Item], items: Sequence[int], max_length: int) -> list[Example]:
    """The prompt of each item with the completion of the one before it (the first with the last one's)."""
    if not items:
        return []
    last = items[-1] if len(items) > 1 else (items[0] + 1) % len(data_set)
    crossed = []
    for item, other in zip(items, [last, *items[:-1]], strict=True):
        prompt, answer = data_set[item].example.prompt, data_set[other].example
        crossed += truncate([Example(prompt, answer.completion, answer.trained)], max_length) or []
    return crossed


@torch.no_grad()
def _kl(policy: Policy, crossed: Sequence[Example], referred: Tensor, tokens: int) -> Tensor:
    """max(0, mean of log π - log π_ref) over mismatched examples: a scalar on the device."""
    total = torch.zeros((), device=policy.device)
    mine = parallel.share(range(len(crossed)))
    for places, part in policy.passes([crossed[index] for index in mine], tokens):
        total += (policy.log_probs(part).sum(1) - referred[[mine[place] for place in places]]).sum()
    return (parallel.total(total) / len(crossed)).clamp(min=0)


def _losses(recipe: KTORecipe, log_ratios: Tensor, desirable: Tensor, kl: Tensor) -> Tensor:
    """λ-weighted loss of each example (B,)."""
    weight = torch.where(desirable, recipe.desirable_weight, recipe.undesirable_weight)
    return weight * dpo_losses.kto(log_ratios, desirable, kl, recipe.beta)


def _statistics(rewards: Tensor, log_probs: Tensor, desirable: Sequence[bool]) -> dict[str, Tensor]:
    """TRL's names for the implied rewards and log π (B,) of the good ("chosen") and the bad; none without examples."""
    found: dict[str, Tensor] = {}
    for name, wanted in (("chosen", True), ("rejected", False)):
        if places := [place for place, label in enumerate(desirable) if label == wanted]:
            found |= {f"rewards/{name}": rewards[places].mean(), f"logps/{name}": log_probs[places].mean()}
    if len(found) == 4:
        found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
    return found


@torch.no_grad()
def _held_out(
    policy: Policy, recipe: KTORecipe, data_set: Sequence[Item], referred: Tensor, kl: Tensor
) -> dict[str, float]:
    """Loss, and how often a completion stands on its side of the reference point, on examples not trained on."""
    ratios = torch.zeros(len(data_set), device=policy.device)
    for places, part in policy.passes(_examples(data_set), recipe.micro_batch_tokens):
        ratios[places] = policy.log_probs(part).sum(1) - referred[places]
    desirable = torch.tensor([item.desirable for item in data_set], device=policy.device)
    gap = torch.where(desirable, ratios - kl, kl - ratios)
    right = float((gap > 0).sum() + 0.5 * (gap == 0).sum())
    low, high = wilson(right, len(data_set))
    return {
        "eval_loss": float(_losses(recipe, ratios, desirable, kl).mean()),
        "eval_kl": float(kl),
        "eval_accuracy": right / len(data_set),
        "eval_accuracy_low": low,
        "eval_accuracy_high": high,
        "eval_examples": len(data_set),
    }


def _examples(items: Sequence[Item]) -> list[Example]:
    return [item.example for item in items]


def _encode(codec: Codec, rows: Sequence[Labelled], max_length: int, report: Reporter) -> list[Item]:
    kept: list[Item] = []
    for row in rows:
        if cut := truncate(codec.encode(row.prompt, row.completion), max_length):
            kept.append(Item(cut[0], row.label))
    if len(kept) < len(rows):
        report.log(f"{len(rows) - len(kept)} of {len(rows)} examples left out: their prompt fills {max_length} tokens.")
    return kept


def _check_enough(examples: int, minimum: int) -> None:
    if examples < minimum:
        raise TooFewError(f"{examples} labelled completions are too few to train on: at least {minimum} are needed.")


def _check_balance(recipe: KTORecipe, data_set: Sequence[Item], report: Reporter) -> None:
    """The paper wants λ_D n_D / (λ_U n_U) between 1 and 4/3; say what would make it so."""
    good = sum(item.desirable for item in data_set)
    bad = len(data_set) - good
    up, down = recipe.desirable_weight * good, recipe.undesirable_weight * bad
    if up and down and not 0.99 <= up / down <= 1.34:
        report.log(
            f"{good} completions are desirable and {bad} are not: with the weights {recipe.desirable_weight:g} and "
            f"{recipe.undesirable_weight:g} the good ones weigh {up / down:.2g} times as much as the bad ones, where 1 "
            f"to 1.33 is advised. Set desirable_weight={recipe.desirable_weight * down / up:.3g}, or "
            f"undesirable_weight={recipe.undesirable_weight * up / down:.3g}."
        )
