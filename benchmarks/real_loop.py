"""Real data and real weights the whole way: import labelled pairs, then a DPO and a PPO round, on the real worker.

    CHROMIUM=/usr/bin/chromium python benchmarks/real_loop.py PAIRS.jsonl MODEL_DIR

PAIRS are HH-RLHF style rows (see `app/comparisons/records.py`), MODEL_DIR a transformers checkpoint with a chat
template (such as `scripts/convert_llama2c.py` makes). Between them an annotator answers a few fresh comparisons in
Chromium. Prints, per round, held-out reward accuracy with its interval, the times of
its runs and their peak memory.
"""

import argparse
import os
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from app import supervisor
from app.accounts import people, sessions
from app.accounts.models import CampaignRole, Role
from app.checkpoints import lineage
from app.cli import use_data
from app.core.db import transaction
from app.core.errors import TiebreakError
from app.demo.simulate import FINAL, POLL_SECONDS, Platform, people_of
from app.rounds.models import Run

RECIPE: dict[str, Any] = {
    "batch_prompts": 50,
    "reward": {"epochs": 1, "batch_size": 32, "learning_rate": 5e-4, "max_length": 512},
    "dpo": {"epochs": 1, "batch_size": 32, "learning_rate": 1e-4, "max_length": 512},
    "ppo": {
        "steps": 20,
        "batch_size": 32,
        "learning_rate": 1e-4,
        "value_learning_rate": 3e-4,
        "max_new_tokens": 48,
        "max_length": 512,
    },
    "sample": {"max_new_tokens": 64, "max_length": 512},
    "evaluate": {"max_new_tokens": 48, "max_length": 512, "max_prompts": 64},
}


def wait(lead: Platform, round_id: str) -> Any:
    while True:
        current = lead.call("GET", f"/rounds/{round_id}")
        if current["status"] in FINAL:
            return current
        time.sleep(POLL_SECONDS)


def peaks(round_id: str) -> dict[str, float]:
    """Peak memory of each run of a round, in MB."""
    from sqlalchemy import select

    with transaction() as session:
        runs = session.scalars(select(Run).where(Run.round_id == round_id))
        return {run.stage.value: run.result.get("peak_memory_mb", 0) for run in runs}


def answer_in_browser(url: str, campaign: str, number: int) -> None:
    """Answer `number` comparisons by keyboard, as soon as there are any."""
    from playwright.sync_api import expect, sync_playwright

    with transaction() as session:
        rater = people.create_user(session, f"rater-{uuid.uuid4().hex}@bench.example", Role.annotator)
        people.add_member(session, rater, uuid.UUID(campaign), CampaignRole.annotator, actor_id=None)
        secret = sessions.start(session, rater)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ.get("CHROMIUM"), args=["--no-sandbox"])
        page = browser.new_context(base_url=url).new_page()
        page.context.add_cookies([{"name": "tiebreak", "value": secret, "url": url}])
        page.goto(f"/campaigns/{campaign}/annotate")
        form = page.locator("form.comparison")
        expect(form).to_be_visible(timeout=600_000)
        page.keyboard.press("Escape")  # the guidelines
        for _ in range(number):
            shown = form.get_attribute("data-assignment")
            page.wait_for_timeout(400)
            page.keyboard.press("2")
            page.keyboard.press("Enter")
            expect(form).not_to_have_attribute("data-assignment", str(shown), timeout=20_000)
        expect(page.locator("#saved")).to_have_text("saved ✓", timeout=20_000)
        browser.close()
    print(f"answered in the browser: {number}", flush=True)


def play(url: str, pairs: Path, model: Path) -> None:
    with transaction() as session:
        policy = str(lineage.register_base(session, str(model), "real weights").id)
    with people_of("real") as (token, _annotators):
        lead = Platform(url, token)
        lead.http.timeout = 600
        body = {"name": "Real pairs", "policy": policy, "recipe": RECIPE, "activate": True}
        campaign = lead.call("POST", "/campaigns", body)["id"]
        started = time.monotonic()
        report = lead.call("POST", f"/campaigns/{campaign}/comparisons", content=pairs.read_bytes())
        counted = {k: report[k] for k in ("created", "duplicates", "rejected_count")}
        print(f"import: {counted} in {time.monotonic() - started:.1f} s", flush=True)
        for bad in report["rejected"][:5]:
            print(f"  line {bad['line']}: {bad['error']}")
        for method in ("dpo", "ppo"):
            if method == "ppo":
                answer_in_browser(url, campaign, 5)
            done = wait(lead, lead.call("POST", f"/campaigns/{campaign}/rounds", {"method": method})["id"])
            if done["status"] == "failed":
                raise TiebreakError(done["error"])
            metrics, memory = done["metrics"], peaks(done["id"])
            interval = f"[{metrics['accuracy_low']:.3f}, {metrics['accuracy_high']:.3f}]"
            print(
                f"{method} round: {done['status']}, {done['train_pairs']} pairs, {done['held_out_pairs']} held out, "
                f"reward accuracy {metrics['accuracy']:.3f} {interval}, "
                f"reward win rate {metrics['reward_win_rate']:.2f}, KL {metrics['kl']:.2f}, {done['seconds']:.0f} s",
                flush=True,
            )
            for run in done["runs"]:
                print(f"  {run['stage']}: {run['seconds'] or 0:.0f} s, peak {memory[run['stage']]:.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("model", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as data:
        use_data(Path(data))
        supervisor.up(port=0, on_ready=lambda url: play(url, given.pairs, given.model), once=True)


if __name__ == "__main__":
    main()
