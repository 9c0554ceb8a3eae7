"""Direct preference optimisation and its relatives: the policy itself from preferences, without a reward model.

The policy that is best under a reward and a KL penalty β to the reference has r(x, y) = β log π(y|x)/π_ref(y|x) + c(x).
Put into Bradley-Terry, c(x) cancels (Rafailov et al. 2023, eq. 7):

    r = β (log π - log π_ref),   z = r(chosen) - r(rejected),   loss = -[y log σ(z) + (1-y) log σ(-z)]

with sums, not means, of token log-probabilities over the completion, end token included. y is the pair's confidence,
moved by the label smoothing ε (conservative DPO). `loss` chooses another function of z (`dpo_losses.py`): robust, IPO,
hinge; the same with means (`length_normalised`); SimPO and ORPO, which take means and no reference; or Plackett-Luce on
the r of a whole ranking. A soft label always means the expectation of the loss over the label,
y ℓ(chosen, rejected) + (1-y) ℓ(rejected, chosen), so that a pair may be turned round with its label. `sft_coef` adds
the mean negative log-likelihood of the chosen completion (RPO, Pang et al. 2024); ORPO has it with the weight 1.

The reference is the starting model, or `--reference-model`; its log-probabilities never change, so they are computed
once, before the first step, with the same forward pass as in training, and kept (`reference.py`).

Watch `logps/chosen`: DPO may raise the margin by pushing both completions down (likelihood displacement); the log says
so once when that is more than 5 nats.

Deliberately left out: margins of pairs, a moving reference, other divergences than the reverse KL, and the losses that
TRL has beyond these (EXO, NCA, SPPO, AOT, APO, DiscoPOP).

    python -m workers.training dpo --data pairs.jsonl --model POLICY --out OUT [--eval held_out.jsonl]
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from workers.training import dpo_losses, losses, nets, optimisation, parallel, reference
from workers.training.checkpoints import States, digest, fingerprint, finished, publish
from workers.training.comparisons import TokenComparison, encode, examples_of, pair_labels, rankings
from workers.training.errors import DataError, Interrupted
from workers.training.evaluation import log_prob_sums, wilson
from workers.training.layout import micro_batches
from workers.training.nets import Policy
from workers.training.optimisation import Optimiser
from workers.training.recipes import DPORecipe
from workers.training.records import Comparison, check_enough, read_comparisons
from workers.training.report import Reporter
from workers.training.tokens import Example

REFERENCE_FREE = ("simpo", "orpo")
_FALL = 5.0  # nats per completion, training.md's alarm for likelihood displacement
_WINDOW = 10  # steps over which a batch's noise is averaged


def train(
    recipe: DPORecipe,
    data: Path,
    out: Path,
    report: Reporter,
    *,
    model: str,
    reference_model: str | None = None,
    eval: Path | None = None,
    resume: bool = False,
) -> dict[str, float]:
    """Train `model` on preference pairs or rankings into `out/checkpoint`; returns the summary metrics."""
    inputs = [fingerprint(path) for path in (data, model, eval, reference_model)]
    run = digest(["dpo", recipe.model_dump(), *inputs])
    states = States(out, run)
    if resume and (done := finished(out / "checkpoint", run)):
        report.steps = done["step"]
        return dict(done["metrics"])
    if not resume:
        states.clear()

    rows = list(read_comparisons(data))  # before the model is loaded, so that bad data fails at once
    held_out_rows = list(read_comparisons(eval)) if eval else []
    check_enough(len(rows), recipe.min_pairs)
    _check_labels(recipe, [*rows, *held_out_rows])
    policy = nets.load_policy(model, recipe.precision, recipe.lora, recipe.seed)
    policy.prepare(recipe, report)
    max_length = min(recipe.max_length, policy.context_length)
    data_set = encode(policy.codec, rows, max_length, report)
    held_out = encode(policy.codec, held_out_rows, max_length, report)
    check_enough(len(data_set), recipe.min_pairs)
    both = [*data_set, *held_out]
    report.begin()  # the reference pass is work, too
    if recipe.loss in REFERENCE_FREE:
        referred = [torch.zeros(len(comparison.examples)) for comparison in both]
    else:
        source = inputs[3] or inputs[1]
        values = reference.log_probs(
            policy, source, examples_of(both), recipe.micro_batch_tokens, out, report, instead=reference_model
        )
        referred = list(values.split([len(comparison.examples) for comparison in both]))

    optimiser = Optimiser([(policy.trainable(), recipe.learning_rate)], recipe)
    total, first = optimisation.total_steps(len(data_set), recipe), 0
    metrics: dict[str, float] = {}
    if resume and (saved := states.latest(report.log)):
        first, tensors, metrics = saved
        optimiser.restore(tensors)

    alarm = _Displacement(report, from_reference=recipe.loss not in REFERENCE_FREE)
    for step in range(first, total):
        items = optimisation.step_items(len(data_set), recipe.batch_size, recipe.seed, step)
        weight = max(sum(data_set[i].judged.weight for i in items), 1e-9)
        loss = torch.zeros((), device=policy.device)
        seen: list[Tensor] = []
        mine = parallel.share(items)
        for group in parallel.level(micro_batches([data_set[i].tokens for i in mine], recipe.micro_batch_tokens)):
            part = [mine[g] for g in group]
            batch = [data_set[i] for i in part]
            log_probs = policy.completion_log_probs(examples_of(batch))
            held = torch.cat([torch.zeros(0), *(referred[i] for i in part)])
            judged = judge(recipe, batch, log_probs, held.to(policy.device))
            share = judged.losses.sum() / weight
            share.backward()
            loss += share.detach()
            seen.append(judged.pairs)
        norm = optimiser.step(step, total)

        report.count(len(items), sum(data_set[i].tokens for i in items))
        pairs = parallel.joined(torch.cat([loss.new_zeros(6, 0), *seen], dim=1))
        figures = {"loss": parallel.total(loss), **_statistics(recipe, pairs), "grad_norm": norm}
        metrics = optimisation.to_floats(figures | {"level": (pairs[2] - pairs[4]).mean()})
        alarm.see(metrics.pop("level"), metrics["rewards/margins"])
        report.step(step + 1, total, metrics)
        if report.stopping or (recipe.save_every and (step + 1) % recipe.save_every == 0):
            states.save(step + 1, optimiser.state(), metrics)
        if report.stopping:
            raise Interrupted(f"Stopped after step {step + 1} of {total}; --resume goes on from there.")

    summary = dict(metrics)
    if held_out:
        summary |= _held_out(policy, recipe, held_out, torch.cat(referred[len(data_set) :]))
    publish(out / "checkpoint", policy.save, {"stage": "dpo", "step": total, "run": run, "metrics": summary})
    states.clear()
    report.steps = total
    return summary


@dataclass(frozen=True)
class Judged:
    """What the loss says of some comparisons.

    `losses`: weighted, any number of terms, to be summed and divided by the weight of the step. `pairs`: (6, P)
    without gradient, for the log: of each pair the implied rewards of better and worse, their log π (sums), the better
    one's log π_ref, and its mean negative log-likelihood. `confidence`: (P,).
    """

    losses: Tensor
    pairs: Tensor
    confidence: Tensor


def judge(recipe: DPORecipe, batch: Sequence[TokenComparison], log_probs: Tensor, referred: Tensor) -> Judged:
    """The recipe's loss of `batch` from log π and log π_ref (sums; zeros where there is none) of its completions (C,).

    A term for each pair, or for each ranking with Plackett-Luce, and one for each pair's imitation.
    """
    device = log_probs.device
    labels = pair_labels(batch, device)
    sizes = torch.tensor([_trained_tokens(example) for example in examples_of(batch)], device=device)
    means = log_probs / sizes
    by_token = recipe.length_normalised or recipe.loss in REFERENCE_FREE
    rewards = recipe.beta * (log_probs - referred) / (sizes if by_token else 1)

    def preference(better: Tensor, worse: Tensor) -> Tensor:
        gap = rewards[better] - rewards[worse]
        match recipe.loss:
            case "robust":
                return dpo_losses.robust(gap, recipe.label_smoothing)
            case "ipo":
                return dpo_losses.ipo(gap, recipe.beta)
            case "hinge":
                return dpo_losses.hinge(gap)
            case "simpo":
                return dpo_losses.simpo(gap, recipe.simpo_gamma)
            case "orpo":
                return recipe.beta * dpo_losses.odds_ratio(means[better], means[worse])
        return dpo_losses.sigmoid(gap)

    better, worse, sure = labels.better, labels.worse, labels.confidence
    if recipe.loss == "plackett_luce":
        ranked = rankings(batch, device)
        scores, places = rewards[ranked.index], ranked.places
        turned = torch.where(places < 0, places, places.amax(1, keepdim=True) - places)
        right = losses.plackett_luce(scores, places, ranked.ties)
        wrong = losses.plackett_luce(scores, turned, ranked.ties)
        terms = ranked.weight * (ranked.confidence * right + (1 - ranked.confidence) * wrong)
    else:
        smoothing = 0.0 if recipe.loss == "robust" else recipe.label_smoothing
        target = sure * (1 - 2 * smoothing) + smoothing
        terms = labels.weight * (target * preference(better, worse) + (1 - target) * preference(worse, better))
    if imitation := recipe.sft_coef + (recipe.loss == "orpo"):
        terms = torch.cat([terms, -imitation * labels.weight * (sure * means[better] + (1 - sure) * means[worse])])
    seen = [rewards[better], rewards[worse], log_probs[better], log_probs[worse], referred[better], -means[better]]
    return Judged(terms, torch.stack(seen).detach(), sure)


def _trained_tokens(example: Example) -> int:
    return max(1, sum(example.trained) if example.trained else len(example.completion))


def _check_labels(recipe: DPORecipe, rows: Sequence[Comparison]) -> None:
    """Plackett-Luce gives a ranking one probability: how sure each of its pairs is has no place in it."""
    if recipe.loss != "plackett_luce":
        return
    for row in rows:
        if row.confidence != 1 and sum(len(group) for group in row.ranking) > 2:
            raise DataError(
                f"loss=plackett_luce cannot weigh a ranking of more than two by its confidence ({row.confidence:g}): "
                "use loss=sigmoid, which takes it for each pair, or leave confidence out and set weight."
            )


def _statistics(recipe: DPORecipe, pairs: Tensor) -> dict[str, Tensor]:
    """TRL's names for what the (6, P) figures of a step's pairs show."""
    up, down, chosen, rejected, _, nll = pairs
    found = {
        "rewards/accuracies": ((up > down).float() + 0.5 * (up == down).float()).mean(),
        "rewards/margins": (up - down).mean(),
        "rewards/chosen": up.mean(),
        "rewards/rejected": down.mean(),
        "logps/chosen": chosen.mean(),
        "logps/rejected": rejected.mean(),
    }
    return found | ({"nll_loss": nll.mean()} if recipe.sft_coef or recipe.loss == "orpo" else {})


@dataclass
class _Displacement:
    """Says once when the chosen completions have become far less likely while the margin grew.

    Measured against the reference, or, where there is none, against the first steps.
    """

    report: Reporter
    from_reference: bool
    first: list[tuple[float, float]] = field(default_factory=list)
    last: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    said: bool = False

    def see(self, level: float, margin: float) -> None:
        """`level`: mean log π of the step's chosen completions, less their log π_ref; `margin`: its mean margin."""
        if not self.from_reference and len(self.first) < _WINDOW:
            self.first.append((level, margin))
            return
        self.last.append((level, margin))
        if self.said or len(self.last) < _WINDOW:
            return
        level_before, margin_before = _means(self.first)
        level_now, margin_now = _means(list(self.last))
        if level_before - level_now > _FALL and margin_now > margin_before:
            self.said = True
            self.report.log(
                f"Likelihood displacement: the chosen completions have lost {level_before - level_now:.1f} nats while "
                "the margin rose. What gains is neither of the pair: raise beta, lower the learning rate, or set "
                "sft_coef."
            )


