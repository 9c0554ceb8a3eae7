"""What in a campaign needs its lead now. Facts in, a list of sentences out."""

from dataclasses import dataclass
from enum import StrEnum

from app.campaigns.models import Campaign, CampaignState
from app.quality.progress import Progress
from app.rounds.models import Round, RoundState, Run, RunState


class Place(StrEnum):
    """Where the lead can do something about it."""

    prompts = "prompts"
    people = "people"
    settings = "settings"
    round = "round"


@dataclass(frozen=True)
class Need:
    text: str
    place: Place
    urgent: bool = False
    """Something went wrong, or everything stands still."""


@dataclass(frozen=True)
class Facts:
    campaign: Campaign
    progress: Progress
    prompts: int
    annotators: int
    has_guidelines: bool
    last_finished: Round | None = None
    last_sample: Run | None = None
    round_live: bool = False
    """A round is training or evaluating; fresh comparisons come when it ends."""


def needs(facts: Facts) -> list[Need]:
    """The most urgent first."""
    if facts.campaign.state is CampaignState.closed:
        return []
    found = [*_setting_up(facts), *_collecting(facts), *_rounds(facts)]
    return sorted(found, key=lambda need: not need.urgent)


def _setting_up(facts: Facts) -> list[Need]:
    found = []
    if not facts.prompts:
        found.append(Need("There are no prompts yet: add prompts, or import comparisons.", Place.prompts, urgent=True))
    if not facts.annotators:
        found.append(Need("Nobody annotates here yet: invite somebody.", Place.people, urgent=True))
    if not facts.has_guidelines:
        found.append(Need("There are no guidelines: annotators will each use their own yardstick.", Place.settings))
    if facts.campaign.policy_id is None:
        found.append(
            Need("No policy is chosen: comparisons come by import only, and no rounds can run.", Place.settings)
        )
    return found


def _collecting(facts: Facts) -> list[Need]:
    last = facts.last_sample
    sampling = last is not None and last.state in (RunState.queued, RunState.running)
    if last is not None and last.state is RunState.failed:
        return [Need(f"The last batch could not be sampled: {last.error}", Place.prompts, urgent=True)]
    if (
        facts.campaign.state is CampaignState.active
        and facts.prompts
        and not facts.progress.left
        and not sampling
        and not facts.round_live
    ):
        return [
            Need("Nothing is left to annotate: start a round, or sample another batch.", Place.prompts, urgent=True)
        ]
    return []


def _rounds(facts: Facts) -> list[Need]:
    last = facts.last_finished
    if last is None:
        return []
    if last.state is RoundState.failed:
        return [Need(f"Round {last.number} failed. {last.error}", Place.round, urgent=True)]
    if last.state is RoundState.rejected and any(not gate.get("passed") for gate in last.gates):
        return [Need(f"Round {last.number} was not promoted. {last.decision_reason}", Place.round, urgent=True)]
    return []
