"""Checkpoints: their tree, and trying two of them out."""

import json
import re
import uuid
from typing import Any

import pytest
from sqlalchemy import select

from app.campaigns.models import Campaign
from app.checkpoints.models import Checkpoint, CheckpointKind
from app.core import artifacts
from app.core.db import transaction
from app.rounds.models import RoundState, Run, RunState, Stage
from app.web import family_tree
from tests.factories import make_policy
from tests.planting import plant_finished, plant_run
from tests.web.conftest import Browser, World


@pytest.fixture
def lead(world: World) -> Browser:
    """The campaign began with one policy, promoted a second and rejected a third."""
    with transaction() as session:
        campaign = session.get_one(Campaign, world.campaign)
        campaign.policy_id = campaign.initial_policy_id = make_policy(session).id
        plant_finished(session, campaign, RoundState.promoted, 1)
        plant_finished(session, campaign, RoundState.rejected, 2)
    return world.browser("lead")


def here(world: World) -> str:
    return f"/campaigns/{world.campaign}/checkpoints"


def policies(world: World) -> list[str]:
    """The start, the current one, the rejected one."""
    with transaction() as session:
        found = family_tree.leaves(session, session.get_one(Campaign, world.campaign))
        return [
            str(leaf.checkpoint.id) for leaf in sorted(found, key=lambda x: x.checkpoint.created_at) if leaf.is_policy
        ]


def test_the_way_to_the_current_policy_keeps_left_and_what_branched_off_is_indented(
    lead: Browser, world: World
) -> None:
    with transaction() as session:
        found = family_tree.leaves(session, session.get_one(Campaign, world.campaign))
    told = [(leaf.checkpoint.name, leaf.depth, leaf.is_current) for leaf in found]
    assert told == [
        ("policy", 0, False),
        ("Round 1 reward model", 1, False),
        ("Round 1 policy", 0, True),
        ("Round 2 reward model", 1, False),
        ("Round 2 policy", 1, False),
    ]


def test_the_page_says_which_is_current_what_made_it_and_how_good_it_is(lead: Browser, world: World) -> None:
    page = lead.get(here(world)).text
    row = page[page.index("leaf-current") :]
    row = row[: row.index("</tr>")]
    for said in ("current policy", "from policy", "Round 1", "71 %", "6.2", "18.2"):
        assert said in row, said
    assert "where it began" in page
    assert "rejected" in page


def test_a_chain_of_hundreds_of_rounds_is_still_a_list(lead: Browser, world: World) -> None:
    with transaction() as session:
        campaign = session.get_one(Campaign, world.campaign)
        parent = campaign.policy_id
        for number in range(300):
            child = Checkpoint(
                id=uuid.uuid4(), name=f"{number}", kind=CheckpointKind.policy, uri="file:///", parent_id=parent
            )
            child.campaign_id, parent = campaign.id, child.id
            session.add(child)
        session.flush()
        campaign.policy_id = parent
        found = family_tree.leaves(session, campaign)
    assert len(found) == 305
    assert max(leaf.depth for leaf in found) == 1


def test_trying_puts_one_prompt_to_both_with_the_same_settings(lead: Browser, world: World) -> None:
    start, current, _ = policies(world)
    typed = {"a": start, "b": current, "prompt": "Is it late?\r\nReally?", "temperature": "0,7", "seed": "11"}
    response = lead.submit(f"{here(world)}/try", **typed)
    assert response.status_code == 303
    with transaction() as session:
        queued = session.scalars(select(Run).where(Run.inputs["use"].astext == "try").order_by(Run.created_at)).all()
        assert [run.parents["model"] for run in queued] == [start, current]
        for run in queued:
            assert (run.recipe["n"], run.recipe["temperature"], run.recipe["seed"]) == (1, 0.7, 11)
            row = json.loads("".join(artifacts.read_text(run.inputs["data"])))
            assert row["prompt"] == [{"role": "user", "content": "Is it late?\nReally?"}]
    page = lead.get(response.headers["location"]).text
    assert "Waiting for the worker" in page
    assert ">\nIs it late?\nReally?</textarea>" in page
    assert 'name="temperature" type="text" value="0.7"' in page
    assert 'name="seed" type="text" value="11"' in page
    assert f'<option value="{start}" selected>' in page
    assert f'<option value="{current}" selected>' in page


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"prompt": "  "}, "Write a prompt"),
        ({"temperature": "warm"}, "Give a number from 0 to 10"),
        ({"temperature": "11"}, "Give a number from 0 to 10"),
        ({"temperature": "nan"}, "Give a number from 0 to 10"),
        ({"seed": "1.5"}, "Give a whole number"),
        ({"a": "nonsense"}, "Choose one of the policies"),
        ({"prompt": "x" * 100_001}, "at most 100,000"),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_typed_is_lost(
    lead: Browser, world: World, wrong: dict[str, str], said: str
) -> None:
    start, current, _ = policies(world)
    typed = {"a": start, "b": current, "prompt": "Is it late?", "temperature": "0.5", "seed": "3", **wrong}
    response = lead.submit(f"{here(world)}/try", **typed)
    assert response.status_code == 422
    assert said in response.text
    assert f'value="{typed["temperature"]}"' in response.text
    assert f">\n{typed['prompt']}</textarea>" in response.text
    with transaction() as session:
        assert session.scalar(select(Run.id).where(Run.inputs["use"].astext == "try")) is None


