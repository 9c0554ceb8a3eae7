"""What the report of a reward model says, against figures counted by hand."""

from dataclasses import replace

import pytest

from tests.workers.training.nets_in_memory import example
from workers.training import reward_report
from workers.training.comparisons import TokenComparison
from workers.training.records import Comparison
from workers.training.reward_report import JudgedPair

WON, LOST = JudgedPair(1.0, 1.0, 2, "ann", "web"), JudgedPair(-1.0, 1.0, -3, "bob", "web")
EVEN, TIE = JudgedPair(0.0, 1.0, 0, "ann", "lab"), JudgedPair(5.0, 0.5, 9, "bob", "lab")
TURNED = JudgedPair(-2.0, 0.25, 4, "bob", "lab")  # people prefer the other one, which is 4 tokens shorter


def compared(first: str, second: str, **facts: object) -> TokenComparison:
    judged = replace(Comparison("p", (first, second)), **facts)  # type: ignore[arg-type]
    return TokenComparison((example("p", first), example("p", second)), judged)


def test_accuracy_is_over_decided_pairs_and_equal_rewards_are_half_right() -> None:
    """Decided: won 1, lost 0, even ½, turned 1 → 2.5 of 4; with the tie as half right 3 of 5."""
    section = reward_report.quality([WON, LOST, EVEN, TIE, TURNED])
    assert (section["accuracy"], section["decided"], section["ties"]) == (2.5 / 4, 4, 1)
    assert section["accuracy_ties_half"] == 3 / 5
    assert section["margin"] == pytest.approx((1 - 1 + 0 + 2) / 4)
    assert section["accuracy_low"] < 2.5 / 4 < section["accuracy_high"]
    assert sum(one["count"] for one in section["reliability"]) == 4


def test_slices_are_by_annotator_source_length_and_confidence() -> None:
    slices = reward_report.quality([WON, LOST, EVEN, TIE, TURNED])["slices"]
    assert {name: one["decided"] for name, one in slices["annotator"].items()} == {"ann": 2, "bob": 2}
    assert slices["annotator"]["bob"]["accuracy"] == 0.5
    assert slices["source"]["web"]["accuracy"] == 0.5
    assert {name: one["decided"] for name, one in slices["chosen_is"].items()} == {
        "longer": 1,
        "shorter": 2,
        "equal": 1,
    }
    assert slices["chosen_is"]["shorter"]["accuracy"] == 0.5  # lost, and the turned one that was right
    assert set(slices["confidence"]) == {"certain", "0.75 and more"}


def test_a_slice_that_is_the_whole_is_left_out() -> None:
    assert reward_report.quality([WON, WON])["slices"]["annotator"] == {}


def test_nothing_to_judge_is_no_error() -> None:
    assert reward_report.quality([TIE])["accuracy"] == 0.5


def test_pairs_come_with_their_gap_and_lengths() -> None:
    ranked = TokenComparison(
        (example("p", "a"), example("p", "bbb"), example("p", "cc")),
        Comparison("p", ("a", "bbb", "cc"), ((1,), (0, 2)), confidence=0.9, annotator="x", source="y"),
    )
    pairs = reward_report.judged_pairs([compared("a", "bb"), ranked], [1.0, 0.5, 0.0, 2.0, 0.25])
    assert pairs == [
        JudgedPair(0.5, 1.0, -1, "", ""),
        JudgedPair(2.0, 0.9, 2, "x", "y"),
        JudgedPair(1.75, 0.9, 1, "x", "y"),
        JudgedPair(-0.25, 0.5, -1, "x", "y"),
    ]


def test_agreement_of_people_bounds_what_a_model_can_reach() -> None:
    """a/b three times: a, a, b (the last listed the other way round): 1 of 3 pairs of answers agree; c/d twice, agreed.

    A = (1 + 1) / (3 + 1) = ½ → ceiling ½ (1 + 0) = ½; with c/d alone A = 1 → 1. Ties and single answers say nothing.
    """
    first = [compared("a", "b"), compared("a", "b"), compared("b", "a")]
    second = [compared("c", "d"), compared("d", "c", ranking=((1,), (0,)))]
    others = [compared("e", "f"), compared("c", "d", confidence=0.5)]
    assert reward_report.repeated_judgements([*first, *second, *others]) == {
        "repeated": 2, "agreement": 0.5, "noise_ceiling": 0.5,
    }  # fmt: skip
    assert reward_report.repeated_judgements(second)["noise_ceiling"] == 1.0
    assert reward_report.repeated_judgements(others) == {}
    many = [compared("a", "b")] * 90 + [compared("b", "a")] * 10
    assert reward_report.repeated_judgements(many)["noise_ceiling"] == pytest.approx(0.9, abs=0.002)


def test_a_model_that_follows_length_or_guesses_raises_an_alarm() -> None:
    guessing = [JudgedPair((-1) ** i * 1.0, 1.0, -1, "", "") for i in range(40)]
    rewards = {"reward_length_spearman": 0.7, "pad_invariance": 0.0}
    wrong = [replace(pair, gap=-1.0) for pair in guessing[:30]]
    found = reward_report.alarms(reward_report.quality([*wrong, WON]) | rewards)
    assert len(found) == 3 and "length" in found[0] and "shorter" in found[1] and "guessing" in found[2]
    good = reward_report.quality([WON] * 40) | {"reward_length_spearman": 0.1, "pad_invariance": 0.1}
    assert [text for text in reward_report.alarms(good) if "batch" in text] == reward_report.alarms(good) != []
