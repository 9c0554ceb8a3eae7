import csv

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.campaigns import prompts
from app.campaigns.models import CampaignState, Prompt
from tests.factories import make_campaign


def test_each_prompt_is_stored_once(session: Session) -> None:
    campaign = make_campaign(session, state=CampaignState.draft)
    report = prompts.add(session, campaign, prompts.read("Why?\nHow?\nWhy?\n", "lines"))
    assert (report.created, report.duplicates) == (2, 1)
    assert prompts.add(session, campaign, prompts.read("How?", "lines")).duplicates == 1


def test_the_bad_lines_of_an_upload_are_named_and_the_good_ones_kept(session: Session) -> None:
    campaign = make_campaign(session)
    lines = [f'{{"prompt": "Question {n}?"}}' for n in range(1, 1001)]
    lines[730] = '{"prompt": "Question 731?"'
    lines[8] = '{"prompt": "  "}'
    report = prompts.add(session, campaign, prompts.read("\n".join(lines), "jsonl"))
    assert report.created == 998
    assert [bad["line"] for bad in report.rejected] == [9, 731]
    assert "empty" in report.rejected[0]["error"] and "not valid JSON" in report.rejected[1]["error"]


def test_a_prompt_of_a_megabyte_is_refused_with_its_length(session: Session) -> None:
    report = prompts.add(session, make_campaign(session), [(1, "x" * 2**20)])
    assert report.created == 0 and "1,048,576 characters" in report.rejected[0]["error"]


def test_a_csv_needs_its_column(session: Session) -> None:
    report = prompts.add(session, make_campaign(session), prompts.read("question\nWhy?\n", "csv"))
    assert "column named prompt" in report.rejected[0]["error"]


def test_a_csv_field_may_hold_a_line_break(session: Session) -> None:
    campaign = make_campaign(session)
    prompts.add(session, campaign, prompts.read('prompt\n"Why?\nReally?"\n', "csv"))
    assert session.scalars(select(Prompt.messages)).one() == [{"role": "user", "content": "Why?\nReally?"}]


def test_a_short_csv_leaves_long_fields_readable_for_the_rest_of_the_process(session: Session) -> None:
    prompts.add(session, make_campaign(session), prompts.read("prompt\nWhy?\n", "csv"))
    assert next(csv.reader(["x" * 200_000])) == ["x" * 200_000]


def test_about_a_fifth_of_the_prompts_is_held_out_and_always_the_same_ones(session: Session) -> None:
    campaign, other = make_campaign(session), make_campaign(session)
    values = [(n, f"Question {n}?") for n in range(1000)]
    for one in (campaign, other):
        prompts.add(session, one, values)

    def held_out(of: object) -> set[str]:
        return set(
            session.scalars(select(Prompt.fingerprint).where(Prompt.campaign_id == of, Prompt.split == "held_out"))
        )

    assert held_out(campaign.id) == held_out(other.id)
    assert 150 < len(held_out(campaign.id)) < 250


def test_nested_or_infinite_json_is_refused() -> None:
    values = dict(prompts.read("[" * 100_000 + "\nNaN\n", "jsonl"))
    assert "nested" in str(values[1]) and "NaN" in str(values[2])