def test_a_policy_is_not_compared_with_itself_but_may_be_tried_alone(lead: Browser, world: World) -> None:
    start = policies(world)[0]
    same = lead.submit(f"{here(world)}/try", a=start, b=start, prompt="Is it late?")
    assert "Choose two different ones" in same.text
    alone = lead.submit(f"{here(world)}/try", a=start, b="", prompt="Is it late?")
    assert re.search(r"tried=[0-9a-f-]{36}#try$", alone.headers["location"])


def tried(world: World, texts: list[str | None], unsaid: RunState = RunState.running, **values: Any) -> str:
    """The address of a try whose runs have said these texts; None for one that is at it still."""
    ids = []
    with transaction() as session:
        campaign = session.get_one(Campaign, world.campaign)
        for text in texts:
            where = artifacts.url("runs", uuid.uuid4().hex, "completions.jsonl")
            row = {"prompt": [{"role": "user", "content": "Late?"}], "completions": [{"text": text}]}
            artifacts.write_text(where, [json.dumps(row) + "\n"])
            common: dict[str, Any] = {
                "inputs": {"use": "try", "data": where},
                "parents": {"model": str(campaign.policy_id)},
                "recipe": {"temperature": 1.0, "seed": 0},
            }
            state = RunState.succeeded if text is not None else unsaid
            outputs = {"completions": where} if text is not None else {}
            run = plant_run(session, campaign, None, Stage.sample, state, outputs=outputs, **common, **values)
            ids.append(str(run.id))
    return f"{here(world)}?tried={','.join(ids)}"


def test_both_answers_stand_side_by_side_once_they_are_there(lead: Browser, world: World) -> None:
    page = lead.get(tried(world, ["It is **ten**. <script>alert(1)</script>", None])).text
    answers = page[page.index('data-part="answers"') : page.index('data-part="lineage"')]
    assert "It is <strong>ten</strong>." in answers
    assert "<script>alert" not in answers
    assert "Sampling…" in answers
    assert 'id="stop-try"' in answers


def test_a_try_that_failed_says_why(lead: Browser, world: World) -> None:
    address = tried(world, [None], RunState.failed, error="The model directory is gone.")
    page = lead.get(address).text
    assert "The model directory is gone." in page
    assert 'id="stop-try"' not in page


def test_stop_calls_both_off(lead: Browser, world: World) -> None:
    start, current, _ = policies(world)
    made = lead.submit(f"{here(world)}/try", a=start, b=current, prompt="Late?").headers["location"]
    ids = made.split("tried=")[1].removesuffix("#try")
    page = lead.get(lead.submit(f"{here(world)}/stop", tried=ids).headers["location"]).text
    assert page.count("Stopped before it had said anything.") == 2


def test_another_campaign_s_tries_and_training_runs_are_not_shown(lead: Browser, world: World) -> None:
    address = tried(world, ["secret"])
    other = address.replace(str(world.campaign), str(world.other_campaign))
    assert world.browser("admin").get(other).status_code == 404
    with transaction() as session:
        training = session.scalars(select(Run.id).where(Run.stage == Stage.dpo).limit(1)).one()
    assert lead.get(f"{here(world)}?tried={training}").status_code == 404
    assert lead.get(f"{here(world)}?tried=nonsense").status_code == 404


def test_a_campaign_without_a_policy_says_what_to_do(world: World) -> None:
    page = world.browser("lead").get(here(world)).text
    assert "Choose one in its settings" in page
