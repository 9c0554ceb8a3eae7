"""How far a campaign has come, counted on real rows."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.annotation import leasing, submission
from app.annotation.models import Annotation, Annotator
from app.campaigns.models import Campaign
from app.comparisons.models import ComparisonState
from app.quality import agreement, annotators, progress
from app.quality.agreement import Estimate
from tests.factories import add_pairs, comparisons_of, make_annotator, make_campaign


def answer(session: Session, campaign: Campaign, annotator: Annotator, *, first: bool | None = None) -> Annotation:
    """Prefer the completion shown first or second; where `first` is None, the one that was given first."""
    lease = leasing.next_assignment(session, campaign, annotator)
    assert lease is not None
    order = list(lease.shown)
    if first is None:
        texts = submission.own_assignment(session, annotator, lease.id)
        shown = {c["id"]: c["text"] for c in leasing.presentation.show(session, texts).completions}
        order.sort(key=lambda i: shown[i])
    elif not first:
        order.reverse()
    said = submission.Answer([[order[0]], [order[1]]], strength=1, elapsed_ms=2000)
    return submission.submit(session, campaign, lease, said, key=str(lease.id)).annotation


def test_counts_follow_leases_answers_and_overlap(session: Session) -> None:
    campaign = make_campaign(session, overlap=2)
    add_pairs(session, campaign, 3)
    anna, ben = make_annotator(session, campaign), make_annotator(session, campaign)
    answer(session, campaign, anna)
    answer(session, campaign, ben)
    leasing.next_assignment(session, campaign, ben)
    found = progress.measure(session, [campaign.id])[campaign.id]
    assert (found.comparisons, found.open, found.wanted) == (3, 2, 6)
    assert (found.answered, found.left, found.leased) == (2, 4, 1)
    assert found.last_at is not None


def test_discarded_comparisons_are_wanted_no_more(session: Session) -> None:
    campaign = make_campaign(session)
    add_pairs(session, campaign, 2)
    comparisons_of(session, campaign)[0].state = ComparisonState.discarded
    session.flush()
    found = progress.measure(session, [campaign.id])[campaign.id]
    assert (found.comparisons, found.wanted, found.left) == (1, 1, 1)


def test_imported_labels_count_as_answers_but_not_as_pace(session: Session) -> None:
    campaign = make_campaign(session)
    add_pairs(session, campaign, 4, annotations=[{"annotator": "x", "ranking": [[0], [1]]}])
    found = progress.measure(session, [campaign.id])[campaign.id]
    assert (found.answers, found.imported, found.left, found.last_at) == (4, 4, 0, None)
    assert sum(count for _, count in progress.per_day(session, campaign.id)) == 0
    assert progress.pace(session, campaign.id) is None


def test_a_campaign_without_anything_has_zeros(session: Session) -> None:
    campaign = make_campaign(session)
    assert progress.measure(session, [campaign.id])[campaign.id] == progress.Progress()


def test_each_day_has_its_answers_and_empty_days_are_there(session: Session) -> None:
    campaign = make_campaign(session)
    add_pairs(session, campaign, 3)
    anna = make_annotator(session, campaign)
    for days in (0, 2, 2):
        made = answer(session, campaign, anna)
        session.execute(
            update(Annotation)
            .where(Annotation.id == made.id)
            .values(created_at=datetime.now(UTC) - timedelta(days=days))
        )
    assert [count for _, count in progress.per_day(session, campaign.id, days=4)] == [0, 2, 0, 1]


def test_the_pace_is_a_rate_over_the_window_and_nothing_too_early() -> None:
    assert progress.rate(70, timedelta(days=7)) == 10
    assert progress.rate(5, timedelta(hours=6)) == 20
    assert progress.rate(5, timedelta(minutes=1)) is None and progress.rate(0, None) is None
    assert progress.seconds_left(20, 10) == 2 * 86400
    assert progress.seconds_left(20, None) is None


def test_skips_are_counted_by_reason(session: Session) -> None:
    campaign = make_campaign(session)
    add_pairs(session, campaign, 3)
    anna = make_annotator(session, campaign)
    for reason in ("unsafe", "language", "unsafe"):
        lease = leasing.next_assignment(session, campaign, anna)
        assert lease is not None
        leasing.skip(session, lease, reason)
    assert progress.skip_reasons(session, campaign.id) == [("unsafe", 2), ("language", 1)]


def test_agreement_corrects_for_guessing_because_labels_name_places_and_not_completions(session: Session) -> None:
    """Of 20 comparisons two people agree on 10, as guessing would give: raw 50 %, α near 0 (it was 0.5 by ids)."""
    campaign = make_campaign(session, overlap=2)
    add_pairs(session, campaign, 20)
    anna, ben = make_annotator(session, campaign), make_annotator(session, campaign)
    for n in range(20):
        one = answer(session, campaign, anna)
        other = answer(session, campaign, ben)
        ranking = one.ranking if n % 4 < 2 else one.ranking[::-1]
        other.ranking = ranking if n % 2 else ranking[::-1]
        one.ranking = ranking
    session.flush()
    units = annotators.units(session, campaign.id)
    alpha = agreement.alpha(units)
    assert agreement.raw(units).value == 0.5
    assert alpha.value is not None and abs(alpha.value) < 0.1
    assert len(session.scalars(select(Annotation)).all()) == 40


@pytest.mark.parametrize(
    ("low", "high", "biased"), [(0.6, 0.9, True), (0.1, 0.4, True), (0.4, 0.7, False), (None, None, False)]
)
def test_position_bias_is_an_interval_that_excludes_one_half(
    low: float | None, high: float | None, biased: bool
) -> None:
    assert annotators.prefers_a_position(Estimate(0.5, low, high, 20)) is biased
