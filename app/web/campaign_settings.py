"""Setting a campaign up: the form for a new one and for changing one, and how annotators will see it."""

import json
import uuid
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.accounts.models import User
from app.annotation import preview
from app.annotation.scales import Scale
from app.campaigns import lifecycle, prompts
from app.campaigns import messages as chat
from app.campaigns.models import Campaign, CampaignState
from app.campaigns.prompts import Report
from app.checkpoints import lineage
from app.core.errors import Invalid
from app.rounds import lifecycle as rounds
from app.rounds import recipes
from app.web import annotate, recipe_forms
from app.web.deps import CampaignCreator, Db, LedCampaign, SignedIn
from app.web.forms import Attempt, attempt
from app.web.limits import IMPORT_BODY_LIMIT
from app.web.submitted import Submitted, format_of, read_text, texts, upload
from app.web.templating import redirect, render

router = APIRouter(prefix="/campaigns", include_in_schema=False)

MAX_KEPT = 1_500_000
"""Characters of an upload that a refused form carries along, so that the file need not be chosen again."""

PLAIN = {"name": "", "guidelines": "", "overlap": "1", "scale": "7", "policy": "", "prompts": "", "kept": ""}


@router.get("/new")
def new(request: Request, db: Db, principal: CampaignCreator) -> Response:
    policies = lineage.usable_policies(db, None)
    return _page(request, db, None, _blank() | {"policy": str(policies[-1].id) if policies else ""})


def _blank() -> dict[str, str]:
    """The form before anything is typed."""
    return PLAIN | recipe_forms.values(recipes.parse({}))


@router.post("/new", max_body_size=IMPORT_BODY_LIMIT)
def create(request: Request, db: Db, principal: CampaignCreator, form: Submitted) -> Response:
    typed = _blank() | texts(form)
    given: dict[str, chat.Messages] = {}
    reports: dict[str, Report] = {}
    with attempt(db) as tried:
        given, reports = _prompts(tried, typed, upload(form, "file"))
        recipe = _settings(tried, typed)
        policy = _policy(db, None, typed["policy"])
        if not tried.refused:
            campaign = lifecycle.create(
                db,
                principal.user,
                name=typed["name"],
                overlap=int(typed["overlap"]),
                scale=int(typed["scale"]),
                guidelines=typed["guidelines"],
                policy_id=policy,
                recipe=recipe,
            )
            prompts.store(db, campaign.id, given)
    if tried.refused:
        return _page(request, db, None, typed | _kept(given, typed), tried=tried, reports=reports)
    return redirect(request, f"/campaigns/{campaign.id}", flash=f"“{campaign.name}” is set up as a draft.")


def _settings(tried: Attempt, typed: Mapping[str, str]) -> dict[str, Any]:
    """The recipe's overrides; notes every fault of the form's fields."""
    for field, message in lifecycle.faults(typed["name"], _whole(typed["overlap"]), _whole(typed["scale"])).items():
        tried.refuse(field, message)
    read = recipe_forms.read(typed)
    for field, message in read.errors.items():
        tried.refuse(field, message)
    return read.overrides


def _whole(text: str) -> int | None:
    return int(text) if text.strip().lstrip("-").isdecimal() else None


def _policy(db: Session, campaign: Campaign | None, value: str) -> uuid.UUID | None:
    """The chosen policy, if it may be chosen."""
    if not value:
        return None
    usable = lineage.usable_policies(db, campaign.id if campaign else None)
    for checkpoint in usable:
        if str(checkpoint.id) == value:
            return checkpoint.id
    raise Invalid("Choose one of the policies.", "policy")


def _prompts(
    tried: Attempt, typed: Mapping[str, str], file: tuple[str, Any] | None
) -> tuple[dict[str, chat.Messages], dict[str, Report]]:
    """The good prompts of paste, upload and what an earlier refused form had kept; faults go beside their field."""
    kept, _ = prompts.sift(prompts.read(typed["kept"], "jsonl"))
    pasted, pasted_report = prompts.sift(prompts.read(typed["prompts"], "lines"))
    reports = {"prompts": pasted_report}
    if pasted_report.rejected_count:
        tried.refuse("prompts", "Some lines cannot be used as prompts; mend or remove them.")
    if file is not None:
        try:
            text = read_text(*file, "file")
        except Invalid as error:
            tried.refuse("file", error.message)
            return kept | pasted, reports
        found, reports["file"] = prompts.sift(prompts.read(text, format_of(file[0], text)))
        if reports["file"].rejected_count:
            tried.refuse("file", f"Some lines of {file[0]} cannot be used as prompts.")
        kept |= found
    return kept | pasted, reports


