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
    suite/NAME        mean score of the records of NAME.jsonl by `verifiers.py`; suite/NAME/regressed 1 where it fell
    alarms            sentences of `alarms.alarms`, against `previous` reports, or else against the baseline's figures

The models are in memory one after another, never together.

    python -m workers.training evaluate --data prompts.jsonl --model NEW --baseline OLD [--initial FIRST]
        [--reward-model RM] [--held-out-reward-model RM] [--demonstrations FILE] [--sycophancy FILE]
        [--suite FILE …] [--previous report.json …] [--server URL] --out OUT

With `server`, each of the two policies that it serves under the name given here is drawn from there; log-probabilities
are computed here in any case.

Deliberately left out: a language model as judge (TRL removed its judges too): a verdict comes from people, or from a
reward model that was trained on theirs.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workers.training import evaluation, monitors, nets
from workers.training.alarms import alarms
from workers.training.answers import Questions, answer, of_suite, settings
from workers.training.errors import DataError, Interrupted, TooFewError
from workers.training.nets import Policy
from workers.training.recipes import EvaluateRecipe
from workers.training.records import read_demonstrations, read_probes, read_prompts
from workers.training.report import Reporter
from workers.training.samplers import Server
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
    held_out_reward_model: str | None = None,
    demonstrations: Path | None = None,
    sycophancy: Path | None = None,
    previous: Sequence[Path] = (),
    suite: Sequence[Path] = (),
    server: str | None = None,
) -> dict[str, float]:
    """Write `out/report.json`; returns its metrics."""
    questions = Questions(
        [row.prompt for _, row in zip(range(recipe.max_prompts), read_prompts(data), strict=False)],
        list(read_demonstrations(demonstrations)) if demonstrations else [],
        list(read_probes(sycophancy)) if sycophancy else [],
        {path.stem: list(read_prompts(path)) for path in suite},
    )
    if not questions.prompts:
        raise TooFewError("There is no held-out prompt to evaluate on.")
    there = _served(server, (model, baseline)) if server else []
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
    new = answer(recipe, policy, questions, report, _server(server, model, there))
    own = _sums(recipe, policy, new.examples)
    finished("new")

    policy = nets.load_policy(baseline, recipe.precision)
    old = answer(recipe, policy, questions, report, _server(server, baseline, there))
    if new.prompts != old.prompts:
        raise DataError("The two policies tokenise the prompts differently: they cannot be compared.")
    baselines = _sums(recipe, policy, new.examples)
    finished("baseline")

    lengths, old_lengths = ([d.length for d in of.drawn] for of in (new, old))
    metrics: dict[str, float] = {
        "prompts": len(questions.prompts),
        "kl": evaluation.sequence_kl(own, baselines),
        "kl_per_token": evaluation.token_kl(own, baselines, lengths),
        **new.metrics,
        **{f"baseline_{name}": value for name, value in old.metrics.items()},
        **{f"suite/{name}/regressed": float(of_suite(new, old, name)) for name in questions.suites},
    }
    if initial is not None:
        first = _sums(recipe, nets.load_policy(initial, recipe.precision), new.examples)
        metrics["kl_initial"] = evaluation.sequence_kl(own, first)
        finished("initial")
    metrics["sqrt_kl"] = math.sqrt(max(0.0, metrics.get("kl_initial", metrics["kl"])))

    samples: list[dict[str, Any]] = [
        {"prompt": prompt, "completion": mine, "baseline_completion": theirs}
        for prompt, mine, theirs in zip(
            questions.prompts, *([d.text for d in of.drawn] for of in (new, old)), strict=True
        )
    ]
    for prefix, source in (("", reward_model), ("held_out_", held_out_reward_model)):
        if source is None:
            continue
        scorer = nets.load_reward_model(source, recipe.precision)
        mine, theirs = (scorer.rate(a.examples, recipe.micro_batch_tokens) for a in (new, old))
        found = monitors.of_rewards(mine, lengths, theirs, old_lengths)
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


def _served(url: str, names: Sequence[str]) -> list[str]:
    """Which of these models the server has; at least one of them, or it was named by mistake."""
    offered = Server(url, "", settings(EvaluateRecipe())).names()
    there = [name for name in names if name in offered]
    if not there:
        raise DataError(
            f"{url} serves {', '.join(offered) or 'nothing'}: neither --model nor --baseline is among them."
        )
    return there


def _server(url: str | None, name: str, there: Sequence[str]) -> tuple[str, str] | None:
    return (url, name) if url and name in there else None


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
