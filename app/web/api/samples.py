"""Trying checkpoints out: the same prompts put to any of them, sampled by the worker."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import Field

from app.core.db import require
from app.rounds import runs, trying
from app.rounds.models import Run
from app.web.api import rounds
from app.web.api.shapes import Request as Body
from app.web.api.shapes import RunOut
from app.web.deps import Db, LedCampaign, SignedIn, require_lead
from app.web.policies import policy

router = APIRouter(tags=["checkpoints"])


@policy("lead of the run's campaign")
def led_run(request: Request, db: Db, principal: SignedIn, run_id: str) -> Run:
    """Leads of its campaign and administrators."""
    run = require(db, Run, run_id)
    require_lead(request, db, principal, run.campaign_id, missing="There is no such run.")
    return run


LedRun = Annotated[Run, Depends(led_run)]


class NewSamples(Body):
    checkpoints: list[str] = Field(min_length=1, max_length=4)
    prompts: list[Any] = Field(description="Strings, or lists of messages.")
    recipe: dict[str, Any] = Field(default_factory=dict, description="Keys of the sampling recipe: n, temperature, …")


class SamplesOut(RunOut):
    completions: list[dict[str, Any]] = Field(description="Per prompt; empty until the run has succeeded.")


@router.post("/campaigns/{campaign_id}/samples", status_code=202)
def sample(db: Db, campaign: LedCampaign, body: NewSamples) -> list[dict[str, str]]:
    """Sample from up to four checkpoints; one run each. Poll `GET /runs/{id}` for what they say."""
    found = [trying.policy_of(db, campaign, checkpoint) for checkpoint in body.checkpoints]
    queued = [trying.queue(db, campaign, checkpoint, body.prompts, body.recipe) for checkpoint in found]
    return [{"checkpoint": str(c.id), "run": str(r.id)} for c, r in zip(found, queued, strict=True)]


@router.get("/runs/{run_id}")
def get_run(db: Db, run: LedRun) -> SamplesOut:
    return SamplesOut(**rounds.run_out(db, run).model_dump(), completions=trying.completions(run))


@router.post("/runs/{run_id}/cancel")
def cancel_run(db: Db, run: LedRun) -> RunOut:
    runs.request_cancel(db, run)
    return rounds.run_out(db, run)
