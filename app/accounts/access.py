"""Who may do what. Pure: roles and scopes in, yes or no out.

| act                              | admin | lead of it | annotator of it | anyone else |
|----------------------------------|-------|------------|-----------------|-------------|
| see that a campaign exists       | yes   | yes        | yes             | no (404)    |
| annotate in it                   | yes   | yes        | yes             | no (404)    |
| run it (settings, rounds, people)| yes   | yes        | no (403)        | no (404)    |
| create a campaign                | yes   | role lead  | no              | no          |
| accounts, roles, invites         | yes   | no         | no              | no          |

An API token never widens this; its scopes narrow it.
"""

from collections.abc import Collection

from app.accounts.models import CampaignRole, Role, Scope

ALL_SCOPES = frozenset(Scope)


def may_see(role: Role, in_campaign: CampaignRole | None) -> bool:
    """May know that the campaign exists."""
    return role is Role.admin or in_campaign is not None


def may_annotate(role: Role, in_campaign: CampaignRole | None) -> bool:
    return may_see(role, in_campaign)


def may_lead(role: Role, in_campaign: CampaignRole | None) -> bool:
    return role is Role.admin or in_campaign is CampaignRole.lead


def may_create_campaigns(role: Role) -> bool:
    return role in (Role.admin, Role.lead)


def may_administer(role: Role) -> bool:
    return role is Role.admin


def may_invite_as(role: Role, in_campaign: CampaignRole | None, invited: Role) -> bool:
    """Admins invite anybody; a campaign's lead brings annotators, who may become leads of that campaign alone."""
    return role is Role.admin or (in_campaign is CampaignRole.lead and invited is Role.annotator)


def scopes_allow(scopes: Collection[Scope], needed: Scope, *, changes: bool) -> bool:
    """May a request with these scopes do something that asks for `needed`? `read` is enough to look."""
    return needed in scopes or (not changes and Scope.read in scopes)
