"""Campaigns for those who run them: the list, and each one's overview with what needs its lead."""

from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.accounts import access
from app.accounts.models import CampaignRole
from app.annotation.leasing import SKIP_REASONS
from app.campaigns import lifecycle, members
from app.campaigns.models import Campaign, CampaignState
from app.preferences.models import PreferenceDataset
from app.quality import agreement, annotators, progress
from app.rounds import attention, recipes, sampling
from app.rounds import lifecycle as rounds
from app.rounds.models import Round, RoundState, RunState
from app.web import round_view
from app.web.deps import Db, LedCampaign, SignedIn
from app.web.forms import Attempt, attempt
from app.web.templating import redirect, render

router = APIRouter(prefix="/campaigns", include_in_schema=False)

CHART_DAYS = 14


@router.get("")
def index(request: Request, db: Db, principal: SignedIn) -> Response:
    campaigns = sorted(lifecycle.led_by(db, principal.user), key=lambda c: c.state is CampaignState.closed)
    ids = [campaign.id for campaign in campaigns]
    return render(
        request,
        "campaigns/index.html",
        campaigns=campaigns,
        progress=progress.measure(db, ids),
        rounds=rounds.newest(db, ids),
        may_create=access.may_create_campaigns(principal.user.role),
    )


@router.get("/{campaign_id}")
def overview(request: Request, db: Db, campaign: LedCampaign) -> Response:
    return _page(request, db, campaign)


def _page(request: Request, db: Session, campaign: Campaign, tried: Attempt | None = None) -> Response:
    """The overview; a refused button's reason stands beside the button."""
    return render(
        request,
        "campaigns/show.html",
        status_code=tried.status if tried else 200,
        campaign=campaign,
        errors=tried.errors if tried else {},
        **_pulse(db, campaign),
        **_quality(db, campaign),
    )


@router.get("/{campaign_id}/pulse")
def pulse(request: Request, db: Db, campaign: LedCampaign) -> Response:
    """The part of the overview that moves."""
    return render(request, "campaigns/_pulse.html", campaign=campaign, **_pulse(db, campaign))


@router.get("/{campaign_id}/quality")
def quality(request: Request, db: Db, campaign: LedCampaign) -> Response:
    """Annotators, agreement and skips."""
    return render(request, "campaigns/_quality.html", campaign=campaign, **_quality(db, campaign))


def _pulse(db: Session, campaign: Campaign) -> dict[str, Any]:
    counts = progress.measure(db, [campaign.id])[campaign.id]
    a_day, days = progress.pace(db, campaign.id), progress.per_day(db, campaign.id, CHART_DAYS)
    live, finished = rounds.live_round(db, campaign.id), rounds.last_finished(db, campaign.id)
    sample = sampling.newest(db, campaign.id)
    people = members.of(db, campaign.id)
    newest = lifecycle.guidelines(db, campaign.id)
    prompts = lifecycle.prompt_count(db, campaign.id)
    facts = attention.Facts(
        campaign=campaign,
        progress=counts,
        prompts=prompts,
        annotators=sum(member.role is CampaignRole.annotator for member in people),
        has_guidelines=bool(newest and newest.text),
        last_finished=finished,
        last_sample=sample,
        round_live=live is not None and live.state is not RoundState.collecting,
    )
    return {
        "counts": counts,
        "prompt_count": prompts,
        # Twenty quick minutes are not a day's work: no average is above the busiest day there was.
        "pace": min(a_day, max(count for _, count in days)) if a_day else None,
        "seconds_left": progress.seconds_left(counts.left, a_day),
        "days": days,
        "needs": attention.needs(facts),
        "live": live,
        "finished": finished,
        "sampling": sample is not None and sample.state in (RunState.queued, RunState.running),
        "recipe": recipes.parse(campaign.recipe),
        "trainable": rounds.trainable_answers(db, campaign.id),
        "strip": _strip(db, live) if live else [],
    }


def _quality(db: Session, campaign: Campaign) -> dict[str, Any]:
    units = annotators.units(db, campaign.id)
    return {
        "lines": annotators.lines(db, campaign.id, units),
        "prefers_a_position": annotators.prefers_a_position,
        "raw": agreement.raw(units),
        "alpha": agreement.alpha(units),
        "shared": len(agreement.paired(units)),
        "skips": [
            (SKIP_REASONS.get(reason, reason), count) for reason, count in progress.skip_reasons(db, campaign.id)
        ],
    }


def _strip(db: Session, live: Round) -> list[round_view.Step]:
    data = db.get(PreferenceDataset, live.dataset_id) if live.dataset_id else None
    return round_view.strip(live, round_view.runs_of(db, live), data, None)


# ---- buttons ----


@router.post("/{campaign_id}/activate")
def activate(request: Request, db: Db, principal: SignedIn, campaign: LedCampaign) -> Response:
    with attempt(db) as tried:
        lifecycle.activate(db, campaign, principal.user)
        if campaign.policy_id:
            rounds.open_round(db, campaign)
    if tried.refused:
        return _page(request, db, campaign, tried)
    return redirect(request, f"/campaigns/{campaign.id}", flash="Active: annotators are served from now on.")


@router.post("/{campaign_id}/pause")
def pause(request: Request, db: Db, principal: SignedIn, campaign: LedCampaign) -> Response:
    with attempt(db) as tried:
        lifecycle.pause(db, campaign, principal.user)
    if tried.refused:
        return _page(request, db, campaign, tried)
    return redirect(request, f"/campaigns/{campaign.id}", flash="Paused. What annotators hold may still be submitted.")


@router.post("/{campaign_id}/close")
def close(request: Request, db: Db, principal: SignedIn, campaign: LedCampaign) -> Response:
    with attempt(db) as tried:
        lifecycle.close(db, campaign, principal.user)
    if tried.refused:
        return _page(request, db, campaign, tried)
    return redirect(request, f"/campaigns/{campaign.id}", flash="Closed. Everything can still be read and exported.")


@router.post("/{campaign_id}/start-round")
def start_round(request: Request, db: Db, principal: SignedIn, campaign: LedCampaign) -> Response:
    with attempt(db) as tried:
        current = rounds.start(db, campaign, principal.user)
    if tried.refused:
        tried.errors = {"round": " ".join(tried.errors.values())}
        return _page(request, db, campaign, tried)
    to = f"/campaigns/{campaign.id}/rounds/{current.id}"
    return redirect(request, to, flash=f"Round {current.number} has started.")
