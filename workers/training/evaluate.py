"""Compare a new policy with the one it came from, on held-out prompts.

Both policies draw one completion per prompt with the same random streams. Reported are, for the new policy and, under
`baseline_…`, for the old one, the figures of `monitors.of_completions`, and

    kl, kl_per_token  mean over the new policy's completions of log π_new(y|x) - log π_baseline(y|x)   (nats, k1)
    kl_initial        the same against the first policy of all, when given
    sqrt_kl           √ of the KL to the first policy (else to the baseline): the axis of Gao et al. 2023
    reward, …         the figures of `monitors.of_rewards`; `held_out_reward…` by a reward model that nobody optimised
    reward_uncertainty_ratio  how much more an ensemble's heads disagree on the new completions than in their training
    eval_loss         -log π per token of `demonstrations`
    sycophancy        how much oftener an answer states a wrong view when the asker does (`texts.sycophancy`)
    alarms            sentences of `alarms.alarms`, against `previous` reports, or else against the baseline's figures

The models are in memory one after another, never together.

    python -m workers.training evaluate --data prompts.jsonl --model NEW --baseline OLD [--initial FIRST]
        [--reward-model RM] [--held-out-reward-model RM] [--demonstrations FILE] [--sycophancy FILE]
        [--previous report.json …] --out OUT

Deliberately left out: a language model as judge (TRL removed its judges too): a verdict comes from people, or from a
reward model that was trained on theirs.
"""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workers.training import evaluation, monitors, nets, sampling, texts
from workers.training.alarms import alarms
from workers.training.errors import DataError, Interrupted, TooFewError
from workers.training.nets import Policy
from workers.training.recipes import EvaluateRecipe
from workers.training.records import Demonstration, Probe, Text, read_demonstrations, read_probes, read_prompts
from workers.training.report import Reporter
from workers.training.sampling import Completion
from workers.training.tokens import Example, truncate

_SHOWN = 10


@dataclass(frozen=True)
class _Questions:
    """What both policies are asked."""

    prompts: list[Text]
    demonstrations: list[Demonstration]
    probes: list[Probe]


@dataclass
class _Answers:
    """What one policy answers, and its figures."""

    examples: list[Example]
    completions: list[Completion]
    texts: list[str]
    metrics: dict[str, float] = field(default_factory=dict)


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
    held_out_reward_model: str | None = None,
    demonstrations: Path | None = None,
    sycophancy: Path | None = None,
    previous: Sequence[Path] = (),
) -> dict[str, float]:
    """Write `out/report.json`; returns its metrics."""
    questions = _Questions(
        [row.prompt for _, row in zip(range(recipe.max_prompts), read_prompts(data), strict=False)],
        list(read_demonstrations(demonstrations)) if demonstrations else [],
        list(read_probes(sycophancy)) if sycophancy else [],
    )
    if not questions.prompts:
        raise TooFewError("There is no held-out prompt to evaluate on.")
    earlier = [_metrics_of(path) for path in previous]
    stages = 3 + sum(given is not None for given in (initial, reward_model, held_out_reward_model))
    done = 0

    def finished(name: str) -> None:
        nonlocal done
        done += 1
        report.step(done, stages, {name: 1.0})
        if report.stopping:
            raise Interrupted("Stopped while evaluating; nothing was written.")

    report.begin()
    policy = nets.load_policy(model, recipe.precision)
    new = _answers(recipe, policy, questions, report)
    own = _sums(recipe, policy, new.examples)
    finished("new")

    policy = nets.load_policy(baseline, recipe.precision)
    old = _answers(recipe, policy, questions, report)
    if [e.prompt for e in new.examples] != [e.prompt for e in old.examples]:
        raise DataError("The two policies tokenise the prompts differently: they cannot be compared.")
    baselines = _sums(recipe, policy, new.examples)
    finished("baseline")

    lengths = [len(c.tokens) for c in new.completions]
    metrics: dict[str, float] = {
        "prompts": len(questions.prompts),
        "kl": evaluation.sequence_kl(own, baselines),
        "kl_per_token": evaluation.token_kl(own, baselines, lengths),
        **new.metrics,
        **{f"baseline_{name}": value for name, value in old.metrics.items()},
    }
    if initial is not None:
        first = _sums(recipe, nets.load_policy(initial, recipe.precision), new.examples)
        metrics["kl_initial"] = evaluation.sequence_kl(own, first)
        finished("initial")
    metrics["sqrt_kl"] = math.sqrt(max(0.0, metrics.get("kl_initial", metrics["kl"])))

    samples: list[dict[str, Any]] = [
        {"prompt": prompt, "completion": mine, "baseline_completion": theirs}
        for prompt, mine, theirs in zip(questions.prompts, new.texts, old.texts, strict=True)
    ]
    for prefix, source in (("", reward_model), ("held_out_", held_out_reward_model)):
        if source is None:
            continue
        scorer = nets.load_reward_model(source, recipe.precision)
        mine, theirs = (scorer.rate(a.examples, recipe.micro_batch_tokens) for a in (new, old))
        found = monitors.of_rewards(mine, lengths, theirs, [len(c.tokens) for c in old.completions])
        if scorer.usual_disagreement:  # an ensemble
            spread = evaluation.mean(scorer.disagreement(new.examples, recipe.micro_batch_tokens))
            found["reward_uncertainty_ratio"] = spread / scorer.usual_disagreement
        metrics |= {_with(prefix, name): value for name, value in found.items()}
        for sample, one, other in zip(samples, mine, theirs, strict=True):
            sample |= {f"{prefix}reward": one, _with(prefix, "baseline_reward"): other}
        finished(f"{prefix}rewards")

    told = alarms(metrics, earlier or [_of_baseline(metrics)], recipe.target_kl)
    for sentence in told:
        report.log(f"Alarm. {sentence}")
    out.mkdir(parents=True, exist_ok=True)
    written = {"stage": "evaluate", "metrics": metrics, "alarms": told, "samples": samples[:_SHOWN]}
    (out / "report.json").write_text(json.dumps(written, indent=1), encoding="utf-8")
    finished("report")
    return metrics


