import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts.models import Role
from app.campaigns import lifecycle, prompts
from app.campaigns.models import CampaignState
from app.core.errors import Conflict, Invalid
from app.core.states import StateChange
from tests.factories import make_campaign, make_user


def test_a_campaign_without_prompts_cannot_be_activated(session: Session) -> None:
    lead = make_user(session, Role.lead)
    campaign = make_campaign(session, state=CampaignState.draft, by=lead)
    with pytest.raises(Conflict, match="no prompts yet"):
        lifecycle.activate(session, campaign, lead)


def test_every_move_is_in_the_journal(session: Session) -> None:
    lead = make_user(session, Role.lead)
    campaign = make_campaign(session, state=CampaignState.draft, by=lead)
    prompts.add(session, campaign, [(1, "Why?")])
    lifecycle.activate(session, campaign, lead)
    lifecycle.pause(session, campaign, lead)
    moves = select(StateChange.old, StateChange.new).where(StateChange.thing_id == campaign.id).order_by(StateChange.id)
    assert session.execute(moves).all() == [("draft", "active"), ("active", "paused")]


def test_a_closed_campaign_stays_closed(session: Session) -> None:
    lead = make_user(session, Role.lead)
    campaign = make_campaign(session, by=lead)
    prompts.add(session, campaign, [(1, "Why?")])
    lifecycle.close(session, campaign, lead)
    with pytest.raises(Conflict, match="cannot become active"):
        lifecycle.activate(session, campaign, lead)


def test_guidelines_get_a_new_version_only_when_they_change(session: Session) -> None:
    lead = make_user(session, Role.lead)
    campaign = make_campaign(session, by=lead)
    assert lifecycle.set_guidelines(session, campaign, lead, "Prefer the kinder answer.").version == 1
    assert lifecycle.set_guidelines(session, campaign, lead, "Prefer the shorter answer.").version == 2


@pytest.mark.parametrize(
    ("values", "field"),
    [({"name": "   "}, "name"), ({"overlap": 0}, "overlap"), ({"overlap": 51}, "overlap"), ({"scale": 3}, "scale")],
)
def test_bad_settings_name_their_field(session: Session, values: dict[str, object], field: str) -> None:
    with pytest.raises(Invalid) as error:
        make_campaign(session, **values)
    assert error.value.field == field


def test_scale_and_overlap_are_fixed_once_answers_may_exist(session: Session) -> None:
    lead = make_user(session, Role.lead)
    campaign = make_campaign(session, by=lead)
    with pytest.raises(Conflict, match="cannot change"):
        lifecycle.edit(session, campaign, lead, overlap=3)
    lifecycle.edit(session, campaign, lead, name="Another name", overlap=1)
    assert campaign.name == "Another name"
