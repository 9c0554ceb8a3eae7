"""Preferences on their way out, and how far annotators agree."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import text

from app.campaigns.models import Campaign
from app.core import audit
from app.core.db import transaction
from app.preferences import export
from app.quality import agreement, annotators
from app.quality.agreement import NOT_ENOUGH, Estimate
from app.web.api.shapes import Figure
from app.web.deps import Db, LedCampaign, SignedIn

router = APIRouter(tags=["preferences"])


@router.get("/campaigns/{campaign_id}/preferences")
def preferences(
    db: Db,
    principal: SignedIn,
    campaign: LedCampaign,
    format: Annotated[Literal["jsonl", "parquet"], Query()] = "jsonl",
) -> Response:
    """Every current preference pair: `prompt, chosen, rejected` (conversational), `margin, weight, …`."""
    audit.record(db, principal.user.id, "preferences.export", campaign, campaign_id=campaign.id, format=format)
    name = f'attachment; filename="preferences-{campaign.id}.{format}"'
    if format == "parquet":
        body = export.parquet(db, campaign)
        return Response(body, media_type="application/vnd.apache.parquet", headers={"Content-Disposition": name})
    return StreamingResponse(
        _stream(campaign), media_type="application/x-ndjson", headers={"Content-Disposition": name}
    )


def _stream(campaign: Campaign) -> Iterator[str]:
    """The request's session is gone when a response streams, so the export reads one snapshot in its own."""
    with transaction() as session:
        session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        yield from export.jsonl(session, campaign)


def figure(estimate: Estimate) -> Figure:
    note = "" if estimate.value is not None else NOT_ENOUGH
    return Figure(value=estimate.value, low=estimate.low, high=estimate.high, count=estimate.count, note=note)


@router.get("/campaigns/{campaign_id}/agreement")
def campaign_agreement(db: Db, campaign: LedCampaign) -> dict[str, Any]:
    """Raw agreement, Krippendorff's α and Cohen's κ, with 95 % intervals and counts; per annotator as well."""
    units = annotators.units(db, campaign.id)
    return {
        "comparisons": sum(len(labels) > 1 for labels in units.values()),
        "raw": figure(agreement.raw(units)),
        "alpha": figure(agreement.alpha(units)),
        "kappas": [
            {"annotators": list(who), **figure(estimate).model_dump()}
            for who, estimate in agreement.kappas(units).items()
        ],
        "annotators": [
            {
                "id": str(line.annotator_id),
                "answers": line.answers,
                "skipped": line.skipped,
                "median_seconds": line.median_seconds,
                "agreement": figure(line.agreement),
                "first_position_share": figure(line.first_share),
            }
            for line in annotators.lines(db, campaign.id, units)
        ],
    }
