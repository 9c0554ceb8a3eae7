import pytest
from pydantic import ValidationError

from app.rounds import gates
from app.rounds.recipes import DEFAULT_GATES, Gate

HEALTHY = {
    "accuracy": 0.8,
    "reward_win_rate": 0.7,
    "kl": 5.0,
    "length_ratio": 1.1,
    "distinct_ratio": 0.9,
}


def failed(measured: dict[str, object]) -> list[str]:
    return [v.metric for v in gates.judge(DEFAULT_GATES, measured) if not v.passed]


def test_a_healthy_candidate_passes_every_gate() -> None:
    assert failed(HEALTHY) == []


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("accuracy", 0.5),
        ("reward_win_rate", 0.4),
        ("kl", 100),
        ("length_ratio", 3),
        ("length_ratio", 0.1),
        ("distinct_ratio", 0.1),
    ],
)
def test_each_gate_stops_what_it_is_there_for(metric: str, value: float) -> None:
    assert failed({**HEALTHY, metric: value}) == [metric]


def test_what_was_not_measured_does_not_pass() -> None:
    assert failed({**HEALTHY, "accuracy": None}) == ["accuracy"]
    assert failed({k: v for k, v in HEALTHY.items() if k != "kl"}) == ["kl"]


def test_a_threshold_is_missed_only_when_the_whole_interval_misses_it() -> None:
    few = {**HEALTHY, "accuracy": 0.45, "accuracy_low": 0.25, "accuracy_high": 0.66}
    many = {**HEALTHY, "accuracy": 0.45, "accuracy_low": 0.42, "accuracy_high": 0.48}
    assert failed(few) == [] and failed(many) == ["accuracy"]


def test_a_value_on_the_threshold_passes() -> None:
    assert gates.judge([Gate(metric="kl", at_most=60)], {"kl": 60})[0].passed


def test_ratios_are_of_the_new_policy_to_the_one_before() -> None:
    measured = gates.measurements(
        {"accuracy": 0.7, "accuracy_low": 0.6, "accuracy_high": 0.8, "loss": 0.4},
        {"mean_length": 30.0, "baseline_mean_length": 20.0, "distinct_2": 0.4, "baseline_distinct_2": 0.8},
    )
    assert (measured["length_ratio"], measured["distinct_ratio"]) == (1.5, 0.5)
    assert measured["accuracy_low"] == 0.6 and "loss" not in measured


def test_a_gate_without_a_threshold_is_refused() -> None:
    with pytest.raises(ValidationError, match="at_least or at_most"):
        Gate(metric="kl")
