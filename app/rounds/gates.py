"""Gates: may this candidate be promoted? Pure: measurements and thresholds in, verdicts out."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from app.rounds.recipes import WHY, Gate


@dataclass(frozen=True)
class Verdict:
    metric: str
    value: float | None
    """None: it was not measured, which never passes."""
    low: float | None
    high: float | None
    at_least: float | None
    at_most: float | None
    passed: bool
    why: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measurements(reward: dict[str, Any], evaluation: dict[str, Any]) -> dict[str, Any]:
    """What the gates look at, from the summaries of the reward run and the evaluation run."""
    known: dict[str, Any] = {
        **{k: reward[k] for k in ("accuracy", "accuracy_low", "accuracy_high") if k in reward},
        **evaluation,
    }
    for name, metric in (("length_ratio", "mean_length"), ("distinct_ratio", "distinct_2")):
        new, old = evaluation.get(metric), evaluation.get(f"baseline_{metric}")
        if new is not None and old:
            known[name] = new / old
    return known


def judge(gates: Iterable[Gate], measured: dict[str, Any]) -> list[Verdict]:
    """One verdict per gate."""
    return [_verdict(gate, measured) for gate in gates]


def _verdict(gate: Gate, measured: dict[str, Any]) -> Verdict:
    value, low, high = (measured.get(f"{gate.metric}{end}") for end in ("", "_low", "_high"))
    # Twenty held-out pairs decide nothing by themselves: a threshold is missed when the whole interval misses it.
    passed = (
        value is not None
        and (gate.at_least is None or (value if high is None else high) >= gate.at_least)
        and (gate.at_most is None or (value if low is None else low) <= gate.at_most)
    )
    return Verdict(
        metric=gate.metric,
        value=value,
        low=low,
        high=high,
        at_least=gate.at_least,
        at_most=gate.at_most,
        passed=passed,
        why=WHY[gate.metric],
    )
