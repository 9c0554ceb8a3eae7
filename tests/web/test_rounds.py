"""The lead's screens of rounds: what they show, and what they let the lead do."""

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from app.campaigns.models import Campaign
from app.core.audit import AuditEntry
from app.core.db import transaction
from app.preferences.models import PreferenceDataset
from app.rounds.models import Round, RoundState, Run, RunState, Stage
from tests.factories import add_pairs, make_policy
from tests.planting import SAMPLE, now, plant_finished, plant_round, plant_run
from tests.web.conftest import Browser, World

Plant = Callable[[Any, Campaign], Any]


@pytest.fixture
def lead(world: World) -> Browser:
    with transaction() as session:
        campaign = session.get_one(Campaign, world.campaign)
        campaign.policy_id = campaign.initial_policy_id = make_policy(session).id
    return world.browser("lead")


def plant(world: World, make: Plant) -> Any:
    with transaction() as session:
        return make(session, session.get_one(Campaign, world.campaign))


def rounds_of(world: World) -> str:
    return f"/campaigns/{world.campaign}/rounds"


def look(browser: Browser, world: World, current: Round) -> str:
    response = browser.get(f"{rounds_of(world)}/{current.id}")
    assert response.status_code == 200
    return str(response.text)


def test_before_the_first_round_the_list_says_what_a_round_is(lead: Browser, world: World) -> None:
    page = lead.get(rounds_of(world)).text
    assert "No rounds yet" in page
    assert "A round needs at least 10" in page


def test_the_list_shows_what_each_round_came_to(lead: Browser, world: World) -> None:
    plant(world, lambda s, c: plant_finished(s, c, RoundState.promoted))
    page = lead.get(rounds_of(world)).text
    for said in ("Round 1", "promoted", "DPO", "96", "84 %", "71 %", "6.2", "All gates passed."):
        assert said in page, said


def test_a_start_that_is_refused_says_why_on_the_list(lead: Browser, world: World) -> None:
    response = lead.submit(rounds_of(world))
    assert response.status_code == 409
    assert "a round needs at least 10" in response.text
    with transaction() as session:
        assert session.scalar(select(Round.id)) is None


def test_start_begins_training_and_leads_to_the_round(lead: Browser, world: World) -> None:
    def ready(session: Any, campaign: Campaign) -> None:
        campaign.recipe = {"reward": {"min_pairs": 1}}
        add_pairs(session, campaign, 6)

    plant(world, ready)
    while (leased := lead.request("POST", f"/api/v1/campaigns/{world.campaign}/assignments")).status_code == 201:
        got = leased.json()
        ranking = [[completion["id"]] for completion in got["completions"]]
        lead.request("PUT", f"/api/v1/assignments/{got['id']}/annotation", json={"ranking": ranking, "strength": 2})
    response = lead.submit(rounds_of(world))
    assert response.status_code == 303
    page = lead.get(response.headers["location"]).text
    assert "training" in page
    assert "started by a lead" in page


def test_a_round_that_trains_cannot_be_started_again_but_watched(lead: Browser, world: World) -> None:
    current = plant(world, lambda s, c: plant_round(s, c, RoundState.training))
    page = lead.get(rounds_of(world)).text
    assert "Round 1 is training" in page
    assert f'href="{rounds_of(world)}/{current.id}"' in page
    assert "Start round" not in page


def test_the_strip_says_where_the_round_stands(lead: Browser, world: World) -> None:
    def running(session: Any, campaign: Campaign) -> Round:
        current = plant_round(session, campaign, RoundState.training, method="ppo")
        plant_run(session, campaign, current, Stage.reward, RunState.succeeded, 20)
        plant_run(session, campaign, current, Stage.ppo, RunState.running, 7)
        return current

    page = look(lead, world, plant(world, running))
    strip = page[page.index('<ol class="steps"') : page.index("</ol>", page.index('<ol class="steps"'))]
    states = [part.split('"')[0] for part in strip.split('<li class="')[1:]]
    assert states == ["done", "done", "done", "current", "todo", "todo", "todo"]
    assert "89 pairs" in strip
    assert "7 of 40" in page
    assert "Cancel round" in page


def test_figures_stand_in_words_beside_each_chart(lead: Browser, world: World) -> None:
    def running(session: Any, campaign: Campaign) -> Round:
        current = plant_round(session, campaign, RoundState.training)
        plant_run(session, campaign, current, Stage.reward, RunState.running, 10)
        return current

    page = look(lead, world, plant(world, running))
    assert '<output class="curve-last numeric" data-told="last">0.6</output>' in page
    assert '<span data-told="min">51 %</span>' in page
    assert '<span data-told="max">60 %</span>' in page


