"""A round's own progress: gathering the facts, and doing what the planner says of them."""

import json
import uuid
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.campaigns.models import Campaign, CampaignState, Prompt, Split
from app.checkpoints.models import Checkpoint
from app.comparisons import batches
from app.comparisons.models import Comparison
from app.core import artifacts, states
from app.core.errors import Conflict
from app.preferences import snapshot
from app.preferences.models import PreferenceDataset
from app.rounds import gates, planner, recipes, runs
from app.rounds.lifecycle import nudge, open_round, start, trainable_answers
from app.rounds.models import LIVE_ROUNDS, Round, RoundState, Run, RunState, Stage
from app.rounds.planner import Facts, Step

MAX_POLICY_PROMPTS = 20_000


def advance(session: Session, round_id: uuid.UUID) -> None:
    """Do everything that can be done for a round now. Whoever finds its row locked leaves it to the other."""
    current = session.scalar(select(Round).where(Round.id == round_id).with_for_update(skip_locked=True))
    if current is None:
        return
    campaign = session.get_one(Campaign, current.campaign_id)
    for _ in range(10):  # a round has fewer steps than this between two waits
        step = planner.next_step(gather(session, campaign, current))
        if step is Step.wait:
            break
        DO[step](session, campaign, current)
    if current.state not in LIVE_ROUNDS and campaign.state is CampaignState.active:
        open_round(session, campaign)


def gather(session: Session, campaign: Campaign, current: Round) -> Facts:
    """The planner's facts about a live round."""
    found = runs.newest(session, current.id)
    collecting = current.state is RoundState.collecting
    recipe = recipes.parse(campaign.recipe if collecting else current.recipe)
    facts: dict[str, Any] = {}
    if collecting:
        last = session.scalar(
            select(PreferenceDataset.id)
            .where(PreferenceDataset.campaign_id == campaign.id)
            .order_by(PreferenceDataset.created_at.desc())
            .limit(1)
        )
        since = session.scalar(select(func.clock_timestamp() - current.created_at)) or timedelta()
        facts = {
            "wants_batch": _wants_batch(session, campaign, current),
            "new_answers": trainable_answers(session, campaign.id, last),
            "every_annotations": recipe.every_annotations,
            "every_hours": recipe.every_hours,
            "hours_since_last": since.total_seconds() / 3600,
            "trainable": trainable_answers(session, campaign.id) >= recipe.reward.min_pairs,
        }
    return Facts(
        state=current.state,
        policy_stage=Stage(recipe.method),
        runs={stage: run.state for stage, run in found.items()},
        serving=campaign.state is CampaignState.active,
        has_policy=campaign.policy_id is not None,
        has_dataset=current.dataset_id is not None,
        **facts,
    )


def _wants_batch(session: Session, campaign: Campaign, current: Round) -> bool:
    """A round after the first begins with fresh candidates; the first only where nothing was imported to begin with."""
    if session.scalar(select(Prompt.id).where(Prompt.campaign_id == campaign.id).limit(1)) is None:
        return False
    if current.number > 1:
        return True
    return session.scalar(select(Comparison.id).where(Comparison.campaign_id == campaign.id).limit(1)) is None


def _begin(session: Session, campaign: Campaign, current: Round) -> None:
    recipe = recipes.parse(campaign.recipe)
    start(session, campaign, None, trigger="annotations" if recipe.every_annotations else "schedule")


def _freeze(session: Session, campaign: Campaign, current: Round) -> None:
    current.dataset_id = snapshot.freeze(session, campaign).id
    session.flush()
    nudge(session, current)


def _uri(session: Session, checkpoint_id: uuid.UUID | None) -> str:
    return session.get_one(Checkpoint, checkpoint_id).uri


