import threading
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from app.annotation import leasing, submission
from app.annotation.models import Annotation, Annotator, Assignment, AssignmentState
from app.annotation.submission import Answer
from app.campaigns.models import Campaign, CampaignState
from app.comparisons.models import Comparison, ComparisonState
from app.core.db import transaction
from app.core.errors import Conflict, Invalid
from tests.factories import add_pairs, comparisons_of, make_annotator, make_campaign


def expire(session: Session, assignment: Assignment) -> None:
    session.execute(
        update(Assignment).where(Assignment.id == assignment.id).values(expires_at=func.now() - timedelta(minutes=1))
    )
    session.refresh(assignment)


def test_a_claim_takes_a_slot(session: Session) -> None:
    campaign = make_campaign(session, overlap=2)
    add_pairs(session, campaign, 1)
    leasing.next_assignment(session, campaign, make_annotator(session))
    assert [c.open_slots for c in session.scalars(select(Comparison).execution_options(populate_existing=True))] == [1]


def test_an_unanswered_assignment_comes_back_before_a_new_one_is_leased(session: Session) -> None:
    campaign = make_campaign(session)
    add_pairs(session, campaign, 3)
    annotator = make_annotator(session)
    first = leasing.next_assignment(session, campaign, annotator)
    assert leasing.next_assignment(session, campaign, annotator) is first


def test_what_the_caller_holds_is_not_given_again(session: Session) -> None:
    campaign = make_campaign(session)
    add_pairs(session, campaign, 3)
    annotator = make_annotator(session)
    first = leasing.next_assignment(session, campaign, annotator)
    assert first
    second = leasing.next_assignment(session, campaign, annotator, holding={first.id})
    assert second and second.comparison_id != first.comparison_id


def test_nobody_hoards(session: Session) -> None:
    campaign = make_campaign(session)
    add_pairs(session, campaign, 9)
    annotator = make_annotator(session)
    held: set[uuid.UUID] = set()
    for _ in range(leasing.MAX_LIVE):
        assignment = leasing.next_assignment(session, campaign, annotator, held)
        assert assignment
        held.add(assignment.id)
    with pytest.raises(Conflict, match="answer or skip"):
        leasing.next_assignment(session, campaign, annotator, held)


def test_nothing_is_left_when_every_slot_is_taken(session: Session) -> None:
    campaign = make_campaign(session)
    add_pairs(session, campaign, 1)
    leasing.next_assignment(session, campaign, make_annotator(session))
    assert leasing.next_assignment(session, campaign, make_annotator(session)) is None


def test_higher_priority_is_served_first(session: Session) -> None:
    campaign = make_campaign(session)
    add_pairs(session, campaign, 3)
    wanted = comparisons_of(session, campaign)[2]
    wanted.priority = 5
    session.flush()
    assignment = leasing.next_assignment(session, campaign, make_annotator(session))
    assert assignment and assignment.comparison_id == wanted.id


@pytest.mark.parametrize("state", [CampaignState.draft, CampaignState.paused, CampaignState.closed])
def test_only_an_active_campaign_serves(session: Session, state: CampaignState) -> None:
    campaign = make_campaign(session, state=state)
    add_pairs(session, campaign, 1)
    with pytest.raises(Conflict, match=state.value):
        leasing.next_assignment(session, campaign, make_annotator(session))


def test_an_expired_lease_returns_its_slot_and_somebody_else_gets_it(session: Session) -> None:
    campaign = make_campaign(session)
    add_pairs(session, campaign, 1)
    late = leasing.next_assignment(session, campaign, make_annotator(session))
    assert late
    expire(session, late)
    assert leasing.release_expired(session) == 1
    again = leasing.next_assignment(session, campaign, make_annotator(session))
    assert again and again.comparison_id == late.comparison_id


def test_after_expiry_the_same_annotator_may_lease_the_same_comparison_again(session: Session) -> None:
    campaign = make_campaign(session)
    add_pairs(session, campaign, 1)
    annotator = make_annotator(session)
    late = leasing.next_assignment(session, campaign, annotator)
    assert late
    shown = late.shown
    expire(session, late)
    leasing.release_expired(session)
    session.expire_all()
    again = leasing.next_assignment(session, campaign, annotator)
    assert again and again.id == late.id and again.shown == shown
    assert again.state is AssignmentState.leased


