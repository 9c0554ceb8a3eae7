"""Who belongs to a campaign: inviting, what each of them is in it, taking them out. By browser only."""

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from app.accounts import invitations, links
from app.accounts.models import CampaignRole, Role
from app.campaigns import members
from app.campaigns.models import Campaign
from app.core.errors import Invalid, NotFound
from app.core.settings import settings
from app.web.deps import Db, InBrowser, LedCampaign
from app.web.forms import Attempt, attempt
from app.web.templating import redirect, render

router = APIRouter(prefix="/campaigns/{campaign_id}/people", include_in_schema=False)
Text = Annotated[str, Form()]

ROLES = [
    (CampaignRole.annotator.value, "Annotator: answers comparisons"),
    (CampaignRole.lead.value, "Lead: settings, people, rounds and exports as well"),
]


@router.get("")
def index(request: Request, db: Db, principal: InBrowser, campaign: LedCampaign) -> Response:
    return _page(request, db, campaign)


def _page(request: Request, db: Db, campaign: Campaign, tried: Attempt | None = None, **typed: Any) -> Response:
    """The whole page; `typed` is what a refused form held, `handover` an address and its link, to show once."""
    defaults: dict[str, Any] = {"email": "", "role": CampaignRole.annotator.value, "handover": None}
    return render(
        request,
        "campaigns/people.html",
        status_code=tried.status if tried else 200,
        campaign=campaign,
        members=members.of(db, campaign.id),
        invites=links.open_invites(db, campaign.id),
        roles=ROLES,
        errors=tried.errors if tried else {},
        **(defaults | typed),
    )


def _role(value: str) -> CampaignRole:
    try:
        return CampaignRole(value)
    except ValueError:
        raise Invalid("Choose one of the two.", "role") from None


@router.post("/invite")
def invite(
    request: Request, db: Db, principal: InBrowser, campaign: LedCampaign, email: Text = "", role: Text = "annotator"
) -> Response:
    """Answers with the page itself: the link is shown here and stored nowhere."""
    with attempt(db) as tried:
        invited = invitations.invite(
            db, principal.user, email, Role.annotator, campaign_id=campaign.id, campaign_role=_role(role)
        )
    if tried.refused:
        return _page(request, db, campaign, tried, email=email, role=role)
    if invited.member is not None:
        said = f"{invited.email} has an account, and is now in the campaign."
        return redirect(request, f"/campaigns/{campaign.id}/people", flash=said)
    link = f"{settings().public_url.rstrip('/')}/invite/{invited.secret}"
    return _page(request, db, campaign, handover=(invited.email, link))


@router.post("/{user_id}/role")
def change_role(
    request: Request, db: Db, principal: InBrowser, campaign: LedCampaign, user_id: uuid.UUID, role: Text = ""
) -> Response:
    with attempt(db) as tried:
        user = members.find(db, campaign, user_id)
        members.change_role(db, campaign, user, _role(role), principal.user)
    if tried.refused:
        return _page(request, db, campaign, tried)
    who = user.name or user.email
    return redirect(request, f"/campaigns/{campaign.id}/people", flash=f"{who} is now {_role(role).value} here.")


@router.post("/{user_id}/remove")
def remove(request: Request, db: Db, principal: InBrowser, campaign: LedCampaign, user_id: uuid.UUID) -> Response:
    with attempt(db) as tried:
        user = members.find(db, campaign, user_id)
        members.remove(db, campaign, user, principal.user)
    if tried.refused:
        return _page(request, db, campaign, tried)
    # Whoever takes themselves out may not look at this page any more.
    to = "/campaigns" if user.id == principal.user.id else f"/campaigns/{campaign.id}/people"
    return redirect(request, to, flash=f"{user.name or user.email} is out of the campaign; their answers stay.")


@router.post("/invites/{link_id}/revoke")
def revoke_invite(
    request: Request, db: Db, principal: InBrowser, campaign: LedCampaign, link_id: uuid.UUID
) -> Response:
    if all(link.id != link_id for link in links.open_invites(db, campaign.id)):
        raise NotFound("There is no such open invitation. It may have been used or withdrawn already.")
    links.revoke_link(db, link_id, actor_id=principal.user.id)
    return redirect(request, f"/campaigns/{campaign.id}/people", flash="The invitation no longer works.")
