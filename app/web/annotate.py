"""The annotator's workspace: one comparison on screen, the next one behind it, and the list of one's own answers.

Every act is a form that works by plain HTTP. `static/annotate.js` sends the same forms in the background and asks for
the next comparison as a fragment (`HX-Request`), so the browser never renders anybody's Markdown itself. Nothing here
says where a completion came from, nor which batch or round it belongs to.
"""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.annotation import choices, comments, leasing, presentation, submission, worklist
from app.annotation.models import Annotator, Assignment
from app.annotation.scales import Scale
from app.campaigns import lifecycle
from app.campaigns.models import Campaign
from app.core.errors import Conflict
from app.web.api.annotation import Own, identities
from app.web.deps import AnnotatedCampaign, Db, InBrowser
from app.web.forms import Attempt, attempt
from app.web.templating import is_htmx, redirect, render

router = APIRouter(include_in_schema=False)
Text = Annotated[str, Form()]
Holding = Annotated[list[str] | None, Form(max_length=50)]

PER_PAGE = 50


@dataclass(frozen=True)
class Typed:
    """What a comparison's form holds when it comes."""

    choice: str = ""
    comment: str = ""


@router.get("/campaigns/{campaign_id}/annotate")
def workspace(request: Request, db: Db, principal: InBrowser, campaign: AnnotatedCampaign) -> Response:
    """The page, with whatever this annotator holds or else a fresh lease."""
    return _following(request, db, campaign, leasing.annotator_of(db, principal.user))


@router.post("/campaigns/{campaign_id}/annotate/next")
def following(
    request: Request, db: Db, principal: InBrowser, campaign: AnnotatedCampaign, holding: Holding = None
) -> Response:
    """A comparison other than those at hand: leased and drawn ahead, so that a submit need not wait for it."""
    return _following(request, db, campaign, leasing.annotator_of(db, principal.user), holding)


@router.post("/campaigns/{campaign_id}/annotate/renew", status_code=204)
def renew(db: Db, principal: InBrowser, campaign: AnnotatedCampaign, holding: Holding = None) -> None:
    """Still at it: what is at hand stays leased."""
    annotator = leasing.annotator_of(db, principal.user)
    for identity in identities(holding or []):
        leasing.renew(db, submission.own_assignment(db, annotator, identity))


@router.post("/assignments/{assignment_id}/answer")
def answer(
    request: Request,
    db: Db,
    own: Own,
    _: InBrowser,
    choice: Text = "",
    comment: Text = "",
    key: Annotated[str, Form(max_length=200)] = "",
    elapsed_ms: Annotated[int | None, Form()] = None,
    holding: Holding = None,
) -> Response:
    """Store the answer, once, and go on to the next. A refused one comes back with everything that was typed."""
    if is_htmx(request):
        _decide(db, own.campaign, own.assignment, choice, comment, key, elapsed_ms)
        return _following(request, db, own.campaign, own.annotator, holding)
    with attempt(db) as tried:
        _decide(db, own.campaign, own.assignment, choice, comment, key, elapsed_ms)
    if tried.refused:
        return _page(request, db, own.campaign, own.annotator, own.assignment, Typed(choice, comment), tried)
    return _onwards(request, own.campaign)


def _decide(
    db: Session,
    campaign: Campaign,
    assignment: Assignment,
    choice: str,
    comment: str,
    key: str,
    elapsed_ms: int | None,
) -> None:
    if choice == choices.CANNOT_JUDGE:
        leasing.skip(db, assignment, choices.CANNOT_JUDGE, comment)
        return
    said = choices.answer(choice, assignment.shown, comment, elapsed_ms)
    submission.submit(db, campaign, assignment, said, key)


@router.post("/assignments/{assignment_id}/skip")
def skip(
    request: Request,
    db: Db,
    own: Own,
    _: InBrowser,
    reason: Text = "",
    comment: Text = "",
    holding: Holding = None,
) -> Response:
    """Give the comparison back with a reason, and go on."""
    if is_htmx(request):
        leasing.skip(db, own.assignment, reason, comment)
        return _following(request, db, own.campaign, own.annotator, holding)
    with attempt(db) as tried:
        leasing.skip(db, own.assignment, reason, comment)
    return _onwards(request, own.campaign, " ".join(tried.errors.values()))


