"""What needs a lead, from facts alone."""

import uuid
from dataclasses import replace

import pytest

from app.campaigns.models import Campaign, CampaignState
from app.quality.progress import Progress
from app.rounds.attention import Facts, Place, needs
from app.rounds.models import Round, RoundState, Run, RunState

WELL = Facts(
    campaign=Campaign(state=CampaignState.active, policy_id=uuid.uuid4()),
    progress=Progress(left=5),
    prompts=10,
    annotators=2,
    has_guidelines=True,
)


def test_where_all_is_well_nothing_is_asked() -> None:
    assert needs(WELL) == []


@pytest.mark.parametrize(
    ("facts", "place", "urgent", "words"),
    [
        (replace(WELL, prompts=0), Place.prompts, True, "no prompts"),
        (replace(WELL, annotators=0), Place.people, True, "Nobody annotates"),
        (replace(WELL, has_guidelines=False), Place.settings, False, "no guidelines"),
        (replace(WELL, campaign=Campaign(state=CampaignState.active)), Place.settings, False, "No policy"),
        (replace(WELL, progress=Progress()), Place.prompts, True, "Nothing is left"),
        (
            replace(WELL, last_sample=Run(state=RunState.failed, error="No room.")),
            Place.prompts,
            True,
            "could not be sampled: No room.",
        ),
        (
            replace(WELL, last_finished=Round(number=2, state=RoundState.failed, error="Out of memory.", gates=[])),
            Place.round,
            True,
            "Round 2 failed. Out of memory.",
        ),
        (
            replace(
                WELL,
                last_finished=Round(
                    number=3,
                    state=RoundState.rejected,
                    gates=[{"passed": False}],
                    decision_reason="Gates failed: kl.",
                ),
            ),
            Place.round,
            True,
            "Round 3 was not promoted. Gates failed: kl.",
        ),
    ],
)
def test_each_trouble_is_named_with_the_place_to_mend_it(facts: Facts, place: Place, urgent: bool, words: str) -> None:
    [need] = needs(facts)
    assert (need.place, need.urgent) == (place, urgent) and words in need.text


def test_an_empty_queue_is_no_trouble_while_a_batch_or_a_round_is_on_its_way() -> None:
    empty = replace(WELL, progress=Progress())
    assert needs(replace(empty, last_sample=Run(state=RunState.running))) == []
    assert needs(replace(empty, round_live=True)) == []
    assert needs(replace(empty, campaign=Campaign(state=CampaignState.paused, policy_id=uuid.uuid4()))) == []


def test_a_closed_campaign_needs_nobody() -> None:
    assert needs(replace(WELL, prompts=0, campaign=Campaign(state=CampaignState.closed))) == []


def test_a_rollback_by_the_lead_is_no_trouble() -> None:
    rolled_back = Round(number=3, state=RoundState.rejected, gates=[{"passed": True}], decision_reason="Lea: no")
    assert needs(replace(WELL, last_finished=rolled_back)) == []


def test_what_is_urgent_comes_first() -> None:
    found = needs(replace(WELL, has_guidelines=False, annotators=0))
    assert [need.urgent for need in found] == [True, False]
