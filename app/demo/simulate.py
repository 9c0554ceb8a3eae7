"""The whole loop without a browser: scripted annotators with a hidden taste answer through the real JSON API.

Everything between the answers is the platform's own: its leases, its snapshots, its worker, its gates, its next batch.
"""

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from app.accounts import people, tokens
from app.accounts.models import CampaignRole, Role, Scope
from app.core.db import transaction
from app.core.errors import TiebreakError
from app.core.settings import settings
from app.demo import language, policies
from app.demo.recipes import overrides

ANNOTATORS = 4
CAMPAIGN_PROMPTS = 600
MEASURED_PROMPTS = 200
NOISE = 0.1
PATIENCE_SECONDS = 3600
"""For one round, or one batch, on a real model."""
POLL_SECONDS = 0.5
FINAL = ("promoted", "rejected", "failed", "cancelled")


@dataclass(frozen=True)
class RoundFigures:
    """What one round came to. The win rate is by the hidden taste, ties a half; KL in nats per completion."""

    comparisons: int
    reward_accuracy: float | None
    win_rate: float
    kl: float | None
    mean_length: float | None
    distinct_2: float | None
    seconds: float
    outcome: str


class Platform:
    """The JSON API, as one of its users."""

    def __init__(self, url: str, token: str) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        self.http = httpx.Client(base_url=f"{url}/api/v1", headers=headers, timeout=60, trust_env=False)

    def call(self, method: str, path: str, json: Any = None, **options: Any) -> Any:
        """The reply's JSON, None for 204. Raises `TiebreakError` with the problem's own words."""
        try:
            reply = self.http.request(method, path, json=json, **options)
        except httpx.TransportError as error:
            raise TiebreakError(f"The platform does not answer any more ({error}).") from error
        if reply.status_code >= 400:
            raise TiebreakError(f"{method} {path}: {reply.status_code} {reply.text[:300]}")
        return reply.json() if reply.status_code != 204 else None


@contextmanager
def people_of(tag: str) -> Iterator[tuple[str, list[str]]]:
    """A lead's token and the annotators', for this simulation; revoked when it ends."""
    with transaction() as session:
        users = [
            people.create_user(session, f"{role.value}-{i}-{tag}@simulation.example", role)
            for role, n in ((Role.lead, 1), (Role.annotator, ANNOTATORS))
            for i in range(n)
        ]
        secrets = [tokens.create_token(session, user, "simulation", list(Scope), days=2)[1] for user in users]
    try:
        yield secrets[0], secrets[1:]
    finally:
        with transaction() as session:
            for user in users:
                tokens.revoke_all_tokens(session, user)


def run(
    url: str,
    *,
    rounds: int,
    method: str,
    comparisons: int,
    seed: int,
    on_round: Callable[[int, RoundFigures], None],
) -> None:
    """Play `rounds` rounds against the platform at `url`, telling `on_round` of each."""
    with people_of(uuid.uuid4().hex[:8]) as (lead_token, annotator_tokens):
        lead = Platform(url, lead_token)
        campaign = _campaign(lead, annotator_tokens, method, comparisons, seed)
        everything = language.prompts(CAMPAIGN_PROMPTS + MEASURED_PROMPTS, seed)
        measured = everything[CAMPAIGN_PROMPTS:]
        first = lead.call("GET", f"/campaigns/{campaign}")["policy"]
        reference = _sample(lead, campaign, first, measured, seed)
        crowd = [Annotator(Platform(url, t), lead, campaign, seed * 100 + i) for i, t in enumerate(annotator_tokens)]
        for number in range(1, rounds + 1):
            started = time.monotonic()
            answered = _annotate(lead, campaign, crowd, comparisons)
            done = _round(lead, campaign)
            if done["status"] == "failed":
                raise TiebreakError(f"Round {number} failed: {done['error']}")
            new = _sample(lead, campaign, done["candidate_checkpoint"], measured, seed + number)
            metrics = done["metrics"]
            figures = RoundFigures(
                comparisons=answered,
                reward_accuracy=metrics.get("accuracy"),
                win_rate=win_rate(measured, new, reference),
                kl=metrics.get("kl_initial", metrics.get("kl")),
                mean_length=metrics.get("mean_length"),
                distinct_2=metrics.get("distinct_2"),
                seconds=round(time.monotonic() - started, 1),
                outcome=done["status"],
            )
            on_round(number, figures)


def win_rate(prompts: list[str], new: list[str], old: list[str]) -> float:
    """Share of prompts on which the hidden taste prefers the new completion; a tie counts a half. Pure."""
    gaps = [language.taste(p, a) - language.taste(p, b) for p, a, b in zip(prompts, new, old, strict=True)]
    return sum(1.0 if g > 1e-9 else 0.5 if g > -1e-9 else 0.0 for g in gaps) / len(gaps)


def as_json(method: str, played: list[RoundFigures]) -> dict[str, Any]:
    return {"method": method, "rounds": [asdict(figures) for figures in played]}


