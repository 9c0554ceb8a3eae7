"""What the pages say about rounds and runs: the list's rows, the steps, what a run waits for, its last words."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.campaigns.models import Campaign
from app.checkpoints.models import Checkpoint
from app.core.states import StateChange
from app.preferences.models import PreferenceDataset
from app.rounds import gates, recipes, runs
from app.rounds.models import LIVE_ROUNDS, Round, RoundState, Run, RunLogLine, RunState, Stage
from app.web.templating import duration

PATIENCE = timedelta(seconds=30)
"""A queued run that nobody came for in this time needs a word on the page."""

LOG_TAIL = 200

STAGES = {
    Stage.reward: "Reward model",
    Stage.dpo: "Policy (DPO)",
    Stage.ppo: "Policy (PPO)",
    Stage.evaluate: "Evaluation",
    Stage.sample: "Next batch",
}
TRIGGERS = {
    "lead": "started by a lead",
    "annotations": "started by enough new answers",
    "schedule": "started by the schedule",
}
POLICY_STAGES = (Stage.dpo, Stage.ppo)
ENDED_BADLY = (RunState.failed, RunState.cancelled)


@dataclass
class Row:
    """A round in the list."""

    round: Round
    method: str
    dataset: PreferenceDataset | None
    measured: dict[str, Any]

    @property
    def seconds(self) -> float | None:
        return span(self.round.started_at, self.round.finished_at)


def span(start: datetime | None, end: datetime | None) -> float | None:
    return (end - start).total_seconds() if start and end else None


def history(db: Session, campaign: Campaign, limit: int = 100) -> list[Row]:
    """The newest rounds, latest first, with what was measured of each."""
    found = list(
        db.scalars(select(Round).where(Round.campaign_id == campaign.id).order_by(Round.number.desc()).limit(limit))
    )
    datasets = {
        data.id: data
        for data in db.scalars(
            select(PreferenceDataset).where(PreferenceDataset.id.in_([r.dataset_id for r in found if r.dataset_id]))
        )
    }
    summaries: dict[tuple[uuid.UUID | None, Stage], dict[str, Any]] = {}
    done = select(Run.round_id, Run.stage, Run.result).where(
        Run.round_id.in_([r.id for r in found]),
        Run.stage.in_([Stage.reward, Stage.evaluate]),
        Run.state == RunState.succeeded,
    )
    for round_id, stage, result in db.execute(done):
        summaries[round_id, stage] = result.get("metrics") or {}
    return [
        Row(
            round=current,
            method=method(campaign, current),
            dataset=datasets.get(current.dataset_id) if current.dataset_id else None,
            measured=gates.measurements(
                summaries.get((current.id, Stage.reward), {}), summaries.get((current.id, Stage.evaluate), {})
            ),
        )
        for current in found
    ]


def method(campaign: Campaign, current: Round) -> str:
    """How the policy learns in this round; a round that has not begun will do what the campaign says then."""
    stored = campaign.recipe if current.state is RoundState.collecting else current.recipe
    return str(stored.get("method") or recipes.RoundRecipe().method)


@dataclass
class Step:
    """A place on the strip."""

    label: str
    state: str
    note: str = ""


def strip(current: Round, found: dict[Stage, Run], data: PreferenceDataset | None, after: Run | None) -> list[Step]:
    """The round as steps: collecting, snapshot, reward, policy, evaluate, decision, next batch."""
    policy = next((found[stage] for stage in POLICY_STAGES if stage in found), None)
    steps = [
        _collecting(current),
        _snapshot(current, data),
        _of_run("Reward", found.get(Stage.reward)),
        _of_run("Policy", policy),
        _of_run("Evaluate", found.get(Stage.evaluate)),
        _decision(current),
        _of_run("Next batch", after) if current.state not in LIVE_ROUNDS else Step("Next batch", "todo"),
    ]
    if current.state in (RoundState.training, RoundState.evaluating) and all(s.state != "current" for s in steps):
        next(s for s in steps if s.state == "todo").state = "current"  # between two runs
    return steps


def _collecting(current: Round) -> Step:
    if current.state is RoundState.collecting:
        return Step("Collecting", "current", "answers are coming in")
    if current.started_at is None:
        return Step("Collecting", "failed")
    return Step("Collecting", "done", duration(span(current.created_at, current.started_at)))


def _snapshot(current: Round, data: PreferenceDataset | None) -> Step:
    if data is None:
        return Step("Snapshot", "todo")
    return Step("Snapshot", "done", f"{data.train_pairs + data.held_out_pairs:,} pairs")


def _of_run(label: str, run: Run | None) -> Step:
    if run is None:
        return Step(label, "todo")
    if run.state is RunState.queued:
        return Step(label, "current", "waiting for a worker")
    if run.state is RunState.running:
        return Step(label, "current", "running")
    if run.state in ENDED_BADLY:
        return Step(label, "failed", run.state.value)
    return Step(label, "done", duration(span(run.started_at, run.finished_at)))


def _decision(current: Round) -> Step:
    if current.state in LIVE_ROUNDS:
        return Step("Promote or reject", "todo")
    state = "done" if current.state is RoundState.promoted else "failed"
    return Step(current.state.value.capitalize(), state)


def next_batch(db: Session, current: Round) -> Run | None:
    """The run that samples the batch after this round: it belongs to the round that follows."""
    return db.scalar(
        select(Run)
        .join(Round, Round.id == Run.round_id)
        .where(Round.campaign_id == current.campaign_id, Round.number == current.number + 1, Run.stage == Stage.sample)
        .order_by(Run.created_at.desc())
        .limit(1)
    )


def trouble(db: Session, run: Run) -> str:
    """Why a run is not going on although nobody stopped it; empty when all is well."""
    now = db.scalars(select(func.clock_timestamp())).one()
    if run.state is RunState.running and run.lease_until and run.lease_until < now:
        return "Its worker has not been heard of for a while. It goes back into the queue by itself within seconds."
    if run.state is not RunState.queued or now - _queued_at(db, run) < PATIENCE:
        return ""
    busy = select(Run.id).where(Run.state == RunState.running, Run.lease_until > now, Run.id != run.id)
    if db.scalar(busy.limit(1)):
        return "The GPU worker is busy with another run. This one comes after it."
    return (
        f"Waiting for a GPU worker: none has come for this run in {duration((now - run.created_at).total_seconds())}. "
        "Start one (“tiebreak up” does, and so does the compose profile “gpu”); the run then begins by itself."
    )


def _queued_at(db: Session, run: Run) -> datetime:
    """Since when it waits: its birth, or the attempt that failed last."""
    again = db.scalar(
        select(func.max(StateChange.at)).where(StateChange.thing_id == run.id, StateChange.new == RunState.queued.value)
    )
    return again or run.created_at


def log_tail(db: Session, run_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, list[RunLogLine]]:
    """The last lines that each run printed, oldest first."""
    found = {}
    for run_id in run_ids:
        newest = select(RunLogLine).where(RunLogLine.run_id == run_id).order_by(RunLogLine.id.desc()).limit(LOG_TAIL)
        found[run_id] = list(reversed(list(db.scalars(newest))))
    return found


def checkpoint_names(db: Session, ids: Iterable[uuid.UUID | None]) -> dict[uuid.UUID, str]:
    wanted = [key for key in ids if key]
    rows = db.execute(select(Checkpoint.id, Checkpoint.name).where(Checkpoint.id.in_(wanted)))
    return {row.id: row.name for row in rows}


def runs_of(db: Session, current: Round) -> dict[Stage, Run]:
    """The round's runs in the order in which they happen; the one that sampled its batch while it collects."""
    found = runs.newest(db, current.id)
    collecting = current.state is RoundState.collecting
    order = [Stage.sample] if collecting else [Stage.reward, *POLICY_STAGES, Stage.evaluate]
    return {stage: found[stage] for stage in order if stage in found}
