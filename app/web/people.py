"""People, for administrators: who has an account, inviting, roles, closing accounts. By browser only."""

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from sqlalchemy import select
from starlette.responses import Response

from app.accounts import invitations, links, people
from app.accounts.models import CampaignRole, Membership, Role
from app.campaigns.models import Campaign, CampaignState
from app.core.errors import Conflict, Invalid
from app.core.settings import settings
from app.web.deps import AdminInBrowser, Db
from app.web.forms import Attempt, attempt
from app.web.templating import redirect, render

router = APIRouter(prefix="/people", include_in_schema=False)
Text = Annotated[str, Form()]

ROLES = [
    (Role.annotator.value, "Annotator: answers in the campaigns they belong to"),
    (Role.lead.value, "Lead: creates campaigns and runs their own"),
    (Role.admin.value, "Administrator: everything, people included"),
]
CAMPAIGN_ROLES = [(CampaignRole.annotator.value, "as an annotator"), (CampaignRole.lead.value, "as a lead")]


@router.get("")
def index(request: Request, db: Db, principal: AdminInBrowser) -> Response:
    return _page(request, db)


def _page(request: Request, db: Db, tried: Attempt | None = None, **typed: Any) -> Response:
    """The whole page; `typed` is what a refused form held, `handover` a link to show once."""
    defaults: dict[str, Any] = {
        "email": "",
        "role": "annotator",
        "campaign": "",
        "campaign_role": "annotator",
        "handover": None,
    }
    campaigns = db.scalars(select(Campaign).order_by(Campaign.created_at.desc())).all()
    return render(
        request,
        "people/index.html",
        status_code=tried.status if tried else 200,
        people=people.everybody(db),
        memberships=_memberships(db),
        invites=links.open_invites(db),
        campaign_options=[(c.id, c.name) for c in campaigns if c.state is not CampaignState.closed],
        campaign_names={campaign.id: campaign.name for campaign in campaigns},
        roles=ROLES,
        campaign_roles=CAMPAIGN_ROLES,
        errors=tried.errors if tried else {},
        **(defaults | typed),
    )


def _memberships(db: Db) -> dict[uuid.UUID, list[str]]:
    """Each person's campaigns, by name."""
    rows = db.execute(
        select(Membership.user_id, Campaign.name)
        .join(Campaign, Campaign.id == Membership.campaign_id)
        .order_by(Campaign.name)
    )
    found: dict[uuid.UUID, list[str]] = {}
    for user_id, name in rows:
        found.setdefault(user_id, []).append(name)
    return found


@router.post("/invite")
def invite(
    request: Request,
    db: Db,
    principal: AdminInBrowser,
    email: Text = "",
    role: Text = "annotator",
    campaign: Text = "",
    campaign_role: Text = "annotator",
) -> Response:
    """Answers with the page itself: the link is shown here and stored nowhere."""
    with attempt(db) as tried:
        target = _campaign(db, campaign)
        invited = invitations.invite(
            db,
            principal.user,
            email,
            _role(role),
            campaign_id=target.id if target else None,
            campaign_role=_campaign_role(campaign_role) if target else None,
        )
    if tried.refused:
        typed = {"email": email, "role": role, "campaign": campaign, "campaign_role": campaign_role}
        return _page(request, db, tried, **typed)
    if invited.member is not None:
        return redirect(request, "/people", flash=f"{invited.email} has an account, and is now in the campaign.")
    return _page(request, db, handover=("invite", invited.email, f"{_here()}/invite/{invited.secret}"))


def _role(value: str) -> Role:
    try:
        return Role(value)
    except ValueError:
        raise Invalid("Choose one of the roles.", "role") from None


def _campaign_role(value: str) -> CampaignRole:
    try:
        return CampaignRole(value)
    except ValueError:
        raise Invalid("Choose one of the two.", "campaign_role") from None


def _campaign(db: Db, value: str) -> Campaign | None:
    if not value:
        return None
    try:
        found = db.get(Campaign, uuid.UUID(value))
    except ValueError:
        found = None
    if found is None:
        raise Invalid("Choose one of the campaigns.", "campaign")
    return found


def _here() -> str:
    return settings().public_url.rstrip("/")


@router.post("/{user_id}/role")
def change_role(request: Request, db: Db, principal: AdminInBrowser, user_id: uuid.UUID, role: Text) -> Response:
    user = people.require_user(db, user_id)
    people.change_role(db, user, _role(role), actor_id=principal.user.id)
    return redirect(request, "/people", flash=f"{user.name or user.email} is now {_role(role).value}.")


@router.post("/{user_id}/sign-in-link")
def make_sign_in_link(request: Request, db: Db, principal: AdminInBrowser, user_id: uuid.UUID) -> Response:
    user = people.require_user(db, user_id)
    if not user.is_active:
        raise Conflict("This account is closed. Open it again first.")
    secret = links.sign_in_link(db, user, actor_id=principal.user.id)
    return _page(request, db, handover=("link", user.email, f"{_here()}/link/{secret}"))


@router.post("/{user_id}/deactivate")
def deactivate(request: Request, db: Db, principal: AdminInBrowser, user_id: uuid.UUID) -> Response:
    user = people.require_user(db, user_id)
    people.deactivate(db, user, actor_id=principal.user.id)
    return redirect(request, "/people", flash=f"The account of {user.email} is closed.")


@router.post("/{user_id}/activate")
def activate(request: Request, db: Db, principal: AdminInBrowser, user_id: uuid.UUID) -> Response:
    user = people.require_user(db, user_id)
    people.activate(db, user, actor_id=principal.user.id)
    return redirect(request, "/people", flash=f"The account of {user.email} is open again.")


@router.post("/invites/{link_id}/revoke")
def revoke_invite(request: Request, db: Db, principal: AdminInBrowser, link_id: uuid.UUID) -> Response:
    links.revoke_link(db, link_id, actor_id=principal.user.id)
    return redirect(request, "/people", flash="The invitation no longer works.")
