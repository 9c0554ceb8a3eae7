"""What a round should do next. Pure: facts in, one step out.

The reconciler asks after every event and on every tick; asking twice is harmless, because the facts of the second time
already show what the first time did.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from app.rounds.models import RoundState, RunState, Stage


class Step(StrEnum):
    wait = "wait"
    sample = "sample"
    """Queue the run that samples the next batch."""
    begin = "begin"
    """Start training, because enough was answered or the time has come."""
    freeze = "freeze"
    """Snapshot the labels."""
    reward = "reward"
    policy = "policy"
    evaluate = "evaluate"
    """Move to evaluating and queue its run."""
    decide = "decide"
    """Judge the gates, then promote or reject."""
    fail = "fail"


@dataclass(frozen=True)
class Facts:
    """All that matters about a live round."""

    state: RoundState
    policy_stage: Stage = Stage.dpo
    runs: dict[Stage, RunState] = field(default_factory=dict)
    """The newest run of each stage."""
    serving: bool = True
    """The campaign is active."""
    has_policy: bool = True
    has_dataset: bool = False
    wants_batch: bool = False
    """Fresh candidates are due: a new policy has just come, or there is nothing to answer."""
    new_answers: int = 0
    """Answers that can train, since the last snapshot."""
    every_annotations: int | None = None
    hours_since_last: float = 0.0
    every_hours: float | None = None
    trainable: bool = True
    """There are enough preference pairs for a round that starts by itself."""


STEPS = {Stage.reward: Step.reward, Stage.dpo: Step.policy, Stage.ppo: Step.policy}


def next_step(facts: Facts) -> Step:
    if facts.state is RoundState.collecting:
        return _collecting(facts)
    if facts.state is RoundState.training:
        return _training(facts)
    if facts.state is RoundState.evaluating:
        return _after(facts, Stage.evaluate, missing=Step.evaluate, done=Step.decide)
    return Step.wait


def _collecting(facts: Facts) -> Step:
    if not facts.serving or not facts.has_policy:
        return Step.wait
    if facts.wants_batch and Stage.sample not in facts.runs:
        return Step.sample
    if facts.trainable:
        if facts.every_annotations and facts.new_answers >= facts.every_annotations:
            return Step.begin
        if facts.every_hours and facts.hours_since_last >= facts.every_hours and facts.new_answers:
            return Step.begin
    return Step.wait


def _training(facts: Facts) -> Step:
    if not facts.has_dataset:
        return Step.freeze
    policy = _after(facts, facts.policy_stage, missing=Step.policy, done=Step.evaluate)
    return _after(facts, Stage.reward, missing=Step.reward, done=policy)


def _after(facts: Facts, stage: Stage, missing: Step, done: Step) -> Step:
    """What to do about one stage: queue it, wait for it, go on, or give up."""
    state = facts.runs.get(stage)
    if state is None:
        return missing
    if state is RunState.succeeded:
        return done
    if state in (RunState.failed, RunState.cancelled):
        return Step.fail
    return Step.wait
