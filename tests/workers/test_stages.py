"""Runs from claim to end: a real database, the real training command as a real child process."""

import os
import signal
import threading
import time
import uuid

import psutil
import pytest
from sqlalchemy import Engine, func, select

from app.accounts.models import Role
from app.campaigns.models import Campaign
from app.checkpoints import lineage
from app.checkpoints.models import Checkpoint, CheckpointKind
from app.comparisons.models import Comparison
from app.core import artifacts
from app.core.db import transaction
from app.preferences import importing
from app.rounds import lifecycle, progress, runs
from app.rounds.models import Round, RoundState, Run, RunMetric, RunState, Stage
from tests.factories import make_campaign, make_user
from tests.models import random_llama
from workers import stages

FAST = {
    "batch_prompts": 6,
    "reward": {"epochs": 1, "batch_size": 8},
    "dpo": {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3},
    "sample": {"max_new_tokens": 8},
    "evaluate": {"max_new_tokens": 8},
    "gates": [],
}


@pytest.fixture
def campaign(committing: Engine) -> Campaign:
    """A campaign on a random model, with forty imported labels."""
    with transaction() as session:
        lead = make_user(session, Role.lead)
        policy = lineage.register_base(session, str(random_llama()))
        made = make_campaign(session, by=lead, policy_id=policy.id, recipe=FAST)
        rows = ((n, {"prompt": f"Question {n}?", "chosen": f"yes {n}", "rejected": f"no {n}"}) for n in range(40))
        importing.import_comparisons(session, made, rows)
    return made


def start(campaign: Campaign, **overrides: object) -> uuid.UUID:
    with transaction() as session:
        current = lifecycle.start(session, session.get_one(Campaign, campaign.id), None, dict(overrides))
    return current.id


def advance(round_id: uuid.UUID) -> Round:
    with transaction() as session:
        progress.advance(session, round_id)
    with transaction() as session:
        return session.get_one(Round, round_id)


def work(round_id: uuid.UUID, stage: Stage) -> Run:
    """Do the round's run of that stage, as the GPU worker would."""
    with transaction() as session:
        run_id = runs.newest(session, round_id)[stage].id
    stages.execute(run_id, threading.Event())
    with transaction() as session:
        return session.get_one(Run, run_id)


def test_a_whole_round_from_labels_to_a_promoted_policy_and_its_next_batch(campaign: Campaign) -> None:
    round_id = start(campaign)
    for stage in (Stage.reward, Stage.dpo, Stage.evaluate):
        advance(round_id)
        run = work(round_id, stage)
        assert run.state is RunState.succeeded, run.error
    done = advance(round_id)
    assert done.state is RoundState.promoted
    with transaction() as session:
        policy = session.get_one(Checkpoint, session.get_one(Campaign, campaign.id).policy_id)
        reward = session.get_one(Checkpoint, done.reward_model_id)
        assert policy.id == done.candidate_id and policy.kind is CheckpointKind.policy
        assert reward.kind is CheckpointKind.reward and "accuracy" in reward.metrics
        assert artifacts.local_path(policy.uri).joinpath("MANIFEST.json").exists()  # type: ignore[union-attr]
        assert session.scalar(select(func.count()).select_from(RunMetric))
        following = lifecycle.live_round(session, campaign.id)
        assert following
    advance(following.id)
    sampled = work(following.id, Stage.sample)
    assert sampled.state is RunState.succeeded, sampled.error
    with transaction() as session:
        made = session.scalar(select(func.count()).where(Comparison.batch_id.is_not(None)))
    assert made == 40 + int(sampled.outputs["comparisons"]) and int(sampled.outputs["comparisons"]) > 0
    assert not stages.scratch(run.id).exists()


def test_a_run_on_bad_data_fails_at_once_with_the_commands_own_words(campaign: Campaign) -> None:
    with transaction() as session:
        where = artifacts.url("bad.jsonl")
        artifacts.write_text(where, ['{"prompt": "Why?", "chosen": "yes", "rejected": "no"}\n'] * 3 + ["{oops\n"])
        inputs = {"data": where, "model": random_llama().as_uri()}
        run = runs.queue(session, campaign_id=campaign.id, stage=Stage.dpo, inputs=inputs, recipe={})
    stages.execute(run.id, threading.Event())
    with transaction() as session:
        run = session.get_one(Run, run.id)
    assert (run.state, run.attempt) == (RunState.failed, 1) and "line 4" in run.error


