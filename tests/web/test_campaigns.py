"""The lead's campaign screens over HTTP: setting up, running, and bad input answered with what to mend."""

import json
import re
import uuid
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import pytest
from sqlalchemy import func, select, update

from app.accounts.models import CampaignRole, Link, Membership, Role
from app.annotation import leasing, submission
from app.annotation.models import Annotation
from app.campaigns import prompts
from app.campaigns.models import Campaign, CampaignState, Guidelines, Prompt
from app.comparisons.models import Comparison
from app.core.db import transaction
from app.rounds import lifecycle as rounds
from app.rounds.models import Round, Run, Stage
from tests.factories import add_pairs, make_policy
from tests.web.conftest import Browser, World

FORM = {"name": "Kind answers", "overlap": "1", "scale": "7", "method": "dpo", "batch_prompts": "100"}


@pytest.fixture
def lead(world: World) -> Browser:
    return world.browser("lead")


def said(response: Any) -> str:
    """The text of a page, without markup."""
    body = re.sub(r"<(script|style).*?</\1>", "", response.text, flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def upload(browser: Browser, path: str, field: str, file: tuple[str, str | bytes], **fields: Any) -> Any:
    return browser.client.post(path, data={"csrf": browser.csrf, **fields}, files={field: file})


def made(response: Any) -> Campaign:
    assert response.status_code == 303, said(response)
    with transaction() as session:
        return session.get_one(Campaign, uuid.UUID(response.headers["location"].rpartition("/")[2]))


def count(what: Any, campaign: uuid.UUID) -> int:
    with transaction() as session:
        return session.scalar(select(func.count()).where(what.campaign_id == campaign)) or 0


def names() -> set[str]:
    with transaction() as session:
        return set(session.scalars(select(Campaign.name)))


def draft(world: World) -> str:
    with transaction() as session:
        session.get_one(Campaign, world.campaign).state = CampaignState.draft
    return f"/campaigns/{world.campaign}"


# ---- the list ----


def test_the_list_holds_the_campaigns_that_one_leads_and_no_others(world: World, lead: Browser) -> None:
    page = said(lead.get("/campaigns"))
    assert "First" in page and "Second" not in page
    assert "Second" in said(world.browser("admin").get("/campaigns"))


def test_who_leads_nothing_learns_what_a_campaign_is_for(world: World) -> None:
    with transaction() as session:
        for campaign in session.scalars(select(Campaign)):
            session.delete(campaign)
    assert "Set up your first campaign" in said(world.browser("lead").get("/campaigns"))
    assert "You run no campaign" in said(world.browser("annotator").get("/campaigns"))


def test_an_annotator_may_not_open_a_leads_page(world: World) -> None:
    annotator = world.browser("annotator")
    for path in ("", "/pulse", "/quality", "/people", "/prompts", "/settings", "/preview"):
        assert annotator.get(f"/campaigns/{world.campaign}{path}").status_code == 403, path
    assert annotator.get("/campaigns/new").status_code == 403


# ---- setting up ----


def test_a_campaign_is_made_with_its_prompts_and_stores_only_what_differs_from_the_defaults(lead: Browser) -> None:
    typed = {**FORM, "prompts": "How are you?\n\nWhat is rain?\n", "guidelines": "Be kind.", "every_annotations": "250"}
    campaign = made(lead.submit("/campaigns/new", **typed, **{"reward.epochs": "3", "dpo.beta": "0.1"}))
    assert campaign.state is CampaignState.draft
    assert campaign.recipe == {"every_annotations": 250, "reward": {"epochs": 3.0}}
    assert count(Prompt, campaign.id) == 2


def test_the_form_shows_the_defaults_and_the_bounds_of_the_recipes(lead: Browser) -> None:
    page = lead.get("/campaigns/new").text
    assert 'name="reward.learning_rate"' in page and "Pseudo" not in page
    assert "Fewer training pairs than this are refused. Default: 10." in unescape(page)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "   ", "Give the campaign a name"),
        ("overlap", "0", "from 1 to 50"),
        ("overlap", "many", "from 1 to 50"),
        ("scale", "6", "The scale must have"),
        ("batch_prompts", "0", "Enter a whole number from 1 to 100,000."),
        ("reward.learning_rate", "2", "Enter a number above 0, at most 1."),
        ("dpo.label_smoothing", "0.5", "Enter a number at least 0, below 0.5."),
        ("ppo.steps", "none", "Enter a whole number from 1 to 1,000,000, or nothing."),
        ("every_hours", "nan", "Enter a number above 0, at most 10,000, or nothing."),
        ("gate.kl.at_most", "far", "Enter a number, or nothing for no threshold."),
        ("method", "sft", "Choose one of dpo, ppo."),
        ("policy", "12", "Choose one of the policies."),
    ],
)
def test_a_bad_value_is_answered_beside_its_field_and_nothing_typed_is_lost(
    lead: Browser, field: str, value: str, message: str
) -> None:
    typed = {**FORM, "guidelines": "Mind the <tone>.", "prompts": "One?\nTwo?", "gate.kl.at_least": "", field: value}
    response = lead.submit("/campaigns/new", **typed)
    assert response.status_code == 422
    assert message in said(response)
    assert "Mind the &lt;tone&gt;." in response.text and "One?\nTwo?" in response.text
    assert "Kind answers" not in names()


