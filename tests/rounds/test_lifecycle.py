import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts.models import Role, User
from app.campaigns.models import Campaign, CampaignState, Prompt, Split
from app.checkpoints.models import Checkpoint, CheckpointKind
from app.core.errors import Conflict, Invalid
from app.preferences import importing
from app.rounds import lifecycle, progress, runs
from app.rounds.models import Round, RoundState, Run, RunState, Stage
from tests.factories import make_campaign, make_policy, make_user


def labelled(session: Session, count: int = 40, **values: object) -> tuple[Campaign, User]:
    """An active campaign with a policy and imported labels."""
    lead = make_user(session, Role.lead)
    policy = make_policy(session)
    campaign = make_campaign(session, by=lead, policy_id=policy.id, **values)
    rows = ((n, {"prompt": f"Q{n}?", "chosen": "good", "rejected": "bad"}) for n in range(count))
    importing.import_comparisons(session, campaign, rows)
    return campaign, lead


def finish(session: Session, current: Round, stage: Stage, metrics: dict[str, object]) -> None:
    """End the round's run of that stage as its worker would, with a checkpoint where there is one."""
    run = runs.claim(session, runs.newest(session, current.id)[stage].id, "w")
    assert run
    if stage in (Stage.reward, Stage.dpo, Stage.ppo):
        kind = CheckpointKind.reward if stage is Stage.reward else CheckpointKind.policy
        session.add(
            Checkpoint(campaign_id=run.campaign_id, run_id=run.id, name=stage.value, kind=kind, uri=f"file:///{run.id}")
        )
    runs.succeed(session, run, {"metrics": metrics}, {})
    progress.advance(session, current.id)
    session.refresh(current)


GOOD = {"accuracy": 0.9}
BETTER = {
    "reward_win_rate": 0.8,
    "kl": 3.0,
    "mean_length": 9.0,
    "baseline_mean_length": 9.0,
    "distinct_2": 0.5,
    "baseline_distinct_2": 0.5,
}


def play(session: Session, campaign: Campaign, lead: User, evaluation: dict[str, object]) -> Round:
    current = lifecycle.start(session, campaign, lead)
    progress.advance(session, current.id)
    session.refresh(current)
    finish(session, current, Stage.reward, GOOD)
    finish(session, current, Stage.dpo, {})
    assert current.state is RoundState.evaluating
    finish(session, current, Stage.evaluate, evaluation)
    return current


def test_a_round_whose_gates_pass_promotes_its_candidate_and_the_next_one_samples(session: Session) -> None:
    campaign, lead = labelled(session)
    done = play(session, campaign, lead, BETTER)
    assert done.state is RoundState.promoted and campaign.policy_id == done.candidate_id
    following = lifecycle.live_round(session, campaign.id)
    assert following and following.number == 2 and following.state is RoundState.collecting
    progress.advance(session, following.id)
    sample = runs.newest(session, following.id)[Stage.sample]
    assert sample.parents["model"] == str(done.candidate_id)


def test_a_round_whose_gates_fail_leaves_the_policy_in_place(session: Session) -> None:
    campaign, lead = labelled(session)
    before = campaign.policy_id
    done = play(session, campaign, lead, {**BETTER, "reward_win_rate": 0.3})
    assert done.state is RoundState.rejected and campaign.policy_id == before
    assert "reward win rate" in done.decision_reason


def test_the_lead_may_promote_a_rejected_candidate_with_a_reason_that_is_kept(session: Session) -> None:
    campaign, lead = labelled(session)
    done = play(session, campaign, lead, {**BETTER, "kl": 500.0})
    with pytest.raises(Invalid, match="why"):
        lifecycle.override(session, campaign, done, lead, RoundState.promoted, " ")
    lifecycle.override(session, campaign, done, lead, RoundState.promoted, "people liked it in a blind test")
    assert done.state is RoundState.promoted and campaign.policy_id == done.candidate_id
    assert "blind test" in done.decision_reason