def test_metrics_come_named_thinned_and_with_the_last_promoted_round_behind(lead: Browser, world: World) -> None:
    def two(session: Any, campaign: Campaign) -> Run:
        plant_finished(session, campaign, RoundState.promoted, 1)
        plant_finished(session, campaign, RoundState.rejected, 2)
        current = plant_round(session, campaign, RoundState.training, 3)
        return plant_run(session, campaign, current, Stage.dpo, RunState.running, 1500, total_steps=2000)

    run = plant(world, two)
    told = lead.get(f"/runs/{run.id}/metrics.json").json()
    assert list(told["curves"])[:4] == ["loss", "rewards/margins", "rewards/accuracies", "logps/chosen"]
    assert "grad_norm" in told["curves"]
    assert len(told["steps"]) <= 601
    assert (told["steps"][0], told["steps"][-1], told["total"]) == (1, 1500, 2000)
    assert told["curves"]["rewards/margins"]["last"] == "75"
    assert told["curves"]["logps/chosen"] == {
        "values": [None] * len(told["steps"]),
        "last": "–",
        "min": "–",
        "max": "–",
    }
    assert told["ghost"]["label"] == "Round 1"
    assert told["ghost"]["steps"] == list(range(1, 21))


def test_the_csv_has_every_step(lead: Browser, world: World) -> None:
    def running(session: Any, campaign: Campaign) -> Run:
        current = plant_round(session, campaign, RoundState.training)
        return plant_run(session, campaign, current, Stage.reward, RunState.running, 700)

    run = plant(world, running)
    lines = lead.get(f"/runs/{run.id}/metrics.csv").text.splitlines()
    assert lines[0] == "step,loss,accuracy"
    assert len(lines) == 701
    alone = lead.get(f"/runs/{run.id}/metrics.csv?figure=accuracy")
    assert alone.text.splitlines()[1] == "1,0.51"
    assert "accuracy.csv" in alone.headers["content-disposition"]
    assert lead.get(f"/runs/{run.id}/metrics.csv?figure=nonsense").status_code == 404


def test_a_gate_that_was_not_measured_is_said_not_to_be(lead: Browser, world: World) -> None:
    measured = {"kl": 80.0, "mean_length": 18.0, "baseline_mean_length": 16.0}
    current = plant(world, lambda s, c: plant_finished(s, c, RoundState.rejected, evaluation=measured))
    page = look(lead, world, current)
    gates = page[page.index('data-part="gates"') : page.index('data-part="dataset"')]
    assert gates.count("not measured") == 2
    assert gates.count(">failed<") == 1
    assert gates.count(">passed<") == 2
    assert "77 % to 89 %" in gates
    assert "at most 60" in gates
    assert "has collapsed" in gates


def test_old_and_new_completions_stand_side_by_side_and_cannot_run_anything(lead: Browser, world: World) -> None:
    hostile = {
        **SAMPLE,
        "completion": "<script>alert(1)</script> [x](javascript:alert(1)) ![i](https://evil.example/i)",
    }
    current = plant(world, lambda s, c: plant_finished(s, c, RoundState.promoted, samples=[SAMPLE, hostile]))
    page = look(lead, world, current)
    samples = page[page.index('data-part="samples"') :]
    assert "It is <strong>ten</strong>." in samples
    assert "dunno" in samples
    assert "reward 1.25" in samples
    assert "reward -0.50" in samples
    assert "<script>alert" not in samples
    assert 'href="javascript' not in samples
    assert 'src="https://evil' not in samples


def test_a_failed_round_says_why_at_the_top(lead: Browser, world: World) -> None:
    why = "Out of memory: lower batch_size. (tried 3 times)"

    def failed(session: Any, campaign: Campaign) -> Round:
        current = plant_round(session, campaign, RoundState.failed, error=f"The reward run failed: {why}")
        plant_run(session, campaign, current, Stage.reward, RunState.failed, 5, attempt=3, error=why)
        return current

    page = look(lead, world, plant(world, failed))
    assert page.index(why) < page.index('<ol class="steps"')
    assert "attempt 3 of 3" in page
    assert "step 5" in page  # the log


@pytest.mark.parametrize(
    ("age", "busy", "said"),
    [
        (5, False, ""),
        (90, False, "Waiting for a GPU worker"),
        (90, True, "busy with another run"),
    ],
)
def test_a_run_that_nobody_comes_for_says_what_it_waits_for(
    lead: Browser, world: World, age: int, busy: bool, said: str
) -> None:
    def waiting(session: Any, campaign: Campaign) -> Round:
        current = plant_round(session, campaign, RoundState.training)
        born = now() - timedelta(seconds=age)
        plant_run(session, campaign, current, Stage.reward, RunState.queued, created_at=born)
        if busy:
            plant_run(session, campaign, None, Stage.sample, RunState.running)
        return current

    page = look(lead, world, plant(world, waiting))
    for text in ("Waiting for a GPU worker", "busy with another run"):
        assert (text in page) == (text == said), text


