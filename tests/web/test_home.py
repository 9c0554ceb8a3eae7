"""The start page, over HTTP."""

import re
from datetime import UTC, datetime

from sqlalchemy import update

from app.accounts.models import Role
from app.annotation import leasing, submission
from app.annotation.models import Annotation, Annotator, Assignment
from app.annotation.submission import Answer
from app.campaigns.models import Campaign, CampaignState
from app.core.db import transaction
from tests.factories import add_pairs
from tests.web.conftest import Browser, World, make_person


def with_pairs(world: World, count: int) -> None:
    with transaction() as session:
        add_pairs(session, session.get_one(Campaign, world.campaign), count)


def answer_one(world: World, who: str = "annotator", **values: object) -> None:
    with transaction() as session:
        campaign = session.get_one(Campaign, world.campaign)
        annotator = leasing.annotator_of(session, world.users[who])
        assignment = leasing.next_assignment(session, campaign, annotator)
        assert assignment
        ranking = [[completion] for completion in assignment.shown]
        submission.submit(session, campaign, assignment, Answer(ranking, strength=1, **values))  # type: ignore[arg-type]


def test_says_how_much_is_left_and_what_i_did_today(world: World) -> None:
    with_pairs(world, 5)
    answer_one(world, elapsed_ms=90_000)
    answer_one(world, elapsed_ms=3_600_000)  # a break: counts as five minutes
    page = world.browser("annotator").get("/").text
    assert "3 left for you" in page
    assert "2 answers today" in page
    assert "about 6 min of work" in page
    assert "First" in page
    assert "Second" not in page


def test_the_page_is_titled_as_the_way_to_it_is(world: World) -> None:
    with_pairs(world, 1)
    assert "<h1>Campaigns</h1>" in world.browser("annotator").get("/").text
    assert "<h1>Annotate</h1>" in world.browser("lead").get("/").text  # /campaigns is another page for them


def test_yesterdays_answers_are_not_todays(world: World) -> None:
    with_pairs(world, 3)
    answer_one(world)
    with transaction() as session:
        session.execute(update(Annotation).values(created_at=datetime(2026, 1, 1, tzinfo=UTC)))
    page = world.browser("annotator").get("/").text
    assert "1 in all" in page
    assert "today" not in page.lower()


def test_resume_comes_before_every_other_control_of_the_page(world: World) -> None:
    with_pairs(world, 2)
    main = world.browser("annotator").get("/").text.partition("<main")[2]
    first = re.search(r"<(a|button|input|summary)\b[^>]*>", main)
    assert first
    assert f"/campaigns/{world.campaign}/annotate" in first[0]
    assert "autofocus" in first[0]


def test_a_lead_also_gets_to_the_campaign_page_and_an_annotator_does_not(world: World) -> None:
    link = f'href="/campaigns/{world.campaign}"'
    assert link in world.browser("lead").get("/").text
    assert link in world.browser("admin").get("/").text
    assert link not in world.browser("annotator").get("/").text


def test_a_paused_campaign_says_so_and_offers_no_work(world: World) -> None:
    with_pairs(world, 2)
    with transaction() as session:
        session.get_one(Campaign, world.campaign).state = CampaignState.paused
    page = world.browser("annotator").get("/").text
    assert "Paused by a lead" in page
    assert '/annotate"' not in page


def test_somebody_without_campaigns_is_told_what_this_is_and_what_to_do(browser: Browser) -> None:
    ada = make_person()
    page = browser.sign_in(ada).get("/").text
    assert "No campaign has you in it yet" in page
    assert ada.email in page
    assert "/campaigns/new" not in page


def test_a_lead_without_campaigns_is_offered_to_create_one(browser: Browser) -> None:
    page = browser.sign_in(make_person(Role.lead)).get("/").text
    assert 'href="/campaigns/new"' in page


def test_looking_at_the_start_page_leases_nothing_and_makes_no_annotator(world: World) -> None:
    with_pairs(world, 2)
    world.browser("annotator").get("/")
    with transaction() as session:
        assert not session.query(Assignment).count()
        assert not session.query(Annotator).filter_by(user_id=world.users["annotator"].id).count()
