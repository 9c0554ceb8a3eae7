import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from app.campaigns.models import Campaign
from app.core.db import transaction
from app.core.states import StateChange
from app.rounds import runs
from app.rounds.models import Run, RunMetric, RunState, Stage
from tests.factories import make_campaign


def queued(session: Session, campaign: Campaign | None = None) -> Run:
    campaign = campaign or make_campaign(session)
    return runs.queue(session, campaign_id=campaign.id, stage=Stage.dpo, inputs={}, recipe={})


def lose(session: Session, run: Run) -> None:
    """As if its worker had died a while ago."""
    ago = func.clock_timestamp() - timedelta(seconds=1)
    session.execute(update(Run).where(Run.id == run.id).values(lease_until=ago))
    session.refresh(run)


def test_a_claim_counts_the_attempt_and_grows_the_epoch(session: Session) -> None:
    run = runs.claim(session, queued(session).id, "w")
    assert run and (run.state, run.attempt, run.epoch, run.worker) == (RunState.running, 1, 1, "w")


def test_a_second_message_for_the_same_run_finds_it_taken(session: Session) -> None:
    run = queued(session)
    assert runs.claim(session, run.id, "first") and runs.claim(session, run.id, "second") is None


def test_twenty_copies_of_a_message_start_a_run_once(committing: Engine) -> None:
    with transaction() as session:
        run = queued(session)

    def claim(n: int) -> bool:
        with transaction() as session:
            return runs.claim(session, run.id, f"w{n}") is not None

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(claim, range(20))) == 1
    with transaction() as session:
        assert session.get_one(Run, run.id).attempt == 1


def test_a_lost_run_is_queued_again_and_the_old_worker_is_fenced_out(session: Session) -> None:
    run = runs.claim(session, queued(session).id, "old")
    assert run
    lose(session, run)
    runs.reconcile(session)
    session.refresh(run)
    assert run.state is RunState.queued
    again = runs.claim(session, run.id, "new")
    assert again and again.epoch == 2
    with pytest.raises(runs.Fenced):
        runs.beat(session, run.id, epoch=1)
    with pytest.raises(runs.Fenced):
        runs.held(session, run.id, epoch=1)
    assert runs.beat(session, run.id, epoch=2) is False


def test_after_three_lost_attempts_a_run_has_failed_with_the_reason(session: Session) -> None:
    run = queued(session)
    for _ in range(runs.MAX_ATTEMPTS):
        claimed = runs.claim(session, run.id, "w")
        assert claimed
        lose(session, claimed)
        runs.reconcile(session)
        session.refresh(run)
    assert run.state is RunState.failed
    assert "not heard of" in run.error and "tried 3 times" in run.error


def test_a_failure_that_another_attempt_cannot_mend_is_final_at_once(session: Session) -> None:
    run = runs.claim(session, queued(session).id, "w")
    assert run
    runs.fail(session, run, "data", "line 7 has no prompt", retry=False)
    assert (run.state, run.error, run.error_kind) == (RunState.failed, "line 7 has no prompt", "data")


def test_a_live_run_is_left_alone(session: Session) -> None:
    run = runs.claim(session, queued(session).id, "w")
    assert run and runs.reconcile(session) == 0 and run.state is RunState.running


def test_a_queued_run_nobody_came_for_is_rung_for_again(session: Session) -> None:
    run = queued(session)
    assert runs.reconcile(session, ring_after_seconds=20) == 0
    assert runs.reconcile(session, ring_after_seconds=0) == 1
    assert run.state is RunState.queued


def test_a_queued_run_is_cancelled_at_once_and_never_starts(session: Session) -> None:
    run = queued(session)
    runs.request_cancel(session, run)
    assert run.state is RunState.cancelled and runs.claim(session, run.id, "w") is None


def test_a_running_run_hears_of_its_cancellation_with_the_next_heartbeat(session: Session) -> None:
    run = runs.claim(session, queued(session).id, "w")
    assert run
    runs.request_cancel(session, run)
    assert run.state is RunState.running and runs.beat(session, run.id, run.epoch) is True


def test_a_cancelled_run_whose_worker_dies_is_not_started_again(session: Session) -> None:
    run = runs.claim(session, queued(session).id, "w")
    assert run
    runs.request_cancel(session, run)
    lose(session, run)
    runs.reconcile(session)
    session.refresh(run)
    assert run.state is RunState.cancelled


def test_a_worker_that_stops_in_good_order_spends_no_attempt(session: Session) -> None:
    run = runs.claim(session, queued(session).id, "w")
    assert run
    runs.hand_back(session, run)
    assert (run.state, run.attempt) == (RunState.queued, 0)


def test_a_step_logged_twice_is_kept_as_it_was_first(session: Session) -> None:
    run = runs.claim(session, queued(session).id, "w")
    assert run
    runs.record(session, run, [{"step": 1, "total_steps": 9, "metrics": {"loss": 1.0}}], ["hello"])
    runs.record(session, run, [{"step": 1, "total_steps": 9, "metrics": {"loss": 2.0}}], [])
    assert session.scalars(select(RunMetric.metrics)).all() == [{"loss": 1.0}] and run.total_steps == 9


def test_the_log_keeps_its_newest_lines(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "MAX_LOG_LINES", 10)
    run = runs.claim(session, queued(session).id, "w")
    assert run
    for n in range(5):
        runs.record(session, run, [], [f"line {n}.{i}" for i in range(5)])
    lines = session.scalars(select(runs.RunLogLine.line).order_by(runs.RunLogLine.id)).all()
    assert 10 <= len(lines) <= 11 and lines[-1] == "line 4.4"


def test_every_move_of_a_run_is_in_the_journal(session: Session) -> None:
    run = runs.claim(session, queued(session).id, "w")
    assert run
    runs.succeed(session, run, {"metrics": {}}, {})
    moves = session.execute(select(StateChange.new).where(StateChange.thing_id == run.id).order_by(StateChange.id))
    assert [m for (m,) in moves] == ["running", "succeeded"]


def test_a_message_for_a_run_that_never_was_is_ignored(session: Session) -> None:
    assert runs.claim(session, uuid.uuid4(), "w") is None