def test_all_faults_of_a_form_are_named_at_once(lead: Browser) -> None:
    page = said(lead.submit("/campaigns/new", **(FORM | {"name": " ", "overlap": "0", "ppo.clip": "7"})))
    assert "Nothing was saved yet: 3 fields below need another look." in page


def test_a_gate_whose_thresholds_cross_is_refused(lead: Browser) -> None:
    response = lead.submit("/campaigns/new", **FORM, **{"gate.kl.at_least": "5", "gate.kl.at_most": "4"})
    assert response.status_code == 422 and "nothing could pass" in said(response)


def test_a_prompt_of_a_megabyte_is_named_by_its_line_and_stays_in_the_field(lead: Browser) -> None:
    response = lead.submit("/campaigns/new", **FORM, prompts="Short?\n" + "x" * 1_000_000)
    assert response.status_code == 422
    assert "Line 2" in said(response) and "1,000,000 characters long; at most 100,000" in said(response)
    assert "x" * 1_000_000 in response.text


def test_the_good_prompts_of_a_refused_upload_are_kept_and_need_not_be_chosen_again(lead: Browser) -> None:
    lines = [json.dumps({"prompt": f"Question {n}?"}) for n in range(1, 21)]
    lines[6] = '{"prompt": "cut'
    response = upload(lead, "/campaigns/new", "file", ("p.jsonl", "\n".join(lines)), **FORM)
    assert response.status_code == 422
    assert "Line 7" in said(response) and "19 prompts from your file are kept" in said(response)
    kept = unescape(re.search(r'<textarea name="kept" hidden>\n(.*?)</textarea>', response.text, re.S)[1])  # type: ignore[index]
    campaign = made(lead.submit("/campaigns/new", **FORM, kept=kept))
    assert count(Prompt, campaign.id) == 19


def test_a_csv_without_the_column_says_which_columns_it_has(lead: Browser) -> None:
    response = upload(lead, "/campaigns/new", "file", ("p.csv", "question,id\nWhy?,1\n"), **FORM)
    assert response.status_code == 422
    assert "The CSV needs a column named prompt in its first line, which has 'question', 'id'." in said(response)


def test_a_file_that_is_not_text_is_refused_in_words(lead: Browser) -> None:
    response = upload(lead, "/campaigns/new", "file", ("p.txt", b"fine\n\xff\xfe\x00"), **FORM)
    assert response.status_code == 422 and "p.txt is not UTF-8 text (line 2)" in said(response)


# ---- settings ----


def test_settings_change_what_may_change_and_guidelines_get_a_version(world: World, lead: Browser) -> None:
    path = f"/campaigns/{world.campaign}/settings"
    response = lead.submit(path, **(FORM | {"name": "Kinder answers", "guidelines": "New.", "method": "ppo"}))
    assert response.status_code == 303
    with transaction() as session:
        campaign = session.get_one(Campaign, world.campaign)
        assert (campaign.name, campaign.recipe) == ("Kinder answers", {"method": "ppo"})
    assert count(Guidelines, world.campaign) == 2
    page = said(lead.get(path))
    assert "Version 2" in page and "Version 1" in page and "Prefer the kinder answer." in page


def test_overlap_and_scale_stay_as_they_are_once_a_campaign_is_active(world: World, lead: Browser) -> None:
    path = f"/campaigns/{world.campaign}/settings"
    response = lead.submit(path, **(FORM | {"scale": "5"}))
    assert response.status_code == 409 and "cannot change once" in said(response)
    unsent = {key: value for key, value in FORM.items() if key not in ("scale", "overlap")}
    assert lead.submit(path, **unsent).status_code == 303


