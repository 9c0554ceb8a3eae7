"""What happened in a campaign, in plain words. Pure: an event in, a sentence out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from app.rounds.models import Stage

RUN_NAMES = {
    Stage.reward.value: "reward model",
    Stage.dpo.value: "policy",
    Stage.ppo.value: "policy",
    Stage.evaluate.value: "evaluation",
    Stage.sample.value: "sampling",
}


@dataclass(frozen=True)
class Event:
    """One line of the log, with the names of what it is about looked up."""

    action: str
    """An audit entry's `round.start`, or `runs running failed` for a machine's move."""
    detail: dict[str, Any] = field(default_factory=dict)
    round: int | None = None
    stage: str = ""
    person: str = ""
    """Whom it was done to."""
    reason: str = ""


def sentence(event: Event) -> str:
    """`started round 3`: what follows the name of who did it."""
    made = WORDS.get(event.action)
    return made(event) if made else event.action.replace(".", " ").replace("_", " ")


def _round(event: Event) -> str:
    return f"round {event.round}" if event.round else "a round"


def _run(event: Event) -> str:
    name = RUN_NAMES.get(event.stage, event.stage)
    return f"the {name} run of round {event.round}" if event.round else f"a {name} run"


def _because(event: Event) -> str:
    said = event.reason or str(event.detail.get("reason", ""))
    return f": {said}" if said else ""


def _start(event: Event) -> str:
    why = {
        "annotations": " because enough new answers had come in",
        "schedule": " because the time had come",
    }.get(str(event.detail.get("trigger", "")), "")
    return f"started {_round(event)}{why}"


def _export(event: Event) -> str:
    kind = {"jsonl": "JSONL", "parquet": "Parquet"}.get(str(event.detail.get("format", "")), "a file")
    return f"exported the preferences as {kind}"


def _download(event: Event) -> str:
    part = {"train": "training pairs", "held-out": "held-out pairs"}.get(str(event.detail.get("part", "")), "dataset")
    return f"downloaded the {part} of round {event.detail.get('round', '?')}"


def _member(event: Event) -> str:
    role = str(event.detail.get("role", ""))
    return f"added {event.person or 'somebody'}" + (
        f" as {'an' if role[:1] in 'aeiou' else 'a'} {role}" if role else ""
    )


def _count(event: Event, noun: str) -> str:
    made = event.detail.get("created")
    return f"{noun}s" if made is None else f"{made:,} {noun}{'' if made == 1 else 's'}"


def _plain(text: str) -> Callable[[Event], str]:
    return lambda event: text


WORDS: dict[str, Callable[[Event], str]] = {
    "campaign.create": lambda e: f"created the campaign “{e.detail['name']}”" if "name" in e.detail else "created it",
    "campaign.edit": _plain("changed the settings"),
    "campaign.policy": _plain("chose another policy"),
    "prompts.add": lambda e: f"added {_count(e, 'prompt')}",
    "comparisons.import": lambda e: f"imported {_count(e, 'comparison')}",
    "batch.request": _plain("asked for a fresh batch of comparisons"),
    "campaign.guidelines": _plain("wrote a new version of the guidelines"),
    "campaign.activate": _plain("activated the campaign"),
    "campaign.pause": _plain("paused the campaign"),
    "campaign.close": _plain("closed the campaign"),
    "round.start": _start,
    "round.cancel": lambda e: f"cancelled {_round(e)}",
    "round.override.promoted": lambda e: f"promoted {_round(e)} against its gates{_because(e)}",
    "round.override.rejected": lambda e: f"rolled {_round(e)} back{_because(e)}",
    "preferences.export": _export,
    "dataset.download": _download,
    "member.add": _member,
    "member.remove": lambda e: f"removed {e.person or 'somebody'} from the campaign",
    "link.create": _plain("made an invitation"),
    "link.use": _plain("accepted an invitation"),
    "link.revoke": _plain("withdrew an invitation"),
    "rounds training evaluating": lambda e: f"{_round(e)} went on to the evaluation",
    "rounds evaluating promoted": lambda e: f"{_round(e)} was promoted{_because(e)}",
    "rounds evaluating rejected": lambda e: f"{_round(e)} was rejected{_because(e)}",
    "rounds training failed": lambda e: f"{_round(e)} failed{_because(e)}",
    "rounds evaluating failed": lambda e: f"{_round(e)} failed{_because(e)}",
    "runs running succeeded": lambda e: f"{_run(e)} finished",
    "runs running failed": lambda e: f"{_run(e)} failed{_because(e)}",
    "runs queued failed": lambda e: f"{_run(e)} failed{_because(e)}",
    "runs running queued": lambda e: f"{_run(e)} goes into the queue again{_because(e)}",
    "runs queued cancelled": lambda e: f"{_run(e)} was stopped",
    "runs running cancelled": lambda e: f"{_run(e)} was stopped",
}
