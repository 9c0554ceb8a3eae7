"""Checkpoints on the lead's screen: where each came from, and trying any two of them out side by side."""

import json
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from sqlalchemy import func, select
from starlette.responses import Response

from app.campaigns.models import Campaign
from app.checkpoints import lineage
from app.core import artifacts
from app.core.db import require
from app.core.errors import Conflict, Invalid, NotFound
from app.rounds import recipes, runs, trying
from app.rounds.models import Run, RunMetric, RunState
from app.web import family_tree, round_view
from app.web.deps import Db, LedCampaign
from app.web.forms import Attempt, attempt
from app.web.templating import redirect, render

router = APIRouter(prefix="/campaigns/{campaign_id}/checkpoints", include_in_schema=False)
Text = Annotated[str, Form()]


@dataclass
class Typed:
    """What the try-it box holds."""

    a: str = ""
    b: str = ""
    prompt: str = ""
    temperature: str = "1"
    seed: str = "0"


@dataclass
class Answer:
    """One side of the box: a run, and what it has said so far."""

    run: Run
    name: str
    step: int
    trouble: str
    text: str | None = None
    problem: str = ""

    @property
    def is_over(self) -> bool:
        return self.run.state in runs.FINAL


@router.get("")
def index(request: Request, db: Db, campaign: LedCampaign, tried: str = "", a: str = "", b: str = "") -> Response:
    """`tried` names the runs to show, joined by commas; `a` and `b` preselect policies."""
    answers = _answers(db, campaign, tried)
    return _page(request, db, campaign, _typed(campaign, answers, a, b), answers, address=_address(campaign, tried))


def _address(campaign: Campaign, tried: str) -> str:
    return f"/campaigns/{campaign.id}/checkpoints" + (f"?tried={tried}" if tried else "")


def _page(
    request: Request,
    db: Db,
    campaign: Campaign,
    typed: Typed,
    answers: list[Answer],
    address: str,
    refused: Attempt | None = None,
) -> Response:
    policies = lineage.usable_policies(db, campaign.id)
    return render(
        request,
        "checkpoints/index.html",
        fragment=None if refused else "checkpoints/_index.html",
        status_code=refused.status if refused else 200,
        errors=refused.errors if refused else {},
        campaign=campaign,
        address=address,
        leaves=family_tree.leaves(db, campaign),
        policies=[(str(policy.id), _label(campaign, policy)) for policy in policies],
        typed=typed,
        answers=answers,
    )


def _label(campaign: Campaign, policy: Any) -> str:
    if policy.id == campaign.policy_id:
        return f"{policy.name} (current)"
    return f"{policy.name} (the start)" if policy.id == campaign.initial_policy_id else str(policy.name)


def _typed(campaign: Campaign, answers: list[Answer], a: str, b: str) -> Typed:
    """What was asked for last, else the policy that the campaign began with against the current one."""
    first, current = str(campaign.initial_policy_id or ""), str(campaign.policy_id or "")
    if not answers:
        temperature = recipes.parse(campaign.recipe).sample.temperature
        return Typed(a or first, b or (current if current != first else ""), temperature=f"{temperature:g}")
    one, other = answers[0].run, answers[1].run if len(answers) > 1 else None
    return Typed(
        a=one.parents["model"],
        b=other.parents["model"] if other else "",
        prompt=_prompt_of(one),
        temperature=f"{one.recipe['temperature']:g}",
        seed=str(one.recipe["seed"]),
    )


def _prompt_of(run: Run) -> str:
    try:
        row = json.loads(next(artifacts.read_text(run.inputs["data"])))
        return str(row["prompt"][-1]["content"])
    except (NotFound, StopIteration, ValueError):
        return ""


@router.post("/try")
def try_it(
    request: Request,
    db: Db,
    campaign: LedCampaign,
    a: Text = "",
    b: Text = "",
    prompt: Text = "",
    temperature: Text = "1",
    seed: Text = "0",
) -> Response:
    """Queue a sampling run for each chosen policy; the page then shows what they say."""
    typed = Typed(a, b, prompt.replace("\r\n", "\n"), temperature, seed)
    queued: list[Run] = []
    with attempt(db) as tried:
        queued = _queue(db, campaign, typed)
    if tried.refused:
        return _page(request, db, campaign, typed, [], _address(campaign, ""), refused=tried)
    return redirect(request, _address(campaign, ",".join(str(run.id) for run in queued)) + "#try")


def _queue(db: Db, campaign: Campaign, typed: Typed) -> list[Run]:
    if not typed.prompt.strip():
        raise Invalid("Write a prompt to put to both.", "prompt")
    if typed.a == typed.b:
        raise Invalid("Choose two different ones, or “none” here to try the first alone.", "b")
    overrides = {
        "temperature": _number(typed.temperature, "temperature", 0, 10, float),
        "seed": _number(typed.seed, "seed", 0, 2**31 - 1, int),
    }
    queued = []
    for field, wanted in (("a", typed.a), ("b", typed.b)):
        if not wanted and field == "b":
            continue
        try:
            policy = trying.policy_of(db, campaign, wanted)
        except NotFound:
            raise Invalid("Choose one of the policies.", field) from None
        try:
            queued.append(trying.queue(db, campaign, policy, [typed.prompt], overrides))
        except Invalid as error:
            raise Invalid(error.message, "prompt") from None
    return queued


def _number(typed: str, field: str, low: float, high: float, kind: type) -> Any:
    try:
        value = kind(typed.strip().replace(",", "."))
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        what = "a whole number" if kind is int else "a number"
        raise Invalid(f"Give {what} from {low:,} to {high:,}.", field)
    return value


@router.post("/stop")
def stop(request: Request, db: Db, campaign: LedCampaign, tried: Text = "") -> Response:
    """Call both runs off."""
    for answer in _answers(db, campaign, tried):
        runs.request_cancel(db, answer.run)
    return redirect(request, _address(campaign, tried) + "#try")


def _answers(db: Db, campaign: Campaign, tried: str) -> list[Answer]:
    """The runs that the address names, if they are this campaign's tries."""
    return [_answer(db, campaign, key) for key in tried.split(",")[:2] if key]


def _answer(db: Db, campaign: Campaign, run_id: str) -> Answer:
    run = require(db, Run, run_id)
    if run.campaign_id != campaign.id or run.inputs.get("use") != "try":
        raise NotFound("There is no such try in this campaign.")
    names = {str(policy.id): policy.name for policy in lineage.usable_policies(db, campaign.id)}
    answer = Answer(
        run=run,
        name=names.get(run.parents["model"], "a policy that is gone"),
        step=db.scalar(select(func.max(RunMetric.step)).where(RunMetric.run_id == run.id)) or 0,
        trouble=round_view.trouble(db, run),
    )
    if run.state is RunState.succeeded:
        try:
            answer.text = trying.completions(run)[0]["completions"][0]
        except (NotFound, IndexError, Conflict):
            answer.problem = "What it said is gone from the artifact store. Sample again."
    return answer
