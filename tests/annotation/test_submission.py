from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from app.annotation import leasing, submission
from app.annotation.models import Annotation, Annotator, Assignment, AssignmentState
from app.annotation.scales import Scale
from app.annotation.submission import Answer
from app.campaigns.models import Campaign, CampaignState
from app.comparisons.models import Comparison, ComparisonState
from app.core.db import transaction
from app.core.errors import Conflict, Invalid, NotFound
from tests.annotation.test_leasing import expire
from tests.factories import add_pairs, make_annotator, make_campaign

IDS = ["00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"]


def given(session: Session, **campaign: object) -> tuple[Campaign, Annotator, Assignment]:
    made = make_campaign(session, **campaign)
    add_pairs(session, made, 2)
    annotator = make_annotator(session)
    assignment = leasing.next_assignment(session, made, annotator)
    assert assignment
    return made, annotator, assignment


def prefer_first(assignment: Assignment, strength: int | None = 1, **more: object) -> Answer:
    first, second = assignment.shown
    return Answer([[first], [second]], strength, **more)  # type: ignore[arg-type]


def stored(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(Annotation)) or 0


def test_the_answer_is_stored_by_completion_and_not_by_side(session: Session) -> None:
    campaign, _, assignment = given(session)
    left, right = assignment.shown
    kept = submission.submit(session, campaign, assignment, Answer([[right], [left]], 3, comment="kinder")).annotation
    assert kept.ranking == [[right], [left]]
    assert (kept.strength, kept.comment, kept.version, kept.surplus) == (3, "kinder", 1, False)
    assert kept.guidelines_id is not None


def test_the_last_answer_wanted_resolves_the_comparison(session: Session) -> None:
    campaign, _, assignment = given(session)
    submission.submit(session, campaign, assignment, prefer_first(assignment))
    assert session.get_one(Comparison, assignment.comparison_id).state is ComparisonState.resolved


def test_a_replay_with_the_same_key_returns_what_is_stored(session: Session) -> None:
    campaign, _, assignment = given(session)
    first = submission.submit(session, campaign, assignment, prefer_first(assignment), "key")
    again = submission.submit(session, campaign, assignment, prefer_first(assignment), "key")
    assert again.replayed and again.annotation.id == first.annotation.id and stored(session) == 1


def test_the_same_content_under_another_key_is_stored_once(session: Session) -> None:
    campaign, _, assignment = given(session)
    submission.submit(session, campaign, assignment, prefer_first(assignment), "one tab")
    assert submission.submit(session, campaign, assignment, prefer_first(assignment), "another tab").replayed
    assert stored(session) == 1


def test_different_content_is_the_next_version_and_the_first_is_kept(session: Session) -> None:
    campaign, _, assignment = given(session)
    submission.submit(session, campaign, assignment, prefer_first(assignment, 1))
    kept = submission.submit(session, campaign, assignment, prefer_first(assignment, 2)).annotation
    versions = session.scalars(select(Annotation).order_by(Annotation.version)).all()
    assert kept.version == 2 and [v.superseded_at is None for v in versions] == [False, True]


def test_a_hundred_concurrent_retries_store_one_answer(committing: Engine) -> None:
    with transaction() as session:
        campaign, _, assignment = given(session)

    def send(_: int) -> None:
        with transaction() as session:
            mine = session.get_one(Assignment, assignment.id)
            submission.submit(session, session.get_one(Campaign, campaign.id), mine, prefer_first(mine), "key")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, range(100)))
    with transaction() as session:
        assert stored(session) == 1


def test_an_answer_after_expiry_takes_a_slot_that_is_still_free(session: Session) -> None:
    campaign, _, assignment = given(session)
    expire(session, assignment)
    leasing.release_expired(session)
    session.expire_all()
    kept = submission.submit(session, campaign, assignment, prefer_first(assignment)).annotation
    assert not kept.surplus
    assert session.get_one(Comparison, assignment.comparison_id).open_slots == 0


def test_an_answer_after_somebody_else_took_the_slot_is_kept_as_surplus(session: Session) -> None:
    campaign, _, assignment = given(session)
    expire(session, assignment)
    leasing.release_expired(session)
    session.expire_all()
    other = leasing.next_assignment(session, campaign, make_annotator(session))
    assert other and other.comparison_id == assignment.comparison_id
    kept = submission.submit(session, campaign, assignment, prefer_first(assignment)).annotation
    assert kept.surplus
    assert session.get_one(Comparison, assignment.comparison_id).state is ComparisonState.open


def test_somebody_elses_assignment_is_as_unknown_as_one_that_never_was(session: Session) -> None:
    _, _, assignment = given(session)
    with pytest.raises(NotFound) as theirs:
        submission.own_assignment(session, make_annotator(session), assignment.id)
    with pytest.raises(NotFound) as none:
        submission.own_assignment(session, make_annotator(session), "nonsense")
    assert theirs.value.message == none.value.message


