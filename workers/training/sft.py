"""Supervised fine-tuning: imitate demonstrations.

    loss = - Σ_t log π(y_t | x, y_<t) / N

over the trained tokens: the completion, of conversations the assistant's turns in it, end tokens included. N counts
those of the whole optimiser step, on all processes, so that long and short examples weigh by their tokens however the
step is cut into micro-batches. With `packing`, examples share rows under a block-diagonal mask: the same loss.

Watch `eval_loss`: it rises again long before the training loss stops falling. `mean_token_accuracy` is the share of
trained tokens that were the likeliest ones, `num_tokens` what was read so far, prompts included (TRL's names).

Deliberately left out: NEFTune and other regularisers, the DFT loss, packing that cuts examples.

    python -m workers.training sft --data demonstrations.jsonl --model DIR --out OUT [--eval held_out.jsonl]
"""

import math
from pathlib import Path
from typing import Any

import torch

from workers.training import demonstrations, nets, optimisation, parallel
from workers.training.checkpoints import States, digest, fingerprint, finished, publish
from workers.training.errors import Interrupted, TooFewError
from workers.training.evaluation import log_prob_sums
from workers.training.optimisation import Optimiser
from workers.training.recipes import SFTRecipe
from workers.training.records import read_demonstrations
from workers.training.report import Reporter


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
    policy.prepare(recipe, report)
    max_length = min(recipe.max_length, policy.context_length)
    examples = demonstrations.encode(policy.codec, rows, max_length, recipe.train_on, report)
    held_out = demonstrations.encode(policy.codec, held_out_rows, max_length, recipe.train_on, report)
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
        tokens = sum(example.targets for example in batch)
        loss, hits = torch.zeros(2, device=policy.device)
        for _, part in policy.passes(parallel.share(batch), recipe.micro_batch_tokens, pack=recipe.packing):
            log_probs, likeliest = policy.log_probs_and_hits(part)
            share = -log_probs.sum() / tokens
            share.backward()
            loss += share.detach()
            hits += likeliest.sum()
        norm = optimiser.step(step, total)

        report.count(len(batch), sum(len(e) for e in batch))
        loss, hits = parallel.total(torch.stack([loss, hits]))
        seen = int(metrics.get("num_tokens", 0)) + sum(len(example) for example in batch)
        figures = {"loss": loss, "grad_norm": norm, "mean_token_accuracy": hits / tokens, "num_tokens": seen}
        metrics = optimisation.to_floats(figures)
        report.step(step + 1, total, metrics)
        if report.stopping or (recipe.save_every and (step + 1) % recipe.save_every == 0):
            states.save(step + 1, optimiser.state(), metrics)
        if report.stopping:
            raise Interrupted(f"Stopped after step {step + 1} of {total}; --resume goes on from there.")

    summary: dict[str, Any] = {"loss": metrics["loss"]}
    if held_out:
        summary["eval_loss"] = -sum(log_prob_sums(policy, held_out, recipe.micro_batch_tokens)) / sum(
            example.targets for example in held_out
        )
        summary["eval_perplexity"] = math.exp(min(summary["eval_loss"], 700.0))
    facts = {"stage": "sft", "step": total, "run": run, "metrics": summary}
    publish(out / "checkpoint", policy.save, facts)
    states.clear()
    report.steps = total
    return summary
