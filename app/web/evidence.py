"""What speaks for a candidate or against it: the gates as rows, and completions to look at."""

import json
from dataclasses import dataclass, field
from typing import Any

from app.campaigns.models import Campaign
from app.core import artifacts
from app.core.errors import NotFound
from app.rounds import recipes
from app.rounds.models import Round, RoundState, Run

METRICS = {
    "accuracy": ("Reward model accuracy", "held-out pairs it gets right", "%"),
    "reward_win_rate": ("Win rate", "against the policy before it, held-out prompts, by the reward model", "%"),
    "kl": ("Distance (KL)", "from the policy before it, nats a completion", ""),
    "length_ratio": ("Length", "against the policy before it", "×"),
    "distinct_ratio": ("Variety", "distinct word pairs against the policy before it", "×"),
    "eos_rate": ("Completions that end", "before the length limit", "%"),
}


@dataclass
class GateRow:
    label: str
    what: str
    why: str
    value: str
    interval: str
    threshold: str
    verdict: str
    """`passed`, `failed`, `not measured`, or empty while nothing has been judged."""
    tone: str = ""


def gate_rows(campaign: Campaign, current: Round) -> list[GateRow]:
    """What each gate measured and said; before the decision, what it is going to ask."""
    if current.gates:
        return [_gate(gate, judged=True) for gate in current.gates]
    stored = campaign.recipe if current.state is RoundState.collecting else current.recipe
    return [_gate({**gate.model_dump(), "why": recipes.WHY[gate.metric]}) for gate in recipes.parse(stored).gates]


def _gate(gate: dict[str, Any], judged: bool = False) -> GateRow:
    label, what, unit = METRICS.get(gate["metric"], (gate["metric"].replace("_", " "), "", ""))
    low, high, value = gate.get("low"), gate.get("high"), gate.get("value")
    verdict = "passed" if gate.get("passed") else "not measured" if value is None else "failed"
    return GateRow(
        label=label,
        what=what,
        why=gate.get("why", ""),
        value=figure(value, unit),
        interval=f"{figure(low, unit)} to {figure(high, unit)}" if low is not None and high is not None else "",
        threshold=_threshold(gate, unit),
        verdict=verdict if judged else "",
        tone={"passed": "good", "failed": "bad", "not measured": "warn"}[verdict],
    )


def _threshold(gate: dict[str, Any], unit: str) -> str:
    low, high = gate.get("at_least"), gate.get("at_most")
    if low is not None and high is not None:
        return f"{figure(low, unit)} to {figure(high, unit)}"
    return f"at least {figure(low, unit)}" if low is not None else f"at most {figure(high, unit)}"


def figure(value: float | None, unit: str = "") -> str:
    if value is None:
        return "–"
    if unit == "%":
        return f"{value * 100:.0f} %"
    return f"{value:.3g}{' ×' if unit == '×' else ''}"


@dataclass
class Sample:
    """A held-out prompt with what both policies answer."""

    prompt: list[dict[str, str]]
    before: str
    after: str
    before_reward: float | None = None
    after_reward: float | None = None


@dataclass
class Samples:
    rows: list[Sample] = field(default_factory=list)
    problem: str = ""


def samples(run: Run | None) -> Samples:
    """What the evaluation kept to look at."""
    if run is None or "report" not in run.outputs:
        return Samples()
    try:
        report = json.loads("".join(artifacts.read_text(run.outputs["report"])))
    except (NotFound, ValueError):
        return Samples(problem="The evaluation's report is gone from the artifact store, so its samples are, too.")
    return Samples([_sample(row) for row in report.get("samples", [])[:10]])


def _sample(row: dict[str, Any]) -> Sample:
    prompt = row["prompt"]
    return Sample(
        prompt=[{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt,
        before=row.get("baseline_completion", ""),
        after=row.get("completion", ""),
        before_reward=row.get("baseline_reward"),
        after_reward=row.get("reward"),
    )
