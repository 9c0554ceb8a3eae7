"""The start page: my campaigns, what is left for me in each, and the way back to work."""

import uuid
from dataclasses import dataclass

from fastapi import APIRouter, Request
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.accounts import access
from app.accounts.models import CampaignRole, Membership, Role, User
from app.annotation import worklist
from app.annotation.worklist import Work
from app.campaigns import lifecycle
from app.campaigns.models import Campaign, CampaignState
from app.web.deps import Db, SignedIn
from app.web.templating import render

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Card:
    campaign: Campaign
    work: Work
    leads: bool

    @property
    def open(self) -> bool:
        """There is something to do here right now."""
        return self.campaign.state is CampaignState.active and self.work.left > 0

    @property
    def rank(self) -> tuple[int, int]:
        """Where I was today first, then where there is work, then what runs, then the rest."""
        state = list(CampaignState).index(self.campaign.state)
        return (0 if self.open else 1, -self.work.today if self.open else state)


@router.get("/")
def home(request: Request, db: Db, principal: SignedIn) -> Response:
    user = principal.user
    campaigns = lifecycle.visible_to(db, user)
    work = worklist.in_campaigns(db, worklist.known_annotator(db, user), [c.id for c in campaigns])
    led = {c.id for c in campaigns} if user.role is Role.admin else _led_by(db, user)
    cards = sorted((Card(c, work[c.id], c.id in led) for c in campaigns), key=lambda card: card.rank)
    return render(
        request,
        "home/index.html",
        cards=cards,
        today=sum(card.work.today for card in cards),
        seconds_today=sum(card.work.seconds_today for card in cards),
        may_create=access.may_create_campaigns(user.role),
    )


def _led_by(db: Session, user: User) -> set[uuid.UUID]:
    led = select(Membership.campaign_id).where(Membership.user_id == user.id, Membership.role == CampaignRole.lead)
    return set(db.scalars(led))
