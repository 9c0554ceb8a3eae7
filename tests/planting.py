"""Rounds as they look halfway and afterwards, written straight into the tables: nothing is trained."""

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from app.campaigns.models import Campaign
from app.checkpoints.models import Checkpoint, CheckpointKind
from app.core import artifacts
from app.preferences.models import PreferenceDataset
from app.rounds import gates, recipes
from app.rounds.models import Round, RoundState, Run, RunLogLine, RunMetric, RunState, Stage

REWARD = {"accuracy": 0.84, "accuracy_low": 0.77, "accuracy_high": 0.89}
EVALUATION = {
    "reward_win_rate": 0.71,
    "reward_win_rate_low": 0.65,
    "reward_win_rate_high": 0.77,
    "kl": 6.2,
    "mean_length": 18.2,
    "baseline_mean_length": 16.1,
    "distinct_2": 0.41,
    "baseline_distinct_2": 0.5,
}


def now() -> datetime:
    return datetime.now(UTC)


def plant_round(
    session: Session, campaign: Campaign, state: RoundState, number: int = 1, method: str = "dpo", **values: Any
) -> Round:
    """A round with its dataset, and no runs."""
    began = state is not RoundState.collecting
    current = Round(
        campaign_id=campaign.id,
        number=number,
        state=state,
        trigger="lead" if began else "",
        recipe={"method": method} if began else {},
        policy_before_id=campaign.policy_id if began else None,
        dataset_id=plant_dataset(session, campaign).id if began else None,
        created_at=now() - timedelta(hours=2),
        started_at=now() - timedelta(minutes=5) if began else None,
        finished_at=now() if state not in (RoundState.collecting, RoundState.training, RoundState.evaluating) else None,
        **values,
    )
    session.add(current)
    session.flush()
    return current


def plant_dataset(session: Session, campaign: Campaign) -> PreferenceDataset:
    where = artifacts.url("campaigns", str(campaign.id), "datasets", f"{uuid.uuid4().hex}.jsonl")
    artifacts.write_text(where, ['{"chosen": "yes"}\n', '{"chosen": "no"}\n'])
    data = PreferenceDataset(
        campaign_id=campaign.id,
        sha256=uuid.uuid4().hex * 2,
        train_uri=where,
        held_out_uri=where,
        train_pairs=80,
        held_out_pairs=9,
        ties=7,
        annotations=96,
    )
    session.add(data)
    session.flush()
    return data


def plant_run(
    session: Session,
    campaign: Campaign,
    current: Round | None,
    stage: Stage,
    state: RunState,
    steps: int = 0,
    **values: Any,
) -> Run:
    """A run that has logged `steps` steps of 40."""
    over = state in (RunState.succeeded, RunState.failed, RunState.cancelled)
    run = Run(
        campaign_id=campaign.id,
        round_id=current.id if current else None,
        stage=stage,
        state=state,
        **{
            "total_steps": 40,
            "attempt": 0 if state is RunState.queued else 1,
            "lease_until": now() + timedelta(hours=1) if state is RunState.running else None,
            "started_at": None if state is RunState.queued else now() - timedelta(minutes=2),
            "finished_at": now() if over else None,
            **values,
        },
    )
    session.add(run)
    session.flush()
    plant_steps(session, run, range(1, steps + 1))
    return run


def plant_steps(session: Session, run: Run, steps: range) -> None:
    session.add_all(RunMetric(run_id=run.id, step=n, epoch=1, metrics=figures(run.stage, n)) for n in steps)
    session.add_all(RunLogLine(run_id=run.id, line=f"step {n}") for n in steps)
    session.flush()


def figures(stage: Stage, step: int) -> dict[str, Any]:
    if stage is Stage.ppo:
        return {"objective/scores": step / 10, "objective/kl": step / 4, "grad_norm": 1.5}
    if stage is Stage.dpo:
        return {"loss": 0.7 - step / 100, "rewards/margins": step / 20, "grad_norm": 2.5}
    return {"loss": 0.7 - step / 100, "accuracy": 0.5 + step / 100}


def plant_report(rows: list[dict[str, Any]]) -> str:
    """What an evaluation leaves: its samples."""
    where = artifacts.url("runs", uuid.uuid4().hex, "report.json")
    artifacts.write_text(where, [json.dumps({"stage": "evaluate", "metrics": {}, "samples": rows})])
    return where


SAMPLE = {
    "prompt": [{"role": "user", "content": "Is it late?"}],
    "completion": "It is **ten**.",
    "baseline_completion": "dunno",
    "reward": 1.25,
    "baseline_reward": -0.5,
}


def plant_finished(
    session: Session,
    campaign: Campaign,
    state: RoundState,
    number: int = 1,
    method: str = "dpo",
    evaluation: dict[str, Any] | None = None,
    samples: list[dict[str, Any]] | None = None,
) -> Round:
    """A round that was decided, with everything it leaves. A promoted one's candidate becomes the policy."""
    measured = evaluation or EVALUATION
    current = plant_round(session, campaign, state, number, method)
    reward = plant_run(session, campaign, current, Stage.reward, RunState.succeeded, 20, result={"metrics": REWARD})
    policy = plant_run(session, campaign, current, Stage(method), RunState.succeeded, 20, result={"metrics": {}})
    plant_run(
        session,
        campaign,
        current,
        Stage.evaluate,
        RunState.succeeded,
        result={"metrics": measured},
        outputs={"report": plant_report(samples or [SAMPLE])},
    )
    known = gates.measurements(REWARD, measured)
    verdicts = gates.judge(recipes.DEFAULT_GATES, known)
    current.gates = [verdict.as_json() for verdict in verdicts]
    current.decision_reason = "All gates passed." if all(v.passed for v in verdicts) else "Gates failed: kl."
    common = {"campaign_id": campaign.id, "uri": "file:///nowhere", "parent_id": campaign.policy_id}
    scorer = Checkpoint(
        name=f"Round {number} reward model", kind=CheckpointKind.reward, run_id=reward.id, metrics=REWARD, **common
    )
    candidate = Checkpoint(
        name=f"Round {number} policy", kind=CheckpointKind.policy, run_id=policy.id, metrics=known, **common
    )
    session.add_all([scorer, candidate])
    session.flush()
    current.reward_model_id, current.candidate_id = scorer.id, candidate.id
    if state is RoundState.promoted:
        campaign.policy_id = candidate.id
    session.flush()
    return current
