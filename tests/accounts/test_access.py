"""Who may do what, as a table."""

import pytest

from app.accounts.access import (
    may_administer,
    may_annotate,
    may_create_campaigns,
    may_invite_as,
    may_lead,
    may_see,
    scopes_allow,
)
from app.accounts.models import CampaignRole, Role, Scope

LEAD, ANNOTATOR = CampaignRole.lead, CampaignRole.annotator
TABLE = [
    # role,          in the campaign, see,   annotate, lead,  create, administer
    (Role.admin, None, True, True, True, True, True),
    (Role.admin, ANNOTATOR, True, True, True, True, True),
    (Role.lead, None, False, False, False, True, False),
    (Role.lead, LEAD, True, True, True, True, False),
    (Role.lead, ANNOTATOR, True, True, False, True, False),
    (Role.annotator, None, False, False, False, False, False),
    (Role.annotator, ANNOTATOR, True, True, False, False, False),
    (Role.annotator, LEAD, True, True, True, False, False),
]


@pytest.mark.parametrize(("role", "within", "see", "annotate", "lead", "create", "administer"), TABLE)
def test_the_table_of_access_holds(
    role: Role, within: CampaignRole | None, see: bool, annotate: bool, lead: bool, create: bool, administer: bool
) -> None:
    assert may_see(role, within) is see
    assert may_annotate(role, within) is annotate
    assert may_lead(role, within) is lead
    assert may_create_campaigns(role) is create
    assert may_administer(role) is administer


def test_a_lead_invites_annotators_into_their_own_campaign_and_nobody_else() -> None:
    assert may_invite_as(Role.lead, LEAD, Role.annotator)
    assert not may_invite_as(Role.lead, LEAD, Role.lead)
    assert not may_invite_as(Role.lead, LEAD, Role.admin)
    assert not may_invite_as(Role.lead, None, Role.annotator)
    assert not may_invite_as(Role.annotator, ANNOTATOR, Role.annotator)
    assert all(may_invite_as(Role.admin, None, role) for role in Role)


def test_scopes_narrow_what_a_token_may_do() -> None:
    assert scopes_allow({Scope.annotate}, Scope.annotate, changes=True)
    assert not scopes_allow({Scope.annotate}, Scope.manage, changes=False)
    assert scopes_allow({Scope.read}, Scope.manage, changes=False)
    assert not scopes_allow({Scope.read}, Scope.manage, changes=True)
    assert not scopes_allow(set(), Scope.annotate, changes=False)
