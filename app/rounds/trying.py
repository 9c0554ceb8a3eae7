"""Trying a checkpoint out: samples for prompts of one's own, by a run on the same worker as any other."""

import json
import uuid
from typing import Any

from sqlalchemy.orm import Session

from app.campaigns import messages as chat
from app.campaigns.models import Campaign
from app.checkpoints import lineage
from app.checkpoints.models import Checkpoint
from app.core import artifacts
from app.core.errors import Invalid, NotFound
from app.rounds import recipes, runs
from app.rounds.models import Run, Stage

MAX_PROMPTS = 1000


def policy_of(session: Session, campaign: Campaign, checkpoint_id: str) -> Checkpoint:
    """A policy that this campaign may sample from, or `NotFound`."""
    for checkpoint in lineage.usable_policies(session, campaign.id):
        if str(checkpoint.id) == checkpoint_id:
            return checkpoint
    raise NotFound("There is no such checkpoint in this campaign.")


def queue(
    session: Session, campaign: Campaign, checkpoint: Checkpoint, prompts: list[Any], overrides: dict[str, Any]
) -> Run:
    """Queue a run that samples `prompts` from `checkpoint`; `overrides` are keys of the sampling recipe."""
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise Invalid(f"Give between 1 and {MAX_PROMPTS} prompts.", "prompts")
    parsed = [chat.parse(prompt, f"prompts[{i}]") for i, prompt in enumerate(prompts)]
    recipe = recipes.parse(campaign.recipe, {"sample": {"n": 1, **overrides}}).stage("sample")
    run_id = uuid.uuid4()
    where = artifacts.url("runs", str(run_id), "prompts.jsonl")
    artifacts.write_text(
        where, (json.dumps({"id": str(i), "prompt": p}, ensure_ascii=False) + "\n" for i, p in enumerate(parsed))
    )
    return runs.queue(
        session,
        run_id=run_id,
        campaign_id=campaign.id,
        stage=Stage.sample,
        inputs={"data": where, "model": checkpoint.uri, "use": "try"},
        recipe=recipe,
        parents={"model": str(checkpoint.id)},
    )


def completions(run: Run) -> list[dict[str, Any]]:
    """What a sampling run drew: `{prompt, completions: [text, …]}` in the order of its prompts; empty until it ends."""
    if "completions" not in run.outputs:
        return []
    rows = (json.loads(line) for line in artifacts.read_text(run.outputs["completions"]))
    return [{"prompt": row["prompt"], "completions": [c["text"] for c in row["completions"]]} for row in rows]
