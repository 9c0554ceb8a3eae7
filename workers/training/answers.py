"""What one policy says when it is evaluated, and the figures that need no other model."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from workers.training import evaluation, monitors, texts, verifiers
from workers.training.choosing import Rule
from workers.training.errors import DataError
from workers.training.nets import Policy
from workers.training.recipes import EvaluateRecipe
from workers.training.records import Demonstration, Probe, PromptRow, Text
from workers.training.report import Reporter
from workers.training.samplers import Drawn, InProcess, Sampler, Server, Settings, encode
from workers.training.tokens import Example, truncate


@dataclass(frozen=True)
class Questions:
    """What both policies are asked. A suite is a list of records that a verifier can score, by its name."""

    prompts: list[Text]
    demonstrations: list[Demonstration]
    probes: list[Probe]
    suites: dict[str, list[PromptRow]]


@dataclass(frozen=True)
class Answers:
    """What one policy answers, and its figures; `scores` of each suite, None where nothing can be said."""

    prompts: list[list[int]]
    drawn: list[Drawn]
    examples: list[Example]
    metrics: dict[str, float]
    scores: dict[str, list[float | None]]


def settings(recipe: EvaluateRecipe) -> Settings:
    """How the evaluate stage draws."""
    return Settings(recipe.max_new_tokens, recipe.max_length, Rule(recipe.temperature), batch_size=recipe.batch_size)


def answer(
    recipe: EvaluateRecipe,
    policy: Policy,
    questions: Questions,
    report: Reporter,
    server: tuple[str, str] | None = None,
) -> Answers:
    """Ask the policy everything: here, or at the `server` (URL and name) that serves it."""
    how = settings(recipe)
    sampler: Sampler = Server(*server, how, policy.codec) if server else InProcess(policy, how)

    def ask(prompts: Sequence[Text]) -> list[Drawn]:
        """One completion per prompt, with the same random streams whoever draws."""
        seeds = [random.Random(f"{recipe.seed}/{place}").getrandbits(63) for place in range(len(prompts))]
        drawn = sampler.draw(prompts, seeds)
        report.count(len(drawn), sum(d.length for d in drawn))
        return drawn

    drawn = ask(questions.prompts)
    metrics = monitors.of_completions(drawn)
    if questions.demonstrations:
        metrics["eval_loss"] = _loss(recipe, policy, questions.demonstrations)
    if questions.probes:
        swayed = ask([probe.prompt_with_opinion for probe in questions.probes])
        plain = ask([probe.prompt for probe in questions.probes])
        metrics["sycophancy"] = texts.sycophancy(
            [d.text for d in swayed], [d.text for d in plain], [probe.wrong for probe in questions.probes]
        )
    scores: dict[str, list[float | None]] = {}
    for name, rows in questions.suites.items():
        checked = zip(ask([row.prompt for row in rows]), rows, strict=True)
        scores[name] = [_check(d, row) for d, row in checked]
        metrics[f"suite/{name}"] = evaluation.mean([score for score in scores[name] if score is not None])
    prompts = encode(policy.codec, questions.prompts, how, policy.context_length)
    return Answers(prompts, drawn, [Example(d.prompt, d.tokens) for d in drawn], metrics, scores)


def of_suite(new: Answers, old: Answers, name: str) -> bool:
    """Whether the new policy does worse on the records of a suite that both could be scored on."""
    pairs = [(a, b) for a, b in zip(new.scores[name], old.scores[name], strict=True) if a is not None and b is not None]
    return evaluation.regressed([a for a, _ in pairs], [b for _, b in pairs])


def _loss(recipe: EvaluateRecipe, policy: Policy, demonstrations: Sequence[Demonstration]) -> float:
    room = min(recipe.max_length, policy.context_length)
    cut = (truncate(policy.codec.encode(d.prompt, d.completion), room) for d in demonstrations)
    kept = [example for examples in cut if examples for example in examples]
    if not kept:
        raise DataError("No demonstration fits: their prompts fill max_length.")
    return evaluation.held_out_loss(policy, kept, recipe.micro_batch_tokens)


def _check(drawn: Drawn, row: PromptRow) -> float | None:
    """By the record's `verifier`, or as a number."""
    kind = row.row.get("verifier", "exact_number")
    if kind not in verifiers.VERIFIERS:
        raise DataError(f"A suite asks for the verifier {kind!r}; there are {', '.join(verifiers.VERIFIERS)}.")
    return verifiers.verify(kind, verifiers.Answer(drawn.text, drawn.length, drawn.ended), row.row)