def test_a_live_lease_is_not_released(session: Session) -> None:
    campaign = make_campaign(session)
    add_pairs(session, campaign, 1)
    leasing.next_assignment(session, campaign, make_annotator(session))
    assert leasing.release_expired(session) == 0


def test_a_skipped_comparison_goes_to_somebody_else_and_does_not_come_back(session: Session) -> None:
    campaign = make_campaign(session)
    add_pairs(session, campaign, 1)
    annotator = make_annotator(session)
    assignment = leasing.next_assignment(session, campaign, annotator)
    assert assignment
    leasing.skip(session, assignment, "broken_prompt")
    leasing.skip(session, assignment, "broken_prompt")
    assert leasing.next_assignment(session, campaign, annotator) is None
    assert leasing.next_assignment(session, campaign, make_annotator(session)) is not None


def test_a_skip_needs_a_known_reason(session: Session) -> None:
    campaign = make_campaign(session)
    add_pairs(session, campaign, 1)
    assignment = leasing.next_assignment(session, campaign, make_annotator(session))
    assert assignment
    with pytest.raises(Invalid, match="cannot_judge"):
        leasing.skip(session, assignment, "bored")


@pytest.mark.parametrize("overlap", [1, 3])
def test_fifty_concurrent_annotators_give_every_comparison_exactly_its_overlap(
    committing: Engine, overlap: int
) -> None:
    comparisons = 150
    with transaction() as session:
        campaign = make_campaign(session, overlap=overlap)
        add_pairs(session, campaign, comparisons)
        annotators = [make_annotator(session, campaign).id for _ in range(50)]
    errors: list[Exception] = []
    start = threading.Barrier(8)

    def work(mine: list[uuid.UUID]) -> None:
        start.wait()
        busy = list(mine)
        while busy:
            for one in list(busy):
                try:
                    if not answer_one(campaign.id, one):
                        busy.remove(one)
                except Exception as error:  # noqa: BLE001
                    errors.append(error)
                    busy.remove(one)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [annotators[i::8] for i in range(8)]))
    assert errors == []
    with transaction() as session:
        answers = session.execute(select(Annotation.comparison_id, Annotation.annotator_id)).all()
        assert len(answers) == len(set(answers)) == comparisons * overlap
        assert set(Counter(c for c, _ in answers).values()) == {overlap}
        left = session.execute(select(Comparison.open_slots, Comparison.state).distinct()).all()
        assert left == [(0, ComparisonState.resolved)]


def answer_one(campaign_id: uuid.UUID, annotator_id: uuid.UUID) -> bool:
    with transaction() as session:
        campaign, annotator = session.get_one(Campaign, campaign_id), session.get_one(Annotator, annotator_id)
        assignment = leasing.next_assignment(session, campaign, annotator)
    if assignment is None:
        return False
    with transaction() as session:
        mine = session.get_one(Assignment, assignment.id)
        first, second = mine.shown
        submission.submit(session, session.get_one(Campaign, campaign_id), mine, Answer([[first], [second]], 1))
    return True


def test_two_tabs_of_one_annotator_never_claim_the_same_comparison(committing: Engine) -> None:
    with transaction() as session:
        campaign = make_campaign(session, overlap=2)
        add_pairs(session, campaign, 3)
        annotator = make_annotator(session)

    def claim(_: int) -> uuid.UUID | None:
        try:
            with transaction() as session:
                everything = set(session.scalars(select(Assignment.id)))
                one = leasing.next_assignment(
                    session,
                    session.get_one(Campaign, campaign.id),
                    session.get_one(Annotator, annotator.id),
                    everything,
                )
                return one.comparison_id if one else None
        except Conflict:
            return None

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(claim, range(12)))
    with transaction() as session:
        claimed = session.scalars(select(Assignment.comparison_id)).all()
        slots = sum(session.scalars(select(Comparison.open_slots)))
    assert 1 <= len(claimed) == len(set(claimed)) <= leasing.MAX_LIVE
    assert slots == 6 - len(claimed)
