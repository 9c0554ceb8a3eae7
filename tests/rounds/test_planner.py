import pytest

from app.rounds.models import RoundState, RunState, Stage
from app.rounds.planner import Facts, Step, next_step

TRAINING, EVALUATING, COLLECTING = RoundState.training, RoundState.evaluating, RoundState.collecting
DONE, AT_WORK, BROKEN = RunState.succeeded, RunState.running, RunState.failed


@pytest.mark.parametrize(
    ("facts", "step"),
    [
        (Facts(COLLECTING), Step.wait),
        (Facts(COLLECTING, wants_batch=True), Step.sample),
        (Facts(COLLECTING, wants_batch=True, runs={Stage.sample: RunState.queued}), Step.wait),
        (Facts(COLLECTING, wants_batch=True, runs={Stage.sample: BROKEN}), Step.wait),
        (Facts(COLLECTING, wants_batch=True, has_policy=False), Step.wait),
        (Facts(COLLECTING, wants_batch=True, serving=False), Step.wait),
        (Facts(COLLECTING, every_annotations=50, new_answers=49), Step.wait),
        (Facts(COLLECTING, every_annotations=50, new_answers=50), Step.begin),
        (Facts(COLLECTING, every_annotations=50, new_answers=50, trainable=False), Step.wait),
        (Facts(COLLECTING, every_annotations=50, new_answers=50, serving=False), Step.wait),
        (Facts(COLLECTING, every_hours=24, hours_since_last=23.9, new_answers=9), Step.wait),
        (Facts(COLLECTING, every_hours=24, hours_since_last=24, new_answers=9), Step.begin),
        (Facts(COLLECTING, every_hours=24, hours_since_last=24, new_answers=0), Step.wait),
        (Facts(TRAINING), Step.freeze),
        (Facts(TRAINING, has_dataset=True), Step.reward),
        (Facts(TRAINING, has_dataset=True, runs={Stage.reward: AT_WORK}), Step.wait),
        (Facts(TRAINING, has_dataset=True, runs={Stage.reward: BROKEN}), Step.fail),
        (Facts(TRAINING, has_dataset=True, runs={Stage.reward: RunState.cancelled}), Step.fail),
        (Facts(TRAINING, has_dataset=True, runs={Stage.reward: DONE}), Step.policy),
        (Facts(TRAINING, has_dataset=True, runs={Stage.reward: DONE, Stage.dpo: AT_WORK}), Step.wait),
        (Facts(TRAINING, has_dataset=True, runs={Stage.reward: DONE, Stage.dpo: BROKEN}), Step.fail),
        (Facts(TRAINING, has_dataset=True, runs={Stage.reward: DONE, Stage.dpo: DONE}), Step.evaluate),
        (Facts(TRAINING, Stage.ppo, has_dataset=True, runs={Stage.reward: DONE}), Step.policy),
        (Facts(TRAINING, Stage.ppo, has_dataset=True, runs={Stage.reward: DONE, Stage.ppo: DONE}), Step.evaluate),
        (Facts(EVALUATING), Step.evaluate),
        (Facts(EVALUATING, runs={Stage.evaluate: AT_WORK}), Step.wait),
        (Facts(EVALUATING, runs={Stage.evaluate: DONE}), Step.decide),
        (Facts(EVALUATING, runs={Stage.evaluate: BROKEN}), Step.fail),
        (Facts(RoundState.promoted), Step.wait),
        (Facts(RoundState.cancelled), Step.wait),
    ],
)
def test_the_next_step_follows_from_the_facts(facts: Facts, step: Step) -> None:
    assert next_step(facts) is step
