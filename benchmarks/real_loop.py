"""Real data and real weights the whole way: import labelled pairs, then a DPO and a PPO round, on the real worker.

    python benchmarks/real_loop.py PAIRS.jsonl MODEL_DIR

PAIRS are HH-RLHF style rows (see `app/comparisons/records.py`), MODEL_DIR a transformers checkpoint with a chat
template (such as `scripts/convert_llama2c.py` makes). Prints, per round, held-out reward accuracy with its interval,
the times of its runs and their peak memory.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from app import supervisor
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
