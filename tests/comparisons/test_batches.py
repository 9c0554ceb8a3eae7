from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.campaigns import prompts
from app.campaigns.models import Campaign, Prompt
from app.comparisons import batches
from app.comparisons.models import Comparison, Completion
from app.rounds import runs
from app.rounds.models import Stage
from tests.factories import make_campaign, make_policy


def sampled(session: Session, campaign: Campaign, *texts: list[str]) -> int:
    """A batch in which the campaign's prompts got these completions."""
    policy = make_policy(session)
    run = runs.queue(session, campaign_id=campaign.id, stage=Stage.sample, inputs={}, recipe={})
    found = batches.prompts_to_sample(session, campaign.id, len(texts))
    rows = [
        {"id": str(p.id), "prompt": p.messages, "completions": [{"text": t} for t in said]}
        for p, said in zip(found, texts, strict=True)
    ]
    return batches.add_sampled(session, campaign, run_id=run.id, checkpoint_id=policy.id, rows=rows)


def with_prompts(session: Session, count: int) -> Campaign:
    campaign = make_campaign(session)
    prompts.add(session, campaign, ((n, f"Question {n}?") for n in range(count)))
    return campaign


def test_a_sampled_prompt_becomes_a_comparison_of_its_completions(session: Session) -> None:
    campaign = with_prompts(session, 2)
    assert sampled(session, campaign, ["a", "b"], ["c", "d", "e"]) == 2
    assert session.scalar(select(func.count()).select_from(Completion)) == 5


def test_a_prompt_that_got_the_same_completion_twice_makes_no_comparison(session: Session) -> None:
    campaign = with_prompts(session, 2)
    assert sampled(session, campaign, ["same", "same"], ["a", "  "]) == 0


def test_the_least_sampled_prompts_come_first(session: Session) -> None:
    campaign = with_prompts(session, 4)
    first = {p.id for p in batches.prompts_to_sample(session, campaign.id, 2)}
    sampled(session, campaign, ["a", "b"], ["a", "b"])
    session.expire_all()
    assert first.isdisjoint(p.id for p in batches.prompts_to_sample(session, campaign.id, 2))


def test_a_character_that_the_database_cannot_hold_is_shown_as_unreadable(session: Session) -> None:
    campaign = with_prompts(session, 1)
    assert sampled(session, campaign, ["a\x00b", "c"]) == 1
    assert set(session.scalars(select(Completion.text))) == {"a\ufffdb", "c"}


def test_comparisons_ask_for_as_many_answers_as_the_campaigns_overlap(session: Session) -> None:
    campaign = make_campaign(session, overlap=3)
    prompts.add(session, campaign, [(1, "Why?")])
    sampled(session, campaign, ["a", "b"])
    assert session.execute(select(Comparison.overlap, Comparison.open_slots)).all() == [(3, 3)]
    assert session.scalars(select(Prompt.samples)).all() == [1]
