import json

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.annotation import leasing, submission
from app.annotation.models import Annotation
from app.annotation.submission import Answer
from app.campaigns.models import Campaign, Prompt, Split
from app.comparisons.models import ComparisonState
from app.core import artifacts
from app.preferences import export, importing, snapshot
from app.preferences.models import DatasetAnnotation
from tests.factories import add_pairs, comparisons_of, make_annotator, make_campaign


def answer_all(session: Session, campaign: Campaign) -> dict[str, list[list[str]]]:
    """Comparison id to the ranking that was submitted for it."""
    annotator, said = make_annotator(session), {}
    while assignment := leasing.next_assignment(session, campaign, annotator):
        first, second = assignment.shown
        ranking = [[first], [second]] if len(said) % 3 else [[first, second]]
        strength = 2 if len(ranking) == 2 else None
        submission.submit(session, campaign, assignment, Answer(ranking, strength))
        said[str(assignment.comparison_id)] = ranking
    return said


def rows(uri: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in artifacts.read_text(uri)]


def test_every_frozen_pair_is_the_judgement_that_was_submitted(session: Session) -> None:
    campaign = make_campaign(session)
    add_pairs(session, campaign, 60)
    said = answer_all(session, campaign)
    frozen = snapshot.freeze(session, campaign)
    kept = rows(frozen.train_uri) + rows(frozen.held_out_uri)
    wanted = {c: (r[0][0], r[1][0]) for c, r in said.items() if len(r) == 2}
    assert {r["comparison_id"]: (r["chosen_id"], r["rejected_id"]) for r in kept} == wanted
    assert frozen.ties == 20 and frozen.annotations == 60
    assert (frozen.train_pairs, frozen.held_out_pairs) == (len(rows(frozen.train_uri)), len(rows(frozen.held_out_uri)))


def test_no_prompt_is_on_both_sides_of_the_split(session: Session) -> None:
    campaign = make_campaign(session)
    add_pairs(session, campaign, 60)
    answer_all(session, campaign)
    frozen = snapshot.freeze(session, campaign)
    train, held_out = ({str(r["prompt"]) for r in rows(u)} for u in (frozen.train_uri, frozen.held_out_uri))
    assert train and held_out and not train & held_out
    split = select(func.count()).where(Prompt.campaign_id == campaign.id, Prompt.split == Split.held_out)
    assert len(held_out) <= (session.scalar(split) or 0)


def test_the_same_answers_give_the_same_snapshot_to_the_byte(session: Session) -> None:
    campaign = make_campaign(session)
    add_pairs(session, campaign, 12)
    answer_all(session, campaign)
    assert snapshot.freeze(session, campaign).sha256 == snapshot.freeze(session, campaign).sha256


def test_a_snapshot_does_not_change_when_an_answer_does(session: Session) -> None:
    campaign = make_campaign(session)
    add_pairs(session, campaign, 12)
    annotator = make_annotator(session)
    while assignment := leasing.next_assignment(session, campaign, annotator):
        submission.submit(session, campaign, assignment, Answer([[i] for i in assignment.shown], 1))
    frozen = snapshot.freeze(session, campaign)
    before = rows(frozen.train_uri) + rows(frozen.held_out_uri)
    undone = submission.undo_last(session, campaign, annotator)
    submission.submit(session, campaign, undone, Answer([[i] for i in reversed(undone.shown)], 3))
    assert rows(frozen.train_uri) + rows(frozen.held_out_uri) == before
    assert snapshot.freeze(session, campaign).sha256 != frozen.sha256


def test_a_snapshot_knows_the_answers_it_was_made_from(session: Session) -> None:
    campaign = make_campaign(session)
    add_pairs(session, campaign, 6)
    answer_all(session, campaign)
    frozen = snapshot.freeze(session, campaign)
    held = session.scalars(select(DatasetAnnotation.annotation_id).where(DatasetAnnotation.dataset_id == frozen.id))
    assert set(held) == set(session.scalars(select(Annotation.id)))


def test_discarded_and_gold_comparisons_train_nothing(session: Session) -> None:
    campaign = make_campaign(session)
    add_pairs(session, campaign, 3, gold=[[0], [1]])
    importing.import_comparisons(session, campaign, [(1, {"prompt": "Why?", "chosen": "a", "rejected": "b"})])
    labelled = comparisons_of(session, campaign)[-1]
    answer_all(session, campaign)
    assert len(list(snapshot.answers(session, campaign))) == 1
    labelled.state = ComparisonState.discarded
    session.flush()
    assert list(snapshot.answers(session, campaign)) == []


def test_an_annotator_has_different_pseudonyms_in_different_campaigns(session: Session) -> None:
    one, other, annotator = make_campaign(session), make_campaign(session), make_annotator(session)
    assert snapshot.pseudonym(one.id, annotator.id) != snapshot.pseudonym(other.id, annotator.id)


def test_jsonl_and_parquet_hold_the_same_rows(session: Session) -> None:
    import io

    import pyarrow.parquet as pq

    campaign = make_campaign(session)
    add_pairs(session, campaign, 9)
    answer_all(session, campaign)
    lines = [json.loads(line) for line in export.jsonl(session, campaign)]
    table = pq.read_table(io.BytesIO(export.parquet(session, campaign))).to_pylist()
    assert lines == table and len(lines) == 6


@pytest.mark.parametrize("overlap", [1, 2])
def test_imported_labels_are_answers_and_leave_the_slots_that_are_left(session: Session, overlap: int) -> None:
    campaign = make_campaign(session, overlap=overlap)
    row = {"prompt": "Why?", "completions": ["a", "b"], "annotations": [{"annotator": "w", "ranking": [[1], [0]]}]}
    report = importing.import_comparisons(session, campaign, [(1, row)])
    session.expire_all()
    [comparison] = comparisons_of(session, campaign)
    [answer] = snapshot.answers(session, campaign)
    assert report.created == 1 and comparison.open_slots == overlap - 1
    assert comparison.state is (ComparisonState.resolved if overlap == 1 else ComparisonState.open)
    assert [answer.texts[better] for better, _ in answer.ranking.pairs()] == ["b"]


def test_importing_a_file_twice_changes_nothing(session: Session) -> None:
    campaign = make_campaign(session)
    row = {"prompt": "Why?", "chosen": "a", "rejected": "b"}
    importing.import_comparisons(session, campaign, [(1, row)])
    again = importing.import_comparisons(session, campaign, [(1, row)])
    assert (again.created, again.duplicates) == (0, 1)
    assert len(list(snapshot.answers(session, campaign))) == 1


def test_the_malformed_line_731_of_a_thousand_is_named(session: Session) -> None:
    lines = [json.dumps({"prompt": f"Q{n}", "completions": ["a", "b"]}).encode() for n in range(1, 1001)]
    lines[730] = b'{"prompt": "Q731", "completions": ["a", '
    lines[99] = b'{"prompt": "\xff"}'
    report = importing.import_comparisons(session, make_campaign(session), importing.lines(lines))
    assert report.created == 998 and [bad["line"] for bad in report.rejected] == [100, 731]
    assert "UTF-8" in report.rejected[0]["error"]