def test_a_run_whose_worker_has_gone_quiet_is_said_to_come_back(lead: Browser, world: World) -> None:
    def lost(session: Any, campaign: Campaign) -> Round:
        current = plant_round(session, campaign, RoundState.training)
        late = now() - timedelta(seconds=10)
        plant_run(session, campaign, current, Stage.reward, RunState.running, 3, lease_until=late)
        return current

    assert "has not been heard of" in look(lead, world, plant(world, lost))


def test_cancel_stops_the_round_and_its_runs(lead: Browser, world: World) -> None:
    def running(session: Any, campaign: Campaign) -> Round:
        current = plant_round(session, campaign, RoundState.training)
        plant_run(session, campaign, current, Stage.reward, RunState.queued)
        return current

    current = plant(world, running)
    assert lead.submit(f"/rounds/{current.id}/cancel").status_code == 303
    with transaction() as session:
        assert session.get_one(Round, current.id).state is RoundState.cancelled
        assert session.scalars(select(Run.state)).one() is RunState.cancelled
    again = lead.submit(f"/rounds/{current.id}/cancel")
    assert "nothing to cancel" in lead.get(again.headers["location"]).text


def test_promoting_against_the_gates_needs_a_reason_and_keeps_what_was_typed(lead: Browser, world: World) -> None:
    current = plant(world, lambda s, c: plant_finished(s, c, RoundState.rejected))
    refused = lead.submit(f"/rounds/{current.id}/promote", reason="ok")
    assert refused.status_code == 422
    assert "Say in a few words why" in refused.text
    assert ">\nok</textarea>" in refused.text
    assert 'id="promote" aria-labelledby="promote-title" open' in refused.text
    with transaction() as session:
        assert session.get_one(Round, current.id).state is RoundState.rejected

    done = lead.submit(f"/rounds/{current.id}/promote", reason="I read all samples; they are better.")
    page = lead.get(done.headers["location"]).text
    assert "I read all samples; they are better." in page
    assert "is the campaign’s policy now" in page
    with transaction() as session:
        assert session.get_one(Campaign, world.campaign).policy_id == current.candidate_id


def test_a_promoted_round_can_be_rolled_back_while_its_policy_is_in_place(lead: Browser, world: World) -> None:
    first = plant(world, lambda s, c: plant_finished(s, c, RoundState.promoted, 1))
    second = plant(world, lambda s, c: plant_finished(s, c, RoundState.promoted, 2))
    assert 'id="open-roll-back"' not in look(lead, world, first)
    assert 'id="open-roll-back"' in look(lead, world, second)
    refused = lead.submit(f"/rounds/{first.id}/roll-back", reason="it lies to people")
    assert refused.status_code == 409
    assert "roll that one back first" in refused.text
    assert lead.submit(f"/rounds/{second.id}/roll-back", reason="it lies to people").status_code == 303
    with transaction() as session:
        assert session.get_one(Campaign, world.campaign).policy_id == first.candidate_id


def test_the_dataset_can_be_downloaded_and_that_is_written_down(lead: Browser, world: World) -> None:
    current = plant(world, lambda s, c: plant_finished(s, c, RoundState.promoted))
    page = look(lead, world, current)
    with transaction() as session:
        data = session.get_one(PreferenceDataset, current.dataset_id)
        assert data.sha256 in page
    got = lead.get(f"/rounds/{current.id}/dataset/train.jsonl")
    assert got.text == '{"chosen": "yes"}\n{"chosen": "no"}\n'
    assert "round-1-train.jsonl" in got.headers["content-disposition"]
    with transaction() as session:
        assert session.scalar(select(AuditEntry.detail).where(AuditEntry.action == "dataset.download")) == {
            "round": 1,
            "part": "train",
        }
        session.get_one(PreferenceDataset, current.dataset_id).held_out_uri = "file:///gone.jsonl"
    assert lead.get(f"/rounds/{current.id}/dataset/held-out.jsonl").status_code == 404


def test_a_round_is_found_under_its_own_campaign_only(world: World, lead: Browser) -> None:
    current = plant(world, lambda s, c: plant_finished(s, c, RoundState.promoted))
    admin = world.browser("admin")
    assert admin.get(f"/campaigns/{world.other_campaign}/rounds/{current.id}").status_code == 404
    assert lead.get(f"/rounds/{current.id}").headers["location"] == f"{rounds_of(world)}/{current.id}"
    assert lead.get(f"/campaigns/{world.campaign}/rounds/{uuid.uuid4()}").status_code == 404
    for path in (f"/rounds/{current.id}", f"{rounds_of(world)}/{current.id}"):
        assert world.browser("annotator").get(path).status_code == 403
        assert world.browser("foreign lead").get(path).status_code == 404


def test_htmx_gets_the_parts_alone(lead: Browser, world: World) -> None:
    current = plant(world, lambda s, c: plant_finished(s, c, RoundState.promoted))
    part = lead.get(f"{rounds_of(world)}/{current.id}", headers={"HX-Request": "true"}).text
    assert "<html" not in part
    assert 'data-part="gates"' in part
