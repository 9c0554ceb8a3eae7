"""The lead watches a round, stops it, overrules it, and tries its policies out, in Chromium."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from app.accounts.models import Role, User
from app.campaigns.models import Campaign
from app.core import artifacts
from app.core.db import transaction
from app.rounds import runs
from app.rounds.models import Round, RoundState, Run, RunState, Stage
from tests.browser.conftest import OpenPage, WebProcess
from tests.factories import make_campaign, make_policy, make_user
from tests.planting import figures, plant_finished, plant_round, plant_run


@pytest.fixture
def lead(web: WebProcess) -> User:
    with transaction() as session:
        user = make_user(session, Role.lead)
        campaign = make_campaign(session, by=user)
        campaign.policy_id = campaign.initial_policy_id = make_policy(session).id
    return user


def plant(lead: User, make: Callable[[Any, Campaign], Any]) -> Any:
    with transaction() as session:
        return make(session, session.query(Campaign).filter_by(created_by=lead.id).one())


def address(current: Round) -> str:
    return f"/campaigns/{current.campaign_id}/rounds/{current.id}"


def log(run_id: Any, steps: range) -> None:
    """As the worker does after each flush of its child's lines: rows, then a nudge."""
    with transaction() as session:
        run = session.get_one(Run, run_id)
        made = [{"step": n, "total_steps": 40, "metrics": figures(run.stage, n)} for n in steps]
        runs.record(session, run, made, [f"now at step {n}" for n in steps])


@pytest.fixture
def running(lead: User) -> tuple[Round, Run]:
    """A promoted round, then one whose PPO run is at step 5 of 40."""

    def make(session: Any, campaign: Campaign) -> tuple[Round, Run]:
        plant_finished(session, campaign, RoundState.promoted, 1, method="ppo")
        current = plant_round(session, campaign, RoundState.training, 2, method="ppo")
        plant_run(session, campaign, current, Stage.reward, RunState.succeeded, 20)
        return current, plant_run(session, campaign, current, Stage.ppo, RunState.running, 5)

    made: tuple[Round, Run] = plant(lead, make)
    return made


def ink(page: Page, figure: str) -> int:
    """How many pixels of a chart have been drawn on."""
    return int(
        page.locator(f'[data-curve="{figure}"] canvas').last.evaluate(
            """canvas => {
                const drawn = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
                let count = 0;
                for (let i = 3; i < drawn.length; i += 4) if (drawn[i] > 0) count++;
                return count;
            }"""
        )
    )


def test_the_curve_moves_when_the_run_goes_on_and_nothing_else_does(
    lead: User, running: tuple[Round, Run], open_page: OpenPage
) -> None:
    current, run = running
    page = open_page(lead, address(current))
    reward = page.locator('#run-ppo [data-curve="objective/scores"]')
    expect(reward).to_have_attribute("data-points", "5")
    expect(reward.locator("output")).to_have_text("0.5")
    expect(page.get_by_text("Round 1, the last promoted").last).to_be_visible()
    page.locator("#run-ppo summary", has_text="Log").click()
    page.locator("#gates-title").scroll_into_view_if_needed()
    scrolled = page.evaluate("scrollY")
    before = ink(page, "objective/scores")

    log(run.id, range(6, 31))
    expect(reward).to_have_attribute("data-points", "30", timeout=5000)  # by the nudge: a poll would take 20 s
    expect(reward.locator("output")).to_have_text("3")
    assert ink(page, "objective/scores") > before
    expect(page.locator("#run-ppo")).to_contain_text("30 of 40")
    expect(page.locator("#run-ppo .run-log")).to_contain_text("now at step 30")
    assert page.locator("#run-ppo details", has_text="Log").get_attribute("open") is not None
    assert page.evaluate("scrollY") == scrolled


def test_a_run_that_ends_moves_the_strip_on_and_the_next_one_appears(
    lead: User, running: tuple[Round, Run], open_page: OpenPage
) -> None:
    current, run = running
    page = open_page(lead, address(current))
    step = page.locator(".steps [aria-current=step]")
    expect(step).to_contain_text("Policy")
    with transaction() as session:
        held = runs.held(session, run.id, run.epoch)
        runs.succeed(session, held, {"metrics": {}}, {})
        runs.queue(
            session, campaign_id=current.campaign_id, round_id=current.id, stage=Stage.evaluate, inputs={}, recipe={}
        )
    expect(step).to_contain_text("Evaluate", timeout=5000)
    expect(page.locator("#run-evaluate")).to_contain_text("queued")
    assert page.locator(".run").evaluate_all("all => all.map(one => one.id)") == [
        "run-reward",
        "run-ppo",
        "run-evaluate",
    ]


