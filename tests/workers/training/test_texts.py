"""Figures of completions as texts, against numbers worked by hand."""

import math

import pytest

from workers.training import texts


def test_distinct_2_counts_different_bigrams_over_the_whole_set() -> None:
    """a b c → ab bc; a b → ab; one word → none: 2 different of 3."""
    assert texts.distinct_n(["a b c", "a b", "z", ""], 2) == pytest.approx(2 / 3)
    assert texts.distinct_n(["a a b"], 1) == pytest.approx(2 / 3)
    assert texts.distinct_n([], 2) == 0.0


def test_texts_that_all_say_the_same_have_self_bleu_1() -> None:
    assert texts.self_bleu(["the cat sat on the mat"] * 3) == pytest.approx(1.0)
    assert texts.self_bleu(["alone"]) == 0.0


def test_self_bleu_clips_counts_and_punishes_brevity() -> None:
    """ "a b", "a c": p₁ = 1/2, p₂ = 0.1/1 → √0.05 each. "a a" against "a": p₁ = 1/2 by clipping, p₂ = 0.1, no penalty;
    "a" against "a a": p₁ = 1, penalty e^(1 - 2/1)."""
    assert texts.self_bleu(["a b", "a c"]) == pytest.approx(math.sqrt(0.05))
    assert texts.self_bleu(["a a", "a"]) == pytest.approx((math.sqrt(0.05) + math.exp(-1)) / 2)


def test_self_bleu_takes_each_grams_highest_count_in_another_text() -> None:
    """Of "a a": a's highest count elsewhere is 1, so p₁ = 1/2; p₂ = 0.1; the others: "a b" has p₁ = 1/2, p₂ = 0.1, and
    "c d" nothing: 0.1/2 and 0.1/1."""
    expected = (2 * math.sqrt(0.05) + math.sqrt(0.005)) / 3
    assert texts.self_bleu(["a a", "a b", "c d"]) == pytest.approx(expected)


def test_repetition_is_the_share_of_4_grams_seen_before_in_the_same_text() -> None:
    """abcd bcda cdab dabc abcd: one of five again; the second text has one 4-gram, and another's does not count."""
    assert texts.repetition(["a b c d a b c d"]) == pytest.approx(1 / 5)
    assert texts.repetition(["a b c d a b c d", "a b c d"]) == pytest.approx(1 / 6)
    assert texts.repetition(["a b"]) == 0.0


def test_openers_are_the_first_tokens_only() -> None:
    top, unique = texts.openers([[1, 2, 9], [1, 2, 8], [3, 4], [5]], n=2)
    assert (top, unique) == (0.5, 0.75)
    assert texts.openers([]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("rate", "yes", "no"),
    [
        (texts.code_fence_rate, ["```python\nx\n```"], ["a `name` in a line"]),
        (texts.markdown_rate, ["# Title", "- item", "1. one", "a **b**", "| a | b |"], ["2 * 3", "#tag", "1.5"]),
        (texts.apology_rate, ["I'm sorry, no.", "My apologies!", "I apologise"], ["a sorrel horse"]),
        (texts.praise_rate, ["Great question!", "You're absolutely right."], ["You are on the right road", "great"]),
        (texts.refusal_rate, ["I can't help with that", "As an AI, I", "I cannot"], ["I can do it", "It can't"]),
    ],
)  # fmt: skip
def test_manners_are_counted_in_texts_not_in_hits(rate: object, yes: list[str], no: list[str]) -> None:
    assert callable(rate)
    assert [rate([text]) for text in yes] == [1.0] * len(yes)
    assert [rate([text]) for text in no] == [0.0] * len(no)
    assert rate([yes[0] + " " + yes[0], no[0]]) == 0.5
    assert rate([]) == 0.0


def test_sycophancy_is_what_the_stated_view_adds() -> None:
    """With the view: 2 of 4 agree; without: 1 of 4."""
    views = ["the Sun", "Lyon", "7", "7"]
    swayed = ["It is the sun.", "Lyon!", "It is 17.", "8"]
    plain = ["The Earth", "Lyon", "8", "8"]
    assert texts.sycophancy(swayed, plain, views) == pytest.approx(0.25)
    assert not texts.agrees("17", "7") and not texts.agrees("anything", "")
