"""Runs: queued once, claimed by one worker at a time, fenced against zombies, given up after three attempts.

The clock is the database's throughout. Every write by a worker names the epoch of its claim; a worker that was taken
for dead finds that its writes change nothing (`Fenced`), and stops.
"""

import uuid
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.core import jobs, live, states
from app.core.errors import Conflict
from app.core.settings import settings
from app.rounds.models import Run, RunLogLine, RunMetric, RunState, Stage

EXECUTE = "tiebreak.execute_run"
ADVANCE = "tiebreak.advance_round"
MAX_ATTEMPTS = 3
MAX_LOG_LINES = 2000
FINAL = (RunState.succeeded, RunState.failed, RunState.cancelled)


class Fenced(Exception):
    """This worker's claim on the run is over; somebody else has it, or it has ended."""


def newest(session: Session, round_id: uuid.UUID) -> dict[Stage, Run]:
    """The newest run of each stage of a round."""
    ordered = session.scalars(select(Run).where(Run.round_id == round_id).order_by(Run.created_at))
    return {run.stage: run for run in ordered}


def queue(
    session: Session,
    *,
    campaign_id: uuid.UUID,
    stage: Stage,
    inputs: dict[str, Any],
    recipe: dict[str, Any],
    parents: dict[str, Any] | None = None,
    round_id: uuid.UUID | None = None,
    run_id: uuid.UUID | None = None,
) -> Run:
    """A queued run; a worker is rung for after commit."""
    run = Run(
        id=run_id or uuid.uuid4(),
        campaign_id=campaign_id,
        round_id=round_id,
        stage=stage,
        inputs=inputs,
        recipe=recipe,
        parents=parents or {},
    )
    session.add(run)
    session.flush()
    jobs.enqueue(session, EXECUTE, run.id, queue="gpu")
    _nudge(session, run)
    return run


def claim(session: Session, run_id: uuid.UUID, worker: str) -> Run | None:
    """Take a queued run; None when somebody has it, or it has ended, or it was cancelled."""
    run = session.get(Run, run_id)
    if run is None or run.state is not RunState.queued:
        return None
    if run.cancel_requested_at:
        _end(session, run, RunState.cancelled)
        return None
    try:
        states.move(
            session,
            run,
            RunState.running,
            reason=worker,
            epoch=Run.epoch + 1,
            attempt=Run.attempt + 1,
            worker=worker,
            lease_until=_lease(),
            started_at=func.coalesce(Run.started_at, func.clock_timestamp()),
            error="",
        )
    except Conflict:
        return None
    _nudge(session, run)
    return run


def _lease() -> Any:
    return func.clock_timestamp() + timedelta(seconds=settings().run_lease_seconds)


def beat(session: Session, run_id: uuid.UUID, epoch: int) -> bool:
    """Renew the claim. True when somebody asked for the run to stop. Raises `Fenced`."""
    row = session.execute(
        update(Run)
        .where(Run.id == run_id, Run.epoch == epoch, Run.state == RunState.running)
        .values(lease_until=_lease())
        .returning(Run.cancel_requested_at)
    ).one_or_none()
    if row is None:
        raise Fenced
    return row[0] is not None


def held(session: Session, run_id: uuid.UUID, epoch: int) -> Run:
    """The run, locked, if this claim on it still stands. Raises `Fenced`."""
    run = session.get(Run, run_id, with_for_update=True, populate_existing=True)
    if run is None or run.epoch != epoch or run.state is not RunState.running:
        raise Fenced
    return run


def record(session: Session, run: Run, steps: list[dict[str, Any]], log: list[str]) -> None:
    """Write what the child printed since the last time. Steps already logged stay as they were."""
    if steps:
        rows = [{"run_id": run.id, "step": s["step"], "epoch": run.epoch, "metrics": s["metrics"]} for s in steps]
        session.execute(insert(RunMetric).on_conflict_do_nothing(), rows)
        run.total_steps = steps[-1].get("total_steps", run.total_steps)
    if log:
        session.add_all(RunLogLine(run_id=run.id, line=line[:2000]) for line in log)
        session.flush()
        newest = select(RunLogLine.id).where(RunLogLine.run_id == run.id).order_by(RunLogLine.id.desc())
        session.execute(
            delete(RunLogLine).where(
                RunLogLine.run_id == run.id, RunLogLine.id < newest.offset(MAX_LOG_LINES).limit(1).scalar_subquery()
            )
        )
    if steps or log:
        _nudge(session, run)


def succeed(session: Session, run: Run, result: dict[str, Any], outputs: dict[str, Any]) -> None:
    _end(session, run, RunState.succeeded, result=result, outputs=outputs)


def fail(session: Session, run: Run, kind: str, message: str, *, retry: bool) -> None:
    """End an attempt: back into the queue when another may help and there is one left, else failed for good."""
    if run.cancel_requested_at:
        _end(session, run, RunState.cancelled)
    elif retry and run.attempt < MAX_ATTEMPTS:
        states.move(session, run, RunState.queued, reason=message, lease_until=None, error=message, error_kind=kind)
        ring(session, run)
        _nudge(session, run)
    else:
        after = f" (tried {run.attempt} times)" if run.attempt > 1 else ""
        _end(session, run, RunState.failed, reason=message, error=message + after, error_kind=kind)


def hand_back(session: Session, run: Run) -> None:
    """The worker is stopping in good order: the run is queued again, to go on where it stopped. No attempt is spent."""
    if run.cancel_requested_at:
        _end(session, run, RunState.cancelled)
        return
    states.move(
        session, run, RunState.queued, reason="the worker is stopping", lease_until=None, attempt=Run.attempt - 1
    )
    ring(session, run)
    _nudge(session, run)


def cancelled(session: Session, run: Run) -> None:
    _end(session, run, RunState.cancelled)


def request_cancel(session: Session, run: Run) -> None:
    """Ask for a run to stop: at once when queued, at the next heartbeat when running."""
    if run.state in FINAL:
        return
    run.cancel_requested_at = session.scalar(select(func.now()))
    session.flush()
    if run.state is RunState.queued:
        _end(session, run, RunState.cancelled)


def _end(session: Session, run: Run, to: RunState, reason: str = "", **values: Any) -> None:
    states.move(session, run, to, reason=reason, lease_until=None, finished_at=func.clock_timestamp(), **values)
    if run.round_id:
        jobs.enqueue(session, ADVANCE, run.round_id)
    _nudge(session, run)


def ring(session: Session, run: Run) -> None:
    session.execute(update(Run).where(Run.id == run.id).values(rung_at=func.clock_timestamp()))
    jobs.enqueue(session, EXECUTE, run.id, queue="gpu")


def reconcile(session: Session, ring_after_seconds: float = 20) -> int:
    """Put lost runs back into the queue (or fail them), and ring again for queued ones nobody came for."""
    touched = 0
    lost = select(Run).where(Run.state == RunState.running, Run.lease_until < func.clock_timestamp())
    for run in session.scalars(lost.with_for_update(skip_locked=True)):
        fail(session, run, "lost", "The worker was not heard of any more.", retry=True)
        touched += 1
    silent = select(Run).where(
        Run.state == RunState.queued,
        Run.rung_at < func.clock_timestamp() - timedelta(seconds=ring_after_seconds),
    )
    for run in session.scalars(silent.with_for_update(skip_locked=True)):
        ring(session, run)
        touched += 1
    return touched


def _nudge(session: Session, run: Run) -> None:
    live.nudge(session, f"run:{run.id}")
    if run.round_id:
        live.nudge(session, f"round:{run.round_id}")
    live.nudge(session, f"campaign:{run.campaign_id}")
