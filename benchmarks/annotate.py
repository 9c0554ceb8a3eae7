"""Many annotators at once, over the real API of a real platform: exact overlap, nobody twice, no errors; and how fast.

    python benchmarks/annotate.py [--annotators 50] [--comparisons 1500] [--overlap 1 3]

Beside it, in the same run and on the same PostgreSQL, the bare claim statement through psycopg: what the database alone
could do. The ratio of the two is what HTTP, JSON and Python cost.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from app import supervisor
from app.accounts import people, tokens
from app.accounts.models import CampaignRole, Role, Scope
from app.annotation import leasing
from app.campaigns.models import Campaign
from app.cli import use_data
from app.core.db import transaction


def crowd(campaign: str, count: int) -> list[str]:
    """Tokens of so many new annotators of the campaign."""
    with transaction() as session:
        users = [people.create_user(session, f"{uuid.uuid4().hex}@example.org", Role.annotator) for _ in range(count)]
        for user in users:
            people.add_member(session, user, uuid.UUID(campaign), CampaignRole.annotator, actor_id=None)
        return [tokens.create_token(session, user, "bench", list(Scope))[1] for user in users]


def answer_everything(url: str, campaign: str, token: str, seen: list[tuple[str, float]], errors: list[str]) -> None:
    """One annotator: lease, answer with the next lease in the reply, until nothing is left."""
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=f"{url}/api/v1", headers=headers, timeout=60, trust_env=False) as http:
        reply = http.post(f"/campaigns/{campaign}/assignments")
        assignment = reply.json() if reply.status_code == 201 else None
        while assignment:
            ids = [c["id"] for c in assignment["completions"]]
            started = time.perf_counter()
            reply = http.put(
                f"/assignments/{assignment['id']}/annotation?next=true",
                json={"ranking": [[ids[0]], [ids[1]]], "strength": 2},
                headers={"Idempotency-Key": assignment["id"]},
            )
            if reply.status_code != 200:
                errors.append(reply.text)
                return
            seen.append((assignment["comparison_id"], time.perf_counter() - started))
            assignment = reply.json()["next"]


def campaign_of(url: str, lead: str, overlap: int, comparisons: int) -> str:
    with httpx.Client(base_url=f"{url}/api/v1", headers={"Authorization": f"Bearer {lead}"}, trust_env=False) as http:
        made = http.post("/campaigns", json={"name": "Bench", "overlap": overlap, "activate": True}).json()["id"]
        rows = (json.dumps({"prompt": f"Question {n}?", "completions": ["a", "b"]}) for n in range(comparisons))
        http.post(f"/campaigns/{made}/comparisons", content="\n".join(rows), timeout=120).raise_for_status()
    return str(made)


def bare(campaign: str, annotators: int, seconds: float = 5) -> float:
    """Claims per second of the claim statement alone, by eight connections."""
    with transaction() as session:
        ids = [
            leasing.annotator_of(session, people.create_user(session, f"{uuid.uuid4().hex}@x.org", Role.annotator)).id
            for _ in range(annotators)
        ]
    done, stop = Counter[int](), time.monotonic() + seconds

    def work(n: int) -> None:
        turn = 0
        while time.monotonic() < stop:
            with transaction() as session:
                who = ids[(n + 8 * turn) % len(ids)]
                row = {"campaign": uuid.UUID(campaign), "annotator": who, "lease": leasing.lease_time()}
                done[n] += session.scalar(leasing.CLAIM, row) is not None
            turn += 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    return sum(done.values()) / seconds


def measure(url: str, annotators: int, comparisons: int, overlap: int) -> None:
    with transaction() as session:
        user = people.create_user(session, f"{uuid.uuid4().hex}@example.org", Role.lead)
        lead = tokens.create_token(session, user, "bench", list(Scope))[1]
    campaign = campaign_of(url, lead, overlap, comparisons)
    seen: list[tuple[str, float]] = []
    errors: list[str] = []
    threads = [
        threading.Thread(target=answer_everything, args=(url, campaign, token, seen, errors))
        for token in crowd(campaign, annotators)
    ]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    per_comparison = Counter(comparison for comparison, _ in seen)
    exact = len(per_comparison) == comparisons and set(per_comparison.values()) == {overlap}
    times = sorted(t * 1000 for _, t in seen)
    with transaction() as session:
        name = session.get_one(Campaign, uuid.UUID(campaign)).name
    alone = bare(campaign_of(url, lead, 50, comparisons), annotators)
    print(
        f"{name}: {annotators} annotators, {comparisons} comparisons, overlap {overlap}: {len(seen)} answers, "
        f"exact overlap: {'yes' if exact else 'NO'}, errors: {len(errors)}, {len(seen) / seconds:.0f} cycles/s, "
        f"p50 {statistics.median(times):.0f} ms, p95 {times[int(0.95 * len(times))]:.0f} ms, "
        f"p99 {times[int(0.99 * len(times))]:.0f} ms; bare claim {alone:.0f}/s, ratio {len(seen) / seconds / alone:.2f}"
    )
    if errors or not exact:
        raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--comparisons", type=int, default=1500)
    parser.add_argument("--overlap", type=int, nargs="+", default=[1, 3])
    given = parser.parse_args()

    def run(url: str) -> None:
        for overlap in given.overlap:
            measure(url, given.annotators, given.comparisons, overlap)

    with tempfile.TemporaryDirectory() as data:
        use_data(Path(data))
        supervisor.up(port=0, workers=False, on_ready=run, once=True)


if __name__ == "__main__":
    main()
