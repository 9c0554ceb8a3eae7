"""What has happened in a campaign: who did what, and what the machines did, newest first."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from sqlalchemy import String, cast, func, literal, null, select, union_all
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.accounts.models import User
from app.campaigns.models import Campaign
from app.core.audit import AuditEntry
from app.core.states import StateChange
from app.rounds.models import Round, Run
from app.web.activity_words import Event, sentence
from app.web.deps import Db, LedCampaign
from app.web.templating import render

router = APIRouter(include_in_schema=False)

PAGE = 50


@dataclass(frozen=True)
class Line:
    """A row of the page."""

    at: datetime
    who: str
    """Empty for the system."""
    what: str
    href: str
    is_bad: bool


@router.get("/campaigns/{campaign_id}/activity")
def activity(
    request: Request,
    db: Db,
    campaign: LedCampaign,
    page: Annotated[int, Query(ge=1, le=10_000)] = 1,
) -> Response:
    lines = newest(db, campaign, limit=PAGE + 1, offset=(page - 1) * PAGE)
    return render(
        request,
        "activity/index.html",
        fragment="activity/_index.html",
        campaign=campaign,
        lines=lines[:PAGE],
        page=page,
        more=len(lines) > PAGE,
    )


def newest(db: Session, campaign: Campaign, limit: int = PAGE, offset: int = 0) -> list[Line]:
    """The latest lines, latest first."""
    acts = select(
        AuditEntry.at,
        AuditEntry.id,
        AuditEntry.actor_id,
        AuditEntry.action.label("action"),
        AuditEntry.object_type.label("thing"),
        AuditEntry.object_id.label("thing_id"),
        AuditEntry.detail.label("detail"),
        literal("").label("reason"),
    ).where(AuditEntry.campaign_id == campaign.id)
    both = union_all(acts, _moves(campaign)).subquery()
    rows = db.execute(select(both).order_by(both.c.at.desc(), both.c.id.desc()).limit(limit).offset(offset)).all()
    rounds, stages = _things(db, rows)
    people = _names(db, {row.actor_id for row in rows} | {r.thing_id for r in rows if r.thing == "users"})
    return [_line(campaign, row, rounds, stages, people) for row in rows]


def _moves(campaign: Campaign) -> Any:
    """What rounds and runs did by themselves: what a person made them do is in the audit log already."""
    own = (
        select(Round.id)
        .where(Round.campaign_id == campaign.id)
        .union_all(select(Run.id).where(Run.campaign_id == campaign.id))
    )
    return select(
        StateChange.at,
        StateChange.id,
        StateChange.actor_id,
        func.concat_ws(" ", StateChange.thing, StateChange.old, StateChange.new).label("action"),
        StateChange.thing,
        StateChange.thing_id,
        cast(null(), JSONB).label("detail"),
        cast(StateChange.reason, String).label("reason"),
    ).where(
        StateChange.thing_id.in_(own),
        StateChange.actor_id.is_(None),
        StateChange.new.not_in(["training", "running"]),
    )


def _things(db: Session, rows: Iterable[Any]) -> tuple[dict[uuid.UUID, Round], dict[uuid.UUID, str]]:
    """The round of each thing that is one or belongs to one, and the stage of each run."""
    ids = {row.thing_id for row in rows if row.thing in ("rounds", "runs")}
    rounds = {current.id: current for current in db.scalars(select(Round).where(Round.id.in_(ids)))}
    stages: dict[uuid.UUID, str] = {}
    found = select(Run.id, Run.stage, Round).outerjoin(Round, Round.id == Run.round_id).where(Run.id.in_(ids))
    for run_id, stage, current in db.execute(found):
        stages[run_id] = stage.value
        if current is not None:
            rounds[run_id] = current
    return rounds, stages


def _names(db: Session, ids: set[uuid.UUID | None]) -> dict[uuid.UUID, str]:
    users = db.scalars(select(User).where(User.id.in_([key for key in ids if key])))
    return {user.id: user.name or user.email for user in users}


def _line(
    campaign: Campaign,
    row: Any,
    rounds: dict[uuid.UUID, Round],
    stages: dict[uuid.UUID, str],
    people: dict[uuid.UUID, str],
) -> Line:
    current = rounds.get(row.thing_id)
    event = Event(
        action=row.action,
        detail=row.detail or {},
        round=current.number if current else None,
        stage=stages.get(row.thing_id, ""),
        person=people.get(row.thing_id, "") if row.thing == "users" else "",
        reason=row.reason,
    )
    return Line(
        at=row.at,
        who=people.get(row.actor_id, "somebody whose account is gone") if row.actor_id else "",
        what=sentence(event),
        href=f"/campaigns/{campaign.id}/rounds/{current.id}" if current else "",
        is_bad=row.action.endswith(" failed"),
    )
