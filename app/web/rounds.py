"""Rounds on the lead's screen: the list, one round as it happens, and the lead's word over it."""

from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from app.campaigns.models import Campaign
from app.core import artifacts, audit
from app.core.errors import NotFound
from app.preferences.models import PreferenceDataset
from app.rounds import lifecycle, recipes
from app.rounds.models import LIVE_ROUNDS, Round, RoundState, Run, Stage
from app.web import evidence, round_view, series
from app.web.api.rounds import LedRound
from app.web.deps import Db, LedCampaign, SignedIn
from app.web.forms import Attempt, attempt
from app.web.templating import redirect, render

router = APIRouter(include_in_schema=False)
Text = Annotated[str, Form()]


@router.get("/campaigns/{campaign_id}/rounds")
def index(request: Request, db: Db, campaign: LedCampaign) -> Response:
    return _list(request, db, campaign)


def _list(request: Request, db: Db, campaign: Campaign, tried: Attempt | None = None) -> Response:
    live = lifecycle.live_round(db, campaign.id)
    collecting = live is None or live.state is RoundState.collecting
    return render(
        request,
        "rounds/index.html",
        fragment="rounds/_index.html" if tried is None else None,
        status_code=tried.status if tried else 200,
        errors=tried.errors if tried else {},
        campaign=campaign,
        rows=round_view.history(db, campaign),
        live=live,
        may_start=collecting,
        answers=lifecycle.trainable_answers(db, campaign.id) if collecting else 0,
        needed=recipes.parse(campaign.recipe).reward.min_pairs,
    )


@router.post("/campaigns/{campaign_id}/rounds")
def start(request: Request, db: Db, principal: SignedIn, campaign: LedCampaign) -> Response:
    """Begin training now. What stands against it is said on the list of rounds."""
    with attempt(db) as tried:
        current = lifecycle.start(db, campaign, principal.user)
    if tried.refused:
        db.refresh(campaign)
        return _list(request, db, campaign, tried)
    return redirect(request, address(current), flash=f"Round {current.number} has started.")


def address(current: Round) -> str:
    return f"/campaigns/{current.campaign_id}/rounds/{current.id}"


@router.get("/rounds/{round_id}")
def short_address(current: LedRound) -> Response:
    return RedirectResponse(address(current), 303)


@router.get("/campaigns/{campaign_id}/rounds/{round_id}")
def show(request: Request, db: Db, campaign: LedCampaign, current: LedRound) -> Response:
    if current.campaign_id != campaign.id:
        raise NotFound("There is no such round in this campaign.")
    return _page(request, db, campaign, current)


def _page(request: Request, db: Db, campaign: Campaign, current: Round, **more: Any) -> Response:
    """The round; `more` has the reason that was refused, and why."""
    tried: Attempt | None = more.pop("tried", None)
    found = round_view.runs_of(db, current)
    data = db.get(PreferenceDataset, current.dataset_id) if current.dataset_id else None
    after = round_view.next_batch(db, current)
    named = (current.policy_before_id, current.reward_model_id, current.candidate_id, campaign.policy_id)
    return render(
        request,
        "rounds/show.html",
        fragment="rounds/_show.html" if tried is None else None,
        status_code=tried.status if tried else 200,
        errors=tried.errors if tried else {},
        campaign=campaign,
        round=current,
        address=address(current),
        method=round_view.method(campaign, current),
        trigger=round_view.TRIGGERS.get(current.trigger, ""),
        seconds=round_view.span(current.started_at, current.finished_at),
        steps=round_view.strip(current, found, data, after),
        runs=[_run(db, run) for run in found.values()],
        data=data,
        gates=evidence.gate_rows(campaign, current),
        samples=evidence.samples(found.get(Stage.evaluate)),
        logs=round_view.log_tail(db, [run.id for run in found.values()]),
        names=round_view.checkpoint_names(db, named),
        after=after,
        may_cancel=current.state in (RoundState.training, RoundState.evaluating),
        may_promote=current.state is RoundState.rejected and current.candidate_id is not None,
        may_roll_back=current.state is RoundState.promoted and campaign.policy_id == current.candidate_id,
        is_live=current.state in LIVE_ROUNDS,
        answers=lifecycle.trainable_answers(db, campaign.id) if current.state is RoundState.collecting else None,
        **{"reason": "", "asked": "", **more},
    )


def _run(db: Db, run: Run) -> dict[str, Any]:
    drawn = series.curves(db, run)
    return {
        "run": run,
        "title": "This round’s batch" if run.stage is Stage.sample else round_view.STAGES[run.stage],
        "curves": drawn.curves if run.stage in series.CHARTED else [],
        "step": drawn.steps[-1] if drawn.steps else 0,
        "seconds": round_view.span(run.started_at, run.finished_at),
        "trouble": round_view.trouble(db, run),
    }


@router.post("/rounds/{round_id}/cancel")
def cancel(request: Request, db: Db, principal: SignedIn, current: LedRound) -> Response:
    """A refusal (somebody was faster) is said on the page."""
    with attempt(db) as tried:
        lifecycle.cancel(db, current, principal.user)
    if tried.refused:
        return redirect(request, address(current), flash=tried.errors["form"], kind="danger")
    return redirect(request, address(current), flash=f"Round {current.number} is cancelled. Its answers are kept.")


@router.post("/rounds/{round_id}/promote")
def promote(request: Request, db: Db, principal: SignedIn, current: LedRound, reason: Text = "") -> Response:
    return _override(request, db, principal, current, RoundState.promoted, reason)


@router.post("/rounds/{round_id}/roll-back")
def roll_back(request: Request, db: Db, principal: SignedIn, current: LedRound, reason: Text = "") -> Response:
    return _override(request, db, principal, current, RoundState.rejected, reason)


def _override(request: Request, db: Db, principal: SignedIn, current: Round, to: RoundState, reason: str) -> Response:
    campaign = db.get_one(Campaign, current.campaign_id)
    with attempt(db) as tried:
        lifecycle.override(db, campaign, current, principal.user, to, reason)
    if tried.refused:
        db.refresh(campaign)
        db.refresh(current)
        return _page(request, db, campaign, current, tried=tried, reason=reason, asked=to.value)
    said = "is now the campaign’s policy" if to is RoundState.promoted else "is rolled back"
    return redirect(request, address(current), flash=f"Round {current.number} {said}.")


@router.get("/rounds/{round_id}/dataset/{part}.jsonl")
def dataset(db: Db, principal: SignedIn, current: LedRound, part: Literal["train", "held-out"]) -> Response:
    """The frozen preference pairs of the round, as they were trained on or measured with."""
    if current.dataset_id is None:
        raise NotFound("This round has no dataset yet: it is frozen when training starts.")
    data = db.get_one(PreferenceDataset, current.dataset_id)
    lines = artifacts.read_text(data.train_uri if part == "train" else data.held_out_uri)
    first = next(lines, "")  # a file that is gone is found out here, while the answer can still say so
    audit.record(
        db,
        principal.user.id,
        "dataset.download",
        data,
        campaign_id=current.campaign_id,
        round=current.number,
        part=part,
    )
    name = f'attachment; filename="round-{current.number}-{part}.jsonl"'
    body: Iterator[str] = chain([first], lines)
    return StreamingResponse(body, media_type="application/x-ndjson", headers={"Content-Disposition": name})