def test_a_promotion_can_be_rolled_back(session: Session) -> None:
    campaign, lead = labelled(session)
    before = campaign.policy_id
    done = play(session, campaign, lead, BETTER)
    lifecycle.override(session, campaign, done, lead, RoundState.rejected, "it flatters")
    assert campaign.policy_id == before and done.state is RoundState.rejected


def test_a_round_needs_enough_preferences(session: Session) -> None:
    campaign, lead = labelled(session, count=3)
    with pytest.raises(Conflict, match="at least 10"):
        lifecycle.start(session, campaign, lead)


def test_there_are_never_two_rounds_at_once(session: Session) -> None:
    campaign, lead = labelled(session)
    lifecycle.start(session, campaign, lead)
    with pytest.raises(Conflict, match="is training"):
        lifecycle.start(session, campaign, lead)


def test_a_paused_campaign_starts_no_round(session: Session) -> None:
    campaign, lead = labelled(session)
    campaign.state = CampaignState.paused
    with pytest.raises(Conflict, match="paused"):
        lifecycle.start(session, campaign, lead)


def test_a_recipe_out_of_bounds_is_named(session: Session) -> None:
    campaign, lead = labelled(session)
    with pytest.raises(Invalid) as error:
        lifecycle.start(session, campaign, lead, {"dpo": {"beta": -1}})
    assert error.value.field == "recipe.dpo.beta"


def test_overrides_are_in_force_for_this_round_alone(session: Session) -> None:
    campaign, lead = labelled(session)
    current = lifecycle.start(session, campaign, lead, {"dpo": {"beta": 0.7}})
    assert current.recipe["dpo"]["beta"] == 0.7 and campaign.recipe == {}


def test_enough_new_answers_start_a_round_by_themselves(session: Session) -> None:
    campaign, _ = labelled(session, recipe={"every_annotations": 20})
    current = lifecycle.open_round(session, campaign)
    progress.advance(session, current.id)
    session.refresh(current)
    assert current.state is RoundState.training and current.trigger == "annotations"


def test_a_run_that_failed_for_good_fails_the_round_with_its_reason(session: Session) -> None:
    campaign, lead = labelled(session)
    current = lifecycle.start(session, campaign, lead)
    progress.advance(session, current.id)
    run = runs.claim(session, runs.newest(session, current.id)[Stage.reward].id, "w")
    assert run
    runs.fail(session, run, "memory", "out of memory: lower batch_size", retry=False)
    progress.advance(session, current.id)
    session.refresh(current)
    assert current.state is RoundState.failed and "lower batch_size" in current.error
    assert lifecycle.live_round(session, campaign.id) is not None


def test_cancelling_a_round_cancels_its_runs(session: Session) -> None:
    campaign, lead = labelled(session)
    current = lifecycle.start(session, campaign, lead)
    progress.advance(session, current.id)
    lifecycle.cancel(session, current, lead)
    assert current.state is RoundState.cancelled
    states = session.scalars(select(Run.state).where(Run.round_id == current.id))
    assert set(states) == {RunState.cancelled}


def test_ppo_gets_training_prompts_only_and_the_reward_model(session: Session) -> None:
    campaign, lead = labelled(session, recipe={"method": "ppo"})
    current = lifecycle.start(session, campaign, lead)
    progress.advance(session, current.id)
    session.refresh(current)
    finish(session, current, Stage.reward, GOOD)
    run = runs.newest(session, current.id)[Stage.ppo]
    assert run.inputs["reward_model"].startswith("file:///")
    train = session.scalars(select(Prompt.id).where(Prompt.campaign_id == campaign.id, Prompt.split == Split.train))
    from app.core import artifacts

    ids = {line.split('"')[3] for line in artifacts.read_text(run.inputs["data"])}
    assert ids == {str(i) for i in train}


def test_an_imported_campaign_is_not_flooded_with_samples_in_its_first_round(session: Session) -> None:
    campaign, _ = labelled(session)
    current = lifecycle.open_round(session, campaign)
    progress.advance(session, current.id)
    assert runs.newest(session, current.id) == {}