def slow_run(campaign: Campaign) -> Run:
    """A run that trains for a minute unless something stops it."""
    with transaction() as session:
        where = artifacts.url("pairs.jsonl")
        row = '{"prompt": "Question %d?", "chosen": "yes %d", "rejected": "no %d"}\n'
        artifacts.write_text(where, [row % (n, n, n) for n in range(200)])
        inputs = {"data": where, "model": random_llama().as_uri()}
        recipe = {"epochs": 500, "batch_size": 4, "save_every": 5}
        return runs.queue(session, campaign_id=campaign.id, stage=Stage.dpo, inputs=inputs, recipe=recipe)


def until(seconds: float, condition: object) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def steps(run: Run) -> int:
    with transaction() as session:
        return session.scalar(select(func.count()).where(RunMetric.run_id == run.id)) or 0


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if "workers.training" in " ".join(p.cmdline())]


def test_a_cancelled_run_ends_and_leaves_no_process_behind(campaign: Campaign) -> None:
    run = slow_run(campaign)
    worker = threading.Thread(target=stages.execute, args=(run.id, threading.Event()))
    worker.start()
    until(60, lambda: steps(run) > 3)
    with transaction() as session:
        runs.request_cancel(session, session.get_one(Run, run.id))
    worker.join(timeout=40)
    with transaction() as session:
        assert session.get_one(Run, run.id).state is RunState.cancelled
    assert not worker.is_alive() and children() == [] and not stages.scratch(run.id).exists()


def test_a_stopping_worker_hands_the_run_back_and_the_next_one_goes_on_where_it_stopped(campaign: Campaign) -> None:
    run, stopping = slow_run(campaign), threading.Event()
    worker = threading.Thread(target=stages.execute, args=(run.id, stopping))
    worker.start()
    until(60, lambda: steps(run) > 3)
    stopping.set()
    worker.join(timeout=40)
    with transaction() as session:
        handed = session.get_one(Run, run.id)
        last = session.scalar(select(func.max(RunMetric.step)).where(RunMetric.run_id == run.id)) or 0
    assert (handed.state, handed.attempt) == (RunState.queued, 0)
    stopping.clear()
    worker = threading.Thread(target=stages.execute, args=(run.id, stopping))
    worker.start()
    until(60, lambda: steps(run) > last)
    stopping.set()
    worker.join(timeout=40)
    with transaction() as session:
        logged = session.execute(
            select(RunMetric.step, RunMetric.epoch).where(RunMetric.run_id == run.id).order_by(RunMetric.step)
        ).all()
    first_of_second = next(step for step, epoch in logged if epoch == 2)
    assert [step for step, _ in logged] == list(range(1, len(logged) + 1)) and first_of_second >= last


def test_a_child_killed_by_the_system_is_tried_again_and_then_given_up(campaign: Campaign) -> None:
    run = slow_run(campaign)
    for attempt in range(1, runs.MAX_ATTEMPTS + 1):
        worker = threading.Thread(target=stages.execute, args=(run.id, threading.Event()))
        worker.start()
        until(60, children)
        os.kill(children()[0].pid, signal.SIGKILL)
        worker.join(timeout=40)
        with transaction() as session:
            now = session.get_one(Run, run.id)
        assert now.attempt == attempt
    assert now.state is RunState.failed and "signal 9" in now.error and "tried 3 times" in now.error


def test_a_supervisor_that_lost_its_claim_stops_its_child_and_changes_nothing(campaign: Campaign) -> None:
    run = slow_run(campaign)
    worker = threading.Thread(target=stages.execute, args=(run.id, threading.Event()))
    worker.start()
    until(60, lambda: steps(run) > 1)
    with transaction() as session:
        mine = session.get_one(Run, run.id)
        runs.fail(session, mine, "lost", "The worker was not heard of any more.", retry=True)
        other = runs.claim(session, run.id, "another worker")
        assert other and other.epoch == 2
    worker.join(timeout=40)
    with transaction() as session:
        now = session.get_one(Run, run.id)
    assert (now.state, now.worker, now.epoch) == (RunState.running, "another worker", 2)
    assert children() == []
