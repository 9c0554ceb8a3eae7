"""Drills on the whole platform: processes of a real `tiebreak up`, killed without warning in the middle of work."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from app.core.db import ROOT
from tests.models import random_llama
from workers import invariants

# A lost worker is noticed within seconds instead of a minute; everything else is as in production.
QUICK = {"TIEBREAK_RUN_LEASE_SECONDS": "8", "TIEBREAK_HEARTBEAT_SECONDS": "2", "TIEBREAK_TICK_SECONDS": "2"}
RECIPE = {
    "batch_prompts": 4,
    "reward": {"epochs": 1, "batch_size": 8, "min_pairs": 5},
    "dpo": {"epochs": 60, "batch_size": 4, "save_every": 5, "min_pairs": 5},
    "sample": {"max_new_tokens": 8},
    "evaluate": {"max_new_tokens": 8},
    "gates": [],
}
COMMAND = [sys.executable, "-m", "app"]


@dataclass
class Platform:
    """A running platform and a lead's way in."""

    process: psutil.Process
    data: Path
    url: str
    token: str
    database: str

    def call(self, method: str, path: str, json: Any = None, **options: Any) -> Any:
        """The JSON of a reply; asked again while nobody answers, as a client with an idempotency key may."""
        deadline = time.monotonic() + 60
        while True:
            try:
                headers = {"Authorization": f"Bearer {self.token}", **options.pop("headers", {})}
                reply = httpx.request(
                    method,
                    f"{self.url}/api/v1{path}",
                    json=json,
                    headers=headers,
                    timeout=20,
                    trust_env=False,
                    **options,
                )
                reply.raise_for_status()
                return reply.json() if reply.status_code != 204 else None
            except httpx.TransportError:
                assert time.monotonic() < deadline, "nobody answers any more"
                time.sleep(0.2)

    def query(self, sql: str) -> list[Any]:
        with psycopg.connect(self.database) as connection:
            return connection.execute(sql).fetchall()  # type: ignore[arg-type]

    def pid(self, *words: str) -> int:
        """The process of the platform whose command line holds all the words."""
        for process in self.process.children(recursive=True):
            if all(word in command_line(process) for word in words):
                return int(process.pid)
        raise AssertionError(f"no process {words}")


def command_line(process: psutil.Process) -> str:
    """Empty for one that has just ended."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def until(condition: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.3)
    return found


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    data = tmp_path_factory.mktemp("drill")
    environment = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "REDIS_URL", "TIEBREAK_URL")}
    environment |= {**QUICK, "TIEBREAK_DATA": str(data), "MODEL": str(random_llama())}
    log = (data / "up.log").open("w")
    process = psutil.Popen([*COMMAND, "up", "--port", "0"], cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        url = until(lambda: _ready(data))
        made = subprocess.run(
            [*COMMAND, "user", "create", "lead@example.org", "--role", "lead", "--print-token"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        database = json.loads((data / "run" / "postgres.json").read_text())["url"].replace("+psycopg", "")
        yield Platform(process, data, url, made.stdout.split()[-1], database)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        log.close()


def _ready(data: Path) -> str | None:
    try:
        url = str(json.loads((data / "run" / "up.json").read_text())["url"])
        return url if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200 else None
    except (OSError, ValueError, KeyError, httpx.TransportError):
        return None


def campaign(platform: Platform, labels: int) -> str:
    """An active campaign on the random model, with labels imported."""
    policy = next(c["id"] for c in platform.call("GET", "/checkpoints"))
    body = {"name": "Drill", "policy": policy, "recipe": RECIPE, "activate": True}
    made = platform.call("POST", "/campaigns", body)["id"]
    rows = [{"prompt": f"Question {n}?", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(labels)]
    assert platform.call("POST", f"/campaigns/{made}/comparisons", rows)["created"] == labels
    return str(made)


def finished(platform: Platform, round_id: str) -> Any:
    def ended() -> Any:
        current = platform.call("GET", f"/rounds/{round_id}")
        return current if current["status"] in ("promoted", "rejected", "failed") else None

    return until(ended, 240)


def test_a_run_whose_worker_is_killed_completes_once(platform: Platform) -> None:
    made = campaign(platform, 40)
    round_id = platform.call("POST", f"/campaigns/{made}/rounds", {})["id"]

    def training() -> bool:
        steps = f"""SELECT count(*) FROM run_metrics m JOIN runs r ON r.id = m.run_id
                    WHERE r.stage = 'dpo' AND r.round_id = '{round_id}'"""
        return bool(platform.query(steps)[0][0] > 6)

    until(training)
    os.kill(platform.pid("workers.gpu"), signal.SIGKILL)
    done = finished(platform, round_id)
    dpo = next(run for run in done["runs"] if run["stage"] == "dpo")
    assert done["status"] == "promoted", done["error"]
    assert dpo["attempt"] == 2 and dpo["status"] == "succeeded"
    made_by_it = f"SELECT count(*) FROM checkpoints WHERE run_id = '{dpo['id']}'"
    steps = f"SELECT step FROM run_metrics WHERE run_id = '{dpo['id']}' ORDER BY step"
    assert platform.query(made_by_it) == [(1,)]
    assert [s for (s,) in platform.query(steps)] == list(range(1, dpo["steps"] + 1))
    assert all(f"work/{dpo['id']}" not in command_line(p) for p in platform.process.children(recursive=True))


def test_no_acknowledged_answer_is_lost_or_doubled_when_the_web_process_is_killed(platform: Platform) -> None:
    made = platform.call("POST", "/campaigns", {"name": "Drill", "activate": True})["id"]
    rows = [{"prompt": f"Question {n}?", "completions": ["a", "b"]} for n in range(40)]
    platform.call("POST", f"/campaigns/{made}/comparisons", rows)
    said = {}
    for n in range(40):
        if n % 8 == 4:
            os.kill(platform.pid("uvicorn"), signal.SIGKILL)
        lease = platform.call("POST", f"/campaigns/{made}/assignments")
        ids = [completion["id"] for completion in lease["completions"]]
        receipt = platform.call(
            "PUT",
            f"/assignments/{lease['id']}/annotation",
            {"ranking": [[ids[0]], [ids[1]]], "comment": f"answer {n}"},
            headers={"Idempotency-Key": f"key-{n}"},
        )
        said[receipt["id"]] = f"answer {n}"
    kept = platform.query(f"SELECT id::text, comment FROM annotations WHERE campaign_id = '{made}'")
    assert dict(kept) == said and len(kept) == 40


def test_a_round_finishes_when_redis_is_killed_while_its_run_is_queued(platform: Platform) -> None:
    made = campaign(platform, 20)
    os.kill(platform.pid("workers.gpu"), signal.SIGSTOP)
    gpu = platform.pid("workers.gpu")
    round_id = platform.call("POST", f"/campaigns/{made}/rounds", {"dpo": {"epochs": 1}})["id"]
    until(lambda: platform.query(f"SELECT 1 FROM runs WHERE round_id = '{round_id}' AND state = 'queued'"))
    keeper = psutil.Process(json.loads((platform.data / "run" / "redis.json").read_text())["pid"])
    keeper.children()[0].kill()
    os.kill(gpu, signal.SIGCONT)
    done = finished(platform, round_id)
    assert done["status"] == "promoted", done["error"]
    assert all(run["attempt"] == 1 for run in done["runs"])


def test_after_all_that_every_invariant_holds(platform: Platform) -> None:
    with Session(create_engine(platform.database.replace("postgresql://", "postgresql+psycopg://"))) as session:
        assert invariants.broken(session) == {}