@router.post("/campaigns/{campaign_id}/annotate/undo")
def undo(request: Request, db: Db, principal: InBrowser, campaign: AnnotatedCampaign) -> Response:
    """Take the last answer or skip back; its comparison is on screen again, with what was said of it."""
    annotator = leasing.annotator_of(db, principal.user)
    if is_htmx(request):
        return _page(request, db, campaign, annotator, submission.undo_last(db, campaign, annotator))
    with attempt(db) as tried:
        submission.undo_last(db, campaign, annotator)
    return _onwards(request, campaign, " ".join(tried.errors.values()), done="The last one is open again.")


@router.get("/campaigns/{campaign_id}/mine")
def mine(
    request: Request, db: Db, principal: InBrowser, campaign: AnnotatedCampaign, page: Annotated[int, Query(ge=1)] = 1
) -> Response:
    """My answers in this campaign, the newest first."""
    annotator = worklist.known_annotator(db, principal.user)
    offset = (page - 1) * PER_PAGE
    found = worklist.answers(db, campaign, annotator, limit=PER_PAGE + 1, offset=offset) if annotator else []
    return render(
        request,
        "annotate/mine.html",
        campaign=campaign,
        answers=found[:PER_PAGE],
        page=page,
        more=len(found) > PER_PAGE,
        work=worklist.in_campaign(db, annotator, campaign),
    )


def _onwards(request: Request, campaign: Campaign, refused: str = "", done: str = "") -> Response:
    flash, kind = (refused, "danger") if refused else (done, "success")
    return redirect(request, f"/campaigns/{campaign.id}/annotate", flash=flash, kind=kind)


def _following(
    request: Request, db: Session, campaign: Campaign, annotator: Annotator, holding: list[str] | None = None
) -> Response:
    """The next comparison, or why there is none. What was done before stands either way."""
    try:
        assignment = leasing.next_assignment(db, campaign, annotator, identities(holding or []))
    except Conflict as refused:
        return _page(request, db, campaign, annotator, None, why=refused.message)
    return _page(request, db, campaign, annotator, assignment)


def _page(
    request: Request,
    db: Session,
    campaign: Campaign,
    annotator: Annotator,
    assignment: Assignment | None,
    typed: Typed | None = None,
    tried: Attempt | None = None,
    why: str = "",
) -> Response:
    """The workspace, or to a script the comparison alone; `why` says what keeps it empty."""
    typed = typed or (_said_before(db, assignment) if assignment else Typed())
    return render(
        request,
        "annotate/index.html",
        fragment="annotate/_view.html",
        status_code=tried.status if tried else 200,
        campaign=campaign,
        guidelines=lifecycle.guidelines(db, campaign.id),
        work=worklist.in_campaign(db, annotator, campaign),
        why=why,
        errors=tried.errors if tried else {},
        **comparison(campaign, presentation.show(db, assignment) if assignment else None, typed),
    )


def comparison(campaign: Campaign, shown: presentation.Shown | None, typed: Typed) -> dict[str, Any]:
    """What `annotate/_comparison.html` needs besides the campaign; the lead's preview shows the same."""
    scale = Scale(campaign.scale)
    return {
        "shown": shown,
        "steps": choices.steps([completion["id"] for completion in shown.completions], scale) if shown else [],
        "others": choices.others(scale),
        "letters": choices.LETTERS,
        "reasons": leasing.SKIP_REASONS,
        "most": comments.MAX_COMMENT,
        "chosen": typed.choice,
        "comment": typed.comment,
    }


def _said_before(db: Session, assignment: Assignment) -> Typed:
    """After an undo the form begins with what was said, so that one thing can be put right and the rest stays."""
    earlier = worklist.earlier_answer(db, assignment)
    if earlier is None:
        unsure = assignment.skip_reason == choices.CANNOT_JUDGE
        return Typed(choices.CANNOT_JUDGE if unsure else "", assignment.skip_comment)
    return Typed(choices.value_of(earlier.ranking, earlier.strength, earlier.flags), earlier.comment)