def test_folded_figures_are_drawn_when_they_are_opened(
    lead: User, running: tuple[Round, Run], open_page: OpenPage
) -> None:
    page = open_page(lead, address(running[0]), phone=True)
    expect(page.locator('#run-ppo [data-curve="grad_norm"] canvas')).to_be_hidden()
    page.locator("#run-ppo summary", has_text="more figure").click()
    expect(page.locator('#run-ppo [data-curve="grad_norm"] canvas')).to_be_visible()
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")


def test_cancel_asks_and_then_stops_the_round_by_keyboard(
    lead: User, running: tuple[Round, Run], open_page: OpenPage
) -> None:
    current, run = running
    page = open_page(lead, address(current))
    page.locator("#open-cancel").focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Cancel round 2?")
    expect(dialog).to_contain_text("The answers are kept")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.keyboard.press("Enter")
    dialog.get_by_role("button", name="Cancel round").focus()
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_contain_text("cancelled")
    with transaction() as session:
        assert session.get_one(Round, current.id).state is RoundState.cancelled
        assert session.get_one(Run, run.id).cancel_requested_at is not None


def test_promoting_against_the_gates_wants_a_reason(lead: User, open_page: OpenPage) -> None:
    current = plant(lead, lambda s, c: plant_finished(s, c, RoundState.rejected))
    page = open_page(lead, address(current))
    page.locator("#open-promote").click()
    dialog = page.get_by_role("dialog", name="Promote round 1 all the same?")
    dialog.get_by_role("button", name="Promote").click()
    expect(dialog).to_be_visible()  # the browser asks for the field
    dialog.get_by_label("Why?").fill(" x  ")
    dialog.get_by_role("button", name="Promote").click()
    expect(dialog.get_by_text("Say in a few words why")).to_be_visible()
    expect(dialog.get_by_label("Why?")).to_be_focused()
    assert dialog.evaluate("one => one.matches(':modal')")
    dialog.get_by_label("Why?").fill("The samples read better.")
    dialog.get_by_role("button", name="Promote").click()
    expect(page.locator("h1")).to_contain_text("promoted")
    expect(page.get_by_text("The samples read better.")).to_be_visible()


def test_trying_two_policies_waits_and_then_shows_both(lead: User, open_page: OpenPage) -> None:
    current = plant(lead, lambda s, c: plant_finished(s, c, RoundState.promoted))
    page = open_page(lead, f"/campaigns/{current.campaign_id}/checkpoints")
    page.get_by_label("Prompt").fill("Is it late?")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_role("button", name="Sample").click()
    expect(page.get_by_text("Waiting for the worker")).to_have_count(2)
    page.get_by_label("Prompt").fill("Is it late? And why")  # typed on while waiting
    for run_id, text in zip(
        page.url.split("tried=")[1].split("#")[0].split(","), ("dunno", "It is **ten**."), strict=True
    ):
        with transaction() as session:
            run = runs.claim(session, session.get_one(Run, run_id).id, "worker")
            assert run is not None
            where = artifacts.url("runs", run_id, "completions.jsonl")
            artifacts.write_text(where, [json.dumps({"prompt": [], "completions": [{"text": text}]})])
            runs.succeed(session, run, {}, {"completions": where})
    expect(page.locator(".sample-side strong")).to_have_text("ten", timeout=5000)
    expect(page.get_by_text("dunno")).to_be_visible()
    expect(page.get_by_label("Prompt")).to_have_value("Is it late? And why")
    expect(page.get_by_label("Temperature")).to_have_value("0.5")
    expect(page.locator("#stop-try")).to_have_count(0)


def test_without_scripts_the_round_is_still_there_in_words(
    lead: User, running: tuple[Round, Run], open_page: OpenPage
) -> None:
    page = open_page(lead, address(running[0]), script=False)
    expect(page.locator('#run-ppo [data-curve="objective/kl"] output')).to_have_text("1.25")
    expect(page.locator("#run-ppo")).to_contain_text("5 of 40")
