"""Campaigns, their prompts and comparisons."""

import json
import tempfile
import uuid
from collections.abc import Iterator
from typing import IO, Annotated, Any

from fastapi import APIRouter, Depends, Request
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.annotation.models import Annotation
from app.campaigns import lifecycle, prompts
from app.campaigns.models import Campaign
from app.campaigns.prompts import Report
from app.checkpoints import lineage
from app.checkpoints.models import Checkpoint
from app.comparisons.models import Comparison, ComparisonState
from app.core.errors import Invalid, TooLarge
from app.preferences import importing
from app.rounds import lifecycle as rounds
from app.rounds import recipes
from app.web.api.shapes import CampaignOut, CheckpointOut, Created, ImportReport, NewCampaign
from app.web.deps import CampaignCreator, Db, LedCampaign, MemberCampaign, SignedIn

router = APIRouter(tags=["campaigns"])

STREAM_LIMIT = 2 << 30
"""Of an NDJSON import, which is spooled to disk and read line by line: some millions of comparisons."""

MAX_LIST_BYTES = 50 << 20
"""Of a body that is one JSON list; NDJSON is streamed and may be as large as any import."""


@router.post("/campaigns", status_code=201)
def create_campaign(db: Db, principal: CampaignCreator, body: NewCampaign) -> Created:
    recipes.parse(body.recipe)
    policy = find_policy(db, body.policy) if body.policy else None
    campaign = lifecycle.create(
        db,
        principal.user,
        name=body.name,
        kind=body.kind,
        overlap=body.overlap,
        scale=body.scale,
        guidelines=body.guidelines,
        policy_id=policy.id if policy else None,
        recipe=body.recipe,
    )
    if body.activate:
        lifecycle.activate(db, campaign, principal.user, empty=True)
    return Created(id=str(campaign.id), status=campaign.state.value)


def find_policy(db: Session, which: str) -> Checkpoint:
    """A base policy by id or name. Raises `Invalid` listing what there is."""
    known = lineage.usable_policies(db, None)
    for checkpoint in known:
        if which in (str(checkpoint.id), checkpoint.name, checkpoint.uri.removeprefix(lineage.HUB)):
            return checkpoint
    names = ", ".join(repr(c.name) for c in known) or "none yet; `tiebreak model add` registers one"
    raise Invalid(f"There is no policy {which!r} to start from. Registered: {names}.", "policy")


@router.get("/campaigns")
def list_campaigns(db: Db, principal: SignedIn) -> list[CampaignOut]:
    return [describe(db, campaign) for campaign in lifecycle.visible_to(db, principal.user)]


@router.get("/campaigns/{campaign_id}")
def get_campaign(db: Db, campaign: MemberCampaign) -> CampaignOut:
    return describe(db, campaign)


def describe(db: Session, campaign: Campaign) -> CampaignOut:
    states = dict(
        db.execute(
            select(Comparison.state, func.count())
            .where(Comparison.campaign_id == campaign.id)
            .group_by(Comparison.state)
        ).all()
    )
    answers = select(func.count()).where(Annotation.campaign_id == campaign.id, Annotation.superseded_at.is_(None))
    return CampaignOut(
        id=str(campaign.id),
        name=campaign.name,
        kind=campaign.kind.value,
        status=campaign.state.value,
        overlap=campaign.overlap,
        scale=campaign.scale,
        policy=str(campaign.policy_id) if campaign.policy_id else None,
        open=states.get(ComparisonState.open, 0),
        resolved=states.get(ComparisonState.resolved, 0),
        answers=db.scalar(answers) or 0,
    )


@router.post("/campaigns/{campaign_id}/activate")
def activate_campaign(db: Db, principal: SignedIn, campaign: LedCampaign) -> Created:
    lifecycle.activate(db, campaign, principal.user)
    if campaign.policy_id:
        rounds.open_round(db, campaign)
    return Created(id=str(campaign.id), status=campaign.state.value)


@router.post("/campaigns/{campaign_id}/pause")
def pause_campaign(db: Db, principal: SignedIn, campaign: LedCampaign) -> Created:
    lifecycle.pause(db, campaign, principal.user)
    return Created(id=str(campaign.id), status=campaign.state.value)


@router.post("/campaigns/{campaign_id}/close")
def close_campaign(db: Db, principal: SignedIn, campaign: LedCampaign) -> Created:
    lifecycle.close(db, campaign, principal.user)
    return Created(id=str(campaign.id), status=campaign.state.value)


async def spooled(request: Request) -> Any:
    """The request's body as a file, spooled to disk beyond a megabyte, so that a million lines need no memory."""
    with tempfile.SpooledTemporaryFile(max_size=1 << 20) as file:
        async for part in request.stream():
            file.write(part)
        file.seek(0)
        yield file


Spooled = Annotated[Any, Depends(spooled)]


def records(file: IO[bytes]) -> Iterator[tuple[int, Any]]:
    """`(line number, value or Invalid)` of an NDJSON body, or `(place, value)` of one JSON list."""
    start = file.read(256).lstrip()
    file.seek(0)
    if not start.startswith(b"["):
        yield from importing.lines(file)
        return
    body = file.read(MAX_LIST_BYTES + 1)
    if len(body) > MAX_LIST_BYTES:
        raise TooLarge(f"A JSON list may have {MAX_LIST_BYTES >> 20} MB; send more as NDJSON, one object a line.")
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"The body is neither NDJSON nor a valid JSON list: {error}.") from None
    yield from enumerate(values, start=1)


def reported(report: Report) -> ImportReport:
    return ImportReport(
        created=report.created,
        duplicates=report.duplicates,
        rejected=report.rejected,
        rejected_count=report.rejected_count,
    )


BODY = {"requestBody": {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}, "required": True}}


@router.post("/campaigns/{campaign_id}/comparisons", openapi_extra=BODY, max_body_size=STREAM_LIMIT)
def import_comparisons(db: Db, campaign: LedCampaign, body: Spooled) -> ImportReport:
    """NDJSON (or a JSON list) of `{prompt, completions: [{text, source?}], gold?, annotations?, meta?}`, or of
    `{prompt, chosen, rejected}`. Good lines are stored, bad ones reported by number; known ones count as duplicates."""
    return reported(importing.import_comparisons(db, campaign, records(body)))


@router.post("/campaigns/{campaign_id}/prompts", openapi_extra=BODY, max_body_size=STREAM_LIMIT)
def import_prompts(db: Db, campaign: LedCampaign, body: Spooled) -> ImportReport:
    """NDJSON (or a JSON list) of prompts: strings, message lists, or `{"prompt": …}`."""
    values = (
        (line, value["prompt"] if isinstance(value, dict) and "prompt" in value else value)
        for line, value in records(body)
    )
    return reported(prompts.add(db, campaign, values))


@router.get("/checkpoints")
def list_checkpoints(db: Db, principal: CampaignCreator, campaign: str | None = None) -> list[CheckpointOut]:
    """Base models; with `?campaign=ID` also what that campaign's rounds made."""
    own: uuid.UUID | None = None
    if campaign:
        visible = {str(c.id): c.id for c in lifecycle.visible_to(db, principal.user)}
        own = visible.get(campaign)
    return [
        CheckpointOut(
            id=str(c.id),
            name=c.name,
            kind=c.kind.value,
            campaign_id=str(c.campaign_id) if c.campaign_id else None,
            parent_id=str(c.parent_id) if c.parent_id else None,
            metrics=c.metrics,
            created_at=c.created_at,
        )
        for c in lineage.usable_policies(db, own)
    ]