def _prompt_file(session: Session, run_id: uuid.UUID, prompts: list[Prompt]) -> str:
    where = artifacts.url("runs", str(run_id), "prompts.jsonl")
    lines = (json.dumps({"id": str(p.id), "prompt": p.messages}, ensure_ascii=False) + "\n" for p in prompts)
    artifacts.write_text(where, lines)
    return where


def _prompts(session: Session, campaign_id: uuid.UUID, split: Split, limit: int) -> list[Prompt]:
    statement = select(Prompt).where(Prompt.campaign_id == campaign_id, Prompt.split == split)
    return list(session.scalars(statement.order_by(Prompt.fingerprint).limit(limit)))


def _queue_reward(session: Session, campaign: Campaign, current: Round) -> None:
    data = session.get_one(PreferenceDataset, current.dataset_id)
    inputs = {"data": data.train_uri, "model": _uri(session, current.policy_before_id)}
    if data.held_out_pairs:
        inputs["eval"] = data.held_out_uri
    runs.queue(
        session,
        campaign_id=campaign.id,
        round_id=current.id,
        stage=Stage.reward,
        inputs=inputs,
        recipe=recipes.parse(current.recipe).stage("reward"),
        parents={"model": str(current.policy_before_id)},
    )


def _queue_policy(session: Session, campaign: Campaign, current: Round) -> None:
    recipe = recipes.parse(current.recipe)
    current.reward_model_id = _output(session, current, Stage.reward)
    data = session.get_one(PreferenceDataset, current.dataset_id)
    run_id = uuid.uuid4()
    inputs = {"model": _uri(session, current.policy_before_id)}
    if recipe.method == "dpo":
        inputs["data"] = data.train_uri
        if data.held_out_pairs:
            inputs["eval"] = data.held_out_uri
    else:
        prompts = _prompts(session, campaign.id, Split.train, MAX_POLICY_PROMPTS)
        inputs["data"] = _prompt_file(session, run_id, prompts)
        inputs["reward_model"] = _uri(session, current.reward_model_id)
    runs.queue(
        session,
        run_id=run_id,
        campaign_id=campaign.id,
        round_id=current.id,
        stage=Stage(recipe.method),
        inputs=inputs,
        recipe=recipe.stage(recipe.method),
        parents={"model": str(current.policy_before_id), "reward_model": str(current.reward_model_id)},
    )


def _output(session: Session, current: Round, stage: Stage) -> uuid.UUID:
    """The checkpoint that the round's run of this stage stored."""
    return session.scalars(
        select(Checkpoint.id)
        .join(Run, Run.id == Checkpoint.run_id)
        .where(Run.round_id == current.id, Run.stage == stage, Run.state == RunState.succeeded)
    ).one()


def _queue_evaluate(session: Session, campaign: Campaign, current: Round) -> None:
    recipe = recipes.parse(current.recipe)
    prompts = _prompts(session, campaign.id, Split.held_out, recipe.evaluate.max_prompts)
    if not prompts:
        _fail(session, current, "There are no held-out prompts to evaluate on: add more prompts to the campaign.")
        return
    if current.state is RoundState.training:
        states.move(
            session, current, RoundState.evaluating, candidate_id=_output(session, current, Stage(recipe.method))
        )
    run_id = uuid.uuid4()
    runs.queue(
        session,
        run_id=run_id,
        campaign_id=campaign.id,
        round_id=current.id,
        stage=Stage.evaluate,
        inputs={
            "data": _prompt_file(session, run_id, prompts),
            "model": _uri(session, current.candidate_id),
            "baseline": _uri(session, current.policy_before_id),
            "initial": _uri(session, campaign.initial_policy_id),
            "reward_model": _uri(session, current.reward_model_id),
        },
        recipe=recipe.stage("evaluate"),
        parents={"model": str(current.candidate_id), "baseline": str(current.policy_before_id)},
    )
    nudge(session, current)


