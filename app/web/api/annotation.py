"""What an annotator, or a program in an annotator's place, does: lease, answer, skip, undo."""

import uuid
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from sqlalchemy.orm import Session

from app.annotation import leasing, presentation, submission
from app.annotation.models import Annotator, Assignment
from app.annotation.submission import Answer, Receipt
from app.campaigns.models import Campaign
from app.core.errors import Conflict, Invalid
from app.web.api.shapes import AnnotationOut, AssignmentOut, Lease, NewAnnotation, Skip
from app.web.deps import AnnotatedCampaign, Db, SignedIn, require_annotator
from app.web.policies import policy

router = APIRouter(tags=["annotating"])


class OwnAssignment:
    """An assignment of the caller's, with its campaign."""

    def __init__(self, assignment: Assignment, campaign: Campaign, annotator: Annotator) -> None:
        self.assignment, self.campaign, self.annotator = assignment, campaign, annotator


@policy("own assignment")
def own_assignment(request: Request, db: Db, principal: SignedIn, assignment_id: str) -> OwnAssignment:
    """Whoever it was leased to; to anybody else it does not exist."""
    annotator = leasing.annotator_of(db, principal.user)
    assignment = submission.own_assignment(db, annotator, assignment_id)
    campaign = require_annotator(request, db, principal, assignment.campaign_id)
    return OwnAssignment(assignment, campaign, annotator)


Own = Annotated[OwnAssignment, Depends(own_assignment)]


def shown(db: Session, assignment: Assignment) -> AssignmentOut:
    return AssignmentOut.model_validate(presentation.show(db, assignment).as_json())


def identities(values: list[str]) -> set[uuid.UUID]:
    try:
        return {uuid.UUID(value) for value in values}
    except ValueError:
        raise Invalid("holding must be assignment ids.", "holding") from None


@router.post(
    "/campaigns/{campaign_id}/assignments",
    status_code=201,
    response_model=AssignmentOut,
    responses={204: {"description": "Nothing is left for you in this campaign at present."}},
)
def lease(
    db: Db, principal: SignedIn, campaign: AnnotatedCampaign, body: Lease | None = None
) -> AssignmentOut | Response:
    """Lease the next comparison. What you were given and have not answered comes first."""
    annotator = leasing.annotator_of(db, principal.user)
    holding = identities(body.holding) if body else set()
    assignment = leasing.next_assignment(db, campaign, annotator, holding)
    return shown(db, assignment) if assignment else Response(status_code=204)


@router.put("/assignments/{assignment_id}/annotation")
def submit(
    db: Db,
    own: Own,
    body: NewAnnotation,
    idempotency_key: Annotated[str, Header(max_length=200)] = "",
    next: Annotated[bool, Query()] = False,
    holding: Annotated[list[str] | None, Query()] = None,
) -> AnnotationOut:
    """Answer, once: the same key or the same content returns what is stored. Other content is its next version."""
    receipt = submission.submit(db, own.campaign, own.assignment, Answer(**body.model_dump()), idempotency_key)
    following = None
    if next:
        try:
            following = leasing.next_assignment(db, own.campaign, own.annotator, identities(holding or []))
        except Conflict:
            following = None  # the answer is stored whether or not the campaign still serves
    return annotation_out(receipt, shown(db, following) if following else None)


def annotation_out(receipt: Receipt, following: AssignmentOut | None) -> AnnotationOut:
    stored = receipt.annotation
    return AnnotationOut(
        id=str(stored.id),
        assignment_id=str(stored.assignment_id),
        comparison_id=str(stored.comparison_id),
        ranking=stored.ranking,
        strength=stored.strength,
        flags=stored.flags,
        reasons=stored.reasons,
        comment=stored.comment,
        version=stored.version,
        surplus=stored.surplus,
        created_at=stored.created_at,
        next=following,
    )


@router.post("/assignments/{assignment_id}/skip", status_code=200)
def skip(db: Db, own: Own, body: Skip) -> dict[str, str]:
    """Give a comparison back; it goes to somebody else and does not come to you again."""
    leasing.skip(db, own.assignment, body.reason, body.comment)
    return {"id": str(own.assignment.id), "status": own.assignment.state.value}


@router.post("/assignments/{assignment_id}/renew")
def renew(db: Db, own: Own) -> AssignmentOut:
    """The annotator is still at it: the lease starts anew."""
    leasing.renew(db, own.assignment)
    return shown(db, own.assignment)


@router.post("/campaigns/{campaign_id}/undo")
def undo(db: Db, principal: SignedIn, campaign: AnnotatedCampaign) -> AssignmentOut:
    """Take back your last answer in this campaign; its comparison is yours to answer again."""
    annotator = leasing.annotator_of(db, principal.user)
    return shown(db, submission.undo_last(db, campaign, annotator))
