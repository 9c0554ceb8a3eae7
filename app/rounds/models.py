"""Rounds and the runs that they are made of."""

import uuid
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base, Row


class RoundState(StrEnum):
    collecting = "collecting"
    """Annotators are answering; started by the lead, by enough new answers, or by the schedule."""
    training = "training"
    """The labels are frozen; the reward run and then the policy run are at work."""
    evaluating = "evaluating"
    """The candidate is measured on held-out prompts against the current policy."""
    promoted = "promoted"
    """The candidate is the campaign's policy. A lead may roll back, with a reason."""
    rejected = "rejected"
    """A gate failed, or a lead said no. A lead may promote all the same, with a reason."""
    failed = "failed"
    """A run failed for good; the reason is on the round."""
    cancelled = "cancelled"
    """A lead stopped it."""


LIVE_ROUNDS = (RoundState.collecting, RoundState.training, RoundState.evaluating)


class Round(Row):
    __tablename__ = "rounds"
    __table_args__ = (
        UniqueConstraint("campaign_id", "number"),
        # Never two at once for a campaign.
        Index(
            "uq_rounds_live",
            "campaign_id",
            unique=True,
            postgresql_where=text("state IN ('collecting', 'training', 'evaluating')"),
        ),
    )

    MOVES: ClassVar[dict[RoundState, set[RoundState]]] = {
        RoundState.collecting: {RoundState.training, RoundState.cancelled, RoundState.failed},
        RoundState.training: {RoundState.evaluating, RoundState.failed, RoundState.cancelled},
        RoundState.evaluating: {
            RoundState.promoted,
            RoundState.rejected,
            RoundState.failed,
            RoundState.cancelled,
        },
        RoundState.promoted: {RoundState.rejected},
        RoundState.rejected: {RoundState.promoted},
        RoundState.failed: set(),
        RoundState.cancelled: set(),
    }

    campaign_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("campaigns.id", ondelete="CASCADE"))
    number: Mapped[int]
    state: Mapped[RoundState] = mapped_column(default=RoundState.collecting)
    trigger: Mapped[str] = mapped_column(server_default="")
    """What started the training: `lead`, `annotations` or `schedule`."""
    recipe: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """The `RoundRecipe` in force when training began."""
    dataset_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("preference_datasets.id"))
    policy_before_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("checkpoints.id"))
    reward_model_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("checkpoints.id"))
    candidate_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("checkpoints.id"))
    gates: Mapped[list[Any]] = mapped_column(default=list)
    """What each gate measured and said: `rounds.gates.Verdict` as JSON."""
    decision_reason: Mapped[str] = mapped_column(server_default="")
    error: Mapped[str] = mapped_column(server_default="")
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Stage(StrEnum):
    """What a run does: the stages of the training command line."""

    reward = "reward"
    dpo = "dpo"
    ppo = "ppo"
    evaluate = "evaluate"
    sample = "sample"


class RunState(StrEnum):
    queued = "queued"
    """Waiting for a worker. A message has been sent, and is sent again until somebody claims the row."""
    running = "running"
    """A worker holds it until `lease_until`; *lost* is a lease that ran out, and is computed."""
    succeeded = "succeeded"
    """Its outputs are stored and recorded."""
    failed = "failed"
    """It cannot succeed by trying again, or has been tried three times."""
    cancelled = "cancelled"
    """Somebody asked for it to stop."""


class Run(Row):
    """One execution of a stage. The row is the truth about it; every write by a worker names its `epoch`."""

    __tablename__ = "runs"
    __table_args__ = (
        CheckConstraint("attempt <= 3", name="attempt"),
        CheckConstraint("state <> 'running' OR lease_until IS NOT NULL", name="lease"),
        Index("ix_runs_live", "state", postgresql_where=text("state IN ('queued', 'running')")),
        # The planner may look twice at once; each stage of a round is still queued once.
        Index(
            "uq_runs_round_stage",
            "round_id",
            "stage",
            unique=True,
            postgresql_where=text("round_id IS NOT NULL AND state <> 'failed' AND state <> 'cancelled'"),
        ),
        Index("ix_runs_campaign_id_created_at", "campaign_id", "created_at"),
    )

    MOVES: ClassVar[dict[RunState, set[RunState]]] = {
        RunState.queued: {RunState.running, RunState.cancelled, RunState.failed},
        RunState.running: {RunState.queued, RunState.succeeded, RunState.failed, RunState.cancelled},
        RunState.succeeded: set(),
        RunState.failed: set(),
        RunState.cancelled: set(),
    }

    campaign_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("campaigns.id", ondelete="CASCADE"))
    round_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("rounds.id", ondelete="CASCADE"), index=True)
    stage: Mapped[Stage]
    state: Mapped[RunState] = mapped_column(default=RunState.queued)
    inputs: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Role to URI: `data`, `model`, and by stage `eval`, `reward_model`, `baseline`, `initial`."""
    parents: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Role to checkpoint id, for lineage."""
    recipe: Mapped[dict[str, Any]] = mapped_column(default=dict)
    attempt: Mapped[int] = mapped_column(default=0)
    epoch: Mapped[int] = mapped_column(default=0)
    """Fencing token: grows with each claim; a write that names an older one changes nothing."""
    worker: Mapped[str] = mapped_column(server_default="")
    lease_until: Mapped[datetime | None]
    rung_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """When a message was last sent for it."""
    cancel_requested_at: Mapped[datetime | None]
    total_steps: Mapped[int | None]
    result: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """The training command's summary."""
    outputs: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Role to URI of what it stored."""
    error: Mapped[str] = mapped_column(server_default="")
    error_kind: Mapped[str] = mapped_column(server_default="")
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class RunMetric(Base):
    """What a run logged at a step. A resumed run logs its steps once: the first writing wins."""

    __tablename__ = "run_metrics"

    run_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    epoch: Mapped[int]
    metrics: Mapped[dict[str, Any]]
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class RunLogLine(Base):
    __tablename__ = "run_log_lines"
    __table_args__ = (Index("ix_run_log_lines_run_id_id", "run_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    run_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    line: Mapped[str]
