"""Supervised fine-tuning: imitate demonstrations.

    loss = - Σ_t log π(y_t | x, y_<t) / N

over the completion tokens only, end token included; N counts the completion tokens of the whole optimiser step, so
that long and short examples weigh by their tokens however the step is cut into micro-batches.

Deliberately left out: packing, training on several turns of one conversation, NEFTune and other regularisers.

    python -m workers.training sft --data demonstrations.jsonl --model DIR --out OUT [--eval held_out.jsonl]
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from workers.training import nets, optimisation, parallel
from workers.training.checkpoints import States, digest, fingerprint, finished, publish
from workers.training.errors import Interrupted, TooFewError
from workers.training.evaluation import log_prob_sums
from workers.training.optimisation import Optimiser
from workers.training.recipes import SFTRecipe
from workers.training.records import Demonstration, read_demonstrations
from workers.training.report import Reporter
from workers.training.tokens import Codec, Example, truncate


def train(
    recipe: SFTRecipe,
    data: Path,
    out: Path,
    report: Reporter,
    *,
    model: str,
    eval: Path | None = None,
    resume: bool = False,
) -> dict[str, float]:
    """Fine-tune `model` on demonstrations into `out/checkpoint`; returns the summary metrics."""
    run = digest(["sft", recipe.model_dump(), fingerprint(data), fingerprint(model), fingerprint(eval)])
    states = States(out, run)
    if resume and (done := finished(out / "checkpoint", run)):
        report.steps = done["step"]
        return dict(done["metrics"])
    if not resume:
        states.clear()

    rows = list(read_demonstrations(data))  # before the model is loaded, so that bad data fails at once
    held_out_rows = list(read_demonstrations(eval)) if eval else []
    policy = nets.load_policy(model, recipe.precision, recipe.lora, recipe.seed)
    max_length = min(recipe.max_length, policy.context_length)
    examples = _encode(policy.codec, rows, max_length, report)
    held_out = _encode(policy.codec, held_out_rows, max_length, report)
    if not examples:
        raise TooFewError("There is no demonstration to train on: give at least one that fits into max_length.")

    optimiser = Optimiser([(policy.trainable(), recipe.learning_rate)], recipe)
    total, first = optimisation.total_steps(len(examples), recipe), 0
    metrics: dict[str, float] = {}
    if resume and (saved := states.latest(report.log)):
        first, tensors, metrics = saved
        optimiser.restore(tensors)

    report.begin()
    for step in range(first, total):
        batch = [examples[i] for i in optimisation.step_items(len(examples), recipe.batch_size, recipe.seed, step)]
        tokens = sum(len(e.completion) for e in batch)
        loss = torch.zeros((), device=policy.device)
        for _, part in policy.passes(parallel.share(batch), recipe.micro_batch_tokens):
            share = -policy.log_probs(part).sum() / tokens
            share.backward()
            loss += share.detach()
        norm = optimiser.step(step, total)

        report.count(len(batch), sum(len(e) for e in batch))
        metrics = optimisation.to_floats({"loss": parallel.total(loss), "grad_norm": norm})
        report.step(step + 1, total, metrics)
        if report.stopping or (recipe.save_every and (step + 1) % recipe.save_every == 0):
            states.save(step + 1, optimiser.state(), metrics)
        if report.stopping:
            raise Interrupted(f"Stopped after step {step + 1} of {total}; --resume goes on from there.")

    summary: dict[str, Any] = {"loss": metrics["loss"]}
    if held_out:
        summary["eval_loss"] = -sum(log_prob_sums(policy, held_out, recipe.micro_batch_tokens)) / sum(
            len(e.completion) for e in held_out
        )
        summary["eval_perplexity"] = math.exp(min(summary["eval_loss"], 700.0))
    facts = {"stage": "sft", "step": total, "run": run, "metrics": summary}
    publish(out / "checkpoint", policy.save, facts)
    states.clear()
    report.steps = total
    return summary


def _encode(codec: Codec, rows: Sequence[Demonstration], max_length: int, report: Reporter) -> list[Example]:
    cut = [truncate(codec.encode(row.prompt, row.completion), max_length) for row in rows]
    kept = [examples[0] for examples in cut if examples is not None]
    if len(kept) < len(rows):
        report.log(f"{len(rows) - len(kept)} of {len(rows)} examples left out: their prompt fills {max_length} tokens.")
    return kept