def test_a_skipped_assignment_takes_no_answer(session: Session) -> None:
    campaign, _, assignment = given(session)
    leasing.skip(session, assignment, "other")
    with pytest.raises(Conflict, match="skipped"):
        submission.submit(session, campaign, assignment, prefer_first(assignment))


def test_undo_takes_back_a_skip_that_came_after_the_last_answer(session: Session) -> None:
    campaign, annotator, assignment = given(session)
    leasing.skip(session, assignment, "other", " a typo in A ")
    undone = submission.undo_last(session, campaign, annotator)
    assert (undone.id, undone.state, undone.skip_comment) == (assignment.id, AssignmentState.leased, "a typo in A")
    assert session.get_one(Comparison, assignment.comparison_id).open_slots == 0
    with pytest.raises(Conflict, match="no answer of yours"):
        submission.undo_last(session, campaign, annotator)


def test_a_skip_undone_after_somebody_else_took_the_comparison_leads_to_a_surplus_answer(session: Session) -> None:
    campaign, annotator, assignment = given(session)
    leasing.skip(session, assignment, "other")
    session.expire_all()
    other = leasing.next_assignment(session, campaign, make_annotator(session))
    assert other and other.comparison_id == assignment.comparison_id
    undone = submission.undo_last(session, campaign, annotator)
    assert undone.state is AssignmentState.released
    assert session.get_one(Comparison, assignment.comparison_id).open_slots == 0
    assert submission.submit(session, campaign, undone, prefer_first(undone)).annotation.surplus


def test_a_closed_campaign_takes_no_answer(session: Session) -> None:
    campaign, _, assignment = given(session)
    campaign.state = CampaignState.closed
    with pytest.raises(Conflict, match="closed"):
        submission.submit(session, campaign, assignment, prefer_first(assignment))


def test_a_paused_campaign_still_takes_the_answers_that_are_out(session: Session) -> None:
    campaign, _, assignment = given(session)
    campaign.state = CampaignState.paused
    assert not submission.submit(session, campaign, assignment, prefer_first(assignment)).replayed


def test_undo_gives_the_comparison_back_to_whoever_answered_it(session: Session) -> None:
    campaign, annotator, assignment = given(session)
    submission.submit(session, campaign, assignment, prefer_first(assignment), "key")
    undone = submission.undo_last(session, campaign, annotator)
    comparison = session.get_one(Comparison, assignment.comparison_id)
    assert undone.id == assignment.id and undone.state is AssignmentState.leased
    assert comparison.state is ComparisonState.open and comparison.open_slots == 0
    assert leasing.next_assignment(session, campaign, annotator) is assignment


def test_after_an_undo_the_same_answer_may_come_again_under_the_same_key(session: Session) -> None:
    campaign, annotator, assignment = given(session)
    submission.submit(session, campaign, assignment, prefer_first(assignment), "key")
    submission.undo_last(session, campaign, annotator)
    receipt = submission.submit(session, campaign, assignment, prefer_first(assignment), "key")
    assert not receipt.replayed and receipt.annotation.version == 2 and receipt.annotation.superseded_at is None


def test_undoing_a_surplus_answer_never_makes_a_slot_out_of_nothing(session: Session) -> None:
    campaign, annotator, assignment = given(session)
    expire(session, assignment)
    leasing.release_expired(session)
    session.expire_all()
    leasing.next_assignment(session, campaign, make_annotator(session))
    submission.submit(session, campaign, assignment, prefer_first(assignment))
    undone = submission.undo_last(session, campaign, annotator)
    assert undone.state is AssignmentState.released
    assert session.get_one(Comparison, assignment.comparison_id).open_slots == 0


def test_there_is_nothing_to_undo_before_the_first_answer(session: Session) -> None:
    campaign, annotator, _ = given(session)
    with pytest.raises(Conflict, match="no answer of yours"):
        submission.undo_last(session, campaign, annotator)


@pytest.mark.parametrize(
    ("answer", "scale", "field"),
    [
        (Answer([IDS]), 4, "ranking"),
        (Answer([IDS], strength=1), 7, "strength"),
        (Answer([[IDS[0]], [IDS[1]]], strength=4), 7, "strength"),
        (Answer([[IDS[0]], [IDS[1]]], strength=0), 7, "strength"),
        (Answer([[IDS[0]], [IDS[1]]], flags=["both_bad"]), 7, "flags"),
        (Answer([IDS], flags=["awful"]), 7, "flags"),
        (Answer([[IDS[0]]]), 7, "ranking"),
        (Answer([IDS], comment="x" * 10_001), 7, "comment"),
        (Answer([IDS], elapsed_ms=-1), 7, "elapsed_ms"),
    ],
)
def test_an_answer_that_makes_no_sense_on_the_scale_names_the_field_to_mend(
    answer: Answer, scale: int, field: str
) -> None:
    with pytest.raises(Invalid) as error:
        submission.checked(answer, IDS, Scale(scale))
    assert error.value.field == field


def test_both_bad_is_possible_on_a_scale_without_a_tie() -> None:
    assert submission.checked(Answer([IDS], flags=["both_bad"]), IDS, Scale(4)).is_tie