def _kept(given: Mapping[str, chat.Messages], typed: Mapping[str, str]) -> dict[str, str]:
    """The good prompts of an upload, to travel with the refused form; what was pasted is in its own field still."""
    pasted, _ = prompts.sift(prompts.read(typed["prompts"], "lines"))
    rest = [messages for mark, messages in given.items() if mark not in pasted]
    text = "\n".join(json.dumps(messages, ensure_ascii=False) for messages in rest)
    return {
        "kept": text if len(text) <= MAX_KEPT else "",
        "kept_count": str(len(rest)) if len(text) <= MAX_KEPT else "",
    }


@router.get("/{campaign_id}/settings")
def settings(request: Request, db: Db, campaign: LedCampaign) -> Response:
    return _page(request, db, campaign, _typed(db, campaign))


def _typed(db: Session, campaign: Campaign) -> dict[str, str]:
    """The form as the campaign stands."""
    newest = lifecycle.guidelines(db, campaign.id)
    return PLAIN | {
        "name": campaign.name,
        "guidelines": newest.text if newest else "",
        "overlap": str(campaign.overlap),
        "scale": str(campaign.scale),
        "policy": str(campaign.policy_id or ""),
        **recipe_forms.values(recipes.parse(campaign.recipe)),
    }


@router.post("/{campaign_id}/settings")
def save(request: Request, db: Db, principal: SignedIn, campaign: LedCampaign, form: Submitted) -> Response:
    typed = _typed(db, campaign) | texts(form)  # what the form cannot change any more is not in it
    with attempt(db) as tried:
        recipe = _settings(tried, typed)
        if not tried.refused:
            _save(db, campaign, principal.user, typed, recipe)
    if tried.refused:
        return _page(request, db, campaign, typed, tried=tried)
    return redirect(request, f"/campaigns/{campaign.id}/settings", flash="Settings saved.")


def _save(db: Session, campaign: Campaign, by: User, typed: Mapping[str, str], recipe: dict[str, Any]) -> None:
    lifecycle.edit(
        db,
        campaign,
        by,
        name=typed["name"],
        overlap=int(typed["overlap"]),
        scale=int(typed["scale"]),
        recipe=recipe,
    )
    lifecycle.set_guidelines(db, campaign, by, typed["guidelines"])
    lifecycle.choose_policy(db, campaign, by, _policy(db, campaign, typed["policy"]))
    if campaign.state is CampaignState.active and campaign.policy_id:
        rounds.open_round(db, campaign)


def _page(
    request: Request,
    db: Session,
    campaign: Campaign | None,
    typed: dict[str, str],
    *,
    tried: Attempt | None = None,
    reports: Mapping[str, Report] | None = None,
) -> Response:
    """The form with what was typed; for a campaign that is, with the history of its guidelines."""
    policies = lineage.usable_policies(db, campaign.id if campaign else None)
    errors = tried.errors if tried else {}
    return render(
        request,
        "campaigns/settings.html" if campaign else "campaigns/new.html",
        status_code=tried.status if tried else 200,
        campaign=campaign,
        draft=campaign is None or campaign.state is CampaignState.draft,
        typed={"kept_count": ""} | typed,
        errors=errors,
        reports=reports or {},
        policies=[(p.id, f"{p.name}, {p.created_at:%-d %b %Y}") for p in policies],
        versions=lifecycle.guidelines_versions(db, campaign.id) if campaign else [],
        scales=[Scale(steps) for steps in lifecycle.SCALES],
        controls=recipe_forms.rounds(),
        stages=[
            (stage, recipe_forms.changed(typed, stage), any(name.startswith(f"{stage.name}.") for name in errors))
            for stage in recipe_forms.stages()
        ],
        gates=recipe_forms.gate_rows(),
        max_overlap=lifecycle.MAX_OVERLAP,
    )


@router.post("/guidelines-preview")
def guidelines_preview(request: Request, principal: SignedIn, guidelines: Annotated[str, Form()] = "") -> Response:
    """The guidelines as annotators will read them, while they are being written."""
    return render(request, "campaigns/_guidelines.html", guidelines=guidelines)


@router.get("/{campaign_id}/preview")
def see_as_annotator(request: Request, db: Db, campaign: LedCampaign) -> Response:
    """The annotator's own screen, switched off, with a comparison of the campaign or a prompt and stand-ins."""
    return render(
        request,
        "campaigns/preview.html",
        campaign=campaign,
        guidelines=lifecycle.guidelines(db, campaign.id),
        **annotate.comparison(campaign, preview.sample(db, campaign), annotate.Typed()),
    )
