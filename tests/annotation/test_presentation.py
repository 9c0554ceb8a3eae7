import random
from collections import Counter

from sqlalchemy.orm import Session

from app.annotation import leasing, presentation
from tests.factories import add_pairs, make_annotator, make_campaign


def test_whoever_was_first_least_often_is_first_next() -> None:
    for seed in range(20):
        shown = presentation.order(["a", "b", "c"], Counter(a=2, b=1, c=2), random.Random(seed))
        assert shown[0] == "b" and sorted(shown) == ["a", "b", "c"]


def test_over_many_comparisons_each_completion_is_first_about_half_the_time() -> None:
    rng = random.Random(0)
    first = Counter(presentation.order(["a", "b"], Counter(), rng)[0] for _ in range(10_000))
    assert abs(first["a"] / 10_000 - 0.5) < 0.02


def test_the_annotators_of_one_comparison_see_each_completion_first_equally_often(session: Session) -> None:
    campaign = make_campaign(session, overlap=6)
    add_pairs(session, campaign, 1)
    firsts: Counter[str] = Counter()
    for _ in range(6):
        assignment = leasing.next_assignment(session, campaign, make_annotator(session))
        assert assignment
        firsts[assignment.shown[0]] += 1
    assert sorted(firsts.values()) == [3, 3]


def test_what_is_shown_names_no_model_and_no_source(session: Session) -> None:
    campaign = make_campaign(session)
    add_pairs(
        session,
        campaign,
        1,
        completions=[{"text": "x", "source": "gpt-secret"}, {"text": "y", "source": "llama-secret"}],
    )
    assignment = leasing.next_assignment(session, campaign, make_annotator(session))
    assert assignment
    seen = presentation.show(session, assignment).as_json()
    assert "secret" not in str(seen)
    assert set(seen) == {"id", "comparison_id", "prompt", "completions", "expires_at"}
    assert {c["text"] for c in seen["completions"]} == {"x", "y"}