def _means(seen: Sequence[tuple[float, float]]) -> tuple[float, float]:
    count = max(1, len(seen))
    return sum(level for level, _ in seen) / count, sum(margin for _, margin in seen) / count


@torch.no_grad()
def _held_out(
    policy: Policy, recipe: DPORecipe, data_set: Sequence[TokenComparison], referred: Tensor
) -> dict[str, float]:
    """Loss and implied-reward accuracy, with its 95 % interval, on comparisons that were not trained on."""
    log_probs = torch.tensor(log_prob_sums(policy, examples_of(data_set), recipe.micro_batch_tokens))
    judged = judge(recipe, data_set, log_probs, referred)
    gaps = judged.pairs[0] - judged.pairs[1]
    decided = judged.confidence != 0.5
    right = torch.where(judged.confidence > 0.5, gaps, -gaps)[decided]
    won = float((right > 0).sum() + 0.5 * (right == 0).sum())
    low, high = wilson(won, len(right))
    return {
        "eval_loss": float(judged.losses.sum()) / max(sum(comparison.judged.weight for comparison in data_set), 1e-9),
        "eval_accuracy": won / len(right) if len(right) else 0.5,
        "eval_accuracy_low": low,
        "eval_accuracy_high": high,
        "eval_margin": float(gaps.mean()),
        "eval_pairs": len(right),
    }
