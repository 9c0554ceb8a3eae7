"""Rounds: start one, watch it, stop it, overrule it."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Request
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.campaigns.models import Campaign
from app.core.db import require
from app.preferences.models import PreferenceDataset
from app.rounds import gates, lifecycle, recipes, runs
from app.rounds.models import Round, RoundState, Run, RunMetric, Stage
from app.web.api.shapes import GateOut, Reason, RoundOut, RunOut
from app.web.deps import Db, LedCampaign, SignedIn, require_lead
from app.web.policies import policy

router = APIRouter(tags=["rounds"])


@policy("lead of the round's campaign")
def led_round(request: Request, db: Db, principal: SignedIn, round_id: str) -> Round:
    """Leads of its campaign and administrators."""
    current = require(db, Round, round_id)
    require_lead(request, db, principal, current.campaign_id, missing="There is no such round.")
    return current


LedRound = Annotated[Round, Depends(led_round)]


@router.post("/campaigns/{campaign_id}/rounds", status_code=202)
def start_round(
    db: Db, principal: SignedIn, campaign: LedCampaign, overrides: Annotated[dict[str, Any] | None, Body()] = None
) -> dict[str, Any]:
    """Begin training on what has been answered. The body overrides the campaign's recipe for this round."""
    current = lifecycle.start(db, campaign, principal.user, overrides)
    return {"id": str(current.id), "number": current.number, "status": current.state.value}


@router.get("/campaigns/{campaign_id}/rounds")
def list_rounds(db: Db, campaign: LedCampaign) -> list[RoundOut]:
    found = db.scalars(select(Round).where(Round.campaign_id == campaign.id).order_by(Round.number))
    return [describe(db, current) for current in found]


@router.get("/rounds/{round_id}")
def get_round(db: Db, current: LedRound) -> RoundOut:
    return describe(db, current)


@router.post("/rounds/{round_id}/cancel")
def cancel_round(db: Db, principal: SignedIn, current: LedRound) -> RoundOut:
    lifecycle.cancel(db, current, principal.user)
    return describe(db, current)


@router.post("/rounds/{round_id}/promote")
def promote_round(db: Db, principal: SignedIn, current: LedRound, body: Reason) -> RoundOut:
    """Promote a rejected candidate all the same. The reason is kept."""
    return _override(db, principal, current, RoundState.promoted, body.reason)


@router.post("/rounds/{round_id}/reject")
def reject_round(db: Db, principal: SignedIn, current: LedRound, body: Reason) -> RoundOut:
    """Roll a promotion back: the policy before it is current again. The reason is kept."""
    return _override(db, principal, current, RoundState.rejected, body.reason)


def _override(db: Session, principal: SignedIn, current: Round, to: RoundState, reason: str) -> RoundOut:
    campaign = db.get_one(Campaign, current.campaign_id)
    lifecycle.override(db, campaign, current, principal.user, to, reason)
    return describe(db, current)


def run_out(db: Session, run: Run) -> RunOut:
    metrics = run.result.get("metrics")
    newest = db.execute(
        select(RunMetric.step, RunMetric.metrics).where(RunMetric.run_id == run.id).order_by(RunMetric.step.desc())
    ).first()
    seconds = (run.finished_at - run.started_at).total_seconds() if run.finished_at and run.started_at else None
    return RunOut(
        id=str(run.id),
        stage=run.stage.value,
        status=run.state.value,
        attempt=run.attempt,
        error=run.error,
        started_at=run.started_at,
        finished_at=run.finished_at,
        seconds=seconds,
        steps=newest[0] if newest else None,
        total_steps=run.total_steps,
        metrics=metrics if metrics is not None else (newest[1] if newest else {}),
    )


def describe(db: Session, current: Round) -> RoundOut:
    found = runs.newest(db, current.id)
    data = db.get(PreferenceDataset, current.dataset_id) if current.dataset_id else None
    measured = gates.measurements(
        found[Stage.reward].result.get("metrics", {}) if Stage.reward in found else {},
        found[Stage.evaluate].result.get("metrics", {}) if Stage.evaluate in found else {},
    )
    seconds = None
    if current.started_at and current.finished_at:
        seconds = (current.finished_at - current.started_at).total_seconds()
    candidate = str(current.candidate_id) if current.candidate_id else None
    return RoundOut(
        id=str(current.id),
        campaign_id=str(current.campaign_id),
        number=current.number,
        status=current.state.value,
        trigger=current.trigger,
        method=recipes.parse(current.recipe).method,
        started_at=current.started_at,
        finished_at=current.finished_at,
        seconds=seconds,
        error=current.error,
        decision_reason=current.decision_reason,
        train_pairs=data.train_pairs if data else None,
        held_out_pairs=data.held_out_pairs if data else None,
        runs=[run_out(db, run) for run in found.values()],
        metrics=measured,
        gates=[GateOut.model_validate(g, extra="ignore") for g in current.gates],
        candidate_checkpoint=candidate,
        promoted_checkpoint=candidate if current.state is RoundState.promoted else None,
    )