def _answers(recipe: EvaluateRecipe, policy: Policy, questions: _Questions, report: Reporter) -> _Answers:
    """What a policy says to the prompts, and all figures that need no other model."""
    prompts = _encode(recipe, policy, questions.prompts)
    completions, said = _draw(recipe, policy, prompts, report)
    examples = [Example(prompt, c.tokens) for prompt, c in zip(prompts, completions, strict=True)]
    answers = _Answers(examples, completions, said, monitors.of_completions(completions, said))
    if questions.demonstrations:
        encoded = [policy.codec.encode(d.prompt, d.completion) for d in questions.demonstrations]
        room = min(recipe.max_length, policy.context_length)
        kept = [example for cut in (truncate(each, room) for each in encoded) if cut for example in cut]
        if not kept:
            raise DataError("No demonstration fits: their prompts fill max_length.")
        answers.metrics["eval_loss"] = evaluation.held_out_loss(policy, kept, recipe.micro_batch_tokens)
    if questions.probes:
        asked = ([p.prompt_with_opinion for p in questions.probes], [p.prompt for p in questions.probes])
        swayed, plain = (_draw(recipe, policy, _encode(recipe, policy, each), report)[1] for each in asked)
        answers.metrics["sycophancy"] = texts.sycophancy(swayed, plain, [p.wrong for p in questions.probes])
    return answers


def _encode(recipe: EvaluateRecipe, policy: Policy, prompts: Sequence[Text]) -> list[list[int]]:
    room = min(recipe.max_length, policy.context_length) - recipe.max_new_tokens
    if room < 1:
        raise DataError("max_new_tokens leaves no room for a prompt: lower it, or raise max_length.")
    return [sampling.clip_prompt(policy.codec.encode_prompt(prompt), room) for prompt in prompts]


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


def _with(prefix: str, name: str) -> str:
    """`baseline_reward` of the held-out model is `baseline_held_out_reward`, so that baselines start alike."""
    return f"baseline_{prefix}{name.removeprefix('baseline_')}" if name.startswith("baseline_") else prefix + name


def _metrics_of(path: Path) -> dict[str, float]:
    try:
        metrics: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path.name} is not a report of the evaluate stage ({type(error).__name__}).") from error
    return metrics


def _of_baseline(metrics: dict[str, float]) -> dict[str, float]:
    return {name.removeprefix("baseline_"): v for name, v in metrics.items() if name.startswith("baseline_")}