def test_a_policy_chosen_later_opens_the_first_round(world: World, lead: Browser) -> None:
    with transaction() as session:
        policy = make_policy(session)
    assert lead.submit(f"/campaigns/{world.campaign}/settings", **FORM, policy=str(policy.id)).status_code == 303
    with transaction() as session:
        campaign = session.get_one(Campaign, world.campaign)
        assert campaign.initial_policy_id == campaign.policy_id == policy.id
        assert rounds.live_round(session, world.campaign) is not None


def test_guidelines_are_previewed_without_their_html(lead: Browser) -> None:
    response = lead.submit("/campaigns/guidelines-preview", guidelines="Be **kind**. <script>alert(1)</script>")
    assert "<strong>kind</strong>" in response.text and "<script>" not in response.text


def test_the_preview_shows_the_annotators_screen_switched_off(world: World, lead: Browser) -> None:
    path = f"/campaigns/{world.campaign}/preview"
    assert "Nothing to show yet" in said(lead.get(path))
    with transaction() as session:
        campaign = session.get_one(Campaign, world.campaign)
        prompts.add(session, campaign, [(1, "Only a prompt?")])
    page = said(lead.get(path))
    assert "Only a prompt?" in page and "One answer of the model will stand here." in page
    with transaction() as session:
        add_pairs(session, session.get_one(Campaign, world.campaign), 1)
    page = lead.get(path).text
    assert "First 1." in page and '<fieldset class="switched-off" disabled>' in page


# ---- the overview and its buttons ----


def test_a_campaign_without_prompts_is_not_activated_and_says_what_is_missing(world: World, lead: Browser) -> None:
    path = draft(world)
    response = lead.submit(f"{path}/activate")
    assert response.status_code == 409
    assert "This campaign has no prompts yet" in said(response)
    assert "state draft" not in said(response)
    with transaction() as session:
        assert session.get_one(Campaign, world.campaign).state is CampaignState.draft


def test_activating_with_a_policy_opens_the_first_round(world: World, lead: Browser) -> None:
    path = draft(world)
    with transaction() as session:
        campaign = session.get_one(Campaign, world.campaign)
        campaign.policy_id = campaign.initial_policy_id = make_policy(session).id
        prompts.add(session, campaign, [(1, "Why?")])
    assert lead.submit(f"{path}/activate").status_code == 303
    assert count(Round, world.campaign) == 1
    assert "Round 1" in said(lead.get(path))


def test_pausing_and_closing_say_what_they_mean(world: World, lead: Browser) -> None:
    path = f"/campaigns/{world.campaign}"
    with transaction() as session:
        add_pairs(session, session.get_one(Campaign, world.campaign), 4)
    assert "4 answers still wanted will never be given" in said(lead.get(path))
    assert lead.submit(f"{path}/pause").status_code == 303
    assert lead.submit(f"{path}/pause").status_code == 409
    assert lead.submit(f"{path}/close").status_code == 303
    again = lead.submit(f"{path}/activate")
    assert again.status_code == 409 and "This campaign is closed" in said(again)


def answer(world: World, times: int) -> None:
    with transaction() as session:
        campaign = session.get_one(Campaign, world.campaign)
        add_pairs(session, campaign, times)
        annotator = leasing.annotator_of(session, session.merge(world.users["annotator"]))
        for n in range(times):
            lease = leasing.next_assignment(session, campaign, annotator)
            assert lease is not None
            said = submission.Answer([[lease.shown[0]], [lease.shown[1]]], strength=1, elapsed_ms=5000)
            submission.submit(session, campaign, lease, said, key=str(n))


def test_a_round_started_with_three_answers_is_refused_in_place(world: World, lead: Browser) -> None:
    with transaction() as session:
        campaign = session.get_one(Campaign, world.campaign)
        campaign.policy_id = campaign.initial_policy_id = make_policy(session).id
    answer(world, 3)
    response = lead.submit(f"/campaigns/{world.campaign}/start-round")
    assert response.status_code == 409
    assert "a round needs at least 10. Collect more answers first." in said(response)
    assert "Annotators" in said(response)
    with transaction() as session:
        assert not session.scalars(select(Run).where(Run.stage == Stage.reward)).all()


def test_the_overview_counts_answers_and_shows_no_figure_where_there_is_too_little(world: World, lead: Browser) -> None:
    answer(world, 3)
    page = said(lead.get(f"/campaigns/{world.campaign}"))
    assert "3 of 3" in page and "All answered." in page
    assert "not enough data" in page and "nan" not in page.lower().split()
    assert "Nothing is left to annotate" in page


def test_an_annotator_who_prefers_a_position_is_pointed_out_in_words(world: World, lead: Browser) -> None:
    answer(world, 12)
    page = said(lead.get(f"/campaigns/{world.campaign}/quality"))
    assert "chose the response shown first in 100 % of 12 preferences" in page


