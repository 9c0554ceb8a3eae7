"""Activity: who did what, in words."""

import re
from typing import Any

import pytest

from app.accounts import people
from app.accounts.models import CampaignRole
from app.campaigns import lifecycle as campaigns
from app.campaigns.models import Campaign
from app.core import audit
from app.core.db import ROOT, transaction
from app.rounds import lifecycle, runs
from app.rounds.models import RoundState, RunState, Stage
from app.web.activity_words import WORDS, Event, sentence
from tests.planting import plant_finished, plant_round, plant_run
from tests.web.conftest import World


def here(world: World) -> str:
    return f"/campaigns/{world.campaign}/activity"


def lines(page: str) -> list[str]:
    found = re.findall(r'<span class="activity-what break">(.*?)</span>', page, re.DOTALL)
    return [" ".join(re.sub(r"<a .*?</a>|<[^>]+>", "", line).split()) for line in found]


def test_what_people_did_and_what_the_machines_did_stand_in_one_list(world: World) -> None:
    with transaction() as session:
        lead = world.users["lead"]
        campaign = session.get_one(Campaign, world.campaign)
        campaigns.pause(session, campaign, lead)
        people.add_member(
            session, world.users["foreign annotator"], campaign.id, CampaignRole.annotator, actor_id=lead.id
        )
        plant_finished(session, campaign, RoundState.rejected, 1)
        current = plant_round(session, campaign, RoundState.training, 2)
        run = plant_run(session, campaign, current, Stage.reward, RunState.running, 3)
    with transaction() as session:
        runs.fail(session, runs.held(session, run.id, run.epoch), "memory", "Out of memory.", retry=True)
    with transaction() as session:
        lifecycle.cancel(session, session.merge(current), world.users["lead"])
    told = lines(world.browser("lead").get(here(world)).text)
    assert set(told[:2]) == {"lead cancelled round 2", "The reward model run of round 2 was stopped"}
    assert "The reward model run of round 2 goes into the queue again: Out of memory." in told
    assert "lead paused the campaign" in told
    assert "lead added other as an annotator" in told


def test_an_override_is_told_with_its_reason(world: World) -> None:
    with transaction() as session:
        campaign = session.get_one(Campaign, world.campaign)
        current = plant_finished(session, campaign, RoundState.rejected, 1)
        lifecycle.override(session, campaign, current, world.users["lead"], RoundState.promoted, "<b>Better</b> by far")
    page = world.browser("lead").get(here(world)).text
    assert "promoted round 1 against its gates: &lt;b&gt;Better&lt;/b&gt; by far" in page


def test_long_histories_are_paged(world: World) -> None:
    with transaction() as session:
        campaign = session.get_one(Campaign, world.campaign)
        for n in range(120):
            audit.record(session, None, "campaign.edit", campaign, campaign_id=campaign.id, n=n)
    browser = world.browser("lead")
    first, second, third = (browser.get(f"{here(world)}?page={n}").text for n in (1, 2, 3))
    assert [len(lines(page)) for page in (first, second)] == [50, 50]
    assert 20 < len(lines(third)) < 50
    assert ">Older" in first.replace("\n", "")
    assert ">Newer" not in first.replace("\n", "")
    assert ">Older" not in third.replace("\n", "")
    assert "no older entries" in browser.get(f"{here(world)}?page=99").text
    assert browser.get(f"{here(world)}?page=0").status_code == 422


def test_other_campaigns_stay_out_of_it(world: World) -> None:
    with transaction() as session:
        other = session.get_one(Campaign, world.other_campaign)
        plant_run(session, other, plant_round(session, other, RoundState.training, 77), Stage.dpo, RunState.running)
        campaigns.pause(session, other, world.users["foreign lead"])
    told = lines(world.browser("lead").get(here(world)).text)
    assert not any("paused" in line or "77" in line for line in told)


def test_every_act_that_a_campaign_s_log_can_hold_has_words() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "app").rglob("*.py"))
    calls = re.findall(r"audit\.record\((.*?)\)\n", source, re.DOTALL)
    in_campaigns = [call for call in calls if "campaign_id=" in call]
    names = {name for call in in_campaigns for name in re.findall(r'"([a-z_]+\.[a-z_.]+)"', call)}
    assert {"round.start", "member.add"} <= names
    assert names <= WORDS.keys(), f"say in app/web/activity_words.py what these are: {sorted(names - WORDS.keys())}"


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (Event("round.start", {"trigger": "schedule"}, round=3), "started round 3 because the time had come"),
        (
            Event("runs running failed", round=4, stage="ppo", reason="Disk full."),
            "the policy run of round 4 failed: Disk full.",
        ),
        (Event("runs running succeeded", stage="sample"), "a sampling run finished"),
        (Event("round.override.rejected", {"reason": "It lies."}, round=2), "rolled round 2 back: It lies."),
        (Event("something.new_here"), "something new here"),
    ],
)
def test_sentences(event: Event, said: str) -> None:
    assert sentence(event) == said


def test_every_move_that_the_machines_make_alone_has_words() -> None:
    from app.rounds.models import Round, Run

    def moves(model: Any, silent: set[str]) -> set[str]:
        return {
            f"{model.__tablename__} {old.value} {new.value}"
            for old, targets in model.MOVES.items()
            for new in targets
            if new.value not in silent
        }

    by_people = {
        "rounds collecting cancelled",
        "rounds collecting failed",
        "rounds training cancelled",
        "rounds evaluating cancelled",
        "rounds promoted rejected",
        "rounds rejected promoted",
    }
    alone = moves(Round, {"training"}) | moves(Run, {"running"})
    assert alone - by_people <= WORDS.keys()