def _campaign(lead: Platform, annotator_tokens: list[str], method: str, comparisons: int, seed: int) -> str:
    """A campaign of the demo language with the simulation's annotators in it."""
    with transaction() as session:
        policy = str(policies.first_policy(session).id)
    recipe = {**overrides(settings().model), "method": method, "batch_prompts": _batch(comparisons)}
    made = lead.call(
        "POST",
        "/campaigns",
        {
            "name": f"Simulation, {method.upper()}, seed {seed}",
            "kind": "pairwise",
            "guidelines": language.GUIDELINES,
            "policy": policy,
            "recipe": recipe,
        },
    )["id"]
    with transaction() as session:
        for token in annotator_tokens:
            found = tokens.find_token(session, token)
            assert found is not None
            people.add_member(session, found[0], uuid.UUID(made), CampaignRole.annotator, actor_id=None)
    lead.call("POST", f"/campaigns/{made}/prompts", language.prompts(CAMPAIGN_PROMPTS, seed))
    lead.call("POST", f"/campaigns/{made}/activate")
    return str(made)


def _batch(comparisons: int) -> int:
    """A few prompts more than are answered: some give the same completion twice and make no comparison."""
    return comparisons + max(5, comparisons // 5)


class Annotator:
    """A script that answers by the hidden taste, wrong a tenth of the time."""

    def __init__(self, platform: Platform, lead: Platform, campaign: str, seed: int) -> None:
        self.platform, self.lead, self.campaign, self.rng = platform, lead, campaign, random.Random(seed)

    def answer_until(self, enough: Callable[[], bool]) -> None:
        """Lease and answer until `enough()` says so or the batch is used up; wait while it is being sampled."""
        assignment = None
        while not enough():
            assignment = assignment or self.wait()
            if assignment is None:
                return
            assignment = self.answer(assignment)["next"]

    def wait(self) -> Any:
        """The next assignment, however long the next batch takes; None when it is there and has nothing more."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            sampled = self._sampled()
            if assignment := self.platform.call("POST", f"/campaigns/{self.campaign}/assignments"):
                return assignment
            if sampled:
                return None
            time.sleep(POLL_SECONDS)
        raise TiebreakError("No new batch came; is a GPU worker running?")

    def _sampled(self) -> bool:
        """Whether the latest round's batch has come: a policy that says little new fills it only in part."""
        current = self.lead.call("GET", f"/campaigns/{self.campaign}/rounds")[-1:]
        if not current or current[0]["status"] != "collecting":
            return False
        for run in current[0]["runs"]:
            if run["status"] == "failed":
                raise TiebreakError(f"Sampling the batch failed: {run['error']}")
        return bool(current[0]["runs"]) and all(run["status"] == "succeeded" for run in current[0]["runs"])

    def answer(self, assignment: dict[str, Any]) -> Any:
        left, right = assignment["completions"]
        prompt = assignment["prompt"][-1]["content"]
        side = language.prefer(prompt, left["text"], right["text"], self.rng, NOISE)
        ids = [left["id"], right["id"]]
        ranking = {"a": [[ids[0]], [ids[1]]], "b": [[ids[1]], [ids[0]]], "tie": [ids]}[side]
        return self.platform.call(
            "PUT",
            f"/assignments/{assignment['id']}/annotation?next=true",
            {"ranking": ranking, "strength": None if side == "tie" else 2, "elapsed_ms": 1000},
            headers={"Idempotency-Key": str(uuid.UUID(int=self.rng.getrandbits(128)))},
        )


def _annotate(lead: Platform, campaign: str, crowd: list[Annotator], comparisons: int) -> int:
    """Have the crowd answer `comparisons` more; how many it did."""
    before = lead.call("GET", f"/campaigns/{campaign}")["answers"]
    taken, lock = [0], threading.Lock()

    def enough() -> bool:
        with lock:
            if taken[0] >= comparisons:
                return True
            taken[0] += 1
            return False

    with ThreadPoolExecutor(len(crowd)) as pool:
        list(pool.map(lambda annotator: annotator.answer_until(enough), crowd))
    return int(lead.call("GET", f"/campaigns/{campaign}")["answers"] - before)


def _round(lead: Platform, campaign: str) -> Any:
    """Start a round and wait for its end."""
    started = lead.call("POST", f"/campaigns/{campaign}/rounds", {})["id"]
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        current = lead.call("GET", f"/rounds/{started}")
        if current["status"] in FINAL:
            return current
        time.sleep(POLL_SECONDS)
    raise TiebreakError("The round did not end in time; is a GPU worker running?")


def _sample(lead: Platform, campaign: str, checkpoint: str, prompts: list[str], seed: int) -> list[str]:
    """One completion per prompt from a checkpoint, by the platform's own worker."""
    body = {"checkpoints": [checkpoint], "prompts": prompts, "recipe": {"n": 1, "seed": seed}}
    queued = lead.call("POST", f"/campaigns/{campaign}/samples", body)[0]["run"]
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        state = lead.call("GET", f"/runs/{queued}")
        if state["status"] == "succeeded":
            return [row["completions"][0] for row in state["completions"]]
        if state["status"] in ("failed", "cancelled"):
            raise TiebreakError(f"Sampling failed: {state['error']}")
        time.sleep(POLL_SECONDS)
    raise TiebreakError("Sampling did not end in time; is a GPU worker running?")
