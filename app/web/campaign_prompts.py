"""A campaign's prompts and the ways in which comparisons come to it: sampling and import."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.campaigns import lifecycle, prompts
from app.campaigns.models import Campaign
from app.campaigns.prompts import Report
from app.core import audit
from app.core.errors import Invalid
from app.preferences import importing
from app.quality import progress
from app.rounds import recipes, sampling
from app.rounds.models import RunState
from app.web.deps import Db, LedCampaign, SignedIn
from app.web.forms import Attempt, attempt
from app.web.limits import IMPORT_BODY_LIMIT
from app.web.submitted import Submitted, format_of, read_text, texts, upload
from app.web.templating import redirect, render

router = APIRouter(prefix="/campaigns/{campaign_id}/prompts", include_in_schema=False)

PAGE_SIZE = 25
MAX_MENDABLE = 50_000
"""Characters of refused lines that come back into the field."""


@router.get("")
def index(
    request: Request, db: Db, campaign: LedCampaign, q: str = "", page: Annotated[int, Query(ge=1, le=100_000)] = 1
) -> Response:
    return _page(request, db, campaign, q=q, page=page)


def _page(
    request: Request,
    db: Session,
    campaign: Campaign,
    tried: Attempt | None = None,
    *,
    q: str = "",
    page: int = 1,
    report: tuple[str, Report] | None = None,
    **typed: Any,
) -> Response:
    """The whole page; `report` says what became of an upload, and of which."""
    found, total = prompts.search(db, campaign.id, q.strip(), page=page, size=PAGE_SIZE)
    sample = sampling.newest(db, campaign.id)
    return render(
        request,
        "campaigns/prompts.html",
        status_code=tried.status if tried else 200,
        campaign=campaign,
        found=found,
        total=total,
        every=lifecycle.prompt_count(db, campaign.id),
        q=q,
        page=page,
        pages=max(1, -(-total // PAGE_SIZE)),
        counts=progress.measure(db, [campaign.id])[campaign.id],
        sample=sample,
        sampling=sample is not None and sample.state in (RunState.queued, RunState.running),
        batch=recipes.parse(campaign.recipe).batch_prompts,
        report=report,
        errors=tried.errors if tried else {},
        **({"prompts": ""} | typed),
    )


@router.post("", max_body_size=IMPORT_BODY_LIMIT)
def add(request: Request, db: Db, principal: SignedIn, campaign: LedCampaign, form: Submitted) -> Response:
    """Good lines are stored at once; bad ones are named, and pasted ones come back to be mended."""
    pasted, file = texts(form).get("prompts", ""), upload(form, "file")
    mend, what = "", "The lines that you pasted"
    report = Report()
    with attempt(db) as tried:
        lifecycle.require_not_closed(campaign)
        if file is not None:
            what, text = file[0], read_text(*file, "file")
            report = prompts.add(db, campaign, prompts.read(text, format_of(what, text)))
        elif pasted.strip():
            report = prompts.add(db, campaign, prompts.read(pasted, "lines"))
            bad = {fault["line"] for fault in report.rejected}
            mend = "\n".join(line for n, line in enumerate(pasted.split("\n"), start=1) if n in bad)
        else:
            raise Invalid("Paste some prompts, or choose a file.", "prompts")
        audit.record(db, principal.user.id, "prompts.add", campaign, campaign_id=campaign.id, created=report.created)
    if tried.refused:
        return _page(request, db, campaign, tried, prompts=pasted)
    if not report.rejected_count:
        return redirect(request, f"/campaigns/{campaign.id}/prompts", flash=_said(report, "prompt"))
    return _page(request, db, campaign, report=(what, report), prompts=mend if len(mend) <= MAX_MENDABLE else "")


@router.post("/comparisons", max_body_size=IMPORT_BODY_LIMIT)
def import_comparisons(
    request: Request, db: Db, principal: SignedIn, campaign: LedCampaign, form: Submitted
) -> Response:
    """JSONL of comparisons, with or without what people said of them."""
    file = upload(form, "comparisons")
    report = Report()
    with attempt(db) as tried:
        lifecycle.require_not_closed(campaign)
        if file is None:
            raise Invalid("Choose a JSONL file.", "comparisons")
        report = importing.import_comparisons(db, campaign, importing.lines(file[1]))
        audit.record(
            db, principal.user.id, "comparisons.import", campaign, campaign_id=campaign.id, created=report.created
        )
    if tried.refused or file is None:
        return _page(request, db, campaign, tried)
    if not report.rejected_count:
        return redirect(request, f"/campaigns/{campaign.id}/prompts", flash=_said(report, "comparison"))
    return _page(request, db, campaign, report=(file[0], report))


def _said(report: Report, noun: str) -> str:
    known = f" {report.duplicates:,} were here already." if report.duplicates else ""
    return f"{report.created:,} {noun}{'' if report.created == 1 else 's'} added.{known}"


@router.post("/sample")
def sample_batch(request: Request, db: Db, principal: SignedIn, campaign: LedCampaign) -> Response:
    with attempt(db) as tried:
        sampling.request(db, campaign, principal.user)
    if tried.refused:
        tried.errors = {"sample": " ".join(tried.errors.values())}
        return _page(request, db, campaign, tried)
    return redirect(request, f"/campaigns/{campaign.id}/prompts", flash="A batch is being sampled.")