def test_twenty_quick_minutes_are_not_told_as_thousands_of_answers_a_day(world: World, lead: Browser) -> None:
    answer(world, 12)
    began = datetime.now(UTC) - timedelta(minutes=20)
    with transaction() as session:
        session.execute(update(Annotation).values(created_at=began))
    page = lead.get(f"/campaigns/{world.campaign}/pulse").text
    told = re.search(r'Answers per day.*?stat-value">([^<]*)<', page, re.S)
    assert told and 0 < float(told[1].replace(",", "")) <= 12
    assert "864" not in page  # what 12 in 20 minutes would come to


def test_the_moving_part_is_a_fragment_of_its_own(world: World, lead: Browser) -> None:
    response = lead.get(f"/campaigns/{world.campaign}/pulse", headers={"HX-Request": "true"})
    assert response.status_code == 200 and "<html" not in response.text
    assert f'data-live="/campaigns/{world.campaign}/live"' in response.text


# ---- prompts and comparisons ----


def test_pasted_prompts_are_stored_each_once_and_empty_lines_are_passed_over(world: World, lead: Browser) -> None:
    path = f"/campaigns/{world.campaign}/prompts"
    assert lead.submit(path, prompts="One?\n\n  \nTwo?\nOne?").status_code == 303
    assert count(Prompt, world.campaign) == 2
    assert "Paste some prompts, or choose a file." in said(lead.submit(path, prompts="  \n "))


def test_an_empty_prompt_in_a_file_is_named_and_the_others_are_kept(world: World, lead: Browser) -> None:
    text = '{"prompt": "Why?"}\n{"prompt": ""}\n"How?"\n{"prompt": 3}\n'
    response = upload(lead, f"/campaigns/{world.campaign}/prompts", "file", ("p.jsonl", text))
    page = said(response)
    assert "2 added" in page and "Line 2" in page and "The message is empty" in page and "Line 4" in page
    assert count(Prompt, world.campaign) == 2


def test_a_pasted_prompt_that_is_too_long_comes_back_to_be_mended(world: World, lead: Browser) -> None:
    response = lead.submit(f"/campaigns/{world.campaign}/prompts", prompts="Why?\n" + "y" * 1_000_000)
    assert "1 added" in said(response) and "Line 2" in said(response)
    assert count(Prompt, world.campaign) == 1


def test_the_malformed_line_731_of_a_thousand_is_named_and_the_rest_stored(world: World, lead: Browser) -> None:
    lines = [json.dumps({"prompt": f"Q{n}?", "chosen": "good", "rejected": "bad"}) for n in range(1, 1001)]
    lines[730] = lines[730][:-5]
    path = f"/campaigns/{world.campaign}/prompts/comparisons"
    response = upload(lead, path, "comparisons", ("pairs.jsonl", "\n".join(lines)))
    page = said(response)
    assert "999 added" in page and "1 line left out" in page and "Line 731" in page and "not valid JSON" in page
    assert count(Comparison, world.campaign) == 999


def test_a_file_of_which_nothing_is_good_is_not_told_as_stored(world: World, lead: Browser) -> None:
    path = f"/campaigns/{world.campaign}/prompts/comparisons"
    response = upload(lead, path, "comparisons", ("pairs.jsonl", '{"nope": 1}\n42\n'))
    page = said(response)
    assert "2 lines left out" in page and "Nothing was stored" in page and "What was good is stored" not in page


def test_prompts_are_found_by_what_they_say_whatever_signs_that_has(world: World, lead: Browser) -> None:
    path = f"/campaigns/{world.campaign}/prompts"
    lead.submit(
        path, prompts="\n".join(["100 % sure?", "1000 sure?", "snake_case?", *(f"Filler {n}" for n in range(40))])
    )
    assert "100 % sure?" in (page := said(lead.get(f"{path}?q=100 %25"))) and "1000 sure?" not in page
    assert "Page 2 of 2" in said(lead.get(f"{path}?page=2"))
    assert "No prompt holds that text" in said(lead.get(f"{path}?q=nowhere"))


def test_what_a_prompt_says_is_text_and_never_markup(world: World, lead: Browser) -> None:
    path = f"/campaigns/{world.campaign}/prompts"
    lead.submit(path, prompts="<img src=x onerror=alert(1)> " + "long " * 60)
    page = lead.get(path).text
    assert "<img" not in page and "&lt;img" in page


