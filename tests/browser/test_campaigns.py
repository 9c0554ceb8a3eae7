"""The lead's screens in Chromium: by keyboard alone, on a phone, without scripts, and alive while people answer."""

import uuid
from dataclasses import dataclass

import pytest
from playwright.sync_api import Page, expect

from app.accounts import people
from app.accounts.models import CampaignRole, Role, User
from app.annotation import leasing, submission
from app.campaigns.models import Campaign
from app.core.db import transaction
from tests.browser.conftest import OpenPage, WebProcess
from tests.factories import add_pairs, make_campaign, make_policy


@dataclass
class Office:
    campaign: uuid.UUID
    lead: User
    anna: User

    @property
    def path(self) -> str:
        return f"/campaigns/{self.campaign}"

    def answer(self) -> None:
        with transaction() as session:
            campaign = session.get_one(Campaign, self.campaign)
            annotator = leasing.annotator_of(session, session.merge(self.anna))
            lease = leasing.next_assignment(session, campaign, annotator)
            assert lease is not None
            said = submission.Answer([[lease.shown[0]], [lease.shown[1]]], strength=1, elapsed_ms=4000)
            submission.submit(session, campaign, lease, said, key=str(lease.id))


@pytest.fixture
def office(web: WebProcess) -> Office:
    with transaction() as session:
        lead = people.create_user(session, "lead@example.org", Role.lead, name="Lea")
        anna = people.create_user(session, "anna@example.org", Role.annotator, name="Anna")
        policy = make_policy(session)
        campaign = make_campaign(session, by=lead, policy_id=policy.id)
        people.add_member(session, anna, campaign.id, CampaignRole.annotator, actor_id=None)
        add_pairs(session, campaign, 24)
        return Office(campaign.id, lead, anna)


def tab_to(page: Page, selector: str, most: int = 80) -> None:
    """Press Tab until the element has the focus."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("wanted => document.activeElement?.matches(wanted) ?? false", selector):
            return
    pytest.fail(f"{selector} is not reached with Tab")


def test_a_campaign_is_set_up_and_activated_by_keyboard_alone(office: Office, open_page: OpenPage) -> None:
    page = open_page(office.lead, "/campaigns")
    tab_to(page, "a[href='/campaigns/new']")
    page.keyboard.press("Enter")
    page.wait_for_url("**/campaigns/new")
    tab_to(page, "#f-name")
    page.keyboard.type("Short answers")
    tab_to(page, "#f-guidelines")
    page.keyboard.type("Prefer the **shorter** one.")
    expect(page.locator("#guidelines-seen strong")).to_have_text("shorter")
    tab_to(page, "#f-prompts")
    page.keyboard.type("What is rain?\nWhat is snow?")
    tab_to(page, "#f-scale-7")
    page.keyboard.press("ArrowUp")
    expect(page.locator("#f-scale-5")).to_be_checked()
    tab_to(page, "button.button-primary")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Short answers")).to_be_visible()
    expect(page.get_by_text("Nobody annotates here yet")).to_be_visible()
    tab_to(page, "#activate")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Active: annotators are served from now on.")).to_be_visible()


def test_without_scripts_a_campaign_is_set_up_all_the_same(office: Office, open_page: OpenPage) -> None:
    page = open_page(office.lead, "/campaigns/new", script=False)
    page.fill("#f-name", "Plain HTTP")
    page.fill("#f-overlap", "0")
    page.fill("#f-prompts", "Why?")
    page.get_by_role("button", name="Create draft").click()
    expect(page.locator("#e-overlap")).to_contain_text("from 1 to 50")
    assert page.input_value("#f-prompts") == "Why?"
    page.fill("#f-overlap", "2")
    page.get_by_role("button", name="Create draft").click()
    expect(page.get_by_role("heading", name="Plain HTTP")).to_be_visible()


def test_a_faulty_hyperparameter_is_unfolded_and_marked(office: Office, open_page: OpenPage) -> None:
    page = open_page(office.lead, f"{office.path}/settings")
    fold = page.locator(".stage-dpo")
    fold.locator("summary").click()
    page.fill("[name='dpo.learning_rate']", "7")
    page.get_by_role("button", name="Save settings").click()
    expect(page.locator(".stage-dpo")).to_have_attribute("open", "")
    expect(page.locator("[name='dpo.learning_rate']")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("[name='dpo.learning_rate']")).to_be_visible()


def test_only_the_chosen_methods_hyperparameters_are_shown(office: Office, open_page: OpenPage) -> None:
    page = open_page(office.lead, "/campaigns/new")
    expect(page.locator(".stage-ppo")).to_be_hidden()
    page.locator("#f-method-ppo").check()
    expect(page.locator(".stage-ppo")).to_be_visible()
    expect(page.locator(".stage-dpo")).to_be_hidden()


def test_the_overview_counts_an_answer_as_it_comes_and_leaves_the_rest_alone(
    office: Office, open_page: OpenPage
) -> None:
    page = open_page(office.lead, office.path)
    figures = page.get_by_role("region", name="Progress")
    expect(figures).to_contain_text("0 of 24")
    page.locator("#start-round").focus()
    page.wait_for_timeout(700)  # the stream is open
    office.answer()
    expect(figures).to_contain_text("1 of 24", timeout=6000)
    assert page.evaluate("document.activeElement.id") == "start-round"


def test_a_round_that_cannot_start_says_why_beside_its_button(office: Office, open_page: OpenPage) -> None:
    page = open_page(office.lead, office.path)
    page.get_by_role("button", name="Start round now").click()
    expect(page.get_by_role("alert")).to_contain_text("a round needs at least 10")
    page.wait_for_timeout(1200)  # the page has fetched its moving parts again
    expect(page.get_by_role("alert")).to_contain_text("a round needs at least 10")
    expect(page.get_by_role("heading", name="Annotators", exact=True)).to_be_visible()


def test_closing_asks_and_names_what_is_lost(office: Office, open_page: OpenPage) -> None:
    page = open_page(office.lead, office.path)
    page.get_by_role("button", name="More for this campaign").click()
    page.get_by_role("button", name="Close the campaign…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("24 answers still wanted will never be given")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.locator("h1")).to_contain_text("active")


def test_the_preview_cannot_be_answered_and_shows_the_guidelines(office: Office, open_page: OpenPage) -> None:
    page = open_page(office.lead, f"{office.path}/preview")
    expect(page.get_by_text("First 1.").first).to_be_visible()
    expect(page.get_by_role("button", name="Submit")).to_be_disabled()
    page.locator("#guidelines-button").click()
    expect(page.get_by_text("Prefer the kinder answer.")).to_be_visible()


def test_an_invitation_is_there_to_be_copied(office: Office, open_page: OpenPage) -> None:
    page = open_page(office.lead, f"{office.path}/people", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_label("E-mail address").fill("new@example.org")
    page.get_by_role("button", name="Let in").click()
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert "/invite/" in page.evaluate("navigator.clipboard.readText()")


@pytest.mark.parametrize("path", ["", "/settings", "/prompts", "/people", "/preview"])
def test_nothing_is_wider_than_a_phone(office: Office, open_page: OpenPage, path: str) -> None:
    page = open_page(office.lead, office.path + path, phone=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
