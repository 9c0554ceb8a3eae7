import uuid

from sqlalchemy import update
from sqlalchemy.orm import Session

from app.annotation import leasing, submission
from app.annotation.models import Annotation
from app.annotation.submission import Answer
from app.comparisons.models import Comparison
from tests.annotation.test_leasing import expire
from tests.factories import add_pairs, make_annotator, make_campaign
from workers import invariants


def test_they_hold_through_answers_skips_undos_expiry_and_late_answers(session: Session) -> None:
    campaign = make_campaign(session, overlap=2)
    add_pairs(session, campaign, 6)
    annotators = [make_annotator(session) for _ in range(3)]
    for n in range(8):
        annotator = annotators[n % 3]
        assignment = leasing.next_assignment(session, campaign, annotator)
        assert assignment
        if n == 2:
            leasing.skip(session, assignment, "other")
            continue
        if n == 4:
            expire(session, assignment)
            leasing.release_expired(session)
            session.expire_all()
        submission.submit(session, campaign, assignment, Answer([[i] for i in assignment.shown], 1))
        if n == 5:
            submission.undo_last(session, campaign, annotator)
        assert invariants.broken(session) == {}


def test_a_slot_that_went_missing_is_noticed(session: Session) -> None:
    campaign = make_campaign(session)
    add_pairs(session, campaign, 1)
    session.execute(update(Comparison).values(open_slots=0))
    assert [name for name in invariants.broken(session) if "add up" in name]


def test_an_answer_of_somebody_else_is_noticed(session: Session) -> None:
    campaign = make_campaign(session)
    add_pairs(session, campaign, 1)
    assignment = leasing.next_assignment(session, campaign, make_annotator(session))
    assert assignment
    submission.submit(session, campaign, assignment, Answer([[i] for i in assignment.shown], 1))
    session.execute(update(Annotation).values(annotator_id=make_annotator(session).id))
    found = invariants.broken(session)
    assert list(found) == ["an answer, its assignment and its comparison are of one campaign and one annotator"]
    assert uuid.UUID(found[next(iter(found))][0])
