"""Compare a new policy with the one it came from, on held-out prompts.

Both policies draw one completion per prompt with the same random streams. Reported are

    kl               mean over the new policy's completions of log π_new(y|x) - log π_baseline(y|x)   (nats, k1)
    kl_initial       the same against the first policy of all, when given
    reward_win_rate  share of prompts on which the reward model puts the new completion higher, ties half, with
                     Wilson's 95 % interval
    reward           mean normalised reward, and lengths (tokens, end token included), distinct-2 and the share of
                     completions that ended by themselves

for both policies. The models are in memory one after another, never together.

    python -m workers.training evaluate --data prompts.jsonl --model NEW --baseline OLD [--initial FIRST]
        [--reward-model RM] --out OUT
"""

import json
import random
from pathlib import Path
from typing import Any

from workers.training import evaluation, nets, sampling
from workers.training.errors import DataError, Interrupted, TooFewError
from workers.training.nets import Policy
from workers.training.recipes import EvaluateRecipe
from workers.training.records import PromptRow, read_prompts
from workers.training.report import Reporter
from workers.training.sampling import Completion
from workers.training.tokens import Example

_SHOWN = 10


def train(
    recipe: EvaluateRecipe,
    data: Path,
    out: Path,
    report: Reporter,
    *,
    model: str,
    baseline: str,
    initial: str | None = None,
    reward_model: str | None = None,
) -> dict[str, float]:
    """Write `out/report.json`; returns its metrics."""
    rows = [row for _, row in zip(range(recipe.max_prompts), read_prompts(data), strict=False)]
    if not rows:
        raise TooFewError("There is no held-out prompt to evaluate on.")
    stages = 3 + (initial is not None) + (reward_model is not None)
    done = 0

    def finished(name: str) -> None:
        nonlocal done
        done += 1
        report.step(done, stages, {name: 1.0})
        if report.stopping:
            raise Interrupted("Stopped while evaluating; nothing was written.")

    report.begin()
    policy = nets.load_policy(model, recipe.precision)
    prompts = _encode(recipe, policy, rows)
    new, new_texts = _draw(recipe, policy, prompts, report)
    new_examples = [Example(p, c.tokens) for p, c in zip(prompts, new, strict=True)]
    log_probs = [_sums(recipe, policy, new_examples)]
    finished("new")

    policy = nets.load_policy(baseline, recipe.precision)
    if _encode(recipe, policy, rows) != prompts:
        raise DataError("The two policies tokenise the prompts differently: they cannot be compared.")
    old, old_texts = _draw(recipe, policy, prompts, report)
    old_examples = [Example(p, c.tokens) for p, c in zip(prompts, old, strict=True)]
    log_probs.append(_sums(recipe, policy, new_examples))
    finished("baseline")

    metrics: dict[str, float] = {
        "prompts": len(rows),
        "kl": evaluation.sequence_kl(log_probs[0], log_probs[1]),
        **_texts_metrics("", new, new_texts),
        **_texts_metrics("baseline_", old, old_texts),
    }
    if initial is not None:
        first = _sums(recipe, nets.load_policy(initial, recipe.precision), new_examples)
        metrics["kl_initial"] = evaluation.sequence_kl(log_probs[0], first)
        finished("initial")
    samples: list[dict[str, Any]] = [
        {"prompt": row.prompt, "completion": mine, "baseline_completion": theirs}
        for row, mine, theirs in zip(rows, new_texts, old_texts, strict=True)
    ]
    if reward_model is not None:
        scorer = nets.load_reward_model(reward_model, recipe.precision)
        mine = scorer.rate(new_examples, recipe.micro_batch_tokens)
        theirs = scorer.rate(old_examples, recipe.micro_batch_tokens)
        metrics |= _reward_metrics(mine, theirs)
        for sample, one, other in zip(samples, mine, theirs, strict=True):
            sample |= {"reward": one, "baseline_reward": other}
        finished("rewards")

    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"stage": "evaluate", "metrics": metrics, "samples": samples[:_SHOWN]}, indent=1)
    (out / "report.json").write_text(text, encoding="utf-8")
    finished("report")
    return metrics


def _encode(recipe: EvaluateRecipe, policy: Policy, rows: list[PromptRow]) -> list[list[int]]:
    room = min(recipe.max_length, policy.context_length) - recipe.max_new_tokens
    if room < 1:
        raise DataError("max_new_tokens leaves no room for a prompt: lower it, or raise max_length.")
    return [sampling.clip_prompt(policy.codec.encode_prompt(row.prompt), room) for row in rows]


def _draw(
    recipe: EvaluateRecipe, policy: Policy, prompts: list[list[int]], report: Reporter
) -> tuple[list[Completion], list[str]]:
    """One completion per prompt, with the same random streams whoever draws."""
    drawn = sampling.generate(
        policy,
        prompts,
        [random.Random(f"{recipe.seed}/{place}").getrandbits(63) for place in range(len(prompts))],
        max_new_tokens=recipe.max_new_tokens,
        temperature=recipe.temperature,
        batch_size=recipe.batch_size,
    )
    report.count(len(drawn), sum(len(c.tokens) for c in drawn))
    return drawn, [policy.codec.decode(c.tokens).strip() for c in drawn]


def _sums(recipe: EvaluateRecipe, policy: Policy, examples: list[Example]) -> list[float]:
    return evaluation.log_prob_sums(policy, examples, recipe.micro_batch_tokens, recipe.temperature)


def _texts_metrics(prefix: str, drawn: list[Completion], texts: list[str]) -> dict[str, float]:
    return {
        f"{prefix}mean_length": evaluation.mean([len(c.tokens) for c in drawn]),
        f"{prefix}distinct_2": evaluation.distinct_n(texts, 2),
        f"{prefix}eos_rate": evaluation.mean([float(c.ended) for c in drawn]),
    }


def _reward_metrics(mine: list[float], theirs: list[float]) -> dict[str, float]:
    won = evaluation.wins(mine, theirs)
    low, high = evaluation.wilson(won, len(mine))
    return {
        "reward_win_rate": won / len(mine),
        "reward_win_rate_low": low,
        "reward_win_rate_high": high,
        "reward": evaluation.mean(mine),
        "baseline_reward": evaluation.mean(theirs),
    }