def _decide(session: Session, campaign: Campaign, current: Round) -> None:
    """Judge the gates; promote when all pass."""
    found = runs.newest(session, current.id)
    measured = gates.measurements(
        found[Stage.reward].result.get("metrics", {}), found[Stage.evaluate].result.get("metrics", {})
    )
    verdicts = gates.judge(recipes.parse(current.recipe).gates, measured)
    passed = all(v.passed for v in verdicts)
    failed = ", ".join(v.metric.replace("_", " ") for v in verdicts if not v.passed)
    reason = "All gates passed." if passed else f"Gates failed: {failed}."
    candidate = session.get_one(Checkpoint, current.candidate_id)
    candidate.metrics = measured
    states.move(
        session,
        current,
        RoundState.promoted if passed else RoundState.rejected,
        reason=reason,
        gates=[v.as_json() for v in verdicts],
        decision_reason=reason,
        finished_at=func.clock_timestamp(),
    )
    if passed:
        campaign.policy_id = current.candidate_id
        session.flush()
    nudge(session, current)


def _fail(session: Session, current: Round, message: str) -> None:
    states.move(session, current, RoundState.failed, reason=message, error=message, finished_at=func.clock_timestamp())
    nudge(session, current)


def give_up(session: Session, round_id: uuid.UUID, message: str) -> None:
    """Fail a round that cannot go on; a collecting one waits instead, for it has lost nothing."""
    current = session.scalar(select(Round).where(Round.id == round_id).with_for_update(skip_locked=True))
    if current and current.state in (RoundState.training, RoundState.evaluating):
        _fail(session, current, message)


def _give_up(session: Session, campaign: Campaign, current: Round) -> None:
    ended = [r for r in runs.newest(session, current.id).values() if r.state in (RunState.failed, RunState.cancelled)]
    broken = next((r for r in ended if r.state is RunState.failed), ended[0])
    _fail(session, current, f"The {broken.stage.value} run {broken.state.value}: {broken.error or 'it was stopped.'}")


def queue_sample(session: Session, campaign: Campaign, round_id: uuid.UUID | None = None) -> Run:
    """Queue the run that samples the campaign's next batch from its current policy."""
    if campaign.policy_id is None:
        raise Conflict("This campaign has no policy to sample from: choose one in its settings.")
    recipe = recipes.parse(campaign.recipe)
    run_id = uuid.uuid4()
    prompts = batches.prompts_to_sample(session, campaign.id, recipe.batch_prompts)
    if not prompts:
        raise Conflict("This campaign has no prompts to sample for.")
    return runs.queue(
        session,
        run_id=run_id,
        campaign_id=campaign.id,
        round_id=round_id,
        stage=Stage.sample,
        inputs={
            "data": _prompt_file(session, run_id, prompts),
            "model": _uri(session, campaign.policy_id),
            "use": "batch",
        },
        # A seed per run: the same prompt sampled again must not give the same completions.
        recipe={**recipe.stage("sample"), "seed": run_id.int % 2**31},
        parents={"model": str(campaign.policy_id)},
    )


def _sample(session: Session, campaign: Campaign, current: Round) -> None:
    queue_sample(session, campaign, current.id)


DO = {
    Step.sample: _sample,
    Step.begin: _begin,
    Step.freeze: _freeze,
    Step.reward: _queue_reward,
    Step.policy: _queue_policy,
    Step.evaluate: _queue_evaluate,
    Step.decide: _decide,
    Step.fail: _give_up,
}


def reconcile(session: Session) -> list[uuid.UUID]:
    """Rounds that should be looked at: every live one, and active campaigns that have none get theirs."""
    idle = select(Campaign).where(
        Campaign.state == CampaignState.active,
        Campaign.policy_id.is_not(None),
        ~select(Round.id).where(Round.campaign_id == Campaign.id, Round.state.in_(LIVE_ROUNDS)).exists(),
    )
    for campaign in session.scalars(idle):
        open_round(session, campaign)
    return list(session.scalars(select(Round.id).where(Round.state.in_(LIVE_ROUNDS))))
