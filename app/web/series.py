"""The figures that a run logs, step by step: what they are called, and what a chart of them needs."""

import csv
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.rounds.models import Round, RoundState, Run, RunMetric, RunState, Stage

MOST_POINTS = 600
"""More than a chart has pixels for; the CSV has every step."""

CHARTED = (Stage.reward, Stage.dpo, Stage.ppo)


@dataclass(frozen=True)
class Known:
    """A figure that we have a name for. Any other is shown under its own."""

    label: str
    why: str
    unit: str = ""
    """`%` for shares."""


KNOWN: dict[str, Known] = {
    "loss": Known("Loss", "What training lowers, on the batch of that step."),
    "accuracy": Known("Accuracy on the batch", "Share of pairs in which the chosen answer got the higher reward.", "%"),
    "margin": Known("Reward margin", "Reward of the chosen answer less that of the rejected one."),
    "rewards/margins": Known("Reward margin", "How much further the policy moved towards the chosen answers."),
    "rewards/accuracies": Known(
        "Pairs on the right side", "Share of pairs in which the chosen answer gained more.", "%"
    ),
    "logps/chosen": Known("Log-probability, chosen", "Falling fast means that the policy forgets even good answers."),
    "logps/rejected": Known("Log-probability, rejected", "Should fall, and faster than that of the chosen answers."),
    "rewards/chosen": Known("Implied reward, chosen", "Change in log-probability of the chosen answers, times β."),
    "rewards/rejected": Known("Implied reward, rejected", "Change in log-probability of the rejected ones, times β."),
    "objective/scores": Known("Reward", "What the reward model gives to fresh completions."),
    "objective/kl": Known(
        "KL to the start", "Distance from the policy that training began with, in nats a completion."
    ),
    "objective/entropy": Known("Entropy", "How undecided the policy is; falling to 0 means that it repeats itself."),
    "completions/mean_length": Known("Completion length", "Tokens. Growing without end is a hole in the reward."),
    "loss/value_avg": Known("Value loss", "How far the value head is from the returns."),
    "loss/policy_avg": Known("Policy loss", "The clipped objective."),
    "grad_norm": Known("Gradient norm", "Before clipping; spikes mean that training is unstable."),
}

FIRST: dict[Stage, tuple[str, ...]] = {
    Stage.reward: ("loss", "accuracy"),
    Stage.dpo: ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen"),
    Stage.ppo: ("objective/scores", "objective/kl", "objective/entropy", "completions/mean_length", "loss/value_avg"),
}
"""Charted before there is anything to chart, in this order."""


@dataclass
class Curve:
    name: str
    label: str
    why: str
    unit: str
    first: bool
    """Shown at once; the others are a click away."""
    values: list[float | None] = field(default_factory=list)

    def told(self) -> dict[str, str]:
        """The chart in words: its last, lowest and highest value."""
        known = [value for value in self.values if value is not None]
        if not known:
            return {"last": "–", "min": "–", "max": "–"}
        return {
            name: say(value, self.unit)
            for name, value in (("last", known[-1]), ("min", min(known)), ("max", max(known)))
        }


@dataclass
class Curves:
    """All figures of one run."""

    run: Run
    steps: list[int]
    curves: list[Curve]

    @property
    def names(self) -> list[str]:
        return [curve.name for curve in self.curves]

    def as_json(self) -> dict[str, Any]:
        kept = _thinned(len(self.steps))
        return {
            "steps": [self.steps[i] for i in kept],
            "total": self.run.total_steps,
            "state": self.run.state.value,
            "curves": {c.name: {"values": [c.values[i] for i in kept], **c.told()} for c in self.curves},
        }


def say(value: float, unit: str = "") -> str:
    """A value in the figure's own terms: `0.693`, `84 %`."""
    if unit == "%":
        return f"{value * 100:.0f} %"
    if abs(value) < 1e-6:
        return "0"  # what float arithmetic leaves of it
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _thinned(count: int) -> list[int]:
    """Which of so many points are drawn: evenly spread, the last one always."""
    stride = max(1, math.ceil(count / MOST_POINTS))
    kept = list(range(0, count, stride))
    if count and kept[-1] != count - 1:
        kept.append(count - 1)
    return kept


def curves(db: Session, run: Run) -> Curves:
    """What the run has logged so far, known figures first."""
    rows = db.execute(
        select(RunMetric.step, RunMetric.metrics).where(RunMetric.run_id == run.id).order_by(RunMetric.step)
    )
    return collect(run, [(step, metrics) for step, metrics in rows])


def collect(run: Run, rows: list[tuple[int, dict[str, Any]]]) -> Curves:
    """The same from rows at hand: `(step, metrics)` in order. Whatever is no number is left out."""
    first = FIRST.get(run.stage, ())
    seen = {name for _, metrics in rows for name, value in metrics.items() if _number(value) is not None}
    order = {name: place for place, name in enumerate([*first, *KNOWN])}
    names = sorted({*first, *seen}, key=lambda name: (order.get(name, len(order)), name))
    made = [_curve(name, name in first) for name in names]
    for _, metrics in rows:
        for curve in made:
            curve.values.append(_number(metrics.get(curve.name)))
    return Curves(run, [step for step, _ in rows], made)


def _curve(name: str, first: bool) -> Curve:
    known = KNOWN.get(name)
    label = known.label if known else name.replace("/", ": ").replace("_", " ")
    return Curve(name, label, known.why if known else "", known.unit if known else "", first)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def ghost(db: Session, run: Run) -> tuple[Round, Curves] | None:
    """The same stage of the last promoted round before this run's, to draw behind it."""
    if run.round_id is None:
        return None
    own = db.get_one(Round, run.round_id)
    found = db.execute(
        select(Round, Run)
        .join(Run, Run.round_id == Round.id)
        .where(
            Round.campaign_id == own.campaign_id,
            Round.number < own.number,
            Round.state == RoundState.promoted,
            Run.stage == run.stage,
            Run.state == RunState.succeeded,
        )
        .order_by(Round.number.desc())
        .limit(1)
    ).first()
    return (found[0], curves(db, found[1])) if found else None


def as_csv(drawn: Curves, names: Iterable[str]) -> Iterator[str]:
    """Every step, one column a figure."""
    wanted = [curve for curve in drawn.curves if curve.name in set(names)]
    yield _line(["step", *(curve.name for curve in wanted)])
    for place, step in enumerate(drawn.steps):
        yield _line([step, *(curve.values[place] for curve in wanted)])


def _line(cells: list[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(["" if cell is None else cell for cell in cells])
    return buffer.getvalue()