def test_a_batch_is_sampled_once_at_a_time_and_only_with_a_policy(world: World, lead: Browser) -> None:
    path = f"/campaigns/{world.campaign}/prompts"
    lead.submit(path, prompts="One?\nTwo?")
    assert "no policy to sample from" in said(lead.submit(f"{path}/sample"))
    with transaction() as session:
        session.get_one(Campaign, world.campaign).policy_id = make_policy(session).id
    assert lead.submit(f"{path}/sample").status_code == 303
    again = lead.submit(f"{path}/sample")
    assert again.status_code == 409 and "is being sampled already" in said(again)
    assert count(Run, world.campaign) == 1


def test_a_closed_campaign_takes_no_more_prompts(world: World, lead: Browser) -> None:
    with transaction() as session:
        session.get_one(Campaign, world.campaign).state = CampaignState.closed
    response = lead.submit(f"/campaigns/{world.campaign}/prompts", prompts="One?")
    assert response.status_code == 409 and "nothing can be added" in said(response)
    assert count(Prompt, world.campaign) == 0


# ---- people ----


def test_somebody_new_gets_a_link_that_is_shown_once(world: World, lead: Browser) -> None:
    path = f"/campaigns/{world.campaign}/people"
    response = lead.submit(f"{path}/invite", email="New@Example.org", role="annotator")
    assert response.status_code == 200 and "/invite/" in response.text
    page = lead.get(path).text
    assert "/invite/" not in page and "new@example.org" in page


def test_somebody_with_an_account_is_in_at_once(world: World, lead: Browser) -> None:
    path = f"/campaigns/{world.campaign}/people"
    assert lead.submit(f"{path}/invite", email="other@example.org", role="lead").status_code == 303
    with transaction() as session:
        member = session.get_one(Membership, (world.campaign, world.users["foreign annotator"].id))
        assert member.role is CampaignRole.lead


def test_a_bad_address_stays_in_the_field(world: World, lead: Browser) -> None:
    response = lead.submit(f"/campaigns/{world.campaign}/people/invite", email="nobody at home", role="annotator")
    assert response.status_code == 422
    assert "Enter an e-mail address" in said(response) and 'value="nobody at home"' in response.text


def test_members_are_taken_out_and_the_only_lead_is_not(world: World, lead: Browser) -> None:
    path = f"/campaigns/{world.campaign}/people"
    assert lead.submit(f"{path}/{world.users['annotator'].id}/remove").status_code == 303
    last = lead.submit(f"{path}/{world.users['lead'].id}/remove")
    assert last.status_code == 409 and "only lead" in said(last)
    demoted = lead.submit(f"{path}/{world.users['lead'].id}/role", role="annotator")
    assert demoted.status_code == 409
    assert lead.submit(f"{path}/{world.users['foreign lead'].id}/remove").status_code == 404


def test_an_invitation_into_another_campaign_is_not_to_be_withdrawn_from_here(world: World, lead: Browser) -> None:
    other = world.browser("foreign lead")
    other.submit(f"/campaigns/{world.other_campaign}/people/invite", email="x@example.org", role="annotator")
    with transaction() as session:
        link = session.scalars(select(Link).where(Link.campaign_id == world.other_campaign)).one()
    assert lead.submit(f"/campaigns/{world.campaign}/people/invites/{link.id}/revoke").status_code == 404
    mine = f"/campaigns/{world.other_campaign}/people/invites/{link.id}/revoke"
    assert other.submit(mine).status_code == 303


# ---- exports ----


@pytest.mark.parametrize(
    ("format", "kind"), [("jsonl", "application/x-ndjson"), ("parquet", "application/vnd.apache.parquet")]
)
def test_the_export_links_work_with_the_browsers_cookie(world: World, lead: Browser, format: str, kind: str) -> None:
    answer(world, 2)
    href = f"/api/v1/campaigns/{world.campaign}/preferences?format={format}"
    assert href in unescape(lead.get(f"/campaigns/{world.campaign}").text)
    response = lead.get(href)
    assert response.status_code == 200 and response.headers["content-type"].startswith(kind)


def test_roles_in_the_installation_decide_who_may_create(world: World) -> None:
    assert world.users["lead"].role is Role.lead
    assert world.browser("annotator").submit("/campaigns/new", **FORM).status_code == 403


def test_a_paste_of_more_than_a_form_may_carry_is_refused_in_words(world: World, lead: Browser) -> None:
    path = f"/campaigns/{world.campaign}/prompts"
    response = lead.client.post(path, data={"csrf": lead.csrf, "prompts": "z" * 3_000_000}, files={"file": ("", b"")})
    assert response.status_code == 413 and "Send less at once, or split the file." in said(response)
